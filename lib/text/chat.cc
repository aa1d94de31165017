#include <guanaco/chat.h>

#include "support/check.h"

namespace guanaco {

/// The five shapes, as data: no constructor has to run before it is used, no destructor ends it.
struct ChatTemplates {
  static constexpr const char* kSystem =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the user's questions.";
  static constexpr const char* kWebuiSystem =
      "A chat between a curious human and an artificial intelligence assistant. The assistant "
      "gives helpful, detailed, and polite answers to the human's questions.";

  // Name, system message, what separates it from the first turn, the turns, a question from its
  // answer.
  static constexpr ChatTemplate kAll[] = {
      {"guanaco", kSystem, "\n", "\n", "\n"},
      {"card", kSystem, "\n", "\n", " "},
      {"train", "", "", "", ""},
      {"eval", kSystem, " ", " ", " "},
      {"webui", kWebuiSystem, "\n\n", "\n", "\n"},
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

std::span<const ChatTemplate> ChatTemplate::all() { return ChatTemplates::kAll; }

const ChatTemplate& ChatTemplate::named(std::string_view name) {
  std::string names;
  for (const ChatTemplate& shape : all()) {
    if (shape.name_ == name) return shape;
    names += (names.empty() ? "" : ", ") + std::string(shape.name_);
  }
  fail(ErrorCode::invalid_argument, "chat template: expected one of {}, found '{}'", names, name);
}

std::string ChatTemplate::render(std::span<const Message> conversation) const {
  const bool has_system = !conversation.empty() && conversation[0].role == Role::system;
  std::string prompt(has_system ? conversation[0].text : system_);
  if (!prompt.empty()) prompt += after_system_;
  const std::size_t first = has_system ? 1 : 0;
  for (std::size_t i = first; i < conversation.size(); ++i) {
    const Message& message = conversation[i];
    const Role expected = (i - first) % 2 == 0 ? Role::user : Role::assistant;
    require(message.role == expected, ErrorCode::invalid_argument,
            "conversation[{}]: expected a message of role {}, found {}", i, role_name(expected),
            role_name(message.role));
    if (message.role == Role::user)
      prompt += fmt::format("{}### Human: {}{}### Assistant:", i == first ? "" : between_,
                            message.text, before_answer_);
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
