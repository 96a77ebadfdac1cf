"""Every command in the documentation runs as it is written, with a tiny model in the default model's place.

A line that is not run here stands in `NOT_RUN` with the reason. Words that stand for something of the reader's (RUN,
my.txt, ...) are filled in.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from quietstar.tasks import registry

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

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
TINY_MODEL = {"think", "score", "train", "view"}  # commands that load the default model unless told otherwise


def commands(page: Path) -> list[str]:
    """The lines of all sh blocks of a page, comments and continued lines resolved."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [line for raw in lines if (line := re.sub(r"(^|\s)#\s.*$", "", raw).strip())]


def test_every_reason_is_still_needed():
    lines = [line for page in PAGES for line in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, line) for line in lines) or "runs/" in pattern, f"no command matches {pattern!r}"


@pytest.fixture(scope="module")
def model_folder(tiny_folder, tokenizer, tmp_path_factory) -> str:
    """The tiny model with a context as long as commands expect."""
    folder = tmp_path_factory.mktemp("model")
    config = AutoConfig.from_pretrained(tiny_folder, max_position_embeddings=2048)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def shell(model_folder, tmp_path_factory):
    """Run a line in a folder with the files the pages speak of; returns the finished process."""
    place = tmp_path_factory.mktemp("reader")
    program = place / "bin" / "quietstar"
    program.parent.mkdir()
    program.write_text(
        f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
if words and words[0] in {sorted(TINY_MODEL)} and "--model" not in words and "--print-recipe" not in words:
    words += ["--model", {model_folder!r}]
os.execv(sys.executable, [sys.executable, "-m", "quietstar", *words])
"""
    )
    program.chmod(0o755)
    problems = list(registry.generate("words", 200))
    lines = [f'{{"text": "{one.prompt} {one.thought}. {one.answer}"}}' for one in problems]
    for name in ("my.jsonl", "my-heldout.jsonl"):
        (place / name).write_text("\n".join(lines if name == "my.jsonl" else lines[:12]) + "\n")
    (place / "my.txt").write_text("\n\n".join(one.prompt for one in problems[:8]) + "\n")
    (place / "math_text").mkdir()
    (place / "math_text" / "heldout.jsonl").write_text("\n".join(lines[:12]) + "\n")
    environment = {
        **os.environ, "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "QUIETSTAR_DB": str(place / "record.db"), "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100",
    }  # fmt: skip

    def run(line: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        if re.search(r"\bRUN\b", line):
            listed = subprocess.run(
                [sys.executable, "-m", "quietstar", "runs", "--json"],
                capture_output=True, text=True, env=environment, cwd=place, check=True,
            )  # fmt: skip
            newest = re.search(r'"id": ?"(\w+)"', listed.stdout)
            assert newest, listed
            line = re.sub(r"\bRUN\b", newest[1], line)
        if re.match(r"quietstar view", line):  # serves until it is stopped
            line = f"timeout --preserve-status -s INT 8 {line.replace('--open', '')} --port 0"
        return subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, env=environment, cwd=place, timeout=timeout
        )

    first = run('quietstar think "Why is the sky blue?" --max-new-tokens 8')
    assert first.returncode == 0, first.stderr
    return run


def shortened(line: str) -> str:
    """The same command with less work: few tokens, one step."""
    if line.startswith("quietstar think"):
        line += " --max-new-tokens 8"
    return re.sub(r"--optimizer.steps \d+", "--optimizer.steps 1 --optimizer.batch 1", line)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page(shell, page):
    for line in commands(page):
        if any(re.match(pattern, line) for pattern in NOT_RUN):
            continue
        done = shell(shortened(line))
        stopped = line.startswith("quietstar view") and done.returncode in (130, -2, 0)
        assert done.returncode == 0 or stopped, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
