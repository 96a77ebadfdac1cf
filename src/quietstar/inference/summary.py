"""A score in a few numbers: means over the real targets, as a line, a text table or a notebook table."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quietstar.events import NoiseFloor

if TYPE_CHECKING:
    from quietstar.inference.scoring import Score


@dataclass(frozen=True, repr=False)
class ScoreSummary:
    """Means over all real targets of a score; `print` it, or leave it as the last line of a notebook cell.

    Args:
        sequences, targets: how many texts and predicted tokens.
        control: what was thought, "own" unless another control was given.
        base, mixed, thought: loss without a thought, with it mixed in, and from the thought alone; nats per token.
        controls: the mixed loss with each further control, by name; nats per token.
        weight: mixing weight w. kl: KL(mixed || base) in nats.
        flips: targets where the thought changed the likeliest word by more than the noise floor.
        noise: what rounding alone changes; None where nothing was thought.
    """

    sequences: int
    targets: int
    control: str
    base: float
    mixed: float
    thought: float
    controls: dict[str, float]
    weight: float
    kl: float
    flips: int
    noise: NoiseFloor | None

    @property
    def gain(self) -> float:
        """Loss without the thought less loss with it, nats per token; above 0 the thought helps."""
        return self.base - self.mixed

    @property
    def line(self) -> str:
        """The facts on one line."""
        return (
            f"Score({self.targets} targets, loss {self.base:.4f} without and {self.mixed:.4f} with thoughts "
            f"({self.control}), w {self.weight:.4f}, KL {self.kl:.4f} nats, {self.flips} changed the likeliest word)"
        )

    @property
    def rows(self) -> list[tuple[str, str]]:
        """Name and value of each line of the table."""
        share = f" ({self.flips / self.targets:.1%})" if self.targets else ""
        floor = "not measured" if self.noise is None else f"KL {self.noise.kl:.2g}, w {self.noise.weight:.2g}"
        return [
            ("texts", str(self.sequences)),
            ("predicted tokens", str(self.targets)),
            ("loss without thoughts", f"{self.base:.4f} nats"),
            (f"loss with thoughts ({self.control})", f"{self.mixed:.4f} nats"),
            *((f"loss with control {name}", f"{loss:.4f} nats") for name, loss in self.controls.items()),
            ("loss from thoughts alone", f"{self.thought:.4f} nats"),
            ("gain", f"{self.gain:+.4f} nats"),
            ("mixing weight w", f"{self.weight:.4f}"),
            ("KL(mixed || base)", f"{self.kl:.4f} nats"),
            ("likeliest word changed", f"{self.flips}{share}"),
            ("noise floor", floor),
        ]

    def __repr__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in self.rows)

    def _repr_html_(self) -> str:
        cells = (
            f"<tr><th style='text-align:left'>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>"
            for name, value in self.rows
        )
        return f"<table>{''.join(cells)}</table>"


def summarise(score: Score) -> ScoreSummary:
    """The means of a score; NaN where it has no real target."""
    real_BN = score.real
    return ScoreSummary(
        sequences=len(score.ids),
        targets=int(real_BN.sum()),
        control=score.control,
        base=score.loss("base"),
        mixed=score.loss("mixed"),
        thought=score.loss("thought"),
        controls={name: other.loss("mixed") for name, other in score.controls.items()},
        weight=float(score.mixing_weight[real_BN].mean()),
        kl=float(score.kl[real_BN].mean()),
        flips=int(score.flipped[real_BN].sum()),
        noise=score.noise,
    )
