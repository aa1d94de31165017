#include <fstream>

#include <guanaco/model.h>

#include "checkpoint_fixture.h"

// Folders that contradict themselves, are hostile, or hold what this library does not read: each is
// refused with a line that names the culprit.

namespace guanaco {
namespace {

namespace fs = std::filesystem;
using Options = SyntheticOptions;

const std::string kQuery = "model.layers.0.self_attn.q_proj";
const std::string kDown = "model.layers.1.mlp.down_proj";

/// Checks that the plain checkpoint is refused once its file is changed so.
void check_edit_refused(ErrorCode code, std::initializer_list<const char*> parts,
                        const std::function<void(TensorFile&)>& change,
                        const Options& options = {}) {
  const Published published(options);
  published.edit(change);
  check_refused(code, parts, [&] { Checkpoint::open(published.path()); });
}

void check_setting_refused(ErrorCode code, std::initializer_list<const char*> parts,
                           const std::string& file, const std::string& patch) {
  const Published published;
  published.merge(file, patch);
  check_refused(code, parts, [&] { Checkpoint::open(published.path()); });
}

TEST_CASE("every missing tensor is named") {
  for (const std::string& name :
       {std::string("model.embed_tokens.weight"), std::string("model.norm.weight"),
        std::string("lm_head.weight"), std::string("model.layers.1.input_layernorm.weight"),
        std::string("model.layers.0.post_attention_layernorm.weight"), kQuery + ".qweight",
        kDown + ".qzeros", kDown + ".scales"})
    check_edit_refused(ErrorCode::malformed, {name.c_str(), "missing"},
                       [&](TensorFile& file) { file.tensors.erase(name); });
}

TEST_CASE("every wrong shape is named with what was expected and found") {
  const auto refuse = [](const std::string& name, DType dtype, std::vector<std::uint64_t> shape,
                         const char* expected, const char* found) {
    check_edit_refused(ErrorCode::malformed, {name.c_str(), expected, found},
                       [&](TensorFile& file) { file.replace(name, dtype, shape); });
  };
  refuse("model.norm.weight", DType::f16, {255}, "[256]", "[255]");
  refuse("model.norm.weight", DType::f16, {1, 256}, "[256]", "[1, 256]");
  refuse("model.embed_tokens.weight", DType::f16, {512, 255}, "[512, 256]", "[512, 255]");
  refuse("model.embed_tokens.weight", DType::f16, {0, 256}, "1 to", "found 0");
  refuse("lm_head.weight", DType::f16, {513, 256}, "[512, 256]", "[513, 256]");
  refuse(kQuery + ".qweight", DType::i32, {33, 256}, "[256 * bits / 32, 256]", "[33, 256]");
  refuse(kQuery + ".qweight", DType::i32, {32, 128}, "[256 * bits / 32, 256]", "[32, 128]");
  refuse(kQuery + ".qweight", DType::i32, {8192}, "[256 * bits / 32, 256]", "[8192]");
  refuse(kQuery + ".qweight", DType::i32, {0, 256}, "[256 * bits / 32, 256]", "[0, 256]");
  refuse(kQuery + ".qzeros", DType::i32, {2, 33}, "[groups, 32]", "[2, 33]");
  refuse(kQuery + ".qzeros", DType::i32, {0, 32}, "[groups, 32]", "[0, 32]");
  refuse(kQuery + ".scales", DType::f16, {3, 256}, "[2, 256]", "[3, 256]");
  refuse(kQuery + ".g_idx", DType::i32, {255}, "[256]", "[255]");
  refuse(kQuery + ".bias", DType::f16, {255}, "[256]", "[255]");
}

TEST_CASE("types that a tensor cannot have are refused") {
  const auto refuse = [](const std::string& name, DType dtype, std::vector<std::uint64_t> shape,
                         const char* found) {
    check_edit_refused(ErrorCode::unsupported, {name.c_str(), "expected", found},
                       [&](TensorFile& file) { file.replace(name, dtype, shape); });
  };
  refuse("model.norm.weight", DType::i32, {256}, "I32");
  refuse("model.embed_tokens.weight", DType::f8_e4m3, {512, 256}, "F8_E4M3");
  refuse("lm_head.weight", DType::f64, {512, 256}, "F64");
  refuse(kQuery + ".qweight", DType::i64, {32, 256}, "I64");
  refuse(kQuery + ".qzeros", DType::u32, {2, 32}, "U32");
  refuse(kQuery + ".scales", DType::f64, {2, 256}, "F64");
  refuse(kQuery + ".g_idx", DType::i64, {256}, "I64");
  refuse(kQuery + ".bias", DType::i8, {256}, "I8");
}

TEST_CASE("settings and shapes that contradict each other are both named") {
  check_setting_refused(ErrorCode::malformed,
                        {"quantize_config.json says 8", "qweight", "means 4 bits", "[32, 256]"},
                        "quantize_config.json", R"({"bits": 8})");
  check_setting_refused(ErrorCode::malformed,
                        {"quantize_config.json says group_size 32", "qzeros", "2 groups"},
                        "quantize_config.json", R"({"group_size": 32})");
  check_setting_refused(ErrorCode::malformed, {"group_size -1", "2 groups"}, "quantize_config.json",
                        R"({"group_size": -1})");
  check_setting_refused(ErrorCode::malformed, {"quantization_config says 2", "4 bits"},
                        "config.json", R"({"quantization_config": {"bits": 2}})");
  check_setting_refused(ErrorCode::malformed, {"num_hidden_layers 1", "2 layers"}, "config.json",
                        R"({"num_hidden_layers": 1})");
  check_setting_refused(ErrorCode::malformed, {"model.layers.2.input_layernorm.weight", "missing"},
                        "config.json", R"({"num_hidden_layers": 3})");
  check_setting_refused(ErrorCode::malformed, {"model.embed_tokens.weight", "[512, 512]"},
                        "config.json", R"({"hidden_size": 512})");
  check_setting_refused(ErrorCode::malformed, {"gate_proj", "512"}, "config.json",
                        R"({"intermediate_size": 512})");
  check_setting_refused(ErrorCode::malformed, {"k_proj.qweight", "128"}, "config.json",
                        R"({"num_key_value_heads": 1})");
  check_setting_refused(ErrorCode::malformed, {"q_proj.bias", "missing", "declares"}, "config.json",
                        R"({"attention_bias": true})");
  check_setting_refused(ErrorCode::malformed, {"gate_proj.bias", "missing", "declares"},
                        "config.json", R"({"mlp_bias": true})");
}

TEST_CASE("a linear is either packed or plain") {
  check_edit_refused(ErrorCode::malformed, {kQuery.c_str(), "both"}, [](TensorFile& file) {
    file.replace(kQuery + ".weight", DType::f16, {256, 256});
  });
}

TEST_CASE("groups that no group size gives are refused where nothing tells") {
  check_edit_refused(ErrorCode::malformed, {kDown.c_str(), "384 inputs", "100 groups"},
                     [](TensorFile& file) {
                       file.replace(kDown + ".qzeros", DType::i32, {100, 32});
                       file.replace(kDown + ".scales", DType::f16, {100, 256});
                     },
                     {.settings = Options::Settings::none});
}

TEST_CASE("the tensors of other quantisers are refused by name") {
  for (const auto& [suffix, quantiser] :
       std::vector<std::pair<const char*, const char*>>{{".zeros", "v0"},
                                                        {".q_weight", "exl2"},
                                                        {".trellis", "exl3"},
                                                        {".B", "marlin"},
                                                        {".weight_packed", "compressed-tensors"},
                                                        {".weight.absmax", "bitsandbytes"},
                                                        {".SCB", "bitsandbytes"},
                                                        {".weight_scale", "fp8"},
                                                        {".weight_scale_inv", "fp8"}})
    check_edit_refused(ErrorCode::unsupported, {kQuery.c_str(), quantiser},
                       [&, suffix = suffix](TensorFile& file) {
                         file.tensors.erase(kQuery + ".qzeros");
                         file.replace(kQuery + suffix, DType::f32, {256, 1});
                       });
  check_edit_refused(ErrorCode::unsupported, {kQuery.c_str(), "awq"}, [](TensorFile& file) {
    file.replace(kQuery + ".qweight", DType::i32, {256, 32});
  });
  check_setting_refused(ErrorCode::unsupported, {"quantize_config.json", "marlin"},
                        "quantize_config.json", R"({"checkpoint_format": "marlin"})");
  check_setting_refused(ErrorCode::unsupported, {"config.json", "awq"}, "config.json",
                        R"({"quantization_config": {"quant_method": "awq"}})");
}

TEST_CASE("group indices out of range are refused with tensor row and value") {
  for (const std::int32_t bad : {-1, 2, 2147483647}) {
    const Published published;
    published.edit([&](TensorFile& file) { file.data<std::int32_t>(kQuery + ".g_idx")[17] = bad; });
    Checkpoint checkpoint = Checkpoint::open(published.path());
    const std::string value = "found " + std::to_string(bad);
    check_refused(ErrorCode::malformed, {"q_proj.g_idx", "row 17", value.c_str(), "0 to 1"},
                  [&] { checkpoint.settle({}); });
    CHECK(std::get<GptqLinear>(checkpoint.layers[0].query).g_idx);
  }
}

TEST_CASE("without config.json shapes that are no LLaMA are refused") {
  const auto refuse = [](std::initializer_list<const char*> parts,
                         const std::function<void(TensorFile&)>& change) {
    check_edit_refused(ErrorCode::malformed, parts, change, {.config = false});
  };
  refuse({"model.norm.weight", "missing"},
         [](TensorFile& file) { file.tensors.erase("model.norm.weight"); });
  refuse({"model.embed_tokens.weight", "dimensions"},
         [](TensorFile& file) { file.replace("model.embed_tokens.weight", DType::f16, {512}); });
  refuse({"layers", "found 2000000001"}, [](TensorFile& file) {
    file.replace("model.layers.2000000000.input_layernorm.weight", DType::f16, {256});
  });
  refuse({"heads", "128 wide", "96"}, [](TensorFile& file) {
    file.replace("model.layers.0.self_attn.k_proj.qweight", DType::i32, {32, 96});
  });
  refuse({"gate_proj.weight", "missing"},
         [](TensorFile& file) { file.tensors.erase("model.layers.0.mlp.gate_proj.qweight"); });
}

TEST_CASE("a path that is no checkpoint is refused") {
  const Published published;
  const fs::path& path = published.path();
  check_refused(ErrorCode::not_found, {"nowhere", "no such"},
                [&] { Checkpoint::open(path / "nowhere"); });
  check_refused(ErrorCode::not_found, {"no such"}, [&] { Checkpoint::open(""); });
  check_refused(ErrorCode::unsupported, {"config.json", "expected a folder"},
                [&] { Checkpoint::open(path / "config.json"); });
  published.write("model.bin", "");
  check_refused(ErrorCode::unsupported, {"model.bin", "pickle"},
                [&] { Checkpoint::open(path / "model.bin"); });
  for (const char* name : {"llama.gguf", "guanaco.ggmlv3.q4_0.bin", "ggml-model-q4_0.bin"}) {
    published.write(name, "");
    check_refused(ErrorCode::unsupported, {name, "GGUF and GGML", "expected .safetensors"},
                  [&] { Checkpoint::open(path / name); });
  }
  check_refused(ErrorCode::malformed, {"config.json"}, [&] {
    published.write("config.json", "{\"hidden_size\": 256, \"hidden_size\": 512}");
    Checkpoint::open(path);
  });
  published.write("config.json", "");
  check_refused(ErrorCode::malformed, {"config.json"}, [&] { Checkpoint::open(path); });
}

TEST_CASE("a folder without one certain weight file is refused and the candidates are listed") {
  const Published published({.weight_file = "b.safetensors"});
  const fs::path& path = published.path();
  fs::copy_file(path / "b.safetensors", path / "a.safetensors");
  check_refused(ErrorCode::not_found, {"a.safetensors, b.safetensors", "name the one"},
                [&] { Checkpoint::open(path); });
  fs::remove(path / "a.safetensors");
  fs::remove(path / "b.safetensors");
  check_refused(ErrorCode::not_found, {"found none"}, [&] { Checkpoint::open(path); });
  published.write("pytorch_model.bin", "");
  check_refused(ErrorCode::unsupported, {"pytorch_model.bin", "pickle"},
                [&] { Checkpoint::open(path); });
  fs::remove(path / "pytorch_model.bin");
  published.write("llama.pt", "");
  check_refused(ErrorCode::unsupported, {"llama.pt", "pickle"}, [&] { Checkpoint::open(path); });
  fs::remove(path / "llama.pt");
  for (const char* name : {"llama.gguf", "guanaco.ggmlv3.q4_0.bin", "ggml-model-q4_0.bin"}) {
    published.write(name, "");
    check_refused(ErrorCode::unsupported, {name, "GGUF and GGML", "expected .safetensors"},
                  [&] { Checkpoint::open(path); });
    fs::remove(path / name);
  }
  for (const char* name : {"../b", "/etc/b", "a/b", "a\\b", "c:b"}) {
    published.merge("quantize_config.json",
                    nlohmann::json({{"model_file_base_name", name}}).dump());
    check_refused(ErrorCode::malformed, {"model_file_base_name", "same folder"},
                  [&] { Checkpoint::open(path); });
  }
}

TEST_CASE("an index may only name what is there and beside it") {
  const Published published({.shards = 3});
  const std::string index = "model.safetensors.index.json";
  const nlohmann::json good = read_dom(published.path() / index);
  const auto refuse = [&](ErrorCode code, std::initializer_list<const char*> parts,
                          const std::function<void(nlohmann::json&)>& change) {
    nlohmann::json changed = good;
    change(changed);
    published.write(index, changed.dump());
    check_refused(code, parts, [&] { Checkpoint::open(published.path()); });
  };
  for (const char* hostile : {"../model-00001-of-00003.safetensors", "..", ".", "", "/etc/passwd",
                              "a/b.safetensors", "a\\b.safetensors", "C:model.safetensors"})
    refuse(ErrorCode::malformed, {"index.json", "same folder"},
           [&](nlohmann::json& json) { json["weight_map"]["model.norm.weight"] = hostile; });
  refuse(ErrorCode::not_found, {"index.json", "missing.safetensors"}, [](nlohmann::json& json) {
    json["weight_map"]["model.norm.weight"] = "missing.safetensors";
  });
  refuse(ErrorCode::malformed, {"model.norm.weight", "model-00001-of-00003", "is not"},
         [](nlohmann::json& json) {
           json["weight_map"]["model.norm.weight"] = "model-00001-of-00003.safetensors";
         });
  refuse(ErrorCode::malformed, {"model.norm.weight", "name of a file"},
         [](nlohmann::json& json) { json["weight_map"]["model.norm.weight"] = 3; });
  refuse(ErrorCode::malformed, {"weight_map"},
         [](nlohmann::json& json) { json.erase("weight_map"); });
  refuse(ErrorCode::malformed, {"weight_map"},
         [](nlohmann::json& json) { json["weight_map"] = nlohmann::json::object(); });
  refuse(ErrorCode::malformed, {"object"},
         [](nlohmann::json& json) { json = nlohmann::json::array(); });
  published.write(index, "{");
  check_refused(ErrorCode::malformed, {"index.json"}, [&] { Checkpoint::open(published.path()); });

  published.write(index, good.dump());
  const fs::path first = published.path() / "model-00001-of-00003.safetensors";
  TensorFile shard(first);
  shard.replace("model.norm.weight", DType::f16, {256});
  shard.write(first);
  check_refused(ErrorCode::malformed, {"model.norm.weight", "both", "00001-of", "00003-of"},
                [&] { Checkpoint::open(published.path()); });
}

TEST_CASE("a folder named with a line break stays on one line of every message") {
  const TemporaryFolder outer;
  const fs::path folder = outer.path() / "two\nlines";
  fs::create_directory(folder);
  check_refused(ErrorCode::not_found, {"two\\x0alines"}, [&] { Model::load(folder); });

  SyntheticOptions options;
  options.tokenizer = false;
  write_synthetic(folder, options);
  const auto& warnings = Model::inspect(folder).report.warnings;
  CHECK(has_line(warnings, {"two\\x0alines", "no tokenizer.model"}));
  CHECK_FALSE(has_line(warnings, {"\n"}));
  for (const char* contents : {"", "no protobuf"}) {
    std::ofstream(folder / "tokenizer.model", std::ios::binary) << contents;
    check_refused(ErrorCode::malformed, {"two\\x0alines", "SentencePiece"},
                  [&] { Model::load(folder); });
  }
}

TEST_CASE("the end of a text may be any id of a declared list") {
  const TemporaryFolder folder;
  const auto warned = [&](const char* eos) {
    SyntheticOptions options;
    options.config_overrides = eos;
    write_synthetic(folder.path(), options);
    return has_line(Model::inspect(folder.path()).report.warnings, {"eos", "tokenizer.model has"});
  };
  CHECK_FALSE(warned(R"({"eos_token_id": [9, 2]})"));
  CHECK(warned(R"({"eos_token_id": [9, 8]})"));
}

TEST_CASE("a weight file that is cut short is refused") {
  const Published published;
  fs::resize_file(published.weights(), fs::file_size(published.weights()) - 1);
  check_refused(ErrorCode::malformed, {"safetensors"}, [&] { Checkpoint::open(published.path()); });
}

}  // namespace
}  // namespace guanaco
