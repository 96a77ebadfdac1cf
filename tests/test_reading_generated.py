"""Generated tables: the same documents from every form of file, and from a damaged file documents or one line."""

import bz2
import csv
import gzip
import io
import json
import lzma
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar import QuietStarError
from quietstar.documents.reading import Rules, read

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

# csv of Python 3.10 has no NUL
CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\0" if sys.version_info < (3, 11) else "")
TEXT = st.text(st.one_of(CHARACTERS, st.sampled_from(',;\t"\n\r \\[]{}:\ufeff')), max_size=20)
ROW = st.fixed_dictionaries(
    {"text": TEXT, "license": st.sampled_from(["MIT", "GPL", "", "null"]), "n": st.integers(0, 9)}
)
ROWS = st.lists(ROW, max_size=8)
PACKED = st.sampled_from([("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])


def as_csv(rows, sign=",", encoding="utf-8"):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=sign, quoting=csv.QUOTE_ALL)
    writer.writerow(["text", "license", "n"])
    writer.writerows([row["text"], row["license"], row["n"]] for row in rows)
    return out.getvalue().encode(encoding)


def as_parquet(rows, kind=None):
    columns = {"text": pa.array([row["text"] for row in rows], kind or pa.string()),
               "license": pa.array([row["license"] for row in rows], pa.string()),
               "n": pa.array([row["n"] for row in rows], pa.int32())}  # fmt: skip
    out = io.BytesIO()
    parquet.write_table(pa.table(columns), out)
    return out.getvalue()


FORMS = {
    "a.json": lambda rows: json.dumps(rows).encode(),
    "b.json": lambda rows: json.dumps(rows, indent=1, ensure_ascii=False).encode(),
    "c.json": lambda rows: "\n".join(json.dumps(row, indent=1) for row in rows).encode(),
    "a.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(),
    "b.jsonl": lambda rows: "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows).encode("utf-16"),
    "c.jsonl": lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode("utf-8-sig"),
    "a.csv": as_csv,
    "b.csv": lambda rows: as_csv(rows, ";", "utf-8-sig"),
    "a.tsv": lambda rows: as_csv(rows, "\t"),
    "a.parquet": as_parquet,
    "b.parquet": lambda rows: as_parquet(rows, pa.large_string()),
    "c.parquet": lambda rows: as_parquet(rows, pa.dictionary(pa.int32(), pa.string())),
}


def texts(path, **rules):
    """The texts, or None where there is none."""
    try:
        return [document.text for document in read([path], Rules(**rules)).documents]
    except QuietStarError as error:
        assert "\n" not in str(error)
        if "no document with text in it" not in str(error):
            raise
        return None


@fuzz(30)
@given(ROWS, PACKED, st.none() | st.lists(st.sampled_from(["MIT", "GPL", ""]), min_size=1, max_size=2))
def test_every_form_gives_the_same_documents(tmp_path, rows, packing, licenses):
    ending, pack = packing
    rules = {} if licenses is None else {"only": {"license": licenses}}
    wanted = [row["text"] for row in rows if row["text"].strip() and (licenses is None or row["license"] in licenses)]
    for name, form in FORMS.items():
        path = tmp_path / (name + ending)
        path.write_bytes(pack(form(rows)))
        assert texts(path, **rules) == (wanted or None), name
    if wanted:
        found = {name: read([tmp_path / (name + ending)], Rules(**rules)) for name in FORMS}
        assert len({tuple(d.name.partition(":")[2] for d in one.documents) for one in found.values()}) == 1


DAMAGE = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["flip", "cut", "insert", "double"]), st.integers(0, 255)),
    min_size=1, max_size=6,
)  # fmt: skip


def damaged(data: bytes, damage) -> bytes:
    found = bytearray(data)
    for share, kind, byte in damage:
        at = int(share * len(found))
        if kind == "flip" and at < len(found):
            found[at] ^= byte or 1
        elif kind == "cut":
            del found[at : at + 1 + byte]
        elif kind == "insert":
            found[at:at] = bytes([byte])
        else:
            found[at:at] = found[max(0, at - byte) : at]
    return bytes(found)


@fuzz(150)
@given(st.lists(ROW, min_size=1, max_size=6), st.sampled_from(sorted(FORMS)), PACKED, DAMAGE, DAMAGE | st.none(),
       st.sampled_from(["refuse", "skip"]), st.booleans())  # fmt: skip
def test_damaged_files_give_documents_or_one_line(tmp_path, rows, name, packing, inside, outside, broken, chosen):
    ending, pack = packing
    content = pack(damaged(FORMS[name](rows), inside))
    path = tmp_path / (name + ending)
    path.write_bytes(damaged(content, outside) if outside else content)
    try:
        found = read([path], Rules(broken=broken, only={"license": ["MIT"]} if chosen else {}))
    except QuietStarError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    for document in found.documents:
        document.text.encode()  # no lone surrogate comes through
        assert document.text.strip() and document.name


@fuzz(100)
@given(st.binary(max_size=200), st.sampled_from([*FORMS, "a.txt", "a", "a.csv.gz", "a.md"]), st.booleans())
def test_any_bytes_give_documents_or_one_line(tmp_path, content, name, text):
    path = tmp_path / name
    path.write_bytes(b"text\n" + content if text else content)
    try:
        read([path], Rules(broken="skip"))
    except QuietStarError as error:
        assert str(path) in str(error) and "\n" not in str(error)
