#pragma once

#include <cstddef>
#include <cstdint>

// The inner loops of the CPU backend: a table of functions for each instruction set. The loops are
// written once (loops_*.h) over sixteen lanes (lanes_*.h), so every instruction set computes the
// same sums in the same order: results are equal bit for bit, for any number of rows and threads.
//
// Files compiled for one instruction set include this header, so it holds plain data only: an
// inline function here could be emitted with AVX-512 inside and be picked for everyone.
namespace guanaco::cpu {

inline constexpr int kPanel = 16;          ///< outputs that lie side by side in a packed weight
inline constexpr int kMaxBlock = 128;      ///< most inputs that share one activation scale
inline constexpr int kMaxQueries = 8;      ///< queries that share one walk over the keys
inline constexpr int kPagePositions = 32;  ///< of the key/value cache

enum class Isa { portable, avx2, avx512 };
enum class Element { f16, bf16, f32 };

/// A packed GPTQ weight. Panel after panel of 16 outputs, each
///
///     scales [groups][16] F16 or F32 | zeros [groups][16] u8 | padding to 64 bytes | codes
///
/// and the codes are lines of 64 bytes: one 32-bit word of 32 / bits neighbouring packed positions
/// for each output, as the checkpoint has them. Positions are the inputs in `order` of the packed
/// part; a block of them shares one activation scale, whole blocks make up a group.
struct GptqPanels {
  const std::byte* data = nullptr;
  std::size_t zeros_offset = 0, codes_offset = 0, panel_bytes = 0;
  int bits = 4;  ///< 2, 4 or 8; 3-bit codes are kept as 4-bit ones
  int block = kMaxBlock, blocks = 0;
  int blocks_per_group = 1;
  bool half_scales = true;
};

/// A packed weight of floats: panel after panel, [inputs][16] elements.
struct DensePanels {
  const std::byte* data = nullptr;
  std::size_t panel_bytes = 0;
  Element element = Element::f16;
  int inputs = 0;
};

/// Activations as 16-bit integers, x = scale * value in each block.
///
/// Why 16 bits: the products of a block with its codes then add up exactly in 32-bit integers (8
/// bits: 255 * 32767 * 128 < 2^31), so the order of the sum, and with it the kernel, the number of
/// rows and the instruction set, cannot matter; and one instruction does two of them. The error is
/// 2^-16 (2e-5) of the block's largest activation at most, an order below that of fp16 weights'
/// usual company, fp16 activations.
///
/// A 32-bit word holds the values of positions j and j + P/2 of a run of P = 32 / bits positions:
/// what (codes >> bits * j) & mask leaves in the two halves of a word of codes.
///
/// Block by block, all rows of one together: the order in which a product reads them.
struct QuantisedRows {
  int rows = 0;
  std::int16_t* values = nullptr;  ///< [blocks][rows][block]
  float* scales = nullptr;         ///< [blocks][rows]
  std::int32_t* sums = nullptr;    ///< [blocks][rows], of the values
};

/// Where a product goes: y[row * stride + output] = product + bias, or += if `add`.
struct Product {
  float* y = nullptr;
  std::size_t stride = 0;
  const float* bias = nullptr;  ///< [outputs] or null
  int outputs = 0;
  bool add = false;
};

/// Keys and values of one key/value head, in pages of kPagePositions positions. 16-bit integers
/// with a scale for each position take the memory of fp16 and are eight times as close: with fp16
/// the cache alone made most of the error of the logits (3e-4 of their size; now 1e-4 and less).
///
///     keys:   int16 [head_dim][kPagePositions] | fp32 scales [kPagePositions]
///
///     values: int16 [kPagePositions][head_dim] | fp32 scales [kPagePositions]
///
/// The positions of a key's element are neighbours because they are what lanes hold.
struct HeadCache {
  const std::byte* keys = nullptr;
  const std::byte* values = nullptr;
  std::size_t page_stride = 0;  ///< bytes from one page to the next
};
/// Bytes of the keys, or of the values, of one head in one page.
constexpr std::size_t section_bytes(int head_dim) {
  return std::size_t(kPagePositions) *
         (std::size_t(head_dim) * sizeof(std::int16_t) + sizeof(float));
}

/// One query and what it attends to: positions [0, keys).
struct Query {
  const float* query = nullptr;  ///< [head_dim]
  float* out = nullptr;          ///< [head_dim]
  int keys = 0;
};

struct Kernels {
  const char* name;  ///< "AVX-512"

  /// One row into `row` of `out`, for a weight like `panels`. Position p takes x[order[p]], 0 where
  /// that is -1; order null: x[p].
  void (*quantise)(const float* x, const std::int32_t* order, const GptqPanels& panels, int row,
                   const QuantisedRows& out);

  /// Products of the rows with the panels [first, last).
  void (*multiply_gptq)(const GptqPanels& panels, int first, int last, const QuantisedRows& x,
                        const Product& product);
  void (*multiply_dense)(const DensePanels& panels, int first, int last, const float* x,
                         std::size_t x_stride, int rows, const Product& product);

  /// out = x / sqrt(mean(x^2) + epsilon) * weight
  void (*rms_norm)(const float* x, const float* weight, float epsilon, int count, float* out);

  /// out = silu(gate) * up
  void (*swiglu)(const float* gate, const float* up, int count, float* out);

  /// out = sum of softmax(query . keys / sqrt(head_dim)) * values, at most kMaxQueries of one head.
  void (*attend)(const Query* queries, int count, const HeadCache& cache, int head_dim);
};

const Kernels& portable_kernels();
const Kernels& avx2_kernels();    ///< x86 only
const Kernels& avx512_kernels();  ///< x86 only

bool has(Isa isa);                   ///< this machine runs it and this library was built with it
Isa best_isa();                      ///< the fastest of them
const Kernels& kernels_of(Isa isa);  ///< throws unsupported unless has(isa)

}  // namespace guanaco::cpu
