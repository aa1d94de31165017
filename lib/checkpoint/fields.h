#pragma once

#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "io/json.h"

namespace guanaco {

/// The fields of one JSON object, checked as they are read. A null counts as absent. Several names
/// are spellings of one field: any may stand there, and if more than one does, they must agree. All
/// members throw malformed, naming the origin and the field. Borrows the object.
class Fields {
 public:
  using Names = std::initializer_list<const char*>;

  /// `origin` says in errors where the object comes from.
  Fields(const Json& object, std::string origin);

  const Json* find(Names names) const;  ///< null if absent
  std::optional<int> integer(Names names, int least, int most) const;
  std::optional<double> number(Names names, double least, double most) const;
  std::optional<bool> boolean(Names names) const;
  std::optional<std::string> text(Names names) const;
  std::optional<std::vector<double>> numbers(Names names, double least, double most) const;

  const std::string& origin() const noexcept { return origin_; }

 private:
  const Json& object_;
  std::string origin_;
};

/// A JSON value for an error message: one line, cut where it gets long.
std::string show(const Json& value);

}  // namespace guanaco
