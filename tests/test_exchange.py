"""Runs leave and come back as they were; nothing half-written, nothing half-read."""

import csv
import errno
import io
import json
import os
import stat
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quietstar import QuietStarError
from quietstar.events import Trace
from quietstar.record import exchange, schema
from quietstar.record.store import Store
from recorded import start, thought, token, trace, traces
from test_store import HOSTILE, intervention


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


@pytest.fixture
def other(tmp_path):
    with Store.open(tmp_path / "other.db") as opened:
        yield opened


def everything(store: Store) -> dict[str, list[tuple]]:
    """All rows of all tables but for the numbers, which are the file's own."""
    return {
        table: sorted(
            (tuple(row[name] for name in row.keys() if name != "number") for row in  # noqa: SIM118
             store._rows(f"SELECT * FROM {table}", [])), key=repr,
        )
        for table in schema.TABLES
    }  # fmt: skip


@given(made=st.lists(traces(), max_size=3))
@settings(max_examples=60, deadline=None)
def test_json_lines_round_trip(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("r")
    with Store.open(folder / "a.db") as store, Store.open(folder / "b.db") as other:
        ids = [store.add(one) for one in made]
        exchange.export(store, folder / "runs.jsonl", ids, "jsonl")
        if not made:
            with pytest.raises(QuietStarError, match="is empty"):
                exchange.load(other, folder / "runs.jsonl")
            return
        assert exchange.load(other, folder / "runs.jsonl").added == ids
        assert [other.trace(run) for run in ids] == made
        assert everything(other) == everything(store)
        exchange.export(other, folder / "again.jsonl", ids, "jsonl")
        assert (folder / "again.jsonl").read_bytes() == (folder / "runs.jsonl").read_bytes()


def test_all_that_belongs_to_a_run_goes_with_it(store, other, tmp_path):
    first = store.recorder()
    events = [start("one", "two"), thought(1, "a"), token(2, " x", 0), thought(1, "b", sequence=1), token(2, " y", 1)]
    both = Trace.collect(first.record(events))
    second = store.recorder()
    list(second.record([start(phase="reason"), token(2), start(phase="answer"), token(2)]))
    store.tag(first.runs[0], "x", "y")
    store.note(first.runs[1], "look")
    store.intervene(first.runs[1], intervention())
    path = tmp_path / "runs.jsonl"
    exchange.export(store, path, [*second.runs[::-1], *first.runs], "jsonl")  # an answer before what it continues
    exchange.load(other, path)
    assert everything(other) == everything(store)
    assert [other.trace(run).start for run in first.runs] == [one.start for one in both]
    again = exchange.load(other, path)
    assert again.added == [] and set(again.present) == {*first.runs, *second.runs}
    assert everything(other) == everything(store)


def test_another_run_under_a_taken_id_gets_its_own(store, other, tmp_path):
    store.add(trace("one"), run="samename")
    other.add(trace("two"), run="samename")
    path = tmp_path / "runs.jsonl"
    exchange.export(store, path, ["samename"], "jsonl")
    (added,) = exchange.load(other, path).added
    assert added != "samename" and other.trace(added) == trace("one") and other.trace("samename") == trace("two")


@pytest.mark.parametrize("text", HOSTILE[:-1], ids=range(len(HOSTILE) - 1))
def test_hostile_text_goes_through_every_format(store, other, tmp_path, text):
    expected = text.replace("\ud800", "\ufffd")
    run = store.add(trace(prompt=text, words=(text,), thoughts=[text]))
    if expected.isprintable():
        store.tag(run, text)
    for name in exchange.FORMATS:
        exchange.export(store, tmp_path / f"t.{name}", [run], name)
    exchange.load(other, tmp_path / "t.jsonl")
    assert other.trace(run) == store.trace(run) and other.run(run).tags == store.run(run).tags
    assert pd.read_parquet(tmp_path / "t.parquet").text[0] == expected
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert next(csv.DictReader(file))["text"] == expected


@pytest.mark.parametrize("table", schema.TABLES)
def test_tables_as_csv_and_parquet_are_the_tables(store, tmp_path, table):
    ids = [store.add(trace(seed=n)) for n in range(3)]
    for run in ids:
        store.tag(run, "a", "b")
        store.intervene(run, intervention())
        store.measure(run, {1: {"garble": 2.5, "compute": float("nan")}})
    exchange.export(store, tmp_path / "t.csv", ids[:2], "csv", table)
    exchange.export(store, tmp_path / "t.parquet", ids[:2], "parquet", table)
    rows = [dict(row) for run in ids[:2] for row in store.rows(table, run)]
    assert rows
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.DictReader(file)) == [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows]
    frame = pd.read_parquet(tmp_path / "t.parquet")
    assert list(frame.columns) == list(rows[0]) and len(frame) == len(rows)
    if table == "samples":
        assert frame.tokens[0].tolist() == [7, 8] and frame.logprobs[0].tolist() == [-0.5, -1.25]
    if table == "thoughts":
        assert frame.base_top[0][1] == {"id": 6, "text": " other", "prob": 0.25} and frame.kl.tolist() == [
            r["kl"] for r in rows
        ]


def test_many_groups_of_rows_make_one_parquet_file(store, tmp_path, monkeypatch):
    ids = [store.add(trace(seed=n)) for n in range(5)]
    whole = exchange._groups
    monkeypatch.setattr(exchange, "_groups", lambda store, table, runs: whole(store, table, runs, size=4))
    exchange.export(store, tmp_path / "t.parquet", ids, "parquet", "tokens")
    assert len(pd.read_parquet(tmp_path / "t.parquet")) == 15


def test_parquet_without_pyarrow_names_the_install_command(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(QuietStarError, match=r'pip install "\.\[parquet\]"'):
        exchange.export(store, tmp_path / "t.parquet", [store.add(trace())], "parquet")
    assert not (tmp_path / "t.parquet").exists()


class Full(io.RawIOBase):
    """A file on a disk that fills up."""

    def __init__(self, inner, room):
        self.inner, self.room, self.name = inner, room, inner.name

    def write(self, data):
        if len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= len(data)
        return self.inner.write(data)

    def fileno(self):
        return self.inner.fileno()

    def writable(self):
        return True

    def flush(self):
        self.inner.flush()


@pytest.mark.parametrize("format", exchange.FORMATS)
def test_a_full_disk_leaves_what_was_there(store, tmp_path, monkeypatch, format):
    ids = [store.add(trace(seed=n)) for n in range(5)]
    path = tmp_path / "out" / f"t.{format}"
    path.parent.mkdir()
    path.write_bytes(b"before")
    real = exchange.tempfile.NamedTemporaryFile

    class Opened:
        def __init__(self, *arguments, **options):
            self.inner = real(*arguments, **options)

        def __enter__(self):
            return Full(self.inner.__enter__(), 300)

        def __exit__(self, *raised):
            return self.inner.__exit__(*raised)

    monkeypatch.setattr(exchange.tempfile, "NamedTemporaryFile", Opened)
    with pytest.raises(QuietStarError, match="no space left for .*; nothing was written"):
        exchange.export(store, path, ids, format)
    assert path.read_bytes() == b"before" and list(path.parent.iterdir()) == [path]


def test_places_that_cannot_be_written(store, tmp_path):
    run = store.add(trace())
    (tmp_path / "folder").mkdir()
    for wrong in (tmp_path / "none" / "t.csv", tmp_path / "folder"):
        with pytest.raises(QuietStarError, match=f"cannot write {wrong}"):
            exchange.export(store, wrong, [run], "csv")
    assert not list((tmp_path / "folder").iterdir())
    if Path("/dev/full").exists():
        with pytest.raises(QuietStarError, match="no space left for /dev/full"):
            exchange.export(store, "/dev/full", [run], "jsonl")


def test_an_exported_file_has_the_usual_rights_and_links_stay(store, tmp_path):
    run = store.add(trace())
    target, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    target.write_text("old")
    link.symlink_to(target)
    old = os.umask(0o027)
    try:
        exchange.export(store, link, [run], "jsonl")
    finally:
        os.umask(old)
    assert link.is_symlink() and json.loads(target.read_text())["id"] == run
    assert stat.S_IMODE(target.stat().st_mode) == 0o640


def good(store: Store) -> dict:
    run = store.add(trace())
    found = json.loads(json.dumps(exchange.line(store, run)))
    store.delete(run)
    return found


def changed(line: dict, *path, value) -> dict:
    copy = json.loads(json.dumps(line))
    inner = copy
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return copy


WRONG = {
    "no object": lambda line: [1],
    "foreign": lambda line: {"a": 1},
    "newer": lambda line: line | {"quietstar": 99},
    "no trace": lambda line: {k: v for k, v in line.items() if k != "trace"},
    "trace of text": lambda line: line | {"trace": "x"},
    "id": lambda line: line | {"id": "../../etc"},
    "id upper": lambda line: line | {"id": "ABCDEFGH"},
    "time": lambda line: line | {"started": "yesterday"},
    "tag": lambda line: line | {"tags": ["a\nb"]},
    "tags": lambda line: line | {"tags": 5},
    "position text": lambda line: changed(line, "trace", "tokens", 0, "position", value="two"),
    "position huge": lambda line: changed(line, "trace", "tokens", 0, "position", value=-(10**30)),
    "token huge": lambda line: changed(line, "trace", "tokens", 0, "id", value=10**30),
    "schema huge": lambda line: changed(line, "trace", "start", "schema", value=10**30),
    "order": lambda line: changed(line, "trace", "thoughts", 0, "position", value=77),
    "sequence": lambda line: changed(line, "trace", "sequence", value=5),
    "foreign event": lambda line: changed(line, "trace", "thoughts", 0, "sequence", value=5),
    "prompts": lambda line: changed(line, "trace", "start", "prompt_ids", value=[]),
    "asked": lambda line: changed(line, "trace", "start", "asked", value=["a", "b"]),
    "settings": lambda line: changed(line, "trace", "start", "settings", value=[1]),
    "intervention": lambda line: line | {"interventions": [{"position": 1}]},
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_line_imports_nothing(store, other, tmp_path, case):
    line = good(store)
    path = tmp_path / "wrong.jsonl"
    path.write_text(json.dumps(line | {"id": "goodgood"}) + "\n" + json.dumps(WRONG[case](line)) + "\n")
    with pytest.raises(QuietStarError) as told:
        exchange.load(other, path)
    assert "line 2" in str(told.value) and "nothing was imported" in str(told.value)
    assert len(str(told.value).splitlines()) == 1 and not list(other.runs())
    path.write_text(json.dumps(line))
    exchange.load(other, path)
    assert other.trace(line["id"]) == trace(), "and the good line is good"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff\xfe\x00", b"SQLite format 3\0", b"[" * 100_000, b'{"quietstar": 1']
)
def test_a_file_of_something_else_imports_nothing(other, tmp_path, content):
    path = tmp_path / "wrong.jsonl"
    path.write_bytes(content)
    with pytest.raises(QuietStarError, match="nothing was imported") as told:
        exchange.load(other, path)
    assert len(str(told.value).splitlines()) == 1 and not list(other.runs())


def test_files_that_cannot_be_read(other, tmp_path):
    for wrong in (tmp_path / "none", tmp_path):
        with pytest.raises(QuietStarError, match="cannot read"):
            exchange.load(other, wrong)


def test_a_line_cannot_break_a_batch_that_is_there(store, other, tmp_path):
    recorder = other.recorder()
    list(recorder.record([start("one", "two"), token(2, sequence=0), token(2, sequence=1)]))
    line = good(store) | {"batch": recorder.runs[0], "id": "intruder"}
    line["trace"]["start"] |= {"prompts": ["", "", "", "p"], "prompt_ids": [[], [], [], [1]], "asked": []}
    line["trace"] |= {"sequence": 3, "thoughts": [], "tokens": [], "end": None}
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps(line))
    exchange.load(other, path)
    assert other.trace(recorder.runs[0]).start.prompts == ["one", "two"]
    assert other.trace("intruder").start.prompts == ["", "", "", "p"]


@pytest.mark.parametrize(("options", "says"), [
    (("t.x", [], "xml"), "format must be one of"), (("t.csv", [], "csv", "sqlite_schema"), "table must be one of"),
    (("-", [], "parquet"), "standard output"),
])  # fmt: skip
def test_slips_are_told(store, options, says):
    with pytest.raises(QuietStarError, match=says):
        exchange.export(store, *options)
