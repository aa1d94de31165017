#include "io/json.h"

#include <algorithm>
#include <utility>

#include <nlohmann/json.hpp>

#include "io/file.h"
#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

constexpr int kDepth = 32;
constexpr int kValues = 1'000'000;  // a value costs far more memory than its two bytes of text
constexpr std::uint64_t kFileBytes = 16u << 20;

/// What the parser says of an error: of "[json...] parse error at ...: syntax error while parsing
/// value - unexpected ']'" that behind the dash, and a colon before it. It may quote the text.
std::string reason(std::string_view message) {
  constexpr std::string_view kBefore = " - ";
  const std::size_t dash = message.find(kBefore);
  if (dash == std::string_view::npos) return {};
  return ": " + printable(message.substr(dash + kBefore.size()));
}

/// Builds the value that the parser's events tell of. Every method returns true or throws.
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(std::string_view text, std::string name) : text_(text), name_(std::move(name)) {}

  Json root;

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t&) override { return put(value); }
  bool string(string_t& value) override { return put(value); }
  bool start_array(std::size_t) override { return open(Json::Array()); }
  bool end_array() override { return close(); }
  bool start_object(std::size_t) override { return open(Json::Object()); }
  bool end_object() override { return close(); }

  bool key(string_t& key) override {
    count();
    const auto [member, is_new] = std::get<Json::Object>(open_.back()->value).try_emplace(key);
    if (!is_new) fail(ErrorCode::malformed, "{}: key \"{}\" appears twice", name_, printable(key));
    member_ = &member->second;
    return true;
  }

  bool binary(binary_t&) override { return false; }  // no text has it

  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception& error) override {
    if (dynamic_cast<const nlohmann::json::out_of_range*>(&error))
      fail(ErrorCode::malformed, "{}: a number is too large for JSON's double", name_);
    const std::string_view before = text_.substr(0, position > 0 ? position - 1 : 0);
    const std::size_t line_start = before.rfind('\n') + 1;  // 0 if there is none
    fail(ErrorCode::malformed, "{}: malformed JSON in line {}, column {}{}", name_,
         std::count(before.begin(), before.end(), '\n') + 1, before.size() - line_start + 1,
         reason(error.what()));
  }

 private:
  void count() {
    require(++values_ <= kValues, ErrorCode::malformed, "{}: holds more than {} values", name_,
            kValues);
  }

  /// Where the next value belongs.
  Json& place() {
    count();
    if (open_.empty()) return root;
    auto* array = std::get_if<Json::Array>(&open_.back()->value);
    return array ? array->emplace_back() : *member_;
  }

  template <typename T>
  bool put(const T& value) {
    place().value = value;
    return true;
  }

  template <typename T>
  bool open(T&& empty) {
    require(open_.size() < kDepth, ErrorCode::malformed, "{}: nested more than {} levels deep",
            name_, kDepth);
    Json& container = place();
    container.value = std::forward<T>(empty);
    open_.push_back(&container);
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  std::string_view text_;
  std::string name_;
  std::vector<Json*> open_;  ///< from the outermost in; none moves while one inside it is open
  Json* member_ = nullptr;   ///< of the innermost object, its key read last
  int values_ = 0;
};

struct Writer {
  std::string& out;

  template <typename T>
  void operator()(const T& scalar) {  // whose destructor allocates nothing
    out += nlohmann::json(scalar).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  void operator()(const Json::Array& array) {
    out += '[';
    for (const Json& element : array) {
      if (&element != array.data()) out += ',';
      std::visit(*this, element.value);
    }
    out += ']';
  }
  void operator()(const Json::Object& object) {
    out += '{';
    const char* separator = "";
    for (const auto& [name, member] : object) {
      out += std::exchange(separator, ",");
      (*this)(name);
      out += ':';
      std::visit(*this, member.value);
    }
    out += '}';
  }
};

}  // namespace

std::optional<double> Json::number() const noexcept {
  if (const auto* number = get<std::int64_t>()) return double(*number);
  if (const auto* number = get<std::uint64_t>()) return double(*number);
  if (const auto* number = get<double>()) return *number;
  return std::nullopt;
}

const Json* Json::find(std::string_view name) const noexcept {
  const Object* object = get<Object>();
  if (!object) return nullptr;
  const auto member = object->find(name);
  return member != object->end() ? &member->second : nullptr;
}

bool operator==(const Json& a, const Json& b) {
  const std::optional<double> number = a.number();
  return number ? number == b.number() : a.value == b.value;
}

Json parse_json(std::string_view text, std::string_view origin) {
  std::string name = printable(origin);
  const std::size_t invalid = find_invalid_utf8(text);
  require(invalid == std::string_view::npos, ErrorCode::malformed,
          "{}: expected UTF-8, found another byte at {}", name, invalid);
  // The parser would take a zero byte for the end of the text.
  require(text.find('\0') == std::string_view::npos, ErrorCode::malformed,
          "{}: expected JSON, found a zero byte at {}", name, text.find('\0'));
  Builder builder(text, std::move(name));
  nlohmann::json::sax_parse(text, &builder);
  return std::move(builder.root);
}

Json read_json(const std::filesystem::path& path) {
  return parse_json(read_text(path, kFileBytes), path.native());
}

std::string to_text(const Json& json) {
  std::string text;
  std::visit(Writer{text}, json.value);
  return text;
}

}  // namespace guanaco
