#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

// Text that comes from outside: is it UTF-8, and how does it stand in a message?
namespace guanaco {

/// Bytes of the well-formed UTF-8 character `text` begins with (RFC 3629: no overlong forms, no
/// surrogates, nothing past U+10FFFF); 0 if there is none.
inline std::size_t utf8_character(std::string_view text) noexcept {
  if (text.empty()) return 0;
  const auto byte = [&](std::size_t i) { return std::uint8_t(text[i]); };
  const std::uint8_t first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first < 0xc2   ? 0
                             : first < 0xe0 ? 2
                             : first < 0xf0 ? 3
                             : first < 0xf5 ? 4
                                            : 0;
  if (length == 0 || text.size() < length) return 0;
  const std::uint8_t lowest = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
  const std::uint8_t highest = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < lowest || byte(1) > highest) return 0;
  for (std::size_t i = 2; i < length; ++i)
    if ((byte(i) & 0xc0) != 0x80) return 0;
  return length;
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
    if (length == 0 || first < 0x20 || first == 0x7f) {
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
