#include "model/forward.h"

#include "support/check.h"

namespace guanaco {

void Watch::look() const {
  for (const std::stop_token& token : cancel)
    require(!token.stop_requested(), ErrorCode::cancelled, "cancelled at token {} of {}", done,
            total);
}

void Watch::before_layer(int layer, int layers, int rows) const {
  look();
  if (progress != nullptr && *progress)
    (*progress)(done + int(std::int64_t(rows) * layer / layers), total);
}

void forward(Backend& backend, const ModelWeights& weights, const Rows& rows, const Watch& watch) {
  const int layers = int(weights.layers.size());
  backend.embed(*weights.embedding, rows);
  for (int i = 0; i < layers; ++i) {
    watch.before_layer(i, layers, rows.count());
    const LayerWeights& layer = weights.layers[std::size_t(i)];
    backend.attention_input(layer, i, rows);
    backend.attend(i, rows);
    backend.attention_output(layer, rows);
    backend.mlp_input(layer, rows);
    backend.mlp_output(layer, rows);
  }
}

}  // namespace guanaco
