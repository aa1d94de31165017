#include "backend/cpu/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>

#include "support/check.h"

namespace guanaco::cpu {
namespace {

constexpr std::uint64_t kHugePage = 2 << 20;

/// The number that follows `key` in a file of the system; the first number if the key is empty.
std::optional<std::uint64_t> number(const char* path, std::string_view key) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  if (key.empty()) return file >> value ? std::optional(value) : std::nullopt;
  for (std::string word; file >> word;)
    if (word == key && file >> value) return value;
  return std::nullopt;
}

}  // namespace

std::uint64_t available_bytes() {
  std::uint64_t available =
      std::uint64_t(sysconf(_SC_AVPHYS_PAGES)) * std::uint64_t(sysconf(_SC_PAGESIZE));
  if (const auto kibibytes = number("/proc/meminfo", "MemAvailable:")) available = *kibibytes << 10;
  // What the group holds of files is given back under pressure.
  const auto limit = number("/sys/fs/cgroup/memory.max", "");
  const auto used = number("/sys/fs/cgroup/memory.current", "");
  const auto files = number("/sys/fs/cgroup/memory.stat", "file");
  if (limit && used && files) {
    const std::uint64_t kept = *used - std::min(*used, *files);
    available = std::min(available, *limit - std::min(*limit, kept));
  }
  return available;
}

Buffer::Buffer(std::uint64_t bytes, std::string_view use) : size_(bytes) {
  // A system that overcommits grants any mapping and kills the process when it is used.
  const std::uint64_t available = available_bytes();
  const bool huge = bytes >= kHugePage;
  const std::uint64_t wanted = round_up(bytes + kMargin, std::uint64_t(sysconf(_SC_PAGESIZE)));
  const std::uint64_t extra = huge ? kHugePage : 0;
  void* const start = bytes > available ? MAP_FAILED
                                        : mmap(nullptr, wanted + extra, PROT_READ | PROT_WRITE,
                                               MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  require(start != MAP_FAILED, ErrorCode::out_of_memory, "{}: {} bytes wanted, {} free", use, bytes,
          available);
  data_ = static_cast<std::byte*>(start);
  mapped_ = wanted;
  if (!huge) return;
  const std::uint64_t skip = round_up(std::uintptr_t(start), kHugePage) - std::uintptr_t(start);
  if (skip > 0) munmap(start, skip);
  data_ += skip;
  if (skip < extra) munmap(data_ + wanted, extra - skip);
  madvise(data_, wanted, MADV_HUGEPAGE);
}

Buffer::~Buffer() {
  if (data_) munmap(data_, mapped_);
}

}  // namespace guanaco::cpu
