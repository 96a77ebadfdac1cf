"""Every command and Python block of the documentation runs as it is written, with a tiny model in the default model's place.

A line that is not run here stands in `NOT_RUN` with the reason. Words that stand for something of the reader's (RUN,
my.txt, ...) are filled in.
"""

from __future__ import annotations

import re

import pytest

from readers import ROOT, TUTORIALS, blocks, commands, follow, reader, reader_model  # noqa: F401 (fixtures)

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page not in TUTORIALS),  # tests/test_tutorials.py
]

# pattern of a line -> why it is not run here
NOT_RUN = {
    r"make (think|test|fast|format|site|fuzz|reproduce)\b": "installs, or is what runs this test",
    r"pip install": "installs",
    r"pre-commit install": "changes the clone's git hooks",
    r"duckdb": "another program; tests/test_store.py reads the file with what is installed",
    r"quietstar bench": "measures the machine for minutes; tests/test_bench.py runs it on a tiny model",
    r"python docs/(speed|results|awkward)\.py": "needs the reports of hours of measuring; tests/test_docs.py imports it",
    r"quietstar train docs/default-model": "an hour each",
    r"quietstar train default-model": "an hour",
    r"quietstar score math_text.*runs/": "needs the models of the line before",
    r"quietstar score .*--model (runs/control|runs/head|runs/paper)": "needs models that take an hour each to train",
    r"torchrun|accelerate launch": "needs a recipe of the reader's; tests/test_training.py runs two processes",
    r"quietstar tasks convert gsm8k": "needs the data set; tests/test_tasks.py converts rows of its form",
}


def test_every_reason_is_still_needed():
    lines = [line for page in PAGES for line in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines) or "runs/" in pattern, f"no command matches {pattern!r}"


OWN_EXAMPLES = {"CONTRIBUTING.md": "its Python is of other packages; tests/test_task_extension.py runs it"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs(reader, page, monkeypatch):  # noqa: F811
    if page.name not in OWN_EXAMPLES:
        follow(page, reader, monkeypatch, NOT_RUN)
