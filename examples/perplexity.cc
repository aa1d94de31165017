// guanaco-perplexity: how well a model predicts a text.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>
#include <CLI/CLI.hpp>

#include "support/console.h"
#include "support/program.h"
#include "support/progress.h"

namespace {

using namespace guanaco;

struct Arguments {
  support::ModelArguments model;
  std::string file;
  int context = 512;
  bool json = false;
};

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  if (!file.is_open() || std::filesystem::is_directory(path))
    throw Error(ErrorCode::not_found, fmt::format("{}: cannot be read", path));
  if (text.view().empty()) throw Error(ErrorCode::invalid_argument, path + ": is empty");
  return std::move(text).str();
}

// The text is encoded once and cut into runs of context - 1 tokens. Every run, the last and shorter
// one included, is a window of its own behind the token that begins a text.
int run(const CLI::App& app, const Arguments& arguments) {
  const std::string text = read_file(arguments.file);
  support::Console console;
  const Model model =
      support::load_model(app, arguments.model, [&] { return console.interrupted(); });
  const Tokenizer& tokenizer = model.tokenizer();
  const std::vector<TokenId> tokens = tokenizer.encode(text, false);

  Session session(model, {.context = arguments.context});
  const std::size_t length = static_cast<std::size_t>(arguments.context) - 1;
  const std::size_t windows = (tokens.size() + length - 1) / length;
  const FeedOptions options{.cancel = console.token()};
  support::Progress progress("perplexity");
  double loss = 0;  // negative natural log-likelihood of all tokens so far
  for (std::size_t window = 0; window < windows; ++window) {
    const std::size_t begin = window * length;
    const std::size_t end = std::min(begin + length, tokens.size());
    std::vector<TokenId> sequence = {tokenizer.bos()};
    sequence.insert(sequence.end(), tokens.begin() + static_cast<std::ptrdiff_t>(begin),
                    tokens.begin() + static_cast<std::ptrdiff_t>(end));
    session.rewind(0);
    const std::vector<float> scores = session.score(sequence, options);
    for (const float score : std::span(scores).subspan(1)) loss -= score;
    progress.show(end, tokens.size(),
                  fmt::format("{:.4f} so far", std::exp(loss / static_cast<double>(end))));
  }
  progress.clear();

  const double perplexity = std::exp(loss / static_cast<double>(tokens.size()));
  if (!std::isfinite(perplexity))
    throw Error(ErrorCode::malformed, fmt::format("the perplexity is {}", perplexity));
  if (arguments.json)
    fmt::print("{{\"perplexity\": {}, \"tokens\": {}, \"windows\": {}}}\n", perplexity,
               tokens.size(), windows);
  else
    fmt::print("perplexity {:.4f} of {} tokens in {} windows of {}\n", perplexity, tokens.size(),
               windows, arguments.context);
  return support::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measure how well a LLaMA checkpoint predicts a text", "guanaco-perplexity");
  Arguments arguments;
  support::add_model_option(app, arguments.model);
  app.add_option("--file", arguments.file, "The text, in UTF-8")->required()->type_name("TEXT");
  app.add_option("--context", arguments.context, "Tokens of a window, its begin token included")
      ->check(support::in_range(2))
      ->capture_default_str();
  app.add_flag("--json", arguments.json, "Print {\"perplexity\", \"tokens\", \"windows\"} instead");
  return support::run_main(app, argc, argv, [&] { return run(app, arguments); });
}
