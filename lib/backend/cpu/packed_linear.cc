#include "backend/cpu/packed_linear.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "support/check.h"
#include "support/half.h"

namespace guanaco::cpu {
namespace {

std::uint64_t divide_up(std::uint64_t n, std::uint64_t unit) { return (n + unit - 1) / unit; }

/// How the inputs of a GPTQ linear become packed positions.
struct Placement {
  GptqPanels panels;                 ///< without data
  std::vector<std::int32_t> order;   ///< as PackedPart::order
  std::vector<std::int32_t> groups;  ///< the file's group of each packed one
};

/// `group` is that of each input.
Placement place(const GptqLinear& linear, std::span<const std::int32_t> group) {
  Placement placement;
  GptqPanels& panels = placement.panels;
  panels.bits = linear.bits == 3 ? 4 : linear.bits;
  panels.half_scales = linear.scales.entry->dtype == DType::f16;
  const int full = linear.groups == 1 ? linear.inputs : linear.group_size;
  panels.block = std::max(32, std::gcd(full, kMaxBlock));

  std::vector<std::vector<std::int32_t>> members(std::size_t(linear.groups));
  for (std::size_t k = 0; k < group.size(); ++k)
    members[std::size_t(group[k])].push_back(std::int32_t(k));
  std::erase_if(members, [](const auto& inputs) { return inputs.empty(); });

  // Scales are kept once a group if all groups but the last have the same number of blocks.
  const auto blocks_of = [&](const auto& inputs) {
    return int(divide_up(inputs.size(), std::uint64_t(panels.block)));
  };
  panels.blocks_per_group = blocks_of(members.front());
  for (std::size_t i = 1; i < members.size(); ++i) {
    const int blocks = blocks_of(members[i]);
    const bool last = i + 1 == members.size();
    if (last ? blocks > panels.blocks_per_group : blocks != panels.blocks_per_group) {
      panels.blocks_per_group = 1;
      break;
    }
  }
  for (const auto& inputs : members) {
    const int blocks = blocks_of(inputs);
    panels.blocks += blocks;
    placement.order.insert(placement.order.end(), inputs.begin(), inputs.end());
    placement.order.resize(std::size_t(panels.blocks) * std::size_t(panels.block), -1);
    placement.groups.insert(
        placement.groups.end(),
        divide_up(std::uint64_t(blocks), std::uint64_t(panels.blocks_per_group)),
        group[std::size_t(inputs.front())]);
  }
  std::vector<std::int32_t> identity(placement.order.size());
  std::iota(identity.begin(), identity.end(), 0);
  if (identity.size() == group.size() && placement.order == identity) placement.order.clear();

  const std::size_t groups = placement.groups.size();
  panels.zeros_offset = groups * kPanel * (panels.half_scales ? 2 : 4);
  panels.codes_offset = round_up(panels.zeros_offset + groups * kPanel, 64);
  panels.panel_bytes =
      panels.codes_offset + std::size_t(panels.blocks) * panels.block * panels.bits / 8 * kPanel;
  return placement;
}

Placement place_by_size(const GptqLinear& linear) {
  std::vector<std::int32_t> group(std::size_t(linear.inputs));
  for (int k = 0; k < linear.inputs; ++k)
    group[std::size_t(k)] = std::min(k / linear.group_size, linear.groups - 1);
  return place(linear, group);
}

DensePanels lay_out(const DenseLinear& linear) {
  const Element element = element_of(linear.weight);
  return {nullptr, std::size_t(linear.inputs) * kPanel * size_of(element), element, linear.inputs};
}

std::uint64_t panels_of(int outputs) { return divide_up(std::uint64_t(outputs), kPanel); }

/// The codes of input k for 16 outputs from `first`, as in the file.
void add_codes(const GptqMatrix& matrix, int k, int first, int count, int shift,
               std::uint32_t* line) {
  const std::size_t bit = std::size_t(k) * std::size_t(matrix.bits);
  const std::uint32_t* words =
      matrix.codes.data() + bit / 32 * std::size_t(matrix.outputs) + std::size_t(first);
  const int from = int(bit % 32);
  const std::uint32_t mask = (1u << matrix.bits) - 1;
  if (from + matrix.bits <= 32) {
    for (int n = 0; n < count; ++n) line[n] |= (words[n] >> from & mask) << shift;
  } else {
    for (int n = 0; n < count; ++n) {
      const std::uint32_t rest = words[n + matrix.outputs] << (32 - from);
      line[n] |= ((words[n] >> from | rest) & mask) << shift;
    }
  }
}

void pack_panel(const GptqMatrix& matrix, const Placement& placement, int panel, std::byte* out) {
  const GptqPanels& panels = placement.panels;
  const int first = panel * kPanel, count = std::min(kPanel, matrix.outputs - first);
  for (std::size_t g = 0; g < placement.groups.size(); ++g) {
    const std::size_t from =
        std::size_t(placement.groups[g]) * std::size_t(matrix.outputs) + std::size_t(first);
    for (int n = 0; n < count; ++n) {
      const std::size_t to = g * kPanel + std::size_t(n);
      const float scale = matrix.scales[from + std::size_t(n)];
      if (panels.half_scales)
        reinterpret_cast<std::uint16_t*>(out)[to] = float_to_half(scale);
      else
        reinterpret_cast<float*>(out)[to] = scale;
      out[panels.zeros_offset + to] = std::byte(matrix.zeros[from + std::size_t(n)]);
    }
  }
  const int run = 32 / panels.bits, words = panels.blocks * panels.block / run;
  for (int word = 0; word < words; ++word) {
    std::uint32_t line[kPanel] = {};
    if (placement.order.empty() && panels.bits == matrix.bits) {
      std::memcpy(line, matrix.codes.data() + std::size_t(word) * matrix.outputs + first,
                  std::size_t(count) * sizeof *line);
    } else {
      for (int j = 0; j < run; ++j) {
        const int position = word * run + j;
        const int k = placement.order.empty() ? position : placement.order[std::size_t(position)];
        if (k >= 0) add_codes(matrix, k, first, count, j * panels.bits, line);
      }
    }
    std::memcpy(out + panels.codes_offset + std::size_t(word) * sizeof line, line, sizeof line);
  }
}

/// [count][inputs] -> [inputs][16]
template <typename Word>
void transpose(const std::byte* rows, int inputs, int count, std::byte* out) {
  const Word* from = reinterpret_cast<const Word*>(rows);
  Word* to = reinterpret_cast<Word*>(out);
  for (int k = 0; k < inputs; ++k)
    for (int n = 0; n < count; ++n)
      to[std::size_t(k) * kPanel + n] = from[std::size_t(n) * inputs + k];
}

std::vector<float> read_bias(const StoredTensor& bias) {
  if (!bias) return {};
  std::vector<float> values = bias.read_floats();
  require_finite(bias, values);
  return values;
}

void pack_part(const DenseLinear& linear, PackedPart& part, std::byte* data, ThreadPool& pool) {
  DensePanels& panels = std::get<DensePanels>(part.panels);
  panels.data = data;
  part.bias = read_bias(linear.bias);
  const std::size_t row_bytes = panels.panel_bytes / kPanel;
  pool.parallel_for(part.panel_count(), [&](int begin, int end) {
    std::vector<std::byte> rows(panels.panel_bytes);
    for (int p = begin; p < end; ++p) {
      const int count = std::min(kPanel, part.outputs - p * kPanel);
      const std::span<std::byte> read(rows.data(), row_bytes * std::size_t(count));
      linear.weight.read_rows(std::uint64_t(p) * kPanel, read);
      require_finite(linear.weight, read);
      std::byte* const out = data + std::size_t(p) * panels.panel_bytes;
      if (size_of(panels.element) == 2)
        transpose<std::uint16_t>(rows.data(), panels.inputs, count, out);
      else
        transpose<std::uint32_t>(rows.data(), panels.inputs, count, out);
    }
  });
}

std::uint64_t bias_bytes(const StoredTensor& bias) {
  return bias ? bias.elements() * sizeof(float) : 0;
}

template <typename Word>
bool all_finite(std::span<const std::byte> elements, Word exponent) {
  const Word* words = reinterpret_cast<const Word*>(elements.data());
  bool finite = true;
  for (std::size_t i = 0; i < elements.size() / sizeof(Word); ++i)
    finite &= (words[i] & exponent) != exponent;
  return finite;
}

void require_finite(const StoredTensor& tensor, bool finite) {
  require(finite, ErrorCode::malformed,
          "tensor {}: expected finite numbers, found infinity or not-a-number", tensor.entry->name);
}

}  // namespace

Element element_of(const StoredTensor& tensor) {
  switch (tensor.entry->dtype) {
    case DType::f16:
      return Element::f16;
    case DType::bf16:
      return Element::bf16;
    case DType::f32:
      return Element::f32;
    default:
      fail(ErrorCode::unsupported, "tensor {}: expected F16, BF16 or F32, found {}",
           tensor.entry->name, name(tensor.entry->dtype));
  }
}

std::size_t size_of(Element element) { return element == Element::f32 ? 4 : 2; }

void require_finite(const StoredTensor& tensor, std::span<const std::byte> elements) {
  const Element element = element_of(tensor);
  require_finite(tensor, element == Element::f32   ? all_finite<std::uint32_t>(elements, 0x7f800000)
                         : element == Element::f16 ? all_finite<std::uint16_t>(elements, 0x7c00)
                                                   : all_finite<std::uint16_t>(elements, 0x7f80));
}

void require_finite(const StoredTensor& tensor, std::span<const float> numbers) {
  require_finite(tensor, all_finite<std::uint32_t>(std::as_bytes(numbers), 0x7f800000));
}

std::uint64_t packed_bytes(std::span<const Linear> parts) {
  std::uint64_t bytes = 0;
  for (const Linear& linear : parts) {
    if (const auto* dense = std::get_if<DenseLinear>(&linear)) {
      bytes += lay_out(*dense).panel_bytes * panels_of(dense->outputs) + bias_bytes(dense->bias);
      continue;
    }
    const auto& gptq = std::get<GptqLinear>(linear);
    const Placement placement = place_by_size(gptq);
    const std::uint64_t positions = std::uint64_t(placement.panels.blocks) * placement.panels.block;
    const bool ordered = gptq.g_idx || !placement.order.empty();
    bytes += placement.panels.panel_bytes * panels_of(gptq.outputs) + bias_bytes(gptq.bias) +
             (ordered ? positions * sizeof(std::int32_t) : 0);
  }
  return bytes;
}

std::uint64_t packing_bytes(const Linear& linear, int threads) {
  if (const auto* dense = std::get_if<DenseLinear>(&linear))
    return lay_out(*dense).panel_bytes * std::uint64_t(threads);
  // As read_gptq leaves it, beside what it reads zeros and scales from.
  const auto& gptq = std::get<GptqLinear>(linear);
  const std::uint64_t scales = std::uint64_t(gptq.groups) * std::uint64_t(gptq.outputs);
  return gptq.qweight.entry->bytes + scales * (1 + sizeof(float)) +
         std::max(gptq.qzeros.entry->bytes, gptq.scales.entry->bytes) +
         std::uint64_t(gptq.inputs) * 4 * sizeof(std::int32_t);
}

std::unique_ptr<PackedLinear> pack(std::span<const Linear> parts, ThreadPool& pool) {
  auto weight = std::make_unique<PackedLinear>();
  weight->inputs = inputs(parts.front());

  // Groups decide the layout, so they are read before the one allocation that holds all parts.
  std::vector<Placement> placements(parts.size());
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    PackedPart part;
    part.outputs = outputs(parts[i]);
    part.first_output = weight->outputs;
    weight->outputs += part.outputs;
    if (const auto* dense = std::get_if<DenseLinear>(&parts[i])) {
      part.panels = lay_out(*dense);
      bytes += lay_out(*dense).panel_bytes * panels_of(part.outputs);
      part.shares_activations =
          i > 0 && std::holds_alternative<DensePanels>(weight->parts[i - 1].panels);
    } else {
      const auto& gptq = std::get<GptqLinear>(parts[i]);
      Placement& placement = placements[i];
      placement = gptq.g_idx ? place(gptq, read_group_index(gptq)) : place_by_size(gptq);
      const GptqPanels& panels = placement.panels;
      part.panels = panels;
      part.order = placement.order;
      bytes += panels.panel_bytes * panels_of(part.outputs);
      weight->positions = std::max(weight->positions, panels.blocks * panels.block);
      const auto* before = i > 0 ? std::get_if<GptqPanels>(&weight->parts[i - 1].panels) : nullptr;
      part.shares_activations = before && before->bits == panels.bits &&
                                before->block == panels.block && before->blocks == panels.blocks &&
                                weight->parts[i - 1].order == part.order;
    }
    weight->parts.push_back(std::move(part));
  }
  weight->memory = Buffer(bytes, name(parts.front()));

  std::byte* data = weight->memory.data();
  weight->bytes = bytes;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    PackedPart& part = weight->parts[i];
    if (const auto* dense = std::get_if<DenseLinear>(&parts[i])) {
      pack_part(*dense, part, data, pool);
      data += std::get<DensePanels>(part.panels).panel_bytes * panels_of(part.outputs);
    } else {
      GptqMatrix matrix = read_gptq(std::get<GptqLinear>(parts[i]));
      GptqPanels& panels = std::get<GptqPanels>(part.panels);
      panels.data = data;
      pool.parallel_for(part.panel_count(), [&](int begin, int end) {
        for (int p = begin; p < end; ++p)
          pack_panel(matrix, placements[i], p, data + std::size_t(p) * panels.panel_bytes);
      });
      part.bias = std::move(matrix.bias);
      data += panels.panel_bytes * panels_of(part.outputs);
    }
    weight->bytes += part.order.size() * sizeof(std::int32_t) + part.bias.size() * sizeof(float);
  }
  return weight;
}

}  // namespace guanaco::cpu
