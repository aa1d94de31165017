#include "session/run_ahead.h"

#include <algorithm>
#include <mutex>

namespace guanaco {
namespace {

/// Launches the pass of all rows: of their pending tokens, or (ahead) of those that the pass before
/// it chooses.
std::shared_ptr<ChoosingPass> launch(LoadedModel& model, std::span<const StepRow> rows, bool ahead,
                                     const Watch& watch) {
  LoadedModel::Pass& pass = model.pass;
  const std::size_t n = rows.size();
  pass.rules.resize(n);
  for (std::size_t i = 0; i < n; ++i) {
    const StepRow& row = rows[i];
    pass.tokens[i] = row.token;
    pass.positions[i] = row.session->position() + (ahead ? 1 : 0);
    pass.sequences[i] = int(i);
    pass.caches[i] = row.session->pages.get();
    pass.rules[i] = row.rule;
    pass.rules[i].draws += ahead ? 1 : 0;  // greedy looks at no draw
  }
  forward(*model.backend, model.weights,
          {.tokens = {pass.tokens.data(), n},
           .positions = {pass.positions.data(), n},
           .sequences = {pass.sequences.data(), n},
           .caches = {pass.caches.data(), n},
           .chosen = ahead},
          watch);
  return pass.choosing.launch(*model.backend, model.weights, pass.rules);
}

void claim(std::span<const StepRow> rows, const std::shared_ptr<ChoosingPass>& pass) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    rows[i].claim->pass = pass;
    rows[i].claim->row = int(i);
  }
}

/// Moves the choice of a collected pass to its claim.
void settle(Claim& claim) {
  if (!claim.pass) return;
  if (!claim.pass->choices.empty()) claim.choice = claim.pass->choices[std::size_t(claim.row)];
  claim.pass.reset();
}

/// True if these are the rows of the backend's last pass, which still chooses for them.
bool in_flight(const ChoosingPasses& choosing, std::span<const StepRow> rows) {
  const std::shared_ptr<ChoosingPass>& pass = rows.front().claim->pass;
  if (!pass || !choosing.is_last(*pass) || pass->choices.size() != rows.size()) return false;
  for (std::size_t i = 0; i < rows.size(); ++i)
    if (rows[i].claim->pass != pass || rows[i].claim->row != int(i)) return false;
  return true;
}

/// Most rows of a pass whose tokens the device chooses.
int most_rows(const LoadedModel& model) {
  return std::min(model.backend->most_choices(), model.rows);
}

/// choose_on_device() for the rows of one pass.
void choose_in_one_pass(LoadedModel& model, std::span<const StepRow> rows,
                        std::span<const std::stop_token> cancel, bool runs_ahead) {
  const bool can_launch =
      int(rows.size()) <= most_rows(model) && std::ranges::all_of(rows, &StepRow::steady);
  const bool claimed =
      std::ranges::any_of(rows, [](const StepRow& row) { return bool(row.claim->pass); });
  if (!can_launch && !claimed) return;

  Backend& backend = *model.backend;
  ChoosingPasses& choosing = model.pass.choosing;
  const Watch watch{.cancel = cancel, .total = int(rows.size())};
  model.pass.queue.lock([&] { watch.look(); });
  const std::unique_lock turn(model.pass.queue, std::adopt_lock);
  if (!can_launch || !in_flight(choosing, rows)) {
    choosing.collect_all(backend);
    bool chosen_before = false;
    for (const StepRow& row : rows) {
      settle(*row.claim);
      chosen_before |= row.claim->choice.has_value();
    }
    if (!can_launch || chosen_before) return;
    claim(rows, launch(model, rows, false, watch));
  }
  // From here on the device can be up to two passes ahead of the host.
  std::shared_ptr<ChoosingPass> next;
  const bool cancelled = std::ranges::any_of(cancel, &std::stop_token::stop_requested);
  if (runs_ahead && !cancelled && std::ranges::all_of(rows, &StepRow::goes_on))
    next = launch(model, rows, true, {});
  choosing.collect_oldest(backend);
  for (const StepRow& row : rows) settle(*row.claim);
  if (next) claim(rows, next);
}

}  // namespace

ChoiceRule SamplerAccess::rule(const Sampler& sampler, int choices) {
  const SamplerOptions& options = sampler.options_;
  return {.temperature = options.temperature,
          .top_p = options.top_p,
          .min_p = options.min_p,
          .top_k = options.top_k,
          .choices = choices,
          .seed = options.seed,
          .draws = sampler.draws_};
}

void choose_on_device(LoadedModel& model, std::span<const StepRow> rows,
                      std::span<const std::stop_token> cancel) {
  const std::size_t n = rows.size();
  const auto most = std::size_t(std::max(most_rows(model), 1));
  // Who would rather take more rows in a pass than it can choose for leaves the choice to the host.
  if (n > most && model.backend->rows_of_pass(std::min(int(n), model.rows)) > int(most))
    return choose_in_one_pass(model, rows, cancel, false);
  for (std::size_t first = 0; first < n; first += most)
    choose_in_one_pass(model, rows.subspan(first, std::min(most, n - first)), cancel, n <= most);
}

}  // namespace guanaco
