#include "gemm.h"

#include <algorithm>
#include <bit>
#include <string>

// cuBLASLt thinks in columns: its D (outputs x rows) = A^T B with A = w (inputs x outputs) and B =
// x (inputs x rows).
namespace guanaco::cuda {
namespace {

void check_blas(cublasStatus_t status, const std::string& call) {
  if (status == CUBLAS_STATUS_SUCCESS) [[likely]]
    return;
  throw Error(ErrorCode::device, call + ": " + cublasLtGetStatusString(status) + " (" +
                                     cublasLtGetStatusName(status) + ")");
}

std::string shape_of(int rows, int outputs, int inputs) {
  return "of " + std::to_string(rows) + " rows with " + std::to_string(outputs) + " x " +
         std::to_string(inputs) + " weights";
}

struct Layouts {
  cublasLtMatrixLayoutOpaque_t w{}, x{}, y{};

  Layouts(int rows, int outputs, int inputs) {
    const auto init = [](cublasLtMatrixLayoutOpaque_t& layout, cudaDataType type, int height,
                         int width) {
      check_blas(cublasLtMatrixLayoutInit(&layout, type, std::uint64_t(height),
                                          std::uint64_t(width), height),
                 "cublasLtMatrixLayoutInit");
    };
    init(w, CUDA_R_16F, inputs, outputs);
    init(x, CUDA_R_16F, inputs, rows);
    init(y, CUDA_R_32F, outputs, rows);
  }
};

/// The row count whose algorithm serves `rows`: a power of two, or the middle between two.
int rounded_rows(int rows) {
  const int power = std::max(16, int(std::bit_ceil(unsigned(rows))));
  return power > 16 && rows <= power / 4 * 3 ? power / 4 * 3 : power;
}

}  // namespace

Gemm::Gemm() : workspace_(kWorkspaceBytes, "the workspace of matrix products") {
  check_blas(cublasLtMatmulDescInit(&product_, CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "cublasLtMatmulDescInit");
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check_blas(cublasLtMatmulDescSetAttribute(&product_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                            sizeof transposed),
             "cublasLtMatmulDescSetAttribute");
  check_blas(cublasLtCreate(&handle_), "cublasLtCreate");
}

Gemm::~Gemm() { cublasLtDestroy(handle_); }

const cublasLtMatmulAlgo_t& Gemm::algorithm(int rows, int outputs, int inputs) {
  rows = rounded_rows(rows);
  const auto key = std::tuple(rows, outputs, inputs);
  if (const auto found = algorithms_.find(key); found != algorithms_.end()) return found->second;

  cublasLtMatmulPreferenceOpaque_t preference{};
  check_blas(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit");
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    check_blas(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
               "cublasLtMatmulPreferenceSetAttribute");
  };
  const std::size_t workspace = kWorkspaceBytes;
  const std::uint32_t alignment = 16;
  // Parts of a split product are kept apart in fp32 and added by a second kernel.
  const std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace);
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  Layouts layouts(rows, outputs, inputs);
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const std::string shape = shape_of(rows, outputs, inputs);
  check_blas(cublasLtMatmulAlgoGetHeuristic(handle_, &product_, &layouts.w, &layouts.x, &layouts.y,
                                            &layouts.y, &preference, 1, &result, &found),
             "cublasLtMatmulAlgoGetHeuristic " + shape);
  if (found == 0)
    check_blas(CUBLAS_STATUS_NOT_SUPPORTED, "cublasLtMatmulAlgoGetHeuristic " + shape);
  check_blas(result.state, "cublasLtMatmulAlgoGetHeuristic " + shape);
  return algorithms_.emplace(key, result.algo).first->second;
}

void Gemm::prepare(int most_rows, int outputs, int inputs) {
  for (int rows = 16; rows < most_rows; rows = rounded_rows(rows + 1))
    algorithm(rows, outputs, inputs);
  algorithm(most_rows, outputs, inputs);
}

void Gemm::multiply(const __half* x, const __half* w, float* y, int rows, int outputs, int inputs,
                    cudaStream_t stream) {
  Layouts layouts(rows, outputs, inputs);
  const float one = 1, zero = 0;
  const cublasStatus_t status = cublasLtMatmul(
      handle_, &product_, &one, w, &layouts.w, x, &layouts.x, &zero, y, &layouts.y, y, &layouts.y,
      &algorithm(rows, outputs, inputs), workspace_.as<void>(), workspace_.bytes(), stream);
  if (status != CUBLAS_STATUS_SUCCESS) [[unlikely]]
    check_blas(status, "cublasLtMatmul " + shape_of(rows, outputs, inputs));
}

}  // namespace guanaco::cuda
