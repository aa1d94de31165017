#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include <guanaco/model.h>

#include "ceilings.h"
#include "kernels.h"

namespace bench {

/// A prompt, or steps of decoding.
struct TokenRow {
  std::string what;       ///< "decode, depth 512"
  int sessions = 1;       ///< decoding together; 0: a prompt
  int tokens = 0;         ///< of a step or of the prompt
  double depth = 0;       ///< mean tokens in each session's cache
  double seconds = 0;     ///< of a step or of the prompt
  double bytes = 0;       ///< a step has to read: weights and caches
  double operations = 0;  ///< floating point, of a prompt's products
  /// Seconds of a step that the caller is busy, measured with results that are there already; 0:
  /// the CPU does the work.
  double host = 0;
  double cpu = 0;  ///< seconds of the calling thread in a step, waiting included where it spins
};

/// Where the time of a step above its floor goes, in seconds: stages that wait for each other, the
/// cache, logits and choice, and the rest (launching, what the host does).
struct Loss {
  double boundaries = 0, attention = 0, head = 0, other = 0;
  double boundary = 0;  ///< of one stage of one layer
};

struct ModelRows {
  std::string name;
  guanaco::ModelInfo info;
  double load = 0;         ///< seconds, from the page cache
  double first_token = 0;  ///< seconds from the start of a process to its first token, likewise
  std::vector<TokenRow> rows;
};

struct TokenOptions {
  guanaco::ModelOptions model;
  std::string device;       ///< as on the command line, for a process of its own
  std::vector<int> depths;  ///< to decode at; empty: 0, 512, 2000 on a GPU, 0 and 512 on a CPU
  int steps = 64;           ///< of a measurement
  bool quick = false;
  std::function<bool()> interrupted;
};

/// Measures a model in a folder. On a CPU, raises ceilings.read whenever the machine's memory shows
/// itself faster. Throws what the library throws, and cancelled.
ModelRows measure_model(const std::filesystem::path& folder, const std::string& name,
                        Ceilings& ceilings, const TokenOptions& options);

/// The same of a synthetic checkpoint (named_shape()) in a temporary folder.
ModelRows measure_shape(const std::string& shape, Ceilings& ceilings, const TokenOptions& options);

}  // namespace bench
