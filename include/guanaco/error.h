#pragma once

#include <stdexcept>
#include <string>

namespace guanaco {

/// Why a call failed. The numbers never change: they are also the statuses of the C ABI.
enum class ErrorCode {
  cancelled = 2,          ///< a progress callback or a stop_token asked for it
  invalid_argument = -1,  ///< an option or argument out of its range
  not_found = -2,         ///< no such file, or a folder without what is needed
  malformed = -3,         ///< a file that contradicts its format or itself
  unsupported = -4,       ///< a valid file or request this library does not handle
  out_of_memory = -5,  ///< host or device memory; says bytes wanted and free where they are known
  context_full = -6,   ///< more tokens than the session reserved room for
  device = -7,         ///< a CUDA call failed
  internal = -8,       ///< a bug in this library
};

/// The name of a code as written above, "malformed". Static; any thread.
const char* name(ErrorCode) noexcept;

/// The only exception of this library's own. what() is one line of UTF-8 that names the culprit
/// (file, tensor, option, CUDA call), what was expected and what was found. After a throw, the
/// object called is as before. What passes through besides: std::bad_alloc, where host memory runs
/// out outside of Model::load(), inspect(), estimate() and the construction of a Session, which
/// make it out_of_memory (in the C ABI all of it is GUANACO_OUT_OF_MEMORY); and what a caller's own
/// callback throws.
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& what) : std::runtime_error(what), code_(code) {}
  ErrorCode code() const noexcept { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace guanaco
