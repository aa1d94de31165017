#pragma once

#include <optional>
#include <span>

#include <nlohmann/json.hpp>

#include "ceilings.h"
#include "kernels.h"
#include "tokens.h"

namespace bench {

/// Where a step of decoding loses time, from the kernel rows of the same shape and number of rows;
/// nothing if they were not measured.
std::optional<Loss> explain(const TokenRow& row, const ModelRows& model,
                            std::span<const KernelRow> kernels, const Ceilings& ceilings);

/// The roofline table of reference/performance.md 13.2, part by part, on stdout.
void print_ceilings(const Ceilings& ceilings);
void print_kernels(std::span<const KernelRow> rows, const Ceilings& ceilings);
void print_tokens(const ModelRows& model, std::span<const KernelRow> kernels,
                  const Ceilings& ceilings);

/// The same numbers: seconds, bytes, and shares of a ceiling from 0 to 1.
nlohmann::json to_json(const Ceilings& ceilings);
nlohmann::json to_json(const KernelRow& row, const Ceilings& ceilings);
nlohmann::json to_json(const ModelRows& model, std::span<const KernelRow> kernels,
                       const Ceilings& ceilings);

}  // namespace bench
