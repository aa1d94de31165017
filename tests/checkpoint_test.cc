#include "checkpoint/checkpoint.h"

#include <cmath>
#include <iostream>
#include <numeric>

#include "checkpoint_fixture.h"
#include "sha256.h"

// Every dialect in which a checkpoint may have been published opens, and means what it should.

namespace guanaco {
namespace {

namespace fs = std::filesystem;
using Options = SyntheticOptions;

const std::map<std::string, std::vector<float>>& plain_weights() {
  static const auto weights = weights_of(open_settled(Published().path()));
  return weights;
}

bool uses_act_order(const Checkpoint& checkpoint) {
  bool used = false;
  for_each_linear(checkpoint, [&](const Linear& linear) {
    if (const auto* gptq = std::get_if<GptqLinear>(&linear)) used |= bool(gptq->g_idx);
  });
  return used;
}

TEST_CASE("the dequantised weights of the real models are those of the reference bit for bit") {
  const fs::path root = GUANACO_SHARED_MODELS;
  if (!fs::exists(root)) {
    std::cout << "[skipped] " << root << " is not there\n";
    return;
  }
  const nlohmann::json goldens = read_dom(root / "goldens" / "weights.json")["packed"];
  REQUIRE(goldens.size() == 4);
  for (const auto& [variant, linears] : goldens.items()) {
    CAPTURE(variant);
    const Checkpoint checkpoint = open_settled(root / variant);
    CHECK(checkpoint.report.warnings.empty());
    CHECK(checkpoint.report.ignored.empty());
    CHECK(uses_act_order(checkpoint) == variant.ends_with("actorder"));
    std::size_t compared = 0;
    for_each_linear(checkpoint, [&](const Linear& linear) {
      if (!linears.contains(name(linear))) return;
      const nlohmann::json& golden = linears[name(linear)];
      const std::vector<float> weights = weights_of(linear);
      REQUIRE(golden["shape"] == nlohmann::json({outputs(linear), inputs(linear)}));
      for (const nlohmann::json& entry : golden["entries"]) {
        const std::size_t row = entry[0],
                          at = row * std::size_t(inputs(linear)) + entry[1].get<std::size_t>();
        CHECK(weights[at] == entry[2].get<float>());
      }
      CHECK(sha256(std::as_bytes(std::span(weights))) == golden["sha256"].get<std::string>());
      ++compared;
    });
    CHECK(compared == linears.size());
  }
}

TEST_CASE("the bundled model opens without a warning and says what it is") {
  const Checkpoint checkpoint = open_settled(GUANACO_MODEL);
  CHECK(checkpoint.report.format == "GPTQ 4 bit, groups of 128, zero points v1, F16 scales");
  CHECK(checkpoint.report.warnings.empty());
  CHECK(
      has_line(checkpoint.report.decisions, {"group size 128", "quantize_config.json", "shapes"}));
  CHECK(checkpoint.config.layers == 8);
  CHECK(checkpoint.config.vocab == 4096);
  CHECK(checkpoint.parameters > 16'000'000);
}

TEST_CASE("the dialect TheBloke published in is read as the plain one") {
  const Published published(thebloke_dialect({}));
  const Checkpoint checkpoint = open_settled(published.path());
  CHECK(weights_of(checkpoint) ==
        weights_of(open_settled(Published({.scale_dtype = DType::f32}).path())));
  CHECK(checkpoint.report.format == "GPTQ 4 bit, groups of 128, zero points v1, F32 scales");
  CHECK(has_line(checkpoint.report.decisions, {"no g_idx in 14 linears"}));
  CHECK(has_line(checkpoint.report.decisions, {"dropped 14 biases"}));
  CHECK(has_line(checkpoint.report.decisions, {"only .safetensors"}));
  CHECK(checkpoint.report.warnings.empty());
  for_each_linear(checkpoint, [](const Linear& linear) {
    CHECK_FALSE(std::visit([](const auto& l) { return bool(l.bias); }, linear));
  });
}

TEST_CASE("dialects that say the same in other ways have the same weights") {
  std::map<std::string, Options> dialects;
  dialects["no g_idx"].group_index = Options::GroupIndex::absent;
  dialects["zero points v2"].zero_points = 2;
  dialects["settings in config.json"].settings = Options::Settings::in_config;
  dialects["settings twice"].settings = Options::Settings::both;
  dialects["no settings"].settings = Options::Settings::none;
  dialects["zero bias"].bias = Options::Bias::zeros;
  dialects["rotary buffers"].rotary_buffers = true;
  dialects["shards"].shards = 3;
  dialects["model.safetensors"].weight_file = "model.safetensors";
  dialects["any name"].weight_file = "whatever.safetensors";
  dialects["no config"].config = false;
  dialects["nothing but weights"].config = false;
  dialects["nothing but weights"].settings = Options::Settings::none;
  for (const auto& [dialect, options] : dialects) {
    CAPTURE(dialect);
    const Checkpoint checkpoint = open_settled(Published(options).path());
    CHECK(weights_of(checkpoint) == plain_weights());
    CHECK_FALSE(uses_act_order(checkpoint));
    for (const std::string& warning : checkpoint.report.warnings)
      CHECK(warning.starts_with("no config.json: taken that "));
    CHECK(checkpoint.report.warnings.empty() == options.config);
  }
}

TEST_CASE("all widths and group sizes open and settings and shapes agree with no settings") {
  for (const int bits : {2, 3, 4, 8})
    for (const int group_size : {32, 64, 128, -1}) {
      CAPTURE(bits);
      CAPTURE(group_size);
      Options options;
      options.bits = bits;
      options.group_size = group_size;
      const Checkpoint told = open_settled(Published(options).path());
      options.settings = Options::Settings::none;
      options.group_index = Options::GroupIndex::absent;
      const Checkpoint inferred = open_settled(Published(options).path());
      CHECK(weights_of(told) == weights_of(inferred));
      const auto& query = std::get<GptqLinear>(inferred.layers[0].query);
      CHECK(query.bits == bits);
      CHECK(query.group_size == (group_size == -1 ? 256 : group_size));
      CHECK_FALSE(query.g_idx);
    }
}

TEST_CASE("a short last group is found from the settings or as a power of two") {
  Options options;
  options.ffn = 352;
  for (const bool told : {true, false}) {
    options.settings = told ? Options::Settings::quantize_config : Options::Settings::none;
    const Checkpoint checkpoint = open_settled(Published(options).path());
    const auto& down = std::get<GptqLinear>(checkpoint.layers[0].down);
    CHECK(down.groups == 3);
    CHECK(down.group_size == 128);
    CHECK_FALSE(down.g_idx);
  }
}

TEST_CASE("act-order is kept where g_idx means something and dropped where it does not") {
  Options options;
  options.act_order = true;
  const Checkpoint scattered = open_settled(Published(options).path());
  CHECK(uses_act_order(scattered));
  CHECK(scattered.report.format.ends_with(", act-order"));
  CHECK(has_line(scattered.report.decisions, {"act-order in 14 linears"}));
  const GptqMatrix matrix = read_gptq(std::get<GptqLinear>(scattered.layers[1].down));
  std::vector<int> rows(std::size_t(matrix.groups));
  for (const std::int32_t group : matrix.group) ++rows[std::size_t(group)];
  CHECK(rows == std::vector<int>({128, 128, 128}));

  options.group_size = -1;
  CHECK_FALSE(uses_act_order(open_settled(Published(options).path())));

  const Published contradicted({.act_order = true});
  contradicted.merge("quantize_config.json", R"({"desc_act": false})");
  CHECK(has_line(open_settled(contradicted.path()).report.warnings, {"desc_act false", "obeyed"}));

  const Published statics;
  statics.merge("quantize_config.json", R"({"desc_act": true})");
  const Checkpoint neighbours = open_settled(statics.path());
  CHECK(has_line(neighbours.report.decisions, {"static groups"}));
  CHECK(neighbours.report.warnings.empty());
}

TEST_CASE("a g_idx of zeros with several groups is a dummy and said to be one") {
  Options options;
  options.group_index = Options::GroupIndex::zeros;
  const Checkpoint checkpoint = open_settled(Published(options).path());
  CHECK(weights_of(checkpoint) == plain_weights());
  CHECK(has_line(checkpoint.report.warnings, {"all zero", "dummy"}));
  CHECK_FALSE(has_line(checkpoint.report.warnings, {"gibberish"}));
}

TEST_CASE("a file said to be in act-order whose g_idx is a dummy is warned of once settled") {
  Options options;
  options.group_index = Options::GroupIndex::zeros;
  options.settings = Options::Settings::none;
  options.weight_file = "Guanaco-33B-GPTQ-4bit.act-order.safetensors";
  const Published published(options);
  CHECK_FALSE(has_line(Checkpoint::open(published.path()).report.warnings, {"gibberish"}));
  CHECK(has_line(open_settled(published.path()).report.warnings, {"act-order", "gibberish"}));

  const Published declared({.group_index = Options::GroupIndex::zeros});
  declared.merge("quantize_config.json", R"({"desc_act": true})");
  CHECK(has_line(open_settled(declared.path()).report.warnings, {"act-order", "gibberish"}));
}

TEST_CASE("a file said to be in act-order without g_idx is opened with a loud warning") {
  Options options;
  options.group_index = Options::GroupIndex::absent;
  options.settings = Options::Settings::none;
  options.weight_file = "Guanaco-33B-GPTQ-4bit.act-order.safetensors";
  CHECK(has_line(Checkpoint::open(Published(options).path()).report.warnings, {"gibberish"}));
  options.group_size = -1;
  CHECK(Checkpoint::open(Published(options).path()).report.warnings.empty());
}

TEST_CASE("symmetric files tell their zero point version against their label") {
  for (const int bits : {2, 3, 4, 8})
    for (const int version : {1, 2})
      for (const int label : {0, 1, 2}) {
        CAPTURE(bits);
        CAPTURE(version);
        CAPTURE(label);
        Options options;
        options.bits = bits;
        options.layers = 1;
        options.symmetric = true;
        options.zero_points = version;
        options.label = label;
        const Published published(options);
        const Checkpoint checkpoint = open_settled(published.path());
        const auto& query = std::get<GptqLinear>(checkpoint.layers[0].query);
        CHECK((query.zero_points == ZeroPoints::v2) == (version == 2));
        CHECK(read_gptq(query).zeros ==
              std::vector<std::uint8_t>(512, std::uint8_t(1 << (bits - 1))));
        const bool mislabelled = label != 0 && label != version;
        CHECK(has_line(checkpoint.report.warnings, {"labelled", "middle"}) == mislabelled);
      }
}

TEST_CASE("zero points that differ leave the label in force and the caller beats everything") {
  const Published published({.label = 2});
  const Checkpoint labelled = open_settled(published.path());
  CHECK(std::get<GptqLinear>(labelled.layers[0].up).zero_points == ZeroPoints::v2);
  CHECK(weights_of(labelled) != plain_weights());
  const Checkpoint asked = open_settled(published.path(), ZeroPoints::v1);
  CHECK(weights_of(asked) == plain_weights());
  CHECK(has_line(asked.report.decisions, {"zero points v1", "ModelOptions"}));

  const Published symmetric({.symmetric = true});
  const Checkpoint against_data = open_settled(symmetric.path(), ZeroPoints::v2);
  CHECK(std::get<GptqLinear>(against_data.layers[0].up).zero_points == ZeroPoints::v2);

  const Published wrong_claim;
  wrong_claim.merge("quantize_config.json", R"({"sym": true})");
  CHECK(has_line(open_settled(wrong_claim.path()).report.warnings, {"sym true", "differ"}));
}

TEST_CASE("floats may be of any type in any mixture") {
  const auto exact = plain_weights();
  for (const DType scales : {DType::f16, DType::bf16, DType::f32})
    for (const DType others : {DType::f16, DType::bf16, DType::f32}) {
      Options options;
      options.scale_dtype = scales;
      options.other_dtype = others;
      options.bias = Options::Bias::values;
      options.bias_dtype = others;
      const Checkpoint checkpoint = open_settled(Published(options).path());
      const auto weights = weights_of(checkpoint);
      for (const auto& [name, values] : weights) {
        CAPTURE(name);
        double distance = 0, size = 0;
        for (std::size_t i = 0; i < values.size(); ++i) {
          distance += std::pow(values[i] - exact.at(name)[i], 2);
          size += std::pow(exact.at(name)[i], 2);
        }
        CHECK(distance < 1e-4 * size);
      }
      CHECK(checkpoint.layers[0].query.index() == 1);
      CHECK(bool(std::get<GptqLinear>(checkpoint.layers[0].query).bias));
    }
}

TEST_CASE("plain checkpoints open with grouped queries and tied embeddings") {
  for (const DType dtype : {DType::f16, DType::bf16, DType::f32}) {
    Options options;
    options.format = Options::Format::dense;
    options.dense_dtype = options.other_dtype = dtype;
    options.heads = 4;
    options.kv_heads = 2;
    options.head_dim = 64;
    options.tied_embeddings = true;
    const Checkpoint checkpoint = open_settled(Published(options).path());
    CHECK(checkpoint.report.format == std::string(name(dtype)) + " weights, not quantised");
    CHECK(checkpoint.config.kv_heads == 2);
    CHECK(outputs(checkpoint.layers[0].key) == 128);
    CHECK(weights_of(checkpoint.head) == checkpoint.embedding.read_floats());
    CHECK(checkpoint.parameters ==
          512 * 256 + 256 + 2 * (2 * 256 + 2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 384));
  }
}

TEST_CASE("a tied checkpoint that stores the output layer too ignores it") {
  Options options;
  options.config_overrides = R"({"tie_word_embeddings": true})";
  const Checkpoint checkpoint = open_settled(Published(options).path());
  CHECK(weights_of(checkpoint.head) == checkpoint.embedding.read_floats());
  CHECK(has_line(checkpoint.report.ignored, {"lm_head.weight"}));
  CHECK(has_line(checkpoint.report.warnings, {"tie_word_embeddings", "lm_head", "ignored"}));
}

TEST_CASE("an added token makes more rows than config.json says") {
  Options options;
  options.vocab = 513;
  options.config_overrides = R"({"vocab_size": 512})";
  const Checkpoint checkpoint = open_settled(Published(options).path());
  CHECK(checkpoint.config.vocab == 513);
  CHECK(outputs(checkpoint.head) == 513);
  CHECK(has_line(checkpoint.report.warnings, {"513", "vocab_size 512"}));
}

TEST_CASE("without config.json sizes come from shapes and every assumption is told") {
  Options options;
  options.config = false;
  options.heads = 4;
  options.kv_heads = 2;
  options.hidden = 512;
  options.layers = 3;
  const Checkpoint checkpoint = open_settled(Published(options).path());
  CHECK(checkpoint.config.layers == 3);
  CHECK(checkpoint.config.hidden == 512);
  CHECK(checkpoint.config.ffn == 384);
  CHECK(checkpoint.config.heads == 4);
  CHECK(checkpoint.config.kv_heads == 2);
  CHECK(checkpoint.config.head_dim == 128);
  CHECK(checkpoint.config.vocab == 512);
  CHECK(checkpoint.config.context == 2048);
  for (const char* assumed : {"128 wide", "1e-6", "10000", "2048"})
    CHECK(has_line(checkpoint.report.warnings, {"no config.json", assumed}));
  CHECK(has_line(checkpoint.report.decisions, {"no config.json", "from shapes"}));

  options.tied_embeddings = true;
  const Checkpoint tied = Checkpoint::open(Published(options).path());
  CHECK(tied.config.tied_embeddings);
  CHECK(has_line(tied.report.warnings, {"no config.json", "no lm_head", "embedding table"}));
}

TEST_CASE("tensors nobody needs are listed and counted") {
  const Published published({.rotary_buffers = true});
  published.edit([](TensorFile& file) {
    file.replace("model.layers.0.self_attn.q_proj.wf", DType::i64, {8});
    file.replace("gptq_bits", DType::i64, {});
  });
  const Checkpoint checkpoint = Checkpoint::open(published.path());
  CHECK(checkpoint.report.ignored ==
        std::vector<std::string>({"gptq_bits", "model.layers.0.self_attn.q_proj.wf",
                                  "model.layers.0.self_attn.rotary_emb.inv_freq",
                                  "model.layers.1.self_attn.rotary_emb.inv_freq"}));
  const TensorFile file(published.weights());
  std::uint64_t bytes = 0;
  for (const auto& [name, tensor] : file.tensors) bytes += tensor.bytes.size();
  CHECK(checkpoint.file_bytes == bytes);
}

TEST_CASE("a tensor name with control characters is listed as printable text") {
  const Published published;
  published.edit(
      [](TensorFile& file) { file.replace("odd\x1b[2J\nname\xc2\x9b", DType::i64, {}); });
  CHECK(Checkpoint::open(published.path()).report.ignored ==
        std::vector<std::string>({"odd\\x1b[2J\\x0aname\\xc2\\x9b"}));
}

TEST_CASE("modules may differ where the settings are dynamic and the head may be quantised") {
  const Published published({.vocab = 384});
  published.merge("quantize_config.json", R"({"dynamic": {"-:.*gate.*": {}}, "lm_head": true})");
  published.edit([](TensorFile& file) {
    const std::string gate = "model.layers.0.mlp.gate_proj.", head = "lm_head.",
                      up = "model.layers.0.mlp.up_proj.";
    for (const char* part : {"qweight", "qzeros", "scales", "g_idx"}) {
      file.tensors[head + part] = file.tensors.at(gate + part);
      file.tensors.erase(gate + part);
    }
    file.tensors.erase(head + "weight");
    file.replace(gate + "weight", DType::bf16, {384, 256});
    file.replace(up + "qweight", DType::i32, {64, 384});
    file.replace(up + "qzeros", DType::i32, {4, 96});
    file.replace(up + "scales", DType::f16, {4, 384});
    file.tensors.erase(up + "g_idx");
  });
  const Checkpoint checkpoint = open_settled(published.path());
  CHECK(std::holds_alternative<DenseLinear>(checkpoint.layers[0].gate));
  const auto& up = std::get<GptqLinear>(checkpoint.layers[0].up);
  CHECK(up.bits == 8);
  CHECK(up.group_size == 64);
  CHECK(weights_of(checkpoint.head) == plain_weights().at("model.layers.0.mlp.gate_proj"));
  CHECK(checkpoint.report.format ==
        "GPTQ 4 and 8 bit, groups of 64 and 128, zero points v1, F16 scales, 1 linears not "
        "quantised, output layer quantised");
}

TEST_CASE("biases that are not zero stay and undeclared ones are warned of") {
  Options options;
  options.bias = Options::Bias::values;
  const Checkpoint declared = open_settled(Published(options).path());
  CHECK(std::get<GptqLinear>(declared.layers[0].down).bias);
  CHECK(declared.report.warnings.empty());
  options.config_overrides = R"({"attention_bias": false, "mlp_bias": false})";
  CHECK(has_line(open_settled(Published(options).path()).report.warnings, {"14 biases"}));
}

TEST_CASE("the weight file is found in the published order") {
  const Published published({.weight_file = "model.safetensors"});
  const auto found = [&] {
    const Checkpoint checkpoint = Checkpoint::open(published.path());
    return checkpoint.embedding.file->file().path().filename().string();
  };
  const auto copy = [&](const char* name) {
    fs::copy_file(published.path() / "model.safetensors", published.path() / name);
  };
  CHECK(found() == "model.safetensors");
  copy("another.safetensors");
  CHECK(found() == "model.safetensors");
  copy("gptq_model-4bit-128g.safetensors");
  CHECK(found() == "gptq_model-4bit-128g.safetensors");
  copy("named.safetensors");
  published.merge("quantize_config.json", R"({"model_file_base_name": "named"})");
  CHECK(found() == "named.safetensors");

  const Checkpoint one = Checkpoint::open(published.path() / "another.safetensors");
  CHECK(one.embedding.file->file().path().filename() == "another.safetensors");
  CHECK(one.folder == published.path());
  CHECK(has_line(one.report.decisions, {"4 bit", "quantize_config.json"}));
}

TEST_CASE("opening reads no weights and says what is still open") {
  const Checkpoint checkpoint = Checkpoint::open(Published({.act_order = true}).path());
  CHECK(checkpoint.report.format.find("unless the data say otherwise") != std::string::npos);
  CHECK(checkpoint.report.format.find("order open") != std::string::npos);
}

TEST_CASE("settling reports progress and can be cancelled without a trace") {
  const Published published({.group_index = Options::GroupIndex::zeros});
  Checkpoint checkpoint = Checkpoint::open(published.path());
  const LoadReport before = checkpoint.report;
  check_refused(ErrorCode::cancelled, {"cancelled"}, [&] {
    checkpoint.settle([calls = 0](std::uint64_t, std::uint64_t) mutable { return ++calls < 5; });
  });
  CHECK(checkpoint.report.warnings == before.warnings);
  CHECK(checkpoint.report.format == before.format);
  CHECK(std::get<GptqLinear>(checkpoint.layers[0].query).g_idx);
  std::uint64_t last = 0;
  checkpoint.settle([&](std::uint64_t done, std::uint64_t total) {
    CHECK(done > last);
    CHECK(done <= total);
    last = done;
    return true;
  });
  CHECK_FALSE(std::get<GptqLinear>(checkpoint.layers[0].query).g_idx);
}

}  // namespace
}  // namespace guanaco
