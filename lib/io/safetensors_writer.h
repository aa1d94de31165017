#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "io/safetensors.h"

namespace guanaco {

/// Writes a safetensors file in one stream, never holding more than what is passed to write(). The
/// file appears under its name only when finish() has synced it; until then, and if finish() is
/// never called, nothing is left behind.
class SafetensorsWriter {
 public:
  struct Tensor {
    std::string name;
    DType dtype;
    std::vector<std::uint64_t> shape;
    std::uint64_t bytes() const;  ///< of its data; throws invalid_argument if no file can hold it
  };
  /// Lays the file out: data in the order of `tensors`. Throws not_found (the folder),
  /// invalid_argument, out_of_memory.
  SafetensorsWriter(std::filesystem::path path, std::span<const Tensor> tensors,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  /// The next bytes of the data, in the order and of the sizes laid out. Throws out_of_memory when
  /// the disk is full.
  void write(std::span<const std::byte> bytes);
  /// Throws invalid_argument if bytes are missing.
  void finish();

 private:
  void discard() noexcept;

  std::filesystem::path path_, temporary_;
  int descriptor_ = -1;
  std::uint64_t expected_ = 0, written_ = 0;
};

}  // namespace guanaco
