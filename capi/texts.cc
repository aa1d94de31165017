// Tokenizer, chat and stream.

#include <algorithm>

#include "handles.h"

using namespace guanaco::capi;
using guanaco::ChatTemplate;
using guanaco::ErrorCode;
using guanaco::TokenId;

static_assert(int(guanaco::Role::system) == GUANACO_ROLE_SYSTEM &&
              int(guanaco::Role::user) == GUANACO_ROLE_USER &&
              int(guanaco::Role::assistant) == GUANACO_ROLE_ASSISTANT);

namespace {

/// Copies a result into the caller's buffer, if there is room for all of it.
template <typename T>
guanaco_status fill(std::span<const T> result, T* buffer, size_t capacity, size_t* needed,
                    const char* name, guanaco_error* error) {
  guanaco::require(buffer != nullptr || capacity == 0, ErrorCode::invalid_argument, "{}: is NULL",
                   name);
  *needed = result.size();
  if (result.size() > capacity)
    return report(error, GUANACO_BUFFER_TOO_SMALL,
                  fmt::format("{}: room for {}, {} are needed", name, capacity, result.size()));
  std::copy(result.begin(), result.end(), buffer);
  return GUANACO_OK;
}

}  // namespace

guanaco_status guanaco_tokenizer_load(const char* file, size_t length, guanaco_tokenizer** out,
                                      guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out =
        new guanaco_tokenizer{guanaco::Tokenizer::load(std::string(text_of(file, length, "file")))};
    return GUANACO_OK;
  });
}
void guanaco_tokenizer_free(guanaco_tokenizer* tokenizer) { delete tokenizer; }

int32_t guanaco_tokenizer_size(const guanaco_tokenizer* tokenizer) {
  return tokenizer != nullptr ? tokenizer->tokenizer.size() : 0;
}
int32_t guanaco_tokenizer_bos(const guanaco_tokenizer* tokenizer) {
  return tokenizer != nullptr ? tokenizer->tokenizer.bos() : -1;
}
int32_t guanaco_tokenizer_eos(const guanaco_tokenizer* tokenizer) {
  return tokenizer != nullptr ? tokenizer->tokenizer.eos() : -1;
}

guanaco_status guanaco_tokenizer_encode(const guanaco_tokenizer* tokenizer, const char* text,
                                        size_t length, int32_t begin, int32_t* tokens,
                                        size_t capacity, size_t* needed, guanaco_error* error) {
  if (needed != nullptr) *needed = 0;
  return guard(error, [&] {
    need(needed, "needed");
    const std::vector<TokenId> ids =
        need(tokenizer, "tokenizer").tokenizer.encode(text_of(text, length, "text"), begin != 0);
    return fill<int32_t>(ids, tokens, capacity, needed, "tokens", error);
  });
}

guanaco_status guanaco_tokenizer_encode_continuation(const guanaco_tokenizer* tokenizer,
                                                     const char* text, size_t length,
                                                     int32_t* tokens, size_t capacity,
                                                     size_t* needed, guanaco_error* error) {
  if (needed != nullptr) *needed = 0;
  return guard(error, [&] {
    need(needed, "needed");
    const std::vector<TokenId> ids =
        need(tokenizer, "tokenizer").tokenizer.encode_continuation(text_of(text, length, "text"));
    return fill<int32_t>(ids, tokens, capacity, needed, "tokens", error);
  });
}

guanaco_status guanaco_tokenizer_decode(const guanaco_tokenizer* tokenizer, const int32_t* tokens,
                                        size_t count, char* text, size_t capacity, size_t* needed,
                                        guanaco_error* error) {
  if (needed != nullptr) *needed = 0;
  return guard(error, [&] {
    need(needed, "needed");
    const std::string decoded =
        need(tokenizer, "tokenizer").tokenizer.decode(span_of(tokens, count, "tokens"));
    return fill<char>(decoded, text, capacity, needed, "text", error);
  });
}

guanaco_status guanaco_tokenizer_piece(const guanaco_tokenizer* tokenizer, int32_t token,
                                       const char** bytes, size_t* length, guanaco_error* error) {
  clear(bytes, length);
  return guard(error, [&] {
    need(bytes, "bytes");
    need(length, "length");
    give(need(tokenizer, "tokenizer").tokenizer.piece(token), bytes, length);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_chat_name(size_t index, const char** text, size_t* length) {
  clear(text, length);
  return guard(nullptr, [&]() -> guanaco_status {
    need(text, "text");
    need(length, "length");
    if (index >= ChatTemplate::all().size()) return GUANACO_END;
    give(ChatTemplate::all()[index].name(), text, length);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_chat_new(const char* name, size_t length, guanaco_chat** out,
                                guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    *out = new guanaco_chat{ChatTemplate::named(text_of(name, length, "name"))};
    return GUANACO_OK;
  });
}
void guanaco_chat_free(guanaco_chat* chat) { delete chat; }

guanaco_status guanaco_chat_add(guanaco_chat* chat, int32_t role, const char* text, size_t length,
                                guanaco_error* error) {
  return guard(error, [&] {
    need(chat, "chat");
    guanaco::require(role >= GUANACO_ROLE_SYSTEM && role <= GUANACO_ROLE_ASSISTANT,
                     ErrorCode::invalid_argument, "role: must be {} to {}, found {}",
                     int(GUANACO_ROLE_SYSTEM), int(GUANACO_ROLE_ASSISTANT), role);
    chat->conversation.push_back({guanaco::Role(role), std::string(text_of(text, length, "text"))});
    return GUANACO_OK;
  });
}

guanaco_status guanaco_chat_clear(guanaco_chat* chat, guanaco_error* error) {
  return guard(error, [&] {
    need(chat, "chat").conversation.clear();
    return GUANACO_OK;
  });
}

guanaco_status guanaco_chat_render(guanaco_chat* chat, const char** text, size_t* length,
                                   guanaco_error* error) {
  clear(text, length);
  return guard(error, [&] {
    need(text, "text");
    need(length, "length");
    guanaco_chat& of = need(chat, "chat");
    of.prompt = of.shape.render(of.conversation);
    give(of.prompt, text, length);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_chat_stop(const guanaco_chat* chat, size_t index, const char** text,
                                 size_t* length, guanaco_error* error) {
  clear(text, length);
  return guard(error, [&]() -> guanaco_status {
    need(text, "text");
    need(length, "length");
    const std::span<const std::string_view> stops = need(chat, "chat").shape.stops();
    if (index >= stops.size()) return GUANACO_END;
    give(stops[index], text, length);
    return GUANACO_OK;
  });
}

guanaco_status guanaco_stream_new(const guanaco_options* options, guanaco_stream** out,
                                  guanaco_error* error) {
  clear(out);
  return guard(error, [&] {
    need(out, "out");
    const guanaco_options& chosen = options_or_defaults(options);
    *out = new guanaco_stream{
        guanaco::TextStream({.stops = chosen.generate.stops,
                             .drop_leading_space = chosen.drop_leading_space.value_or(false),
                             .trim_before_stop = chosen.generate.trim_before_stop})};
    return GUANACO_OK;
  });
}
void guanaco_stream_free(guanaco_stream* stream) { delete stream; }

guanaco_status guanaco_stream_push(guanaco_stream* stream, const char* bytes, size_t count,
                                   const char** text, size_t* length, guanaco_error* error) {
  clear(text, length);
  return guard(error, [&]() -> guanaco_status {
    need(text, "text");
    need(length, "length");
    guanaco::TextStream& of = need(stream, "stream").stream;
    give(of.push(text_of(bytes, count, "bytes")), text, length);
    return of.stop() ? GUANACO_END : GUANACO_OK;
  });
}

guanaco_status guanaco_stream_finish(guanaco_stream* stream, const char** text, size_t* length,
                                     guanaco_error* error) {
  clear(text, length);
  return guard(error, [&] {
    need(text, "text");
    need(length, "length");
    give(need(stream, "stream").stream.finish(), text, length);
    return GUANACO_OK;
  });
}

int64_t guanaco_stream_stop(const guanaco_stream* stream) {
  if (stream == nullptr || !stream->stream.stop()) return -1;
  return int64_t(*stream->stream.stop());
}
