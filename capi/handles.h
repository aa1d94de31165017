#pragma once

// What stands behind the opaque names of <guanaco/c.h>, and the one shape that all its functions
// have.

#include <guanaco/c.h>
#include <guanaco/guanaco.h>

#include <cstdint>
#include <new>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "support/check.h"

struct guanaco_options {
  guanaco::ModelOptions model;  ///< without its callbacks
  guanaco::SessionOptions session;
  guanaco::SamplerOptions sampler;
  guanaco::GenerateOptions generate;  ///< without what is said here on its own
  std::optional<bool> drop_leading_space;
  guanaco_progress_fn progress = nullptr;
  void* progress_data = nullptr;
  guanaco_log_fn log = nullptr;
  void* log_data = nullptr;
};
struct guanaco_model {
  guanaco::Model model;
};
struct guanaco_inspection {
  guanaco::Model::Inspection found;
};
struct guanaco_tokenizer {
  guanaco::Tokenizer tokenizer;
};
struct guanaco_chat {
  const guanaco::ChatTemplate& shape;
  std::vector<guanaco::Message> conversation = {};
  std::string prompt = {};  ///< as rendered last
};
struct guanaco_stream {
  guanaco::TextStream stream;
};
struct guanaco_sampler {
  guanaco::Sampler sampler;
};
struct guanaco_session {
  guanaco::Session session;
};
struct guanaco_generation {
  std::stop_source stop;
  guanaco::Generation generation;
};

namespace guanaco::capi {

/// Writes an error's status and message, as much of it as there is room for; returns the status.
guanaco_status report(guanaco_error* error, guanaco_status status,
                      std::string_view message) noexcept;

/// Runs the body of a function: nothing is thrown out of the library.
template <typename Body>
guanaco_status guard(guanaco_error* error, Body&& body) noexcept {
  try {
    return body();
  } catch (const Error& failure) {
    const auto status = guanaco_status(failure.code());
    return status > 0 ? status : report(error, status, failure.what());
  } catch (const std::bad_alloc&) {
    return report(error, GUANACO_OUT_OF_MEMORY, "host memory ran out");
  } catch (const std::exception& failure) {
    return report(error, GUANACO_INTERNAL, failure.what());
  } catch (...) {
    return report(error, GUANACO_INTERNAL, "something was thrown that is no exception");
  }
}

/// Throws invalid_argument if a pointer is NULL that must not be.
template <typename T>
T& need(T* pointer, const char* name) {
  require(pointer != nullptr, ErrorCode::invalid_argument, "{}: is NULL", name);
  return *pointer;
}
/// `length` elements from `data`, which may be NULL if there are none.
template <typename T>
std::span<const T> span_of(const T* data, std::size_t length, const char* name) {
  require(data != nullptr || length == 0, ErrorCode::invalid_argument, "{}: is NULL, {} wanted",
          name, length);
  return {data, length};
}
inline std::string_view text_of(const char* text, std::size_t length, const char* name) {
  const std::span<const char> bytes = span_of(text, length, name);
  return {bytes.data(), bytes.size()};
}
inline void give(std::string_view text, const char** out, std::size_t* length) {
  *out = text.data();
  *length = text.size();
}
template <typename T>
void clear(T** out, std::size_t* length = nullptr) noexcept {
  if (out != nullptr) *out = nullptr;
  if (length != nullptr) *length = 0;
}

/// The options, or the defaults for NULL.
const guanaco_options& options_or_defaults(const guanaco_options* options) noexcept;

/// A feed's options: the callback may ask it to stop.
FeedOptions feed_options(const guanaco_options& options, const std::stop_source& stop);
/// The same for the prompt of a generation.
std::function<void(int, int)> prompt_progress(const guanaco_options& options,
                                              const std::stop_source& stop);

/// The number or text of a model that c.h names so.
std::int64_t info_of(const ModelInfo& info, std::int32_t number);
guanaco_status text_of_model(const ModelInfo& info, const LoadReport& found, std::int32_t kind,
                             std::size_t index, const char** text, std::size_t* length);

}  // namespace guanaco::capi
