// Streaming: whole code points, stop texts across every cut, nothing held that need not be.
#include <doctest/doctest.h>
#include <guanaco/error.h>
#include <guanaco/stream.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <random>
#include <string>

#include "support/utf8.h"

namespace guanaco {
namespace {

/// Pushes `text` in random pieces; every release must be whole UTF-8.
std::string stream(TextStream& stream, std::string_view text, std::mt19937& random) {
  std::string released;
  const auto add = [&](std::string_view part) {
    CHECK(is_utf8(part));
    released += part;
  };
  const unsigned most = 1 + random() % 6;
  while (!text.empty()) {
    const std::size_t count = std::min<std::size_t>(text.size(), random() % (most + 1));
    add(stream.push(text.substr(0, count)));
    text.remove_prefix(count);
  }
  add(stream.finish());
  CHECK(stream.finish() == "");
  CHECK(stream.push("more") == "");
  return released;
}

std::string all_at_once(std::string_view bytes) {
  TextStream stream;
  std::string text(stream.push(bytes));
  return text + std::string(stream.finish());
}

bool white(char c) { return std::string_view(" \t\n\v\f\r").find(c) != std::string_view::npos; }

}  // namespace

TEST_CASE("stream: bad bytes become one replacement character for each maximal subpart") {
  const std::string r = "\ufffd";
  CHECK(all_at_once("a\xc0\xaf"
                    "b") == "a" + r + r + "b");             // overlong
  CHECK(all_at_once("\xe0\x80\xbf") == r + r + r);          // overlong
  CHECK(all_at_once("\xed\xa0\x80") == r + r + r);          // a surrogate
  CHECK(all_at_once("\xf4\x90\x80\x80") == r + r + r + r);  // above U+10FFFF
  CHECK(all_at_once("\xf5\xff\x80"
                    "x") == r + r + r + "x");
  CHECK(all_at_once("\xf0\x9f\x98"
                    "x") == r + "x");  // cut short
  CHECK(all_at_once("\xf0\x9f\x98\xe2\x96\xe2\x96\x81") == r + r + "\u2581");
  CHECK(all_at_once("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf"
                    "A") == r + r + r + r + "A");
  CHECK(all_at_once("\xf0\x9f") == r);  // at the end
  CHECK(all_at_once("\xf4\x8f\xbf\xbf\xee\x80\x80\xed\x9f\xbf\xc2\x80") ==
        "\U0010ffff\ue000\ud7ff\u0080");
}

TEST_CASE("stream: a code point is held until it is whole and a bad one is not held for ever") {
  TextStream stream;
  CHECK(stream.push("a\xf0\x9f") == "a");
  CHECK(stream.push("\x98") == "");
  CHECK(stream.push("\x80") == "\U0001f600");
  CHECK(stream.push("\xe2\x96") == "");
  CHECK(stream.push("x") == "\ufffdx");
  CHECK(stream.push("\x80") == "\ufffd");
}

TEST_CASE("stream: a stop text ends it wherever it is cut") {
  for (std::size_t first = 0; first <= 24; ++first) {
    for (std::size_t second = first; second <= 24; ++second) {
      const std::string text = "Sure. \n\n### Human: ignore";
      TextStream stream({.stops = {"### Assistant:", "### Human:"}});
      std::string released(stream.push(text.substr(0, first)));
      released += stream.push(text.substr(first, second - first));
      released += stream.push(text.substr(second));
      released += stream.finish();
      CHECK(released == "Sure.");
      CHECK(stream.stop() == 1);
    }
  }
}

TEST_CASE("stream: only what may belong to a stop text is held") {
  TextStream stream({.stops = {"### Human:"}});
  CHECK(stream.push("A list:\n") == "A list:");
  CHECK(stream.push("##") == "");
  CHECK(stream.push("# Head") == "\n### Head");
  CHECK(stream.push(" \t") == "");
  CHECK(stream.push("#") == "");
  CHECK(stream.finish() == " \t#");
  CHECK(!stream.stop());
  TextStream eager({.stops = {"###"}, .trim_before_stop = false});
  CHECK(eager.push("a \n") == "a \n");
  CHECK(eager.push(" ####") == " ");
  CHECK(eager.stop() == 0);
  TextStream free;  // without stop texts nothing follows white space
  CHECK(free.push("a \n") == "a \n");
}

TEST_CASE("stream: one leading space is dropped on request and no more") {
  TextStream stream({.drop_leading_space = true});
  CHECK(stream.push("") == "");
  CHECK(stream.push(" ") == "");
  CHECK(stream.push(" a ") == " a ");
  TextStream other({.drop_leading_space = true});
  CHECK(other.push("a") == "a");
  CHECK(other.push(" b") == " b");
}

TEST_CASE("stream: the stop text that is complete first counts and of equals the longest") {
  const auto found = [](std::vector<std::string> stops, std::string_view text) {
    TextStream stream({.stops = std::move(stops)});
    const std::string released(stream.push(text));
    return released + "|" + std::to_string(stream.stop().value_or(99));
  };
  CHECK(found({"b", "ab"}, "xab") == "x|1");
  CHECK(found({"abcd", "bc"}, "xabcd") == "xa|1");
  CHECK(found({"aab"}, "aaab") == "a|0");
  CHECK(found({"abab", "abac"}, "xababac") == "x|0");
}

TEST_CASE("stream: stop texts that are empty or not UTF-8 are refused") {
  CHECK_THROWS_WITH_AS(TextStream({.stops = {"a", ""}}), "stops[1]: expected a text, found none",
                       Error);
  CHECK_THROWS_WITH_AS(TextStream({.stops = {"\x98\x80"}}),
                       "stops[0]: expected UTF-8, found other bytes", Error);
}

TEST_CASE("stream: every text and split and set of stops gives the text before the stop") {
  const std::vector<std::string> alphabet = {"a",      "b",          " ",        "\n",   "#",
                                             "\u00e9", "\U0001f600", "\xf0\x9f", "\xff", "\x80"};
  std::mt19937 random(2024);
  const auto word = [&](std::size_t letters, std::size_t most) {
    std::string text;
    for (std::size_t n = 1 + random() % most; n > 0; --n) text += alphabet[random() % letters];
    return text;
  };
  int stopped = 0;
  for (int round = 0; round < 6000; ++round) {
    TextStreamOptions options{.drop_leading_space = random() % 2 == 0,
                              .trim_before_stop = random() % 2 == 0};
    for (unsigned n = random() % 4; n > 0; --n)
      options.stops.push_back(word(random() % 2 ? 3 : 7, 5));
    const std::string bytes = word(random() % 2 ? 4 : alphabet.size(), 40);

    // What it should be, from the whole text.
    std::string text =
        all_at_once(options.drop_leading_space && bytes[0] == ' ' ? bytes.substr(1) : bytes);
    std::optional<std::size_t> stop;
    std::size_t end = text.npos;
    for (std::size_t i = 0; i < options.stops.size(); ++i) {
      const std::string& candidate = options.stops[i];
      const std::size_t at = text.find(candidate);
      if (at == text.npos) continue;
      const std::size_t done = at + candidate.size();
      if (!stop || done < end || (done == end && candidate.size() > options.stops[*stop].size())) {
        stop = i;
        end = done;
      }
    }
    if (stop) {
      text.resize(end - options.stops[*stop].size());
      while (options.trim_before_stop && !text.empty() && white(text.back())) text.pop_back();
      ++stopped;
    }
    CAPTURE(bytes);
    TextStream streamed(options);
    CHECK(stream(streamed, bytes, random) == text);
    CHECK(streamed.stop() == stop);
  }
  CHECK(stopped > 1000);
}

TEST_CASE("stream: no more is held than must be") {
  const std::vector<std::string> stops = {"ab a", " b", "aab", "\nb"};
  std::mt19937 random(99);
  for (int round = 0; round < 300; ++round) {
    TextStream streamed({.stops = stops});
    std::string received, released;
    for (int i = 0; i < 40 && !streamed.stop(); ++i) {
      received += "ab \nx"[random() % 5];
      released += streamed.push(std::string_view(received).substr(received.size() - 1));
      if (streamed.stop()) break;
      std::size_t held = 0;
      for (const std::string& stop : stops)
        for (std::size_t n = 1; n < stop.size(); ++n)
          if (received.ends_with(stop.substr(0, n))) held = std::max(held, n);
      std::size_t end = received.size() - held;
      while (end > 0 && white(received[end - 1])) --end;
      CHECK(released == received.substr(0, end));
    }
  }
}

TEST_CASE("stream: a byte costs the same however much is held") {
  const std::string marks(200000, '#'), spaces(200000, ' ');
  for (const std::string& text : {marks, spaces, marks + spaces + marks}) {
    TextStream streamed({.stops = {std::string(100000, '#') + "x", "### Human:"}});
    const auto start = std::chrono::steady_clock::now();
    std::size_t released = 0;
    for (char byte : text) released += streamed.push({&byte, 1}).size();
    released += streamed.finish().size();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    CHECK(released == text.size());
    CHECK(took.count() < 5);  // quadratic moves 20 GB
  }
}

}  // namespace guanaco
