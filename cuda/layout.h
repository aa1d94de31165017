#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define GUANACO_HOST_DEVICE __host__ __device__
#else
#define GUANACO_HOST_DEVICE
#endif

// How linear weights and their inputs lie in device memory: what repack.cu writes and
// multiply_piece.cuh and prompt.cu read.
namespace guanaco::cuda {

/// A weight is cut into strips of 16 outputs, a strip into blocks of 128 inputs, and the blocks of
/// a strip follow each other: a kernel reads one contiguous run. Inside a block the elements lie as
/// the registers of a tensor core instruction want them; lane l of a warp is (g, t) = (l / 4, l %
/// 4).
///
///   nibble  2, 3, 4 bit codes. 1024 B: four chunks of [32 lanes][8 B]; word r of chunk m holds row
///   g + 8r; the low nibble of its byte b is input 32m + 4t + b, the high nibble 16 further.
///   byte    8 bit codes. 2048 B: four chunks of [32 lanes][16 B]; chunk m, word 2c + r: row g +
///   8r, byte b: input 32m + 16c + 4t + b. half    fp16, and bfloat. 4096 B: eight chunks of [32
///   lanes][16 B]; chunk m, word 2c + r: row g + 8r, inputs 16m + 8c + 2t, + 1. single  fp32. 8192
///   B: [16 rows][128 inputs]; for files that are fp32, read without tensor cores.
///
/// Codes are followed by `runs` (1, 2 or 4: of 128 / runs inputs) times 16 scales and then `runs`
/// times 16 zero points. Scales are ordered (row g, row g + 8) for g = 0..7, fp16 or fp32. Zero
/// points are nibbles (8 B a run) or bytes.
enum class WeightKind : int { nibble, byte, half, bfloat, single };

inline constexpr int kStripOutputs = 16;
inline constexpr int kBlockInputs = 128;

struct StreamedWeight {
  const std::uint8_t* blocks = nullptr;  ///< [strips][strip_blocks][block_bytes]
  const int* order = nullptr;   ///< [strip_blocks * 128] input of each packed position, -1: none;
                                ///< null: the identity
  const int* place = nullptr;   ///< [inputs] packed position of each input; null if `order` is, or
                                ///< leaves gaps
  const float* bias = nullptr;  ///< [strips * 16] in strip order, or null
  int inputs = 0;               ///< of the linear, before padding
  int strips = 0;
  int strip_blocks = 0;
  int block_bytes = 0;
  int runs = 1;  ///< in a block: 1, 2 or 4
  WeightKind kind = WeightKind::nibble;
  bool float_scales = false;

  GUANACO_HOST_DEVICE int run_shift() const { return runs >> 1; }  ///< log2 of runs

  GUANACO_HOST_DEVICE std::size_t bytes() const {
    return std::size_t(strips) * std::size_t(strip_blocks) * std::size_t(block_bytes);
  }
};

/// Bytes of the elements of a block, without scales and zero points.
GUANACO_HOST_DEVICE constexpr int element_bytes(WeightKind kind) {
  switch (kind) {
    case WeightKind::nibble:
      return 1024;
    case WeightKind::byte:
      return 2048;
    case WeightKind::half:
    case WeightKind::bfloat:
      return 4096;
    case WeightKind::single:
      return 8192;
  }
  return 0;
}

/// Bytes of a block. Copies start and end at multiples of 16 bytes: at every second block if strips
/// have an even number of them, else a block is padded.
constexpr int block_bytes(WeightKind kind, int runs, bool float_scales, int strip_blocks) {
  int bytes = element_bytes(kind);
  if (kind == WeightKind::nibble) bytes += runs * (kStripOutputs * (float_scales ? 4 : 2) + 8);
  if (kind == WeightKind::byte) bytes += runs * (kStripOutputs * (float_scales ? 4 : 2) + 16);
  return strip_blocks % 2 == 0 ? bytes : (bytes + 15) / 16 * 16;
}

/// Nibbles with one run a block and fp16 scales, in strips of an even number of blocks.
inline constexpr int kSimpleNibbleBytes = 1024 + 32 + 8;

/// The input of a linear, staged: a record for each block of 128 positions with the fragments of a
/// tensor core's B operand and, for each run of 128 / runs positions and each token, a scale and
/// the sum of the integers.
///
/// For codes, a value is scale * (256 * high + low) with bytes high, low: 16-bit integers as on the
/// CPU (lib/backend/cpu), so that products are exact. For floats, a value is scale * (high + low)
/// with two halves or bfloats and a power of two.
///
/// Two columns a token (high, low). One token: [word quad][2 columns][4 t][4 words]. Eight tokens:
/// [set of 4 tokens] [word quad][8 columns][4 t][4 words]. Words: input pairs or quads in the order
/// of the instructions.
struct RunScale {
  float scale;
  int sum;
};

template <int kTokens>
GUANACO_HOST_DEVICE constexpr int record_fragment_bytes(bool codes) {
  return (codes ? 256 : 512) * kTokens;
}
template <int kTokens>
GUANACO_HOST_DEVICE constexpr int record_bytes(bool codes) {
  return record_fragment_bytes<kTokens>(codes) + 4 * kTokens * int(sizeof(RunScale));
}

}  // namespace guanaco::cuda
