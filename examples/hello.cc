// Asks one question and prints the answer while it is being written.
#include <iostream>

#include <guanaco/guanaco.h>

int main(int argc, char** argv) try {
  using namespace guanaco;
  const Model model = Model::load(argc > 1 ? argv[1] : "examples/models/tiny-guanaco");
  Session session(model, {.context = 2048});

  const ChatTemplate& chat = ChatTemplate::named("guanaco");
  const Message question{Role::user, "What colour is the sky?"};
  const std::string prompt = chat.render({&question, 1});
  Generation reply = session.generate(prompt, Sampler({.seed = 7}),
                                      {.stops = {chat.stops().begin(), chat.stops().end()}});

  while (auto piece = reply.next()) std::cout << piece->text << std::flush;
  std::cout << '\n';
} catch (const guanaco::Error& error) {
  std::cerr << "hello: " << error.what() << '\n';
  return 1;
}
