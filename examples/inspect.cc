// guanaco-inspect: what a folder holds and how much memory it will take, from its headers alone.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>
#include <CLI/CLI.hpp>

#include "support/program.h"

namespace {

using namespace guanaco;

constexpr std::size_t kIgnoredShown = 5;

void row(std::string_view name, const std::string& value) { fmt::print("{:<16}{}\n", name, value); }

/// Heads the first line with `name`; the others stand below.
void rows(std::string_view name, const std::vector<std::string>& lines) {
  for (std::size_t i = 0; i < lines.size(); ++i) row(i == 0 ? name : "", lines[i]);
}

std::string bytes(std::uint64_t count) {
  constexpr std::string_view kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(count);
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < std::size(kUnits); ++unit) value /= 1024;
  return fmt::format("{:.{}f} {}", value, unit == 0 ? 0 : 2, kUnits[unit]);
}

std::string count(std::uint64_t number) {
  if (number < 1'000'000'000)
    return fmt::format("{:.1f} million", static_cast<double>(number) / 1e6);
  return fmt::format("{:.2f} billion", static_cast<double>(number) / 1e9);
}

int run(const support::ModelArguments& arguments, int context) {
  const ModelOptions options = support::model_options(arguments);
  const auto [info, report] = Model::inspect(arguments.folder, options);
  const MemoryEstimate memory = Model::estimate(arguments.folder, options, context);

  row("format", report.format);
  row("parameters", count(info.parameters));
  row("layers", fmt::format("{}", info.layers));
  row("hidden, ffn", fmt::format("{}, {}", info.hidden, info.ffn));
  row("heads",
      fmt::format("{} of {} ({} of keys and values)", info.heads, info.head_dim, info.kv_heads));
  row("vocabulary", fmt::format("{}", info.vocab));
  row("trained context", fmt::format("{} tokens", info.context));
  row("files", bytes(info.file_bytes));
  rows("decisions", report.decisions);
  rows("warnings", report.warnings);
  if (!report.ignored.empty()) {
    std::vector<std::string> ignored = {fmt::format("{} tensors", report.ignored.size())};
    const std::size_t shown = std::min(report.ignored.size(), kIgnoredShown);
    for (std::size_t i = 0; i < shown; ++i) ignored.push_back(report.ignored[i]);
    if (shown < report.ignored.size()) ignored.push_back("...");
    rows("ignored", ignored);
  }

  fmt::print("\n");
  row("runs on", info.device);
  row("weights", bytes(memory.weights));
  row("scratch", bytes(memory.scratch));
  row("session", fmt::format("{} for a context of {} tokens", bytes(memory.session), context));
  row("in all", fmt::format("{} of host memory, {} of device memory", bytes(memory.host),
                            bytes(memory.device)));
  row("while loading", fmt::format("{} more of host memory", bytes(memory.loading)));
  row("a token reads", fmt::format("{} of weights, {} of cache for each token before it",
                                   bytes(info.bytes_per_token), bytes(info.kv_bytes_per_token)));
  return support::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Show what a LLaMA checkpoint is and the memory it takes, without loading it",
               "guanaco-inspect");
  support::ModelArguments arguments;
  int context = 2048;
  support::add_model_option(app, arguments);
  app.add_option("--context", context, "Tokens of a session, for the memory estimate")
      ->check(support::in_range(1))
      ->capture_default_str();
  return support::run_main(app, argc, argv, [&] { return run(arguments, context); });
}
