// guanaco-synth: writes a checkpoint of any size and dialect with random weights.
//
//     guanaco-synth --shape 13b --dialect thebloke /tmp/guanaco-13b
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <unistd.h>

#include <fmt/format.h>
#include <guanaco/error.h>
#include <CLI/CLI.hpp>

#include "synthetic.h"

namespace {

using guanaco::DType;
using Options = guanaco::SyntheticOptions;

volatile std::sig_atomic_t interrupted = 0;  // set by Ctrl-C

std::string size_text(std::uint64_t bytes) {
  return bytes >= 1'000'000'000 ? fmt::format("{:.2f} GB", double(bytes) / 1e9)
                                : fmt::format("{:.2f} MB", double(bytes) / 1e6);
}

/// A bar on a terminal, a line for every tenth elsewhere.
class Progress {
 public:
  bool operator()(std::uint64_t done, std::uint64_t total) {
    const int percent = int(double(done) * 100 / double(total));
    if (terminal_ && percent != shown_) {
      fmt::print(stderr, "\r[{:<40}] {:3} %  {} of {} ",
                 std::string(std::size_t(percent) * 40 / 100, '#'), percent, size_text(done),
                 size_text(total));
      if (percent == 100) fmt::print(stderr, "\n");
      shown_ = percent;
    } else if (!terminal_ && percent / 10 != shown_ / 10) {
      fmt::print(stderr, "{} % of {}\n", percent, size_text(total));
      shown_ = percent;
    }
    return interrupted == 0;
  }

  /// Leaves a half drawn bar behind, so that what follows begins on a line of its own.
  void end_line() const {
    if (terminal_ && shown_ > 0 && shown_ < 100) fmt::print(stderr, "\n");
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) == 1;
  int shown_ = 0;
};

/// What the command line says; empty where it leaves a choice to the shape or the dialect.
struct Arguments {
  std::string folder, shape = "tiny", dialect;
  std::optional<int> layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context;
  std::optional<int> bits, group_size, zero_points, label, shards;
  std::optional<DType> dense, scales, others, bias_type;
  std::optional<Options::GroupIndex> group_index;
  std::optional<Options::Bias> bias;
  std::optional<Options::Settings> settings;
  std::optional<std::string> weight_file, config_json;
  std::optional<std::uint64_t> seed;
  bool act_order = false, symmetric = false, tied = false, rotary_buffers = false;
  bool no_config = false, no_tokenizer = false;
};

template <typename T>
void set(T& field, const std::optional<T>& value) {
  if (value) field = *value;
}

Options resolve(const Arguments& arguments) {
  Options options = guanaco::synthetic_shape(arguments.shape);
  if (!arguments.dialect.empty()) options = guanaco::thebloke_dialect(options);
  set(options.layers, arguments.layers);
  set(options.hidden, arguments.hidden);
  set(options.ffn, arguments.ffn);
  set(options.heads, arguments.heads);
  if (arguments.heads) options.kv_heads = *arguments.heads;
  set(options.kv_heads, arguments.kv_heads);
  set(options.head_dim, arguments.head_dim);
  set(options.vocab, arguments.vocab);
  set(options.context, arguments.context);
  if (arguments.dense) options.format = Options::Format::dense;
  set(options.dense_dtype, arguments.dense);
  if (arguments.dense) options.other_dtype = options.bias_dtype = *arguments.dense;
  set(options.bits, arguments.bits);
  set(options.group_size, arguments.group_size);
  options.act_order |= arguments.act_order;
  options.symmetric |= arguments.symmetric;
  set(options.group_index, arguments.group_index);
  set(options.zero_points, arguments.zero_points);
  set(options.label, arguments.label);
  set(options.scale_dtype, arguments.scales);
  set(options.other_dtype, arguments.others);
  set(options.bias, arguments.bias);
  set(options.bias_dtype, arguments.bias_type);
  options.tied_embeddings |= arguments.tied;
  options.rotary_buffers |= arguments.rotary_buffers;
  set(options.settings, arguments.settings);
  set(options.shards, arguments.shards);
  if (options.shards > 1 && !arguments.weight_file) options.weight_file.clear();
  set(options.weight_file, arguments.weight_file);
  set(options.config_overrides, arguments.config_json);
  options.config = !arguments.no_config;
  options.tokenizer = !arguments.no_tokenizer;
  set(options.seed, arguments.seed);
  return options;
}

template <typename T>
CLI::Option* add_choice(CLI::App& app, const char* flag, std::optional<T>& target, const char* help,
                        const std::map<std::string, T>& choices) {
  std::vector<std::string> names;
  for (const auto& [name, value] : choices) names.push_back(name);
  const auto choose = [&target, choices](const std::string& name) { target = choices.at(name); };
  return app.add_option_function<std::string>(flag, choose, help)
      ->check(CLI::IsMember(names))
      ->type_name("NAME");
}

void add_options(CLI::App& app, Arguments& arguments) {
  const std::map<std::string, DType> dtypes = {
      {"f16", DType::f16}, {"bf16", DType::bf16}, {"f32", DType::f32}};
  app.add_option("folder", arguments.folder, "The folder to write; it must not hold anything yet")
      ->required();
  app.add_option("--shape", arguments.shape, "7b, 13b, 33b, 65b or tiny; tiny if not said");
  app.add_option("--dialect", arguments.dialect,
                 "thebloke: as in 2023, F32 scales, zero F32 bias, no g_idx")
      ->check(CLI::IsMember({"thebloke"}));

  app.add_option("--layers", arguments.layers, "Decoder layers")->group("Shape");
  app.add_option("--hidden", arguments.hidden, "Width of the residual stream")->group("Shape");
  app.add_option("--ffn", arguments.ffn, "Width of the MLP")->group("Shape");
  app.add_option("--heads", arguments.heads, "Attention heads")->group("Shape");
  app.add_option("--kv-heads", arguments.kv_heads,
                 "Key and value heads; as many as heads if not said")
      ->group("Shape");
  app.add_option("--head-dim", arguments.head_dim, "Width of a head")->group("Shape");
  app.add_option("--vocab", arguments.vocab, "Rows of the embedding table")->group("Shape");
  app.add_option("--context", arguments.context, "Positions, as config.json says")->group("Shape");
  app.add_flag("--tied", arguments.tied, "The output layer is the embedding table")->group("Shape");

  add_choice(app, "--dense", arguments.dense, "Not quantised: the type of all weights", dtypes)
      ->group("Weights");
  app.add_option("--bits", arguments.bits, "2, 3, 4 or 8")->group("Weights");
  app.add_option("--group-size", arguments.group_size,
                 "Input rows sharing a scale; -1: all of a column")
      ->group("Weights");
  app.add_flag("--act-order", arguments.act_order, "Groups are rows at random places")
      ->group("Weights");
  app.add_flag("--symmetric", arguments.symmetric, "One zero point for all, 2^(bits - 1)")
      ->group("Weights");
  add_choice(app, "--group-index", arguments.group_index, "How the file has g_idx",
             {{"present", Options::GroupIndex::present},
              {"absent", Options::GroupIndex::absent},
              {"zeros", Options::GroupIndex::zeros}})
      ->group("Weights");
  app.add_option("--zero-points", arguments.zero_points,
                 "Version of the file: 1 holds zero - 1, 2 holds zero")
      ->group("Weights");
  add_choice(app, "--scales", arguments.scales, "Type of the scales", dtypes)->group("Weights");
  add_choice(app, "--others", arguments.others, "Type of embeddings, norms and head", dtypes)
      ->group("Weights");
  add_choice(app, "--bias", arguments.bias, "Bias of linear layers",
             {{"none", Options::Bias::none},
              {"zeros", Options::Bias::zeros},
              {"values", Options::Bias::values}})
      ->group("Weights");
  add_choice(app, "--bias-type", arguments.bias_type, "Type of the bias", dtypes)->group("Weights");
  app.add_flag("--rotary-buffers", arguments.rotary_buffers,
               "With rotary_emb.inv_freq, as old files")
      ->group("Weights");
  app.add_option("--seed", arguments.seed, "Of the random weights; 1 if not said")
      ->group("Weights");

  app.add_option("--label", arguments.label,
                 "Zero point version the settings claim, true or not: 1 or 2")
      ->group("Files");
  add_choice(app, "--settings", arguments.settings, "Where the quantisation is described",
             {{"quantize_config", Options::Settings::quantize_config},
              {"in_config", Options::Settings::in_config},
              {"both", Options::Settings::both},
              {"none", Options::Settings::none}})
      ->group("Files");
  app.add_option("--shards", arguments.shards, "Number of weight files")->group("Files");
  app.add_option("--weight-file", arguments.weight_file, "Name of the weight file, if it is one")
      ->group("Files");
  app.add_option("--config-json", arguments.config_json, "A JSON object merged over config.json")
      ->group("Files");
  app.add_flag("--no-config", arguments.no_config, "No config.json")->group("Files");
  app.add_flag("--no-tokenizer", arguments.no_tokenizer, "No tokenizer.model")->group("Files");
}

int run(const Arguments& arguments) {
  const std::filesystem::path folder = arguments.folder;
  std::error_code ignored;
  if (std::filesystem::exists(folder, ignored) && !std::filesystem::is_empty(folder, ignored))
    throw guanaco::Error(guanaco::ErrorCode::invalid_argument,
                         fmt::format("{}: expected a new or empty folder", arguments.folder));
  const Options options = resolve(arguments);
  std::signal(SIGINT, [](int) { interrupted = 1; });
  std::signal(SIGTERM, [](int) { interrupted = 1; });
  Progress progress;
  try {
    guanaco::write_synthetic(folder, options, std::ref(progress));
  } catch (...) {
    progress.end_line();
    throw;
  }
  std::uint64_t bytes = 0;
  std::size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    bytes += entry.file_size();
    ++files;
  }
  fmt::print("{}: {} files, {} tensors, {} bytes\n", arguments.folder, files,
             guanaco::planned_tensors(options).size(), bytes);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app(
      "Writes a LLaMA checkpoint with random weights, as the tools of its time published them.");
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("guanaco-synth: {} (--help tells more)\n", error.what());
  });
  Arguments arguments;
  add_options(app, arguments);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  try {
    return run(arguments);
  } catch (const std::exception& error) {
    fmt::print(stderr, "guanaco-synth: {}\n", interrupted != 0 ? "interrupted" : error.what());
    return interrupted != 0 ? 130 : 1;
  }
}
