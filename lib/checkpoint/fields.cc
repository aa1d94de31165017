#include "checkpoint/fields.h"

#include <cmath>
#include <utility>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

/// The number that a value is, if it is one within these bounds.
std::optional<double> number_within(const Json& value, double least, double most) {
  const std::optional<double> number = value.number();
  return number && *number >= least && *number <= most ? number : std::nullopt;
}

}  // namespace

std::string show(const Json& value) { return printable(to_text(value)); }

Fields::Fields(const Json& object, std::string origin)
    : object_(object), origin_(std::move(origin)) {
  if (!object.get<Json::Object>())
    fail(ErrorCode::malformed, "{}: expected an object, found {}", origin_, show(object));
}

const Json* Fields::find(Names names) const {
  const Json* found = nullptr;
  const char* found_name = nullptr;
  for (const char* name : names) {
    const Json* field = object_.find(name);
    if (!field || field->is_null()) continue;
    if (!found) {
      found = field;
      found_name = name;
    } else if (*found != *field) {
      fail(ErrorCode::malformed, "{}: {} and {} mean the same, but {} and {} differ", origin_,
           found_name, name, show(*found), show(*field));
    }
  }
  return found;
}

std::optional<int> Fields::integer(Names names, int least, int most) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  const auto number = number_within(*value, least, most);
  require(number && *number == std::trunc(*number), ErrorCode::malformed,
          "{}: {} must be a whole number from {} to {}, found {}", origin_, *names.begin(), least,
          most, show(*value));
  return int(*number);
}

std::optional<double> Fields::number(Names names, double least, double most) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  const auto number = number_within(*value, least, most);
  require(number.has_value(), ErrorCode::malformed,
          "{}: {} must be a number from {} to {}, found {}", origin_, *names.begin(), least, most,
          show(*value));
  return number;
}

std::optional<bool> Fields::boolean(Names names) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  const bool* truth = value->get<bool>();
  require(truth, ErrorCode::malformed, "{}: {} must be true or false, found {}", origin_,
          *names.begin(), show(*value));
  return *truth;
}

std::optional<std::string> Fields::text(Names names) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  const auto* text = value->get<std::string>();
  require(text, ErrorCode::malformed, "{}: {} must be a string, found {}", origin_, *names.begin(),
          show(*value));
  return *text;
}

std::optional<std::vector<double>> Fields::numbers(Names names, double least, double most) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  const auto* list = value->get<Json::Array>();
  std::vector<double> numbers;
  if (list)
    for (const Json& element : *list)
      if (const auto number = number_within(element, least, most)) numbers.push_back(*number);
  require(list && numbers.size() == list->size(), ErrorCode::malformed,
          "{}: {} must be a list of numbers from {} to {}, found {}", origin_, *names.begin(),
          least, most, show(*value));
  return numbers;
}

}  // namespace guanaco
