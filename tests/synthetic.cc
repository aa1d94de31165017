#include "synthetic.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <random>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/json.h"
#include "support/check.h"
#include "support/utf8.h"
#include "synthetic_plan.h"
#include "synthetic_tokenizer.h"

namespace guanaco {
namespace {

using Options = SyntheticOptions;
using OrderedJson = nlohmann::ordered_json;

OrderedJson quantization_settings(const Options& options) {
  OrderedJson settings = {{"bits", options.bits},     {"group_size", options.group_size},
                          {"damp_percent", 0.01},     {"desc_act", options.act_order},
                          {"sym", options.symmetric}, {"true_sequential", true}};
  const int version = options.label != 0 ? options.label : options.zero_points;
  if (options.label != 0 || version == 2)
    settings["checkpoint_format"] = version == 2 ? "gptq_v2" : "gptq";
  return settings;
}

bool settings_in(const Options& options, Options::Settings place) {
  return options.format == Options::Format::gptq &&
         (options.settings == place || options.settings == Options::Settings::both);
}

OrderedJson model_config(const Options& options) {
  const DType dtype =
      options.format == Options::Format::dense ? options.dense_dtype : options.other_dtype;
  OrderedJson config = {{"architectures", {"LlamaForCausalLM"}},
                        {"bos_token_id", 1},
                        {"eos_token_id", 2},
                        {"hidden_act", "silu"},
                        {"hidden_size", options.hidden},
                        {"initializer_range", 0.02},
                        {"intermediate_size", options.ffn},
                        {"max_position_embeddings", options.context},
                        {"max_sequence_length", options.context},
                        {"model_type", "llama"},
                        {"num_attention_heads", options.heads},
                        {"num_hidden_layers", options.layers},
                        {"pad_token_id", 0},
                        {"rms_norm_eps", 1e-06},
                        {"tie_word_embeddings", options.tied_embeddings},
                        {"torch_dtype", dtype == DType::f16    ? "float16"
                                        : dtype == DType::bf16 ? "bfloat16"
                                                               : "float32"},
                        {"transformers_version", "4.30.0"},
                        {"use_cache", true},
                        {"vocab_size", options.vocab}};
  // Fields younger than LLaMA, where they say something.
  if (options.kv_heads != options.heads) config["num_key_value_heads"] = options.kv_heads;
  if (options.heads * options.head_dim != options.hidden) config["head_dim"] = options.head_dim;
  if (options.bias == Options::Bias::values ||
      (options.bias == Options::Bias::zeros && options.format == Options::Format::dense))
    config["attention_bias"] = config["mlp_bias"] = true;
  if (settings_in(options, Options::Settings::in_config)) {
    config["quantization_config"] = quantization_settings(options);
    config["quantization_config"]["quant_method"] = "gptq";
  }
  if (!options.config_overrides.empty())
    config.merge_patch(
        OrderedJson::parse(to_text(parse_json(options.config_overrides, "config_overrides"))));
  return config;
}

/// Writes the folder and takes back what it wrote unless it comes to the end.
class FolderWriter {
 public:
  explicit FolderWriter(const std::filesystem::path& folder) : folder_(folder) {
    std::error_code error;
    made_folder_ = std::filesystem::create_directories(folder, error);
    require(!error, ErrorCode::not_found, "{}: cannot create the folder: {}",
            printable(folder.native()), error.message());
  }
  ~FolderWriter() {
    if (finished_) return;
    std::error_code ignored;
    for (const std::filesystem::path& file : files_) std::filesystem::remove(file, ignored);
    if (made_folder_) std::filesystem::remove(folder_, ignored);
  }
  FolderWriter(const FolderWriter&) = delete;

  void write_text(const char* name, std::string_view text) {
    const std::filesystem::path path = folder_ / name;
    std::ofstream out(path, std::ios::binary);
    if (out) files_.push_back(path);
    out.write(text.data(), std::streamsize(text.size()));
    out.close();
    require(bool(out), ErrorCode::not_found, "{}: cannot write {} bytes", printable(path.native()),
            text.size());
  }
  void write_json(const char* name, const OrderedJson& json) {
    write_text(name, json.dump(2) + "\n");
  }

  void write_tensors(const std::string& name, std::span<const PlannedTensor> tensors,
                     const std::function<void(std::uint64_t)>& wrote) {
    std::vector<SafetensorsWriter::Tensor> layout;
    for (const PlannedTensor& planned : tensors) layout.push_back(planned.tensor);
    SafetensorsWriter writer(folder_ / name, layout);
    for (const PlannedTensor& planned : tensors)
      planned.write([&](std::span<const std::byte> bytes) {
        writer.write(bytes);
        wrote(bytes.size());
      });
    writer.finish();
    files_.push_back(folder_ / name);
  }

  void finish() { finished_ = true; }

 private:
  std::filesystem::path folder_;
  std::vector<std::filesystem::path> files_;
  bool made_folder_ = false, finished_ = false;
};

std::string weight_file(const Options& options) {
  if (!options.weight_file.empty()) return options.weight_file;
  if (options.format == Options::Format::dense) return "model.safetensors";
  return fmt::format("gptq_model-{}bit-{}g.safetensors", options.bits, options.group_size);
}

/// One file, or shards of about the same size and their index.
void write_weights(FolderWriter& folder, const Options& options,
                   std::span<const PlannedTensor> tensors,
                   const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  std::uint64_t total = 0, done = 0;
  for (const PlannedTensor& planned : tensors) total += planned.tensor.bytes();
  const auto wrote = [&](std::uint64_t bytes) {
    done += bytes;
    require(!progress || progress(done, total), ErrorCode::cancelled,
            "cancelled after {} of {} bytes", done, total);
  };
  if (options.shards == 1) return folder.write_tensors(weight_file(options), tensors, wrote);

  require(std::size_t(options.shards) <= tensors.size(), ErrorCode::invalid_argument,
          "shards: expected at most one for each of {} tensors, found {}", tensors.size(),
          options.shards);
  OrderedJson map = OrderedJson::object();
  std::size_t first = 0;
  for (int shard = 1; shard <= options.shards; ++shard) {
    const std::string name = fmt::format("model-{:05}-of-{:05}.safetensors", shard, options.shards);
    const std::size_t last = tensors.size() - std::size_t(options.shards - shard);
    const std::uint64_t goal = total / std::uint64_t(options.shards) * std::uint64_t(shard);
    std::size_t end = first;
    std::uint64_t bytes = done;
    do bytes += tensors[end++].tensor.bytes();
    while (end < last && (shard == options.shards || bytes < goal));
    folder.write_tensors(name, tensors.subspan(first, end - first), wrote);
    for (; first < end; ++first) map[tensors[first].tensor.name] = name;
  }
  folder.write_json("model.safetensors.index.json",
                    {{"metadata", {{"total_size", total}}}, {"weight_map", map}});
}

void write_tokenizer(FolderWriter& folder, const Options& options) {
  const auto added = [](const char* content) {
    return OrderedJson{{"__type", "AddedToken"}, {"content", content}, {"lstrip", false},
                       {"normalized", true},     {"rstrip", false},    {"single_word", false}};
  };
  folder.write_text("tokenizer.model", synthetic_tokenizer(std::min(options.vocab, 32000)));
  folder.write_json("tokenizer_config.json", {{"add_bos_token", true},
                                              {"add_eos_token", false},
                                              {"bos_token", added("<s>")},
                                              {"clean_up_tokenization_spaces", false},
                                              {"eos_token", added("</s>")},
                                              {"model_max_length", options.context},
                                              {"pad_token", nullptr},
                                              {"sp_model_kwargs", OrderedJson::object()},
                                              {"tokenizer_class", "LlamaTokenizer"},
                                              {"unk_token", added("<unk>")}});
  folder.write_json("special_tokens_map.json",
                    {{"bos_token", "<s>"}, {"eos_token", "</s>"}, {"unk_token", "<unk>"}});
}

}  // namespace

SyntheticOptions synthetic_shape(const std::string& name) {
  struct Shape {
    const char* name;
    int layers, hidden, ffn, heads;
  };
  constexpr Shape kShapes[] = {{"7b", 32, 4096, 11008, 32},
                               {"13b", 40, 5120, 13824, 40},
                               {"33b", 60, 6656, 17920, 52},
                               {"65b", 80, 8192, 22016, 64}};
  Options options;
  if (name == "tiny") return options;
  const auto shape = std::find_if(std::begin(kShapes), std::end(kShapes),
                                  [&](const Shape& candidate) { return name == candidate.name; });
  require(shape != std::end(kShapes), ErrorCode::invalid_argument,
          "shape: expected 7b, 13b, 33b, 65b or tiny, found \"{}\"", printable(name));
  options.layers = shape->layers;
  options.hidden = shape->hidden;
  options.ffn = shape->ffn;
  options.heads = options.kv_heads = shape->heads;
  options.vocab = 32000;
  return options;
}

SyntheticOptions thebloke_dialect(SyntheticOptions options) {
  options.format = Options::Format::gptq;
  options.scale_dtype = options.bias_dtype = DType::f32;
  options.bias = Options::Bias::zeros;
  options.act_order = false;
  options.group_index = Options::GroupIndex::absent;
  options.zero_points = 1;
  options.settings = Options::Settings::none;
  options.weight_file = "Guanaco-13B-GPTQ-4bit-128g.no-act-order.safetensors";
  return options;
}

void write_synthetic(const std::filesystem::path& folder, const SyntheticOptions& options,
                     const std::function<bool(std::uint64_t, std::uint64_t)>& progress) {
  const std::vector<PlannedTensor> tensors = plan(options);
  const OrderedJson config = model_config(options);
  FolderWriter writer(folder);
  if (options.config) writer.write_json("config.json", config);
  writer.write_json("generation_config.json", {{"_from_model_config", true},
                                               {"bos_token_id", 1},
                                               {"eos_token_id", 2},
                                               {"pad_token_id", 0},
                                               {"transformers_version", "4.30.0"}});
  if (settings_in(options, Options::Settings::quantize_config))
    writer.write_json("quantize_config.json", quantization_settings(options));
  if (options.tokenizer) write_tokenizer(writer, options);
  write_weights(writer, options, tensors, progress);
  writer.finish();
}

TemporaryFolder::TemporaryFolder() {
  std::random_device random;
  do path_ = std::filesystem::temp_directory_path() / fmt::format("guanaco-{:08x}", random());
  while (!std::filesystem::create_directory(path_));
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace guanaco
