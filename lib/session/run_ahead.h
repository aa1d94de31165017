#pragma once

#include <guanaco/sampler.h>

#include "session/session_state.h"

namespace guanaco {

/// What a choice made on the device needs of the Sampler that would have made it.
struct SamplerAccess {
  /// Penalties need the tokens seen so far, which only the host counts.
  static bool penalises(const Sampler& sampler) { return sampler.penalises(); }
  static ChoiceRule rule(const Sampler& sampler, int choices);
  /// Counts the draw that the device made.
  static void drawn(Sampler& sampler) {
    if (sampler.options_.temperature != 0) ++sampler.draws_;
  }
};

/// What the device owes a generation: the token after its pending one. Either `pass` is set, or
/// `choice`, or neither; both only between choose_on_device() and the use of `choice`, when `pass`
/// runs ahead.
struct Claim {
  std::shared_ptr<ChoosingPass> pass;  ///< launched: feeds the pending token, chooses the next
  int row = 0;                         ///< in `pass`
  std::optional<Choice> choice;        ///< collected
};

/// One generation's part in a step, seen from inside.
struct StepRow {
  SessionState* session;
  Claim* claim;
  TokenId token = 0;    ///< the pending one, which its session does not hold yet
  bool steady = false;  ///< the device may choose: one token is pending, and there are no penalties
  bool goes_on = false;  ///< the reply may go on after this step, and the context has room for it
  ChoiceRule rule = {};
};

/// Gets the next token of each row from the device, as far as it can choose, and leaves it in
/// claim->choice. Rows without a choice afterwards are to be fed, and chosen for by the host:
/// a pass is either launched for all its rows or, where some have choices from before, for none.
/// More rows than the device can choose for at once are several passes, if it likes them so.
///
/// One pass runs ahead: the pass that feeds the tokens chosen in this step is launched before they
/// are waited for, so that the device never waits for the host. The next step finds it as
/// claim->pass. If it has the same rows in the same order, and nothing else used the backend since,
/// it launches the pass after that and waits; else it collects what it has a claim to and begins
/// anew. A claim that is dropped costs nothing but what the pass took: the cache behind position()
/// may hold anything.
///
/// If it throws, sessions are as before, and so are claims whose choices may still come.
void choose_on_device(LoadedModel& model, std::span<const StepRow> rows,
                      std::span<const std::stop_token> cancel);

}  // namespace guanaco
