#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <guanaco/error.h>
#include <sentencepiece_processor.h>
#include "dom.h"
#include "io/safetensors.h"
#include "support/half.h"
#include "synthetic.h"
#include "synthetic_tokenizer.h"
#include "synthetic_weights.h"

using namespace guanaco;

namespace {

using Options = SyntheticOptions;

template <typename T>
std::vector<T> read(const SafetensorsFile& file, const std::string& name) {
  const TensorEntry* entry = file.find(name);
  REQUIRE_MESSAGE(entry, name);
  std::vector<T> values(entry->bytes / sizeof(T));
  file.file().read(entry->offset, std::as_writable_bytes(std::span(values)));
  return values;
}

/// Name and contents of every file of a folder.
std::map<std::string, std::string> contents(const std::filesystem::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    files[entry.path().filename()] = read_text(entry.path(), 1u << 30);
  return files;
}

std::map<std::string, std::string> written(const Options& options) {
  const TemporaryFolder folder;
  write_synthetic(folder.path(), options);
  return contents(folder.path());
}

std::uint64_t total_bytes(const Options& options) {
  std::uint64_t total = 0;
  for (const auto& tensor : planned_tensors(options)) total += tensor.bytes();
  return total;
}

std::uint32_t code_at(const std::vector<std::uint32_t>& words, int bits, std::size_t place,
                      std::size_t column, std::size_t columns) {
  std::uint32_t code = 0;
  for (std::size_t bit = 0; bit < std::size_t(bits); ++bit) {
    const std::size_t at = place * std::size_t(bits) + bit;
    code |= (words[at / 32 * columns + column] >> (at % 32) & 1u) << bit;
  }
  return code;
}

}  // namespace

TEST_CASE("packing: the vectors of the format page hold") {
  std::uint8_t codes[32] = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<std::uint32_t> words(4);
  pack_run(4, codes, words);
  CHECK(words == std::vector<std::uint32_t>{0x87654321, 0, 0, 0});

  for (int i = 0; i < 32; ++i) codes[i] = std::uint8_t((5 * i + 3) % 8);
  words.resize(3);
  pack_run(3, codes, words);
  CHECK(words == std::vector<std::uint32_t>{0x43C67543, 0x7543C675, 0xC67543C6});

  std::fill(std::begin(codes), std::end(codes), std::uint8_t(8));
  codes[0] = 0;  // a zero point of 0 borrows from its neighbour
  words.resize(4);
  pack_run(4, codes, words);
  to_v1_zero_points(4, words);
  CHECK(words == std::vector<std::uint32_t>{0x7777776F, 0x77777777, 0x77777777, 0x77777777});
}

TEST_CASE("packing: codes of 2 and 3 and 4 and 8 bits come back and v1 zero points are one less") {
  for (const int bits : {2, 3, 4, 8}) {
    CAPTURE(bits);
    std::uint8_t codes[32];
    for (int i = 0; i < 32; ++i)
      codes[i] = std::uint8_t(1 + random_bits(7, std::uint64_t(i)) % ((1u << bits) - 1));
    std::vector<std::uint32_t> words(static_cast<std::size_t>(bits), 0xffffffffu);
    pack_run(bits, codes, words);
    for (std::size_t i = 0; i < 32; ++i) CHECK(code_at(words, bits, i, 0, 1) == codes[i]);
    to_v1_zero_points(bits, words);
    for (std::size_t i = 0; i < 32; ++i) CHECK(code_at(words, bits, i, 0, 1) == codes[i] - 1u);
  }
  // The borrow of a 3-bit run crosses its words.
  std::uint8_t codes[32] = {};
  codes[31] = 1;
  std::vector<std::uint32_t> words(3);
  pack_run(3, codes, words);
  to_v1_zero_points(3, words);
  for (std::size_t i = 0; i < 32; ++i)
    CHECK(code_at(words, 3, i, 0, 1) == (i == 0 ? 7u : i < 31 ? 6u : 7u));
}

TEST_CASE("synthetic shapes: the published sizes are planned to the byte") {
  struct Size {
    const char* name;
    std::uint64_t dense, groups, column;
  };
  for (const Size& size : {Size{"7b", 13'476'831'232, 3'893'862'400, 3'770'777'600},
                           Size{"13b", 26'031'728'640, 7'255'009'280, 7'012'526'080},
                           Size{"33b", 65'057'887'232, 17'545'536'512, 16'928'909'312},
                           Size{"65b", 130'571'321'344, 34'718'859'264, 33'471'012'864}}) {
    CAPTURE(size.name);
    Options options = synthetic_shape(size.name);
    CHECK(total_bytes(options) == size.groups);
    options.group_size = -1;
    CHECK(total_bytes(options) == size.column);
    options.format = Options::Format::dense;
    CHECK(total_bytes(options) == size.dense);
  }
  Options thebloke = thebloke_dialect(synthetic_shape("13b"));
  CHECK(total_bytes(thebloke) == 7'446'128'640 + 8'519'680);
  thebloke.other_dtype = DType::f32;
  CHECK(total_bytes(thebloke) == 8'102'318'080 + 8'519'680);
  CHECK_THROWS_AS(synthetic_shape("12b"), Error);
}

TEST_CASE("synthetic checkpoints: the same options give the same bytes and a seed other ones") {
  Options options;
  options.layers = 1;
  const auto once = written(options);
  CHECK(once == written(options));
  CHECK(once.size() == 7);
  options.seed = 2;
  const auto other = written(options);
  const char* weights = "gptq_model-4bit-128g.safetensors";
  CHECK(once.at(weights).size() == other.at(weights).size());
  CHECK(once.at(weights) != other.at(weights));
}

TEST_CASE("synthetic checkpoints: weights have the promised size in every width and order") {
  for (const int bits : {2, 3, 4, 8})
    for (const bool act_order : {false, true})
      for (const int group_size : {32, 96, 128, -1}) {
        CAPTURE(bits);
        CAPTURE(act_order);
        CAPTURE(group_size);
        const TemporaryFolder folder;
        Options options;
        options.layers = 1;
        options.hidden = 256;
        options.ffn = 352;
        options.bits = bits;
        options.group_size = group_size;
        options.act_order = act_order;
        options.tokenizer = false;
        options.weight_file = "w.safetensors";
        write_synthetic(folder.path(), options);
        const SafetensorsFile file(folder.path() / "w.safetensors");
        const std::string layer = "model.layers.0.mlp.down_proj";
        const auto words = read<std::uint32_t>(file, layer + ".qweight");
        const auto zeros = read<std::uint32_t>(file, layer + ".qzeros");
        const auto scales = read<std::uint16_t>(file, layer + ".scales");
        const auto group = read<std::int32_t>(file, layer + ".g_idx");
        const std::size_t inputs = 352, outputs = 256;
        REQUIRE(group.size() == inputs);

        const std::size_t size = group_size == -1 ? inputs : std::size_t(group_size);
        std::vector<std::size_t> rows((inputs + size - 1) / size);
        for (const std::int32_t g : group) ++rows.at(std::size_t(g));
        for (std::size_t g = 0; g < rows.size(); ++g)
          CHECK(rows[g] == std::min(size, inputs - g * size));
        CHECK(std::is_sorted(group.begin(), group.end()) == (!act_order || rows.size() == 1));

        double sum = 0, squares = 0;
        std::set<std::uint32_t> seen, seen_zeros;
        for (std::size_t k = 0; k < inputs; ++k)
          for (std::size_t n = 0; n < outputs; ++n) {
            const auto g = std::size_t(group[k]);
            const std::uint32_t code = code_at(words, bits, k, n, outputs);
            const std::vector<std::uint32_t> row(
                zeros.begin() + std::ptrdiff_t(g * outputs * std::size_t(bits) / 32),
                zeros.begin() + std::ptrdiff_t((g + 1) * outputs * std::size_t(bits) / 32));
            const std::uint32_t zero = code_at(row, bits, n, 0, 1) + 1;
            const double weight =
                half_to_float(scales[g * outputs + n]) * (double(code) - double(zero));
            seen.insert(code);
            seen_zeros.insert(zero);
            sum += weight;
            squares += weight * weight;
          }
        const double count = double(inputs * outputs);
        CHECK(std::sqrt(squares / count * inputs) == doctest::Approx(1).epsilon(0.05));
        CHECK(std::abs(sum / count) < 0.02 / std::sqrt(double(inputs)));
        CHECK(seen.size() >= (bits == 8 ? 200u : 1u << bits));
        CHECK(seen_zeros.size() > 1);
      }
}

TEST_CASE("synthetic checkpoints: linears that share an input share the order of its rows") {
  const TemporaryFolder folder;
  Options options;
  options.act_order = true;
  options.group_size = 32;
  options.weight_file = "w.safetensors";
  write_synthetic(folder.path(), options);
  const SafetensorsFile file(folder.path() / "w.safetensors");
  const auto group = [&](const char* name) {
    return read<std::int32_t>(file, fmt::format("model.layers.{}.g_idx", name));
  };
  CHECK(group("0.self_attn.q_proj") == group("0.self_attn.k_proj"));
  CHECK(group("0.self_attn.q_proj") == group("0.self_attn.v_proj"));
  CHECK(group("0.mlp.gate_proj") == group("0.mlp.up_proj"));
  CHECK(group("0.self_attn.q_proj") != group("0.mlp.up_proj"));
  CHECK(group("0.self_attn.q_proj") != group("1.self_attn.q_proj"));
}

TEST_CASE("synthetic checkpoints: the two versions of zero points mean the same weights") {
  Options options;
  options.symmetric = true;
  options.weight_file = "w.safetensors";
  const TemporaryFolder one, two;
  write_synthetic(one.path(), options);
  options.zero_points = 2;
  write_synthetic(two.path(), options);
  const std::string zeros = "model.layers.1.mlp.up_proj.qzeros";
  const SafetensorsFile v1(one.path() / "w.safetensors"), v2(two.path() / "w.safetensors");
  for (const std::uint32_t word : read<std::uint32_t>(v1, zeros)) CHECK(word == 0x77777777);
  for (const std::uint32_t word : read<std::uint32_t>(v2, zeros)) CHECK(word == 0x88888888);
  CHECK(read<std::uint32_t>(v1, "model.layers.1.mlp.up_proj.qweight") ==
        read<std::uint32_t>(v2, "model.layers.1.mlp.up_proj.qweight"));
  CHECK_FALSE(read_dom(one.path() / "quantize_config.json").contains("checkpoint_format"));
  CHECK(read_dom(two.path() / "quantize_config.json")["checkpoint_format"] == "gptq_v2");
  options.label = 1;
  CHECK(contents(two.path()) != written(options));
  CHECK(nlohmann::json::parse(written(options).at("quantize_config.json"))["checkpoint_format"] ==
        "gptq");
}

TEST_CASE("synthetic checkpoints: types and biases and settings land where they are said to") {
  const TemporaryFolder folder;
  Options options;
  options.scale_dtype = DType::bf16;
  options.other_dtype = DType::f32;
  options.bias = Options::Bias::values;
  options.bias_dtype = DType::bf16;
  options.group_index = Options::GroupIndex::zeros;
  options.rotary_buffers = true;
  options.tied_embeddings = true;
  options.kv_heads = 1;
  options.settings = Options::Settings::in_config;
  options.config_overrides = R"({"rope_theta": 5e5, "pad_token_id": null})";
  options.shards = 3;
  write_synthetic(folder.path(), options);
  const nlohmann::json config = read_dom(folder.path() / "config.json");
  CHECK(config["quantization_config"]["quant_method"] == "gptq");
  CHECK(config["num_key_value_heads"] == 1);
  CHECK(config["attention_bias"] == true);
  CHECK(config["rope_theta"] == 5e5);
  CHECK_FALSE(config.contains("pad_token_id"));
  CHECK_FALSE(std::filesystem::exists(folder.path() / "quantize_config.json"));

  const nlohmann::json index = read_dom(folder.path() / "model.safetensors.index.json");
  std::uint64_t total = 0;
  std::set<std::string> names;
  for (int shard = 1; shard <= 3; ++shard) {
    const std::string name = fmt::format("model-0000{}-of-00003.safetensors", shard);
    const SafetensorsFile file(folder.path() / name);
    for (const TensorEntry& entry : file.tensors()) {
      CHECK(index["weight_map"][entry.name] == name);
      CHECK(names.insert(entry.name).second);
      total += entry.bytes;
      const bool scales = entry.name.ends_with(".scales"), bias = entry.name.ends_with(".bias");
      const bool integers = entry.name.ends_with("qweight") || entry.name.ends_with("qzeros") ||
                            entry.name.ends_with("g_idx");
      CHECK(entry.dtype == (scales || bias ? DType::bf16 : integers ? DType::i32 : DType::f32));
      if (entry.name.ends_with("g_idx"))
        for (const std::int32_t group : read<std::int32_t>(file, entry.name)) CHECK(group == 0);
    }
  }
  CHECK(index["metadata"]["total_size"] == total);
  CHECK(total == total_bytes(options));
  CHECK(names.size() == planned_tensors(options).size());
  CHECK(names.contains("model.layers.1.self_attn.rotary_emb.inv_freq"));
  CHECK_FALSE(names.contains("lm_head.weight"));
}

TEST_CASE("synthetic checkpoints: the dialect of 2023 says nothing but its file name") {
  const auto files = written(thebloke_dialect({}));
  CHECK(files.contains("Guanaco-13B-GPTQ-4bit-128g.no-act-order.safetensors"));
  CHECK_FALSE(files.contains("quantize_config.json"));
  CHECK_FALSE(nlohmann::json::parse(files.at("config.json")).contains("quantization_config"));
  CHECK_FALSE(nlohmann::json::parse(files.at("config.json")).contains("attention_bias"));
}

TEST_CASE("synthetic checkpoints: giving up or wrong options leave nothing behind") {
  const TemporaryFolder folder;
  int calls = 0;
  try {
    write_synthetic(folder.path() / "new", {},
                    [&](std::uint64_t, std::uint64_t) { return ++calls < 9; });
    FAIL("expected cancelled");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::cancelled);
  }
  CHECK(calls == 9);
  const auto refused = [&](auto change) {
    Options options;
    change(options);
    CHECK_THROWS_AS(write_synthetic(folder.path() / "new", options), Error);
  };
  refused([](Options& o) { o.bits = 5; });
  refused([](Options& o) { o.hidden = 250; });
  refused([](Options& o) { o.group_size = 0; });
  refused([](Options& o) { o.layers = -1; });
  refused([](Options& o) { o.kv_heads = 3; });
  refused([](Options& o) { o.vocab = 258; });
  refused([](Options& o) { o.shards = 1000; });
  refused([](Options& o) { o.scale_dtype = DType::i32; });
  refused([](Options& o) { o.config_overrides = "{"; });
  refused([](Options& o) { o.weight_file = "../out.safetensors"; });
  refused([](Options& o) { o.act_order = true, o.group_index = Options::GroupIndex::absent; });
  CHECK(std::filesystem::is_empty(folder.path()));
}

TEST_CASE("synthetic tokenizer: sentencepiece loads it and every text comes back") {
  for (const int pieces : {259, 260, 300, 512, 4096, 32000}) {
    CAPTURE(pieces);
    sentencepiece::SentencePieceProcessor processor;
    REQUIRE(processor.LoadFromSerializedProto(synthetic_tokenizer(pieces)).ok());
    CHECK(processor.GetPieceSize() == pieces);
    CHECK(processor.unk_id() == 0);
    CHECK(processor.bos_id() == 1);
    CHECK(processor.eos_id() == 2);
    CHECK(processor.IsByte(3));
    CHECK(processor.IsByte(258));
    if (pieces > 259) CHECK(processor.GetScore(pieces - 1) == float(259 - (pieces - 1)));
    if (pieces == 259) continue;  // has no piece for the space, so bytes stand for its mark
    for (const std::string text :
         {"Hello, world!", "  two  spaces  ", "the end\n\tof the line", "a",
          "### Human: na\u00efve \u65e5\u672c\u8a9e \U0001f999 ### Assistant:"}) {
      std::vector<int> ids;
      std::string back;
      REQUIRE(processor.Encode(text, &ids).ok());
      REQUIRE(processor.Decode(ids, &back).ok());
      CHECK(back == text);
      if (pieces >= 4096) CHECK(ids.size() < 4 * text.size());
      CHECK(std::find(ids.begin(), ids.end(), 0) == ids.end());
    }
  }
  CHECK_THROWS_AS(synthetic_tokenizer(258), Error);
  CHECK_THROWS_AS(synthetic_tokenizer(32001), Error);
}
