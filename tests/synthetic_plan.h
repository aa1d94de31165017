#pragma once

#include <functional>
#include <vector>

#include "synthetic.h"
#include "synthetic_weights.h"

namespace guanaco {

/// A tensor and how to make its bytes.
struct PlannedTensor {
  SafetensorsWriter::Tensor tensor;
  std::function<void(const Sink&)> write;
};

/// The tensors of a checkpoint in the order of the forward pass. Throws invalid_argument for
/// options that contradict each other or no checkpoint can have.
std::vector<PlannedTensor> plan(const SyntheticOptions& options);

}  // namespace guanaco
