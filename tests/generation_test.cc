#include <optional>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "bundled.h"
#include "error_of.h"
#include "steady.h"

namespace guanaco {
namespace {

TEST_CASE("the same seed gives the same text alone and in a batch and with any number of threads") {
  const SamplerOptions sampling{
      .temperature = 0.9f, .top_k = 50, .top_p = 0.95f, .repetition_penalty = 1.1f, .seed = 11};
  const auto alone = [&](const Model& model, std::string_view prompt, std::uint64_t seed) {
    Session session(model, {.context = 256});
    SamplerOptions options = sampling;
    options.seed = seed;
    return session.generate(prompt, Sampler(options), {.max_tokens = 40}).rest();
  };
  const std::string_view prompts[] = {kPrompt, "The", kStory, kPrompt};
  std::vector<std::string> expected;
  for (std::size_t i = 0; i < 4; ++i) expected.push_back(alone(bundled(), prompts[i], i));
  CHECK(expected[0] != expected[3]);  // the same prompt with another seed

  const Model four = Model::load(GUANACO_MODEL, {.device = Device::cpu, .threads = 4});
  CHECK(alone(four, prompts[0], 0) == expected[0]);

  std::vector<Session> sessions;
  std::vector<Generation> generations;
  std::vector<Generation*> pointers;
  for (std::size_t i = 0; i < 4; ++i) sessions.emplace_back(bundled(), SessionOptions{256});
  for (std::size_t i = 0; i < 4; ++i) {
    SamplerOptions options = sampling;
    options.seed = i;
    generations.push_back(sessions[i].generate(prompts[i], Sampler(options), {.max_tokens = 40}));
  }
  for (Generation& generation : generations) pointers.push_back(&generation);
  std::vector<std::string> texts(4);
  for (bool more = true; more;) {
    step(pointers);
    more = false;
    for (std::size_t i = 0; i < 4; ++i)
      if (const auto piece = generations[i].next()) {
        texts[i] += piece->text;
        more = true;
      }
  }
  CHECK(texts == expected);
}

TEST_CASE("a generation reports how it ended") {
  Session session(bundled(), {.context = 256});
  const Sampler greedy({.temperature = 0});
  {
    Generation reply = session.generate(kPrompt, greedy, {.max_tokens = 3});
    CHECK(reply.finish() == Finish::none);
    CHECK(!reply.rest().empty());
    CHECK(reply.finish() == Finish::max_tokens);
    CHECK(reply.tokens() == 3);
    CHECK(!reply.next());
  }
  session.rewind(0);
  {
    Generation reply =
        session.generate(kPrompt, greedy, {.max_tokens = 200});  // golden: EOS after 61 tokens
    const std::string text = reply.rest();
    CHECK(reply.finish() == Finish::end_of_text);
    CHECK(reply.tokens() == 61);
    CHECK(text.starts_with("The most common"));
  }
  session.rewind(0);
  {
    Generation reply =
        session.generate(kPrompt, greedy, {.max_tokens = 200, .stops = {"zebra", "a woman"}});
    CHECK(reply.rest() == "The most common optimal solution to");
    CHECK(reply.finish() == Finish::stop_text);
  }
  session.rewind(0);
  CHECK(session
            .generate(kPrompt, greedy,
                      {.max_tokens = 200, .stops = {"a woman"}, .trim_before_stop = false})
            .rest() == "The most common optimal solution to ");
  Session narrow(
      bundled(),
      {.context = 20});  // the prompt has 16 tokens, so five fit: four fed, the last only shown
  {
    Generation reply = narrow.generate(kPrompt, greedy);
    const std::string text = reply.rest();
    CHECK(reply.finish() == Finish::context_full);
    CHECK(reply.tokens() == 5);
    CHECK(narrow.position() == 20);
  }
  CHECK(error_of([&] { narrow.generate("more", greedy); }).code() == ErrorCode::context_full);
}

TEST_CASE("a session that a generation uses refuses everything else") {
  Session session(bundled(), {.context = 256});
  std::optional<Generation> reply = session.generate(kPrompt, Sampler());
  REQUIRE(reply->next());
  const char* const in_use = "the session is in use by a generation: free that first";
  CHECK(contains(error_of([&] { session.feed(ids("a")); }), in_use));
  CHECK(contains(error_of([&] { session.rewind(0); }), in_use));
  CHECK(contains(error_of([&] { session.score(ids("a")); }), in_use));
  CHECK(contains(error_of([&] { session.generate("a", Sampler()); }), in_use));
  Session moved = std::move(session);
  CHECK(reply->next());
  reply.reset();
  moved.rewind(0);
  CHECK(moved.position() == 0);
}

TEST_CASE("impossible generations are refused with one line") {
  Session session(bundled(), {.context = 32});
  CHECK(contains(error_of([&] { session.generate("a", Sampler(), {.max_tokens = 0}); }),
                 "max_tokens is 0"));
  CHECK(contains(error_of([&] { session.generate("a", Sampler(), {.max_tokens = -4}); }),
                 "max_tokens is -4"));
  CHECK(contains(error_of([&] { session.generate("a", Sampler(), {.stops = {""}}); }), "stops[0]"));
  CHECK(contains(error_of([&] { session.generate(std::span<const TokenId>(), Sampler()); }),
                 "the prompt is empty"));
  CHECK(error_of([&] { session.generate(std::string(500, 'x'), Sampler()); }).code() ==
        ErrorCode::context_full);
  CHECK(contains(error_of([&] { Session(bundled(), {.context = 0}); }), "context is 0"));
  CHECK(contains(error_of([&] { Session(bundled(), {.context = -5}); }), "context is -5"));
  CHECK(session.position() == 0);
  CHECK(session.generate("", Sampler({.temperature = 0}), {.max_tokens = 2}).rest().size() >
        0);  // goes on from BOS
}

TEST_CASE("a prompt that is not UTF-8 is read with replacement characters") {
  Session session(bundled(), {.context = 64});
  const auto reply = [&](std::string_view prompt) {
    session.rewind(0);
    return session.generate(prompt, Sampler({.temperature = 0}), {.max_tokens = 5}).rest();
  };
  CHECK(reply("\xff\xc3(") == reply("\uFFFD\uFFFD("));
}

TEST_CASE("a generation that goes on repeats and leaves out nothing") {
  const Sampler greedy({.temperature = 0});
  const std::string whole = [&] {
    Session session(bundled(), {.context = 256});
    return session.generate(kPrompt, greedy, {.max_tokens = 20}).rest();
  }();
  Session session(bundled(), {.context = 256});
  std::string text = session.generate(kPrompt, greedy, {.max_tokens = 7}).rest();
  {
    Generation second =
        session.generate("", greedy, {.max_tokens = 20, .drop_leading_space = false});
    for (int i = 0; i < 5; ++i) text += second.next()->text;  // and given up
  }
  text += session.generate("", greedy, {.max_tokens = 8, .drop_leading_space = false}).rest();
  CHECK(text == whole);

  // feed() and score() go on from there too.
  const int held = session.position();
  session.feed(ids("x"));
  CHECK(session.position() == held + 1 + int(ids("x").size()));
}

TEST_CASE("a cancelled generation leaves its session ready for the next") {
  Session session(bundled(), {.context = 256});
  std::stop_source stop;
  {
    Generation reply = session.generate(
        kStory, Sampler(), {.cancel = stop.get_token(), .progress = [&](int done, int) {
                              if (done > 18) stop.request_stop();
                            }});
    CHECK(!reply.next());  // in the middle of the prompt
    CHECK(reply.finish() == Finish::cancelled);
  }
  CHECK(session.position() == 0);
  session.feed(ids(kStory));
  CHECK(copy(session.logits()) == logits_after(bundled(), ids(kStory)));
}

TEST_CASE("cancelling one generation of a batch from another thread leaves the others alone") {
  const std::string expected = [] {
    Session session(bundled(), {.context = 256});
    return session.generate(kPrompt, Sampler({.seed = 5}), {.max_tokens = 30}).rest();
  }();
  Session first(bundled(), {.context = 256}), second(bundled(), {.context = 256});
  std::stop_source stop;
  Generation kept = first.generate(kPrompt, Sampler({.seed = 5}), {.max_tokens = 30});
  Generation cancelled = second.generate(kStory, Sampler({.seed = 6}),
                                         {.max_tokens = 2000, .cancel = stop.get_token()});
  std::jthread canceller([&] { stop.request_stop(); });
  std::string text;
  Generation* both[] = {&kept, &cancelled};
  for (;;) {
    step(both);
    cancelled.next();
    const auto piece = kept.next();
    if (!piece) break;
    text += piece->text;
  }
  CHECK(text == expected);
  CHECK(cancelled.finish() == Finish::cancelled);
}

TEST_CASE("decoding a token allocates nothing") {
  Session session(bundled(), {.context = 256}), other(bundled(), {.context = 256});
  const Sampler sampler({.temperature = 0.8f,
                         .top_k = 40,
                         .top_p = 0.9f,
                         .min_p = 0.01f,
                         .repetition_penalty = 1.1f,
                         .frequency_penalty = 0.1f,
                         .presence_penalty = 0.1f});
  const GenerateOptions options{
      .max_tokens = 200, .stops = {"### Human:"}, .stop_at_end_of_text = false};
  {
    Generation reply = session.generate(kPrompt, sampler, options);
    for (int i = 0; i < 8; ++i) reply.next();
    const long before = allocations;
    for (int i = 0; i < 60; ++i) reply.next();
    CHECK(allocations - before == 0);
  }
  session.rewind(0);
  Generation first = session.generate(kPrompt, sampler, options),
             second = other.generate(kStory, sampler, options);
  Generation* both[] = {&first, &second};
  steps(both, 8);
  const long before = allocations;
  steps(both, 60);
  CHECK(allocations - before == 0);
}

}  // namespace
}  // namespace guanaco
