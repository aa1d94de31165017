#pragma once

#include <functional>
#include <limits>
#include <string>

#include <guanaco/model.h>
#include <CLI/CLI.hpp>

// What every example program does alike: options, errors, exit codes, loading.
namespace support {

/// What main() returns.
enum Exit { kOk = 0, kError = 1, kUsage = 2, kInterrupted = 130 };

/// Parses the command line and runs `body`. --help goes to stdout; a wrong command line or an
/// exception becomes one line "name: ..." on stderr and an exit code.
int run_main(CLI::App& app, int argc, char** argv, const std::function<int()>& body);

/// Accepts numbers in [low, high] and says the range when it refuses one. Text that is no number
/// is left to the conversion of the option, which has its own message.
CLI::Validator in_range(double low, double high = std::numeric_limits<double>::infinity());

/// Accepts numbers above 0 and at most `high`, likewise.
CLI::Validator positive(double high = std::numeric_limits<double>::infinity());

/// Where the model is and what it runs on.
struct ModelArguments {
  std::string folder;
  std::string device = "auto";
  int threads = 0;
};

void add_model_option(CLI::App& app, ModelArguments& arguments);
void add_device_options(CLI::App& app, ModelArguments& arguments);

guanaco::ModelOptions model_options(const ModelArguments& arguments);

/// Loads with a progress bar and shows the loader's warnings, both on stderr. Gives up when
/// `interrupted` says so, by throwing guanaco::Error cancelled.
guanaco::Model load_model(const CLI::App& app, const ModelArguments& arguments,
                          const std::function<bool()>& interrupted);

}  // namespace support
