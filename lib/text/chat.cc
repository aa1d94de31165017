#include <guanaco/chat.h>

#include <array>

#include "support/check.h"

namespace guanaco {

/// The five shapes, as data.
struct ChatTemplates {
  static constexpr const char* kSystem =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the user's questions.";
  static constexpr const char* kWebuiSystem =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the human's questions.";

  /// `between` is what separates the turns, `before_assistant` a question from its answer.
  static ChatTemplate make(const char* name, const char* system, const char* after_system,
                           const std::string& between, const std::string& before_assistant) {
    ChatTemplate shape;
    shape.name_ = name;
    shape.system_ = system;
    shape.after_system_ = after_system;
    shape.human_ = "### Human: ";
    shape.next_human_ = between + shape.human_;
    shape.assistant_ = before_assistant + "### Assistant:";
    shape.stops_ = {"### Human:", "### Assistant:"};
    return shape;
  }

  const std::array<ChatTemplate, 5> all = {
      make("guanaco", kSystem, "\n", "\n", "\n"),
      make("card", kSystem, "\n", "\n", " "),
      make("train", "", "", "", ""),
      make("eval", kSystem, " ", " ", " "),
      make("webui", kWebuiSystem, "\n\n", "\n", "\n"),
  };
};

namespace {

const char* role_name(Role role) {
  switch (role) {
    case Role::system:
      return "system";
    case Role::user:
      return "user";
    case Role::assistant:
      return "assistant";
  }
  return "no role";
}

}  // namespace

std::span<const ChatTemplate> ChatTemplate::all() {
  static const ChatTemplates templates;
  return templates.all;
}

const ChatTemplate& ChatTemplate::named(std::string_view name) {
  std::string names;
  for (const ChatTemplate& shape : all()) {
    if (shape.name_ == name) return shape;
    names += (names.empty() ? "" : ", ") + shape.name_;
  }
  fail(ErrorCode::invalid_argument, "chat template: expected one of {}, found '{}'", names, name);
}

std::string ChatTemplate::render(std::span<const Message> conversation) const {
  const bool has_system = !conversation.empty() && conversation[0].role == Role::system;
  const std::string& system = has_system ? conversation[0].text : system_;
  std::string prompt = system.empty() ? "" : system + after_system_;
  const std::size_t first = has_system ? 1 : 0;
  for (std::size_t i = first; i < conversation.size(); ++i) {
    const Message& message = conversation[i];
    const Role expected = (i - first) % 2 == 0 ? Role::user : Role::assistant;
    require(message.role == expected, ErrorCode::invalid_argument,
            "conversation[{}]: expected a message of role {}, found {}", i, role_name(expected),
            role_name(message.role));
    if (message.role == Role::user)
      prompt += (i == first ? human_ : next_human_) + message.text + assistant_;
    else
      prompt += " " + message.text;
  }
  require(conversation.size() > first, ErrorCode::invalid_argument,
          "conversation[{}]: expected a message of role user, found the end", first);
  require(conversation.back().role == Role::user, ErrorCode::invalid_argument,
          "conversation[{}]: expected the last message to be of role user, found assistant",
          conversation.size() - 1);
  return prompt;
}

}  // namespace guanaco
