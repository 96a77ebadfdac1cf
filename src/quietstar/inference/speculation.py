"""Speculative thinking: how far to draft ahead of the thoughts, and what a draft is.

Thinking before every token takes the base pass of a token and then T + 1 passes for its thought, one after another;
but a pass over many rows costs little more than a pass over one. So the base prediction drafts K tokens (each one's
base pass is needed anyway, as the prefix of what follows), thoughts at all K + 1 positions are thought side by side as
rows, and each position then emits the very token it emits one by one. As long as that token is the drafted one, the
next position stands on the right text and counts too; where it is not, the rest of the draft is forgotten.

The base passes of a draft can be spared in turn: where the last tokens stood before, in the text or in a recent
thought, what followed there is a guess at the drafts to come, and one base pass checks all of it.

The result does not depend on guesses or drafts at all, only its cost does. Knows token ids, costs and counts; knows
nothing about models.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from quietstar.arguments import shown
from quietstar.errors import QuietStarError

AUTO = "auto"
MOST_FIXED = 4096  # drafts that a person may ask for
MOST_DRAFTS = 31  # of auto: with the position itself 32, whose logits make one chunk (`budgets.CPU`)
ROW_COST = 0.03  # what one more row adds to a pass, in passes over one row (`quietstar bench generate`: 0.031)
GUESSES = 8  # most tokens guessed at once
LONGEST = 3  # tokens that a guess looks back at
_EXPECTED, _DOUBT = 0.8, 4  # acceptance before anything was seen, and how many drafts that guess counts for
_MEMORY = 200  # drafts after which old ones count half


@dataclass
class Site:
    """A position whose next token is not settled yet, and what the base model says there.

    Args:
        hidden: base hidden state (E,). products: of it with the output layer (V,).
        asked: the rules that ask for a thought here, or None where the base prediction stands.
        draft: the token the base prediction chooses. clocks: (V,) randomness of the choice, None where it is greedy.
    """

    hidden: Tensor
    products: Tensor
    asked: str | None
    draft: int
    clocks: Tensor | None


def parse(speculate: int | str) -> int | str:
    """Read a number of drafts or "auto".

    Raises:
        QuietStarError: anything else.
    """
    if isinstance(speculate, str) and speculate == AUTO:
        return AUTO
    try:
        number = int(speculate) if isinstance(speculate, str) else operator.index(speculate)
    except (TypeError, ValueError, RuntimeError):
        number = -1
    if isinstance(speculate, bool) or not 0 <= number <= MOST_FIXED:
        raise QuietStarError(
            f"speculate must be 0 (one by one), a number of drafted tokens, or auto; got {shown(speculate)} "
            f"(at most {MOST_FIXED})"
        )
    return number


def guess(text: list[int], others: Sequence[list[int]], most: int) -> list[int]:
    """What followed where the last tokens of `text` stood before: at most `most` tokens, none where they never did.

    The longest match wins, up to `LONGEST` tokens; then one in the text itself, then in the earlier of `others`, then
    the later place. A match in the text may run into its own end and then goes round, as in text that repeats itself.
    """
    longest = 0
    best: list[int] = []
    for where in (text, *others) if most > 0 else ():
        for end in range(len(where) - 2, -1, -1):
            if where[end] != text[-1]:
                continue
            length = 1
            while length < min(LONGEST, len(text), end + 1) and where[end - length] == text[-1 - length]:
                length += 1
            if length > longest:
                longest, best = length, where[end + 1 : end + 1 + most]
                if where is text:
                    best = (best * most)[:most]
            if longest == LONGEST:
                return best
    return best


class Pace:
    """How many tokens to draft: a fixed number, or the one that promises most tokens for the passes they take.

    It counts passes, not seconds, so that a seed gives the same drafts on every run: in bf16 the rounding of a
    prediction depends on how many rows run together, and a clock would let it decide between two equally good tokens.

    Args:
        speculate: K, or "auto". passes: how many passes a thought takes. sequences, samples: B and P.
    """

    def __init__(self, speculate: int | str, passes: int, sequences: int, samples: int) -> None:
        self._fixed = None if speculate == AUTO else int(speculate)
        self._passes, self._sequences, self._samples = passes, sequences, samples
        self._seen, self._agreed = float(_DOUBT), _EXPECTED * _DOUBT
        self._drafted = self._passed = float(
            _DOUBT
        )  # drafts, and base passes they took: fewer where guesses were right

    def learn(self, seen: int, agreed: int) -> None:
        """Take note of `seen` positions, at `agreed` of which the emitted token was the draft."""
        self._seen += seen
        self._agreed += agreed
        if self._seen > _MEMORY:
            self._seen, self._agreed = self._seen / 2, self._agreed / 2

    def spend(self, drafted: int, passed: int) -> None:
        """Take note that `drafted` tokens took `passed` base passes."""
        self._drafted += drafted
        self._passed += passed
        if self._drafted > _MEMORY:
            self._drafted, self._passed = self._drafted / 2, self._passed / 2

    def drafts(self) -> int:
        """K, for the next round."""
        if self._fixed is not None:
            return self._fixed
        return max(range(MOST_DRAFTS + 1), key=self._speed)

    def _speed(self, drafts: int) -> float:
        """Tokens a round emits on average, for each pass over one row it takes."""
        acceptance = self._agreed / self._seen
        tokens = sum(acceptance**j for j in range(drafts + 1))
        drafting = (1 + drafts * self._passed / self._drafted) * _pass(self._sequences)
        thinking = self._passes * _pass(self._sequences * self._samples * (drafts + 1))
        return tokens / (drafting + thinking)


def _pass(rows: int) -> float:
    """What a pass over so many rows costs, in passes over one row."""
    return 1 + ROW_COST * (rows - 1)
