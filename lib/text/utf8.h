#pragma once

#include <cstddef>
#include <string_view>

namespace guanaco {

inline constexpr std::string_view kReplacementCharacter = "\xef\xbf\xbd";  // U+FFFD

/// What a byte sequence begins with.
struct Utf8Start {
  enum Kind { complete, incomplete, bad } kind;
  std::size_t length;  ///< of the code point, of the whole incomplete text, or of the bad bytes
};

/// Looks at the first code point of a text that is not empty. Bad bytes are the longest beginning
/// of a well-formed sequence, else one byte: the "maximal subpart" of the Unicode Standard 3.9.
/// Overlong forms, surrogates and what lies above U+10FFFF are bad at their second byte.
inline Utf8Start utf8_start(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {Utf8Start::complete, 1};
  if (lead < 0xc2 || lead > 0xf4) return {Utf8Start::bad, 1};
  const std::size_t length = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
  // The second byte's range (table 3-7 there); all later ones are 80..BF.
  unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {Utf8Start::incomplete, i};
    if (byte(i) < low || byte(i) > high) return {Utf8Start::bad, i};
    low = 0x80;
    high = 0xbf;
  }
  return {Utf8Start::complete, length};
}

inline bool is_utf8(std::string_view text) {
  while (!text.empty()) {
    const Utf8Start start = utf8_start(text);
    if (start.kind != Utf8Start::complete) return false;
    text.remove_prefix(start.length);
  }
  return true;
}

}  // namespace guanaco
