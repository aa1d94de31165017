#pragma once

#include <filesystem>

#include <nlohmann/json.hpp>

#include "io/file.h"

namespace guanaco {

/// A JSON file as nlohmann's value, which a test may look into and change freely.
inline nlohmann::json read_dom(const std::filesystem::path& path) {
  return nlohmann::json::parse(read_text(path, 1u << 30));
}

}  // namespace guanaco
