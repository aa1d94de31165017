#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include <guanaco/model.h>

#include "ceilings.h"
#include "synthetic.h"

namespace bench {

/// One part of the forward pass at one width.
struct KernelRow {
  std::string shape;  ///< "13b"
  /// qkv, attend, o, gate+up, down: in a pass of its own, with what it costs to launch one; launch:
  /// a pass that does nothing. attention (the first three in order), mlp (the next two), layer (all
  /// five): inside of one pass. head: logits and greedy choice at the end of a pass.
  std::string stage;
  std::string size;  ///< "15360 x 5120"
  int rows = 1;      ///< tokens in the pass, each of its own sequence; one sequence in a prompt
  int depth = 0;     ///< tokens in the cache before them
  double bytes = 0;  ///< weights and cache that have to be read
  double operations = 0;                  ///< floating point, of the products
  double least = 0, median = 0, p90 = 0;  ///< seconds

  bool prompt() const { return rows > kFewRows; }
  static constexpr int kFewRows = 8;
};

/// The least time the row could take, in seconds: by what it reads; for a prompt, by what it
/// multiplies if that takes longer. 0: not known, because a ceiling was not measured.
double floor_seconds(const KernelRow& row, const Ceilings& ceilings);

struct KernelOptions {
  guanaco::ModelOptions model;
  std::string filter = ".";  ///< regular expression over "13b/qkv/x1/d16"
  bool quick = false;        ///< fewer samples
  std::function<bool()> interrupted;
};

/// The shapes `--shape` and `--kernels` take: those of synthetic_shape(), alone or with
/// "-act-order" or "-fp16". Throws guanaco::Error invalid_argument.
guanaco::SyntheticOptions named_shape(const std::string& name);

/// Measures the stages of a model at 1 and 8 rows, shallow and deep, and in a prompt, through the
/// library's backend. Weights rotate through more memory than any cache holds. Throws what loading
/// throws, and cancelled.
std::vector<KernelRow> measure_kernels(const std::string& shape, const Ceilings& ceilings,
                                       const KernelOptions& options);

}  // namespace bench
