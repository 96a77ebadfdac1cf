"""`think` records, `runs` and `show` read: what a person sees, and what happens when the record cannot be had."""

import io
import json
import os
import pty
import sqlite3
import subprocess
import sys

import pytest

from quietstar.record.store import Store
from recorded import trace
from test_cli import QUESTION
from test_store import intervention

THINK = ("think", QUESTION, "-n", "4", "-t", "2")


@pytest.fixture
def filled(own_record):
    """The usual record with three runs."""
    with Store.open() as store:
        store.add(
            trace("Why is the sky blue?", (" Because", " of", " light."), ["air", "sun", "light"]), run="sky00000"
        )
        store.add(trace("Who <b>are</b> you?", (" A", " m\x1b[31model."), ["x", "]\x07"]), run="who00000")
        store.add(trace("Count.", (" One", " two"), ["1", "2"]), run="count000")
    return own_record


def test_think_records_and_says_how_to_see_it_again(run, folder, own_record):
    code, out, err = run(*THINK, "--model", folder)
    assert code == 0 and err == ""
    again, browser = out.splitlines()[-2:]
    assert again.startswith("see it again: quietstar show ")
    with Store.open() as store:
        (entry,) = store.runs()
    assert again.split()[-1] == entry.id and entry.asked == QUESTION and (entry.tokens, entry.thoughts) == (4, 4)
    assert browser == f"in the browser: quietstar view {entry.id} --model {folder}"
    shown = run(*again.split()[4:])[1]
    assert QUESTION in shown and shown.count("KL ") == 4


def test_what_is_shown_is_what_was_printed(run, folder):
    out = run(*THINK, "--model", folder, "--all")[1]
    listed = [line for line in out.splitlines() if "KL " in line or "{" in line]
    shown = run("show")[1]
    assert [line for line in shown.splitlines() if line.strip() and ("KL " in line or "{" in line)] == listed
    assert out.splitlines()[0] in shown


@pytest.mark.parametrize("form", ["--json", "--quiet"])
def test_pipes_stay_clean(run, folder, form):
    code, out, err = run(*THINK, "--model", folder, form)
    plain = run(*THINK, "--model", folder, form, "--no-record")
    assert code == 0 and ("see it again" in err) == (form == "--json") and plain[2] == ""
    if form == "--json":
        assert [json.loads(line)["event"] for line in out.splitlines()][-1] == "end"
    else:
        assert out == plain[1]


def test_recording_can_be_switched_off_and_put_elsewhere(run, folder, own_record, monkeypatch, tmp_path):
    assert "see it again" not in run(*THINK, "--model", folder, "--no-record")[1]
    assert not own_record.exists()
    out = run(*THINK, "--model", folder, "--db", str(tmp_path / "my record.db"))[1]
    assert out.splitlines()[-2].endswith(f"--db '{tmp_path / 'my record.db'}'") and not own_record.exists()
    monkeypatch.setenv("QUIETSTAR_DB", "off")
    code, out, err = run(*THINK, "--model", folder)
    assert code == 0 and "see it again" not in out and err == ""
    assert run("runs")[0] == 2 and "switched off" in run("runs")[2]


@pytest.mark.parametrize("kind", ["foreign", "no database", "newer", "folder"])
def test_a_record_that_cannot_be_used_costs_no_answer(run, folder, own_record, kind):
    expected = run(*THINK, "--model", folder, "-q", "--no-record")[1]
    if kind == "no database":
        own_record.write_text("hello")
    elif kind == "folder":
        own_record.mkdir()
    else:
        db = sqlite3.connect(own_record)
        db.executescript("CREATE TABLE t (x)" if kind == "foreign" else
                         "PRAGMA application_id = 1364415570; PRAGMA user_version = 99")  # fmt: skip
        db.close()
    code, out, err = run(*THINK, "--model", folder, "-q")
    assert (code, out) == (0, expected)
    assert len(err.splitlines()) == 1 and err.startswith("note: this run is not recorded: ")
    code, out, err = run(*THINK, "--model", folder, "--db", str(own_record))
    assert code == 2 and out == "" and len(err.splitlines()) == 1, "asked for by name, it is refused before any work"


def test_a_locked_record_costs_no_answer(run, folder, own_record, monkeypatch):
    monkeypatch.setattr("quietstar.record.schema.BUSY_SECONDS", 0.05)
    monkeypatch.setattr("quietstar.record.recorder._BRIEFLY", 0.01)
    expected = run(*THINK, "--model", folder, "-q")[1]
    other = sqlite3.connect(own_record, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    code, out, err = run(*THINK, "--model", folder, "-q")
    other.close()
    assert (code, out) == (0, expected)
    assert len(err.splitlines()) == 1 and "not fully recorded" in err and "locked" in err


def test_runs_lists_and_searches(run, filled):
    out = run("runs")[1].splitlines()
    assert [line.split()[0] for line in out] == ["count000", "who00000", "sky00000"]
    assert "Why is the sky blue?  →   Because of light." in out[2] and "3 thoughts   1 ◆" in out[2]
    assert "(noise floor not measured)" in out[2]
    assert [line.split()[0] for line in run("runs", "--search", "light")[1].splitlines()] == ["sky00000"]
    assert [line.split()[0] for line in run("runs", "-s", '"sky blue"', "--limit", "0")[1].splitlines()] == ["sky00000"]
    code, out, err = run("runs", "-s", "nowhere")
    assert (code, out, err) == (0, "", "no run matches\n")
    code, out, err = run("runs", "--limit", "2")
    assert len(out.splitlines()) == 2 and "there are more" in err
    found = [json.loads(line) for line in run("runs", "--json")[1].splitlines()]
    assert [one["id"] for one in found] == ["count000", "who00000", "sky00000"] and found[0]["text"] == " One two"


def test_an_unfinished_run_is_listed_as_such(run, filled):
    made = trace("Half")
    made.end = None
    with Store.open() as store:
        store.add(made, run="half0000")
    assert "(unfinished)" in run("runs", "-s", "half")[1] and "unfinished" in run("show", "half")[1]


def test_show_prints_all_thoughts_in_order_or_the_top_ones(run, filled):
    out = run("show", "sky")[1]
    assert [line.split()[0] for line in out.splitlines() if "{" in line] == ["1", "2", "3"]
    assert "· Because" not in out and " ·Because ◆of ·light." in out
    assert "tint by kl:  0.0001  0.001  0.01  0.1  1  nats and more" in out and "\x1b" not in out
    top = run("show", "sky", "--top", "1", "--measure", "weight")[1]
    assert [line.split()[0] for line in top.splitlines() if "{" in line] == ["1"] and "tint by weight" in top
    assert "tint: none, surprise was not recorded" in run("show", "sky", "--measure", "surprise")[1]
    assert run("runs", "show", "sky")[1] == out
    assert run("show")[1] == run("show", "count")[1], "the newest"
    whole = json.loads(run("show", "sky", "--json")[1])
    assert whole["id"] == "sky00000" and len(whole["trace"]["thoughts"]) == 3


def test_show_tints_by_gain_below_zero_too(run, filled):
    made = trace("Lost")
    for thought, mixed in zip(made.thoughts, (-1.0, -1.5, -1.25), strict=True):
        thought.base_logprob, thought.mixed_logprob = -1.0, mixed
    with Store.open() as store:
        store.add(made, run="lost0000")
    out = run("show", "lost", "--measure", "gain")[1]
    assert "tint by gain:  0.001  0.01  0.1  0.5  2  nats and more, the same in every run; grey below 0;" in out
    assert [line.split("gain ")[1].split()[0] for line in out.splitlines() if "KL " in line] == [
        "+0.0000", "-0.5000", "-0.2500"]  # fmt: skip
    assert "tint by surprise" in run("show", "lost", "--measure", "surprise")[1]


def test_show_prints_interventions_in_their_place(run, filled):
    with Store.open() as store:
        store.intervene("sky00000", intervention(2))
        store.intervene("sky00000", intervention(50))
    out = run("show", "sky")[1].splitlines()
    at = next(n for n, line in enumerate(out) if line.startswith("    2  "))
    assert out[at + 2].strip().startswith("edited {no sky}") and "so it goes" in out[at + 2]
    assert out[-1].startswith("   50  edited {no sky}")


def test_reasoning_is_shown_with_its_answer(run, folder):
    run(*THINK, "--model", folder, "--reason-then-answer", "--answer-prompt", "Hence", "--answer-tokens", "2")
    out = run("show")[1]
    assert out.count("reasoning") == 1 and "\nHence" in out and out.count("KL ") == 6


def test_what_models_say_is_never_markup_or_control(run, filled):
    with Store.open() as store:
        store.tag("who", "[red]tag[/]")
        store.note("who", "[bold]\x1b]0;title\x07 note")
    for command in (("runs",), ("show", "who"), ("runs", "show", "who", "--top", "2")):
        out = run(*command)[1]
        assert "\x1b" not in out and "\x07" not in out
    assert "<b>are</b>" in out and "#[red]tag[/]" in out and "[bold]\\x1b]0;title\\x07 note" in out


def test_colour_in_a_terminal(filled):
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-m", "quietstar.cli.main", "show", "sky"], stdout=follower, check=True,
                   env={**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"})  # fmt: skip
    os.close(follower)
    out = b""
    try:
        while block := os.read(leader, 65536):
            out += block
    except OSError:  # the end of a terminal
        pass
    os.close(leader)
    assert b"\x1b[30;48;2;233;127;38mlight." in out, "the strongest tint on the strongest thought"


def test_tag_note_delete(run, filled):
    assert run("runs", "tag", "sky", "blue", "air")[1] == "sky00000: air, blue\n"
    assert [line.split()[0] for line in run("runs", "--tag", "blue")[1].splitlines()] == ["sky00000"]
    assert run("runs", "tag", "sky", "blue", "--remove")[1] == "sky00000: air\n"
    assert run("runs", "note", "sky", "remember")[0] == 0 and "note: remember" in run("show", "sky")[1]
    code, _, err = run("runs", "delete", "sky", "count")
    assert code == 2 and "--yes" in err
    assert run("runs", "delete", "sky", "count", "--yes")[1] == "deleted sky00000, count000\n"
    assert [line.split()[0] for line in run("runs")[1].splitlines()] == ["who00000"]


def test_delete_asks_at_a_terminal(run, filled, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for answer, says in (("n\n", "nothing was deleted"), ("y\n", "deleted sky00000")):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        code, out, _ = run("runs", "delete", "sky")
        assert code == 0 and "Why is the sky blue?" in out and "Delete this run for good?" in out
        assert out.splitlines()[-1].endswith(says)


def test_export_and_import(run, filled, tmp_path):
    file = tmp_path / "runs.jsonl"
    assert run("runs", "export", str(file))[1] == f"3 runs written to {file}\n"
    assert run("runs", "import", str(file), "--db", str(tmp_path / "b.db"))[1] == "3 runs imported\n"
    assert run("runs", "import", str(file))[1] == "0 runs imported, 3 already there\n"
    assert run("runs", "--db", str(tmp_path / "b.db"))[1] == run("runs")[1]
    lines = run("runs", "export", "-", "sky", "who")[1].splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["sky00000", "who00000"]
    assert [json.loads(line)["id"] for line in run("runs", "export", "-", "-s", "light")[1].splitlines()] == [
        "sky00000"
    ]
    table = run("runs", "export", "-", "sky", "--format", "csv", "--table", "tokens")[1].splitlines()
    assert table[0].startswith("run,position,token") and len(table) == 4
    assert run("runs", "export", str(tmp_path / "t.parquet"))[0] == 0


@pytest.mark.parametrize(("arguments", "says"), [
    (["show", "nothere"], "there is no run 'nothere'"),
    (["show", "--measure", "mood"], "--measure must be one of"),
    (["show", "--top", "-1"], "--top must be at least 0"),
    (["runs", "--limit", "-1"], "--limit must be at least 0"),
    (["runs", "tag", "sky", ""], "1 to 100 printable"),
    (["runs", "tag", "sky"], "Missing argument"),
    (["runs", "tag", "sky", "x", "--remove"], "has no tag 'x'"),
    (["runs", "-s", "x", "show", "sky"], "options of `runs show` go after its name"),
    (["runs", "export", "t.xyz"], "cannot infer the format of t.xyz; pass --format"),
    (["runs", "export", "-", "sky", "--tag", "x"], "not both"),
    (["runs", "export", "/nowhere/t.csv"], "cannot write /nowhere/t.csv"),
    (["runs", "import", "/nowhere.jsonl"], "cannot read /nowhere.jsonl"),
    (["runs", "--db", "/nowhere/r.db"], "there is no record at /nowhere/r.db"),
    (["think", "x", "--db", "a", "--no-record"], "not both"),
])  # fmt: skip
def test_slips_are_one_line_and_code_2(run, filled, arguments, says):
    code, out, err = run(*arguments)
    assert code == 2 and out == "" and len(err.splitlines()) == 1 and says in err


def test_listing_needs_no_torch(filled):
    code = (
        "import sys; sys.argv = ['quietstar', 'runs']; import quietstar.cli.main as m\n"
        "try: m.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    assert "sky00000" in subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_long_line_is_cut_in_a_terminal_only(run, filled, monkeypatch):
    with Store.open() as store:
        store.add(trace("y" * 5000), run="long0000")
    assert "y" * 5000 in run("runs")[1]
