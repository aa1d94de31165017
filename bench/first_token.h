#pragma once

#include <filesystem>
#include <string>

#include <guanaco/model.h>

namespace bench {

/// Seconds from the start of a process of this program (with --first-token) to the first token of a
/// model. Throws guanaco::Error internal if that process fails, which it explains on stderr.
double first_token_seconds(const std::filesystem::path& folder, const std::string& device,
                           int threads);

/// What that process does: loads the model, decodes one token and writes a line.
void first_token(const std::filesystem::path& folder, const guanaco::ModelOptions& options);

}  // namespace bench
