#include "prompt.h"

#include <algorithm>

namespace guanaco::cuda {
namespace {

std::size_t input_bytes(int rows, int inputs) {
  return std::size_t(rows) * std::size_t(inputs) * sizeof(__half);
}

}  // namespace

PromptScratch::PromptScratch(int most_rows, int most_inputs, std::size_t panel_bytes,
                             std::size_t product_bytes)
    : input(input_bytes(most_rows, most_inputs), "the rows of a prompt"),
      factors(std::size_t(most_rows) * sizeof(float), "the rows of a prompt"),
      products(product_bytes, "the products of a panel"),
      dequantising(make_stream()) {
  for (Panel& panel : panels) {
    panel.weights = DeviceBuffer(panel_bytes, "a panel of dequantised weights");
    panel.dequantised = make_event();
    panel.multiplied = make_event();
  }
}

std::size_t PromptScratch::bytes(int most_rows, int most_inputs) {
  return Gemm::kWorkspaceBytes + input_bytes(most_rows, most_inputs) +
         std::size_t(most_rows) * sizeof(float) + kProductBytes + 2 * kPanelBytes;
}

int PromptScratch::panel_strips(const StreamedWeight& weight, int rows) const {
  const std::size_t row_bytes =
      std::size_t(weight.strip_blocks) * std::size_t(kBlockInputs) * sizeof(__half);
  const std::size_t most =
      std::min(panels[0].weights.bytes() / (std::size_t(kStripOutputs) * row_bytes),
               products.bytes() / (std::size_t(kStripOutputs) * std::size_t(rows) * sizeof(float)));
  const int limit = int(std::clamp<std::size_t>(most, 1, std::size_t(weight.strips)));
  const int parts = (weight.strips + limit - 1) / limit;
  const int even = (weight.strips + parts - 1) / parts;
  constexpr int kTileStrips = 16;  // 256 outputs: the tiles of a product
  return std::min((even + kTileStrips - 1) / kTileStrips * kTileStrips, limit);
}

void prompt_linear(PromptScratch& scratch, const float* input, const float* norm, float epsilon,
                   const StreamedWeight& weight, int rows, const PromptEpilogue& epilogue,
                   cudaStream_t stream) {
  auto* x = scratch.input.as<__half>();
  auto* factors = scratch.factors.as<float>();
  auto* products = scratch.products.as<float>();
  prompt_input(input, norm, epsilon, weight, rows, x, factors, stream);
  const int strips = scratch.panel_strips(weight, rows);
  for (int first = 0; first < weight.strips; first += strips) {
    const int count = std::min(strips, weight.strips - first);
    PromptScratch::Panel& panel = scratch.panels[scratch.next_panel];
    scratch.next_panel ^= 1;
    auto* weights = panel.weights.as<__half>();
    check(cudaStreamWaitEvent(scratch.dequantising, panel.multiplied, 0), "cudaStreamWaitEvent");
    dequantise(weight, first, count, weights, scratch.dequantising);
    check(cudaEventRecord(panel.dequantised, scratch.dequantising), "cudaEventRecord");
    check(cudaStreamWaitEvent(stream, panel.dequantised, 0), "cudaStreamWaitEvent");
    scratch.gemm.multiply(x, weights, products, rows, count * kStripOutputs,
                          weight.strip_blocks * kBlockInputs, stream);
    check(cudaEventRecord(panel.multiplied, stream), "cudaEventRecord");
    epilogue(products, factors, first, count);
  }
}

}  // namespace guanaco::cuda
