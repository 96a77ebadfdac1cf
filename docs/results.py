"""Writes the tables of docs/results.md from reports of `quietstar score --json`, and ten thoughts by a fixed rule.

python docs/results.py tables NAME=REPORT.json ...      the first report is the untouched base, the second the control
python docs/results.py thoughts HELDOUT.jsonl           the thought at token 40 of each of the first ten documents
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from quietstar.documents.reading import read
from quietstar.evals.intervals import Interval
from quietstar.evals.losses import against

PLACE, DOCUMENTS = 40, 10


def shown(found: dict[str, float] | Interval | None, digits: int = 4, sign: bool = False) -> str:
    """A mean with its interval."""
    if found is None:
        return ""
    values = vars(found) if isinstance(found, Interval) else found
    mean, low, high = values["mean"], values["low"], values["high"]
    if mean != mean:
        return ""
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    return form.format(mean) + ("" if low is None else f" ({form.format(low)} to {form.format(high)})")


def tables(named: list[str]) -> str:
    """Losses and effects of every report."""
    reports: dict[str, dict[str, Any]] = {}
    for one in named:
        name, _, file = one.partition("=")
        reports[name] = json.loads(Path(file).read_text(encoding="utf-8"))
    lines = ["| model | base loss | own thoughts | filler | donor | shuffled | only |", "|---|---|---|---|---|---|---|"]
    for name, report in reports.items():
        thinks = "filler" in report["losses"]  # a model without thoughts is scored with none
        cells = [shown(report["losses"].get(kind)) if thinks or kind == "base" else ""
                 for kind in ("base", "own", "filler", "donor", "shuffled", "only")]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    kinds = ("own gain", "compute", "content", "own over filler")
    lines += ["", f"| model | {' | '.join(kinds)} |", "|---|---|---|---|---|"]
    for name, report in reports.items():
        for part, row in (("effects", name), ("hardest", f"{name}, hardest fifth")):
            cells = [shown(report[part].get(kind), sign=True) for kind in kinds]
            if "content" in report[part]:
                lines.append(f"| {row} | {' | '.join(cells)} |")
    first = list(reports.items())
    lines += ["", "| loss of the other less loss of this one | base prediction | with own thoughts |", "|---|---|---|"]
    for other, theirs in first[:-1]:
        name, mine = first[-1]
        cells = [shown(against(mine, theirs, kind), sign=True) for kind in ("base", "own")]
        lines.append(f"| {other} less {name} | {' | '.join(cells)} |")
    _, mine = first[-1]
    lines += [
        "", f"Tokens predicted: {mine['tokens']} of {len(mine['documents'])} documents. Argmax flipped: "
        f"{100 * mine['flipped']['mean']:.2f} %. w: {shown(mine['weight'])}. KL(mixed || base): {shown(mine['kl'])}. "
        f"Thought tokens that are the text's own next tokens: {100 * mine['continues']['mean']:.1f} %.",
    ]  # fmt: skip
    return "\n".join(lines)


def thoughts(file: str) -> str:
    """The thought at a fixed place of the first documents, whatever it is."""
    from quietstar import QuietStar
    from quietstar.text import text_of, visible

    model = QuietStar.from_pretrained("default")
    lines = ["| text so far | thought | next token | log p without | log p with | w |", "|---|---|---|---|---|---|"]

    def cell(text: str) -> str:
        return "`" + visible(text).replace("|", "¦").replace("`", "'") + "`"

    for document in read([file]).documents[:DOCUMENTS]:
        ids = model.encode(document.text, raw=True)[0][0][: PLACE + 2]
        score = model.score(ids)
        following = text_of(model.tokenizer, ids[-1:], ids)
        before = text_of(model.tokenizer, ids[PLACE - 9 : PLACE + 1], ids[: PLACE - 9])
        lines.append(
            f"| {cell(before)} | {cell(score.thought_text(0, PLACE))} | {cell(following)} "
            f"| {score.base_logprobs[0, PLACE]:.3f} | {score.mixed_logprobs[0, PLACE]:.3f} "
            f"| {score.mixing_weight[0, PLACE]:.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables(sys.argv[2:]) if sys.argv[1] == "tables" else thoughts(sys.argv[2]))
