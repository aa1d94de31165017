// The example programs, run as a user runs them.
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "synthetic.h"

extern char** environ;

namespace {

using guanaco::TemporaryFolder;
using Arguments = std::vector<std::string>;

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE_MESSAGE(file.good(), path.string());
  return std::string(std::istreambuf_iterator<char>(file), {});
}

struct Result {
  int exit;  ///< 128 + signal if a signal ended it
  std::string out, err;
};

/// A running program with pipes for its stdin and stdout and a file for its stderr.
class Program {
 public:
  Program(const std::string& name, const Arguments& arguments) {
    REQUIRE(pipe2(input_, O_CLOEXEC) == 0);
    REQUIRE(pipe2(output_, O_CLOEXEC) == 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, input_[0], 0);
    posix_spawn_file_actions_adddup2(&actions, output_[1], 1);
    posix_spawn_file_actions_addopen(&actions, 2, errors().c_str(), O_CREAT | O_WRONLY, 0600);
    const std::string path = std::string(GUANACO_PROGRAMS) + "/" + name;
    std::vector<char*> argv = {const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    const int failure =
        posix_spawn(&process_, path.c_str(), &actions, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    REQUIRE_MESSAGE(failure == 0, path);
    close(input_[0]);
    close(output_[1]);
  }

  void write(const std::string& text) {
    REQUIRE(::write(input_[1], text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  }

  /// Waits until something was printed.
  void wait_for_output() {
    char byte;
    REQUIRE(read(output_[0], &byte, 1) == 1);
    out_ += byte;
  }

  void interrupt() { REQUIRE(kill(process_, SIGINT) == 0); }

  Result finish() {
    close(input_[1]);
    char bytes[4096];
    for (ssize_t count; (count = read(output_[0], bytes, sizeof bytes)) > 0;)
      out_.append(bytes, static_cast<std::size_t>(count));
    close(output_[0]);
    int status = 0;
    waitpid(process_, &status, 0);
    const int exit = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return {exit, out_, read_file(errors())};
  }

 private:
  std::string errors() const { return (folder_.path() / "stderr").string(); }

  TemporaryFolder folder_;
  pid_t process_ = 0;
  int input_[2], output_[2];
  std::string out_;
};

Result run(const std::string& name, const Arguments& arguments, const std::string& input = {}) {
  Program program(name, arguments);
  program.write(input);
  return program.finish();
}

/// guanaco-chat on the bundled model; greedy, so that texts can be compared.
Arguments chat(const Arguments& more) {
  Arguments all = {"--model", GUANACO_MODEL, "--temperature", "0"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A prompt that the bundled model continues for ever.
const std::string kEndless =
    "Once upon a time there was a king who had three daughters, and the youngest";

/// One line that begins with the program's name, and nothing on stdout.
void check_complaint(const std::string& name, const Result& result) {
  CAPTURE(result.err);
  CHECK(result.out == "");
  CHECK(result.err.starts_with(name + ": "));
  CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}

}  // namespace

TEST_CASE("programs: help names every option and goes to stdout") {
  const auto check = [](const std::string& name, const Arguments& options) {
    const Result result = run(name, {"--help"});
    CHECK(result.exit == 0);
    CHECK(result.err == "");
    for (const std::string& option : options) CHECK_MESSAGE(contains(result.out, option), option);
  };
  check("guanaco-chat",
        {"--model", "--prompt", "--system", "--template", "--max-tokens", "--context",
         "--temperature", "--top-k", "--top-p", "--min-p", "--repetition-penalty", "--seed",
         "--device", "--threads", "--raw", "--stats", "guanaco,card,train,eval,webui", "/reset"});
  check("guanaco-perplexity", {"--model", "--file", "--context", "--json"});
  check("guanaco-inspect", {"--model", "--context"});
}

TEST_CASE("guanaco-chat: raw greedy replies are the golden texts byte for byte") {
  const auto goldens =
      nlohmann::json::parse(read_file(std::string(GUANACO_TEST_DATA) + "/gptq-4bit-128g.json"));
  int compared = 0;
  for (const auto& golden : goldens["prompts"]) {
    const int end = golden["greedy_eos_at"];
    const std::vector<double> margins = golden["greedy_margins"];
    const auto last = end < 0 ? margins.end() : margins.begin() + end;
    if (*std::min_element(margins.begin(), last) < 1e-3) continue;  // rounding may decide
    const Result result =
        run("guanaco-chat",
            chat({"--raw", "--max-tokens", "64", "--prompt", golden["text"].get<std::string>()}));
    CAPTURE(golden["name"].get<std::string>());
    CHECK(result.exit == 0);
    CHECK(result.out == golden["greedy_text"].get<std::string>());
    ++compared;
  }
  CHECK(compared >= 4);
}

TEST_CASE("guanaco-chat: with a prompt only the reply goes to stdout") {
  const Arguments question = {"--prompt", "What is the capital of France?", "--max-tokens", "40"};
  const Result plain = run("guanaco-chat", chat(question));
  CHECK(plain.exit == 0);
  CHECK(plain.err == "");
  CHECK(plain.out != "");
  CHECK_FALSE(contains(plain.out, "###"));

  Arguments with_stats = question;
  with_stats.push_back("--stats");
  const Result stats = run("guanaco-chat", chat(with_stats));
  CHECK(stats.out == plain.out);
  CHECK(contains(stats.err, "prompt: "));
  CHECK(contains(stats.err, "reply: "));
  CHECK(contains(stats.err, "tokens/s"));

  SUBCASE("a dash reads it from stdin") {
    const Result result = run("guanaco-chat", chat({"--prompt", "-", "--max-tokens", "40"}),
                              "What is the capital of France?\n");
    CHECK(result.exit == 0);
    CHECK(result.out == plain.out);
  }
  SUBCASE("the number of threads does not change it") {
    for (const char* threads : {"1", "3"}) {
      Arguments arguments = question;
      arguments.insert(arguments.end(), {"--threads", threads});
      CHECK(run("guanaco-chat", chat(arguments)).out == plain.out);
    }
  }
  SUBCASE("the template changes the prompt") {
    Arguments arguments = question;
    arguments.insert(arguments.end(), {"--template", "train", "--system", "Answer in rhymes."});
    const Result result = run("guanaco-chat", chat(arguments));
    CHECK(result.exit == 0);
    CHECK(result.out != plain.out);
  }
}

TEST_CASE("guanaco-chat: the seed decides what is drawn") {
  const auto reply = [](const char* seed) {
    return run("guanaco-chat",
               {"--model", GUANACO_MODEL, "--temperature", "1", "--top-p", "1", "--max-tokens",
                "40", "--raw", "--prompt", kEndless, "--seed", seed})
        .out;
  };
  const std::string first = reply("1");
  CHECK(first != "");
  CHECK(reply("1") == first);
  CHECK(reply("2") != first);
}

TEST_CASE("programs: a wrong command line exits with 2 and says what was expected") {
  const auto check = [](const std::string& name, Arguments arguments, const std::string& expected) {
    CAPTURE(fmt::format("{}", fmt::join(arguments, " ")));
    const Result result = run(name, arguments);
    CHECK(result.exit == 2);
    check_complaint(name, result);
    CHECK(contains(result.err, expected));
  };
  check("guanaco-chat", {}, "--model");
  check("guanaco-chat", {"--modl", GUANACO_MODEL}, "not expected: --modl");
  check("guanaco-chat", chat({"--colour"}), "--colour");
  check("guanaco-chat", chat({"--template", "alpaca"}), "guanaco,card,train,eval,webui");
  check("guanaco-chat", chat({"--device", "tpu"}), "auto,cpu,cuda");
  check("guanaco-chat", {"--model", GUANACO_MODEL, "--temperature", "-1"}, "at least 0");
  check("guanaco-chat", {"--model", GUANACO_MODEL, "--temperature", "nan"}, "at least 0");
  check("guanaco-chat", chat({"--top-p", "1.5"}), "0 to 1");
  check("guanaco-chat", chat({"--top-p", "0"}), "above 0 to 1");
  check("guanaco-chat", chat({"--repetition-penalty", "0"}), "above 0");
  check("guanaco-chat", {"--model", "no such folder", "--temperature", "inf"}, "temperature");
  check("guanaco-chat", chat({"--min-p", "-0.1"}), "0 to 1");
  check("guanaco-chat", chat({"--top-k", "-1"}), "at least 0");
  check("guanaco-chat", chat({"--top-k", "many"}), "--top-k");
  check("guanaco-chat", chat({"--max-tokens", "0"}), "at least 1");
  check("guanaco-chat", chat({"--context", "0"}), "at least 1");
  check("guanaco-chat", chat({"--threads", "1025"}), "0 to 1024");
  check("guanaco-chat", chat({"--seed", "-1"}), "--seed");
  check("guanaco-chat", chat({"--raw", "--system", "x"}), "--system");
  check("guanaco-perplexity", {"--model", GUANACO_MODEL}, "--file");
  check("guanaco-perplexity", {"--model", GUANACO_MODEL, "--file", "x", "--context", "1"},
        "at least 2");
  check("guanaco-inspect", {}, "--model");
}

TEST_CASE("programs: what cannot be done exits with 1 and one line that says why") {
  const auto check = [](const std::string& name, const Arguments& arguments,
                        const std::string& expected) {
    CAPTURE(fmt::format("{}", fmt::join(arguments, " ")));
    const Result result = run(name, arguments);
    CHECK(result.exit == 1);
    check_complaint(name, result);
    CHECK(contains(result.err, expected));
  };
  const TemporaryFolder empty;
  const std::string folder = empty.path().string();
  std::ofstream(empty.path() / "empty.txt").flush();
  check("guanaco-chat", {"--model", "/no/such/model", "--prompt", "x"}, "/no/such/model");
  check("guanaco-chat", {"--model", folder, "--prompt", "x"}, folder);
  check("guanaco-chat", chat({"--context", "8", "--raw", "--prompt", kEndless}), "8");
  check("guanaco-chat", chat({"--context", "8", "--prompt", "Hello"}), "8");
  check("guanaco-perplexity", {"--model", GUANACO_MODEL, "--file", "/no/such.txt"}, "/no/such.txt");
  check("guanaco-perplexity", {"--model", GUANACO_MODEL, "--file", folder}, "cannot be read");
  check("guanaco-perplexity", {"--model", GUANACO_MODEL, "--file", folder + "/empty.txt"}, "empty");
  check("guanaco-inspect", {"--model", "/no/such/model"}, "/no/such/model");
}

TEST_CASE("guanaco-chat: a full disk is an error") {
  const std::string command = std::string(GUANACO_PROGRAMS) + "/guanaco-chat --model " +
                              GUANACO_MODEL + " --prompt Hello >/dev/full 2>/dev/null";
  CHECK(WEXITSTATUS(std::system(command.c_str())) == 1);
}

TEST_CASE("guanaco-chat: a conversation through a pipe obeys its commands") {
  const Arguments arguments = chat({"--max-tokens", "16"});
  const std::string hello = run("guanaco-chat", arguments, "Hello!\n").out;
  CHECK(hello.size() > 1);
  CHECK(hello.back() == '\n');

  const std::string two = run("guanaco-chat", arguments, "Hello!\nHow are you?").out;
  CHECK(two.starts_with(hello));
  CHECK(two.size() > hello.size());

  const Result result =
      run("guanaco-chat", arguments,
          "Hello!\n\n/help\nHow are you?\n/reset\n/dance\nHello!\n/quit\nHello!\n");
  CHECK(result.exit == 0);
  CHECK(result.out == two + hello);
  CHECK(contains(result.err, "/reset"));
  CHECK(contains(result.err, "no command /dance"));
}

TEST_CASE("guanaco-chat: when the context is full the oldest turns leave") {
  std::string questions;
  for (int i = 0; i < 8; ++i) questions += "Tell me a story about a king and his daughter.\n";
  const Result result =
      run("guanaco-chat", chat({"--max-tokens", "24", "--context", "160"}), questions);
  CHECK(result.exit == 0);
  CHECK(contains(result.err, "the context of 160 tokens is full; the oldest turn"));
}

TEST_CASE("guanaco-chat: Ctrl-C stops a reply") {
  const Arguments endless = {"--raw", "--max-tokens", "2000"};
  SUBCASE("and ends a program that was given a prompt") {
    Arguments arguments = chat(endless);
    arguments.insert(arguments.end(), {"--prompt", kEndless});
    Program program("guanaco-chat", arguments);
    program.wait_for_output();
    program.interrupt();
    CHECK(program.finish().exit == 130);
  }
  SUBCASE("but not a conversation") {
    Program program("guanaco-chat", chat(endless));
    program.write(kEndless + "\n");
    program.wait_for_output();
    program.interrupt();
    program.write("/help\n/quit\n");
    const Result result = program.finish();
    CHECK(result.exit == 0);
    CHECK(contains(result.err, "stopped"));
    CHECK(contains(result.err, "/reset"));
  }
}

TEST_CASE("guanaco-perplexity: json has the perplexity and its counts in the last line") {
  const TemporaryFolder folder;
  const std::string file = (folder.path() / "text.txt").string();
  std::ofstream(file) << read_file(std::string(GUANACO_TEST_DATA) + "/eval.txt").substr(0, 20000);

  const auto measure = [&](int context) {
    const Result result = run(
        "guanaco-perplexity",
        {"--model", GUANACO_MODEL, "--file", file, "--context", std::to_string(context), "--json"});
    CHECK(result.exit == 0);
    const auto line = result.out.rfind('\n', result.out.size() - 2) + 1;
    const auto json = nlohmann::json::parse(result.out.substr(line));
    CHECK(json.size() == 3);
    const int tokens = json["tokens"];
    CHECK(json["windows"] == (tokens + context - 2) / (context - 1));
    return std::pair<double, int>(json["perplexity"], tokens);
  };
  const auto [perplexity, tokens] = measure(512);
  CHECK(perplexity > 5);
  CHECK(perplexity < 50);
  CHECK(tokens > 3000);
  const auto [worse, same_tokens] = measure(16);  // with little to go by
  CHECK(worse > 1.2 * perplexity);
  CHECK(same_tokens == tokens);

  const Result text = run("guanaco-perplexity", {"--model", GUANACO_MODEL, "--file", file});
  CHECK(contains(text.out, fmt::format("{:.4f}", perplexity)));
}

TEST_CASE("guanaco-perplexity: the whole golden text within 0.05 percent") {
  const Result result = run(
      "guanaco-perplexity",
      {"--model", GUANACO_MODEL, "--file", std::string(GUANACO_TEST_DATA) + "/eval.txt", "--json"});
  REQUIRE(result.exit == 0);
  const auto found = nlohmann::json::parse(result.out);
  const auto golden = nlohmann::json::parse(
      read_file(std::string(GUANACO_TEST_DATA) + "/gptq-4bit-128g.json"))["perplexity"];
  const double expected = golden["value"];
  CHECK(std::abs(found["perplexity"].get<double>() / expected - 1) < 5e-4);
  CHECK(found["tokens"] == golden["tokens"]);
  CHECK(found["windows"] == golden["windows"]);
}

TEST_CASE("guanaco-inspect: shows format and shapes and memory without loading") {
  const Result result = run("guanaco-inspect", {"--model", GUANACO_MODEL, "--context", "1000"});
  CHECK(result.exit == 0);
  CHECK(result.err == "");
  for (const char* part :
       {"GPTQ", "groups of 128", "17.3 million", "384", "1024", "4096", "1000 tokens", "MiB"})
    CHECK_MESSAGE(contains(result.out, part), part);
}

TEST_CASE("hello: answers with the model it is given") {
  const Result result = run("hello", {GUANACO_MODEL});
  CHECK(result.exit == 0);
  CHECK(result.err == "");
  CHECK(contains(result.out, "Sunlight"));
  check_complaint("hello", run("hello", {"/no/such/model"}));
}
