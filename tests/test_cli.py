"""The command line: what it prints, and that a person's slip is one line and exit code 2."""

import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from quietstar import QuietStar, __version__
from quietstar.cli import main as cli

QUESTION = "the quick brown fox"


def test_help_is_instant_and_names_every_command():
    code = (
        "import sys; sys.argv = ['quietstar', '--help']; import quietstar.cli.main as m\n"
        "try: m.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for word in ("think", "show", "runs", "score", "bench", "--version"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["think", "show", "runs", "score", "bench"])
def test_every_option_is_explained(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    flags = [line for line in out.splitlines() if line.strip().startswith("-")]
    assert len(flags) > 4
    for n, line in enumerate(out.splitlines()):
        if line.strip().startswith("--") and len(line.split("  ")) < 3:
            assert out.splitlines()[n + 1].startswith("      "), line


def test_version(run):
    assert run("--version") == (0, f"quietstar {__version__}\n", "")


def test_no_command_prints_the_help(run):
    code, out, _ = run()
    assert code == 0 and "Commands:" in out


def test_think_marks_the_answer_and_lists_thoughts(run, folder):
    code, out, _ = run("think", QUESTION, "--model", folder, "-n", "6", "-t", "2", "--show", "3")
    assert code == 0
    assert out.count("{") >= 3 and "·" in out and "without" in out and "w " in out
    listed = [line for line in out.splitlines() if "KL" in line]
    assert len(listed) == 3
    strengths = [float(line.split("KL ")[1].split()[0]) for line in listed]
    assert strengths == sorted(strengths, reverse=True)
    assert "6 tokens, 6 thoughts" in out


def test_all_quiet_live_and_json(run, folder):
    base = ("think", QUESTION, "--model", folder, "-n", "6", "-t", "2", "--seed", "1")
    quiet = run(*base, "-q")[1]
    events = [json.loads(line) for line in run(*base, "--json")[1].splitlines()]
    assert [e["event"] for e in events] == ["start", "noise"] + ["thought", "token"] * 6 + ["end"]
    assert quiet == events[-1]["text"] + "\n" and "·" not in quiet
    assert sum("KL" in line for line in run(*base, "--all")[1].splitlines()) == 6
    live = run(*base, "--live")[1]
    assert sum("KL" in line for line in live.splitlines()) == 6
    assert run(*base, "--show", "0")[1].count("KL") == 0


def test_json_differs_only_in_time_between_runs(run, folder):
    options = ("think", QUESTION, "--model", folder, "-n", "4", "-t", "2", "--temperature", "1", "--json")
    first, second = (
        [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in run(*options)[1].splitlines()]
        for _ in range(2)
    )
    assert first == second


def test_speculation_prints_the_same_answer_and_counts_its_drafts(run, folder):
    options = ("think", QUESTION, "--model", folder, "-n", "9", "-t", "2", "--mixing-weight", "0")
    assert run(*options, "-q", "--speculate", "0")[1] == run(*options, "-q")[1]
    assert "6 of 6 drafted tokens accepted" in run(*options, "--speculate", "2")[1]
    assert "drafted tokens accepted" in run(*options)[1]
    assert "drafts" not in run(*options, "--speculate", "0")[1]


def test_prompt_from_standard_input(run, folder):
    given = run("think", QUESTION, "--model", folder, "-n", "4", "-t", "1", "-q")[1]
    assert run("think", "--model", folder, "-n", "4", "-t", "1", "-q", stdin=QUESTION)[1] == given
    assert run("think", "-", "--model", folder, "-n", "4", "-t", "1", "-q", stdin=QUESTION)[1] == given


def test_reason_then_answer(run, folder):
    code, out, _ = run("think", "what is two", "--model", folder, "-n", "4", "-t", "1", "--reason-then-answer",
                       "--reason-prompt", "Think.", "--answer-prompt", "Hence", "--answer-tokens", "2", "--json")  # fmt: skip
    events = [json.loads(line) for line in out.splitlines()]
    starts = [e for e in events if e["event"] == "start"]
    assert code == 0 and [s["phase"] for s in starts] == ["reason", "answer"]
    assert starts[0]["prompts"][0].endswith("Think.") and starts[1]["prompts"][0].endswith("\nHence")
    shown = run("think", "what is two", "--model", folder, "-n", "4", "-t", "1", "--reason-then-answer",
                "--answer-prompt", "Hence", "--answer-tokens", "2")[1]  # fmt: skip
    assert "\nHence" in shown
    live = run("think", "what is two", "--model", folder, "-n", "4", "-t", "1", "--reason-then-answer", "--live",
               "--answer-prompt", "Hence", "--answer-tokens", "2")[1]  # fmt: skip
    assert "\nHence\n" in live  # the first token of the answer has a line of its own


def test_untrained_thoughts_are_called_untrained(run, tiny_folder):
    assert "untrained" in run("think", QUESTION, "--model", tiny_folder, "-n", "2", "-t", "1")[1]
    assert "untrained" not in run("think", QUESTION, "--model", tiny_folder, "-n", "2", "-t", "1", "-q")[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["think", ""], "the prompt is empty"),
        (["think", "x", "--trigger", "sometimes"], "unknown trigger 'sometimes'"),
        (["think", "x", "--control", "fillers"], "control must be one of"),
        (["think", "x", "--temperature", "-1"], "temperature must be 0"),
        (["think", "x", "--top-p", "2"], "top_p must be above 0"),
        (["think", "x", "-n", "0"], "max_new_tokens must be at least 1, got 0"),
        (["think", "x", "-n", "many"], "'--max-new-tokens' / '-n': Input should be a valid integer"),
        (["think", "x", "--thought-length", "-3"], "thought_length must be at least 0, got -3"),
        (["think", "x", "--samples", "0"], "samples must be at least 1"),
        (["think", "x", "--show", "-1"], "--show must be at least 0"),
        (["think", "x", "--live", "--json"], "at most one of"),
        (["think", "x", "--model", "/nowhere/at/all"], "unknown model"),
        (["think", "x", "--dtype", "int3"], "dtype must be"),
        (["think", "x", "--device", "cuda:7"], "cuda"),
        (["think", "x", "--quantize", "2bit"], "quantize must be"),
        (["think", "x" * 5000, "--raw"], "context is 512"),
        (
            ["think", "x", "--speculate", "fast"],
            "speculate must be 0 (one by one), a number of drafted tokens, or auto",
        ),
        (["think", "x", "--trigger", "marker"], "needs a vocabulary with a start marker"),
        (["think", "x", "--no-such-option"], "No such option"),
        (["thnk"], "No such command"),
        (["score", "/nowhere.txt"], "cannot read /nowhere.txt"),
        (["score"], "Missing argument"),
        (["bench", "--repeats", "0"], "repeats must be at least 1"),
    ],
)
def test_slips_are_one_line_and_code_2(run, folder, monkeypatch, arguments, says):
    from quietstar.loading import checkpoints

    monkeypatch.setattr(checkpoints, "_offline", lambda: True)
    if "--model" not in arguments and arguments[0] in ("think", "bench", "score"):
        arguments = [*arguments, "--model", folder]
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    assert len(err.strip().splitlines()) == 1 and err.startswith("quietstar: ")
    assert says in err and "Traceback" not in err


def test_no_prompt_at_a_terminal_is_told(run, monkeypatch):
    class Terminal:
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    code, _, err = run("think")
    assert code == 2 and "there is no prompt" in err


def command(*arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "quietstar.cli.main", *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)  # fmt: skip


@pytest.mark.parametrize("form", ["--json", "--live"])
def test_ctrl_c_keeps_what_was_finished(folder, form):
    process = command("think", QUESTION, "--model", folder, "-n", "400", "--stop", "zzzz", form)
    first = process.stdout.readline()
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("the model ended before the signal came")
    assert process.returncode == 130 and "Traceback" not in err and "interrupted" in err
    if form == "--json":
        events = [json.loads(line) for line in (first + out).splitlines()]
        assert events[-1]["event"] == "end" and events[-1]["reason"] == "interrupted"
        assert events[-1]["text"] == "".join(e["text"] for e in events if e["event"] == "token")
    else:
        assert "interrupted" in out


def test_a_reader_that_leaves_is_no_error(folder):
    process = command("think", QUESTION, "--model", folder, "-n", "200", "--json")
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.wait(timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(folder):
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, "-m", "quietstar.cli.main", "think", QUESTION, "--model", folder, "-n", "3", "--json"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert process.returncode == 2
    assert "no space left" in process.stderr and "Traceback" not in process.stderr


def test_colour_only_in_a_terminal(folder):
    process = command("think", QUESTION, "--model", folder, "-n", "3", env={**os.environ, "TERM": "xterm-256color"})
    out, _ = process.communicate(timeout=60)
    assert "\x1b[" not in out


def test_score_prints_a_table_and_json(run, folder, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("the quick brown fox thinks before it speaks")
    lines = tmp_path / "b.jsonl"
    lines.write_text("".join(json.dumps({"id": f"d{n}", "body": "the thing says " * (n + 1)}) + "\n" for n in range(5)))
    code, out, _ = run("score", str(lines), "--field", "body", "--model", folder, "-t", "2")
    assert code == 0
    for word in (
        "base",
        "own",
        "only",
        "filler",
        "donor",
        "shuffled",
        "d0",
        "d4",
        "95 %",
        "compute",
        "content",
        "decile",
    ):
        assert word in out
    report = json.loads(run("score", str(text), "--model", folder, "-t", "2", "--json", "--controls", "none")[1])
    assert set(report["losses"]) == {"base", "own", "only"} and report["losses"]["base"]["low"] is None
    assert report["settings"]["thought_length"] == 2


def test_ctrl_c_inside_a_line_waits_for_its_end(folder, monkeypatch):
    class Interrupting(io.StringIO):
        def write(self, text):
            if text.startswith('{"event": "thought"'):
                os.kill(os.getpid(), signal.SIGINT)  # as if it came while the third line is on its way
            return super().write(text)

    out = Interrupting()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["quietstar", "think", QUESTION, "--model", folder, "-n", "4", "--json"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    events = [json.loads(line) for line in out.getvalue().splitlines()]
    assert left.value.code == 130
    assert [e["event"] for e in events] == ["start", "noise", "thought", "end"] and events[-1]["thoughts"] == 1


@pytest.mark.parametrize("form", ["text", "json"])
def test_ctrl_c_keeps_the_documents_that_were_scored(run, folder, tmp_path, monkeypatch, form):
    lines = tmp_path / "many.jsonl"
    lines.write_text("".join(json.dumps({"id": f"d{n}", "text": f"the thing says {n}"}) + "\n" for n in range(5)))
    count = itertools.count(1)
    score = QuietStar.score

    def interrupted(*arguments, **options):
        if next(count) == 3:
            raise KeyboardInterrupt
        return score(*arguments, **options)

    monkeypatch.setattr(QuietStar, "score", interrupted)
    code, out, err = run("score", str(lines), "--model", folder, "-t", "1", *(["--json"] if form == "json" else []))
    assert code == 130 and err.strip() == "quietstar: interrupted; what was finished is above"
    if form == "json":
        report = json.loads(out)
        assert [row["document"] for row in report["documents"]] == ["d0", "d1"]
        assert report["unfinished"] == ["d2", "d3", "d4"]
    else:
        assert "d1" in out and "3 documents were not read" in out


def test_bytes_that_are_no_text_are_replaced_in_a_prompt(folder):
    process = command("think", b"caf\xe9 \xf0\x9f", "--model", folder, "-n", "1", "-t", "1", "--json", "--raw")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[0])["prompts"] == ["caf\ufffd \ufffd"]


def test_a_terminal_without_unicode_gets_codes(folder):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    process = command("think", "é 🙂", "--model", folder, "-n", "2", "-t", "1", "--json", "--raw", env=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out.splitlines()[0])["prompts"] == ["é 🙂"] and out.isascii()
    process = command("think", "é", "--model", folder, "-n", "2", "-t", "1", "--raw", env=environment)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and out.startswith("\\u25c6") and out.isascii(), err


def test_ctrl_c_while_python_still_imports_is_one_line(monkeypatch, capsys):
    from quietstar import __main__ as entry

    def interrupted(name, *_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.__import__", interrupted)
    with pytest.raises(SystemExit) as left:
        entry.main()
    monkeypatch.undo()
    assert left.value.code == 130 and capsys.readouterr().err == "quietstar: interrupted\n"
