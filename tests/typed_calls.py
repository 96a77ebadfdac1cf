"""Calls as callers write them, right and wrong; tests/test_typed_calls.py runs mypy on this file, nothing runs it.

A line that mypy must refuse ends with a comment: a part of each error it must report.
"""

from collections.abc import Iterator

from torch import Tensor

from quietstar import Generation, GenerationSettings, QuietStar, Resampled, Score
from quietstar.events import Event
from quietstar.inference.summary import ScoreSummary


def right(model: QuietStar, ids: Tensor) -> None:
    one: Generation = model.generate("Why?", max_new_tokens=3, trigger="always", stop="\n")
    text, trace = model.generate("Why?", thought_length=None, settings=GenerationSettings())
    conversation: Generation = model.generate([{"role": "user", "content": "Why?"}], system="Be brief.")
    tokens: Generation = model.generate([1, 2, 3])
    several: list[Generation] = model.generate(["Why?", "How?"], temperature=0.5)
    rows: list[Generation] = model.generate([[1, 2], [3]])
    tensor = model.generate(ids, attention_mask=ids)
    named = model.generate(input_ids=ids, attention_mask=ids, seed=3)
    events: Iterator[Event] = model.stream("Why?", max_new_tokens=3, raw=True)
    phases: Iterator[Event] = model.reason_then_answer("Why?", answer_tokens=3, top_p=0.9)
    score: Score = model.score("Because.", controls=["filler"], samples=2)
    summary: ScoreSummary = score.summary()
    resampled: Resampled = model.resample(3, 5, of="Because.", show=2)
    print(
        one,
        text,
        trace.thoughts,
        conversation,
        tokens,
        several,
        rows,
        tensor,
        named,
        events,
        phases,
        summary,
        resampled,
    )


def wrong(model: QuietStar) -> None:
    model.generate("Why?", max_new_token=3)  # E: No overload variant
    model.generate("Why?", max_new_tokens="3")  # E: No overload variant
    model.generate(["Why?", "How?"], temprature=0.5)  # E: No overload variant
    model.generate(3)  # E: No overload variant
    model.stream("Why?", max_new_token=3)  # E: Unexpected keyword argument "max_new_token"
    model.stream("Why?", seed="x")  # E: "seed" to "stream" of "QuietStar" has incompatible type
    model.reason_then_answer("Why?", answer_token=3)  # E: Unexpected keyword argument "answer_token"
    model.score("Because.", sample=2)  # E: Unexpected keyword argument "sample"
    model.score([{"role": "user", "content": "Why?"}])  # E: Argument 1 to "score" of "QuietStar" has incompatible type
    model.resample(3, shows=2)  # E: Unexpected keyword argument "shows"
    model.resample("3")  # E: incompatible type "str"; expected "int"
    one: Generation = model.generate(["Why?", "How?"])  # E: Incompatible types in assignment
    print(one.txt)  # E: "Generation" has no attribute "txt"
