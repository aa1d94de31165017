#pragma once

#include <cuda_fp16.h>

#include <cstddef>
#include <functional>

#include "cuda_support.h"
#include "gemm.h"
#include "kernels.h"

// Linears for many rows: the weight is dequantised to fp16 in panels of some strips, and cuBLASLt
// multiplies.
namespace guanaco::cuda {

/// Device memory and the stream that the linears of a pass share, one after the other. Used by one
/// thread at a time.
struct PromptScratch {
  /// Room for fp16 weights in one of the two panels.
  static constexpr std::size_t kPanelBytes = std::size_t(64) << 20;
  /// Room for the products of a panel: 128 tiles of 128 x 256, one for nearly every multiprocessor
  /// of a large GPU. More rows make panels narrower.
  static constexpr std::size_t kProductBytes = std::size_t(16) << 20;

  /// For up to `most_rows` rows of up to `most_inputs` inputs (padded to whole blocks, as weights
  /// are). Throws Error(device) or Error(out_of_memory).
  PromptScratch(int most_rows, int most_inputs, std::size_t panel_bytes = kPanelBytes,
                std::size_t product_bytes = kProductBytes);
  /// Device memory of one.
  static std::size_t bytes(int most_rows, int most_inputs);
  /// Strips of a panel of `weight`: equal parts, as large as there is room.
  int panel_strips(const StreamedWeight& weight, int rows) const;

  struct Panel {
    DeviceBuffer weights;           ///< fp16 [strips * 16][padded inputs]
    Event dequantised, multiplied;  ///< what the products and the next dequantising wait for
  };
  Gemm gemm;
  DeviceBuffer input, factors, products;
  Panel panels[2];
  int next_panel = 0;
  Stream dequantising;
};

/// What is done with a panel's products, fp32 [rows][count * 16]: puts one of the prompt_ kernels
/// into the stream.
using PromptEpilogue =
    std::function<void(const float* products, const float* factors, int first, int count)>;

/// Multiplies `rows` rows by `weight`. input: fp32 [rows][weight.inputs]; norm: weights of the
/// RMSNorm in front, or null. Panels are dequantised in the scratch's own stream while earlier ones
/// are multiplied, and ahead of earlier work in `stream`: weights must not change. Asynchronous.
/// Throws Error(device).
void prompt_linear(PromptScratch& scratch, const float* input, const float* norm, float epsilon,
                   const StreamedWeight& weight, int rows, const PromptEpilogue& epilogue,
                   cudaStream_t stream);

}  // namespace guanaco::cuda
