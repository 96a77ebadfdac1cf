"""The examples of CONTRIBUTING.md: its task runs as another package's; the others are those of their own tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quietstar import QuietStarError
from quietstar.tasks import registry

ROOT = Path(__file__).parents[1]
EXAMPLES = re.findall(
    r"`tests/(\w+\.py)`:\n\n```python\n(.*?)```.*?```toml\n(.*?)```",
    (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
TASK = next(code for test, code, _ in EXAMPLES if test == "test_task_extension.py")
ENTRY_POINT = next(toml for test, _, toml in EXAMPLES if test == "test_task_extension.py")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package `my_tasks` with the task of the page, installed."""
    metadata = tmp_path / "my_tasks-1.0.dist-info"
    metadata.mkdir()
    (tmp_path / "my_tasks.py").write_text(TASK)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-tasks\nVersion: 1.0\n")
    written = ENTRY_POINT.replace('[project.entry-points."quietstar.tasks"]', "[quietstar.tasks]").replace('"', "")
    (metadata / "entry_points.txt").write_text(written)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_task_of_another_package(installed, run):
    assert "countdown" in registry.names()
    for split in ("train", "heldout"):
        problems = list(registry.generate("countdown", 60, steps=(1, 6), split=split))
        for problem in problems:
            start, *digits = map(int, re.findall(r"\d+", problem.prompt))
            assert len(digits) == problem.steps == len(problem.thought.split())
            assert problem.answer == problem.thought.split()[-1] == str(start - sum(digits))
    assert "drop" in problems[0].prompt and problems[0].split == "heldout"
    code, out, _ = run("tasks", "make", "countdown", "--count", "2")
    assert code == 0 and len(out.splitlines()) == 2


def test_without_the_package_there_is_no_such_task():
    with pytest.raises(QuietStarError, match="unknown task 'countdown'"):
        registry.generator("countdown")


def test_the_other_examples_are_those_that_tests_run():
    others = [(test, code) for test, code, _ in EXAMPLES if test != "test_task_extension.py"]
    assert len(others) == 3
    for test, code in others:
        assert code.strip() in (ROOT / "tests" / test).read_text(encoding="utf-8"), f"not the example of {test}"
