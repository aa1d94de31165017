#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace guanaco {

/// A JSON value. nlohmann-json parses for us, but its values stay out of the library: the
/// destructor of theirs allocates, and where that fails the process ends. This one's allocates
/// nothing and recurses as deep as the value is nested, which parse_json bounds.
struct Json {
  using Array = std::vector<Json>;
  using Object = std::map<std::string, Json, std::less<>>;  // libstdc++ and libc++ allow it here

  /// A number has the first type of the three that holds what the text says.
  std::variant<std::nullptr_t, bool, std::int64_t, std::uint64_t, double, std::string, Array,
               Object>
      value;

  /// The value as T, one of the types above; null if it is of another.
  template <typename T>
  const T* get() const noexcept {
    return std::get_if<T>(&value);
  }
  bool is_null() const noexcept { return get<std::nullptr_t>() != nullptr; }
  std::optional<double> number() const noexcept;           ///< of any of the three types
  const Json* find(std::string_view name) const noexcept;  ///< in an object; else null

  /// Numbers are the same if they are as doubles: 1 is 1.0.
  friend bool operator==(const Json& a, const Json& b);
};

/// Reads a JSON text strictly: valid UTF-8, no duplicate keys, nothing but white space after it, at
/// most 32 levels deep. `origin` names the text in errors. Throws malformed.
Json parse_json(std::string_view text, std::string_view origin);

/// A configuration file of at most 16 MiB. Throws not_found, malformed.
Json read_json(const std::filesystem::path& path);

/// The shortest JSON text of a value, on one line. Bytes that are no UTF-8 become U+FFFD.
std::string to_text(const Json& json);

}  // namespace guanaco
