"""A search finds words however their letters are composed, in records of every version."""

import sqlite3
import unicodedata
from contextlib import closing
from pathlib import Path

import pytest

from quietstar.record.store import Store
from recorded import trace

GOLDEN = Path(__file__).parent / "golden" / "record-1.sql"
WORDS = ["café", "Zürich", "Tiếng Việt", "мой ёж", "がぎ", "감자", "Ελλάς", "हिन्दी", "ไทยนี้"]


@pytest.mark.parametrize("text", WORDS)
def test_composed_and_decomposed_find_each_other(tmp_path, text):
    forms = [unicodedata.normalize(form, text) for form in ("NFC", "NFD", "NFKC", "NFKD")] + [text.upper()]
    with Store.open(tmp_path / "r.db") as store:
        ids = {store.add(trace(prompt="p", words=(f" so {form} it is",), thoughts=[form])) for form in forms}
        store.add(trace(prompt="other", words=(" nothing",)))
        for form in forms:
            assert {run.id for run in store.runs(form)} == ids
            assert {run.id for run in store.runs(f'"{form}"')} == ids
            assert len(store.thoughts(form)) == len(ids)
        said = {store.run(run).text for run in ids}
        assert said == {f" so {form} it is" for form in forms}, "the text itself stays as it was said"


def test_accents_may_be_left_out_in_every_form(tmp_path):
    with Store.open(tmp_path / "r.db") as store:
        ids = {store.add(trace(words=(unicodedata.normalize(form, " Tiếng Việt"),))) for form in ("NFC", "NFD")}
        assert {run.id for run in store.runs("Viet")} == {run.id for run in store.runs("tieng")} == ids


def test_sharp_s_and_double_s_find_each_other(tmp_path):
    with Store.open(tmp_path / "r.db") as store:
        ids = {store.add(trace(words=(text,))) for text in (" Große Straße", " GROSSE STRASSE", " grosse strasse")}
        store.add(trace(words=(" gross",)))
        for typed in ("Straße", "strasse", "STRASSE", '"große straße"'):
            assert {run.id for run in store.runs(typed)} == ids, typed


def test_an_old_record_is_indexed_anew(tmp_path):
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as db:
        db.executescript(GOLDEN.read_text(encoding="utf-8"))
        text = unicodedata.normalize("NFD", " Tiếng Việt")
        db.execute("UPDATE runs SET text = ? WHERE id = 'vers1000'", [text])
        db.commit()
    with Store.open(path) as store:
        assert [run.id for run in store.runs("việt")] == ["vers1000"] and store.run("vers1000").text == text
        store.delete("vers1000")
        assert not list(store.runs("việt"))


def test_another_program_can_delete_and_note(tmp_path):
    path = tmp_path / "r.db"
    with Store.open(path) as store:
        run = store.add(trace())
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE runs SET note = 'seen'")
        assert db.execute("SELECT count(*) FROM runs_search WHERE runs_search MATCH 'why'").fetchone()[0] == 1
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("DELETE FROM runs WHERE id = ?", [run])
        db.commit()
    with Store.open(path) as store:
        assert not list(store.runs("why")) and store.totals()["runs"] == 0
