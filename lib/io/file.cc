#include "io/file.h"

#include <cerrno>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

[[noreturn]] void fail_with_errno(const std::filesystem::path& path, std::string_view what) {
  const int error = errno;
  fail(ErrorCode::not_found, "{}: {}: {}", printable(path.native()), what,
       std::system_category().message(error));
}

const char* kind(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISFIFO(mode)) return "a pipe";
  if (S_ISSOCK(mode)) return "a socket";
  return "a device";
}

}  // namespace

File::File(const std::filesystem::path& path) : path_(path) {
  require(!path.empty(), ErrorCode::invalid_argument, "expected the path of a file, found none");
  require(path.native().find('\0') == std::string::npos, ErrorCode::invalid_argument,
          "{}: a path cannot hold a zero byte", printable(path.native()));
  const std::string name = printable(path.native());

  // Asked before opening, for opening alone can already have effects on a device.
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) fail_with_errno(path, "cannot open");
  require(S_ISREG(status.st_mode), ErrorCode::invalid_argument,
          "{}: expected a regular file, found {}", name, kind(status.st_mode));

  // Non-blocking, in case a pipe took the file's place just now.
  descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (descriptor_ < 0) fail_with_errno(path, "cannot open");
  if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor_);
    fail(ErrorCode::invalid_argument, "{}: is no longer a regular file", name);
  }
  size_ = std::uint64_t(status.st_size);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void File::read(std::uint64_t offset, std::span<std::byte> out) const {
  std::uint64_t end = 0;
  if (!add(offset, out.size(), end) || end > std::uint64_t(INT64_MAX))
    fail(ErrorCode::malformed, "{}: expected {} bytes at {}, past the end of any file",
         printable(path_.native()), out.size(), offset);
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor_, out.data(), out.size(), off_t(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_with_errno(path_, fmt::format("cannot read at byte {}", offset));
    if (got == 0)
      fail(ErrorCode::malformed, "{}: expected at least {} bytes, found the end at {}",
           printable(path_.native()), end, offset);
    offset += std::uint64_t(got);
    out = out.subspan(std::size_t(got));
  }
}

std::string read_text(const std::filesystem::path& path, std::uint64_t limit) {
  const File file(path);
  require(file.size() <= limit, ErrorCode::malformed, "{}: expected at most {} bytes, found {}",
          printable(path.native()), limit, file.size());
  std::string text(std::size_t(file.size()), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  return text;
}

}  // namespace guanaco
