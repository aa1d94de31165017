#include "synthetic_tokenizer.h"

#include <bit>
#include <cstdint>
#include <string_view>
#include <vector>

#include "support/check.h"

namespace guanaco {
namespace {

// As much of protobuf's encoding as a SentencePiece model needs.
void put_varint(std::string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) out += char(value | 0x80);
  out += char(value);
}
void put(std::string& out, int field, std::int64_t value) {
  put_varint(out, std::uint64_t(field) << 3);
  put_varint(out, std::uint64_t(value));
}
void put(std::string& out, int field, std::string_view bytes) {
  put_varint(out, std::uint64_t(field) << 3 | 2);
  put_varint(out, bytes.size());
  out += bytes;
}
void put(std::string& out, int field, float value) {
  put_varint(out, std::uint64_t(field) << 3 | 5);
  for (int shift = 0; shift < 32; shift += 8)
    out += char(std::bit_cast<std::uint32_t>(value) >> shift);
}

enum PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kByte = 6 };

/// Text pieces, each once: the space, the printable characters of ASCII, then pairs and triples of
/// letters with and without a space before them. Each longer one is a shorter one and a letter or
/// two, so merges reach it.
std::vector<std::string> text_pieces(std::size_t count) {
  constexpr std::string_view kSpace = "\u2581", kLetters = "etaoinshrdlucmfwypvbgkjqxz";
  std::vector<std::string> pieces = {std::string(kSpace)};
  for (char c = '!'; c <= '~'; ++c) pieces.emplace_back(1, c);
  std::vector<std::string> shorter;
  for (const char c : kLetters) shorter.emplace_back(1, c);
  while (pieces.size() < count) {
    std::vector<std::string> longer;
    for (const std::string& start : shorter)
      for (const char c : kLetters) longer.push_back(start + c);
    pieces.insert(pieces.end(), longer.begin(), longer.end());
    for (const std::string& piece : longer) pieces.push_back(std::string(kSpace) + piece);
    shorter = std::move(longer);
  }
  pieces.resize(count);
  return pieces;
}

}  // namespace

std::string synthetic_tokenizer(int pieces) {
  constexpr int kFirstText = 259;
  require(pieces >= kFirstText && pieces <= 32000, ErrorCode::invalid_argument,
          "vocab: a tokenizer takes {} to 32000 pieces, found {}", kFirstText, pieces);
  std::string model;
  const auto add_piece = [&](std::string_view text, float score, PieceType type) {
    std::string piece;
    put(piece, 1, text);
    put(piece, 2, score);
    if (type != kNormal) put(piece, 3, std::int64_t(type));
    put(model, 1, piece);
  };
  add_piece("<unk>", 0, kUnknown);
  add_piece("<s>", 0, kControl);
  add_piece("</s>", 0, kControl);
  for (int byte = 0; byte < 256; ++byte) add_piece(fmt::format("<0x{:02X}>", byte), 0, kByte);
  float score = 0;
  for (const std::string& text : text_pieces(std::size_t(pieces - kFirstText)))
    add_piece(text, score--, kNormal);

  std::string trainer;
  put(trainer, 3, std::int64_t(2));  // BPE
  put(trainer, 4, std::int64_t(pieces));
  put(trainer, 35, std::int64_t(1));  // byte_fallback
  put(trainer, 40, std::int64_t(0));  // unk, bos, eos, pad
  put(trainer, 41, std::int64_t(1));
  put(trainer, 42, std::int64_t(2));
  put(trainer, 43, std::int64_t(-1));
  put(model, 2, trainer);

  std::string normalizer;
  put(normalizer, 1, std::string_view("identity"));
  put(normalizer, 3, std::int64_t(1));  // add_dummy_prefix
  put(normalizer, 4, std::int64_t(0));  // remove_extra_whitespaces
  put(normalizer, 5, std::int64_t(1));  // escape_whitespaces
  put(model, 3, normalizer);
  return model;
}

}  // namespace guanaco
