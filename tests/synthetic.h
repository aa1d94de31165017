#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "io/safetensors.h"
#include "io/safetensors_writer.h"

namespace guanaco {

/// What a synthetic checkpoint looks like: sizes, dialect and files. The default is the published
/// GPTQ shape of reference/formats.md 1.7 in miniature.
struct SyntheticOptions {
  // Shape.
  int layers = 2, hidden = 256, ffn = 384, heads = 2, kv_heads = 2, head_dim = 128, vocab = 512;
  int context = 2048;
  bool tied_embeddings = false;
  // How linear weights are stored.
  enum class Format { gptq, dense } format = Format::gptq;
  DType dense_dtype = DType::f16;  ///< of linear weights when dense
  int bits = 4;                    ///< 2, 3, 4, 8
  int group_size = 128;            ///< -1: one group for the whole column
  bool act_order = false;  ///< g_idx is a seeded permutation, shared by linears with the same input
  bool symmetric = false;  ///< every zero point is 2^(bits - 1)
  enum class GroupIndex { absent, present, zeros } group_index = GroupIndex::present;
  int zero_points = 1;  ///< 1: v1 files, 2: gptq_v2
  int label = 0;        ///< zero point version the settings claim; 0: the true one
  DType scale_dtype = DType::f16;
  DType other_dtype = DType::f16;  ///< embeddings, norms, head
  enum class Bias { none, zeros, values } bias = Bias::none;
  DType bias_dtype = DType::f16;
  bool rotary_buffers = false;  ///< self_attn.rotary_emb.inv_freq, as old files have
  // Files.
  enum class Settings {
    quantize_config,
    in_config,
    both,
    none
  } settings = Settings::quantize_config;
  bool config = true;  ///< write config.json
  std::string config_overrides =
      "";                        ///< a JSON object merged over config.json (RFC 7386), "" for none
  int shards = 1;                ///< > 1: model-00001-of-0000N.safetensors and an index
  std::string weight_file = "";  ///< name of a single file; "" picks the published one
  bool tokenizer = true;         ///< write a byte-level tokenizer.model of min(vocab, 32000) pieces
  std::uint64_t seed = 1;
};

/// Published sizes by name: "7b", "13b", "33b", "65b", "tiny". Throws invalid_argument listing the
/// names.
SyntheticOptions synthetic_shape(const std::string& name);

/// The same model in the dialect that TheBloke's file of 2023 most likely has
/// (reference/formats.md 1.2, v1a): F32 scales, all-zero F32 bias, no g_idx, and no word about the
/// quantisation but the file's name.
SyntheticOptions thebloke_dialect(SyntheticOptions options);

/// Name, type and shape of every tensor, in the order of the files. Writes nothing. Throws
/// invalid_argument for options that contradict each other or no checkpoint can have.
std::vector<SafetensorsWriter::Tensor> planned_tensors(const SyntheticOptions& options);

/// Writes a folder. Weights are random, scaled so that activations keep their size from layer to
/// layer; the same options give the same bytes. Streams: holds no more than a few MiB of the model.
/// `progress` gets tensor bytes written and in all, and returns false to give up: cancelled. After
/// any throw nothing of what was written is left.
void write_synthetic(const std::filesystem::path& folder, const SyntheticOptions& options,
                     const std::function<bool(std::uint64_t, std::uint64_t)>& progress = {});

/// A folder that is removed with its contents.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const noexcept { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace guanaco
