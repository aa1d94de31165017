#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "checkpoint/config.h"
#include "checkpoint/folder.h"
#include "checkpoint/linear.h"

namespace guanaco {

/// Takes a tensor of floats with exactly this shape. Throws malformed (missing, another shape),
/// unsupported (no F16, BF16 or F32).
StoredTensor take_floats(TensorTable& tensors, const std::string& name,
                         const std::vector<std::uint64_t>& shape);

/// Takes all tensors of the linear layer `name`, quantised or not, and finds bits and groups from
/// their shapes (reference/formats.md 1.6), checked against the settings. A bias is taken if there
/// is one. Throws malformed naming the tensor and what contradicts it, unsupported naming the
/// quantiser the tensors are from.
Linear take_linear(TensorTable& tensors, const std::string& name, int inputs, int outputs,
                   const QuantizationConfig& settings);

/// Every size of a checkpoint without a config.json, from the shapes of its tensors
/// (reference/formats.md 1.6.5). Throws malformed.
LlamaConfig infer_config(TensorTable& tensors, LoadReport& report);

}  // namespace guanaco
