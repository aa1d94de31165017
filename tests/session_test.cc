#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "bundled.h"
#include "error_of.h"

namespace guanaco {
namespace {

TEST_CASE("feeding in slices gives the same logits as feeding at once") {
  const std::vector<TokenId> tokens = ids(kStory);
  const std::vector<float> at_once = logits_after(bundled(), tokens);
  for (const std::size_t slice :
       {std::size_t(1), std::size_t(7), std::size_t(16), std::size_t(33)}) {
    Session session(bundled(), {.context = 256});
    for (std::size_t i = 0; i < tokens.size(); i += slice)
      session.feed(std::span(tokens).subspan(i, std::min(slice, tokens.size() - i)));
    CHECK(copy(session.logits()) == at_once);
    CHECK(session.position() == int(tokens.size()));
  }
}

TEST_CASE("a batch of sessions gives each the logits it has alone") {
  const std::vector<std::vector<TokenId>> prompts = {ids(kStory), ids("The"), ids(kPrompt),
                                                     ids("Hello there, how are you?")};
  std::vector<Session> sessions;
  for (std::size_t i = 0; i < prompts.size(); ++i)
    sessions.emplace_back(bundled(), SessionOptions{256});
  std::vector<Feed> feeds;
  for (std::size_t i = 0; i < prompts.size(); ++i) feeds.push_back({&sessions[i], prompts[i]});
  feed(feeds);
  for (std::size_t i = 0; i < prompts.size(); ++i)
    CHECK(copy(sessions[i].logits()) == logits_after(bundled(), prompts[i]));
}

TEST_CASE("the logits do not depend on the number of threads") {
  const std::vector<TokenId> tokens = ids(kStory);
  const std::vector<float> two = logits_after(bundled(), tokens);
  for (const int threads : {1, 3, 4}) {
    const Model model = Model::load(GUANACO_MODEL, {.device = Device::cpu, .threads = threads});
    CHECK(logits_after(model, tokens) == two);
  }
}

TEST_CASE("a rewound session is as if the tokens after had never been") {
  const std::vector<TokenId> tokens = ids(kStory);
  const std::vector<float> expected = logits_after(bundled(), tokens);
  Session session(bundled(), {.context = 256});
  session.feed(std::span(tokens).first(20));
  session.feed(ids("something else entirely, which is then taken back"));
  session.rewind(20);
  CHECK(session.logits().empty());
  CHECK(session.position() == 20);
  session.feed(std::span(tokens).subspan(20));
  CHECK(copy(session.logits()) == expected);
  CHECK(contains(error_of([&] { session.rewind(-1); }), "cannot rewind to position -1"));
  CHECK(contains(error_of([&] { session.rewind(10000); }), "expected 0 to"));
}

TEST_CASE("reuse keeps the common beginning and leaves one token to feed") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 256});
  CHECK(session.reuse(tokens) == 0);
  session.feed(tokens);
  CHECK(session.reuse(tokens) == int(tokens.size()) - 1);
  session.feed(std::span(tokens).last(1));
  std::vector<TokenId> other(tokens.begin(), tokens.begin() + 12);
  other.push_back(tokens[12] == 300 ? 301 : 300);
  CHECK(session.reuse(other) == 12);
  session.feed(std::span(other).last(1));
  CHECK(copy(session.logits()) == logits_after(bundled(), other));
}

TEST_CASE("scores are the log-probabilities that feeding token by token gives") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 256});
  std::vector<float> scores = session.score(std::span(tokens).first(5));
  const std::vector<float> rest = session.score(std::span(tokens).subspan(5));
  scores.insert(scores.end(), rest.begin(), rest.end());
  REQUIRE(scores.size() == tokens.size());
  CHECK(copy(session.logits()) == logits_after(bundled(), tokens));

  Session single(bundled(), {.context = 256});
  CHECK(scores[0] == 0);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) {
      double sum = 0;
      for (const float logit : single.logits()) sum += std::exp(double(logit));
      CHECK(scores[i] ==
            doctest::Approx(double(single.logits()[std::size_t(tokens[i])]) - std::log(sum))
                .epsilon(1e-5));
    }
    single.feed(std::span(tokens).subspan(i, 1));
  }
}

TEST_CASE("a feed that fails changes nothing") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 64}), other(bundled(), {.context = 64});
  session.feed(std::span(tokens).first(10));
  other.feed(std::span(tokens).first(3));
  const std::vector<float> before = copy(session.logits());
  const auto unchanged = [&] {
    CHECK(session.position() == 10);
    CHECK(other.position() == 3);
    CHECK(copy(session.logits()) == before);
  };

  const std::vector<TokenId> many(60, 300);
  CHECK(error_of([&] { session.feed(many); }).code() == ErrorCode::context_full);
  unchanged();
  CHECK(contains(error_of([&] { session.feed(many); }),
                 "60 tokens do not fit: the session holds 10 and has room for 64"));
  const std::vector<TokenId> few(2, 300);
  const Feed one_too_long[] = {{&other, few}, {&session, many}};
  CHECK(contains(error_of([&] { feed(one_too_long); }), "feed 1 of 2: 60 tokens do not fit"));
  unchanged();
  for (const TokenId wrong : {-1, bundled().info().vocab})
    CHECK(error_of([&] {
            session.feed(std::vector{TokenId(300), wrong});
          }).code() == ErrorCode::invalid_argument);
  unchanged();

  // Cancelled in the middle of a prompt of several passes: by then other tokens were written behind
  // the position.
  std::stop_source stop;
  const FeedOptions options{.cancel = stop.get_token(), .progress = [&](int done, int) {
                              if (done > 20) stop.request_stop();
                            }};
  const Feed both[] = {{&session, std::span(tokens).subspan(10, 30)},
                       {&other, std::span(tokens).first(25)}};
  CHECK(error_of([&] { feed(both, options); }).code() == ErrorCode::cancelled);
  unchanged();
  const Feed twice[] = {{&session, tokens}, {&session, tokens}};
  CHECK(contains(error_of([&] { feed(twice); }), "same session"));
  unchanged();

  session.feed(std::span(tokens).subspan(10, 20));
  CHECK(copy(session.logits()) == logits_after(bundled(), std::span(tokens).first(30)));
}

TEST_CASE("a feed that fails after a reply leaves the reply's last token unfed") {
  const std::vector<TokenId> prompt = ids(kPrompt), more = ids(kStory);
  const int held = int(prompt.size()) + 2;
  const auto with_reply = [&](int context) {
    Session session(bundled(), {.context = context});
    session.generate(prompt, Sampler({.temperature = 0}), {.max_tokens = 3}).rest();
    REQUIRE(session.position() == held);
    return session;
  };
  Session expected = with_reply(256);
  expected.feed(more);
  REQUIRE(expected.position() == held + 1 + int(more.size()));

  // One token more than there is room for; each of them alone would fit.
  Session full = with_reply(held + 10), other = with_reply(held + 10);
  const std::vector<float> before = copy(full.logits());
  const auto too_many = std::span(more).first(10);
  const Feed both[] = {{&other, std::span(more).first(1)}, {&full, too_many}};
  CHECK(error_of([&] { full.feed(too_many); }).code() == ErrorCode::context_full);
  CHECK(error_of([&] { full.score(too_many); }).code() == ErrorCode::context_full);
  CHECK(error_of([&] { feed(both); }).code() == ErrorCode::context_full);
  CHECK(error_of([&] { full.generate(too_many, Sampler()); }).code() == ErrorCode::context_full);
  for (Session* const session : {&full, &other}) {
    CHECK(session->position() == held);
    CHECK(copy(session->logits()) == before);
    session->feed({});  // nothing happens
    CHECK(session->position() == held);
    session->feed(too_many.first(9));
    CHECK(session->position() == held + 10);
    session->feed({});
  }

  for (const int at : {1, 20, int(more.size()) + 1}) {  // in the first pass, the second, the end
    Session session = with_reply(256), second = with_reply(256);
    const auto stopped_there = [&] {
      std::stop_source stop;
      return FeedOptions{.cancel = stop.get_token(), .progress = [=](int done, int) mutable {
                           if (done >= at) stop.request_stop();
                         }};
    };
    const Feed feeds[] = {{&session, more}, {&second, std::span(more).first(3)}};
    CHECK(error_of([&] { session.feed(more, stopped_there()); }).code() == ErrorCode::cancelled);
    CHECK(error_of([&] { feed(feeds, stopped_there()); }).code() == ErrorCode::cancelled);
    CHECK(error_of([&] { session.score(more, stopped_there()); }).code() == ErrorCode::cancelled);
    CHECK(session.position() == held);
    CHECK(second.position() == held);
    CHECK(copy(session.logits()) == before);
    session.feed(more);
    CHECK(std::ranges::equal(session.tokens(), expected.tokens()));
    CHECK(copy(session.logits()) == copy(expected.logits()));
    const std::vector<float> scores = second.score(more);
    CHECK(copy(second.logits()) == copy(expected.logits()));
    second.rewind(held + 1);
    CHECK(second.score(more) == scores);
  }
}

TEST_CASE("a score that fails after a rewind leaves no logits") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 256});
  session.feed(tokens);
  session.rewind(10);
  const FeedOptions options{.progress = [](int, int) { throw std::runtime_error("enough"); }};
  CHECK_THROWS_AS(session.score(tokens, options), std::runtime_error);
  CHECK(session.logits().empty());
  CHECK(session.position() == 10);
}

TEST_CASE("progress of a feed only grows and ends at the total") {
  Session session(bundled(), {.context = 256});
  const std::vector<TokenId> tokens = ids(kStory);
  int last = 0, calls = 0;
  session.feed(tokens, {.progress = [&](int done, int total) {
                 CHECK(total == int(tokens.size()));
                 CHECK(done >= last);
                 last = done;
                 ++calls;
               }});
  CHECK(last == int(tokens.size()));
  CHECK(calls > bundled().info().layers);
}

TEST_CASE("scores after a rewind are those of the text that is left") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 256});
  const std::vector<float> expected = session.score(tokens);
  session.rewind(10);
  const std::vector<float> again = session.score(std::span(tokens).subspan(10));
  CHECK(std::equal(again.begin(), again.end(), expected.begin() + 10));
  CHECK(session.position() == int(tokens.size()));
}

TEST_CASE("a progress callback that throws at the end leaves the session as it was") {
  Session session(bundled(), {.context = 256});
  const auto stop = [](int done, int total) {
    if (done == total) throw std::runtime_error("enough");
  };
  CHECK_THROWS_AS(session.feed(ids(kStory), {.progress = stop}), std::runtime_error);
  CHECK(session.position() == 0);
  CHECK(session.logits().empty());
}

TEST_CASE("a progress callback is refused what would wait for its own call") {
  const std::vector<TokenId> tokens = ids(kStory);
  Session session(bundled(), {.context = 256}), other(bundled(), {.context = 256});
  Session talking(bundled(), {.context = 256});
  Generation reply = talking.generate(kPrompt, Sampler({.temperature = 0}), {.max_tokens = 3});
  Generation* const replies[] = {&reply};
  int calls = 0;
  const auto refused = [](auto&& call) {
    const Error error = error_of(call);
    CHECK(error.code() == ErrorCode::invalid_argument);
    CHECK(contains(error, "from a callback"));
  };
  const auto progress = [&](int, int) {
    ++calls;
    refused([&] { other.feed(tokens); });
    refused([&] { other.score(tokens); });
    refused([&] { Session(bundled(), {.context = 64}); });
    refused([&] { reply.next(); });
    refused([&] { step(replies); });
    CHECK(other.position() == 0);
  };
  session.feed(tokens, {.progress = progress});
  CHECK(calls > 2 * bundled().info().layers);
  CHECK(copy(session.logits()) == logits_after(bundled(), tokens));

  session.rewind(0);
  calls = 0;
  const std::string text =
      session
          .generate(kPrompt, Sampler({.temperature = 0}), {.max_tokens = 3, .progress = progress})
          .rest();
  CHECK(reply.rest() == text);
  CHECK(calls > 0);
}

TEST_CASE("who waits for another reports progress and can be cancelled by it") {
  Session slow(bundled(), {.context = 64}), waiting(bundled(), {.context = 64}),
      third(bundled(), {.context = 64});
  // Also a score whose first token needs logits that are gone.
  bool score = false;
  SUBCASE("in a feed") {}
  SUBCASE("in a score after a rewind") {
    score = true;
    waiting.feed(std::vector<TokenId>{1, 2, 3});
    waiting.rewind(2);
  }
  std::atomic<bool> computing = false, cancelled = false, in_time = false;
  std::jthread other([&] {
    slow.feed(ids("a"), {.progress = [&](int done, int) {
                if (done > 0 || computing.exchange(true)) return;
                for (int i = 0; i < 5000 && !cancelled; ++i)  // while this holds its pass up
                  std::this_thread::sleep_for(std::chrono::milliseconds(1));
                in_time = bool(cancelled);
              }});
  });
  while (!computing) std::this_thread::yield();
  std::stop_source stop;
  const FeedOptions options{
      .cancel = stop.get_token(), .progress = [&](int, int) {
        CHECK(contains(error_of([&] { third.feed(ids("a")); }), "from a callback"));
        stop.request_stop();
      }};
  CHECK(error_of([&] {
          if (score) {
            waiting.score(ids("a"), options);
          } else {
            waiting.feed(ids("a"), options);
          }
        }).code() == ErrorCode::cancelled);
  CHECK(waiting.position() == (score ? 2 : 0));
  cancelled = true;
  other.join();
  CHECK(in_time);
}

TEST_CASE("a long feed takes turns with a short one") {
  Session slow(bundled(), {.context = 2048}), quick(bundled(), {.context = 64});
  const std::vector<TokenId> long_text(1800, 300);
  std::atomic<int> done = 0;
  std::atomic<bool> finished = false;
  std::jthread other([&] {
    slow.feed(long_text, {.progress = [&](int now, int) { done = now; }});
    finished = true;
  });
  while (done < 32) std::this_thread::yield();
  quick.feed(ids("a"));  // in between two of its passes
  CHECK(!finished);
}

TEST_CASE("sessions of one model on several threads do not disturb each other") {
  const std::vector<TokenId> tokens = ids(kStory);
  const std::vector<float> expected = logits_after(bundled(), tokens);
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> threads;
    for (int t = 0; t < 3; ++t)
      threads.emplace_back([&] {
        for (int round = 0; round < 3; ++round)
          wrong += logits_after(bundled(), tokens) != expected;
      });
  }
  CHECK(wrong == 0);
}

}  // namespace
}  // namespace guanaco
