#pragma once

#include <functional>
#include <stop_token>
#include <vector>

#include "backend/backend.h"

namespace guanaco {

/// All weights of a model on its device.
struct ModelWeights {
  Weight embedding;  ///< [vocab, hidden]
  std::vector<LayerWeights> layers;
  Weight norm;  ///< [hidden]
  Weight head;  ///< hidden -> vocab
};

/// Who watches a feed that takes several passes: asked before every layer of each, and at the end.
struct Watch {
  std::span<const std::stop_token> cancel;                  ///< any of them ends the feed
  const std::function<void(int, int)>* progress = nullptr;  ///< tokens done, tokens in all
  int done = 0, total = 0;  ///< tokens of finished passes; of all passes

  /// Throws cancelled if that was asked for.
  void look() const;
  /// Reports progress with `rows` of the pass under way, and looks: the report may have asked.
  void report(int rows) const;
};

/// THE forward pass (reference/formats.md 2.1), up to the residual stream after the last layer.
/// What comes after it ends the pass: logits() of some rows and end_pass(), or choose(). The caller
/// holds the backend alone.
void forward(Backend& backend, const ModelWeights& weights, const Rows& rows, const Watch& watch);

}  // namespace guanaco
