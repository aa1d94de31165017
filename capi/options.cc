#include <algorithm>
#include <cstring>
#include <limits>

#include "handles.h"

namespace guanaco::capi {
namespace {

static_assert(int(Device::automatic) == GUANACO_DEVICE_AUTOMATIC &&
              int(Device::cpu) == GUANACO_DEVICE_CPU && int(Device::cuda) == GUANACO_DEVICE_CUDA);
static_assert(int(ZeroPoints::automatic) == GUANACO_ZERO_POINTS_AUTOMATIC &&
              int(ZeroPoints::v1) == GUANACO_ZERO_POINTS_V1 &&
              int(ZeroPoints::v2) == GUANACO_ZERO_POINTS_V2);
static_assert(int(ErrorCode::cancelled) == GUANACO_CANCELLED &&
              int(ErrorCode::invalid_argument) == GUANACO_INVALID_ARGUMENT &&
              int(ErrorCode::not_found) == GUANACO_NOT_FOUND &&
              int(ErrorCode::malformed) == GUANACO_MALFORMED &&
              int(ErrorCode::unsupported) == GUANACO_UNSUPPORTED &&
              int(ErrorCode::out_of_memory) == GUANACO_OUT_OF_MEMORY &&
              int(ErrorCode::context_full) == GUANACO_CONTEXT_FULL &&
              int(ErrorCode::device) == GUANACO_DEVICE &&
              int(ErrorCode::internal) == GUANACO_INTERNAL);

constexpr std::int64_t kMost = std::numeric_limits<int>::max();

struct IntOption {
  guanaco_option number;
  const char* name;
  std::int64_t least, most;
  void (*set)(guanaco_options&, std::int64_t);
};
constexpr IntOption kIntOptions[] = {
    {GUANACO_OPTION_DEVICE, "device", 0, 2, [](auto& o, auto v) { o.model.device = Device(v); }},
    {GUANACO_OPTION_CUDA_DEVICE, "cuda_device", 0, kMost,
     [](auto& o, auto v) { o.model.cuda_device = int(v); }},
    {GUANACO_OPTION_THREADS, "threads", 0, 1024, [](auto& o, auto v) { o.model.threads = int(v); }},
    {GUANACO_OPTION_ROWS, "rows", 1, 4096, [](auto& o, auto v) { o.model.rows = int(v); }},
    {GUANACO_OPTION_ZERO_POINTS, "zero_points", 0, 2,
     [](auto& o, auto v) { o.model.zero_points = ZeroPoints(v); }},
    {GUANACO_OPTION_CONTEXT, "context", 1, 1 << 24,
     [](auto& o, auto v) { o.session.context = int(v); }},
    {GUANACO_OPTION_SEED, "seed", std::numeric_limits<std::int64_t>::min(),
     std::numeric_limits<std::int64_t>::max(),
     [](auto& o, auto v) { o.sampler.seed = std::uint64_t(v); }},
    {GUANACO_OPTION_TOP_K, "top_k", 0, kMost, [](auto& o, auto v) { o.sampler.top_k = int(v); }},
    {GUANACO_OPTION_PENALTY_WINDOW, "penalty_window", 0, kMost,
     [](auto& o, auto v) { o.sampler.penalty_window = int(v); }},
    {GUANACO_OPTION_MAX_TOKENS, "max_tokens", 1, kMost,
     [](auto& o, auto v) { o.generate.max_tokens = int(v); }},
    {GUANACO_OPTION_DROP_LEADING_SPACE, "drop_leading_space", 0, 1,
     [](auto& o, auto v) { o.drop_leading_space = v != 0; }},
    {GUANACO_OPTION_STOP_AT_END_OF_TEXT, "stop_at_end_of_text", 0, 1,
     [](auto& o, auto v) { o.generate.stop_at_end_of_text = v != 0; }},
    {GUANACO_OPTION_TRIM_BEFORE_STOP, "trim_before_stop", 0, 1,
     [](auto& o, auto v) { o.generate.trim_before_stop = v != 0; }},
};

struct FloatOption {
  guanaco_option number;
  const char* name;
  float SamplerOptions::*field;
};
constexpr FloatOption kFloatOptions[] = {
    {GUANACO_OPTION_TEMPERATURE, "temperature", &SamplerOptions::temperature},
    {GUANACO_OPTION_TOP_P, "top_p", &SamplerOptions::top_p},
    {GUANACO_OPTION_MIN_P, "min_p", &SamplerOptions::min_p},
    {GUANACO_OPTION_REPETITION_PENALTY, "repetition_penalty", &SamplerOptions::repetition_penalty},
    {GUANACO_OPTION_FREQUENCY_PENALTY, "frequency_penalty", &SamplerOptions::frequency_penalty},
    {GUANACO_OPTION_PRESENCE_PENALTY, "presence_penalty", &SamplerOptions::presence_penalty},
};

template <typename Table>
auto* find(const Table& table, guanaco_option number) {
  const auto* found = std::find_if(std::begin(table), std::end(table),
                                   [&](const auto& option) { return option.number == number; });
  return found == std::end(table) ? nullptr : found;
}
/// Why a number is not in the table of one type: it is in the other's, or nowhere.
template <typename Other>
[[noreturn]] void refuse(const Other& other, guanaco_option number, const char* type) {
  if (const auto* option = find(other, number))
    fail(ErrorCode::invalid_argument, "option {} ({}): takes {}", number, option->name, type);
  fail(ErrorCode::invalid_argument, "option {}: there is none of this number", number);
}

}  // namespace

guanaco_status report(guanaco_error* error, guanaco_status status,
                      std::string_view message) noexcept {
  if (error == nullptr) return status;
  error->status = status;
  std::size_t length = std::min(message.size(), sizeof error->message - 1);
  if (length < message.size())  // not inside a code point
    while (length > 0 && (static_cast<unsigned char>(message[length]) & 0xc0) == 0x80) --length;
  std::memcpy(error->message, message.data(), length);
  error->message[length] = '\0';
  return status;
}

const guanaco_options& options_or_defaults(const guanaco_options* options) noexcept {
  // Never destroyed: handlers that run at exit may come after a destructor.
  union Immortal {
    Immortal() : options() {}
    ~Immortal() {}
    guanaco_options options;
  };
  static const Immortal defaults;
  return options != nullptr ? *options : defaults.options;
}

std::function<void(int, int)> prompt_progress(const guanaco_options& options,
                                              const std::stop_source& stop) {
  if (options.progress == nullptr) return {};
  return [fn = options.progress, data = options.progress_data, stop](int done, int total) mutable {
    if (fn(std::uint64_t(done), std::uint64_t(total), data) != 0) stop.request_stop();
  };
}

FeedOptions feed_options(const guanaco_options& options, const std::stop_source& stop) {
  return {.cancel = stop.get_token(), .progress = prompt_progress(options, stop)};
}

}  // namespace guanaco::capi

using namespace guanaco::capi;
using guanaco::ErrorCode;

int32_t guanaco_abi(void) { return GUANACO_ABI; }
const char* guanaco_version(void) { return guanaco::version(); }
const char* guanaco_status_name(guanaco_status status) {
  switch (status) {
    case GUANACO_OK:
      return "ok";
    case GUANACO_END:
      return "end";
    case GUANACO_BUFFER_TOO_SMALL:
      return "buffer_too_small";
    default:
      if (status == GUANACO_CANCELLED || (status < 0 && status >= GUANACO_INTERNAL))
        return guanaco::name(ErrorCode(status));
      return "unknown";
  }
}

guanaco_options* guanaco_options_new(void) {
  guanaco_options* options = nullptr;
  guard(nullptr, [&] {
    options = new guanaco_options;
    return GUANACO_OK;
  });
  return options;
}
void guanaco_options_free(guanaco_options* options) { delete options; }

guanaco_status guanaco_options_set_int(guanaco_options* options, guanaco_option number,
                                       int64_t value, guanaco_error* error) {
  return guard(error, [&] {
    need(options, "options");
    const IntOption* option = find(kIntOptions, number);
    if (option == nullptr) refuse(kFloatOptions, number, "a float");
    guanaco::require(value >= option->least && value <= option->most, ErrorCode::invalid_argument,
                     "option {} ({}): must be {} to {}, found {}", number, option->name,
                     option->least, option->most, value);
    option->set(*options, value);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_options_set_float(guanaco_options* options, guanaco_option number,
                                         double value, guanaco_error* error) {
  return guard(error, [&] {
    need(options, "options");
    const FloatOption* option = find(kFloatOptions, number);
    if (option == nullptr) refuse(kIntOptions, number, "an int");
    guanaco::SamplerOptions changed = options->sampler;
    changed.*option->field = float(value);
    const guanaco::Sampler allowed(changed);  // throws where it is out of range
    options->sampler = changed;
    return GUANACO_OK;
  });
}

guanaco_status guanaco_options_add_stop(guanaco_options* options, const char* text, size_t length,
                                        guanaco_error* error) {
  return guard(error, [&] {
    need(options, "options");
    std::vector<std::string> stops = options->generate.stops;
    stops.emplace_back(text_of(text, length, "text"));
    const guanaco::TextStream allowed({.stops = stops});  // throws if it is empty or not UTF-8
    options->generate.stops = std::move(stops);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_options_on_progress(guanaco_options* options, guanaco_progress_fn fn,
                                           void* user_data, guanaco_error* error) {
  return guard(error, [&] {
    need(options, "options").progress = fn;
    options->progress_data = user_data;
    return GUANACO_OK;
  });
}

guanaco_status guanaco_options_on_log(guanaco_options* options, guanaco_log_fn fn, void* user_data,
                                      guanaco_error* error) {
  return guard(error, [&] {
    need(options, "options").log = fn;
    options->log_data = user_data;
    return GUANACO_OK;
  });
}
