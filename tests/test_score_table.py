"""The tables of `quietstar score` in a terminal of 80 columns and of others: no number is broken, none is lost."""

from __future__ import annotations

import json
import re

import pytest

from quietstar.cli import score
from quietstar.evals.intervals import Interval
from quietstar.evals.losses import LossReport, _largest
from quietstar.events import NoiseFloor

KINDS = ("base", "own", "only", "filler", "donor", "shuffled", "truncated:12")
EFFECTS = ("own gain", "compute", "content", "own over filler")


def report(documents: int = 6) -> LossReport:
    """A report of as many controls as there are, every number another one."""
    count = iter(range(10**4))

    def number() -> float:
        return 10 + next(count) / 10**4

    def interval() -> Interval:
        return Interval(number(), -number(), number())

    rows = [{"document": f"a/long/path/to/texts/number-{n}.txt:{n}", "tokens": 12345, **{k: number() for k in KINDS}}
            for n in range(documents)]  # fmt: skip
    deciles = [
        {"decile": n + 1, "tokens": 98765, "from": number(), "losses": {kind: number() for kind in KINDS},
         "effects": {name: {"mean": number(), "low": -number(), "high": number()} for name in EFFECTS}}
        for n in range(10)
    ]  # fmt: skip
    known = LossReport.__dataclass_fields__
    fields = dict(
        tokens=10**6, losses={kind: interval() for kind in KINDS}, effects={name: interval() for name in EFFECTS},
        documents=rows, deciles=deciles, flipped=interval(), weight=interval(), kl=interval(),
        hardest={name: interval() for name in EFFECTS}, continues=interval(), skipped=[], settings={}, unfinished=[],
    )  # fmt: skip
    return LossReport(**{name: value for name, value in fields.items() if name in known})


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_every_number_stands_whole_on_a_line_that_fits(capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    made = report()
    score._print(made, {"base": Interval(0.5, 0.25, 0.75)})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    wanted = [f"{row[kind]:.4f}" for row in made.documents for kind in KINDS]
    wanted += [f"{row['losses'][kind]:.4f}" for row in made.deciles for kind in KINDS]
    wanted += [score._signed(row["effects"][name]) for row in made.deciles for name in EFFECTS]
    wanted += [f"{one.mean:+.4f}" for one in made.effects.values()]
    assert not [one for one in wanted if one not in out]
    assert "noise floor: not measured" in out
    headed = [line for line in out.splitlines() if line.startswith("decile")]
    assert sum(line.count("own over filler") for line in headed) == 1 and all("shuffled" in out for _ in headed)
    tens = [line for line in out.splitlines() if re.match(r"10 ", line)]
    assert len(tens) == len(headed), "every part of a table has its own first column"


def test_the_noise_floor_and_what_computed_both_reports_are_named(run, folder, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox thinks before it speaks")
    command = ["score", str(text), "--model", folder, "-t", "2", "--controls", "none"]
    report = json.loads(run(*command, "--json")[1])
    assert report["computed"]["dtype"] == "float32" and "torch" in report["computed"] and "noise" in report
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    assert "differ" not in run(*command, "--against", str(file))[2]
    report["computed"]["dtype"] = "bfloat16\u202e"
    file.write_text(json.dumps(report))
    err = run(*command, "--against", str(file))[2]
    assert "note: the reports differ in dtype: float32 on cpu" in err and "the other bfloat16\\x202e on cpu" in err
    del report["computed"]
    file.write_text(json.dumps(report))
    assert "does not say what computed it" in run(*command, "--against", str(file))[2]


def test_the_largest_floor_of_several_texts_counts():
    floors = [NoiseFloor(2, 0.25, 0.5, 0.125), NoiseFloor(2, 0.125, 0.75, 0.0)]
    assert _largest(floors) == {"kl": 0.25, "logprob": 0.75, "weight": 0.125}
    assert _largest([*floors, None]) is None and _largest([]) is None
