#include "backend/backend.h"

#include "support/check.h"

namespace guanaco {

unsigned Backend::choose(const DeviceWeight&, const DeviceWeight&, std::span<const ChoiceRule>) {
  fail(ErrorCode::internal, "this backend leaves the choice of tokens to the host");
}
void Backend::chosen(unsigned, std::span<Choice>) {
  fail(ErrorCode::internal, "this backend leaves the choice of tokens to the host");
}

std::unique_ptr<Backend> make_backend(const ModelOptions& options) {
  require(options.threads >= 0 && options.threads <= 1024, ErrorCode::invalid_argument,
          "threads: expected 0 to 1024, found {}", options.threads);
#if GUANACO_CUDA
  if (options.device == Device::cuda) return make_cuda_backend(options.cuda_device);
  if (options.device == Device::automatic) {
    try {
      return make_cuda_backend(options.cuda_device);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::device) throw;
      if (options.log) options.log(Severity::info, fmt::format("using the CPU: {}", error.what()));
    }
  }
#else
  require(options.device != Device::cuda, ErrorCode::unsupported,
          "device: cuda was asked for, but this library was built without CUDA");
#endif
  return make_cpu_backend(options.threads);
}

}  // namespace guanaco
