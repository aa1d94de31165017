// guanaco-bench: what the machine can do, what each stage of the forward pass makes of it, and what
// is left of it in whole tokens and prompts. Everything in one process, so that shares are shares
// of this machine at this time.
//
//     guanaco-bench --kernels 13b --shape 13b              a synthetic checkpoint, on a GPU
//     guanaco-bench --model /tmp/7b --device cpu           a checkpoint on disk

#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>

#include "backend/backend.h"
#include "ceilings.h"
#include "first_token.h"
#include "kernels.h"
#include "support/console.h"
#include "support/program.h"
#include "support/progress.h"
#include "table.h"
#include "tokens.h"

namespace {

/// What to measure, as the command line says it.
struct Arguments {
  std::vector<std::string> models, shapes, kernels;
  bool ceilings = false, quick = false, json = false, first_token = false;
  std::string filter = ".";
  std::vector<int> depths;
  std::optional<int> steps;
  support::ModelArguments device;
};

void add_options(CLI::App& app, Arguments& arguments) {
  auto* what = app.add_option_group("What to measure", "one or more of");
  what->add_option("--model", arguments.models,
                   "Tokens and prompts of a checkpoint: its folder, or a .safetensors file in it")
      ->type_name("DIR");
  const auto known = CLI::Validator(
      [](const std::string& name) -> std::string {
        try {
          bench::named_shape(name);
          return {};
        } catch (const guanaco::Error& error) {
          return error.what();
        }
      },
      "");
  what->add_option("--shape", arguments.shapes,
                   "Tokens and prompts of a synthetic checkpoint in a temporary folder: 7b, 13b, "
                   "33b, 65b or tiny, alone or with -act-order or -fp16")
      ->check(known)
      ->type_name("NAME");
  what->add_option("--kernels", arguments.kernels,
                   "Each stage of the forward pass alone, at such a size")
      ->check(known)
      ->type_name("NAME");
  what->add_flag("--ceilings", arguments.ceilings,
                 "What the memory and the processor can do; always measured before the others");
  what->require_option(1, 0);

  support::add_device_options(app, arguments.device);
  app.add_option("--depth", arguments.depths,
                 "Contexts to decode at; 0, 512 and, on a GPU, 2000 if not said")
      ->check(support::in_range(0, 1 << 20))
      ->type_name("INT");
  app.add_option("--steps", arguments.steps, "Decoding steps of a measurement; 64, quick: 24")
      ->check(support::in_range(3, 10000));
  app.add_option("--filter", arguments.filter, "Only kernels whose name matches, as 13b/qkv/x1/d16")
      ->type_name("REGEX");
  app.add_flag("--quick", arguments.quick, "Fewer samples");
  app.add_flag("--json", arguments.json, "The table as JSON in the last line of stdout");
  app.add_flag("--first-token", arguments.first_token)->group("");  // of the process that is timed
}

bench::Ceilings measure_ceilings(const guanaco::ModelOptions& options, bool* host) {
  // The backend says which device it would be, and whether there is one.
  const auto backend = guanaco::make_backend(options);
  *host = backend->is_host();
  support::Progress progress("ceilings");
  bench::Ceilings ceilings;
#if GUANACO_CUDA
  if (!*host) {
    std::uint64_t done = 0;
    return bench::measure_cuda_ceilings(
        options.cuda_device, [&](const std::string& what) { progress.show(done++, 4, what); });
  }
#endif
  ceilings = bench::measure_host_ceilings(backend->threads());
  ceilings.device = backend->description();
  return ceilings;
}

int run(const Arguments& arguments) {
  const guanaco::ModelOptions options = support::model_options(arguments.device);
  if (arguments.first_token) {
    bench::first_token(arguments.models.at(0), options);
    return support::kOk;
  }
  const support::Console console;
  const auto interrupted = [&] { return console.interrupted(); };
  bool host = false;
  bench::Ceilings ceilings = measure_ceilings(options, &host);
  if (!host || arguments.ceilings) bench::print_ceilings(ceilings);

  nlohmann::json kernel_rows = nlohmann::json::array(), models = nlohmann::json::array();
  std::vector<bench::KernelRow> kernels;
  for (const std::string& shape : arguments.kernels) {
    const std::vector<bench::KernelRow> rows = bench::measure_kernels(
        shape, ceilings, {options, arguments.filter, arguments.quick, interrupted});
    bench::print_kernels(rows, ceilings);
    for (const bench::KernelRow& row : rows) kernel_rows.push_back(to_json(row, ceilings));
    kernels.insert(kernels.end(), rows.begin(), rows.end());
  }

  const bench::TokenOptions tokens{
      options,          arguments.device.device,
      arguments.depths, arguments.steps.value_or(arguments.quick ? 24 : 64),
      arguments.quick,  interrupted};
  const auto show = [&](const bench::ModelRows& model) {
    bench::print_tokens(model, kernels, ceilings);
    if (host)
      fmt::print("memory read bandwidth, best of several: {:.1f} GB/s\n", ceilings.read / 1e9);
    models.push_back(to_json(model, kernels, ceilings));
  };
  for (const std::string& shape : arguments.shapes)
    show(bench::measure_shape(shape, ceilings, tokens));
  for (const std::string& folder : arguments.models)
    show(bench::measure_model(folder, folder, ceilings, tokens));

  if (arguments.json)
    fmt::print("{}\n",
               nlohmann::json{
                   {"ceilings", to_json(ceilings)}, {"kernels", kernel_rows}, {"models", models}}
                   .dump());
  return support::kOk;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures prompts, decoding and each stage of it against what the machine can do.",
               "guanaco-bench");
  app.footer(
      "floor: the least time, by the bytes that must be read or, for prompts, by the products. "
      "%read, %copy, %fp16: of what this machine was measured to do. Kernels: qkv, attend, o, "
      "gate+up, down alone, launched one by one; launch, a pass that does nothing; attention, mlp, "
      "layer, their stages in order in one pass. host: what a step costs the caller whose results "
      "are there; cpu: the time its thread runs in a step.");
  Arguments arguments;
  add_options(app, arguments);
  return support::run_main(app, argc, argv, [&] { return run(arguments); });
}
