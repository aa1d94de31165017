#pragma once

#include <string_view>

#include <doctest/doctest.h>
#include <guanaco/error.h>

// What the tests of failures share.
namespace guanaco {

/// The error that f throws; fails the test if it throws none.
template <typename F>
Error error_of(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error;
  }
  FAIL("expected a guanaco::Error");
  return {ErrorCode::internal, ""};
}

/// Whether the message says `text`.
inline bool contains(const Error& error, std::string_view text) {
  INFO(error.what());
  return std::string_view(error.what()).find(text) != std::string_view::npos;
}

}  // namespace guanaco
