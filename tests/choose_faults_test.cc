#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "choosing_fixture.h"
#include "error_of.h"

namespace guanaco {
namespace {

TEST_CASE("a generation given up with a pass in flight leaves nothing behind") {
  const std::pair<const char*, std::function<void(Session&)>> uses[] = {
      {"nothing", [](Session&) {}},
      {"feed", [](Session& session) { session.feed(ids("and so on")); }},
      {"score", [](Session& session) { session.score(ids("and so on")); }},
      {"rewind", [](Session& session) { session.rewind(17); }},
      {"rewind to the end", [](Session& session) { session.rewind(session.position()); }},
      {"reuse",
       [](Session& session) {
         std::vector<TokenId> prompt(session.tokens().begin(), session.tokens().end());
         prompt.push_back(300);
         CHECK(session.reuse(prompt) == session.position());
         session.feed(std::vector<TokenId>{300});
       }},
      {"go on", [](Session& session) { reply_of(session, "", kGreedy, {.max_tokens = 5}); }},
  };
  const DeviceModel device;
  for (const int tokens : {1, 2, 3, 7})
    for (const auto& [name, use] : uses) {
      if (tokens == 1 && name == std::string_view("rewind")) continue;  // not that far yet
      CAPTURE(name);
      CAPTURE(tokens);
      std::optional<Held> expected;
      for (const Model* const model : {&host(), &device.model}) {
        Session session(*model, {.context = 256});
        reply_of(session, kPrompt, sampler(kSamplings[1], 5), {}, tokens);
        use(session);
        const Held now = held(session);
        CHECK(now == expected.value_or(now));
        expected = now;
      }
    }
}

TEST_CASE("a session may go while the device computes for it") {
  const DeviceModel device;
  for (int i = 0; i < 3; ++i) {
    Session session(device.model, {.context = 256});
    Generation generation = session.generate(kPrompt, kGreedy, {});
    for (int j = 0; j < 4; ++j) CHECK(generation.next());
  }
  CHECK(reply_of(device.model, kPrompt, kGreedy, {}) == reply_of(host(), kPrompt, kGreedy, {}));
  std::optional<Session> session(std::in_place, device.model, SessionOptions{256});
  Generation generation = session->generate(kPrompt, kGreedy, {});
  CHECK(generation.next());
  session.reset();
  CHECK(generation.next());
}

TEST_CASE("a cancelled generation leaves its session as before the call") {
  const DeviceModel device;
  Session here(host(), {.context = 256}), there(device.model, {.context = 256});
  const auto cancel = [](Session& session) {
    std::stop_source stop;
    Generation generation =
        session.generate(kPrompt, sampler(kSamplings[1], 8), {.cancel = stop.get_token()});
    Reply reply = run(generation, 6);
    const int position = session.position();
    stop.request_stop();
    while (const auto piece = generation.next()) reply.take(*piece);
    CHECK(generation.finish() == Finish::cancelled);
    CHECK(session.position() == position);
    return reply;
  };
  CHECK(cancel(there) == cancel(here));
  CHECK(held(there) == held(here));
}

TEST_CASE("a generation of a step that is cancelled does not disturb the others") {
  const DeviceModel device;
  Session first(device.model, {.context = 256}), second(device.model, {.context = 256});
  std::stop_source stop;
  const GenerateOptions options{.max_tokens = 20, .stop_at_end_of_text = false};
  Generation kept = first.generate(kPrompt, sampler(kSamplings[1], 5), options),
             cancelled = second.generate("The", kGreedy, {.cancel = stop.get_token()});
  Generation* both[] = {&kept, &cancelled};
  Reply reply;
  for (int i = 0; i < 20; ++i) {
    if (i == 6) stop.request_stop();
    step(both);
    cancelled.next();
    reply.take(*kept.next());
  }
  reply.finish = kept.finish();
  CHECK(cancelled.finish() == Finish::cancelled);
  CHECK(reply == reply_of(host(), kPrompt, sampler(kSamplings[1], 5), options));
}

TEST_CASE("logits that allow no choice are the same error and the session lives") {
  const DeviceModel device;
  Session session(device.model, {.context = 256}), other(device.model, {.context = 256});
  Generation generation = session.generate(kPrompt, kGreedy, {}),
             neighbour = other.generate("The", kGreedy, {});
  Generation* both[] = {&generation, &neighbour};
  for (int i = 0; i < 3; ++i) {
    step(both);
    CHECK(generation.next());
    CHECK(neighbour.next());
  }
  device.backend->spoilt = true;  // a run-ahead may have been computed before
  int good = 0;
  const Error error = error_of([&] {
    for (; good < 3; ++good) {
      step(both);
      generation.next();
      neighbour.next();
    }
  });
  CHECK(good <= 1);
  CHECK(error.code() == ErrorCode::invalid_argument);
  CHECK(contains(error, "logits: expected numbers or -inf"));
  device.backend->spoilt = false;
  Session reference(host(), {.context = 256});
  Generation expected = reference.generate(kPrompt, kGreedy, {});
  run(expected, generation.tokens());
  CHECK(generation.next()->token == expected.next()->token);
}

TEST_CASE("a device that fails leaves sessions as they were and may be asked again") {
  const GenerateOptions options{.max_tokens = 12, .stop_at_end_of_text = false};
  const Sampler sampling = sampler(kSamplings[1], 6);
  const Reply expected = reply_of(host(), kPrompt, sampling, options);
  for (const bool in_pass : {true, false})
    for (int at = 0; at < 4; ++at) {
      CAPTURE(in_pass);
      CAPTURE(at);
      const DeviceModel device;
      Session session(device.model, {.context = 256});
      Generation generation = session.generate(kPrompt, sampling, options);
      Reply reply = run(generation, 3);
      (in_pass ? device.backend->fail_pass_in : device.backend->fail_chosen_in) = at;
      int failures = 0;
      while (generation.finish() == Finish::none) {
        const int position = session.position();
        try {
          if (const auto piece = generation.next()) reply.take(*piece);
        } catch (const Error& error) {
          CHECK(error.code() == ErrorCode::device);
          CHECK(session.position() == position);
          ++failures;
        }
      }
      reply.finish = generation.finish();
      CHECK(failures == 1);
      CHECK(reply == expected);
    }
}

TEST_CASE("logits that stayed on the device are computed again where they are needed") {
  const DeviceModel device;
  Session here(host(), {.context = 256}), there(device.model, {.context = 256});
  const GenerateOptions options{.max_tokens = 200};  // golden: the end of text after 61 tokens
  CHECK(reply_of(there, kPrompt, kGreedy, options) == reply_of(here, kPrompt, kGreedy, options));
  CHECK(!here.logits().empty());
  CHECK(there.logits().empty());
  // Nothing is left to feed, so an empty prompt needs the logits after the last token.
  const Sampler hot({.temperature = 3, .top_p = 1, .seed = 4});
  const GenerateOptions more{.max_tokens = 10, .stop_at_end_of_text = false};
  CHECK(reply_of(there, "", hot, more) == reply_of(here, "", hot, more));
  CHECK(there.logits().empty());
  there.feed(ids("x"));
  here.feed(ids("x"));
  CHECK(std::ranges::equal(there.logits(), here.logits()));
}

}  // namespace
}  // namespace guanaco
