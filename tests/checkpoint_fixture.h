#pragma once

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/error.h>

#include "checkpoint/checkpoint.h"
#include "dom.h"
#include "io/json.h"
#include "io/safetensors_writer.h"
#include "support/half.h"
#include "synthetic.h"

// Makes published folders, right and wrong, and looks into them.
namespace guanaco {

/// A safetensors file in memory, to be changed and written again.
struct TensorFile {
  struct Tensor {
    DType dtype;
    std::vector<std::uint64_t> shape;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Tensor> tensors;

  explicit TensorFile(const std::filesystem::path& path) {
    const SafetensorsFile file(path);
    for (const TensorEntry& entry : file.tensors()) {
      Tensor& tensor = tensors[entry.name];
      tensor = {entry.dtype, entry.shape, std::vector<std::byte>(entry.bytes)};
      file.file().read(entry.offset, tensor.bytes);
    }
  }

  void write(const std::filesystem::path& path) const {
    std::vector<SafetensorsWriter::Tensor> layout;
    for (const auto& [name, tensor] : tensors) layout.push_back({name, tensor.dtype, tensor.shape});
    SafetensorsWriter writer(path, layout);
    for (const auto& [name, tensor] : tensors) writer.write(tensor.bytes);
    writer.finish();
  }

  /// Another type or shape, and zeros.
  void replace(const std::string& name, DType dtype, std::vector<std::uint64_t> shape) {
    std::uint64_t size = std::uint64_t(bits(dtype)) / 8;
    for (const std::uint64_t dimension : shape) size *= dimension;
    tensors[name] = {dtype, std::move(shape), std::vector<std::byte>(size)};
  }

  template <typename T>
  T* data(const std::string& name) {
    return reinterpret_cast<T*>(tensors.at(name).bytes.data());
  }
};

/// A synthetic checkpoint in a folder of its own.
class Published {
 public:
  explicit Published(const SyntheticOptions& options = {}) {
    SyntheticOptions without_tokenizer = options;
    without_tokenizer.tokenizer = false;
    write_synthetic(folder_.path(), without_tokenizer);
  }

  const std::filesystem::path& path() const { return folder_.path(); }

  /// The only weight file.
  std::filesystem::path weights() const {
    for (const auto& entry : std::filesystem::directory_iterator(path()))
      if (entry.path().extension() == ".safetensors") return entry.path();
    FAIL("no weight file in ", path());
    return {};
  }

  void edit(const std::function<void(TensorFile&)>& change) const {
    TensorFile file(weights());
    change(file);
    file.write(weights());
  }

  void write(const std::string& name, const std::string& text) const {
    std::ofstream(path() / name, std::ios::binary) << text;
  }

  /// Merges a JSON object over a file that may not be there yet; null removes a field.
  void merge(const std::string& name, const std::string& patch) const {
    const bool there = std::filesystem::exists(path() / name);
    nlohmann::json json = there ? read_dom(path() / name) : nlohmann::json::object();
    json.merge_patch(nlohmann::json::parse(patch));
    write(name, json.dump());
  }

 private:
  TemporaryFolder folder_;
};

inline Checkpoint open_settled(const std::filesystem::path& path,
                               ZeroPoints zero_points = ZeroPoints::automatic) {
  Checkpoint checkpoint = Checkpoint::open(path, zero_points);
  checkpoint.settle({});
  return checkpoint;
}

/// The weight of a linear as floats, row-major [outputs, inputs].
inline std::vector<float> weights_of(const Linear& linear) {
  if (const auto* dense = std::get_if<DenseLinear>(&linear)) return dense->weight.read_floats();
  const GptqMatrix matrix = read_gptq(std::get<GptqLinear>(linear));
  std::vector<float> values;
  values.reserve(std::size_t(matrix.inputs) * std::size_t(matrix.outputs));
  for (int n = 0; n < matrix.outputs; ++n)
    for (int k = 0; k < matrix.inputs; ++k) values.push_back(matrix.weight(k, n));
  return values;
}

/// Every weight of a checkpoint by name.
inline std::map<std::string, std::vector<float>> weights_of(const Checkpoint& checkpoint) {
  std::map<std::string, std::vector<float>> weights;
  for_each_linear(checkpoint,
                  [&](const Linear& linear) { weights[name(linear)] = weights_of(linear); });
  weights["norm"] = checkpoint.norm.read_floats();
  weights["embedding"] = checkpoint.embedding.read_floats();
  return weights;
}

/// True if a line has all these parts.
inline bool has_line(const std::vector<std::string>& lines,
                     std::initializer_list<const char*> parts) {
  return std::any_of(lines.begin(), lines.end(), [&](const std::string& line) {
    return std::all_of(parts.begin(), parts.end(),
                       [&](const char* part) { return line.find(part) != std::string::npos; });
  });
}

/// Checks that `action` throws this code, with a one-line message that has all these parts.
template <typename F>
void check_refused(ErrorCode code, std::initializer_list<const char*> parts, F&& action) {
  try {
    action();
  } catch (const Error& error) {
    INFO(std::string(error.what()));
    CHECK(std::string(name(error.code())) == name(code));
    CHECK(has_line({error.what()}, parts));
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
    return;
  }
  const char* wanted = parts.size() > 0 ? *parts.begin() : "";
  FAIL_CHECK("expected a refusal about ", wanted);
}

}  // namespace guanaco
