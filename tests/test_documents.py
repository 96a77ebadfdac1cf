"""Reading documents: rows of text in any form of file, or one line that says what is wrong with it."""

import bz2
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import threading

import pytest

from quietstar import QuietStarError
from quietstar.documents import files as datafiles
from quietstar.documents.files import decode
from quietstar.documents.reading import Document, Rules, read

ROWS = [{"text": "one, two", "license": "MIT", "n": 1}, {"text": 'say "three"\nfour', "license": "GPL", "n": 2},
        {"text": "five", "license": "MIT", "n": 3}]  # fmt: skip
TEXTS = [row["text"] for row in ROWS]


def texts(*files, **rules) -> list[str]:
    return [document.text for document in read(files, Rules(**rules)).documents]


def refusal(*files, **rules) -> str:
    with pytest.raises(QuietStarError) as refused:
        read(files, Rules(**rules))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def table_of(rows, path) -> None:
    pa = pytest.importorskip("pyarrow")
    pa.parquet = pytest.importorskip("pyarrow.parquet")
    pa.parquet.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)


CSV = 'text,license,n\n"one, two",MIT,1\n"say ""three""\nfour",GPL,2\nfive,MIT,3\n'
FORMS = {
    "a.json": json.dumps(ROWS), "b.json": json.dumps(ROWS, indent=2), "c.json": "\n".join(map(json.dumps, ROWS)),
    "d.json": "\n".join(json.dumps(row, indent=1) for row in ROWS), "a.jsonl": "\r\n".join(map(json.dumps, ROWS)),
    "b.jsonl": json.dumps(ROWS), "a.csv": CSV, "b.csv": CSV.replace(",", ";").replace("one;", "one,"),
    "a.tsv": CSV.replace(",", "\t").replace("one\t", "one,"), "b.txt": "\n\n" + "\n".join(map(json.dumps, ROWS)),
    "c.csv": "\n".join(map(json.dumps, ROWS)), "noending": json.dumps(ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_same_rows_are_read_from_every_form(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(FORMS[name].encode())
    assert texts(path) == TEXTS
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress), ("", gzip.compress)):
        packed = tmp_path / f"packed-{name}{ending}"
        packed.write_bytes(pack(FORMS[name].encode()))
        found = read([packed])
        assert [document.text for document in found.documents] == TEXTS
        assert ending or any("compressed with gzip, whatever its name" in note for note in found.notes)
    assert texts(path, only={"license": ["MIT"]}) == ["one, two", "five"]
    assert texts(path, only={"n": ["2"]}) == [TEXTS[1]]


def test_parquet_of_any_kind_of_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    values = ["one", None, " ", "two"]
    kinds = {"string": pa.string(), "large": pa.large_string(), "words": pa.dictionary(pa.int8(), pa.string())}
    if int(pa.__version__.partition(".")[0]) >= 26:  # older ones cannot write it
        kinds["view"] = pa.string_view()
    for name, kind in kinds.items():
        path = tmp_path / f"{name}.parquet"
        table_of(pa.table({"text": pa.array(values, pa.string()).cast(kind), "n": [1, 2, 3, 4]}), path)
        found = read([path])
        assert [document.text for document in found.documents] == ["one", "two"]
        assert found.notes == [f"{path}: 2 of 4 rows left out: 1 null (row 2), 1 empty (row 3)"]
        assert texts(path, only={"n": ["4"]}) == ["two"]
        packed = tmp_path / f"{name}.parquet.gz"  # not seekable cheaply: unpacked aside
        packed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
        assert texts(packed) == ["one", "two"]
    path.rename(tmp_path / "lies.txt")
    assert texts(tmp_path / "lies.txt") == ["one", "two"]


def test_parquet_columns_that_hold_no_text_are_refused_by_name_and_type(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "a.parquet"
    table_of(pa.table({"messages": pa.array([["a"]]), "meta": pa.array([{"text": "x"}]), "raw": pa.array([b"x"]),
                       "n": pa.array([1])}), path)  # fmt: skip
    for field, kind in (("messages", "list<"), ("meta", "struct<"), ("raw", "binary"), ("n", "int64")):
        says = refusal(path, field=field, broken="skip")
        assert f"column {field!r} is {kind}" in says and "(columns: messages, meta, raw, n); set data.field" in says
    assert "no column 'text' (it has messages, meta, raw, n); set data.field" in refusal(path)
    table_of(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "twice.parquet")
    assert "several columns 'text'" in refusal(tmp_path / "twice.parquet")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and nothing more")
    assert refusal(tmp_path / "b.parquet").startswith(f"cannot read {tmp_path / 'b.parquet'}")


def test_parquet_strings_that_are_no_utf8_are_broken_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    bad = pa.array([b"good", b"caf\xe9"]).view(pa.string())
    table_of(pa.table({"text": bad}), tmp_path / "a.parquet")
    assert "1 broken row: 2 (not UTF-8)" in refusal(tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet", broken="skip") == ["good"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_filters_and_columns_that_are_not_there_are_refused(tmp_path, name):
    path = tmp_path / name
    table_of(ROWS, path) if name == "a.parquet" else path.write_text(FORMS[name])
    word = "field" if "json" in name else "column"
    for broken in ("refuse", "skip"):
        assert refusal(path, only={"licence": ["MIT"]}, broken=broken) == (
            f"{path} has no {word} 'licence' (it has text, license, n); set data.only"
        )
        assert refusal(path, field="body", broken=broken, option="--{}") == (
            f"{path} has no {word} 'body' (it has text, license, n); set --field")  # fmt: skip
    says = refusal(path, only={"license": ["BSD"]})
    assert says.startswith(f"{path}: no document with text in it") and "keeps 0 of 3" in says
    assert "'MIT' (2), 'GPL' (1)" in says
    (note,) = read([path], Rules(only={"license": ["MIT"]})).notes
    assert re.search(r"data.only keeps 2 of 3 (rows|lines); left out: 'GPL' \(1\)", note)


def test_plain_text_cannot_be_filtered(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("all rights reserved")
    assert "plain text without columns, so data.only cannot choose from it" in refusal(path, only={"license": ["MIT"]})


def test_rows_without_the_column_of_the_filter_do_not_pass(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "license": "MIT"}\n{"text": "b"}\n{"text": "c", "license": null}\n')
    found = read([path], Rules(only={"license": ["MIT"]}))
    assert [document.text for document in found.documents] == ["a"]
    assert found.notes[0].startswith(f"{path}: data.only keeps 1 of 3 lines; 1 line without 'license'")
    path.write_text('{"text": "a", "tags": ["MIT"]}\n')
    assert "field 'tags' is a list; data.only compares texts, numbers, true and false" in refusal(
        path, only={"tags": ["MIT"]}
    )


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"text": "ok"}\n{"text": \n', "1 broken line: 2 (not JSON)"),
        ("a.jsonl", '{"text": "ok"}\n\n{"body": "x"}\n', "1 broken line: 3 (no field 'text' among body)"),
        ("a.jsonl", '{"text": ["x"]}\n', "1 (field 'text' is a list, not text)"),
        ("a.jsonl", '{"text": 5}\n', "1 (field 'text' is a number, not text)"),
        ("a.jsonl", '"text"\n', "1 (a text, not an object with fields)"),
        ("a.jsonl", '{"text": ' + "[" * 100_000, "1 (nested too deep)"),
        ("a.jsonl", '{"text": "half \\ud83d"}', "1 (half of a surrogate pair, no character)"),
        ("a.jsonl", b'{"text": "caf\xe9"}', "1 (not UTF-8)"),
        ("a.jsonl", "[1]\n[2]\n", "there is more after the end of the array"),
        ("a.json", '["x", "y"]', "2 broken rows: 1 (a text, not an object with fields)"),
        ("a.json", '[{"text": "x"}, {"text": "y"}', "the array neither continues nor ends after row 2; is the file complete?"),
        ("a.json", '[{"text": "x"}, {"text": "y', "row 2 is not JSON; is the file complete?"),
        ("a.json", '{"data": [{"text": "x"}]}', "has no field 'text' (it has data)"),
        ("a.json", '{\n "version": 1,\n "rows": []\n}', "has no field 'text' (it has version, rows)"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", "[]", "no document with text in it"),
        ("a.csv", "text,n\nhello, world,1\n", "1 broken row: 1 (3 cells under 2 columns)"),
        ("a.csv", 'text,n\n"open,1\n', "is not CSV: unexpected end of data"),
        ("a.csv", "hello\nworld\n", "has no column 'text' (it has hello)"),
        ("a.csv", "text,text\n1,2\n", "several columns 'text'"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text (byte 3); convert it first"),
        ("a.txt", "wide".encode("utf-16-le") * 9, "36 of its first 72 bytes are NUL (UTF-16 without a byte order mark"),
        ("a.txt", b"\xff\xfea", "is damaged: 'utf-16"),
        ("a.txt", b"PK\x03\x04abc", "is a zip archive, which is not read"),
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfdabc", "is compressed with zstd, which is not read"),
        ("a.arrow", b"ARROW1abc", "is an Arrow file, which is not read"),
        ("a.tar", b"x" * 257 + b"ustar", "is a tar archive"),
        ("a.jsonl.gz", '{"text": "x"}', "is not compressed with gzip: it begins with b'{"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}' * 99, mtime=0)[:-12], "is damaged: Compressed file ended"),
        ("a.jsonl.gz", gzip.compress(gzip.compress(b"x", mtime=0), mtime=0), "holds another file compressed with gzip"),
        ("a.parquet", '{"text": "x"}', "not a Parquet file, it begins with b'{"),
        ("a.txt", "", "a.txt is empty"),
        ("a.csv", "\ufeff", "a.csv is empty"),
        ("a.jsonl", '{"text": null}\n{"text": ""}\n', "2 of 2 lines left out: 1 null (line 1), 1 empty (line 2)"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in refusal(path)
    if "ok" not in str(content):
        assert str(path) in refusal(path, broken="skip")  # no row is left


def test_places_that_are_no_files(tmp_path, monkeypatch):
    assert "is a folder; name the files in it" in refusal(tmp_path)
    assert "cannot read /nowhere/a.jsonl: No such file or directory" in refusal("/nowhere/a.jsonl")
    assert "cannot read corpus: No such file" in refusal("corpus")
    assert "cannot read" in refusal("a\0b.txt") and "cannot read" in refusal("x" * 300 + ".txt")
    assert "is a device" in refusal("/dev/null")
    path = tmp_path / "locked.txt"
    path.write_text("x")
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    assert refusal(path) == f"cannot read {path}: Permission denied"


MARKS = {"utf-8-sig": "UTF-8", "utf-16": "UTF-16", "utf-32": "UTF-32"}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt"])
def test_byte_order_marks_are_obeyed_and_told(tmp_path, name, encoding):
    path = tmp_path / name
    path.write_bytes((FORMS.get(name) or "größer\r\nals").replace("\r\n", "\n").replace("\n", "\r\n").encode(encoding))
    found = read([path])
    wanted = {"a.txt": ["größer\nals"], "a.csv": [one.replace("\n", "\r\n") for one in TEXTS]}.get(name, TEXTS)
    assert [document.text for document in found.documents] == wanted
    assert found.notes == [f"{path} has a byte order mark of {MARKS[encoding]}, left out of the text"]


def test_a_mark_in_the_middle_of_json_lines_is_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\n')
    found = read([path])
    assert [document.text for document in found.documents] == ["a", "b"]
    assert found.notes == [f"{path}: 1 byte order mark at the beginning of lines, left out"]


def test_nul_characters_and_repetitions_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\u0000b"}\n{"text": "c"}\n{"text": "c"}\n{"text": "\\ufeffd"}\n')
    found = read([path])
    assert len(found.documents) == 4 and found.documents[0].text == "a\0b"
    assert found.notes == [
        f"{path}: 1 line with NUL characters, kept (line 1)",
        f"{path}: 1 line with a byte order mark (U+FEFF) inside, kept (line 4)",
        "1 of 4 documents repeat another word for word",
    ]


def test_documents_are_named_after_their_id_or_place(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x", "id": "own"}\n\n{"text": "y", "id": 7}\n{"text": "z"}\n')
    assert [document.name for document in read([path]).documents] == ["own", "7", "a.jsonl:4"]


def test_plain_text_can_be_cut_into_documents(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("intro\n = One = \nfirst\n = = Part = = \n = Two = \nsecond\n")
    assert read([path], Rules(cut=r"^ = [^=]")).documents == [
        Document("book.txt:1", "intro\n"), Document("book.txt:2", " = One = \nfirst\n = = Part = = \n"),
        Document("book.txt:3", " = Two = \nsecond\n"),
    ]  # fmt: skip
    assert read(path).documents == [Document("book.txt", path.read_text())]
    with pytest.raises(QuietStarError, match="cut must be a regular expression, got '.'"):
        Rules(cut="(")
    if sys.version_info >= (3, 11):  # flags stand only at the beginning of an expression
        with pytest.raises(QuietStarError, match="cut must be a regular expression"):
            Rules(cut="(?i)one")


def test_a_stream_of_broken_rows_is_refused_before_its_end(monkeypatch):
    def endless(row):
        while True:
            yield row

    monkeypatch.setitem(sys.modules, "datasets", Hub(endless({"text": ["a"]})))
    assert "1000 broken rows: 1 (column 'text' is a list, not text), 2 (" in refusal(
        "some/set:small", hub_split="train"
    )
    monkeypatch.setitem(sys.modules, "datasets", Hub(endless({"body": "a"})))
    assert "has no column 'text' (it has body)" in refusal("some/set:small", hub_split="train")


def test_a_limit_stops_the_reading(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\nnot json\n')
    assert texts(path, path, limit=2) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "begins", "repeats"),
    [("a.jsonl", b'{"text": "', b"x"), ("a.json", b'[{"text": "', b"x"), ("a.csv", b"text\n", b"x"), ("a.txt", b"", b"x"),
     ("b.csv", b"text\n", b'"x\n'), ("b.json", b"[", b"[1,")],
)  # fmt: skip
def test_endless_lines_are_refused_before_memory_is_full(tmp_path, monkeypatch, name, begins, repeats):
    monkeypatch.setattr(datafiles, "LARGEST", 100_000)
    monkeypatch.setattr(datafiles, "_BLOCK", 1000)
    path = tmp_path / name
    path.write_bytes(begins + repeats * 300_000)
    assert re.search(r"100,000|100000|nested too deep|is not CSV", refusal(path))


def test_pipes_are_read_as_they_come(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for content in (FORMS["a.json"].encode(), gzip.compress(FORMS["a.jsonl"].encode(), mtime=0)):
        writer = threading.Thread(target=pipe.write_bytes, args=(content,))
        writer.start()
        assert texts(pipe) == TEXTS
        writer.join()
    table_of(ROWS, tmp_path / "a.parquet")
    writer = threading.Thread(target=pipe.write_bytes, args=((tmp_path / "a.parquet").read_bytes(),))
    writer.start()
    assert texts(pipe) == TEXTS
    writer.join()


def test_standard_input_is_a_file_too():
    program = "from quietstar.documents.reading import read; print([d.text for d in read(['-']).documents])"
    done = subprocess.run(
        [sys.executable, "-c", program], input=FORMS["b.json"].encode(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == repr(TEXTS)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(path).endswith('needs pyarrow; in a clone of quietstar: pip install ".[parquet]"')


class Hub:
    """Stands for the library of the hub."""

    def __init__(self, rows, columns=None):
        self.rows, self.column_names = rows, columns

    def load_dataset(self, name, configuration, split, streaming):
        assert (name, configuration, split, streaming) == ("some/set", "small", "train", True)
        return self

    def __iter__(self):
        return iter(self.rows)


def test_a_data_set_of_the_hub_goes_through_the_same_rules(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", Hub([*ROWS, {"text": None, "license": "MIT", "n": 4}]))
    rules = dict(hub_split="train")
    assert texts("some/set:small", **rules) == TEXTS
    assert texts("some/set:small", only={"license": ["MIT"]}, **rules) == ["one, two", "five"]
    assert "left out: 1 null (row 4)" in read(["some/set:small"], Rules(**rules)).notes[0]
    assert "has no column 'licence' (it has text, license, n)" in refusal(
        "some/set:small", only={"licence": ["MIT"]}, **rules
    )
    monkeypatch.setitem(sys.modules, "datasets", Hub(ROWS, ["text", "license", "n"]))
    assert "has no column 'body' (it has text, license, n)" in refusal("some/set:small", field="body", **rules)
    monkeypatch.setitem(sys.modules, "datasets", Hub([{"text": ["a"]}]))
    assert "1 broken row: 1 (column 'text' is a list, not text)" in refusal("some/set:small", **rules)
    monkeypatch.setitem(sys.modules, "datasets", Hub((1 / 0 for _ in "x"), None))
    assert "broke off after row 0: division by zero" in refusal("some/set:small", **rules)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert 'pip install ".[data]"' in refusal("some/set", **rules)


def test_text_that_came_as_bytes():
    assert decode("größer".encode(), "it") == ("größer", [])
    assert decode(b"caf\xe9 \xff\xfe x", "it") == (
        "caf\ufffd \ufffd\ufffd x",
        ["it is not UTF-8 in 3 places, read as U+FFFD"],
    )
    assert decode("a\ufffd".encode(), "it") == ("a\ufffd", [])
    assert decode("größer".encode("utf-16"), "it") == (
        "größer",
        ["it has a byte order mark of UTF-16, left out of the text"],
    )
    assert decode(b"a\0", "it") == ("a\0", ["it has 1 NUL character, kept"])
