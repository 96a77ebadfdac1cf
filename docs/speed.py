"""Writes the table and the plot of docs/performance.md from a report of `quietstar bench generate --json`.

python docs/speed.py REPORT.json [PLOT.png]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def table(report: dict[str, Any]) -> str:
    """One row a text, context and thought length; ratios against plain generate with smallest and largest."""
    lines = ["| text | context | T | plain, ms a token | one by one | speculative | drafts that came true |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for c in report["cells"]:
        one, ahead = (
            f"{r['middle']:.1f} ({r['lowest']:.1f} to {r['highest']:.1f})"
            for r in (c["one_by_one_ratio"], c["speculative_ratio"])
        )
        share = f"{c['accepted']} of {c['drafted']}" + (
            f" ({c['accepted'] / c['drafted']:.0%})" if c["drafted"] else ""
        )
        lines.append(f"| {c['kind']} | {c['context']} | {c['thought_length']} | {1e3 * c['plain']:.0f} | {one} | "
                     f"{ahead} | {share} |")  # fmt: skip
    lines += ["", f"Row cost: {spread(report['row_cost'], 4)}. Memory: {report['memory']}. Eight prompts at once: "
              f"{report['throughput']['together']:.1f} tokens/s, alone {report['throughput']['alone']:.1f}: "
              f"{spread(report['throughput']['ratio'], 2)}.", f"Machine: {report['machine']}",
              f"Settings: {report['settings']}"]  # fmt: skip
    return "\n".join(lines)


def spread(found: dict[str, float], digits: int) -> str:
    """A median with smallest and largest."""
    return f"{found['middle']:.{digits}f} ({found['lowest']:.{digits}f} to {found['highest']:.{digits}f})"


def plot(report: dict[str, Any], path: str) -> None:
    """Cost against context and against thought length; a mark is a text, the line goes through their means."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    middle = {"context": report["settings"]["context"], "thought_length": report["settings"]["thought_length"]}
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    axes = (("context", "thought_length", "tokens of context, T = {}"),
            ("thought_length", "context", "T, {} tokens of context"))  # fmt: skip
    for panel, (name, fixed, label) in zip(panels, axes, strict=True):
        cells = [c for c in report["cells"] if c[fixed] == middle[fixed]]
        places = sorted({c[name] for c in cells})
        for kind, colour, title in (("one_by_one_ratio", "#8a8378", "one by one"),
                                    ("speculative_ratio", "#c2521a", "speculative")):  # fmt: skip
            panel.plot([c[name] for c in cells], [c[kind]["middle"] for c in cells], "o", color=colour, ms=4, alpha=0.6)
            means = [[c[kind]["middle"] for c in cells if c[name] == x] for x in places]
            panel.plot(places, [sum(m) / len(m) for m in means], color=colour, label=title)
        panel.axhline(1, color="#22201c", lw=0.8, ls=":")
        panel.set_xlabel(label.format(middle[fixed]))
        panel.set_xscale("log", base=2)
        panel.set_xticks(places, [str(x) for x in places])
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("cost of a token, in plain generate")
    panels[0].set_ylim(bottom=0)
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        raise SystemExit(__doc__)
    found = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(table(found))
    if len(sys.argv) == 3:
        plot(found, sys.argv[2])
