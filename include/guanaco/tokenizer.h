#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace guanaco {

using TokenId = std::int32_t;

/// The SentencePiece model of a checkpoint (tokenizer.model; arXiv:1808.06226). A handle:
/// copies share the model. Immutable; any member, from any thread.
class Tokenizer {
 public:
  /// Reads a tokenizer.model. Throws not_found; malformed; unsupported for a model that is not BPE
  /// or that rewrites characters before it looks at them, and where sentencepiece meets another
  /// protobuf than its own (README.md, Use from C).
  static Tokenizer load(const std::filesystem::path& file);

  /// The ids of `text`, which starts a sequence: SentencePiece puts a space before the first word.
  /// Text that looks like a special token ("<s>") is ordinary characters; bytes that are not UTF-8
  /// become U+FFFD one by one. `begin` puts bos() in front; the empty text has no ids of its own.
  /// Throws invalid_argument for more than 64 MiB; malformed if the model contradicts itself.
  /// While it runs it takes 120 to 290 bytes of memory for a byte of text, measured; if 320 are not
  /// to be had beforehand it throws std::bad_alloc.
  std::vector<TokenId> encode(std::string_view text, bool begin = true) const;

  /// The ids of `text` that goes on where other text ended: no bos(), no space put before it.
  /// Throws as encode().
  std::vector<TokenId> encode_continuation(std::string_view text) const;

  /// The text of a whole sequence, valid UTF-8: the space before the first word is dropped, control
  /// tokens give nothing, broken bytes become U+FFFD one by one, ids outside [0, size()) give
  /// nothing.
  std::string decode(std::span<const TokenId> tokens) const;

  /// The raw bytes one token adds to a text, its leading space included; possibly part of a code
  /// point. Empty for control tokens and for ids outside [0, size()). Lives as long as any copy of
  /// this Tokenizer.
  std::string_view piece(TokenId token) const noexcept;

  int size() const noexcept;     ///< pieces; a checkpoint may have more rows than that
  TokenId bos() const noexcept;  ///< begins every sequence; -1 if the model has none
  TokenId eos() const noexcept;  ///< ends a text; -1 if the model has none

 private:
  struct Impl;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);
  std::shared_ptr<const Impl> impl_;
};

}  // namespace guanaco
