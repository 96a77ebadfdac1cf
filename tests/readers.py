"""Someone who reads a page of the documentation and does what it says, with a tiny model in the default model's place."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from quietstar.tasks import registry

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
TINY_MODEL = ("think", "score", "train", "view")  # commands that load the default model unless told otherwise


def blocks(page: Path) -> list[tuple[str, str]]:
    """All (language, content) of the fenced blocks of a page, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def lines_of(block: str) -> list[str]:
    """The commands of one sh block, comments and continued lines resolved."""
    lines = block.replace("\\\n", " ").split("\n")
    return [line for raw in lines if (line := re.sub(r"(^|\s)#\s.*$", "", raw).strip())]


def commands(page: Path) -> list[str]:
    """The commands of all sh blocks of a page."""
    return [line for language, block in blocks(page) if language == "sh" for line in lines_of(block)]


def shortened(line: str) -> str:
    """The same command with less work: few tokens, one step."""
    if line.startswith("quietstar think"):
        line += " --max-new-tokens 8"
    return re.sub(r"--optimizer.steps \d+", "--optimizer.steps 1 --optimizer.batch 1", line)


class Reader:
    """A folder with the files the pages speak of, and a `quietstar` command.

    Args:
        place: the folder. model: what loads in the default model's place; None is the default model itself.
    """

    def __init__(self, place: Path, model: str | None) -> None:
        self.place, self.model = place, model
        program = place / "bin" / "quietstar"
        program.parent.mkdir()
        program.write_text(
            f"""#!{sys.executable}
import os, sys
words = sys.argv[1:]
if {model is not None} and words and words[0] in {TINY_MODEL} and not {{"--model", "--print-recipe"}} & set(words):
    words += ["--model", {model!r}]
os.execv(sys.executable, [sys.executable, "-m", "quietstar", *words])
"""
        )
        program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "QUIETSTAR_DB": str(place / "record.db"),
            "PYTHONPATH": str(ROOT / "src"),
            "COLUMNS": "100",
        }

    def __call__(self, line: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command line; RUN is the newest run, and `quietstar view` is stopped after a while."""
        if re.search(r"\bRUN\b", line):
            listed = self._bash("quietstar runs --json", timeout)
            newest = re.search(r'"id": ?"(\w+)"', listed.stdout)
            assert newest, listed
            line = re.sub(r"\bRUN\b", newest[1], line)
        if re.match(r"quietstar view", line):
            line = f"timeout --preserve-status -s INT 8 {line.replace('--open', '')} --port 0"
        return self._bash(line, timeout)

    def _bash(self, line: str, timeout: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line],
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=self.place,
            timeout=timeout,
        )

    def check(self, line: str, timeout: float = 300) -> str:
        """Run a command line, which has to work; returns what it printed, errors last."""
        done = self(line, timeout)
        stopped = line.startswith("quietstar view") and done.returncode in (130, -2, 0)
        assert done.returncode == 0 or stopped, f"{line}\n{done.stdout[-500:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


def follow(
    page: Path, reader: Reader, monkeypatch, left_out: Collection[str] = (), short: bool = True
) -> list[tuple[str, str]]:
    """Do everything a page says, in order; the Python blocks are one session. (what was printed, what is quoted).

    Args:
        left_out: patterns of command lines that are not run. short: ask for few tokens and steps.
    """
    monkeypatch.chdir(reader.place)
    monkeypatch.setenv("QUIETSTAR_DB", reader.environment["QUIETSTAR_DB"])
    session: dict[str, object] = {}
    printed, found = "", []
    for language, block in blocks(page):
        if language == "sh":
            lines = [line for line in lines_of(block) if not any(re.match(pattern, line) for pattern in left_out)]
            printed = "".join(reader.check(shortened(line) if short else line, 590) for line in lines)
        elif language == "python":
            if reader.model is not None:
                block = block.replace('"default"', repr(reader.model))
                block = block.replace('recipe.load("smoke", [', f'recipe.load("smoke", [("model", {reader.model!r}), ')
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, str(page), "exec"), session)
            printed = out.getvalue()
        elif language == "text":
            found.append((printed, block))
    return found


@pytest.fixture(scope="module")
def reader_model(tiny_folder, tokenizer, tmp_path_factory) -> str:
    """The tiny model with a context as long as commands expect."""
    folder = tmp_path_factory.mktemp("model")
    config = AutoConfig.from_pretrained(tiny_folder, max_position_embeddings=2048)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def reader(reader_model, tmp_path_factory) -> Reader:
    """A reader with the tiny model, the files of the pages, and one recorded run."""
    place = tmp_path_factory.mktemp("reader")
    someone = Reader(place, reader_model)
    problems = list(registry.generate("words", 200))
    lines = [f'{{"text": "{one.prompt} {one.thought}. {one.answer}"}}' for one in problems]
    for name in ("my.jsonl", "my-heldout.jsonl"):
        (place / name).write_text("\n".join(lines if name == "my.jsonl" else lines[:12]) + "\n")
    (place / "my.txt").write_text("\n\n".join(one.prompt for one in problems[:8]) + "\n")
    (place / "math_text").mkdir()
    (place / "math_text" / "heldout.jsonl").write_text("\n".join(lines[:12]) + "\n")
    someone.check('quietstar think "Why is the sky blue?" --max-new-tokens 8')
    return someone
