"""Curves of training runs from their logs. Knows log lines; knows nothing about models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from quietstar.errors import QuietStarError
from quietstar.extras import install

_SMOOTH = 8  # steps of the moving average drawn over the noise of single batches

# title, unit, the keys drawn and what they are called
PANELS: tuple[tuple[str, str, tuple[tuple[str, str], ...]], ...] = (
    ("training loss", "nats per token", (("base", "base"), ("mixed", "mixed, all offsets"))),
    ("reward", "nats, sum over offsets", (("reward", "mean reward"),)),
    ("mixing weight", "w", (("mixing_weight", "training"), ("eval_w", "held out"))),
    ("held-out loss", "nats per token", (("eval_base", "base"), ("eval_own", "own thoughts"))),
    (
        "held-out effects",
        "nats per token; above 0 helps",
        (("eval_own_gain", "own gain"), ("eval_compute", "compute"), ("eval_content", "content")),
    ),
    ("learning rate", "", (("learning_rate", "learning rate"),)),
)


def points(lines: Sequence[Mapping[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key; lines without it are passed over."""
    found = [(int(line["step"]), float(line[key])) for line in lines if isinstance(line.get(key), (int, float))]
    return [step for step, _ in found], [value for _, value in found]


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean of each value and up to `_SMOOTH` - 1 before it."""
    means = []
    for n in range(len(values)):
        window = values[max(0, n + 1 - _SMOOTH) : n + 1]
        means.append(sum(window) / len(window))
    return means


def draw(logs: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> None:
    """Write the curves of runs (name -> log lines) to a picture.

    Raises:
        QuietStarError: matplotlib is missing, or the file cannot be written or has an unknown ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise QuietStarError(f"drawing needs matplotlib; {install('plot')}") from error
    panels = [
        (title, unit, keys)
        for title, unit, keys in PANELS
        if any(points(lines, key)[0] for lines in logs.values() for key, _ in keys)
    ]
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (title, unit, keys) in zip(axes, panels, strict=False):
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel(unit, fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        for run, lines in logs.items():
            for key, name in keys:
                steps, values = points(lines, key)
                if not steps:
                    continue
                label = name if len(logs) == 1 else f"{run}: {name}"
                if key.startswith("eval_") or key == "learning_rate":
                    axis.plot(steps, values, marker="o", markersize=2.5, linewidth=1.2, label=label)
                else:
                    (line,) = axis.plot(steps, smoothed(values), linewidth=1.4, label=label)
                    axis.plot(steps, values, linewidth=0.5, alpha=0.35, color=line.get_color())
        if "effects" in title or title == "reward":
            axis.axhline(0.0, linewidth=0.6, color="gray")
        axis.legend(fontsize=7, frameon=False)
    for axis in axes[max(0, len(panels) - 2) : len(panels)]:
        axis.set_xlabel("step", fontsize=8)
    try:
        figure.savefig(target, dpi=130)
    except (OSError, ValueError) as error:
        raise QuietStarError(f"cannot write {target}: {str(error).splitlines()[0]}") from error
