#include "model/forward.h"

#include "support/check.h"

namespace guanaco {

void Watch::look() const {
  for (const std::stop_token& token : cancel)
    require(!token.stop_requested(), ErrorCode::cancelled, "cancelled at token {} of {}", done,
            total);
}

void Watch::report(int rows) const {
  if (progress != nullptr && *progress) (*progress)(done + rows, total);
  look();
}

void forward(Backend& backend, const ModelWeights& weights, const Rows& rows, const Watch& watch) {
  const int layers = int(weights.layers.size());
  backend.embed(*weights.embedding, rows);
  for (int i = 0; i < layers; ++i) {
    watch.report(int(std::int64_t(rows.count()) * i / layers));
    const LayerWeights& layer = weights.layers[std::size_t(i)];
    backend.attention_input(layer, i, rows);
    backend.attend(i, rows);
    backend.attention_output(layer, rows);
    backend.mlp_input(layer, rows);
    backend.mlp_output(layer, rows);
  }
}

}  // namespace guanaco
