"""Serial tasks: each step needs the result of the one before, so that one pass of a small model cannot do many.

| task | a step | why it is serial |
|---|---|---|
| arithmetic | add, subtract or multiply a digit, modulo 10 | a running value |
| odometer | turn a wheel; a full turn moves the next one | carries |
| table | look the last result up in a table that is new in every text | nothing to memorise |
| permutation | compose a permutation of five things (S5) | the group's word problem is NC1-complete |
| cups | swap two of three cups; where is the ball? | a running position |

Each has two wordings, one for training and one held out, so that a model cannot be right by having seen the sentence.
Sources of the choice: Barrington 1989 (S5), Feng and Steinhardt 2023 and later work on state tracking; see
docs/tasks.md. Knows text; knows nothing about models.
"""

from __future__ import annotations

from quietstar.tasks.problem import TRAIN, Draw, Problem

_LETTERS = "abcdefghjk"
_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva")


def arithmetic(draw: Draw, steps: int, split: str) -> Problem:
    """Running arithmetic modulo 10, e.g. "3 + 4 * 2 - 5"; every operation acts on the value so far."""
    value = draw.below(10)
    shown, thought = [str(value)], []
    for _ in range(steps):
        sign = draw.one("+-*")
        digit = draw.between(2, 9)
        value = {"+": value + digit, "-": value - digit, "*": value * digit}[sign] % 10
        shown.append(f"{sign}{digit}")
        thought.append(str(value))
    line = " ".join(shown)
    if split == TRAIN:
        prompt = f"Left to right, last digit only: {line} ="
    else:
        prompt = f"Work through {line} from the left and keep the last digit after each operation. Result:"
    return Problem("arithmetic", split, steps, prompt, " ".join(thought), str(value))


def odometer(draw: Draw, steps: int, split: str) -> Problem:
    """Three wheels of six positions; each step turns one on, and a wheel that comes round turns its left neighbour."""
    wheels = [draw.below(6) for _ in range(3)]
    start = "".join(map(str, wheels))
    turns, thought = [], []
    for _ in range(steps):
        at, by = draw.below(3), draw.between(1, 5)
        turns.append(f"{['left', 'middle', 'right'][at]} +{by}")
        wheels[at] += by
        for wheel in range(at, -1, -1):
            carry, wheels[wheel] = divmod(wheels[wheel], 6)
            if wheel:
                wheels[wheel - 1] += carry
        thought.append("".join(map(str, wheels)))
    line = ", ".join(turns)
    if split == TRAIN:
        prompt = f"Wheels 0 to 5 show {start}. Turn {line}; a full turn moves the wheel to its left by one. Now:"
    else:
        prompt = f"An odometer in base six reads {start}. After {line}, with carries to the left, it reads"
    return Problem("odometer", split, steps, prompt, " ".join(thought), thought[-1])


def table(draw: Draw, steps: int, split: str) -> Problem:
    """A random permutation table of ten letters, new in every text; follow it `steps` times from a letter."""
    to = dict(zip(_LETTERS, draw.order(_LETTERS), strict=True))
    letter = start = draw.one(_LETTERS)
    thought = []
    for _ in range(steps):
        letter = to[letter]
        thought.append(letter)
    rows = " ".join(f"{a}{b}" for a, b in draw.order(list(to.items())))
    if split == TRAIN:
        prompt = f"Table: {rows}. From {start}, {steps} times:"
    else:
        prompt = (
            f"Each pair leads from its first letter to its second: {rows}. {steps} moves after {start} you stand on"
        )
    return Problem("table", split, steps, prompt, " ".join(thought), letter)


def permutation(draw: Draw, steps: int, split: str) -> Problem:
    """Compose permutations of five things; the answer is the order at the end."""
    order = list("12345")
    moves, thought = [], []
    for _ in range(steps):
        move = draw.order(range(5))
        moves.append("".join(str(i + 1) for i in move))
        order = [order[i] for i in move]
        thought.append("".join(order))
    line = " ".join(moves)
    if split == TRAIN:
        prompt = f"Begin with 12345 and reorder by {line}:"
    else:
        prompt = f"Five cards lie in order 12345. Each number says which places to take next: {line}. They lie in order"
    return Problem("permutation", split, steps, prompt, " ".join(thought), thought[-1])


def cups(draw: Draw, steps: int, split: str) -> Problem:
    """Three cups, one ball, swaps; the thought says after each swap which cup has the ball."""
    at = draw.below(3)
    start = at + 1
    swaps, thought = [], []
    for _ in range(steps):
        one, other = draw.order(range(3))[:2]
        swaps.append(f"{one + 1}-{other + 1}")
        at = other if at == one else one if at == other else at
        thought.append(str(at + 1))
    line = ", ".join(swaps)
    if split == TRAIN:
        prompt = f"The ball is under cup {start}. Swap {line}. The ball is under cup"
    else:
        prompt = (
            f"{draw.one(_NAMES)} hides a coin in place {start} and exchanges places {line}. Where is the coin? In place"
        )
    return Problem("cups", split, steps, prompt, " ".join(thought), str(at + 1))
