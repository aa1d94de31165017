#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// Text that comes from outside: is it UTF-8, and how does it stand in a message?
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
inline Utf8Start utf8_start(std::string_view text) noexcept {
  const auto byte = [&](std::size_t i) { return std::uint8_t(text[i]); };
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

/// Bytes of the well-formed UTF-8 character `text` begins with; 0 if there is none.
inline std::size_t utf8_character(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const Utf8Start start = utf8_start(text);
  return start.kind == Utf8Start::complete ? start.length : 0;
}

/// Where `text` stops being well-formed UTF-8; npos if it never does.
inline std::size_t find_invalid_utf8(std::string_view text) noexcept {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_character(text.substr(at));
    if (length == 0) return at;
    at += length;
  }
  return std::string_view::npos;
}

inline bool is_utf8(std::string_view text) noexcept {
  return find_invalid_utf8(text) == std::string_view::npos;
}

/// `text` as a message may show it, on one line and valid whatever it holds: control characters and
/// stray bytes become \xNN, and what is longer than about 200 bytes is cut.
inline std::string printable(std::string_view text) {
  constexpr std::size_t kLongest = 200;
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  while (!text.empty()) {
    if (out.size() >= kLongest) return out + "...";
    const std::size_t length = utf8_character(text);
    const auto first = std::uint8_t(text[0]);
    const bool late_control = first == 0xc2 && length == 2 && std::uint8_t(text[1]) < 0xa0;
    if (length == 0 || first < 0x20 || first == 0x7f || late_control) {
      out += {'\\', 'x', kDigits[first >> 4], kDigits[first & 15]};
      text.remove_prefix(1);
    } else {
      out += text.substr(0, length);
      text.remove_prefix(length);
    }
  }
  return out;
}

}  // namespace guanaco
