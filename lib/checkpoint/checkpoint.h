#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/linear.h"

namespace guanaco {

/// The tensors of one decoder layer, by role.
struct LayerTensors {
  StoredTensor attention_norm, mlp_norm;  ///< [hidden]
  Linear query, key, value,
      output;             ///< hidden -> heads, kv_heads, kv_heads * head_dim; back to hidden
  Linear gate, up, down;  ///< hidden -> ffn, hidden -> ffn, ffn -> hidden
};

/// A published folder, understood: the only place that knows file names, tensor names and dialects
/// (reference/formats.md 1, 2). Every shape was checked; no weight was read yet. Immutable but for
/// settle().
class Checkpoint {
 public:
  /// Opens a Hugging Face folder, or one .safetensors file with what lies beside it. Reads headers
  /// and configurations only. Throws not_found, malformed, unsupported.
  static Checkpoint open(const std::filesystem::path& path,
                         ZeroPoints zero_points = ZeroPoints::automatic);

  /// Reads what only the data can tell: whether g_idx means anything, whether all-equal zero points
  /// contradict the label, whether biases are all zero. Amends linears and report. Throws
  /// malformed, cancelled; the checkpoint is then as before. `progress` gets bytes done and at most
  /// to do. Call it once.
  void settle(const std::function<bool(std::uint64_t, std::uint64_t)>& progress);

  LlamaConfig config;
  std::vector<LayerTensors> layers;
  StoredTensor embedding;  ///< [vocab, hidden]
  StoredTensor norm;       ///< [hidden]
  Linear head;             ///< hidden -> vocab; the embedding table where tied

  std::filesystem::path folder;
  LoadReport report;
  std::uint64_t file_bytes = 0;  ///< of all tensors
  std::uint64_t parameters = 0;  ///< elements of all weights, biases and norms, as if not quantised

 private:
  void summarise(bool settled);  ///< report.format and parameters, from the linears

  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  QuantizationConfig settings_;
  ZeroPoints asked_for_ = ZeroPoints::automatic;
  bool claims_act_order_ = false;  ///< the settings do, or the name of the weight file
};

/// Calls f with every linear of the checkpoint, the head last.
template <typename F>
void for_each_linear(const Checkpoint& checkpoint, F&& f) {
  for (const LayerTensors& layer : checkpoint.layers)
    for (const Linear* linear : {&layer.query, &layer.key, &layer.value, &layer.output, &layer.gate,
                                 &layer.up, &layer.down})
      f(*linear);
  f(checkpoint.head);
}

}  // namespace guanaco
