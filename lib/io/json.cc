#include "io/json.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "io/file.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

constexpr int kDepth = 32;
constexpr int kValues = 1'000'000;  // a value costs far more memory than its two bytes of text
constexpr std::uint64_t kFileBytes = 16u << 20;

}  // namespace

Json parse_json(std::string_view text, std::string_view origin) {
  const std::string name = printable(origin);
  const std::size_t invalid = find_invalid_utf8(text);
  require(invalid == std::string_view::npos, ErrorCode::malformed,
          "{}: expected UTF-8, found another byte at {}", name, invalid);
  // The parser would take a zero byte for the end of the text.
  require(text.find('\0') == std::string_view::npos, ErrorCode::malformed,
          "{}: expected JSON, found a zero byte at {}", name, text.find('\0'));

  std::vector<std::set<std::string>> keys;  // of every object that is open
  int values = 0;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start)
      require(depth < kDepth, ErrorCode::malformed, "{}: nested more than {} levels deep", name,
              kDepth);
    if (event != Event::object_end && event != Event::array_end)
      require(++values <= kValues, ErrorCode::malformed, "{}: holds more than {} values", name,
              kValues);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second)
        fail(ErrorCode::malformed, "{}: key \"{}\" appears twice", name, printable(key));
    }
    return true;
  };
  try {
    return Json::parse(text, watch);
  } catch (const Json::parse_error& error) {
    const std::string_view before = text.substr(0, error.byte > 0 ? error.byte - 1 : 0);
    const std::size_t line_start = before.rfind('\n') + 1;  // 0 if there is none
    fail(ErrorCode::malformed, "{}: malformed JSON in line {}, column {}", name,
         std::count(before.begin(), before.end(), '\n') + 1, before.size() - line_start + 1);
  } catch (const Json::exception&) {
    fail(ErrorCode::malformed, "{}: a number is too large for JSON's double", name);
  }
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_text(path, kFileBytes), path.native());
}

}  // namespace guanaco
