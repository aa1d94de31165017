#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <guanaco/tokenizer.h>

namespace guanaco {

struct LoadedModel;  // what copies of a Model share; the library's own

enum class Device {
  automatic,
  cpu,
  cuda
};  ///< automatic: the first usable CUDA device, else the CPU
enum class Severity { debug, info, warning };

/// What a GPTQ file's zero points mean: v1 files hold the zero point minus one, as GPTQ-for-LLaMa
/// and AutoGPTQ write them, v2 files the zero point itself, GPTQModel's "gptq_v2". automatic: as
/// the file's settings say, corrected by the data where that is certain.
enum class ZeroPoints { automatic, v1, v2 };

struct ModelOptions {
  Device device = Device::automatic;
  int cuda_device = 0;  ///< ordinal, as in cudaSetDevice
  int threads = 0;  ///< CPU only, 0..1024; 0 = as many as the machine has cores for this process
  int rows = 512;   ///< 1..4096; most tokens in one pass over the weights; longer feeds are split
  ZeroPoints zero_points = ZeroPoints::automatic;
  /// Bytes asked for so far, which on a GPU are read while more is asked for, and bytes in all; on
  /// the thread that loads. Return false to give up: load() throws cancelled.
  std::function<bool(std::uint64_t done, std::uint64_t total)> progress = {};
  /// Gets one line at a time, on the thread that loads. Empty = silent; the library itself never
  /// prints.
  std::function<void(Severity, std::string_view line)> log = {};
};

/// Names as in arXiv:2302.13971, section 2.
struct ModelInfo {
  int layers = 0, heads = 0, kv_heads = 0, head_dim = 0, hidden = 0, ffn = 0;
  int vocab = 0;    ///< rows of the output layer; may exceed Tokenizer::size()
  int context = 0;  ///< positions the checkpoint was trained for
  int bits = 0;     ///< of a quantised linear weight: 2, 3, 4, 8; 16 or 32 where none is quantised
  int group_size = 0;  ///< input rows sharing one scale; -1 = the whole column; 0 = not quantised
  bool act_order =
      false;  ///< groups are not runs of neighbouring rows (arXiv:2210.17323, section 4)
  std::uint64_t parameters = 0;
  std::uint64_t file_bytes = 0;          ///< all tensors of the checkpoint
  std::uint64_t weight_bytes = 0;        ///< held on the device by packed weights
  std::uint64_t bytes_per_token = 0;     ///< of those, what one decoding step must read
  std::uint64_t kv_bytes_per_token = 0;  ///< the cache of one position
  int threads = 0;                       ///< that compute on the CPU; 0 on a GPU
  std::string device;                    ///< where it runs, "CPU, AVX-512, 2 threads"
};

/// What the loader found, decided and left out.
struct LoadReport {
  std::string format;                  ///< "GPTQ 4 bit, groups of 128, zero points v1, F16 scales"
  std::vector<std::string> decisions;  ///< where each setting came from, one line each
  std::vector<std::string> warnings;   ///< contradictions and how they were resolved, and guesses
  std::vector<std::string> ignored;    ///< names of tensors that were not used
};

/// Bytes, exact to a few pages. What a session needs comes on top for every further session.
struct MemoryEstimate {
  std::uint64_t weights = 0;  ///< packed weights
  std::uint64_t scratch = 0;  ///< what one pass of ModelOptions::rows tokens needs
  std::uint64_t session = 0;  ///< cache and logits of one session
  std::uint64_t loading = 0;  ///< host memory used while loading only
  std::uint64_t host = 0;     ///< of weights + scratch + session, the part in host memory
  std::uint64_t device = 0;   ///< and the part in device memory; 0 on the CPU
};

/// The weights of one LLaMA checkpoint; immutable. A handle: copies share the weights, which go
/// away with the last Model, Session or Generation using them. Any member, from any thread.
class Model {
 public:
  /// Loads a Hugging Face folder, or one .safetensors file with its neighbours. The folder is taken
  /// as it was published: README.md lists the dialects. Throws not_found, malformed (tensor,
  /// expected and found), unsupported, out_of_memory, device, cancelled; then nothing stays loaded.
  static Model load(const std::filesystem::path& path, const ModelOptions& options = {});

  /// What load() would find, from the headers alone: no weight is read, so what only the weights
  /// can tell (whether g_idx is trivial, whether a mislabelled file needs other zero points) is
  /// said to be open.
  struct Inspection;
  static Inspection inspect(const std::filesystem::path& path, const ModelOptions& options = {});

  /// The memory that load() and a Session of `context` tokens will use, from the headers alone.
  static MemoryEstimate estimate(const std::filesystem::path& path,
                                 const ModelOptions& options = {}, int context = 2048);

  const ModelInfo& info() const noexcept;
  const LoadReport& report() const noexcept;

  /// Throws not_found if the folder has no tokenizer.model; token ids work without one.
  const Tokenizer& tokenizer() const;
  bool has_tokenizer() const noexcept;

 private:
  friend struct LoadedModel;
  explicit Model(std::shared_ptr<LoadedModel> loaded) : loaded_(std::move(loaded)) {}
  std::shared_ptr<LoadedModel> loaded_;
};

struct Model::Inspection {
  ModelInfo info;  ///< weight_bytes and bytes_per_token as they will be
  LoadReport report;
};

}  // namespace guanaco
