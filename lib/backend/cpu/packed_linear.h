#pragma once

#include <cstdint>
#include <span>
#include <variant>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/memory.h"
#include "backend/cpu/thread_pool.h"

namespace guanaco::cpu {

/// One of the linears that make up a weight.
struct PackedPart {
  std::variant<GptqPanels, DensePanels> panels;
  int outputs = 0;
  int first_output = 0;             ///< in the weight
  bool shares_activations = false;  ///< needs them as the part before does

  /// GPTQ: the input at each packed position, -1 where there is none; empty: position = input.
  /// Positions are the inputs sorted by group, stably, each group filled up to whole blocks. One
  /// mechanism for act-order, odd g_idx and groups that are no multiple of a block.
  std::vector<std::int32_t> order;
  std::vector<float> bias;  ///< [outputs] or empty

  int panel_count() const { return (outputs + kPanel - 1) / kPanel; }
};

/// A weight packed for the kernels: inputs -> the outputs of all parts, one after the other.
struct PackedLinear final : DeviceWeight {
  int inputs = 0, outputs = 0;
  int positions = 0;  ///< the most that one row of quantised activations takes; 0 if all are dense
  std::vector<PackedPart> parts;
  Buffer memory;
};

/// PackedLinear::bytes of pack(), from the headers. Exact unless g_idx has groups of uneven sizes.
std::uint64_t packed_bytes(std::span<const Linear> parts);

/// Memory that pack() uses on top for one linear.
std::uint64_t packing_bytes(const Linear& linear, int threads);

/// Reads and packs linears that share their input, one at a time. Throws malformed for numbers that
/// are not finite, out_of_memory.
std::unique_ptr<PackedLinear> pack(std::span<const Linear> parts, ThreadPool& pool);

Element element_of(const StoredTensor& tensor);  ///< throws unsupported unless F16, BF16 or F32
std::size_t size_of(Element element);

/// Throws malformed naming the tensor if one of its elements, or of its numbers converted, is not
/// finite.
void require_finite(const StoredTensor& tensor, std::span<const std::byte> elements);
void require_finite(const StoredTensor& tensor, std::span<const float> numbers);

}  // namespace guanaco::cpu
