#include <guanaco/stream.h>

#include <algorithm>

#include "support/check.h"
#include "support/utf8.h"

namespace guanaco {
namespace {

bool is_white(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

}  // namespace

TextStream::TextStream(TextStreamOptions options)
    : drop_space_(options.drop_leading_space), trim_(options.trim_before_stop) {
  std::size_t longest = 0;
  for (std::size_t i = 0; i < options.stops.size(); ++i) {
    const std::string& stop = options.stops[i];
    require(!stop.empty(), ErrorCode::invalid_argument, "stops[{}]: expected a text, found none",
            i);
    // A stop text cut inside a code point would cut the text before it there.
    require(is_utf8(stop), ErrorCode::invalid_argument,
            "stops[{}]: expected UTF-8, found other bytes", i);
    longest = std::max(longest, stop.size());
    Matcher matcher{stop, std::vector<std::size_t>(stop.size() + 1)};
    for (std::size_t end = 1, prefix = 0; end < stop.size(); ++end) {
      while (prefix > 0 && stop[prefix] != stop[end]) prefix = matcher.fallback[prefix];
      if (stop[prefix] == stop[end]) ++prefix;
      matcher.fallback[end + 1] = prefix;
    }
    matchers_.push_back(std::move(matcher));
  }
  text_.reserve(2 * longest + 256);  // so that a steady stream does not allocate
}

bool TextStream::Matcher::advance(char byte) {
  while (matched > 0 && text[matched] != byte) matched = fallback[matched];
  if (text[matched] == byte) ++matched;
  return matched == text.size();
}

std::string_view TextStream::push(std::string_view bytes) {
  if (ended_) return {};
  if (2 * start_ >= text_.size()) {  // moving no more than was released keeps this O(1) a byte
    text_.erase(0, start_);
    white_end_ -= std::min(start_, white_end_);
    start_ = 0;
  }
  if (drop_space_ && !bytes.empty()) {
    if (bytes.front() == ' ') bytes.remove_prefix(1);
    drop_space_ = false;
  }
  for (std::size_t i = 0; i < bytes.size() && !stop_; ++i) take_byte(bytes[i]);
  ended_ = stop_.has_value();
  return release(safe_end());
}

std::string_view TextStream::finish() {
  if (ended_) return {};
  if (!code_point_.empty()) take(kReplacementCharacter);
  ended_ = true;
  return release(stop_ ? safe_end() : text_.size());
}

void TextStream::take_byte(char byte) {
  code_point_ += byte;
  while (!code_point_.empty() && !stop_) {
    const Utf8Start first = utf8_start(code_point_);
    if (first.kind == Utf8Start::incomplete) return;
    const bool good = first.kind == Utf8Start::complete;
    take(good ? std::string_view(code_point_).substr(0, first.length) : kReplacementCharacter);
    code_point_.erase(0, first.length);
  }
}

void TextStream::take(std::string_view code_point) {
  text_ += code_point;
  for (std::size_t i = 0; i < matchers_.size(); ++i) {
    bool complete = false;
    for (char byte : code_point) complete = matchers_[i].advance(byte);
    if (complete && (!stop_ || matchers_[i].text.size() > matchers_[*stop_].text.size())) stop_ = i;
  }
}

/// Up to where the text can be released: short of the longest beginning of a stop text that it ends
/// in, or of the stop text found, and of the white space before that.
std::size_t TextStream::safe_end() {
  std::size_t held = stop_ ? matchers_[*stop_].text.size() : 0;
  if (!stop_)
    for (const Matcher& matcher : matchers_) held = std::max(held, matcher.matched);
  const std::size_t end = text_.size() - held;
  if (!trim_ || matchers_.empty()) return end;
  // `end` never moves back, so white space once walked over need not be walked over again.
  const std::size_t known = std::max(start_, white_end_);
  std::size_t black = end;
  while (black > known && is_white(text_[black - 1])) --black;
  white_end_ = end;
  return black > known ? black : start_;
}

std::string_view TextStream::release(std::size_t end) {
  const std::string_view text = std::string_view(text_).substr(start_, end - start_);
  start_ = end;
  return text;
}

}  // namespace guanaco
