#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include <guanaco/model.h>

#include "io/safetensors.h"

namespace guanaco {

/// A tensor still on disk. Borrows the SafetensorsFile of its Checkpoint.
struct StoredTensor {
  const SafetensorsFile* file = nullptr;
  const TensorEntry* entry = nullptr;

  explicit operator bool() const noexcept { return entry != nullptr; }
  std::uint64_t rows() const { return entry->shape.empty() ? 1 : entry->shape[0]; }
  std::uint64_t elements() const { return entry->bytes * 8 / std::uint64_t(bits(entry->dtype)); }

  void read(std::span<std::byte> out) const;  ///< all of it; out.size() == entry->bytes
  void read_rows(std::uint64_t first, std::span<std::byte> out) const;  ///< whole rows from `first`
  std::vector<float> read_floats() const;  ///< F16, BF16 or F32, converted exactly
};

/// The weight [outputs, inputs] of a linear layer, y = W x + bias, one float of 16 or 32 bits an
/// element.
struct DenseLinear {
  std::string name;  ///< "model.layers.0.self_attn.q_proj"
  int inputs = 0, outputs = 0;
  StoredTensor weight;  ///< F16, BF16 or F32 [outputs, inputs]
  StoredTensor bias;    ///< [outputs], or none
};

/// A linear layer as GPTQ stores it (reference/formats.md 1):
///
///     W[n, k] = scales[g, n] * (code(k, n) - zero(g, n)),   g = group of input row k
///
/// qweight packs the codes of one output n down the inputs k, lowest bits first: word k * bits / 32
/// of column n. qzeros packs along the outputs in the same way. 3-bit codes run over 96 bits: three
/// words of one column.
struct GptqLinear {
  std::string name;
  int bits = 4;  ///< 2, 3, 4 or 8
  int inputs = 0, outputs = 0;
  int groups = 1;
  int group_size = 0;  ///< input rows a group has where it is full; `inputs` if there is one group
  ZeroPoints zero_points = ZeroPoints::v1;  ///< never automatic once the Checkpoint is settled
  StoredTensor qweight;                     ///< I32 [inputs * bits / 32, outputs]
  StoredTensor qzeros;                      ///< I32 [groups, outputs * bits / 32]
  StoredTensor scales;                      ///< F16, BF16 or F32 [groups, outputs]
  StoredTensor g_idx;                       ///< I32 [inputs], or none: group k / group_size
  StoredTensor bias;                        ///< [outputs], or none
};

using Linear = std::variant<DenseLinear, GptqLinear>;

const std::string& name(const Linear&);
int inputs(const Linear&);
int outputs(const Linear&);
std::uint64_t stored_bytes(const Linear&);  ///< of all its tensors

/// A GptqLinear in memory, checked and normalised: the readable truth about what the file means.
struct GptqMatrix {
  int bits = 4, inputs = 0, outputs = 0, groups = 1;
  std::vector<std::uint32_t> codes;  ///< [inputs * bits / 32, outputs] words, as in the file
  std::vector<std::uint8_t> zeros;   ///< [groups, outputs], plain: W = scale * (code - zero)
  std::vector<float> scales;         ///< [groups, outputs]
  std::vector<std::int32_t> group;   ///< [inputs] group of each input row, always filled
  std::vector<float> bias;           ///< [outputs], or empty where the file has none or only zeros

  std::uint32_t code(int k, int n) const;
  float weight(int k, int n) const;  ///< exactly scale * (code - zero), rounded once
};

/// Reads and checks one of a settled checkpoint. Throws malformed for group indices outside
/// [0, groups) and for scales or biases that are not finite.
GptqMatrix read_gptq(const GptqLinear&);

/// The g_idx of a linear that has one. Throws malformed for indices outside [0, groups).
std::vector<std::int32_t> read_group_index(const GptqLinear&);

/// True if every code stored in qzeros is `code`.
bool has_uniform_zeros(const GptqLinear&, std::uint32_t code);

/// True if the rows' groups are runs of group_size neighbours (act-order was not used, or is
/// harmless).
bool has_neighbouring_groups(std::span<const std::int32_t> group, int group_size);

}  // namespace guanaco
