#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>

namespace guanaco::cpu {

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t unit) {
  return (n + unit - 1) / unit * unit;
}

/// Zeroed memory straight from the system and back to it when destroyed; large ones lie on 2 MiB
/// pages, because streaming gigabytes through 4 KiB pages spends its time on address translation.
class Buffer {
 public:
  /// Kernels load whole vectors and may read this far past the end.
  static constexpr std::uint64_t kMargin = 64;

  Buffer() = default;
  /// Throws out_of_memory naming `use`, with the bytes wanted and free.
  Buffer(std::uint64_t bytes, std::string_view use);
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer();

  std::byte* data() const noexcept { return data_; }
  std::uint64_t size() const noexcept { return size_; }  ///< as asked for

 private:
  void swap(Buffer& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(mapped_, other.mapped_);
  }
  std::byte* data_ = nullptr;
  std::uint64_t size_ = 0, mapped_ = 0;
};

/// Bytes this process could allocate now without anything being swapped out or killed, as far as
/// the system and its control group say.
std::uint64_t available_bytes();

}  // namespace guanaco::cpu
