"""Odd command lines: every command with odd values for any of its parameters ends in output or one clear line.

The commands and parameters come from the program itself, so that new ones are tried too. Stubbed is only what would
train, measure or serve.
"""

import contextlib
import io
import os
import sys

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar.cli import main as cli
from recorded import trace

WORDS = [
    "", " ", "-", "--", "---", "~", "~nosuchuser/x", "a" * 300, "a" * 5000, "b/" * 3000, "\ud800", "x\udcff", "\0", "a\0b",
    "..", "/", ".", "missing/folder/file.txt", "é", "e\u0301", "🙂", "\u202e", "\x1b[31m", "\n", "'", '"', "[red]", "%s", "{}",
    "nan", "inf", "-inf", "1e400", "-1", "0", "1", "2", "3.5", "0x10", "1_0", "١", str(2**63), str(-(2**63) - 1), str(2**200),
    "9" * 5000, "True", "none", "(", "[", "(?P<", "*", "a,b,,", ",", "1,2", "always", "random:2", "every:0", "truncated:99",
    "weight:1e400", "and", "|", "marker", "float16", "cuda:99999999999999999999", "meta", "x.csv", "x.parquet", "x.html",
    "x.jsonl", "x.yaml", "kl", "gain", "4bit", "smoke", "--data.train", "--optimizer.steps=x", "a.b=\ud800",
]  # fmt: skip


def commands(command=None, path=()):
    """Every command that does something, with its parameters."""
    command = command or typer.main.get_command(cli.app)
    inner = getattr(command, "commands", {})
    if not inner or path:
        yield path, command.params
    for name, one in inner.items():
        yield from commands(one, (*path, name))


COMMANDS = sorted((path, [one for one in params if one.name != "help"]) for path, params in commands())
SMALL = {"--max-new-tokens": "2", "--thought-length": "1", "--answer-tokens": "1", "--limit": "2", "--count": "2"}


@st.composite
def lines(draw):
    """A command with usable values for what it needs, and odd words for some of its parameters."""
    path, params = draw(st.sampled_from(COMMANDS))
    chosen = draw(st.lists(st.sampled_from(params), max_size=3, unique_by=id)) if params else []
    given_names = {one.name for one in chosen}
    line = list(path)
    for one in params:
        flag = max(one.opts, key=len)
        if flag in SMALL and one.name not in given_names:
            line += [flag, SMALL[flag]]
        elif one.name == "model" and one.name not in given_names:
            line += [flag, "MODEL"]
    odd = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
    for one in chosen:
        if one.param_type_name == "option":
            flag = draw(st.sampled_from(one.opts))
            line += [flag] if getattr(one, "is_flag", False) else [flag, draw(odd)]
    for one in params:
        if one.param_type_name == "argument":
            if one.name in given_names:
                line += draw(st.lists(odd, min_size=1, max_size=2))
            elif one.required:
                line.append({"FILE": "text.txt", "RUN": "r1"}.get(one.metavar, "the"))
    return line + draw(st.lists(odd, max_size=1))


@pytest.fixture
def place(folder, own_record, tmp_path, monkeypatch):
    """A folder of its own to work in, with a text and a run in the record, and nothing heavy or endless."""
    from quietstar.bench import engine as bench
    from quietstar.bench import generate as bench_generate
    from quietstar.bench import train as bench_train
    from quietstar.cli import train
    from quietstar.loading import checkpoints
    from quietstar.record.store import Store
    from quietstar.viewer import serving

    (tmp_path / "text.txt").write_text("the quick brown fox thinks")
    with Store.open() as store:
        store.add(trace(), run="r1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(checkpoints, "_offline", lambda: True)
    monkeypatch.setattr(serving, "serve", lambda *_, **__: None)
    monkeypatch.setattr(train, "run", lambda *_, **__: None)
    for module in (bench, bench_generate, bench_train):
        monkeypatch.setattr(module, "run", lambda *_, **__: sys.exit(0))
    return folder


def outcome(line):
    """Exit code and stderr of a command run in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace") for _ in range(2))
    before, sys.argv, sys.stdin = (sys.argv, sys.stdin), ["quietstar", *line], io.TextIOWrapper(io.BytesIO(b"the fox"))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
            cli.main()
    finally:
        sys.argv, sys.stdin = before
    err.flush()
    return left.value.code or 0, err.buffer.getvalue().decode()


@fuzz(60)
@given(lines())
def test_any_command_line_is_answered_or_refused_in_one_line(place, line):
    line = [place if word == "MODEL" else word for word in line]
    code, err = outcome(line)
    assert code in (0, 2), (line, err)
    told = [one for one in err.splitlines() if one.startswith("quietstar: ")]
    assert len(told) == (code == 2), (line, err)
    assert "Traceback" not in err, line


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["think", "x", "--seed", str(2**63)], "--seed must be a whole number of at most 64 bits"),
        (["think", "x", "--samples", str(2**200)], "--samples must be a whole number of at most 64 bits"),
        (["think", "x", "--samples", str(10**18)], "give fewer samples"),
        (["think", "x", "--thought-length", str(10**9)], "context is 512"),
        (["think", "x", "--temperature", "nan"], "--temperature must be a finite number"),
        (["think", "x", "--system", "\ud800"], "--system must be UTF-8 text"),
        (["think", "x", "--stop", "a\0"], "--stop must not contain a NUL"),
        (["think", "x", "--db", "~nosuchuser/x"], "home of an unknown user"),
        (["think", "x", "--db", "a" * 5000], "File name too long"),
        (["think", "x", "--model", "a" * 5000], "File name too long"),
        (["think", "x", "--threads", "0"], "--threads"),
        (["score", "a" * 5000], "File name too long"),
        (["score", "~nosuchuser/x"], "home of an unknown user"),
        (["score", "x\udcff.txt"], "must be UTF-8 text"),
        (["score", "text.txt", "--against", "a" * 5000], "File name too long"),
        (["runs", "--limit", str(2**63)], "--limit must be a whole number of at most 64 bits"),
        (["runs", "--search", "\ud800"], "--search must be UTF-8 text"),
        (["runs", "note", "r1", "\ud800"], "must be UTF-8 text"),
        (["runs", "export", "a" * 5000], "File name too long"),
        (["runs", "import", "~nosuchuser/x"], "home of an unknown user"),
        (["plot", "a" * 5000], "File name too long"),
        (["train", "a" * 5000], "File name too long"),
        (["train", "smoke", "--out", "\ud800"], "must be UTF-8 text"),
    ],
)
def test_listed_cases(place, line, says):
    if line[0] in ("think", "score") and "--model" not in line:
        line = [*line, "--model", place]
    code, err = outcome(line)
    assert code == 2 and len(err.strip().splitlines()) == 1, err
    assert says in err


@pytest.mark.parametrize(
    ("error", "code"),
    [(FileExistsError(17, "x"), 1), (UnicodeError("x"), 1), (OverflowError("x"), 1), (RecursionError("x"), 1),
     (MemoryError(), 2), (KeyError("x"), 70), (RuntimeError("x"), 70)],
)  # fmt: skip
def test_what_nobody_foresaw_is_one_line(monkeypatch, place, error, code):
    from quietstar.cli import recording

    def fail(*_):
        raise error

    monkeypatch.setattr(recording, "opened", fail)
    found, err = outcome(["runs"])
    assert found == code and len(err.splitlines()) == 1 and err.startswith("quietstar: ")
    assert code == 2 or "QUIETSTAR_TRACEBACK=1" in err
    if code != 2:
        monkeypatch.setenv("QUIETSTAR_TRACEBACK", "1")
        monkeypatch.setattr(sys, "argv", ["quietstar", "runs"])
        with pytest.raises(type(error)):
            cli.main()


def test_ctrl_c_inside_a_library_is_an_interruption(monkeypatch, place):
    from quietstar.cli import options

    def load(*_, **__):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("broken off") from error

    monkeypatch.setattr(options, "load", load)
    code, err = outcome(["think", "x"])
    assert code == 130 and err == "quietstar: interrupted; what was finished is above\n"
    assert os.environ["QUIETSTAR_DB"]
