"""Speculative thinking: how many tokens to draft before thinking about all of them in parallel.

It is speculative decoding (Leviathan, Kalman, Matias 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318) with
the base prediction as draft model and the prediction with a thought as target model. Thinking before every token takes
the base pass of a token and then T + 1 passes for its thought, one after another; but a pass over many rows costs
little more than a pass over one. So:

1. The base prediction drafts K tokens. Each one's base pass is needed anyway, as the prefix of what follows.
2. The thoughts at all K + 1 positions are computed in parallel as rows.
3. Each position emits the token it would emit without drafts. As long as that is the drafted token, the next position
   follows the right text and its thought is used, too; at the first other token the rest of the draft is dropped.
   Draft and target choose with the same random numbers (`sampling.race`), so a draft is accepted where both agree.

The base passes of a draft are saved by prompt lookup decoding (Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding): where the last tokens occurred before, in the text or in a
recent thought, the tokens that followed there are candidates for the next drafts, and one base pass verifies all of
them.

The output depends on neither candidates nor drafts, only its cost does. Knows token ids, costs and counts; knows
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
MOST_FIXED = 4096  # the largest number of drafts that can be set
MOST_DRAFTS = 31  # of "auto": with the position itself 32, whose logits make one chunk (`budgets.CPU`)
ROW_COST = 0.03  # what one more row adds to a pass, in passes over one row (`quietstar bench generate`: 0.031)
MOST_CANDIDATES = 8  # tokens that one lookup proposes at most
LONGEST_MATCH = 3  # tokens that a lookup compares at most
_PRIOR_ACCEPTANCE, _PRIOR_DRAFTS = 0.8, 4  # share accepted before any was seen, and how many drafts this counts for
_HALF_AFTER = 200  # drafts after which the counts so far are halved, so that recent ones weigh more


@dataclass
class Site:
    """A position whose next token is not emitted yet, and the base prediction there.

    Args:
        hidden: base hidden state (E,). products: of it with the output layer (V,).
        trigger: the rules that fired, or None where no thought is wanted.
        draft: the token the base prediction chooses. clocks: (V,) randomness of the choice, None where it is greedy.
    """

    hidden: Tensor
    products: Tensor
    trigger: str | None
    draft: int
    clocks: Tensor | None

    @property
    def thinks(self) -> bool:
        """Whether a thought is wanted here; else the draft is what is emitted."""
        return self.trigger is not None


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


def lookup(text: list[int], others: Sequence[list[int]], most: int) -> list[int]:
    """Prompt lookup decoding: the tokens that followed an earlier occurrence of the last tokens of `text`.

    The longest match wins, up to `LONGEST_MATCH` tokens; among equally long ones a match in the text itself, then in
    the earlier of `others`, then at the later place. What followed a match in the text is repeated up to `most` tokens
    where it reaches the end of the text, as in text that repeats itself.

    Args:
        text: token ids so far, at least one. others: further sequences to look in. most: tokens to return at most.

    Returns:
        Candidates for the next tokens; none where the last token never occurred before.
    """
    longest = 0
    best: list[int] = []
    for where in (text, *others) if most > 0 else ():
        for end in range(len(where) - 2, -1, -1):  # where the match would end
            if where[end] != text[-1]:
                continue
            length = 1
            while length < min(LONGEST_MATCH, len(text), end + 1) and where[end - length] == text[-1 - length]:
                length += 1
            if length > longest:
                longest, best = length, where[end + 1 : end + 1 + most]
                if where is text:
                    best = (best * most)[:most]
            if longest == LONGEST_MATCH:
                return best
    return best


class Pace:
    """How many tokens to draft: a fixed number, or the one with the most tokens expected for the passes they take.

    It counts passes, not seconds, so that a seed gives the same drafts on every run: in bf16 the rounding of a
    prediction depends on how many rows run together, and timing would decide between two equally good tokens.

    Args:
        speculate: K, or "auto". passes: how many passes a thought takes. sequences, samples: B and P.
    """

    def __init__(self, speculate: int | str, passes: int, sequences: int, samples: int) -> None:
        self._fixed = None if speculate == AUTO else int(speculate)
        self._passes, self._sequences, self._samples = passes, sequences, samples
        # positions emitted, and at how many of them the draft was accepted
        self._seen, self._accepted = float(_PRIOR_DRAFTS), _PRIOR_ACCEPTANCE * _PRIOR_DRAFTS
        # drafts, and the base passes they took: fewer where candidates were right
        self._drafted = self._passed = float(_PRIOR_DRAFTS)

    def count_accepted(self, seen: int, accepted: int) -> None:
        """Count `seen` positions, at `accepted` of which the emitted token was the draft."""
        self._seen += seen
        self._accepted += accepted
        if self._seen > _HALF_AFTER:
            self._seen, self._accepted = self._seen / 2, self._accepted / 2

    def count_passes(self, drafted: int, passed: int) -> None:
        """Count `drafted` tokens that took `passed` base passes."""
        self._drafted += drafted
        self._passed += passed
        if self._drafted > _HALF_AFTER:
            self._drafted, self._passed = self._drafted / 2, self._passed / 2

    def drafts(self) -> int:
        """K, the number of tokens to draft next."""
        if self._fixed is not None:
            return self._fixed
        return max(range(MOST_DRAFTS + 1), key=self._speed)

    def _speed(self, drafts: int) -> float:
        """Tokens emitted on average with so many drafts, for each pass over one row that they take."""
        acceptance = self._accepted / self._seen
        tokens = sum(acceptance**j for j in range(drafts + 1))
        drafting = (1 + drafts * self._passed / self._drafted) * _pass(self._sequences)
        thinking = self._passes * _pass(self._sequences * self._samples * (drafts + 1))
        return tokens / (drafting + thinking)


def _pass(rows: int) -> float:
    """Cost of a pass over so many rows, in passes over one row."""
    return 1 + ROW_COST * (rows - 1)
