#pragma once

#include <span>
#include <string>
#include <string_view>

namespace guanaco {

enum class Role { system, user, assistant };

struct Message {
  Role role;
  std::string text;
};

/// The exact shape in which a conversation becomes one prompt. S is the system message, U and
/// V what the user says, A the reply to U; a dot stands for a space:
///
///     name      source                         prompt
///     guanaco   the default                    S\n###.Human:.U\n###.Assistant:.A
///                                              \n###.Human:.V\n###.Assistant:
///     card      Guanaco's model card           S\n###.Human:.U.###.Assistant:.A
///                                              \n###.Human:.V.###.Assistant:
///     train     its training data              S###.Human:.U###.Assistant:.A
///                                              ###.Human:.V###.Assistant:
///     eval      the QLoRA paper's samples      S.###.Human:.U.###.Assistant:.A
///                                              .###.Human:.V.###.Assistant:
///     webui     text-generation-webui          S\n\n###.Human:.U\n###.Assistant:.A
///                                              \n###.Human:.V\n###.Assistant:
///
/// A conversation without a system message has this one, except in "train", where S is empty:
/// "A chat between a curious human and an artificial intelligence assistant. The assistant gives
/// helpful, detailed, and polite answers to the user's questions." ("webui": "the human's
/// questions.") An empty system message leaves S out together with what separates it from the first
/// turn. Immutable, static lifetime; any thread.
class ChatTemplate {
 public:
  /// Throws invalid_argument listing the names if there is no such template.
  static const ChatTemplate& named(std::string_view name);
  static std::span<const ChatTemplate> all();

  /// The prompt of a conversation, up to where the assistant is to speak: it ends in "Assistant:".
  /// A system message may only come first; then user and assistant take turns, the user first and
  /// last. Throws invalid_argument otherwise, naming the message.
  std::string render(std::span<const Message> conversation) const;

  /// Texts that end the assistant's turn.
  std::span<const std::string_view> stops() const noexcept { return kStops; }
  std::string_view name() const noexcept { return name_; }

 private:
  friend struct ChatTemplates;
  constexpr ChatTemplate(std::string_view name, std::string_view system,
                         std::string_view after_system, std::string_view between,
                         std::string_view before_answer)
      : name_(name),
        system_(system),
        after_system_(after_system),
        between_(between),
        before_answer_(before_answer) {}
  static constexpr std::string_view kStops[] = {"### Human:", "### Assistant:"};
  std::string_view name_, system_, after_system_, between_, before_answer_;
};

}  // namespace guanaco
