#pragma once

#include <vector>

#include "backend/backend.h"
#include "cuda_support.h"
#include "pass.h"

namespace guanaco::cuda {

/// Buffers of exchanged words, [tokens][width]. Those of the residual stream are followed by as
/// much for its normed values, and by its squares (pass.h).
enum Words : std::uint8_t { kResidual, kOtherResidual, kQueryKeyValue, kAttended, kMlp, kWords };

/// The stages for passes of up to most_rows() rows: written down as they are asked for, and run
/// together as one kernel (pass.h).
class FewRowPasses {
 public:
  FewRowPasses(const LlamaConfig& config, const AttentionShape& shape, const RotaryTable& rotary,
               const DeviceLimits& limits);
  /// Device memory for such a model.
  static std::size_t bytes(const LlamaConfig& config, const AttentionShape& shape,
                           const DeviceLimits& limits);

  /// Linears of this shape may come; before prepare().
  void expect(const StreamedWeight& weight);
  /// All linears are known.
  void prepare();

  /// Most rows of a pass: kStreamRows, or 1 where the card has too little shared memory for more.
  int most_rows() const { return most_rows_; }

  /// Begins a pass, which writes nothing and forgets what was written down before.
  void begin(const FewRows& rows);

  // The stages. Inputs and outputs are those of the stage before and after.
  void embed(const void* table, int type);
  void attention_input(const StreamedWeight& weight, const float* norm, int layer);
  void attend(int layer);
  void attention_output(const StreamedWeight& weight);
  void mlp_input(const StreamedWeight& weight, const float* norm);
  void mlp_output(const StreamedWeight& weight);
  /// Of rows `which` of the pass; or, if `residual` is not null, of a [rows][hidden] residual
  /// stream that earlier kernels left. out: [which.size()][vocab].
  void logits(const StreamedWeight& weight, const float* norm, std::span<const int> which,
              const float* residual, float* out);

  /// Runs what was written down since the last run.
  void run(const int* chosen_tokens, cudaStream_t stream);
  /// Throws Error(device) if a wait inside a pass never ended, from then on always: the words of
  /// later passes could not be trusted. After the stream was waited for.
  void check_waits() const;

  // For tests; the stream was waited for, nothing is written down. values: [rows, width].
  std::vector<float> read(Activation activation, int rows) const;
  void write(Activation activation, std::span<const float> values);

 private:
  /// What passes of one row, and passes of more, have for themselves.
  struct Variant {
    int tokens = 1;
    std::vector<LinearPlan> linears;  ///< one of each shape
    DeviceBuffer words[kWords], strip_packets, group_packets, split_packets, stages, plans;
    std::vector<PassStage> uploaded;
    PassLayout layout;
    unsigned parities = 0;
    Words residual = kResidual;
    const int* places[kWords] = {};  ///< of what was last written, as PassStage::place
  };

  Variant& variant() { return variants_[rows_.count == 1 ? 0 : 1]; }
  const Variant& variant() const { return variants_[rows_.count == 1 ? 0 : 1]; }
  PassStage linear(StageKind kind, const StreamedWeight& weight);
  void take(PassStage& stage, Words from) const;
  void take_normed(PassStage& stage, const StreamedWeight& weight, const float* norm);
  void take_in_order(PassStage& stage, Words from, const StreamedWeight& weight);
  void give(PassStage& stage, Words to);
  void give_residual(PassStage& stage, Words to);
  void forget();  ///< what was written down
  void add_to_residual(const StreamedWeight& weight, Words from);
  std::pair<Words, int> place(Activation activation) const;

  const LlamaConfig config_;
  const AttentionShape shape_;
  const RotaryTable rotary_;
  const DeviceLimits limits_;
  Variant variants_[2];
  int most_rows_ = kStreamRows;
  PinnedBuffer failed_;
  unsigned tag_ = 1;

  // The pass that is being written down.
  FewRows rows_;
  std::vector<PassStage> stages_;
  unsigned written_ = 0;  ///< bit of each buffer: it was written an odd number of times
  int writers_[kWords];   ///< stage of this pass that wrote a buffer last, or -1
  bool odd_linear_ = false;
  const void* table_ = nullptr;
  int table_type_ = 0;
};

}  // namespace guanaco::cuda
