"""Controls: predictions made with something other than the model's own thought, to test whether the thought mattered.

| control | the prediction is made with |
|---|---|
| own | the model's own thought |
| none | no thought (w = 0): the base prediction |
| filler | as many filler tokens |
| shuffled | the tokens of the own thought, permuted |
| donor | the thought of an earlier position of the same text (filler at the first position, which has none) |
| truncated:J | the first J tokens of the own thought |
| only | the own thought alone (w = 1) |

compute effect = log p(filler) - log p(none); content effect = log p(own) - log p(donor).

Another package adds a control through the entry point group `quietstar.controls`: the entry point's name is the
control's, and it points to a subclass of `Control`. Knows thought tokens and places; knows nothing about the model that
sampled them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from quietstar.arguments import INT64, checked, shown
from quietstar.engine.model import Place
from quietstar.engine.sampling import CONTROL, uniforms
from quietstar.errors import QuietStarError
from quietstar.inference.registry import Registry


@dataclass(frozen=True)
class Control:
    """What is put in the place of the model's own thoughts, and how the prediction is then made.

    `Control.parse` reads one from text, `str` prints it. A subclass sets the class attributes that differ and
    overrides `replace`.

    Args:
        number: the number after the name, as in truncated:3; None where the control takes none.
    """

    number: int | None = None

    name: ClassVar[str]
    number_name: ClassVar[str | None] = None  # a letter for the number in messages; None: the control takes none
    weight: ClassVar[float | None] = None  # the mixing weight w it forces; None leaves it to the mixing head
    thinks: ClassVar[bool] = True  # False: predictions are the base predictions, no thought is run
    needs_own: ClassVar[bool] = True  # False: the model's own thoughts need not be sampled
    keeps_own: ClassVar[bool] = False  # True: the thought is the model's own, unchanged
    needs_earlier: ClassVar[bool] = False  # True: `source` gives other places, so the text needs two tokens or more
    seeded: ClassVar[bool] = False  # True: `replace` draws random numbers

    @staticmethod
    @checked
    def parse(text: str | Control) -> Control:
        """Read a control, e.g. "own", "donor" or "truncated:3"; `truncated(3)` is the same.

        Raises:
            QuietStarError: there is no such control, or its number is missing or impossible.
        """
        if isinstance(text, Control):
            return text
        found = re.fullmatch(r"([a-z_]+)(?:[:(](\d{1,19})\)?)?", text.strip(), re.ASCII)
        kind = CONTROLS.find(found[1]) if found else None
        number = int(found[2]) if found and found[2] else None
        if kind is None or (number is None) != (kind.number_name is None) or (number or 0) >= INT64:
            raise QuietStarError(f"control must be one of {', '.join(forms())}; got {shown(text)}")
        return kind(number)

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}:{self.number}"

    def check(self, length: int) -> None:
        """Refuse thoughts of `length` tokens where the control can make nothing of them.

        Raises:
            QuietStarError: they are too short.
        """

    def source(self, place: Place, seed: int) -> Tensor:
        """The positions (R,) whose own thoughts `replace` is given for the rows at `place`."""
        return place.position

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        """The thought tokens to predict with.

        Args:
            own: the model's own thoughts at `source`, (R, T); zeros where `needs_own` is False.
            place: where the R rows stand. seed: of any randomness, which must depend on it and the place alone.
            filler_token: the id of the model's filler token.

        Returns:
            Token ids (R, any length).
        """
        return own


CONTROLS: Registry[Control] = Registry(Control, "control", "quietstar.controls")


def forms() -> list[str]:
    """How each control is written, those of other packages by their names."""
    written = [
        name if kind.number_name is None else f"{name}:{kind.number_name}" for name, kind in CONTROLS.built_in.items()
    ]
    return [*written, *CONTROLS.extensions()]


@CONTROLS.add
class Own(Control):
    """The model's own thought."""

    name = "own"
    keeps_own = True


@CONTROLS.add
class NoThought(Control):
    """No thought: the base prediction."""

    name = "none"
    weight = 0.0
    thinks = False
    needs_own = False


@CONTROLS.add
class Filler(Control):
    """As many filler tokens as a thought has."""

    name = "filler"
    needs_own = False

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        return filler(own, filler_token)


@CONTROLS.add
class Shuffled(Control):
    """The tokens of the own thought in random order."""

    name = "shuffled"
    seeded = True

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        return shuffled(own, seed, place.sequence, place.position, place.sample)


@CONTROLS.add
class Donor(Control):
    """The thought of an earlier position of the same text; filler at the first position, which has none."""

    name = "donor"
    needs_earlier = True
    seeded = True

    def source(self, place: Place, seed: int) -> Tensor:
        return donor_positions(seed, place.sequence, place.position).clamp_min(0)

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        return torch.where((place.position > 0)[:, None], own, filler_token)


@CONTROLS.add
class Truncated(Control):
    """The first tokens of the own thought, as many as `number` says."""

    name = "truncated"
    number_name = "J"

    def check(self, length: int) -> None:
        if (self.number or 0) > length:
            raise QuietStarError(f"control {self} keeps more tokens than the thought has ({length})")

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        return own[:, : self.number]


@CONTROLS.add
class Only(Control):
    """The own thought alone, without the base prediction (w = 1)."""

    name = "only"
    weight = 1.0
    keeps_own = True


def filler(thoughts: Tensor, token: int) -> Tensor:
    """As many filler tokens as `thoughts` has, (..., T)."""
    return torch.full_like(thoughts, token)


def shuffled(thoughts: Tensor, seed: int, sequence: Tensor, position: Tensor, sample: Tensor) -> Tensor:
    """Each row's own tokens in random order, (R, T); the order depends on the seed and the place only."""
    keys = [x.cpu().numpy()[:, None] for x in (sequence, position, sample)]
    order = uniforms(seed, CONTROL, *keys, np.arange(thoughts.shape[1])).argsort(axis=1)
    return thoughts.gather(1, torch.from_numpy(order).to(thoughts.device))


def donor_positions(seed: int, sequence: Tensor, position: Tensor) -> Tensor:
    """For each place an earlier position of the same text, drawn evenly, (R,); -1 at position 0, which has none.

    Later positions are no donors: their thoughts have read the token that is to be predicted.
    """
    drawn = uniforms(seed, CONTROL, sequence.cpu().numpy(), position.cpu().numpy())
    earlier = (torch.from_numpy(drawn) * position.cpu()).long().to(position.device)
    return torch.where(position > 0, earlier, -1)
