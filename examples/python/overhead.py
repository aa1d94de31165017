"""What the binding itself costs: the time of next() alone, once step() has computed the token."""
import sys
from statistics import median
from time import perf_counter

from guanaco import GuanacoError, Model, Session, step


def main():
    path = sys.argv[1] if len(sys.argv) > 1 else "examples/models/tiny-guanaco"
    times = []
    with Model(path) as model, Session(model, context=600) as session:
        with session.generate("Once upon a time", max_tokens=400, temperature=0, stop_at_end_of_text=False) as reply:
            while True:
                step([reply])
                begin = perf_counter()
                text = next(reply, None)
                took = perf_counter() - begin
                if text is None:
                    break
                times.append(took)
    print(f"Python: {1e6 * median(times):.2f} us a token")


try:
    main()
except GuanacoError as error:
    sys.exit(f"overhead: {error}")
