"""Controls: what stands in the place of a thought, so that one can ask whether the thought mattered.

| control | the prediction is made with |
|---|---|
| own | the model's own thought |
| none | no thought (w = 0): the base prediction |
| filler | as many filler tokens |
| shuffled | the own tokens, permuted |
| donor | the thought of another position or text |
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

from quietstar.errors import QuietStarError
from quietstar.sampling import CONTROL, uniforms

NAMES = ("own", "none", "filler", "shuffled", "donor", "truncated", "only")


@dataclass(frozen=True)
class Control:
    """A control by name; `keep` is the number of tokens that `truncated` leaves."""

    name: str = "own"
    keep: int | None = None

    @classmethod
    def parse(cls, text: str | Control) -> Control:
        """Read "own", "none", "filler", "shuffled", "donor", "only" or "truncated:J"."""
        if isinstance(text, Control):
            return text
        found = re.fullmatch(r"truncated[:(](\d+)\)?", text.strip())
        if found:
            return cls("truncated", int(found[1]))
        if text not in NAMES or text == "truncated":
            allowed = ", ".join(name if name != "truncated" else "truncated:J" for name in NAMES)
            raise QuietStarError(f"control must be one of {allowed}; got {text!r}")
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


def donors(places: int, seed: int) -> Tensor:
    """For each of `places` thoughts the index of another one, (places,): one random cycle, so none keeps its own.

    Raises:
        QuietStarError: there are fewer than two thoughts.
    """
    if places < 2:
        raise QuietStarError("the donor control needs thoughts at two positions or more; give a longer text")
    order = uniforms(seed, CONTROL, np.arange(places)).argsort()
    index = np.empty(places, dtype=np.int64)
    index[order] = np.roll(order, -1)
    return torch.from_numpy(index)
