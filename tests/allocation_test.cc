#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <limits>
#include <new>
#include <optional>

#include <guanaco/guanaco.h>

#include "checkpoint_fixture.h"

// Where memory ends: one allocation after the other fails, and each time that is an error as any
// other. A process that ends instead ends this program, which replaces operator new.

namespace guanaco {
namespace {

constexpr long kEndless = std::numeric_limits<long>::max();

std::atomic<long> allocations_left = kEndless;  // at 0 one fails
std::atomic<bool> others_fail = false;          // and all after it
std::atomic<long> bytes_left = kEndless;
std::atomic<bool> failed = false;

bool may_allocate(std::size_t size) {
  const long left = allocations_left == kEndless ? kEndless : allocations_left--;
  if (left > 0 && long(size) <= bytes_left) return true;
  if (left < 0 && !others_fail) return true;
  failed = true;
  return false;
}

void end_memory_after(long allocations, bool all, long bytes) {
  others_fail = all;
  bytes_left = bytes;
  allocations_left = allocations;
}

/// Runs `action` with memory that ends somewhere; true if it threw for that.
template <typename F>
bool runs_out(F&& action, long allocations, bool all, long bytes) {
  std::optional<std::string> wrong;
  bool threw = true;
  failed = false;
  end_memory_after(allocations, all, bytes);
  try {
    action();
    threw = false;
  } catch (const std::bad_alloc&) {
  } catch (const Error& error) {
    if (error.code() != ErrorCode::out_of_memory) wrong = error.what();
  }
  end_memory_after(kEndless, false, kEndless);
  if (wrong) FAIL_CHECK("after ", allocations, " allocations, ", bytes, " bytes: ", *wrong);
  return threw;
}

/// Lets every allocation of `action` fail in turn, alone and together with all later ones, and
/// calls `check` each time. Returns how often `action` threw.
template <typename F, typename Check>
int fail_each(F&& action, Check&& check) {
  int thrown = 0;
  for (const bool all : {false, true})
    for (long allocations = 0;; ++allocations) {
      thrown += runs_out(action, allocations, all, kEndless);
      const bool was_reached = failed;  // some failures are nothing to give up for
      check();
      if (!was_reached) break;
    }
  action();
  return thrown;
}

template <typename F>
int fail_each(F&& action) {
  return fail_each(action, [] {});
}

}  // namespace
}  // namespace guanaco

// Not inlined, or the compiler sees a malloc where it expects this operator new.
[[gnu::noinline]] void* operator new(std::size_t size) {
  void* const memory = guanaco::may_allocate(size) ? std::malloc(size != 0 ? size : 1) : nullptr;
  if (!memory) throw std::bad_alloc();
  if (guanaco::bytes_left != guanaco::kEndless)
    guanaco::bytes_left -= long(malloc_usable_size(memory));
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  if (guanaco::bytes_left != guanaco::kEndless)
    guanaco::bytes_left += long(malloc_usable_size(memory));
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  operator delete(memory);
}

namespace guanaco {
namespace {

TEST_CASE("wherever memory ends in a JSON text is an error") {
  const std::string text =
      R"({"a": [[1, -2, 2.5], {"a name that is not short": "a text that is not short"}, []],
          "b": {"c": {"d": [{"e": [true, null]}, {"f": {}}]}}, "g": [[[[["h"]]]]]})";
  CHECK(fail_each([&] { to_text(parse_json(text, "a text")); }) > 50);
}

TEST_CASE("wherever memory ends while a checkpoint is opened is an error") {
  SyntheticOptions options;
  options.layers = 1;
  options.settings = SyntheticOptions::Settings::both;
  options.shards = 2;
  const Published sharded(options);
  options.shards = 1;
  options.weight_file = "b.safetensors";  // found by listing the folder
  const Published single(options);
  for (const Published* published : {&sharded, &single})
    CHECK(fail_each([&] { Checkpoint::open(published->path()); }) > 1000);
}

TEST_CASE(
    "wherever memory ends while a model is loaded and used is an error that changes nothing") {
  SyntheticOptions options;
  options.layers = 1;
  const Published published(options);  // has no tokenizer.model
  const auto load = [&] {
    return Model::load(published.path(), {.device = Device::cpu, .threads = 2, .rows = 16});
  };
  CHECK(fail_each(load) > 1000);

  const Model model = load();
  std::vector<TokenId> tokens(40);
  for (int i = 0; i < 40; ++i) tokens[std::size_t(i)] = 100 + i;
  const std::span<const TokenId> first(tokens.data(), 20), then(tokens.data() + 20, 20);
  const auto score = [&](Session& session) {
    session.rewind(20);
    return session.score(then);
  };
  Session session(model, {.context = 128});
  session.feed(first);
  const std::vector<float> expected = score(session);
  std::vector<float> found;
  const auto use = [&] {
    found = score(session);
    Session other(model, {.context = 128});
    Generation reply = other.generate(tokens, Sampler({.seed = 1}), {.max_tokens = 2});
    while (reply.next()) continue;
  };
  CHECK(fail_each(use, [&] { CHECK(score(session) == expected); }) > 20);
  CHECK(found == expected);
}

// Where one allocation fails inside sentencepiece its protobuf may end the process. Where memory is
// short for it, it is not begun.
TEST_CASE("memory that is short for a tokenizer or a text is an error") {
  const std::filesystem::path file = std::filesystem::path(GUANACO_MODEL) / "tokenizer.model";
  const Tokenizer tokenizer = Tokenizer::load(file);
  const std::string text(1000, 'a');
  int thrown = 0;
  for (long bytes = 0; bytes < 3'000'000; bytes += 10'007)
    thrown += runs_out([&] { Tokenizer::load(file); }, kEndless, false, bytes);
  CHECK(thrown > 100);
  CHECK_FALSE(runs_out([&] { Tokenizer::load(file); }, kEndless, false, 4'000'000));
  thrown = 0;
  for (long bytes = 0; bytes < 500'000; bytes += 101)
    thrown += runs_out([&] { tokenizer.encode(text); }, kEndless, false, bytes);
  CHECK(thrown > 1000);
  CHECK_FALSE(runs_out([&] { tokenizer.encode(text); }, kEndless, false, 500'000));
}

}  // namespace
}  // namespace guanaco
