#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "choosing_fixture.h"

namespace guanaco {
namespace {

TEST_CASE("the device chooses what the host would") {
  const DeviceModel device;
  for (const SamplerOptions& options : kSamplings)
    for (const std::uint64_t seed : {1u, 2u, 77u}) {
      CAPTURE(options.temperature);
      CAPTURE(seed);
      const int before = device.backend->rows_chosen;
      const GenerateOptions limits{.max_tokens = 30};
      const Reply reply = reply_of(device.model, kPrompt, sampler(options, seed), limits);
      CHECK(reply == reply_of(host(), kPrompt, sampler(options, seed), limits));
      CHECK(device.backend->rows_chosen >= before + int(reply.tokens.size()) - 1);
    }
}

TEST_CASE("replies end alike and leave the same session wherever tokens are chosen") {
  const DeviceModel device;
  struct Ending {
    GenerateOptions options;
    int context;
    Finish finish;
  };
  const Ending endings[] = {
      {{.max_tokens = 200}, 256, Finish::end_of_text},
      {{.max_tokens = 200, .stops = {"zebra", "a woman"}}, 256, Finish::stop_text},
      {{.max_tokens = 1}, 256, Finish::max_tokens},
      {{.max_tokens = 2}, 256, Finish::max_tokens},
      {{.max_tokens = 3}, 256, Finish::max_tokens},
      {{.max_tokens = 17}, 256, Finish::max_tokens},
      {{.max_tokens = 200}, 16, Finish::context_full},
      {{.max_tokens = 200}, 17, Finish::context_full},
      {{.max_tokens = 200}, 18, Finish::context_full},
      {{.max_tokens = 200}, 23, Finish::context_full},
  };
  for (const Ending& ending : endings) {
    CAPTURE(ending.options.max_tokens);
    CAPTURE(ending.context);
    Session here(host(), {.context = ending.context}),
        there(device.model, {.context = ending.context});
    const Reply expected = reply_of(here, kPrompt, kGreedy, ending.options);
    CHECK(reply_of(there, kPrompt, kGreedy, ending.options) == expected);
    CHECK(expected.finish == ending.finish);
    CHECK(held(there) == held(here));
  }
}

TEST_CASE("the device gets the next pass before the host waits for a token") {
  const DeviceModel device;
  Session session(device.model, {.context = 256});
  const GenerateOptions options{.max_tokens = 20, .stop_at_end_of_text = false};
  CHECK(reply_of(session, "The", kGreedy, options).tokens.size() == 20);
  CHECK(device.backend->passes == 20);       // the prompt and 19 tokens: none in vain
  CHECK(device.backend->rows_chosen == 19);  // the first token is the host's
  CHECK(device.backend->ran_ahead == 18);
  CHECK(device.backend->ended == 1);  // the prompt
  CHECK(device.backend->logits_calls == 1);
}

TEST_CASE("a step runs ahead for all its generations") {
  const DeviceModel device;
  std::vector<Session> sessions;
  std::vector<Generation> generations;
  std::vector<Generation*> group;
  for (int i = 0; i < 3; ++i) sessions.emplace_back(device.model, SessionOptions{256});
  for (std::size_t i = 0; i < 3; ++i)
    generations.push_back(sessions[i].generate(kPrompts[i], kGreedy,
                                               {.max_tokens = 20, .stop_at_end_of_text = false}));
  for (Generation& generation : generations) group.push_back(&generation);
  for (int i = 0; i < 20; ++i) {
    step(group);
    for (Generation& generation : generations) CHECK(generation.next());
  }
  CHECK(device.backend->ran_ahead == 18);
  CHECK(device.backend->rows_chosen == 19 * 3);
}

TEST_CASE("generations of a step may end and be replaced at any time") {
  const DeviceModel device;
  const int lengths[] = {5, 9, 14, 3, 11, 6, 1, 8, 2};
  const auto limits = [&](std::size_t i) {
    return GenerateOptions{.max_tokens = lengths[i], .stop_at_end_of_text = i % 2 == 0};
  };
  const auto sampling = [](std::size_t i) { return sampler(kSamplings[i % 6], i); };
  std::vector<Session> sessions;
  for (std::size_t i = 0; i < std::size(lengths); ++i)
    sessions.emplace_back(device.model, SessionOptions{256});
  std::vector<std::optional<Generation>> running(std::size(lengths));
  std::vector<Reply> replies(std::size(lengths));
  std::size_t started = 0, ended = 0;
  for (int round = 0; ended < std::size(lengths); ++round) {
    std::vector<Generation*> group;
    for (; started < std::size(lengths) && started - ended < 3; ++started)
      running[started] =
          sessions[started].generate(kPrompts[started % 3], sampling(started), limits(started));
    for (std::optional<Generation>& generation : running)
      if (generation) group.push_back(&*generation);
    if (round % 7 == 6) std::swap(group.front(), group.back());  // the order may change, too
    step(group);
    for (std::size_t i = 0; i < started; ++i) {
      if (!running[i]) continue;
      if (round % 5 == 4 && i % 3 == 1) continue;  // and not all take their token at once
      if (const auto piece = running[i]->next()) replies[i].take(*piece);
      if (running[i]->finish() == Finish::none) continue;
      while (const auto piece = running[i]->next()) replies[i].take(*piece);
      replies[i].finish = running[i]->finish();
      running[i].reset();
      ++ended;
    }
  }
  for (std::size_t i = 0; i < std::size(lengths); ++i) {
    CAPTURE(i);
    CHECK(replies[i] == reply_of(host(), kPrompts[i % 3], sampling(i), limits(i)));
  }
  CHECK(device.backend->ran_ahead > 0);
}

/// Two replies of `length` tokens on one device; `before` does what it likes before each pair.
struct TwoReplies {
  explicit TwoReplies(int length_in)
      : length(length_in),
        options{.max_tokens = length_in, .stop_at_end_of_text = false},
        first(device.model, {.context = 256}),
        second(device.model, {.context = 256}),
        one(first.generate("The", sampler(kSamplings[1], 3), options)),
        two(second.generate("Hello", sampler(kSamplings[3], 4), options)) {}

  template <typename F>
  void run_and_compare(F&& before) {
    Reply replies[2];
    for (int i = 0; i < length; ++i) {
      before(i);
      replies[0].take(*one.next());
      replies[1].take(*two.next());
    }
    replies[0].finish = one.finish();
    replies[1].finish = two.finish();
    CHECK(replies[0] == reply_of(host(), "The", sampler(kSamplings[1], 3), options));
    CHECK(replies[1] == reply_of(host(), "Hello", sampler(kSamplings[3], 4), options));
    CHECK(device.backend->rows_chosen == 2 * (length - 1));  // every token was computed once
  }

  int length;
  GenerateOptions options;
  DeviceModel device;
  Session first, second;
  Generation one, two;
};

TEST_CASE("the order of the generations of a step may change") {
  TwoReplies replies(15);
  replies.run_and_compare([&](int i) {
    Generation* const group[] = {i % 4 < 2 ? &replies.one : &replies.two,
                                 i % 4 < 2 ? &replies.two : &replies.one};
    step(group);
  });
}

TEST_CASE("two sessions that take turns lose no pass to each other") {
  TwoReplies replies(20);
  replies.run_and_compare([](int) {});
  CHECK(replies.device.backend->ran_ahead > 0);
}

TEST_CASE("feeds and new sessions between two tokens change nothing") {
  const DeviceModel device;
  Session session(device.model, {.context = 256}), other(device.model, {.context = 256});
  const GenerateOptions options{.max_tokens = 24};
  Generation generation = session.generate(kPrompt, sampler(kSamplings[5], 9), options);
  Reply reply;
  for (int i = 0; const auto piece = generation.next(); ++i) {
    reply.take(*piece);
    if (i % 4 == 1) other.feed(ids("something else"));
    if (i % 5 == 2) CHECK(Session(device.model, {.context = 32}).position() == 0);
  }
  reply.finish = generation.finish();
  CHECK(reply == reply_of(host(), kPrompt, sampler(kSamplings[5], 9), options));
}

TEST_CASE("with penalties the host chooses and draws go on wherever they are made") {
  const DeviceModel device;
  SamplerOptions penalised = kSamplings[3];
  penalised.repetition_penalty = 1.2f;
  const GenerateOptions options{.max_tokens = 24, .stop_at_end_of_text = false};
  const Reply expected = reply_of(host(), kPrompt, Sampler(penalised), options);
  CHECK(reply_of(device.model, kPrompt, Sampler(penalised), options) == expected);
  CHECK(device.backend->rows_chosen == 0);

  // Steps with it are the host's, steps without it the device's.
  Session first(device.model, {.context = 256}), second(device.model, {.context = 256});
  Generation free = first.generate("Hello", sampler(kSamplings[1], 21), options),
             bound = second.generate(kPrompt, Sampler(penalised), options);
  Generation* both[] = {&free, &bound};
  Reply replies[2];
  for (int i = 0; i < 24; ++i) {
    if (i % 5 < 3) step(both);
    replies[0].take(*free.next());
    if (i % 5 < 3 || i % 2 == 0)
      if (const auto piece = bound.next()) replies[1].take(*piece);
  }
  while (const auto piece = bound.next()) replies[1].take(*piece);
  replies[0].finish = free.finish();
  replies[1].finish = bound.finish();
  CHECK(replies[0] == reply_of(host(), "Hello", sampler(kSamplings[1], 21), options));
  CHECK(replies[1] == expected);
  CHECK(device.backend->rows_chosen > 5);
  CHECK(device.backend->logits_calls > 5);
}

TEST_CASE("more rows than the device can choose for at once are several passes") {
  constexpr int kReplies = 5, kLength = 12;
  const GenerateOptions options{.max_tokens = kLength, .stop_at_end_of_text = false};
  const auto prompt_of = [](int i) { return kPrompts[i % 3]; };
  const auto sampler_of = [](int i) { return sampler(kSamplings[i], 3); };
  for (const int most : {1, 2, 4}) {
    CAPTURE(most);
    const DeviceModel device;
    device.backend->most_rows = device.backend->pass_rows = most;
    std::vector<Session> sessions;
    std::vector<Generation> generations;
    std::vector<Generation*> all;
    for (int i = 0; i < kReplies; ++i) sessions.emplace_back(device.model, SessionOptions{256});
    for (int i = 0; i < kReplies; ++i)
      generations.push_back(
          sessions[std::size_t(i)].generate(prompt_of(i), sampler_of(i), options));
    for (Generation& generation : generations) all.push_back(&generation);
    std::vector<Reply> replies(kReplies);
    for (int t = 0; t < kLength; ++t) {
      step(all);
      for (std::size_t i = 0; i < all.size(); ++i)
        if (const std::optional<Piece> piece = generations[i].next()) replies[i].take(*piece);
    }
    // The host chose the first, after prompts; each of the others was chosen by one row of one
    // pass.
    CHECK(device.backend->rows_chosen == kReplies * (kLength - 1));
    CHECK(device.backend->ran_ahead == 0);
    for (int i = 0; i < kReplies; ++i) {
      Reply& reply = replies[std::size_t(i)];
      reply.finish = generations[std::size_t(i)].finish();
      CHECK(reply == reply_of(host(), prompt_of(i), sampler_of(i), options));
    }
  }
}

TEST_CASE(
    "a device that likes more rows in a pass than it can choose for leaves them to the host") {
  const DeviceModel device;
  device.backend->most_rows = 1;
  Session first(device.model, {.context = 256}), second(device.model, {.context = 256});
  const GenerateOptions options{.max_tokens = 8, .stop_at_end_of_text = false};
  Generation one = first.generate("The", kGreedy, options),
             two = second.generate("Hello", kGreedy, options);
  Generation* both[] = {&one, &two};
  for (int i = 0; i < 4; ++i) {
    step(both);
    CHECK(one.next());
    CHECK(two.next());
  }
  CHECK(device.backend->rows_chosen == 0);
  CHECK(device.backend->passes == 4);
  CHECK(run(one).tokens.size() == 4);
  CHECK(device.backend->rows_chosen == 4);
}

TEST_CASE("the last rows of many feeds are asked for together") {
  const DeviceModel device;
  std::vector<Session> sessions;
  std::vector<std::vector<TokenId>> tokens;
  std::vector<Feed> feeds;
  for (std::size_t i = 0; i < 20; ++i) sessions.emplace_back(device.model, SessionOptions{64});
  for (std::size_t i = 0; i < 20; ++i) tokens.push_back({1, TokenId(300 + i)});
  tokens[3].resize(1);  // 39 rows: two passes of 32 and 7
  for (std::size_t i = 0; i < 20; ++i) feeds.push_back({&sessions[i], tokens[i]});
  feed(feeds);
  CHECK(device.backend->passes == 2);
  CHECK(device.backend->ended == 2);
  CHECK(device.backend->logits_calls == 2);  // 16 feeds end in the first, four in the second
  for (std::size_t i = 0; i < 20; ++i) {
    Session alone(host(), {.context = 64});
    alone.feed(tokens[i]);
    CHECK(std::ranges::equal(alone.logits(), sessions[i].logits()));
  }
}

TEST_CASE("feeds are cut into passes of as many rows as the backend likes") {
  std::vector<Session> expected;
  for (int i = 0; i < 3; ++i) {
    expected.emplace_back(host(), SessionOptions{.context = 64});
    expected.back().feed(ids(kPrompts[i]));
  }
  for (const int rows : {1, 3, 7, 31, 32, 40}) {
    CAPTURE(rows);
    DeviceModel device;
    device.backend->pass_rows = rows;
    std::vector<Session> sessions;
    std::vector<std::vector<TokenId>> tokens;
    std::vector<Feed> feeds;
    int total = 0;
    for (const std::string_view prompt : kPrompts) {
      sessions.emplace_back(device.model, SessionOptions{.context = 64});
      tokens.push_back(ids(prompt));
      total += int(tokens.back().size());
    }
    for (std::size_t i = 0; i < tokens.size(); ++i) feeds.push_back({&sessions[i], tokens[i]});
    feed(feeds);
    const int most = std::min(rows, 32);  // as the model was loaded
    CHECK(device.backend->passes == (total + most - 1) / most);
    std::vector<int> waiting;
    for (int left = total; left > 0; left -= most) waiting.push_back(std::min(left, 32));
    CHECK(device.backend->asked_rows == waiting);
    for (std::size_t i = 0; i < sessions.size(); ++i)
      CHECK(std::ranges::equal(sessions[i].logits(), expected[i].logits()));
  }
}

TEST_CASE("threads that generate with one model do not disturb each other") {
  const DeviceModel device;
  const GenerateOptions options{.max_tokens = 24, .stop_at_end_of_text = false};
  std::vector<Reply> replies(3), expected;
  for (std::size_t i = 0; i < 3; ++i)
    expected.push_back(reply_of(host(), kPrompts[i], sampler(kSamplings[i + 1], i), options));
  {
    std::vector<std::jthread> threads;
    for (std::size_t i = 0; i < 3; ++i)
      threads.emplace_back([&, i] {
        replies[i] = reply_of(device.model, kPrompts[i], sampler(kSamplings[i + 1], i), options);
      });
  }
  CHECK(replies == expected);
}

TEST_CASE("steady decoding on a device allocates nothing") {
  const DeviceModel device;
  Session session(device.model, {.context = 256}), other(device.model, {.context = 256});
  const GenerateOptions options{
      .max_tokens = 200, .stops = {"### Human:"}, .stop_at_end_of_text = false};
  Generation first = session.generate(kPrompt, Sampler(kSamplings[5]), options);
  run(first, 8);
  long before = allocations;
  for (int i = 0; i < 40; ++i) first.next();
  CHECK(allocations - before == 0);
  Generation second = other.generate("The", Sampler(kSamplings[4]), options);
  Generation* both[] = {&first, &second};
  steps(both, 8);
  before = allocations;
  steps(both, 40);
  CHECK(allocations - before == 0);
  CHECK(device.backend->ran_ahead > 80);
}

}  // namespace
}  // namespace guanaco
