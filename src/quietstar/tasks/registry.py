"""Which tasks there are, and problems from them: any number, seeded, with train and held-out wording kept apart.

A package adds a task of its own through the entry point group `quietstar.tasks`: the name is the task's, the object a
function `(draw, steps, split) -> Problem`. Knows generators; knows nothing about files or models.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import entry_points

from quietstar.errors import QuietStarError
from quietstar.tasks import serial, words
from quietstar.tasks.problem import SPLITS, TRAIN, Draw, Generator, Problem

GROUP = "quietstar.tasks"
MOST_STEPS = 64
_OWN: dict[str, Generator] = {
    "words": words.word_problem,
    "arithmetic": serial.arithmetic,
    "odometer": serial.odometer,
    "table": serial.table,
    "permutation": serial.permutation,
    "cups": serial.cups,
}


def names() -> list[str]:
    """The names of all tasks, those of other packages included."""
    return [*_OWN, *sorted(entry.name for entry in entry_points(group=GROUP) if entry.name not in _OWN)]


def generator(name: str) -> Generator:
    """The generator of a task by its name.

    Raises:
        QuietStarError: there is no such task, or its package cannot be imported.
    """
    if name in _OWN:
        return _OWN[name]
    for entry in entry_points(group=GROUP, name=name):
        try:
            loaded: Generator = entry.load()
        except Exception as error:
            raise QuietStarError(f"task {name!r} ({entry.value}) could not be loaded: {error}") from error
        return loaded
    raise QuietStarError(f"unknown task {name!r}; there are {', '.join(names())}")


def generate(
    name: str, count: int, *, steps: tuple[int, int] = (1, 6), seed: int = 0, split: str = TRAIN
) -> Iterator[Problem]:
    """`count` problems of a task, as many of each number of steps, no question twice.

    Problem number n is a function of (seed, task, split, n) alone: a longer run begins with the same problems.

    Args:
        name: of the task. steps: fewest and most steps. seed: of all choices.
        split: "train" or "heldout"; the two share no wording (and, for word problems, no names and things).

    Raises:
        QuietStarError: unknown task or split, impossible numbers, or no more different questions with so few steps.
    """
    if split not in SPLITS:
        raise QuietStarError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    low, high = steps
    if not 1 <= low <= high <= MOST_STEPS:
        raise QuietStarError(f"steps must be from 1 to {MOST_STEPS}, fewest first; got {low} to {high}")
    if count < 1:
        raise QuietStarError(f"count must be at least 1, got {count}")
    return _generate(generator(name), name, count, low, high, seed, split)


def _generate(make: Generator, name: str, count: int, low: int, high: int, seed: int, split: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for number in range(count):
        for attempt in range(1000):
            problem = make(Draw(seed, name, split, number, attempt), low + number % (high - low + 1), split)
            if problem.prompt not in seen:
                break
        else:
            raise QuietStarError(
                f"task {name!r} has no more different questions of {problem.steps} steps after {number}; "
                "ask for fewer, or for more steps"
            )
        seen.add(problem.prompt)
        yield problem
