"""A tour of the wrapper, and of what happens when something goes wrong. Every language has this program: all print the same."""
import gc
import sys
import threading

import guanaco
from guanaco import (Chat, GuanacoError, Info, Inspection, Memory, Model, Role, Sampler, Session, Stream, Text, estimate,
                     step)

PROMPT = "### Human: What are the benefits of regular exercise? ### Assistant:"


def files(path):
    """What the headers of the files tell before anything is loaded."""
    with Inspection(path) as found:
        print("inspect:", found.info(Info.LAYERS), "layers,", *found.texts(Text.FORMAT))
    need = estimate(path, context=64)
    print(f"estimate: {need[Memory.WEIGHTS]} bytes of weights, {need[Memory.SESSION]} of a session")


def texts(tokenizer):
    prompt = tokenizer.encode(PROMPT)
    print("encode:", *prompt)
    print("decode:", tokenizer.decode(prompt))
    bad = tokenizer.encode("\ufffd" * 6)  # what bytes count as that are no UTF-8
    print("bad bytes:", *bad)
    print(f"half a character: [{tokenizer.decode(bad[-3:-1])}]")
    with Stream(stops=["###"]) as stream:
        released = [f"[{stream.push(part)}]" for part in (b"The \xffsky\xc3", b"\xbc #", b"## Human")]
        print("stream:", *released, f"[{stream.finish()}] stop", stream.stop)
    with Chat("guanaco") as chat:
        chat.add(Role.USER, "What colour is the sky?")
        print("chat:", chat.render())
        print("stops:", *[f"[{stop}]" for stop in chat.stops])
    return prompt


def tokens(session, other, prompt):
    """Sessions by hand: feeding, scoring, going back, choosing."""
    greedy = Sampler(temperature=0)
    print("surprise:", *[f"{-score:.3f}" for score in session.score(prompt)[1:]])
    print("next:", greedy.sample(session.logits))
    session.rewind(9)
    print("rewind:", session.position, "of", session.context, "holds", *session.tokens)
    print("reuse:", session.reuse(prompt[:4] + prompt))
    session.feed(prompt[4:])
    print("feed:", session.position, "then", greedy.sample(session.logits))
    session.rewind(4)
    guanaco.feed([session, other], [prompt[4:], prompt])
    print("feed many:", *[f"{one.position} then {greedy.sample(one.logits)}" for one in (session, other)])

    seeded = Sampler(seed=7, temperature=1)
    print("sampler:", *[seeded.sample(session.logits) for _ in range(8)])
    copy = seeded.copy()
    print("its copy:", *[sampler.sample(session.logits) for sampler in (seeded, copy)])
    with Sampler(temperature=0, repetition_penalty=100) as penal:
        penal.accept([greedy.sample(session.logits)])
        print("accept:", penal.sample(session.logits))


def replies(session, other, prompt):
    session.rewind(0)
    other.rewind(0)
    with session.generate(prompt, temperature=0, max_tokens=8) as reply:
        pieces = list(reply.pieces())
        print("reply:", *[piece.token for piece in pieces], "finish", int(reply.finish))
        print(f"its text: {''.join(piece.text for piece in pieces)}, {sum(piece.logprob for piece in pieces):.3f}")
    session.rewind(0)
    with session.generate(PROMPT, seed=1) as one, other.generate(PROMPT, Sampler(seed=1)) as two:
        step([one, two])
        print(f"step: [{next(one)}] [{next(two)}] {one.tokens} {two.tokens}")


def failures(path, session, other, prompt):
    session.rewind(0)
    for call in (lambda: Model("no/such/folder"), lambda: session.feed([0] * 80), lambda: Sampler(top_p=2)):
        try:
            call()
        except GuanacoError as error:
            print(f"error: {error.status} {error}")

    def throw(*_):
        raise RuntimeError("enough")

    for what, call in dict(progress=lambda: session.feed(prompt, progress=throw), log=lambda: Model(path, log=throw)).items():
        try:
            call()
        except RuntimeError as error:
            print(f"thrown by {what}: {error}, position {session.position}")
    try:
        session.feed(prompt, progress=lambda done, total: False)
    except GuanacoError as error:
        print(f"given up: status {error.status}, position {session.position}")
    for name, value in dict(stops="###", temperature="hot", max_tokens=1.5).items():  # of stops, each character would be one
        try:
            session.generate(prompt, **{name: value})
            print(f"{name}={value!r} is taken")
        except TypeError as error:
            if name not in str(error):
                print("not named:", error)
    try:
        next(session.generate(prompt, progress=throw))
    except RuntimeError:
        pass
    session.feed(prompt, progress=lambda done, total: None)  # goes on: both replies are gone

    def cancel(done, total):  # in the middle of the prompt; by another thread, for this one is inside the call
        canceller = threading.Thread(target=reply.cancel)
        canceller.start()
        canceller.join()

    with session.generate(prompt, progress=cancel) as reply:
        print("cancelled:", list(reply), "finish", int(reply.finish))
    next(session.generate(prompt))  # and forgotten
    session.rewind(0)
    print("forgotten: position", session.position)
    other.close()
    try:
        other.rewind(0)
    except ValueError:
        print("closed: refused")


def main(path):
    gc.disable()  # what is forgotten is freed at once, and waits for no collector
    print("version:", guanaco.version)
    files(path)
    with Model(path) as model:
        prompt = texts(model.tokenizer)
        session, other = Session(model, context=64), Session(model, context=64)
    print("model closed, sessions go on")
    tokens(session, other, prompt)
    replies(session, other, prompt)
    failures(path, session, other, prompt)


main(sys.argv[1] if len(sys.argv) > 1 else "examples/models/tiny-guanaco")
