#include "checkpoint/fields.h"

#include <cmath>
#include <utility>

#include <nlohmann/json.hpp>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

bool is_number_within(const Json& value, double least, double most) {
  if (!value.is_number()) return false;
  const double number = value.get<double>();
  return number >= least && number <= most;
}

}  // namespace

std::string show(const Json& value) {
  return printable(value.dump(-1, ' ', false, Json::error_handler_t::replace));
}

Fields::Fields(const Json& object, std::string origin)
    : object_(object), origin_(std::move(origin)) {
  if (!object.is_object())
    fail(ErrorCode::malformed, "{}: expected an object, found {}", origin_, show(object));
}

const Json* Fields::find(Names names) const {
  const Json* found = nullptr;
  const char* found_name = nullptr;
  for (const char* name : names) {
    const auto field = object_.find(name);
    if (field == object_.end() || field->is_null()) continue;
    if (!found) {
      found = &*field;
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
  const bool good = is_number_within(*value, least, most) &&
                    value->get<double>() == std::trunc(value->get<double>());
  require(good, ErrorCode::malformed, "{}: {} must be a whole number from {} to {}, found {}",
          origin_, *names.begin(), least, most, show(*value));
  return int(value->get<double>());
}

std::optional<double> Fields::number(Names names, double least, double most) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  require(is_number_within(*value, least, most), ErrorCode::malformed,
          "{}: {} must be a number from {} to {}, found {}", origin_, *names.begin(), least, most,
          show(*value));
  return value->get<double>();
}

std::optional<bool> Fields::boolean(Names names) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  require(value->is_boolean(), ErrorCode::malformed, "{}: {} must be true or false, found {}",
          origin_, *names.begin(), show(*value));
  return value->get<bool>();
}

std::optional<std::string> Fields::text(Names names) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  require(value->is_string(), ErrorCode::malformed, "{}: {} must be a string, found {}", origin_,
          *names.begin(), show(*value));
  return value->get<std::string>();
}

std::optional<std::vector<double>> Fields::numbers(Names names, double least, double most) const {
  const Json* value = find(names);
  if (!value) return std::nullopt;
  bool good = value->is_array();
  if (good)
    for (const Json& element : *value) good = good && is_number_within(element, least, most);
  require(good, ErrorCode::malformed, "{}: {} must be a list of numbers from {} to {}, found {}",
          origin_, *names.begin(), least, most, show(*value));
  return value->get<std::vector<double>>();
}

}  // namespace guanaco
