#pragma once

// The table of contents of cuda/: every kernel launcher. Passes of few rows are one kernel, pass.h.
// Launchers check nothing that the backend has not checked; they throw Error(device) if a launch
// fails. All pointers are device memory.

#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include <cstdint>

#include "layout.h"

namespace guanaco::cuda {

/// Most rows of a pass that streams the packed weights (pass.h); larger ones multiply dequantised
/// panels (prompt.cu).
inline constexpr int kStreamRows = 8;

/// What the card can do, read once.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_block = 0;  ///< most dynamic shared memory of one block
  int shared_bytes_multiprocessor = 0;
  int capability = 0;             ///< 90 for sm_90
  bool dependent_launch = false;  ///< programmatic dependent launch (sm_90)
};

/// Shape of attention and of one page of the cache: fp16 [layers][2: K, V][kv_heads][32][head_dim].
struct AttentionShape {
  int layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  GUANACO_HOST_DEVICE std::size_t layer_elements() const {
    return std::size_t(2) * std::size_t(kv_heads) * 32 * std::size_t(head_dim);
  }
};

/// The rows of a prompt's pass, completed by embed(). Arrays of the reserved number of rows.
struct PassRows {
  int* count = nullptr;              ///< rows in use
  int* tokens = nullptr;             ///< [rows]
  int* positions = nullptr;          ///< [rows]
  __half* const** tables = nullptr;  ///< [rows] page table of the row's sequence
  __half** append = nullptr;         ///< [rows] page that takes the row's K and V
  float2* angles = nullptr;          ///< [rows][head_dim / 2] cosine, sine
};

// repack.cu: once, at load. From the checkpoint's tensors, already on the device.

/// The first part loaded that has a scale which is no finite number: its number << 32 | the bits of
/// such a scale as a float; all ones: there is none.
using BadScale = unsigned long long;

struct GptqSource {
  const std::uint32_t* qweight;  ///< [inputs * bits / 32, outputs]
  const std::uint32_t* qzeros;   ///< [groups, outputs * bits / 32]
  const void* scales;            ///< [groups, outputs]
  int bits, inputs, outputs, groups;
  int scale_type;    ///< 0: F16, 1: BF16, 2: F32
  bool v1;           ///< zero points are stored minus one (reference/formats.md 1.4)
  int group_size;    ///< input rows of a group, where `group` is null
  const int* group;  ///< [inputs] group of each input row; null: groups are runs of neighbours
  BadScale* bad;     ///< where a scale that is used and no finite number is put down
  unsigned number;   ///< what `bad` calls this part
};
/// How the 16 outputs of a strip are chosen, so that the pair an epilogue needs lies in rows g and
/// g + 8.
enum class StripOrder : int {
  plain,    ///< 16 consecutive outputs
  rotary,   ///< within a head of head_dim: outputs 8s + g and head_dim / 2 + 8s + g
  gate_up,  ///< output 8s + g of the gate and of the up projection
};
struct StripMap {
  StripOrder order = StripOrder::plain;
  int head_dim = 0;     ///< rotary
  int first_strip = 0;  ///< where this part's strips start (gate_up: 0 for both parts, half 0 or 1)
  int half = 0;         ///< gate_up: 0 gate, 1 up
};
/// Writes all of the part's strips. 2, 3 and 4 bits become WeightKind::nibble, 8 bits byte. order:
/// as weight.order, packed so that no run straddles two groups (packed_order.h).
void repack_gptq(const GptqSource& source, const StripMap& map, const int* order,
                 StreamedWeight weight, cudaStream_t stream);
/// The same as WeightKind::single in the order of the inputs: scale * (code - zero), for parts
/// whose orders differ.
void repack_gptq_single(const GptqSource& source, const StripMap& map, StreamedWeight weight,
                        cudaStream_t stream);
/// weight: [outputs, inputs] rows [first_row, first_row + rows) of `type` 0: F16, 1: BF16, 2: F32,
/// into WeightKind half, bfloat or single (any type). Rows that pad the last strip are not written:
/// clear the weight first. inputs: a multiple of 4.
void repack_dense(const void* rows_of_weight, int type, int first_row, int rows,
                  const StripMap& map, StreamedWeight weight, cudaStream_t stream);

// embed.cu: stage 1 of a prompt. residual[r] = table[tokens[r]]; angles and append pages.
/// Rotary frequencies by position, as lib/checkpoint/rotary.h gives them.
struct RotaryTable {
  const float* frequencies = nullptr;  ///< [head_dim / 2], below switch_position
  const float* long_frequencies =
      nullptr;  ///< [head_dim / 2] from there on (longrope); null: the base grows (dynamic)
  int switch_position = 0x7fffffff;
  double theta = 0, factor = 1, context = 0;  ///< dynamic
  float attention_factor = 1;
};
void embed(const void* table, int type, int hidden, const AttentionShape& shape,
           const RotaryTable& rotary, const PassRows& rows, int most_rows, float* residual,
           const DeviceLimits& limits, cudaStream_t stream);

// Stage 2 of a prompt: q = rotated queries; K and V appended to the pages.
struct AttentionInput {
  AttentionShape shape;
  int layer;
  PassRows rows;
  float* query;  ///< [rows][heads * head_dim]
};

// sample.cu: the next token of each row, chosen as lib/text/sampler.cc does without penalties.
struct SampleParameters {
  float temperature;  ///< 0: greedy
  float top_p, min_p;
  int top_k;
  int choices;                     ///< only ids below are chosen
  unsigned long long seed, draws;  ///< draws: of the seed so far
};
struct SampleRows {
  int count = 0;
  SampleParameters of[kStreamRows] = {};
};
/// One choice. token -1: a logit is NaN or +inf, or all are -inf.
struct SampledToken {
  unsigned step;  ///< as given, written last: once the host reads it, the rest is there
  int token;
  float logprob;  ///< natural logarithm of the probability before temperature
};
/// Scratch, to be cleared once.
std::size_t sample_scratch_bytes(int vocab, int rows);
/// logits: [rows][vocab]. tokens: [rows], 0 where nothing can be chosen. out: [rows] in mapped host
/// memory.
void sample(const float* logits, int vocab, const SampleRows& rows, unsigned step, int* tokens,
            SampledToken* out, void* scratch, const DeviceLimits& limits, cudaStream_t stream);

// prompt.cu: the stages for many rows: fp16 activations times dequantised panels (cuBLASLt,
// gemm.h).
/// Converts rows to fp16 in the packed order of `weight` (times the norm, if any), each row scaled
/// by a power of two into fp16's range: x = factors[r] * out[r]. out: [rows][strip_blocks * 128].
void prompt_input(const float* input, const float* norm, float epsilon,
                  const StreamedWeight& weight, int rows, __half* out, float* factors,
                  cudaStream_t stream);
/// Dequantises strips [first, first + count) to fp16 [count * 16][strip_blocks * 128], rows in
/// strip order.
void dequantise(const StreamedWeight& weight, int first, int count, __half* panel,
                cudaStream_t stream);
/// What is done with y = factors[r] * products[r] + bias for strips [first, first + count);
/// products: fp32 [rows][count * 16].
void prompt_attention_input(const float* products, const float* factors, const float* bias,
                            int first, int count, int rows, const AttentionInput& out,
                            cudaStream_t stream);
void prompt_residual(const float* products, const float* factors, const float* bias, int first,
                     int count, int rows, float* residual, int hidden, cudaStream_t stream);
void prompt_mlp_input(const float* products, const float* factors, const float* bias, int first,
                      int count, int rows, float* mlp, int ffn, cudaStream_t stream);
void prompt_logits(const float* products, const float* factors, const float* bias, int first,
                   int count, int rows, float* logits, int vocab, cudaStream_t stream);
// attend_prompt.cu: causal attention for many rows on tensor cores. Rows of a sequence are
// neighbours; segments[i] = {first row, rows, first position, 0}, and all rows of a segment share
// their page table.
void attend_prompt(const float* query, const AttentionShape& shape, int layer, const PassRows& rows,
                   const int4* segments, int segment_count, int most_segment_rows, float* attended,
                   const DeviceLimits& limits, cudaStream_t stream);

}  // namespace guanaco::cuda
