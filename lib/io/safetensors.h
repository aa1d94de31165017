#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/file.h"

namespace guanaco {

enum class DType {
  boolean,
  u8,
  i8,
  u16,
  i16,
  f16,
  bf16,
  u32,
  i32,
  f32,
  c64,
  u64,
  i64,
  f64,
  f8_e5m2,
  f8_e4m3,
  f8_e8m0,
  f8_e5m2fnuz,
  f8_e4m3fnuz,
  f6_e2m3,
  f6_e3m2,
  f4
};

std::string_view name(DType) noexcept;  ///< as in the file, "BF16"
int bits(DType) noexcept;               ///< of one element

/// One entry of a safetensors header. Row-major, little-endian, not necessarily aligned in the
/// file.
struct TensorEntry {
  std::string name;
  DType dtype;
  std::vector<std::uint64_t> shape;  ///< empty: a scalar
  std::uint64_t offset;              ///< from the start of the file
  std::uint64_t bytes;
};

/// A safetensors file whose header was checked whole (reference/formats.md 1.9); data are read on
/// demand. Immutable; any thread.
class SafetensorsFile {
 public:
  /// Throws not_found, malformed with one message for each of the 14 rules.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const File& file() const noexcept { return file_; }
  std::span<const TensorEntry> tensors() const noexcept { return tensors_; }  ///< by name
  const TensorEntry* find(std::string_view name) const noexcept;  ///< null if there is none
  const std::map<std::string, std::string>& metadata() const noexcept { return metadata_; }

 private:
  File file_;
  std::vector<TensorEntry> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace guanaco
