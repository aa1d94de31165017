// A protobuf that is not sentencepiece's own, and throws as one of another version does: plays what
// a host that is linked with libprotobuf has in its global scope.
#include <stdexcept>

namespace google::protobuf::internal {

[[gnu::visibility("default")]] void VerifyVersion(int header, int oldest, const char* file);
void VerifyVersion(int, int, const char*) {
  throw std::runtime_error("compiled against another version\nof this library");
}

}  // namespace google::protobuf::internal
