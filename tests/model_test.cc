#include <cmath>
#include <cstdio>
#include <optional>
#include <string>

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "error_of.h"
#include "synthetic.h"

// Loading, inspecting, estimating: what can be said of a model before anything is fed.
namespace guanaco {
namespace {

constexpr std::string_view kPrompt =
    "### Human: What are the benefits of regular exercise? ### Assistant:";

TEST_CASE("loading reports its progress and can be given up at any point") {
  std::uint64_t last = 0, calls = 0;
  const Model model =
      Model::load(GUANACO_MODEL,
                  {.device = Device::cpu, .progress = [&](std::uint64_t done, std::uint64_t total) {
                     CHECK(done >= last);
                     CHECK(done <= total);
                     last = done;
                     ++calls;
                     return true;
                   }});
  CHECK(last == model.info().file_bytes);
  CHECK(calls > std::uint64_t(model.info().layers));
  for (std::uint64_t stop = 0; stop < calls; stop += calls / 7 + 1) {
    std::uint64_t seen = 0;
    const Error error = error_of([&] {
      Model::load(GUANACO_MODEL,
                  {.device = Device::cpu,
                   .progress = [&](std::uint64_t, std::uint64_t) { return seen++ < stop; }});
    });
    CHECK(error.code() == ErrorCode::cancelled);
  }
}

TEST_CASE("a session outlives every other handle to its model") {
  std::optional<Session> session;
  std::optional<Generation> reply;
  {
    const Model model = Model::load(GUANACO_MODEL, {.device = Device::cpu});
    session.emplace(model, SessionOptions{128});
    reply.emplace(session->generate(kPrompt, Sampler({.temperature = 0}), {.max_tokens = 4}));
  }
  session.reset();
  CHECK(reply->rest().starts_with("The most"));
}

TEST_CASE("options out of their range are refused by name") {
  CHECK(contains(error_of([] { Model::load(GUANACO_MODEL, {.rows = 0}); }), "rows is 0"));
  CHECK(contains(error_of([] { Model::load(GUANACO_MODEL, {.rows = -1}); }), "rows is -1"));
  CHECK(contains(error_of([] { Model::load(GUANACO_MODEL, {.threads = -1}); }), "threads is -1"));
  CHECK(contains(error_of([] { Model::estimate(GUANACO_MODEL, {}, 0); }), "context is 0"));
  const Error error = error_of([] { Model::load("/nowhere/at/all"); });
  CHECK(error.code() == ErrorCode::not_found);
  CHECK(contains(error, "/nowhere/at/all"));
}

TEST_CASE("a model without a tokenizer works on token ids") {
  TemporaryFolder folder;
  SyntheticOptions options;
  options.tokenizer = false;
  write_synthetic(folder.path(), options);
  const Model model = Model::load(folder.path(), {.device = Device::cpu});
  CHECK(!model.has_tokenizer());
  CHECK(error_of([&] { model.tokenizer(); }).code() == ErrorCode::not_found);
  Session session(model, {.context = 64});
  CHECK(error_of([&] { session.generate("text", Sampler()); }).code() == ErrorCode::not_found);
  const std::vector<TokenId> prompt = {1, 5, 9};
  Generation reply = session.generate(prompt, Sampler({.seed = 3}),
                                      {.max_tokens = 10, .stop_at_end_of_text = false});
  int tokens = 0;
  while (reply.next()) ++tokens;
  CHECK(tokens == 10);
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they use memory of their own
/// Anonymous memory of this process, from /proc.
std::uint64_t resident_bytes() {
  std::FILE* const file = std::fopen("/proc/self/status", "r");
  char line[256];
  unsigned long long kilobytes = 0;
  while (std::fgets(line, sizeof line, file) != nullptr)
    if (std::sscanf(line, "RssAnon: %llu kB", &kilobytes) == 1) break;
  std::fclose(file);
  return kilobytes * 1024;
}

TEST_CASE("the estimate from the headers is what loading then takes") {
  TemporaryFolder folder;
  SyntheticOptions options;
  options.layers = 3;
  options.hidden = 2048;
  options.ffn = 5504;
  options.heads = options.kv_heads = 16;
  options.vocab = 8000;
  write_synthetic(folder.path(), options);
  const ModelOptions model_options{.device = Device::cpu, .threads = 1, .rows = 128};
  const MemoryEstimate estimate = Model::estimate(folder.path(), model_options, 4096);
  CHECK(estimate.host == estimate.weights + estimate.scratch + estimate.session);
  CHECK(estimate.device == 0);

  { const Model warm_up = Model::load(folder.path(), model_options); }
  const std::uint64_t before = resident_bytes();
  const Model model = Model::load(folder.path(), model_options);
  Session session(model, {.context = 4096});
  session.feed(std::vector<TokenId>(4096, 7));  // touches every page
  const double used = double(resident_bytes() - before);
  INFO("estimated ", estimate.host, ", used ", used);
  CHECK(std::abs(double(model.info().weight_bytes) / double(estimate.weights) - 1) < 0.02);
  CHECK(std::abs(used / double(estimate.host) - 1) < 0.02);
}
#endif

TEST_CASE("inspecting agrees with loading without reading a weight") {
  const Model::Inspection found = Model::inspect(GUANACO_MODEL, {.device = Device::cpu});
  const Model loaded = Model::load(GUANACO_MODEL, {.device = Device::cpu});
  CHECK(found.info.layers == loaded.info().layers);
  // Whether its g_idx needs a table is open until it is read.
  CHECK(found.info.weight_bytes >= loaded.info().weight_bytes);
  CHECK(double(found.info.weight_bytes) < 1.02 * double(loaded.info().weight_bytes));
  CHECK(found.info.bits == 4);
  CHECK(found.info.group_size == 128);
  CHECK(found.info.vocab == 4096);
  CHECK(!found.report.format.empty());
}

}  // namespace
}  // namespace guanaco
