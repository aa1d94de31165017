#pragma once

#include <cublasLt.h>
#include <cuda_fp16.h>

#include <cstddef>
#include <map>
#include <tuple>

#include "cuda_support.h"

namespace guanaco::cuda {

/// Matrix products of fp16 by cuBLASLt. Used by one thread and one stream at a time: products share
/// the workspace.
///
/// Deterministic: sums are fp32 and split, if at all, in a fixed way (no atomics). An algorithm is
/// chosen for (outputs, inputs, rows rounded up to one of a few counts), and it adds up every
/// element of the product the same way: a row's bits do not depend on the values of other rows, and
/// may change with their number only where the rounded count does.
class Gemm {
 public:
  static constexpr std::size_t kWorkspaceBytes = std::size_t(32) << 20;

  /// Throws Error(device) or Error(out_of_memory).
  Gemm();
  Gemm(const Gemm&) = delete;
  Gemm& operator=(const Gemm&) = delete;
  ~Gemm();

  /// Chooses the algorithms for up to `most_rows` rows ahead, so that multiply() need not. Throws
  /// as multiply().
  void prepare(int most_rows, int outputs, int inputs);

  /// y[rows][outputs] = x[rows][inputs] * w[outputs][inputs]^T, all dense. x and w are fp16, y is
  /// fp32; all aligned to 16 bytes, inputs and outputs multiples of 16. Throws Error(device) naming
  /// the shape.
  void multiply(const __half* x, const __half* w, float* y, int rows, int outputs, int inputs,
                cudaStream_t stream);

 private:
  const cublasLtMatmulAlgo_t& algorithm(int rows, int outputs, int inputs);

  cublasLtHandle_t handle_ = nullptr;
  DeviceBuffer workspace_;
  cublasLtMatmulDescOpaque_t product_{};
  std::map<std::tuple<int, int, int>, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace guanaco::cuda
