#pragma once

#include <optional>
#include <vector>

#include <guanaco/model.h>

#include "backend/backend.h"
#include "model/choosing_passes.h"
#include "model/forward.h"
#include "model/pass_queue.h"

namespace guanaco {

/// What the copies of a Model share. Immutable after load(), but for what one pass at a time uses,
/// under `pass`.
struct LoadedModel {
  ModelInfo info;
  LoadReport report;
  LlamaConfig config;
  std::optional<Tokenizer> tokenizer;
  std::string no_tokenizer;  ///< why there is none
  std::unique_ptr<Backend> backend;
  ModelWeights weights;
  int rows = 0;  ///< most rows of one pass

  /// The rows of the pass under way, reserved once for all passes.
  struct Pass {
    PassQueue queue;
    std::vector<TokenId> tokens;   ///< [rows]
    std::vector<int> positions;    ///< [rows]
    std::vector<int> sequences;    ///< [rows]
    std::vector<KvPages*> caches;  ///< [rows]: a sequence has at least one row
    std::vector<float> logits;     ///< [Backend::kLogitRows, vocab], of several rows
    std::vector<ChoiceRule> rules;
    ChoosingPasses choosing;  ///< to be collected before the backend does anything else
  } pass;

  static LoadedModel& of(const Model& model) { return *model.loaded_; }

  /// Ids that sampling may choose: rows of the head that are pieces of the tokenizer.
  int choices() const {
    return tokenizer ? std::min(config.vocab, tokenizer->size()) : config.vocab;
  }
  TokenId end_of_text() const { return tokenizer ? tokenizer->eos() : config.eos.front(); }
};

}  // namespace guanaco
