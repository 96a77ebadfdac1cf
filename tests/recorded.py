"""Traces without a model: small ones to read, arbitrary ones for property tests, and a stream of them."""

from __future__ import annotations

import random

from hypothesis import strategies as st

from quietstar.events import (
    Choice,
    End,
    Identity,
    NoiseFloor,
    Sample,
    Start,
    ThoughtEvent,
    TokenEvent,
    Trace,
)


def start(*prompts: str, **changes) -> Start:
    prompts = prompts or ("Why?",)
    fields = dict(
        schema=2, version="0.1.0", model="m", base="b", dtype="float32", device="cpu", untrained=False,
        prompts=list(prompts), prompt_ids=[[1, 2] for _ in prompts], chat=False, phase="answer",
        settings={"seed": 3, "trigger": "always", "control": "own", "samples": 1, "thought_length": 2, "stop": []},
        identity=Identity(base_hash="ab", head_hash="cd"), versions={"torch": "2"}, asked=list(prompts),
    )  # fmt: skip
    return Start(**(fields | changes))


def thought(position: int, *texts: str, kl: float = 0.1, sequence: int = 0, flipped: bool = False, **changes):
    top = [Choice(5, " base", 0.5), Choice(6, " other", 0.25)]
    fields = dict(
        sequence=sequence, position=position, trigger="always", control="own",
        samples=[Sample([7, 8], text, [-0.5, -1.25], 0.3, [text[:1], text[1:]]) for text in texts or ("hidden thing",)],
        weight=0.3, base=top, mixed=top[::-1] if flipped else top, only=[Choice(9, " only", 0.125)], flipped=flipped,
        kl=kl, entropy=1.5,
    )  # fmt: skip
    return ThoughtEvent(**(fields | changes))


def token(position: int, text: str = " word", sequence: int = 0, thought: bool = True) -> TokenEvent:
    return TokenEvent(sequence, position, 11, text, -0.75, thought)


def trace(prompt: str = "Why?", words=(" So", " it", " is"), thoughts=None, seed: int = 3, **changes) -> Trace:
    """A finished trace: each word with a thought before it."""
    made = Trace(start(prompt, settings=start().settings | {"seed": seed}, **changes))
    for n, word in enumerate(words):
        text = thoughts[n] if thoughts else f"think{n} deep"
        made.add(thought(1 + n, text, kl=0.1 * (n + 1), flipped=n == 1))
        made.add(token(2 + n, word))
    made.add(End(0, "stop", "".join(words), len(words), len(words), 0.5))
    return made


_TEXT = st.text(max_size=20)  # control characters, direction marks, NUL and anything else but lone surrogates
_REAL = st.floats(allow_nan=False)
_ID = st.integers(0, 2**40)
_CHOICES = st.lists(st.builds(Choice, _ID, _TEXT, _REAL), max_size=3)
_SAMPLE = st.builds(
    Sample, st.lists(_ID, max_size=3), _TEXT, st.lists(_REAL, max_size=3), _REAL, st.lists(_TEXT, max_size=3)
)
_JSON = st.dictionaries(
    st.sampled_from(["seed", "trigger", "control", "samples", "temperature", "stop", "mixing_weight", "x"]),
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT
    | st.lists(_TEXT, max_size=2),
    max_size=5,
)  # fmt: skip


@st.composite
def traces(draw) -> Trace:
    """Any trace a stream can add up to, with any text in it, finished or not."""
    size = draw(st.integers(1, 3))
    sequence = draw(st.integers(0, size - 1))
    made = Trace(
        Start(
            schema=2, version=draw(_TEXT), model=draw(_TEXT), base=draw(_TEXT), dtype="float32", device="cpu",
            untrained=draw(st.booleans()), prompts=[draw(_TEXT) if b == sequence else "" for b in range(size)],
            prompt_ids=[draw(st.lists(_ID, max_size=3)) if b == sequence else [] for b in range(size)],
            chat=draw(st.booleans()), settings=draw(_JSON), phase=draw(st.sampled_from(["reason", "answer"])),
            identity=Identity(draw(st.none() | _TEXT), draw(st.none() | _TEXT), *(draw(_TEXT) for _ in range(4))),
            versions=draw(st.dictionaries(_TEXT, _TEXT, max_size=2)),
            asked=[draw(_TEXT) if b == sequence else "" for b in range(size)],
        ),
        sequence,
    )  # fmt: skip
    if draw(st.booleans()):
        made.add(NoiseFloor(draw(st.integers(1, 8)), *(draw(_REAL) for _ in range(3)), draw(st.none() | _REAL)))
    position = draw(st.integers(0, 3))
    for _ in range(draw(st.integers(0, 3))):
        if thinks := draw(st.booleans()):
            made.add(
                ThoughtEvent(
                    sequence, position, draw(_TEXT), draw(_TEXT), draw(st.lists(_SAMPLE, max_size=2)), draw(_REAL),
                    draw(_CHOICES), draw(_CHOICES), draw(_CHOICES), draw(st.booleans()), draw(_REAL), draw(_REAL),
                    *(draw(st.none() | _REAL) for _ in range(3)),
                )
            )  # fmt: skip
        position += 1
        made.add(TokenEvent(sequence, position, draw(_ID), draw(_TEXT), draw(_REAL), thinks))
    if draw(st.booleans()):
        made.add(End(sequence, draw(_TEXT), draw(_TEXT), len(made.tokens), len(made.thoughts), draw(st.floats(0, 1e6))))
    return made


def garbled(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(("sky", "blue", "the", "because", "light", "answer", "lies", "zebra", "42", "if"))
                    for _ in range(words))  # fmt: skip
