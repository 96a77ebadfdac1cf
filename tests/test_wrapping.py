"""Lines of a terminal end between words, however the text comes in; in a pipe they are left whole."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from fuzzing import fuzz
from quietstar.cli.render import _ending, safe
from quietstar.cli.wrapping import Flow, hanging
from quietstar.record.store import Store
from recorded import trace

WORDS = ["thinking", "about", "the", "quick", "brown", "fox,", "it", "says", "something", "longer", "than", "before"]


def screen(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)


def flowed(pieces: list[str], width: int) -> str:
    console = screen(width)
    flow = Flow(console)
    for piece in pieces:
        flow.write(Text(piece))
    flow.flush()
    return console.file.getvalue()


@fuzz(200)
@given(
    st.lists(st.text(st.sampled_from("abcdefé 世界\n·◆"), max_size=9), max_size=30),
    st.integers(2, 40),
)
def test_text_that_comes_in_pieces_is_never_broken_inside_a_word_that_fits(pieces, width):
    out, whole = flowed(pieces, width), "".join(pieces)
    assert re.sub(r"\s", "", out) == re.sub(r"\s", "", whole)  # nothing is lost or added
    short = [word for word in re.findall(r"[^\s世界]+", whole) if cell_len(word) <= width]
    for word in short:
        assert word in out
    if len(short) == len(re.findall(r"[^\s世界]+", whole)):
        assert all(cell_len(line.rstrip()) <= width for line in out.split("\n"))
        assert out == flowed([whole], width), "where pieces end makes no difference"
    assert whole.count("\n") <= out.count("\n")


def test_a_finished_word_is_written_at_once_and_an_unfinished_one_held():
    console = screen(20)
    flow = Flow(console)
    flow.write(Text("One two"))
    assert console.file.getvalue() == "One"
    flow.write(Text("fold "))
    assert console.file.getvalue() == "One twofold"
    flow.write(Text("世"))
    assert console.file.getvalue() == "One twofold 世"  # writing without blanks is not held back
    flow.write(Text("\n"))
    assert console.file.getvalue() == "One twofold 世\n"


def test_what_goes_on_is_indented():
    line = Text("    3  " + " ".join(WORDS))
    told = hanging(screen(30), line, 7).plain
    assert all(cell_len(part) <= 30 for part in told.split("\n"))
    assert [part[:7] for part in told.split("\n")[1:]] == [" " * 7] * told.count("\n")
    assert told.split() == line.plain.split()


def shown(command: list[str], width: int) -> str:
    """What a command writes into a terminal so wide."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(width)}
    subprocess.run([sys.executable, "-m", "quietstar", *command], stdout=follower, check=True, env=environment)
    os.close(follower)
    out = b""
    try:
        while block := os.read(leader, 65536):
            out += block
    except OSError:  # the end of a terminal
        pass
    os.close(leader)
    return re.sub(r"\x1b\[[\d;]*m", "", out.decode().replace("\r\n", "\n"))


@pytest.mark.slow
def test_show_breaks_lines_between_words_in_a_terminal_and_nowhere_in_a_pipe(run):
    words = [f" {word}" for word in WORDS] * 4
    with Store.open() as store:
        store.add(trace("Why?", words, ["a thought of several words"] * len(words)), run="long0000")
    out = shown(["show", "long"], 50)
    assert all(len(line) <= 50 for line in out.split("\n"))
    for word in (*words, "several", "likeliest"):
        assert word.strip() in re.sub(r"[·◆]", "", out)
    assert any(len(line) > 200 for line in run("show", "long")[1].splitlines())


@pytest.mark.slow
def test_think_breaks_lines_between_words(run, folder):
    command = ["think", "the quick brown fox", "--model", folder, "-n", "60", "-t", "2", "-q", "--no-record"]
    plain = safe(run(*command)[1])
    out = shown(command, 30)
    assert re.sub(r"\s", "", out) == re.sub(r"\s", "", plain)
    short = [word for word in plain.split() if cell_len(word) <= 30 and all(cell_len(c) == 1 for c in word)]
    assert short and all(word in out for word in short)


@pytest.mark.parametrize(("text", "shown"), [
    ("short", "short"), ("the other colors of the sky", "… of the sky"), ("more than the other", "… than the other"),
    ("a" * 40, "…" + "a" * 16), ("word " + "b" * 20, "…" + "b" * 16), ("one two three four ", "… two three four "),
])  # fmt: skip
def test_the_context_of_a_thought_begins_with_a_word(text, shown):
    assert _ending(text, 16) == shown
