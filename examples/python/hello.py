"""Asks one question and prints the answer while it is being written."""
import sys

from guanaco import Chat, GuanacoError, Model, Role, Session


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "examples/models/tiny-guanaco"
    with Model(path) as model, Session(model) as session, Chat("guanaco") as chat:
        chat.add(Role.USER, "What colour is the sky?")
        with session.generate(chat.render(), seed=7, stops=chat.stops) as reply:
            for text in reply:
                print(text, end="", flush=True)
    print()


try:
    main()
except GuanacoError as error:
    sys.exit(f"hello: {error}")
