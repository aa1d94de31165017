#include <algorithm>
#include <filesystem>

#include "handles.h"

namespace guanaco::capi {
namespace {

static_assert(int(Severity::debug) == GUANACO_SEVERITY_DEBUG &&
              int(Severity::info) == GUANACO_SEVERITY_INFO &&
              int(Severity::warning) == GUANACO_SEVERITY_WARNING);

std::filesystem::path path_of(const char* path, std::size_t length) {
  const std::string_view text = text_of(path, length, "path");
  require(text.find('\0') == text.npos, ErrorCode::invalid_argument,
          "path: has a NUL in it, after \"{}\"", text.substr(0, text.find('\0')));
  return std::filesystem::path(text);
}

/// With the callbacks that C knows.
ModelOptions model_options(const guanaco_options& options) {
  ModelOptions result = options.model;
  if (options.progress != nullptr)
    result.progress = [fn = options.progress, data = options.progress_data](std::uint64_t done,
                                                                            std::uint64_t total) {
      return fn(done, total, data) == 0;
    };
  if (options.log != nullptr)
    result.log = [fn = options.log, data = options.log_data](Severity severity,
                                                             std::string_view line) {
      fn(std::int32_t(severity), line.data(), line.size(), data);
    };
  return result;
}

}  // namespace

std::int64_t info_of(const ModelInfo& info, std::int32_t number) {
  switch (number) {
    case GUANACO_INFO_LAYERS:
      return info.layers;
    case GUANACO_INFO_HEADS:
      return info.heads;
    case GUANACO_INFO_KV_HEADS:
      return info.kv_heads;
    case GUANACO_INFO_HEAD_DIM:
      return info.head_dim;
    case GUANACO_INFO_HIDDEN:
      return info.hidden;
    case GUANACO_INFO_FFN:
      return info.ffn;
    case GUANACO_INFO_VOCAB:
      return info.vocab;
    case GUANACO_INFO_CONTEXT:
      return info.context;
    case GUANACO_INFO_BITS:
      return info.bits;
    case GUANACO_INFO_GROUP_SIZE:
      return info.group_size;
    case GUANACO_INFO_ACT_ORDER:
      return info.act_order;
    case GUANACO_INFO_PARAMETERS:
      return std::int64_t(info.parameters);
    case GUANACO_INFO_FILE_BYTES:
      return std::int64_t(info.file_bytes);
    case GUANACO_INFO_WEIGHT_BYTES:
      return std::int64_t(info.weight_bytes);
    case GUANACO_INFO_BYTES_PER_TOKEN:
      return std::int64_t(info.bytes_per_token);
    case GUANACO_INFO_KV_BYTES_PER_TOKEN:
      return std::int64_t(info.kv_bytes_per_token);
    case GUANACO_INFO_THREADS:
      return info.threads;
  }
  fail(ErrorCode::invalid_argument, "info {}: there is none of this number", number);
}

guanaco_status text_of_model(const ModelInfo& info, const LoadReport& found, std::int32_t kind,
                             std::size_t index, const char** text, std::size_t* length) {
  const auto of_list = [&](std::span<const std::string> list) -> guanaco_status {
    if (index >= list.size()) return GUANACO_END;
    give(list[index], text, length);
    return GUANACO_OK;
  };
  switch (kind) {
    case GUANACO_TEXT_DEVICE:
      return of_list({&info.device, 1});
    case GUANACO_TEXT_FORMAT:
      return of_list({&found.format, 1});
    case GUANACO_TEXT_DECISION:
      return of_list(found.decisions);
    case GUANACO_TEXT_WARNING:
      return of_list(found.warnings);
    case GUANACO_TEXT_IGNORED:
      return of_list(found.ignored);
  }
  fail(ErrorCode::invalid_argument, "text {}: there is none of this number", kind);
}

}  // namespace guanaco::capi

using namespace guanaco::capi;
using guanaco::Model;

guanaco_status guanaco_model_load(const char* path, size_t length, const guanaco_options* options,
                                  guanaco_model** out, guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_model{
        Model::load(path_of(path, length), model_options(options_or_defaults(options)))};
    return GUANACO_OK;
  });
}
void guanaco_model_free(guanaco_model* model) { delete model; }

guanaco_status guanaco_model_info(const guanaco_model* model, int32_t info, int64_t* value,
                                  guanaco_error* error) {
  if (value != nullptr) *value = 0;
  return guard(error, [&] {
    need(value, "value");
    const Model& of = need(model, "model").model;
    *value = info == GUANACO_INFO_HAS_TOKENIZER ? of.has_tokenizer() : info_of(of.info(), info);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_model_text(const guanaco_model* model, int32_t kind, size_t index,
                                  const char** text, size_t* length, guanaco_error* error) {
  clear(text, length);
  return guard(error, [&] {
    need(text, "text");
    need(length, "length");
    const Model& of = need(model, "model").model;
    return text_of_model(of.info(), of.report(), kind, index, text, length);
  });
}

guanaco_status guanaco_model_tokenizer(const guanaco_model* model, guanaco_tokenizer** out,
                                       guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_tokenizer{need(model, "model").model.tokenizer()};
    return GUANACO_OK;
  });
}

guanaco_status guanaco_inspect(const char* path, size_t length, const guanaco_options* options,
                               guanaco_inspection** out, guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_inspection{
        Model::inspect(path_of(path, length), model_options(options_or_defaults(options)))};
    return GUANACO_OK;
  });
}
void guanaco_inspection_free(guanaco_inspection* inspection) { delete inspection; }

guanaco_status guanaco_inspection_info(const guanaco_inspection* inspection, int32_t info,
                                       int64_t* value, guanaco_error* error) {
  if (value != nullptr) *value = 0;
  return guard(error, [&] {
    need(value, "value");
    const Model::Inspection& of = need(inspection, "inspection").found;
    *value = info == GUANACO_INFO_HAS_TOKENIZER ? 0 : info_of(of.info, info);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_inspection_text(const guanaco_inspection* inspection, int32_t kind,
                                       size_t index, const char** text, size_t* length,
                                       guanaco_error* error) {
  clear(text, length);
  return guard(error, [&] {
    need(text, "text");
    need(length, "length");
    const Model::Inspection& of = need(inspection, "inspection").found;
    return text_of_model(of.info, of.report, kind, index, text, length);
  });
}

guanaco_status guanaco_estimate(const char* path, size_t length, const guanaco_options* options,
                                uint64_t* bytes, size_t count, guanaco_error* error) {
  if (bytes != nullptr) std::fill_n(bytes, count, 0);
  return guard(error, [&] {
    span_of(bytes, count, "bytes");
    const guanaco_options& chosen = options_or_defaults(options);
    const guanaco::MemoryEstimate memory =
        Model::estimate(path_of(path, length), model_options(chosen), chosen.session.context);
    std::uint64_t values[GUANACO_MEMORY_DEVICE + 1] = {};
    values[GUANACO_MEMORY_WEIGHTS] = memory.weights;
    values[GUANACO_MEMORY_SCRATCH] = memory.scratch;
    values[GUANACO_MEMORY_SESSION] = memory.session;
    values[GUANACO_MEMORY_LOADING] = memory.loading;
    values[GUANACO_MEMORY_HOST] = memory.host;
    values[GUANACO_MEMORY_DEVICE] = memory.device;
    std::copy_n(values, std::min(count, std::size(values)), bytes);
    return GUANACO_OK;
  });
}
