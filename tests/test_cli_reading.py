"""The commands that read texts: the same documents for train and score, the same words about what is wrong."""

import io
import json
import sys

import pytest

import quietstar.training.trainer  # noqa: F401  warnings of its libraries come here
from quietstar import QuietStar
from quietstar.documents.reading import Rules, read
from quietstar.training import data

ALPACA = [{"instruction": f"Say it {n} times.", "input": "", "output": "It. " * n} for n in range(1, 4)]
LINES = [{"text": f"the quick brown fox {n} thinks"} for n in range(3)]
BAD = {
    "alpaca.json": (json.dumps(ALPACA, indent=2), "has no field 'text' (it has instruction, input, output)"),
    "lines.json": ("\n".join(map(json.dumps, ALPACA)), "has no field 'text' (it has instruction, input, output)"),
    "alpaca.csv": ("instruction,output\na,b\n", "has no column 'text' (it has instruction, output)"),
    "chat.jsonl": ('{"text": [{"role": "user"}]}', "1 broken line: 1 (field 'text' is a list, not text)"),
    "latin.txt": (b"caf\xe9", "is not UTF-8 text (byte 3)"),
    "empty.jsonl": ("", "no document with text in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("command", ["train", "score"])
def test_what_is_no_text_is_refused_in_the_same_words(run, folder, tmp_path, name, command):
    path = tmp_path / name
    content, says = BAD[name]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = (["score", str(path), "--model", folder] if command == "score"
                 else ["train", "smoke", "--model", folder, "--data.train", str(path), "--out", str(tmp_path / "run")])  # fmt: skip
    code, out, err = run(*arguments)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    assert says in err and str(path) in err
    assert ("--field" if command == "score" else "data.field") in err or "set " not in err
    for place, told in (
        (tmp_path, "is a folder; name the files in it"),
        ("/nowhere.csv", "cannot read /nowhere.csv: No such"),
    ):
        code, _, err = run(*[str(place) if word == str(path) else word for word in arguments])
        assert code == 2 and told in err and len(err.strip().splitlines()) == 1


def test_train_and_score_read_the_same_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(map(json.dumps, LINES)).encode() + b'\r\n{"text": null}\r\n')
    trained = data.read(data.DataConfig(train=(str(path),), heldout_share=0.0), seed=0)
    scored = read([path], Rules(option="--{}"))
    assert trained.train == [document.text for document in scored.documents] == [row["text"] for row in LINES]
    assert trained.notes == scored.notes != []


def test_score_says_what_it_left_out_and_reads_columns_and_standard_input(run, folder, tmp_path, monkeypatch):
    rows = [{"instruction": text} for text in ("the quick brown fox", "", None, "before it speaks")]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows))
    options = ["--model", folder, "-t", "1", "--controls", "none", "--json", "--field", "instruction"]
    code, out, err = run("score", str(path), *options)
    assert code == 0
    assert err == f"note: {path}: 2 of 4 rows left out: 1 null (row 3), 1 empty (row 2)\n"
    report = json.loads(out)
    assert [row["document"] for row in report["documents"]] == ["a.json:1", "a.json:4"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    code, out, err = run("score", "-", *options)
    assert code == 0 and json.loads(out)["losses"] == report["losses"]
    path.write_text('{"instruction": "the fox"}\nnot json\n')
    assert "skip them with --broken skip" in run("score", str(path), *options)[2]
    code, out, err = run("score", str(path), *options, "--broken", "skip")
    assert code == 0 and "1 broken line: 2 (not JSON); left out" in err
    assert "broken must be refuse or skip" in run("score", str(path), *options, "--broken", "mend")[2]
    assert run("score", str(path), *options, "--limit", "0")[2].startswith("quietstar: --limit must be at least 1")


def test_reports_are_compared_only_where_they_are_of_the_same_tokens(run, folder, tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "other.json"
    path.write_text("the quick brown fox thinks before it speaks")
    options = ["--model", folder, "-t", "1", "--controls", "none"]
    other.write_text(run("score", str(path), *options, "--json")[1])
    code, out, err = run("score", str(path), *options, "--against", str(other), "--seed", "3")
    assert code == 0 and "against the other's base" in out and "note: seed is 0 in the other report, 3 here" in err
    path.write_text("the quick brown fox thinks before it shouts")
    code, out, err = run("score", str(path), *options, "--against", str(other))
    assert code == 2 and not out and "a.txt is another text in the other report" in err
    for content in ("{}", "[]", "nonsense", "[" * 100_000, '{"documents": [{}]}'):
        other.write_text(content)
        code, out, err = run("score", str(path), *options, "--against", str(other))
        assert code == 2 and not out and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "prompt", "note"),
    [
        (b"caf\xe9", "caf\ufffd", "note: the prompt is not UTF-8 in 1 place, read as U+FFFD"),
        ("café".encode("utf-8-sig"), "café", "note: the prompt has a byte order mark of UTF-8, left out of the text"),
        ("café".encode("utf-16"), "café", "note: the prompt has a byte order mark of UTF-16, left out of the text"),
        (b"a\0b", "a\0b", "note: the prompt has 1 NUL character, kept"),
        ("café".encode(), "café", ""),
    ],
)
def test_a_prompt_that_is_no_plain_utf8_is_told(run, folder, monkeypatch, given, prompt, note):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    options = ["--model", folder, "-n", "1", "-t", "1", "--json", "--raw"]
    code, out, err = run("think", *options)
    assert code == 0 and json.loads(out.splitlines()[0])["prompts"] == [prompt]
    assert note in err and ("note: the prompt" in err) == bool(note)
    if b"\0" in given:
        return
    code, again, err = run("think", given.decode("utf-8", errors="surrogateescape"), *options)
    if not given.startswith(b"\xff\xfe"):  # no shell passes UTF-16
        assert code == 0 and json.loads(again.splitlines()[0])["prompts"] == [prompt] and note in err


def test_options_that_are_no_utf8_are_refused(run, folder):
    code, _, err = run("think", "the fox", "--model", folder, "-n", "1", "-t", "1", "-q", "--stop", "x\udce9")
    assert code == 2 and "--stop must be UTF-8 text" in err
    code, _, err = run("think", "the fox", "--model", folder, "-n", "1", "-t", "1", "-q", "--system", "\ud800x")
    assert code == 2 and "--system must be UTF-8 text" in err


def test_training_without_evaluation_and_repeated_documents_are_told(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("# one\nfirst\n# two\nsecond\n")
    found = data.read(data.DataConfig(train=(str(path),)), seed=0)
    assert found.heldout == [] and found.notes == [
        "no document is held out of 1 (data.heldout_share 0.02), so nothing is evaluated while training; name "
        "data.heldout, or cut plain text into documents with data.cut"]  # fmt: skip
    found = data.read(data.DataConfig(train=(str(path),), cut="^# ", heldout_share=0.5), seed=0)
    assert len(found.train) == len(found.heldout) == 1 and found.notes == []
    assert data.read(data.DataConfig(train=(str(path),), heldout=(str(path),)), seed=0).notes == [
        "1 of 1 held-out documents are trained on too, word for word"]  # fmt: skip
    assert data.read(data.DataConfig(train=(str(path), str(path)), heldout_share=0), seed=0).notes == [
        "1 of 2 documents repeat another word for word"]  # fmt: skip


def test_a_model_trained_on_rows_of_a_table_is_one(tiny_folder, tmp_path, run):
    path = tmp_path / "a.csv"
    path.write_text(
        "body,license\n" + "".join(f"the quick brown fox {n} thinks before it speaks,MIT\n" for n in range(12))
    )
    code, _, err = run(
        "train", "smoke", "--model", tiny_folder, "--data.train", str(path), "--data.field", "body", "--data.length", "16",
        "--data.only", "{license: [MIT]}", "--out", str(tmp_path / "run"), "--optimizer.steps", "1", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    assert f"note: {path}: data.only keeps 12 of 12 rows" in err and "note: no document is held out of 12" in err
    assert QuietStar.from_pretrained(tmp_path / "run" / "model").config.thought_length == 4


def test_names_of_documents_are_shown_without_control_characters(run, folder, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"id": "\x1b[31m[/b] red", "text": "the quick brown fox"}) + "\n")
    code, out, _ = run("score", str(path), "--model", folder, "-t", "1", "--controls", "none")
    assert code == 0 and "\x1b" not in out and "\\x1b[31m[/b] red" in out
    path.write_text(json.dumps({"\x1b[31mbody": "the quick brown fox"}) + "\n")
    code, _, err = run("score", str(path), "--model", folder)
    assert code == 2 and "\x1b" not in err and "it has \\x1b[31mbody" in err


def test_held_out_documents_too_short_to_score_are_told_before_training(run, tiny_folder, tmp_path):
    path, held = tmp_path / "a.txt", tmp_path / "held.txt"
    path.write_text("the quick brown fox thinks before it speaks " * 4)
    held.write_text("a")
    code, _, err = run("train", "smoke", "--model", tiny_folder, "--data.train", str(path), "--data.heldout", str(held),
                       "--data.length", "16", "--out", str(tmp_path / "run"), "--device", "cpu")  # fmt: skip
    assert code == 2 and "no document has two tokens or more; there is nothing to score" in err
    assert not (tmp_path / "run" / "log.jsonl").exists()
