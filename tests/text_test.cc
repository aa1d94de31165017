// Text in and out: the tokenizer against its goldens, prompt shapes letter by letter.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <guanaco/chat.h>
#include <guanaco/error.h>
#include <guanaco/tokenizer.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "support/utf8.h"

namespace guanaco {
namespace {

using Tokens = std::vector<TokenId>;

std::string read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

const Tokenizer& bundled() {
  static const Tokenizer tokenizer = Tokenizer::load(GUANACO_MODEL "/tokenizer.model");
  return tokenizer;
}

nlohmann::json goldens() {
  return nlohmann::json::parse(read(GUANACO_TEST_DATA "/tokenizer.json"));
}

std::string pieces(const Tokenizer& tokenizer, const Tokens& tokens) {
  std::string text;
  for (TokenId token : tokens) text += tokenizer.piece(token);
  return text;
}

/// A folder of its own, gone at the end.
struct Scratch {
  std::filesystem::path path;
  Scratch() {
    std::string name = (std::filesystem::temp_directory_path() / "guanaco-text-XXXXXX").string();
    REQUIRE(mkdtemp(name.data()) != nullptr);
    path = name;
  }
  ~Scratch() { std::filesystem::remove_all(path); }
};

/// What the process writes to stdout and stderr while this lives, up to a pipe's 64 KiB.
class Printed {
 public:
  Printed() {
    std::cout.flush();
    REQUIRE(pipe2(pipe_, O_NONBLOCK) == 0);
    for (int fd : {1, 2}) {
      kept_[fd - 1] = dup(fd);
      dup2(pipe_[1], fd);
    }
  }
  std::string finish() {
    for (int fd : {1, 2}) {
      dup2(kept_[fd - 1], fd);
      close(kept_[fd - 1]);
    }
    std::string text(1 << 16, ' ');
    text.resize(std::size_t(std::max<ssize_t>(0, ::read(pipe_[0], text.data(), text.size()))));
    for (int fd : pipe_) close(fd);
    return text;
  }

 private:
  int pipe_[2], kept_[2];
};

// A tokenizer.model by hand, in protobuf's wire format.
std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += char(value | 0x80);
  return bytes + char(value);
}
std::string number(int field, std::uint64_t value) {
  return varint(std::uint64_t(field) << 3) + varint(value);
}
std::string bytes(int field, const std::string& contents) {
  return varint(std::uint64_t(field) << 3 | 2) + varint(contents.size()) + contents;
}
enum PieceType { normal = 1, unknown, control, user_defined, unused, byte };
std::string piece(const std::string& text, PieceType type = normal) {
  return bytes(1, bytes(1, text) + number(3, type));
}
std::string specials() {
  return piece("<unk>", unknown) + piece("<s>", control) + piece("</s>", control);
}
std::string words() {
  return piece("\u2581") + piece("a") + piece("b") + piece("ab") + piece("\u2581ab");
}
std::string trainer(std::uint64_t model_type = 2) { return bytes(2, number(3, model_type)); }
std::string normalizer() { return bytes(3, bytes(1, "identity") + number(4, 0)); }
std::string small_model() { return specials() + words() + trainer() + normalizer(); }

/// Loads bytes as a tokenizer.model; the error's code and message without the path, or "loaded".
/// Whatever the bytes are, nothing may be printed.
std::string load(const Scratch& scratch, const std::string& model) {
  const auto file = scratch.path / "tokenizer.model";
  std::filesystem::remove(file);  // cheaper than overwriting it
  std::ofstream(file, std::ios::binary) << model;
  std::string outcome = "loaded";
  Printed printed;
  try {
    const Tokenizer tokenizer = Tokenizer::load(file);
    const Tokens tokens = tokenizer.encode("a b <s> \xff \u00e9");
    if (!is_utf8(tokenizer.decode(tokens))) outcome = "decodes to bad UTF-8";
    tokenizer.encode_continuation("ab");
  } catch (const Error& error) {
    const std::string what = error.what();
    outcome = what.starts_with(file.string() + ": ") && what.find('\n') == what.npos
                  ? name(error.code()) + what.substr(file.string().size())
                  : "unclear message: " + what;
  }
  CHECK(printed.finish() == "");
  return outcome;
}

}  // namespace

TEST_CASE("tokenizer: all golden strings agree both ways") {
  const auto& tokenizer = bundled();
  const auto golden = goldens();
  CHECK(tokenizer.size() == golden["vocab_size"]);
  CHECK(tokenizer.bos() == golden["bos_id"]);
  CHECK(tokenizer.eos() == golden["eos_id"]);
  CHECK(golden["strings"].size() == 200);
  for (const auto& item : golden["strings"]) {
    const auto text = item["text"].get<std::string>();
    const auto ids = item["ids"].get<Tokens>();
    CAPTURE(text);
    CHECK(tokenizer.encode(text, false) == ids);
    CHECK(tokenizer.decode(ids) == item["decoded"]);
    Tokens begun = {tokenizer.bos()};
    begun.insert(begun.end(), ids.begin(), ids.end());
    CHECK(tokenizer.encode(text) == begun);
    CHECK(tokenizer.decode(begun) == item["decoded"]);
    const std::string raw = pieces(tokenizer, begun);
    CHECK((raw.empty() ? raw : raw.substr(1)) == item["decoded"]);
  }
}

TEST_CASE("tokenizer: bytes that are not UTF-8 become replacement characters one by one") {
  const auto golden = goldens();
  CHECK(golden["invalid_utf8"].size() == 12);
  for (const auto& item : golden["invalid_utf8"]) {
    const auto hex = item["hex"].get<std::string>();
    std::string text;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      text += char(std::stoi(hex.substr(i, 2), nullptr, 16));
    CAPTURE(hex);
    CHECK(bundled().encode(text, false) == item["ids"].get<Tokens>());
    CHECK(bundled().decode(item["ids"].get<Tokens>()) == item["decoded"]);
  }
}

TEST_CASE("tokenizer: a continuation has no space put before it and loses none") {
  const auto& tokenizer = bundled();
  const auto golden = goldens();
  for (const auto& item : golden["strings"]) {
    const auto text = item["text"].get<std::string>();
    CAPTURE(text);
    const Tokens ids = tokenizer.encode_continuation(text);
    if (text.find("\u2581") == text.npos) CHECK(pieces(tokenizer, ids) == text);
    // A newline is a byte that merges with nothing: behind it, text goes on as a continuation does.
    const Tokens after = tokenizer.encode("\n" + text, false);
    CHECK(Tokens(after.begin() + 2, after.end()) == ids);
  }
  const Tokens start = tokenizer.encode("Hello"), rest = tokenizer.encode_continuation(" world");
  Tokens both = start;
  both.insert(both.end(), rest.begin(), rest.end());
  CHECK(both == tokenizer.encode("Hello world"));
  CHECK(tokenizer.encode_continuation("").empty());
}

TEST_CASE("tokenizer: special tokens typed by a user are ordinary text") {
  for (std::string text : {"<s>", "</s>", "<unk>", "a</s>b", "<0x0A>"}) {
    const Tokens ids = bundled().encode(text, false);
    CHECK(std::find_if(ids.begin(), ids.end(), [](TokenId id) { return id < 3; }) == ids.end());
    CHECK(std::find(ids.begin(), ids.end(), 13) == ids.end());
    CHECK(bundled().decode(ids) == text);
  }
}

TEST_CASE("tokenizer: byte pieces are raw and control and foreign ids are nothing") {
  const auto& tokenizer = bundled();
  for (int value = 0; value < 256; ++value)
    CHECK(tokenizer.piece(3 + value) == std::string(1, char(value)));
  for (TokenId token : {1, 2, -1, tokenizer.size(), 1 << 30}) CHECK(tokenizer.piece(token) == "");
  CHECK(tokenizer.piece(0) == " \u2047 ");
  CHECK(tokenizer.decode(Tokens{3 + 'a', 3 + 0xf0, 3 + 0x9f, 3 + 'b', -5, 1 << 30, 2}) ==
        "a\ufffd\ufffdb");
  CHECK(tokenizer.decode(Tokens{3 + 0xf0, 3 + 0x9f, 3 + 0x98, 3 + 0x80}) == "\U0001f600");
  CHECK(tokenizer.decode(Tokens{}) == "");
}

TEST_CASE("tokenizer: long texts of any kind cost little more than linear time") {
  std::string prose = read(GUANACO_TEST_DATA "/eval.txt");
  while (prose.size() < 300000) prose += "All camelids hum. ";
  for (const std::string& text :
       {prose, std::string(300000, ' '), std::string(300000, 'a'), std::string(300000, '#')}) {
    const auto start = std::chrono::steady_clock::now();
    const Tokens tokens = bundled().encode(text);
    const bool equal = bundled().decode(tokens) == text;
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    CHECK(equal);
    CHECK(took.count() < 10);  // quadratic would be minutes; the bound leaves room for sanitizers
  }
}

TEST_CASE("tokenizer: files that are no BPE model are refused in one line and nothing is printed") {
  const Scratch scratch;
  CHECK(load(scratch, small_model()) == "loaded");
  CHECK(load(scratch, "") == "malformed: expected a SentencePiece model, found an empty file");
  CHECK(load(scratch, "{\"version\": 1}") ==
        "malformed: expected a SentencePiece model, found other data");
  CHECK(load(scratch, trainer()) == "malformed: expected a SentencePiece model, found no pieces");
  const std::string cut = small_model().substr(0, small_model().size() - 1);
  CHECK(load(scratch, cut) ==
        "malformed: expected a SentencePiece model, found one that is cut short or damaged");
  CHECK(load(scratch, small_model() + bytes(1,
                                            "\x0a\x7f"
                                            "a")) == "malformed: piece 8 is no protobuf message");
  CHECK(load(scratch, small_model() + piece(std::string("a\0b", 3), user_defined)) ==
        "malformed: piece 8 holds a NUL character");
  CHECK(load(scratch, specials() + words() + trainer(1) + normalizer()) ==
        "unsupported: expected model_type 2 (BPE), found 1 (UNIGRAM)");
  CHECK(load(scratch, specials() + words() + normalizer()) ==
        "unsupported: expected model_type 2 (BPE), found 1 (UNIGRAM)");
  CHECK(load(scratch, small_model() + trainer(3)) ==
        "unsupported: expected model_type 2 (BPE), found 3");
  CHECK(load(scratch, small_model() + bytes(3, bytes(2, "chars"))) ==
        "unsupported: expected no precompiled_charsmap, found one");
  CHECK(load(scratch, small_model() + bytes(5, bytes(2, "chars"))) ==
        "unsupported: expected no precompiled_charsmap, found one");
  CHECK(load(scratch, small_model() + bytes(2, number(24, 1))) ==
        "unsupported: expected spaces before words, found treat_whitespace_as_suffix");
  for (const std::string& model :
       {words() + trainer() + normalizer(), small_model() + piece("a"), small_model() + piece(""),
        small_model() + piece("x\ny", byte), small_model() + bytes(2, number(35, 1))})
    CHECK(load(scratch, model).starts_with("malformed: sentencepiece refuses it: "));
  CHECK(load(scratch, small_model() + piece("<", control))
            .starts_with("malformed: sentencepiece cannot encode a text with it: "));
  // A failing self-test would make sentencepiece print; it is none of our business.
  CHECK(load(scratch, small_model() + bytes(4, bytes(1, bytes(1, "ab") + bytes(2, "b a")))) ==
        "loaded");
  CHECK_THROWS_WITH_AS(bundled().encode(std::string((64 << 20) + 1, 'a')),
                       "text: expected at most 67108864 bytes, found 67108865", Error);
  CHECK_THROWS_AS(Tokenizer::load(scratch.path / "absent"), Error);
  CHECK_THROWS_AS(Tokenizer::load(scratch.path), Error);
}

TEST_CASE("tokenizer: a model without byte pieces streams what it decodes") {
  const Scratch scratch;
  std::ofstream(scratch.path / "m", std::ios::binary) << small_model();
  const auto tokenizer = Tokenizer::load(scratch.path / "m");
  const Tokens ids = tokenizer.encode("ab\u00e9 a");
  CHECK(ids == Tokens{1, 7, 0, 3, 4});
  CHECK(tokenizer.decode(ids) == "ab \u2047  a");
  CHECK(pieces(tokenizer, ids) == " ab \u2047  a");
  CHECK(tokenizer.encode_continuation("\u00e9ab ab") == Tokens{0, 6, 7});
}

TEST_CASE("tokenizer: a damaged model is refused or works but never crashes or prints") {
  const Scratch scratch;
  const std::string others = piece("<u>", user_defined) + piece("aa", unused) + number(9, 9);
  std::string byte_pieces = bytes(2, number(35, 1));
  for (int value = 0; value < 256; ++value) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", unsigned(value));
    byte_pieces += piece(text, byte);
  }
  std::mt19937 random(12);
  int loaded = 0;
  for (const std::string& model :
       {small_model(), small_model() + others, small_model() + others + byte_pieces}) {
    for (int round = 0; round < 1000; ++round) {
      std::string damaged = model;
      for (unsigned edits = 1 + random() % 3; edits > 0 && !damaged.empty(); --edits) {
        const std::size_t place = random() % damaged.size();
        switch (random() % 5) {
          case 0:
            damaged[place] = char(random());
            break;
          case 1:
            damaged[place] = char(damaged[place] ^ (1 << random() % 8));
            break;
          case 2:
            damaged.erase(place, 1 + random() % 8);
            break;
          case 3:
            damaged.insert(place, damaged.substr(random() % damaged.size(), random() % 40));
            break;
          default:
            damaged.resize(place);
        }
      }
      const std::string outcome = load(scratch, damaged);
      CAPTURE(outcome);
      loaded += outcome == "loaded";
      CHECK((outcome == "loaded" || outcome.starts_with("malformed: ") ||
             outcome.starts_with("unsupported: ")));
    }
  }
  CHECK(loaded > 100);  // the damage must often get past our own checks
}

TEST_CASE("chat: each template has exactly its published shape") {
  const std::string s =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the user's questions.";
  const std::string w =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the human's questions.";
  struct Golden {
    std::string name, one, two, system, no_system;
  };
  const std::vector<Golden> shapes = {
      {"guanaco", s + "\n### Human: Q\n### Assistant:",
       s + "\n### Human: Q\n### Assistant: A\n### Human: R\n### Assistant:",
       "Be brief.\n### Human: Q\n### Assistant:", "### Human: Q\n### Assistant:"},
      {"card", s + "\n### Human: Q ### Assistant:",
       s + "\n### Human: Q ### Assistant: A\n### Human: R ### Assistant:",
       "Be brief.\n### Human: Q ### Assistant:", "### Human: Q ### Assistant:"},
      {"train",
       "### Human: Q### Assistant:", "### Human: Q### Assistant: A### Human: R### Assistant:",
       "Be brief.### Human: Q### Assistant:", "### Human: Q### Assistant:"},
      {"eval", s + " ### Human: Q ### Assistant:",
       s + " ### Human: Q ### Assistant: A ### Human: R ### Assistant:",
       "Be brief. ### Human: Q ### Assistant:", "### Human: Q ### Assistant:"},
      {"webui", w + "\n\n### Human: Q\n### Assistant:",
       w + "\n\n### Human: Q\n### Assistant: A\n### Human: R\n### Assistant:",
       "Be brief.\n\n### Human: Q\n### Assistant:", "### Human: Q\n### Assistant:"},
  };
  REQUIRE(ChatTemplate::all().size() == shapes.size());
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    const Golden& golden = shapes[i];
    CAPTURE(golden.name);
    CHECK(ChatTemplate::all()[i].name() == golden.name);
    const auto& chat = ChatTemplate::named(golden.name);
    const auto render = [&](std::vector<Message> messages) { return chat.render(messages); };
    const Message question{Role::user, "Q"}, answer{Role::assistant, "A"}, next{Role::user, "R"};
    CHECK(render({question}) == golden.one);
    CHECK(render({question, answer, next}) == golden.two);
    CHECK(render({{Role::system, "Be brief."}, question}) == golden.system);
    CHECK(render({{Role::system, ""}, question}) == golden.no_system);
    REQUIRE(chat.stops().size() == 2);
    CHECK(chat.stops()[0] == "### Human:");
    CHECK(chat.stops()[1] == "### Assistant:");
  }
}

TEST_CASE("chat: conversations out of order and unknown names are refused by name") {
  const Message s{Role::system, "S"}, u{Role::user, "U"}, a{Role::assistant, "A"};
  const auto refusal = [](std::vector<Message> messages) -> std::string {
    try {
      ChatTemplate::named("guanaco").render(messages);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::invalid_argument);
      return error.what();
    }
    return "accepted";
  };
  CHECK(refusal({}) == "conversation[0]: expected a message of role user, found the end");
  CHECK(refusal({s}) == "conversation[1]: expected a message of role user, found the end");
  CHECK(refusal({a}) == "conversation[0]: expected a message of role user, found assistant");
  CHECK(refusal({u, u}) == "conversation[1]: expected a message of role assistant, found user");
  CHECK(refusal({u, s, u}) ==
        "conversation[1]: expected a message of role assistant, found system");
  CHECK(refusal({s, s, u}) == "conversation[1]: expected a message of role user, found system");
  CHECK(refusal({s, u, a}) ==
        "conversation[2]: expected the last message to be of role user, found assistant");
  CHECK(refusal({s, u, a, u}) == "accepted");
  CHECK_THROWS_WITH_AS(
      ChatTemplate::named("vicuna"),
      "chat template: expected one of guanaco, card, train, eval, webui, found 'vicuna'", Error);
}

}  // namespace guanaco
