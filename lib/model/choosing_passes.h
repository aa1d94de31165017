#pragma once

#include <memory>
#include <vector>

#include "model/forward.h"

namespace guanaco {

/// A pass at whose end the device chooses the next token of every row.
struct ChoosingPass {
  unsigned ticket = 0;
  std::vector<Choice> choices;  ///< [rows], once collected; empty if the device failed
};

/// The passes that the device chooses in, launched and not collected: at most kChoicesAhead. Who
/// launches anything else collects them before, so the backend's last pass is the last of these if
/// there is one. They know no session: what a generation left in flight may outlive it. Used under
/// LoadedModel::Pass::queue, all ChoosingPass members too. Steady decoding allocates nothing here.
class ChoosingPasses {
 public:
  ChoosingPasses() { in_flight_.reserve(Backend::kChoicesAhead); }

  /// Ends the pass under way. Who keeps the result has a claim to its choices.
  std::shared_ptr<ChoosingPass> launch(Backend& backend, const ModelWeights& weights,
                                       std::span<const ChoiceRule> rules) {
    std::shared_ptr<ChoosingPass> pass = take_idle();
    pass->choices.resize(rules.size());
    pass->ticket = backend.choose(*weights.norm, *weights.head, rules);
    in_flight_.push_back(pass);
    return pass;
  }

  /// True if the backend did nothing after this pass, whose choices are still on their way.
  bool is_last(const ChoosingPass& pass) const {
    return !in_flight_.empty() && in_flight_.back().get() == &pass;
  }

  /// Waits for the oldest pass in flight.
  void collect_oldest(Backend& backend) {
    const std::shared_ptr<ChoosingPass> pass = in_flight_.front();
    in_flight_.erase(in_flight_.begin());
    try {
      backend.chosen(pass->ticket, pass->choices);
    } catch (...) {
      pass->choices.clear();
      throw;
    }
  }
  void collect_all(Backend& backend) {
    while (!in_flight_.empty()) collect_oldest(backend);
  }

 private:
  /// One that nobody has a claim to any more.
  std::shared_ptr<ChoosingPass> take_idle() {
    for (const std::shared_ptr<ChoosingPass>& pass : all_)
      if (pass.use_count() == 1) return pass;
    return all_.emplace_back(std::make_shared<ChoosingPass>());
  }

  std::vector<std::shared_ptr<ChoosingPass>> all_;        ///< as many as were ever claimed at once
  std::vector<std::shared_ptr<ChoosingPass>> in_flight_;  ///< oldest first
};

}  // namespace guanaco
