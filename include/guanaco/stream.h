#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace guanaco {

struct TextStreamOptions {
  std::vector<std::string> stops = {};  ///< texts that end the stream and are never released
  bool drop_leading_space = false;      ///< swallow one space (U+0020) if the stream begins with it
  bool trim_before_stop = true;  ///< drop the ASCII white space that stands before a stop text
};

/// Turns the bytes of tokens into text that can be shown at once: what it releases is valid UTF-8
/// in whole code points, never part of a stop text, and never taken back; it does not depend on how
/// the bytes were cut into pieces. Held back is only what may yet turn out to belong to a stop
/// text, to the white space before one, or to a code point. One thread at a time.
class TextStream {
 public:
  /// Throws invalid_argument if a stop text is empty or not UTF-8.
  explicit TextStream(TextStreamOptions options = {});

  /// Adds bytes and gives the text they release, possibly none; a maximal bad byte sequence becomes
  /// one U+FFFD. The view lives until the next call. Costs O(bytes) for each stop text, however
  /// much is held back. After a stop text was found or finish(), nothing more is released.
  std::string_view push(std::string_view bytes);

  /// Ends the stream: releases what was held back, an incomplete code point as U+FFFD.
  std::string_view finish();

  /// Index in options.stops of the text that was found; empty while none was. The first to be
  /// complete counts; of several that end together, the longest.
  std::optional<std::size_t> stop() const noexcept { return stop_; }

 private:
  /// How far the text just received agrees with one stop text (Knuth, Morris and Pratt).
  struct Matcher {
    std::string text;
    std::vector<std::size_t> fallback;  ///< [n] the next shorter prefix that ends text[0..n)
    std::size_t matched = 0;            ///< length of the longest prefix the input ends in

    bool advance(char byte);  ///< true when the whole text was matched
  };

  void take_byte(char byte);
  void take(std::string_view code_point);
  std::string_view release(std::size_t end);
  std::size_t safe_end();

  bool drop_space_;
  bool trim_;
  bool ended_ = false;
  std::vector<Matcher> matchers_;
  std::optional<std::size_t> stop_;
  std::string code_point_;     ///< received bytes of one that is incomplete
  std::string text_;           ///< whole code points; those before start_ are released
  std::size_t start_ = 0;      ///< what is held back begins here
  std::size_t white_end_ = 0;  ///< text_ is known to be white from start_ to here
};

}  // namespace guanaco
