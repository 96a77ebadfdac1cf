"""Controls: what stands in the place of a thought, so that one can ask whether the thought mattered.

| control | the prediction is made with |
|---|---|
| own | the model's own thought |
| none | no thought (w = 0): the base prediction |
| filler | as many filler tokens |
| shuffled | the own tokens, permuted |
| donor | the thought of an earlier position of the same text (filler at the first, which has none) |
| truncated:J | the first J tokens of the own thought |
| only | the own thought alone (w = 1) |

compute effect = log p(filler) - log p(none); content effect = log p(own) - log p(donor). Knows thought tokens; knows
nothing about the model that thought them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quietstar.arguments import INT64, checked, shown
from quietstar.engine.sampling import CONTROL, uniforms
from quietstar.errors import QuietStarError

NAMES = ("own", "none", "filler", "shuffled", "donor", "truncated", "only")


@dataclass(frozen=True)
class Control:
    """A control by name; `keep` is the number of tokens that `truncated` leaves."""

    name: str = "own"
    keep: int | None = None

    @classmethod
    @checked
    def parse(cls, text: str | Control) -> Control:
        """Read "own", "none", "filler", "shuffled", "donor", "only" or "truncated:J"."""
        if isinstance(text, Control):
            return text
        found = re.fullmatch(r"truncated[:(](\d{1,19})\)?", text.strip(), re.ASCII)
        if found and int(found[1]) < INT64:
            return cls("truncated", int(found[1]))
        if text not in NAMES or text == "truncated":
            allowed = ", ".join(name if name != "truncated" else "truncated:J" for name in NAMES)
            raise QuietStarError(f"control must be one of {allowed}; got {shown(text)}")
        return cls(text)

    def __str__(self) -> str:
        return self.name if self.keep is None else f"{self.name}:{self.keep}"

    @property
    def weight(self) -> float | None:
        """The mixing weight this control forces, if any."""
        return {"none": 0.0, "only": 1.0}.get(self.name)

    @property
    def needs_thoughts(self) -> bool:
        """False where the own thought need not be sampled at all."""
        return self.name not in ("none", "filler")


def filler(thoughts: Tensor, token: int) -> Tensor:
    """As many filler tokens as `thoughts` has, (..., T)."""
    return torch.full_like(thoughts, token)


def shuffled(thoughts: Tensor, seed: int, sequence: Tensor, position: Tensor, sample: Tensor) -> Tensor:
    """Each row's own tokens in random order, (R, T); the order depends on the seed and the place only."""
    keys = [x.cpu().numpy()[:, None] for x in (sequence, position, sample)]
    order = uniforms(seed, CONTROL, *keys, np.arange(thoughts.shape[1])).argsort(axis=1)
    return thoughts.gather(1, torch.from_numpy(order).to(thoughts.device))


def truncated(thoughts: Tensor, keep: int) -> Tensor:
    """The first `keep` tokens, (R, keep)."""
    if keep > thoughts.shape[1]:
        raise QuietStarError(f"truncated:{keep} keeps more tokens than the thought has ({thoughts.shape[1]})")
    return thoughts[:, :keep]


def donor_positions(seed: int, sequence: Tensor, position: Tensor) -> Tensor:
    """For each place an earlier position of the same text, drawn evenly, (R,); -1 at position 0, which has none.

    Later positions are no donors: their thoughts have read the token that is to be predicted.
    """
    drawn = uniforms(seed, CONTROL, sequence.cpu().numpy(), position.cpu().numpy())
    earlier = (torch.from_numpy(drawn) * position.cpu()).long().to(position.device)
    return torch.where(position > 0, earlier, -1)


def replace(
    control: Control, own: Tensor, seed: int, sequence: Tensor, position: Tensor, sample: Tensor, filler_token: int
) -> Tensor:
    """What `control` makes of the rows' thoughts (R, T); own and only keep them, donors are the caller's to find."""
    if control.name == "filler":
        return filler(own, filler_token)
    if control.name == "shuffled":
        return shuffled(own, seed, sequence, position, sample)
    if control.name == "truncated":
        return truncated(own, control.keep or 0)
    return own
