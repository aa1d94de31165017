// A GPU that is lost in mid-run, played by a kernel that traps: nothing works on it any more in
// this process. So this is a program of its own, with one test.

#include <doctest/doctest.h>
#include <guanaco/guanaco.h>

#include "cuda_fixture.h"
#include "error_of.h"
#include "synthetic.h"

namespace guanaco {
namespace {

__global__ void trap() { asm volatile("trap;"); }

ErrorCode code_of(const auto& what) {
  const Error error = error_of(what);
  MESSAGE(std::string(error.what()));
  return error.code();
}

TEST_CASE("a GPU lost in mid-run is an error of every call and the process goes on") {
  if (!cuda::has_device()) return;
  TemporaryFolder folder;
  SyntheticOptions options;
  options.tokenizer = false;
  write_synthetic(folder.path(), options);
  const ModelOptions on_gpu{.device = Device::cuda, .rows = 128};
  {
    const Model model = Model::load(folder.path(), on_gpu);
    Session fed(model, {.context = 128}), generating(model, {.context = 64});
    fed.feed(std::vector<TokenId>{5, 6, 7});
    const std::vector<float> logits(fed.logits().begin(), fed.logits().end());
    Generation generation = generating.generate(
        std::vector<TokenId>{5}, Sampler({.temperature = 0}), {.stop_at_end_of_text = false});
    REQUIRE(generation.next());

    trap<<<1, 1>>>();
    CHECK(cudaDeviceSynchronize() != cudaSuccess);
    CHECK(code_of([&] { fed.feed(std::vector<TokenId>{8}); }) == ErrorCode::device);
    CHECK(code_of([&] { fed.feed(std::vector<TokenId>(60, 9)); }) == ErrorCode::device);
    CHECK(fed.position() == 3);
    CHECK(std::ranges::equal(fed.logits(), logits));
    CHECK(code_of([&] {
            for (int i = 0; i < 4; ++i) generation.next();
          }) == ErrorCode::device);
    CHECK(code_of([&] { Session more(model, {.context = 64}); }) == ErrorCode::device);
    CHECK(code_of([&] { Model::load(folder.path(), on_gpu); }) == ErrorCode::device);
  }  // everything is freed
  const Model on_cpu = Model::load(folder.path(), {.device = Device::cpu, .threads = 1});
  Session session(on_cpu, {.context = 64});
  session.feed(std::vector<TokenId>{5, 6, 7});
  CHECK(session.position() == 3);
  // What takes whatever device there is takes the CPU, and says why.
  bool said = false;
  const Model any =
      Model::load(folder.path(), {.threads = 1, .log = [&](Severity, std::string_view line) {
                                    said |= line.starts_with("using the CPU: ");
                                  }});
  CHECK(any.info().device.starts_with("CPU"));
  CHECK(said);
}

}  // namespace
}  // namespace guanaco
