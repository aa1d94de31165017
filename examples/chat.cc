// guanaco-chat: one reply to a prompt, or a conversation.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include <fmt/format.h>
#include <guanaco/guanaco.h>
#include <CLI/CLI.hpp>

#include "support/console.h"
#include "support/program.h"
#include "support/progress.h"
#include "support/speed.h"

namespace {

using namespace guanaco;
using support::Console;

struct Arguments {
  support::ModelArguments model;
  std::optional<std::string> prompt, system;
  std::string template_name = "guanaco";
  int max_tokens = 512, context = 2048;
  SamplerOptions sampler;
  bool raw = false, stats = false;
};

constexpr const char* kHelp =
    "  /reset  forget the conversation\n"
    "  /help   this list\n"
    "  /quit   leave; so do Ctrl-D, and Ctrl-C twice\n"
    "Ctrl-C stops a reply.\n";

template <typename... Args>
void note(fmt::format_string<Args...> format, Args&&... args) {
  fmt::print(stderr, "({})\n", fmt::format(format, std::forward<Args>(args)...));
}

class Chat {
 public:
  Chat(const Arguments& arguments, const Model& model, Console& console)
      : arguments_(arguments),
        template_(ChatTemplate::named(arguments.template_name)),
        model_(model),
        session_(model, {.context = arguments.context}),
        console_(console) {
    reset();
  }

  /// The reply to one prompt, and nothing else, on stdout.
  int answer(const std::string& prompt) {
    const Reply reply = say(prompt);
    if (isatty(STDOUT_FILENO)) end_line(reply.text);
    if (reply.finish == Finish::context_full) note_full();
    if (arguments_.stats) speed_.print(model_);
    return reply.finish == Finish::cancelled ? support::kInterrupted : support::kOk;
  }

  /// Reads prompts from stdin until it ends.
  int converse() {
    const bool terminal = isatty(STDIN_FILENO);
    if (terminal)
      fmt::print(stderr, "{} on {}. /help lists the commands.\n", model_.report().format,
                 model_.info().device);
    int interrupts = 0;
    std::string line;
    for (;;) {
      if (terminal) fmt::print(stderr, "> ");
      const Console::Input input = console_.read_line(line);
      if (input == Console::Input::end) break;
      if (input == Console::Input::interrupted) {
        fmt::print(stderr, "\n");
        if (++interrupts == 2) return support::kOk;
        note("Ctrl-C once more leaves");
        continue;
      }
      interrupts = 0;
      if (!terminal) fmt::print(stderr, "> {}\n", line);  // else the terminal shows it
      if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
      if (line == "/quit") return support::kOk;
      if (line[0] == '/') {
        command(line);
        continue;
      }
      try {
        turn(line);
      } catch (const Error& error) {
        // Somebody who types can shorten the prompt; a script is better told.
        if (!terminal || error.code() != ErrorCode::context_full) throw;
        note("{}", error.what());
      }
    }
    if (terminal) fmt::print(stderr, "\n");
    return support::kOk;
  }

 private:
  struct Reply {
    std::string text;
    Finish finish = Finish::none;
  };

  void command(const std::string& line) {
    if (line == "/reset") {
      reset();
      note("the conversation starts anew");
    } else if (line == "/help") {
      fmt::print(stderr, "{}", kHelp);
    } else {
      note("no command {}; /help lists them", line);
    }
  }

  void reset() {
    messages_.clear();
    if (arguments_.system) messages_.push_back({Role::system, *arguments_.system});
    turns_ = 0;
  }

  /// One prompt and its reply in a conversation.
  void turn(const std::string& prompt) {
    const Reply reply = say(prompt);
    end_line(reply.text);
    if (reply.finish == Finish::cancelled) note("stopped");
    if (reply.finish == Finish::context_full) note_full();
    if (reply.finish == Finish::max_tokens)
      note("stopped after {} tokens, as --max-tokens says", arguments_.max_tokens);
    if (arguments_.stats) speed_.print(model_);
  }

  /// Streams the reply to stdout. A prompt that was stopped before its reply began is forgotten.
  Reply say(const std::string& prompt) {
    if (arguments_.raw) return generate(model_.tokenizer().encode(prompt), {});
    std::vector<Message> messages = messages_;
    messages.push_back({Role::user, prompt});
    const std::vector<TokenId> tokens = fit(messages);
    Reply reply = generate(tokens, {template_.stops().begin(), template_.stops().end()});
    if (reply.finish == Finish::cancelled && reply.text.empty()) return reply;
    messages.push_back({Role::assistant, reply.text});
    messages_ = std::move(messages);
    ++turns_;
    return reply;
  }

  /// Renders the conversation, without its oldest turns if there would be too little room for a
  /// reply, and says so.
  std::vector<TokenId> fit(std::vector<Message>& messages) const {
    const std::size_t first = arguments_.system ? 1 : 0;  // turn; the system message stays
    const std::size_t room = std::min(arguments_.max_tokens, arguments_.context / 4);
    int dropped = 0;
    for (;;) {
      std::vector<TokenId> tokens = model_.tokenizer().encode(template_.render(messages));
      const bool fits = tokens.size() + room <= static_cast<std::size_t>(arguments_.context);
      if (fits || messages.size() == first + 1) {
        if (dropped > 0)
          note("the context of {} tokens is full; the oldest {} left the conversation",
               arguments_.context, dropped == 1 ? "turn" : fmt::format("{} turns", dropped));
        return tokens;
      }
      const auto oldest = messages.begin() + static_cast<std::ptrdiff_t>(first);
      messages.erase(oldest, oldest + 2);  // what was asked and what was answered
      ++dropped;
    }
  }

  Reply generate(const std::vector<TokenId>& tokens, std::vector<std::string> stops) {
    support::Progress progress("reading the prompt", std::chrono::seconds(1));
    GenerateOptions options;
    options.max_tokens = arguments_.max_tokens;
    options.stops = std::move(stops);
    options.cancel = console_.renew();
    options.progress = [&](int done, int total) { progress.show(done, total); };

    SamplerOptions sampling = arguments_.sampler;
    sampling.seed += turns_;  // a question asked twice may get another answer
    const std::span<const TokenId> prompt(tokens);
    const int held = session_.reuse(prompt);  // earlier turns are not computed again
    Generation generation = session_.generate(prompt.subspan(held), Sampler(sampling), options);

    Reply reply;
    speed_.start(held, static_cast<int>(tokens.size()) - held);
    while (const auto piece = generation.next()) {
      progress.clear();
      if (piece->token >= 0) speed_.token();
      reply.text += piece->text;
      std::fwrite(piece->text.data(), 1, piece->text.size(), stdout);
      std::fflush(stdout);
    }
    reply.finish = generation.finish();
    return reply;
  }

  void note_full() const {
    note("the reply was cut short: the context of {} tokens is full", arguments_.context);
  }

  static void end_line(const std::string& text) {
    if (text.empty() || text.back() != '\n') fmt::print("\n");
    std::fflush(stdout);
  }

  const Arguments& arguments_;
  const ChatTemplate& template_;
  Model model_;
  Session session_;
  Console& console_;
  std::vector<Message> messages_;
  int turns_ = 0;  ///< since the conversation began
  support::Speed speed_;
};

/// --prompt as given, or all of stdin for "-": byte for byte if raw, else without its last newline.
std::string prompt_text(const Arguments& arguments) {
  if (*arguments.prompt != "-") return *arguments.prompt;
  std::string text(std::istreambuf_iterator<char>(std::cin), {});
  if (!arguments.raw && text.ends_with('\n')) text.pop_back();
  return text;
}

/// What the library would refuse once the model is loaded is a wrong command line now.
void check(const Arguments& arguments) try {
  Sampler{arguments.sampler};
  ChatTemplate::named(arguments.template_name);
} catch (const Error& error) {
  throw CLI::ValidationError(error.what());
}

int run(const CLI::App& app, const Arguments& arguments) {
  check(arguments);
  std::optional<std::string> prompt;
  if (arguments.prompt) prompt = prompt_text(arguments);
  Console console;
  const Model model =
      support::load_model(app, arguments.model, [&] { return console.interrupted(); });
  const int trained = model.info().context;
  if (trained > 0 && arguments.context > trained)
    note("the model was trained for {} tokens, the context has {}", trained, arguments.context);
  Chat chat(arguments, model, console);
  return prompt ? chat.answer(*prompt) : chat.converse();
}

void add_options(CLI::App& app, Arguments& arguments) {
  using support::in_range;
  std::vector<std::string> templates;
  for (const ChatTemplate& one : ChatTemplate::all()) templates.emplace_back(one.name());

  support::add_model_option(app, arguments.model);
  app.add_option("--prompt", arguments.prompt,
                 "Reply to this and leave; - reads it from standard input")
      ->type_name("TEXT");
  auto* system =
      app.add_option("--system", arguments.system, "System message, instead of the template's own")
          ->type_name("TEXT");
  auto* shape = app.add_option("--template", arguments.template_name, "How prompts are written")
                    ->check(CLI::IsMember(templates))
                    ->capture_default_str();
  app.add_option("--max-tokens", arguments.max_tokens, "Longest reply")
      ->check(in_range(1))
      ->capture_default_str();
  app.add_option("--context", arguments.context, "Tokens of a conversation that are remembered")
      ->check(in_range(1))
      ->capture_default_str();
  app.add_option("--temperature", arguments.sampler.temperature,
                 "0 always takes the likeliest token")
      ->check(in_range(0))
      ->capture_default_str();
  app.add_option("--top-k", arguments.sampler.top_k, "Choose among the k likeliest; 0 = all")
      ->check(in_range(0))
      ->capture_default_str();
  app.add_option("--top-p", arguments.sampler.top_p,
                 "Choose among the fewest tokens of that probability; 1 = all")
      ->check(support::positive(1))
      ->capture_default_str();
  app.add_option("--min-p", arguments.sampler.min_p,
                 "Choose among those at least that times as likely as the likeliest; 0 = all")
      ->check(in_range(0, 1))
      ->capture_default_str();
  app.add_option("--repetition-penalty", arguments.sampler.repetition_penalty,
                 "Makes tokens that were there less likely; 1 = off")
      ->check(support::positive())
      ->capture_default_str();
  app.add_option("--seed", arguments.sampler.seed, "Same seed, same text")
      ->check(in_range(0))
      ->capture_default_str();
  support::add_device_options(app, arguments.model);
  app.add_flag("--raw", arguments.raw,
               "Take prompts as they are: no template, no stop texts; in a conversation every line "
               "is a prompt of its own")
      ->excludes(system)
      ->excludes(shape);
  app.add_flag("--stats", arguments.stats, "Print speeds to standard error");
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Talk with a LLaMA checkpoint, as it was published", "guanaco-chat");
  app.footer(std::string("Without --prompt, a conversation:\n") + kHelp);
  Arguments arguments;
  add_options(app, arguments);
  return support::run_main(app, argc, argv, [&] { return run(app, arguments); });
}
