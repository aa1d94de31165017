#include "backend/cpu/cpu_backend.h"

namespace guanaco::cpu {

void CpuBackend::quantise(const PackedPart& part, int inputs, const float* x, int rows) {
  const auto& panels = std::get<GptqPanels>(part.panels);
  quantised_.rows = rows;
  pool_.parallel_for(rows, [&](int begin, int end) {
    for (int r = begin; r < end; ++r)
      kernels_.quantise(x + std::size_t(r) * std::size_t(inputs),
                        part.order.empty() ? nullptr : part.order.data(), panels, r, quantised_);
  });
}

void CpuBackend::multiply(const DeviceWeight& weight, const float* x, int rows, float* y,
                          bool add) {
  const auto& linear = static_cast<const PackedLinear&>(weight);
  const std::vector<PackedPart>& parts = linear.parts;
  for (std::size_t first = 0, last = 0; first < parts.size(); first = last) {
    int panel_count = 0;
    do {
      panel_count += parts[last++].panel_count();
    } while (last < parts.size() && parts[last].shares_activations);

    const bool is_gptq = std::holds_alternative<GptqPanels>(parts[first].panels);
    if (is_gptq) quantise(parts[first], linear.inputs, x, rows);
    pool_.parallel_for(panel_count, [&](int begin, int end) {
      for (std::size_t i = first; i < last; ++i) {
        const PackedPart& part = parts[i];
        const int from = std::max(begin, 0), to = std::min(end, part.panel_count());
        begin -= part.panel_count();
        end -= part.panel_count();
        if (from >= to) continue;
        const Product product{y + part.first_output, std::size_t(linear.outputs),
                              part.bias.empty() ? nullptr : part.bias.data(), part.outputs, add};
        if (is_gptq)
          kernels_.multiply_gptq(std::get<GptqPanels>(part.panels), from, to, quantised_, product);
        else
          kernels_.multiply_dense(std::get<DensePanels>(part.panels), from, to, x,
                                  std::size_t(linear.inputs), rows, product);
      }
    });
  }
}

void CpuBackend::normalise(const DeviceWeight& norm, int rows) {
  const float* const weight = static_cast<const Norm&>(norm).values.data();
  pool_.parallel_for(rows, [&](int begin, int end) {
    for (int r = begin; r < end; ++r) {
      const std::size_t row = std::size_t(r) * std::size_t(config_.hidden);
      kernels_.rms_norm(scratch_.residual + row, weight, config_.rms_norm_epsilon, config_.hidden,
                        scratch_.normed + row);
    }
  });
}

}  // namespace guanaco::cpu
