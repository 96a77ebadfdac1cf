"""Word problems of 1 to 8 steps with numbers to 200, from many templates; the thought holds the equations.

A problem is a story about one running quantity: an opening (which may need a step), events that change it, and a
question (which may need a last step). Every sentence of the held-out split is built from openings, events, questions,
names and things that the training split never uses. Knows text; knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from quietstar.tasks.problem import TRAIN, Draw, Problem

MOST = 200  # no number of a problem is larger

# Of each pair the first belongs to the training split, the second is held out.
_WOMEN = (
    ("Ann", "Carla", "Emma", "Grace", "Ivy", "Kate", "Maria", "Olga", "Rosa", "Tina"),
    ("Amira", "Dalia", "Fatima", "Hana", "Ines"),
)
_MEN = (
    ("Ben", "David", "Frank", "Henry", "Jack", "Leo", "Nick", "Paul", "Sam", "Victor"),
    ("Bruno", "Chen", "Erik", "Goran", "Jonas"),
)
_THINGS = (
    "apples marbles stickers books coins pencils cards cookies balloons shells stamps flowers toys eggs candies "
    "oranges beads tickets photos stones cups games pears bottles",
    "buttons lemons magnets postcards crayons muffins badges walnuts ribbons dolls",
)
_CONTAINERS = ("boxes bags packs baskets jars shelves", "crates trays pouches drawers")

_OPENINGS = (
    (
        "{name} has {n} {things}.",
        "{name} starts with {n} {things}.",
        "There are {n} {things} on {name}'s table.",
        "{name} had {n} {things} this morning.",
        "{name} collected {n} {things}.",
        "In the beginning {name} has {n} {things}.",
        "A shop has {n} {things}. {name} runs the shop.",
    ),
    (
        "{name} owns {n} {things}.",
        "At first there are {n} {things} in {name}'s room.",
        "{name} brought {n} {things} from home.",
    ),
)
_PACKED = (
    (
        "{name} buys {a} {boxes} with {b} {things} each.",
        "{name} has {a} {boxes}, and each holds {b} {things}.",
        "There are {b} {things} in each of {name}'s {a} {boxes}.",
        "{name} fills {a} {boxes} with {b} {things} in each one.",
    ),
    (
        "{name} unpacks {a} {boxes} of {b} {things} apiece.",
        "Each of the {a} {boxes} that {name} carries has {b} {things}.",
    ),
)
_TWO_KINDS = (
    (
        "{name} has {a} red {things} and {b} blue {things}.",
        "{name} found {a} {things} on Monday and {b} on Tuesday.",
        "{name} has {a} {things} and gets {b} {things} as a present.",
    ),
    ("{name} keeps {a} old {things} and {b} new ones.", "{name} made {a} {things} before lunch and {b} after it."),
)


@dataclass(frozen=True)
class _Event:
    """A change of the running quantity: its sign, its sentences (training, held out), and the operands it may take."""

    sign: str
    sentences: tuple[tuple[str, ...], tuple[str, ...]]
    operands: tuple[int, ...] = field(default=())


_EVENTS = (
    _Event(
        "+",
        (
            (
                "{He} buys {n} more.",
                "{other} gives {him} {n} {things}.",
                "{He} finds {n} more {things}.",
                "Then {he} gets {n} more from {other}.",
                "{He} wins {n} {things} in a game.",
                "{other} brings {n} more {things}.",
                "{His} uncle sends {him} {n} {things}.",
                "{He} makes {n} more {things}.",
                "After that, {n} more {things} arrive.",
            ),
            (
                "{He} picks up another {n}.",
                "{other} hands {him} {n} {things}.",
                "Another {n} {things} are added.",
                "{He} earns {n} extra {things}.",
            ),
        ),
    ),
    _Event(
        "-",
        (
            (
                "{He} gives {n} to {other}.",
                "{He} loses {n} of them.",
                "{He} sells {n} {things}.",
                "{n} of the {things} break.",
                "{He} uses {n} of them.",
                "{other} takes {n} {things}.",
                "Then {he} gives away {n} {things}.",
                "{He} leaves {n} of them at school.",
                "{other} borrows {n} of the {things}.",
            ),
            (
                "{He} throws {n} of them away.",
                "{He} donates {n} {things}.",
                "{n} {things} go missing.",
                "{He} hands {n} of them over to {other}.",
            ),
        ),
    ),
    _Event(
        "*",
        (
            (
                "Then the number of {things} becomes {times} as large.",
                "{He} trades each of them for {n} new {things}.",
                "A week later {he} has {times} as many.",
                "{His} number of {things} grows to {times} as many.",
            ),
            ("For each one {he} receives {n} in exchange.", "By the next day there are {times} as many {things}."),
        ),
        (2, 3, 4),
    ),
    _Event(
        "/",
        (
            (
                "{He} splits them into {n} equal piles and keeps one pile.",
                "{He} shares them equally among {n} people, {himself} included, and keeps one share.",
                "Only one of every {n} {things} is kept.",
            ),
            ("{He} puts them into {n} equal groups and takes just one group.", "Of every {n} {things}, one remains."),
        ),
        (2, 3, 4, 5),
    ),
)
_QUESTIONS = (
    (
        "How many {things} does {name} have now?",
        "How many {things} are there now?",
        "How many {things} are left?",
        "How many {things} does {name} have in the end?",
        "What is the number of {things} now?",
    ),
    ("How many {things} remain with {name}?", "Count the {things} that {name} ends up with."),
)
# questions with a step of their own: sign, sentences
_LAST_STEPS = (
    (
        "+",
        (
            (
                "{other} has {n} {things}. How many {things} do they have together?",
                "{other} has {n} {things}. How many {things} do {name} and {other} have in total?",
            ),
            ("{other} keeps {n} {things}. What do the two have altogether?",),
        ),
    ),
    (
        "-",
        (
            ("{other} has {n} {things}. How many more {things} than {other} does {name} have?",),
            ("{other} owns {n} {things}. By how many does {name} have more?",),
        ),
    ),
    (
        "*",
        (
            (
                "Each of them costs {n} dollars. How many dollars do they cost together?",
                "{other} has {times} as many {things} as {name} has now. How many {things} does {other} have?",
            ),
            ("They sell for {n} dollars apiece. How many dollars is that in all?",),
        ),
    ),
    (
        "/",
        (
            (
                "{He} packs them into {n} {boxes} equally. How many {things} are in each of them?",
                "{n} children share them equally. How many {things} does each child get?",
            ),
            ("{He} divides them evenly between {n} neighbours. How many does each neighbour receive?",),
        ),
    ),
)


class _Story:
    """A problem under construction: the running value, what was told and the equations so far."""

    def __init__(self, draw: Draw, split: str) -> None:
        self.draw, self.which = draw, int(split != TRAIN)
        name, *self.others = draw.order(_WOMEN[self.which] + _MEN[self.which])
        she = name in _WOMEN[self.which]
        self.words = {
            "name": name,
            "things": draw.one(_THINGS[self.which].split()),
            "boxes": draw.one(_CONTAINERS[self.which].split()),
            "he": "she" if she else "he",
            "He": "She" if she else "He",
            "him": "her" if she else "him",
            "His": "Her" if she else "His",
            "himself": "herself" if she else "himself",
        }
        self.value = 0
        self.sentences: list[str] = []
        self.equations: list[str] = []

    def tell(self, sentences: tuple[tuple[str, ...], tuple[str, ...]], **numbers: int) -> None:
        """Add one of the sentences of this split with these numbers."""
        times = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}
        words = {**self.words, "other": self.draw.one(self.others), "times": times.get(numbers.get("n", 0), "")}
        self.sentences.append(self.draw.one(sentences[self.which]).format(**words, **numbers))

    def step(self, sign: str, operand: int) -> None:
        """Let the running value go through one operation and write the equation down."""
        before = self.value
        self.value = _apply(before, sign, operand)
        self.equations.append(f"{before}{sign}{operand}={self.value}")

    def operand(self, sign: str, among: tuple[int, ...]) -> int | None:
        """A number that keeps the value whole and from 1 to `MOST`, or None where there is none."""
        if sign == "+":
            return self.draw.between(2, min(60, MOST - self.value)) if self.value <= MOST - 2 else None
        if sign == "-":
            return self.draw.between(1, min(60, self.value - 1)) if self.value >= 2 else None
        fitting = [n for n in among if sign == "*" or (self.value % n == 0 and self.value > n)]
        fitting = [n for n in fitting if _apply(self.value, sign, n) <= MOST]
        return self.draw.one(fitting) if fitting else None


def _apply(value: int, sign: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand, "/": value // max(1, operand)}[sign]


def word_problem(draw: Draw, steps: int, split: str) -> Problem:
    """A story of `steps` operations; see the module."""
    story = _Story(draw, split)
    left = steps
    kind = draw.below(4)
    if kind == 0:
        a, b = draw.between(2, 12), draw.between(2, 12)
        story.value = a
        story.tell(_PACKED, a=a, b=b)
        story.step("*", b)
        left -= 1
    elif kind == 1:
        a, b = draw.between(2, 60), draw.between(2, 60)
        story.value = a
        story.tell(_TWO_KINDS, a=a, b=b)
        story.step("+", b)
        left -= 1
    else:
        story.value = draw.between(2, 100)
        story.tell(_OPENINGS, n=story.value)
    last = left > 0 and draw.below(3) == 0
    while left > last:
        event = draw.one(_EVENTS if draw.below(3) else _EVENTS[:2])
        operand = story.operand(event.sign, event.operands)
        if operand is not None:
            story.tell(event.sentences, n=operand)
            story.step(event.sign, operand)
            left -= 1
    while left:
        sign, sentences = draw.one(_LAST_STEPS)
        operand = story.operand(sign, (2, 3, 4, 5))
        if operand is not None:
            story.tell(sentences, n=operand)
            story.step(sign, operand)
            left -= 1
    if not last:
        story.tell(_QUESTIONS)
    return Problem("words", split, steps, " ".join(story.sentences), ", ".join(story.equations), str(story.value))
