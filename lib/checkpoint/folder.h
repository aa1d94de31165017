#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <guanaco/model.h>

#include "checkpoint/config.h"
#include "checkpoint/linear.h"

namespace guanaco {

/// A published folder and the settings in it, not yet understood. Files that are absent are null.
struct Folder {
  std::filesystem::path path;
  std::filesystem::path weight_file;  ///< the one asked for; empty: the folder was
  Json config, quantize_config, quant_config;

  /// The "quantization_config" of config.json; null if there is none.
  Json quantization() const;
};

/// Reads the settings of a folder, or of the folder a .safetensors file lies in. Throws not_found,
/// malformed, and unsupported for weights in a pickle or in a GGUF or GGML file.
Folder open_folder(const std::filesystem::path& path);

/// Opens the weight files, found in the order of reference/formats.md 1.8. Throws not_found if
/// there are none or if it is open which are meant, malformed, unsupported (other formats only).
std::vector<std::unique_ptr<SafetensorsFile>> open_weights(const Folder& folder,
                                                           const QuantizationConfig& settings,
                                                           LoadReport& report);

/// The tensors of a checkpoint by name, whatever files they are in. Borrows the files.
class TensorTable {
 public:
  /// Throws malformed if two files have a tensor of the same name.
  explicit TensorTable(std::span<const std::unique_ptr<SafetensorsFile>> files);

  bool has(const std::string& name) const { return tensors_.contains(name); }
  StoredTensor take(const std::string& name);  ///< counts it as used; none if there is none
  std::vector<std::string> unused() const;     ///< names never taken, sorted, printable
  std::uint64_t bytes() const;                 ///< of all tensors

  /// 1 + the largest N of the tensors called "model.layers.N."; 0 if there are none.
  std::int64_t layers() const;

 private:
  std::map<std::string, StoredTensor> tensors_;
  std::set<std::string> taken_;
};

}  // namespace guanaco
