#include "support/program.h"

#include <cmath>
#include <cstdio>
#include <exception>
#include <new>

#include <fmt/format.h>
#include <guanaco/error.h>

#include "support/progress.h"

namespace support {
namespace {

/// Refuses numbers that are not `allowed` and says the range.
CLI::Validator allowing(const std::string& range, const std::function<bool(double)>& allowed) {
  const auto check = [=](const std::string& text) -> std::string {
    double value;
    if (!CLI::detail::lexical_cast(text, value) || allowed(value)) return {};
    return fmt::format("{} is out of range: {}", text, range);
  };
  return CLI::Validator(check, fmt::format("({})", range));
}

}  // namespace

int run_main(CLI::App& app, int argc, char** argv, const std::function<int()>& body) {
  const std::string name = app.get_name();
  const auto complain = [&](Exit code, std::string_view message) {
    fmt::print(stderr, "{}: {}\n", name, message);
    return code;
  };
  try {
    app.parse(argc, argv);
    const int code = body();
    // A full disk or a closed pipe shows only now.
    if (std::fflush(stdout) != 0 || std::ferror(stdout))
      return complain(kError, "cannot write to standard output");
    return code;
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    return kOk;
  } catch (const CLI::RequiredError& error) {
    // An option misspelt may be the one that is missing.
    const std::vector<std::string> unknown = app.remaining();
    const std::string what =
        unknown.empty() ? error.what() : CLI::ExtrasError(std::vector{unknown.front()}).what();
    return complain(kUsage, fmt::format("{} (see {} --help)", what, name));
  } catch (const CLI::ParseError& error) {
    return complain(kUsage, fmt::format("{} (see {} --help)", error.what(), name));
  } catch (const guanaco::Error& error) {
    if (error.code() == guanaco::ErrorCode::cancelled) return complain(kInterrupted, "interrupted");
    return complain(kError, error.what());
  } catch (const std::bad_alloc&) {
    return complain(kError, "out of memory");
  } catch (const std::exception& error) {
    return complain(kError, error.what());
  }
}

CLI::Validator in_range(double low, double high) {
  return allowing(
      std::isinf(high) ? fmt::format("at least {}", low) : fmt::format("{} to {}", low, high),
      [=](double value) { return value >= low && value <= high; });  // not for NaN
}

CLI::Validator positive(double high) {
  return allowing(std::isinf(high) ? "above 0" : fmt::format("above 0 to {}", high),
                  [=](double value) { return value > 0 && value <= high; });
}

void add_model_option(CLI::App& app, ModelArguments& arguments) {
  app.add_option("--model", arguments.folder,
                 "The checkpoint's folder, or a .safetensors file in it")
      ->required()
      ->type_name("DIR");
}

void add_device_options(CLI::App& app, ModelArguments& arguments) {
  app.add_option("--device", arguments.device, "What to run on")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->capture_default_str();
  app.add_option("--threads", arguments.threads, "CPU threads; 0 takes every core")
      ->check(in_range(0, 1024))
      ->capture_default_str();
}

guanaco::ModelOptions model_options(const ModelArguments& arguments) {
  guanaco::ModelOptions options;
  if (arguments.device == "cpu") options.device = guanaco::Device::cpu;
  if (arguments.device == "cuda") options.device = guanaco::Device::cuda;
  options.threads = arguments.threads;
  return options;
}

guanaco::Model load_model(const CLI::App& app, const ModelArguments& arguments,
                          const std::function<bool()>& interrupted) {
  guanaco::ModelOptions options = model_options(arguments);
  Progress progress("loading");
  options.progress = [&](std::uint64_t done, std::uint64_t total) {
    progress.show(done, total);
    return !interrupted();
  };
  guanaco::Model model = guanaco::Model::load(arguments.folder, options);
  progress.clear();
  for (const std::string& warning : model.report().warnings)
    fmt::print(stderr, "{}: warning: {}\n", app.get_name(), warning);
  return model;
}

}  // namespace support
