#include "kernels.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <regex>

#include <fmt/format.h>
#include <guanaco/error.h>

#include "layers.h"
#include "support/check.h"
#include "support/progress.h"

namespace bench {
namespace {

using namespace guanaco;
using Clock = std::chrono::steady_clock;

/// A row to measure.
struct Case {
  std::string name;
  Stage stage;
  Batch batch;
  KernelRow row;
  bool measured = false;
};

std::vector<Case> cases_of(const Layers& layers, const std::string& shape,
                           const std::regex& filter) {
  std::vector<Case> cases;
  const auto add = [&](Stage stage, int rows, int depth) {
    Batch batch = layers.batch(rows, depth);
    KernelRow row = layers.describe(stage, batch);
    row.shape = shape;
    std::string name = fmt::format("{}/{}/x{}/d{}", shape, row.stage, rows, depth);
    if (!std::regex_search(name, filter)) return;
    cases.push_back({std::move(name), stage, std::move(batch), std::move(row), false});
  };
  for (const int rows : {1, KernelRow::kFewRows, layers.prompt_rows()}) {
    const bool few = rows <= KernelRow::kFewRows;
    const int shallow = few ? 16 : 0;
    add(Stage::attention_input, rows, shallow);
    add(Stage::attend, rows, shallow);
    add(Stage::attend, rows, layers.deep());
    add(Stage::attention_output, rows, shallow);
    add(Stage::mlp_input, rows, shallow);
    add(Stage::mlp_output, rows, shallow);
    add(Stage::attention, rows, shallow);
    add(Stage::attention, rows, layers.deep());
    add(Stage::mlp, rows, shallow);
    add(Stage::layer, rows, shallow);
    if (few) add(Stage::head, rows, shallow);
    if (few) add(Stage::launch, rows, shallow);
  }
  return cases;
}

/// Takes the samples of each benchmark over into its row.
class Collector : public benchmark::BenchmarkReporter {
 public:
  Collector(std::vector<Case>& cases, const std::function<void(const std::string&)>& report)
      : cases_(cases), report_(report) {}

  bool ReportContext(const Context&) override { return true; }

  void ReportRuns(const std::vector<Run>& runs) override {
    std::vector<double> samples;
    std::string name;
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      name = run.run_name.function_name;
      samples.push_back(run.real_accumulated_time / double(run.iterations));
    }
    const auto found =
        std::find_if(cases_.begin(), cases_.end(), [&](const Case& c) { return c.name == name; });
    if (found == cases_.end() || samples.empty()) return;
    std::sort(samples.begin(), samples.end());
    found->row.least = samples.front();
    found->row.median = samples[samples.size() / 2];
    found->row.p90 = samples[samples.size() * 9 / 10];
    found->measured = true;
    report_(name);
  }

 private:
  std::vector<Case>& cases_;
  std::function<void(const std::string&)> report_;
};

}  // namespace

double floor_seconds(const KernelRow& row, const Ceilings& ceilings) {
  if (ceilings.read == 0 || (row.prompt() && ceilings.multiply == 0)) return 0;
  const double reading = row.bytes / ceilings.read;
  return row.prompt() ? std::max(reading, row.operations / ceilings.multiply) : reading;
}

SyntheticOptions named_shape(const std::string& name) {
  const auto without = [&](std::string_view ending) -> std::optional<std::string> {
    if (!name.ends_with(ending)) return std::nullopt;
    return name.substr(0, name.size() - ending.size());
  };
  if (const auto base = without("-act-order")) {
    SyntheticOptions options = synthetic_shape(*base);
    options.act_order = true;
    return options;
  }
  if (const auto base = without("-fp16")) {
    SyntheticOptions options = synthetic_shape(*base);
    options.format = SyntheticOptions::Format::dense;
    return options;
  }
  return synthetic_shape(name);
}

std::vector<KernelRow> measure_kernels(const std::string& shape, const Ceilings& ceilings,
                                       const KernelOptions& options) {
  std::regex filter;
  try {
    filter = options.filter;
  } catch (const std::regex_error& error) {
    fail(ErrorCode::invalid_argument, "--filter: {} is not a regular expression: {}",
         options.filter, error.what());
  }
  support::Progress progress("kernels of " + shape);
  progress.show(0, 1, "loading");
  Layers layers(named_shape(shape), ceilings, options.model);
  std::vector<Case> cases = cases_of(layers, shape, filter);
  require(!cases.empty(), ErrorCode::invalid_argument,
          "--filter: no kernel of {} matches {}; names look like {}/qkv/x1/d16", shape,
          options.filter, shape);

  // What a benchmark throws waits until Google Benchmark has returned.
  std::exception_ptr failure;
  const auto sample = [&](const Case& each) {
    if (options.interrupted()) throw Error(ErrorCode::cancelled, "interrupted");
    return layers.seconds(each.stage, each.batch);
  };
  const int least = options.quick ? 3 : 9, most = options.quick ? 9 : 30;
  const double budget = options.quick ? 0.2 : 1.5;  // seconds for a row
  benchmark::ClearRegisteredBenchmarks();
  for (const Case& each : cases) {
    const auto start = Clock::now();
    sample(each);  // the first is slower, and tells how many there is time for
    const double once = std::chrono::duration<double>(Clock::now() - start).count();
    benchmark::RegisterBenchmark(each.name.c_str(),
                                 [&](benchmark::State& state) {
                                   // All repetitions must do all their iterations, so after a
                                   // failure they go on without measuring.
                                   for (auto _ : state) try {
                                       state.SetIterationTime(failure ? 1.0 : sample(each));
                                     } catch (...) {
                                       failure = std::current_exception();
                                       state.SetIterationTime(1.0);
                                     }
                                 })
        ->UseManualTime()
        ->Iterations(1)
        ->Repetitions(std::clamp(int(budget / once), least, most));
  }
  std::uint64_t done = 0;
  Collector collector(cases,
                      [&](const std::string& name) { progress.show(++done, cases.size(), name); });
  benchmark::RunSpecifiedBenchmarks(&collector);
  benchmark::ClearRegisteredBenchmarks();
  if (failure) std::rethrow_exception(failure);

  std::vector<KernelRow> rows;
  for (Case& each : cases)
    if (each.measured) rows.push_back(std::move(each.row));
  return rows;
}

}  // namespace bench
