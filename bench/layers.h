#pragma once

#include <memory>
#include <vector>

#include "backend/backend.h"
#include "ceilings.h"
#include "kernels.h"
#include "synthetic.h"

namespace bench {

/// What a row measures: a stage in a pass of its own, stages in order in one pass, the end of a
/// pass, or a pass that does nothing.
enum class Stage {
  attention_input,
  attend,
  attention_output,
  mlp_input,
  mlp_output,
  attention,
  mlp,
  layer,
  head,
  launch
};

/// As the table says it (KernelRow).
const char* name_of(Stage stage);

/// The rows of a pass, and what Rows borrows.
struct Batch {
  std::vector<guanaco::TokenId> tokens;
  std::vector<int> positions, sequences;
  std::vector<guanaco::KvPages*> caches;
  int depth = 0;

  guanaco::Rows rows() const { return {tokens, positions, sequences, caches}; }
};

/// One layer of a model, loaded many times over so that no cache holds its weights, and the caches
/// of some sequences, through the library's backend.
class Layers {
 public:
  /// Writes, loads and fills; throws what those throw.
  Layers(const guanaco::SyntheticOptions& shape, const Ceilings& ceilings,
         const guanaco::ModelOptions& options);

  int prompt_rows() const { return prompt_; }  ///< of a pass that is a prompt
  int deep() const { return deep_; }           ///< tokens in every cache

  /// `rows` rows at `depth`: of as many sequences, or of one if it is a prompt.
  Batch batch(int rows, int depth) const;

  /// What a row of the table says beside the time.
  KernelRow describe(Stage stage, const Batch& batch) const;

  /// Of one execution: from the difference of two runs, so that what comes once a run falls out.
  double seconds(Stage stage, const Batch& batch);

 private:
  static constexpr double kRotations = 3.6;  ///< times the cache: 180 MB on a card with 50

  static bool few(const Batch& batch) { return batch.tokens.size() <= KernelRow::kFewRows; }
  void load();
  void fill_caches();
  guanaco::TokenId token(int index) const { return (index * 7919 + 11) % config_.vocab; }
  Batch prompt(int sequence, int first, int count) const;
  void call(Stage stage, int index, const guanaco::Rows& rows);
  void occupy(int stages);
  double run(const Batch& batch, const std::vector<Stage>& chain, int layers, bool alone);
  double run_head(const Batch& batch);

  guanaco::TemporaryFolder folder_;
  guanaco::Checkpoint checkpoint_;
  std::unique_ptr<guanaco::Backend> backend_;
  guanaco::LlamaConfig config_;  ///< of as many layers as there are copies
  int prompt_ = 0, deep_ = 0, copies_ = 0;
  std::vector<std::vector<guanaco::Linear>> parts_;  ///< of a layer's four weights, and the head
  guanaco::Weight table_, norm_;
  guanaco::Weight heads_[2];
  int head_turn_ = 0;
  std::vector<guanaco::LayerWeights> layers_;
  std::vector<std::unique_ptr<guanaco::KvPages>> pages_;
  std::vector<float> logits_;
  Batch busy_;  ///< of occupy()
};

}  // namespace bench
