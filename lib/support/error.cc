#include <guanaco/error.h>
#include <guanaco/version.h>

#define GUANACO_TEXT_OF(number) #number
#define GUANACO_TEXT(number) GUANACO_TEXT_OF(number)

namespace guanaco {

const char* version() noexcept {
  return GUANACO_TEXT(GUANACO_VERSION_MAJOR) "." GUANACO_TEXT(
      GUANACO_VERSION_MINOR) "." GUANACO_TEXT(GUANACO_VERSION_PATCH);
}

const char* name(ErrorCode code) noexcept {
  switch (code) {
    case ErrorCode::cancelled:
      return "cancelled";
    case ErrorCode::invalid_argument:
      return "invalid_argument";
    case ErrorCode::not_found:
      return "not_found";
    case ErrorCode::malformed:
      return "malformed";
    case ErrorCode::unsupported:
      return "unsupported";
    case ErrorCode::out_of_memory:
      return "out_of_memory";
    case ErrorCode::context_full:
      return "context_full";
    case ErrorCode::device:
      return "device";
    case ErrorCode::internal:
      return "internal";
  }
  return "unknown";
}

}  // namespace guanaco
