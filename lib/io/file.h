#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace guanaco {

/// One regular file open for reading. It is never mapped: a file cut short while we read it is an
/// error, not a SIGBUS. Immutable; any thread.
class File {
 public:
  /// Throws not_found, or invalid_argument if the path is a folder or anything else that is no
  /// regular file.
  explicit File(const std::filesystem::path& path);
  File(File&&) noexcept;
  File& operator=(File&&) = delete;
  ~File();

  const std::filesystem::path& path() const noexcept { return path_; }
  std::uint64_t size() const noexcept { return size_; }  ///< when it was opened

  /// Fills `out` with the bytes at `offset`. Throws malformed if the file ends before, not_found on
  /// a read error.
  void read(std::uint64_t offset, std::span<std::byte> out) const;

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::uint64_t size_ = 0;
};

/// A whole small file. Throws as File does, and malformed if it is larger than `limit` bytes.
std::string read_text(const std::filesystem::path& path, std::uint64_t limit);

}  // namespace guanaco
