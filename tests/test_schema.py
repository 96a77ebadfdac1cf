"""The file: created, upgraded, refused; foreign and damaged ones are not changed."""

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from quietstar import QuietStarError
from quietstar.record import schema
from quietstar.record.store import Store
from recorded import trace

GOLDEN = Path(__file__).parent / "golden" / "record-1.sql"  # a file of version 1, as `sqlite3 .dump` tells it


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("PRAGMA user_version").fetchone()[0]


def test_a_file_of_version_1_opens_with_all_it_has(tmp_path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(GOLDEN.read_text(encoding="utf-8"))
    assert version(path) == 1
    with Store.open(path) as store:
        assert version(path) == len(schema.MIGRATIONS)
        run = store.run("vers1000")
        assert run.tags == ("kept",) and run.note == "of version 1" and run.asked == "Why?"
        assert store.trace("vers1000") == trace()
        assert store.interventions("vers1000")[0].continuation == " so it goes"
        assert [t.text for t in store.thoughts("think2")] == ["think2 deep"]


def test_an_older_file_is_brought_up(tmp_path, monkeypatch):
    path = tmp_path / "record.db"
    with Store.open(path) as store:
        run = store.add(trace())
    now = len(schema.MIGRATIONS)
    later = "ALTER TABLE runs ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';\nCREATE INDEX runs_mood ON runs(mood);"
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, later])
    with Store.open(path) as store:
        assert store._row("SELECT mood FROM runs", [])["mood"] == "calm" and store.trace(run) == trace()
    assert version(path) == now + 1
    monkeypatch.undo()
    with pytest.raises(QuietStarError, match=f"newer quietstar .its version is {now + 1}, this quietstar knows {now}"):
        Store.open(path)


def test_a_migration_that_fails_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "record.db"
    Store.open(path).close()
    before = path.read_bytes()
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, "CREATE TABLE x (y);\nCREATE TABLE runs (z);"])
    with pytest.raises(QuietStarError, match="already exists"):
        Store.open(path)
    assert version(path) == len(schema.MIGRATIONS) - 1
    with closing(sqlite3.connect(path)) as db:
        assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'x'").fetchall()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"hello", b"\x00" * 5000, b"SQLite format 2\0" + b"x" * 100, b"PK\x03\x04"])
def test_a_file_that_is_no_database_is_refused_and_left(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(QuietStarError, match="not a SQLite file"):
        Store.open(path)
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("marks", ["CREATE TABLE t (x)", "PRAGMA user_version = 1", "PRAGMA application_id = 7"])
def test_another_programs_database_is_refused_and_left(tmp_path, marks):
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute(marks)
        db.execute("PRAGMA encoding")
    before = path.read_bytes()
    with pytest.raises(QuietStarError, match="another program's database"):
        Store.open(path)
    assert path.read_bytes() == before


def test_a_damaged_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "record.db"
    with Store.open(path) as store:
        for n in range(30):
            store.add(trace(seed=n))
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)
    with pytest.raises(QuietStarError, match="is damaged") as told:
        store = Store.open(path)
        list(store.runs())
    assert "\n" not in str(told.value)


def test_a_cut_off_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "record.db"
    with Store.open(path) as store:
        store.add(trace(prompt="x" * 50_000))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(QuietStarError, match="damaged|not a SQLite file"):
        Store.open(path)


def test_no_file_where_one_is_expected(tmp_path):
    with pytest.raises(QuietStarError, match="there is no record at"):
        Store.open(tmp_path / "none.db", create=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_and_an_impossible_place(tmp_path):
    with pytest.raises(QuietStarError, match="is a folder"):
        Store.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(QuietStarError, match="cannot create a record at"):
        Store.open(tmp_path / "file" / "record.db")


def test_an_empty_file_becomes_a_record(tmp_path):
    path = tmp_path / "record.db"
    path.touch()
    with Store.open(path) as store:
        assert store.trace(store.add(trace())) == trace()


def test_a_record_is_for_its_owners_eyes(tmp_path):
    path = tmp_path / "deep" / "er" / "record.db"
    with Store.open(path) as store:
        store.add(trace())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.with_name("record.db-wal").stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    path = tmp_path / "record.db"
    with Store.open(path) as store:
        run = store.add(trace())
    monkeypatch.setattr(schema.os, "access", lambda *_: False)
    with Store.open(path) as store:
        assert not store.writable and store.trace(run) == trace() and list(store.runs("think1"))
        with pytest.raises(QuietStarError, match="cannot be written"):
            store.add(trace())


def test_where_the_record_is(monkeypatch, tmp_path):
    monkeypatch.setenv("QUIETSTAR_DB", str(tmp_path / "x.db"))
    assert schema.default_path() == tmp_path / "x.db"
    monkeypatch.setenv("QUIETSTAR_DB", "Off")
    assert schema.default_path() is None
    with pytest.raises(QuietStarError, match="switched off"):
        Store.open()
    monkeypatch.delenv("QUIETSTAR_DB")
    assert schema.default_path().name == "record.db" and "quietstar" in str(schema.default_path())
