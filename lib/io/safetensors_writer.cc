#include "io/safetensors_writer.h"

#include <cerrno>
#include <random>
#include <set>
#include <system_error>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

#include <fmt/ranges.h>

#include "io/json.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

[[noreturn]] void fail_writing(const std::filesystem::path& path, int error, std::uint64_t expected,
                               std::uint64_t written) {
  const bool full = error == ENOSPC || error == EDQUOT || error == EFBIG;
  fail(full ? ErrorCode::out_of_memory : ErrorCode::not_found, "{}: cannot write byte {} of {}: {}",
       printable(path.native()), written, expected, std::system_category().message(error));
}

std::string header_text(const std::filesystem::path& path,
                        std::span<const SafetensorsWriter::Tensor> tensors,
                        const std::map<std::string, std::string>& metadata) {
  const std::string file = printable(path.native());
  std::set<std::string_view> names = {"__metadata__"};
  std::string text = "{";
  if (!metadata.empty()) {
    Json::Object object;
    for (const auto& [key, value] : metadata) object.emplace(key, Json{value});
    text += "\"__metadata__\":" + to_text(Json{object});
  }
  std::uint64_t offset = 0;
  for (const SafetensorsWriter::Tensor& tensor : tensors) {
    require(tensor.name.size() <= 1024 && find_invalid_utf8(tensor.name) == std::string::npos &&
                names.insert(tensor.name).second,
            ErrorCode::invalid_argument,
            "{}: tensor \"{}\": expected a new name of at most 1024 bytes of UTF-8", file,
            printable(tensor.name));
    std::uint64_t end = 0;
    require(add(offset, tensor.bytes(), end), ErrorCode::invalid_argument,
            "{}: its tensors overflow 64 bits", file);
    if (text.size() > 1) text += ',';
    text += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                        to_text(Json{tensor.name}), name(tensor.dtype),
                        fmt::join(tensor.shape, ","), offset, end);
    offset = end;
  }
  text += '}';
  text.append((8 - text.size() % 8) % 8, ' ');  // the data begin aligned
  return text;
}

}  // namespace

std::uint64_t SafetensorsWriter::Tensor::bytes() const {
  std::uint64_t size = std::uint64_t(bits(dtype));
  for (const std::uint64_t dimension : shape)
    require(multiply(size, dimension, size), ErrorCode::invalid_argument,
            "tensor \"{}\": its shape overflows 64 bits", printable(name));
  require(size % 8 == 0, ErrorCode::invalid_argument,
          "tensor \"{}\": {} bits are no whole number of bytes", printable(name), size);
  return size / 8;
}

SafetensorsWriter::SafetensorsWriter(std::filesystem::path path, std::span<const Tensor> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : path_(std::move(path)) {
  require(path_.has_filename(), ErrorCode::invalid_argument,
          "\"{}\": expected the name of a file to write", printable(path_.native()));
  for (const auto& [key, value] : metadata)
    require(find_invalid_utf8(key) == std::string::npos &&
                find_invalid_utf8(value) == std::string::npos,
            ErrorCode::invalid_argument, "{}: metadata \"{}\": expected UTF-8",
            printable(path_.native()), printable(key));
  const std::string header = header_text(path_, tensors, metadata);
  const std::uint64_t length = header.size();
  expected_ = sizeof length + length;
  for (const Tensor& tensor : tensors) expected_ += tensor.bytes();

  // In the same folder, so that the last step can be a rename. The name is random: two writers of
  // one path do not meet.
  std::random_device random;
  do {
    temporary_ = path_;
    temporary_ += fmt::format(".{:08x}.part", random());
    descriptor_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EEXIST);
  if (const int error = errno; descriptor_ < 0)
    fail(ErrorCode::not_found, "{}: cannot create: {}", printable(path_.native()),
         std::system_category().message(error));
  try {
    write(std::as_bytes(std::span(&length, 1)));
    write(std::as_bytes(std::span(header)));
  } catch (...) {
    discard();
    throw;
  }
}

SafetensorsWriter::~SafetensorsWriter() { discard(); }

void SafetensorsWriter::discard() noexcept {
  if (descriptor_ < 0) return;
  ::close(std::exchange(descriptor_, -1));
  ::unlink(temporary_.c_str());
}

void SafetensorsWriter::write(std::span<const std::byte> bytes) {
  if (const std::uint64_t missing = expected_ - written_; descriptor_ < 0 || bytes.size() > missing)
    fail(ErrorCode::invalid_argument, "{}: expected {} more bytes of data, found {}",
         printable(path_.native()), missing, bytes.size());
  std::uint64_t at = written_;  // moves on only when all is written: a failed call changes nothing
  while (!bytes.empty()) {
    const ssize_t put = ::pwrite(descriptor_, bytes.data(), bytes.size(), off_t(at));
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) fail_writing(path_, put < 0 ? errno : ENOSPC, expected_, at);
    at += std::uint64_t(put);
    bytes = bytes.subspan(std::size_t(put));
  }
  written_ = at;
}

void SafetensorsWriter::finish() {
  require(descriptor_ >= 0 && written_ == expected_, ErrorCode::invalid_argument,
          "{}: expected {} bytes before the end, found {}", printable(path_.native()), expected_,
          written_);
  // Once it has its name it is whole, after a power failure too.
  if (::fsync(descriptor_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0)
    fail_writing(path_, errno, expected_, written_);
  ::close(std::exchange(descriptor_, -1));
  const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
  if (const int opened = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC); opened >= 0) {
    ::fsync(opened);  // some file systems cannot, and lose no data for it
    ::close(opened);
  }
}

}  // namespace guanaco
