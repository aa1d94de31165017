#pragma once

#include <filesystem>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace guanaco {

using Json = nlohmann::json;

/// Reads a JSON text strictly: valid UTF-8, no duplicate keys, nothing but white space after it, at
/// most 32 levels deep. `origin` names the text in errors. Throws malformed.
Json parse_json(std::string_view text, std::string_view origin);

/// A configuration file of at most 16 MiB. Throws not_found, malformed.
Json read_json(const std::filesystem::path& path);

}  // namespace guanaco
