"""Files and tables of any supported format, read as rows.

The format is recognised by the content first: compression (gzip, bzip2, xz), Parquet, and JSON are known by their first
characters; otherwise the ending decides between a table (.csv, .tsv) and plain text. Files are read a block at a time,
pipes too. This module knows bytes, characters, columns and rows; which of them become documents is decided elsewhere.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import itertools
import json
import lzma
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from quietstar.errors import QuietStarError
from quietstar.text import visible

LARGEST = 1 << 28  # characters of one document, line or row: 256 Mi
_BLOCK = 1 << 20
_HEAD = 1 << 14  # bytes that the format of a file is recognised by
_COLUMNS = 12  # columns named

_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_PACKED_ENDINGS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
_UNPACK: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
_FOREIGN = {  # recognised by their first bytes, and refused
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"%PDF-": "a PDF",
    b"GGUF": "a GGUF model",
}
_MARKS = (  # byte order marks; UTF-32 first, its mark begins as that of UTF-16
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
    (b"\xef\xbb\xbf", "utf-8-sig"),
)
_KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_ENDINGS = {*_KINDS, *_PACKED_ENDINGS, ".txt", ".md", ".zip", ".zst"}
_JSON = re.compile(r'\s*(\[\s*)?\{\s*("([^"\\\n]|\\.)*"\s*:|\}\s*$)')  # an object, or a list of objects
_SURROGATE = re.compile("[\ud800-\udfff]")
_SPACE = re.compile(r"[ \t\r\n]*")
_TYPES = {
    list: "a list",
    dict: "an object",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    bytes: "binary",
}

Row = tuple[int, Any]  # its number in the source from 1, and a mapping of columns (or what the row has instead)


class Broken(str):
    """Stands for a row that cannot be read, and says why."""


@dataclass
class Source:
    """A file ("-" is standard input) or a hub's data set, and how messages speak of it.

    Args:
        name: of the file or the data set. text: the column of the texts; None where whole rows are wanted.
        others: further columns that are needed.
        option: how a message names a setting, e.g. "--{}".
        notes: what was found otherwise than the name says, one sentence each.
        unit: "line", "row" or "text". column: "column" or "field".
    """

    name: str
    text: str | None
    others: tuple[str, ...] = ()
    option: str = "{}"
    notes: list[str] = field(default_factory=list)
    unit: str = "row"
    column: str = "column"

    def need(self, columns: Sequence[str]) -> None:
        """Check the columns of a table."""
        for name in columns if self.text is None else (self.text, *self.others):
            if name not in columns:
                raise self.missing(name, columns)
            if list(columns).count(name) > 1:
                raise QuietStarError(f"{self.name} has several columns {name!r}; rename all but one")

    def missing(self, name: str, columns: Sequence[str]) -> QuietStarError:
        """That a column is not there."""
        setting = self.option.format("field" if name == self.text else "only")
        return QuietStarError(
            f"{self.name} has no {self.column} {name!r} (it has {listed_columns(columns) or 'none'}); set {setting}"
        )


def rows(source: Source, hub_split: str | None = None) -> Generator[Row, None, None]:
    """The rows of a source. Plain text is one row of one column, its line ends read as \\n.

    Bytes that are no text become surrogates, so that the row they are in is known.

    Args:
        hub_split: the split of a hub's data set; None where only files are read.

    Raises:
        QuietStarError: the source cannot be read, is damaged, or has not the columns that are needed.
    """
    if hub_split is not None and not _names_a_file(source.name):
        yield from _hub(source, hub_split)
        return
    with _one_line(source.name), contextlib.ExitStack() as closing:
        opened = _open(source, closing)
        if opened.kind == "parquet":
            yield from _parquet(opened, source)
        elif opened.kind == "text":
            yield from _text(opened, source)
        elif opened.kind in ("csv", "tsv"):
            yield from _table(opened.decoded(""), opened.kind, source)
        elif opened.kind != "empty":
            yield from _json(opened.decoded("\n"), opened.kind, source)


def _names_a_file(name: str) -> bool:
    """Whether a name is a file's, if only by its form, and not that of a hub's data set."""
    path = Path(name)
    if name == "-" or path.is_absolute() or name.count("/") > 1 or path.suffix.lower() in _ENDINGS:
        return True
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or no name at all
        return True


def kind_of(value: Any) -> str:
    """What a value is, in the words of a message."""
    return "null" if value is None else _TYPES.get(type(value), f"a {type(value).__name__}")


def listed_columns(names: Iterable[Any]) -> str:
    """Names of columns, not too many and none too long."""
    every = [visible(str(name)) for name in names]
    shown = [name if len(name) <= 40 else f"{name[:40]}..." for name in every[:_COLUMNS]]
    return ", ".join(shown) + (f" and {len(every) - _COLUMNS} more" if len(every) > _COLUMNS else "")


def counted(number: int, what: str) -> str:
    """A number and what is counted, in the plural where it is not 1."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def listed(every: Sequence[Any]) -> str:
    """The first three, and how many more."""
    more = f" and {len(every) - 3} more" if len(every) > 3 else ""
    return ", ".join(map(str, every[:3])) + more


@contextlib.contextmanager
def _one_line(name: str) -> Iterator[None]:
    """A file that cannot be opened or is damaged is one line."""
    try:
        yield
    except QuietStarError:
        raise
    except UnicodeError as error:  # of UTF-16 and UTF-32; UTF-8 is looked at row by row
        raise QuietStarError(f"{name} is damaged: {_first(error)}; convert it to UTF-8") from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise QuietStarError(f"{name} is damaged: {_first(error)}; get it again") from error
    except (OSError, ValueError) as error:
        raise QuietStarError(f"cannot read {name}: {getattr(error, 'strerror', None) or _first(error)}") from error


def _first(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


@dataclass
class _Opened:
    """An unpacked file, what it is, and where it stands as it is (None where it was unpacked or is a pipe)."""

    file: IO[bytes]
    kind: str
    encoding: str = ""
    path: Path | None = None

    def decoded(self, newline: str | None) -> IO[str]:
        """The file as text. Bytes that are no text become surrogates, so that the row they are in is known."""
        return io.TextIOWrapper(self.file, encoding=self.encoding, errors="surrogateescape", newline=newline)


def _open(source: Source, closing: contextlib.ExitStack) -> _Opened:
    name, path = source.name, Path(source.name)
    raw: IO[bytes]
    if name == "-":
        if sys.stdin is None:
            raise QuietStarError("there is no standard input to read")
        raw, regular = sys.stdin.buffer, False
    else:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise QuietStarError(f"{name} is a folder; name the files in it")
        regular = stat.S_ISREG(mode)
        if not regular and not stat.S_ISFIFO(mode):
            raise QuietStarError(f"{name} is a device, not a file")
        raw = closing.enter_context(path.open("rb"))
    head, file = _peeked(raw)
    promised = _PACKED_ENDINGS.get(path.suffix.lower())
    packing = _packing(head)
    if promised and packing != promised and head:
        raise QuietStarError(f"{name} is not compressed with {promised}: it begins with {head[:8]!r}")
    if packing:
        if not promised:
            source.notes.append(f"{name} is compressed with {packing}, whatever its name; read unpacked")
        head, file = _peeked(closing.enter_context(_UNPACK[packing](file, "rb")))
        if inner := _packing(head):
            raise QuietStarError(f"{name} holds another file compressed with {inner}; unpack it first")
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise QuietStarError(f"{name} is {what}, which is not read; give text, JSON, CSV or Parquet")
    if head[257:262] == b"ustar":
        raise QuietStarError(f"{name} is a tar archive, which is not read; unpack it first")
    kind = _KINDS.get((path.with_suffix("") if promised else path).suffix.lower(), "text")
    if head.startswith(b"PAR1"):
        if kind != "parquet":
            source.notes.append(f"{name} is Parquet, whatever its name; each row is a document")
        return _Opened(file, "parquet", path=path if regular and not packing else None)
    encoding, notes = _encoding(head, name)
    source.notes += notes
    if not head or head in (mark for mark, _ in _MARKS):
        source.notes.append(f"{name} is empty")
        return _Opened(file, "empty")
    if kind == "parquet":
        raise QuietStarError(f"cannot read {name}: not a Parquet file, it begins with {head[:8]!r}")
    if encoding.startswith("utf-8") and head.count(0) > len(head) / 10:
        raise QuietStarError(
            f"{name} is no text in UTF-8: {head.count(0)} of its first {len(head)} bytes are NUL (UTF-16 without a "
            "byte order mark, or binary); convert it first"
        )
    if kind not in ("json", "lines") and _JSON.match(head.decode(encoding, errors="ignore")):
        source.notes.append(f"{name} holds JSON, whatever its name; each object is a row")
        kind = "json"
    return _Opened(file, kind, encoding)


def decode(raw: bytes, what: str) -> tuple[str, list[str]]:
    """Text that came as bytes, and notes on what in it was no text; damaged places are read as U+FFFD."""
    encoding, notes = _encoding(raw, what)
    text = raw.decode(encoding, errors="replace")
    damaged = text.count("\ufffd") - raw.decode(encoding, errors="ignore").count("\ufffd")
    if damaged:
        notes.append(f"{what} is not {_shown(encoding)} in {counted(damaged, 'place')}, read as U+FFFD")
    if "\0" in text:
        notes.append(f"{what} has {counted(text.count(chr(0)), 'NUL character')}, kept")
    return text, notes


def _packing(head: bytes) -> str:
    for magic, packing in _PACKED.items():
        if head.startswith(magic) and (packing != "bzip2" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return packing
    return ""


def _peeked(file: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    """The first bytes of a file, and the file with them; it may be a pipe."""
    head = file.read(_HEAD)
    return head, io.BufferedReader(_Joined(head, file), _BLOCK)


class _Joined(io.RawIOBase):
    """Bytes already read, then the rest of the file they are from."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest = memoryview(head), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        found = self._head[: len(buffer)] or self._rest.read(len(buffer))
        self._head = self._head[len(found) :] if self._head else self._head
        buffer[: len(found)] = found
        return len(found)


def _encoding(head: bytes, what: str) -> tuple[str, list[str]]:
    """The encoding by a byte order mark, UTF-8 without one, and a note on the mark."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, [f"{what} has a byte order mark of {_shown(encoding)}, left out of the text"]
    return "utf-8", []


def _shown(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()


def _lines(text: IO[str], source: Source) -> Iterator[str]:
    """Lines as they are, none longer than `LARGEST`."""
    for number in itertools.count(1):
        line = text.readline(LARGEST + 1)
        if not line:
            return
        if len(line) > LARGEST:
            raise QuietStarError(f"{source.name}, line {number} is longer than {LARGEST:,} characters; cut it up")
        yield line


# -- kinds ------------------------------------------------------------------------------------------------------------


def _text(opened: _Opened, source: Source) -> Iterator[Row]:
    source.unit = "text"
    content = opened.decoded(None).read(LARGEST + 1)
    if len(content) > LARGEST:
        raise QuietStarError(
            f"{source.name} is longer than {LARGEST:,} characters, too long for one document; cut it into rows of JSON "
            "Lines"
        )
    if found := _SURROGATE.search(content):
        at = len(content[: found.start()].encode())
        raise QuietStarError(f"{source.name} is not {_shown(opened.encoding)} text (byte {at}); convert it first")
    yield 1, content


def _json(text: IO[str], kind: str, source: Source) -> Iterator[Row]:
    """Rows of JSON Lines, of an array, or of objects one behind the other."""
    source.column = "field"
    lines = _lines(text, source)
    blank = 0
    for first in lines:
        if first.strip("\ufeff \t\r\n"):
            break
        blank += 1
    else:
        return
    if first.lstrip().startswith("["):
        if kind == "lines":
            source.notes.append(f"{source.name} holds one JSON array; each element is a row")
        yield from _array(_Values(first, text, source.name))
        return
    if kind != "lines" and isinstance(_parsed(first), Broken) and first.lstrip().startswith("{"):
        values = _Values(first, text, source.name)
        number = 0
        while values.next():
            number += 1
            yield number, values.value(number)
        return
    source.unit = "line"
    marks = 0
    for number, line in enumerate(itertools.chain([first], lines), start=blank + 1):
        if line.startswith("\ufeff"):  # of a file appended to another
            marks += 1
            line = line[1:]
        if line.strip():
            yield number, _parsed(line)
    if marks:
        source.notes.append(f"{source.name}: {counted(marks, 'byte order mark')} at the beginning of lines, left out")


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except RecursionError:
        return Broken("nested too deep")
    except ValueError:
        # a surrogate here stands for a byte that is no UTF-8
        return Broken("not UTF-8" if _SURROGATE.search(line) else "not JSON")


def _array(values: _Values) -> Iterator[Row]:
    values.next()
    values.skip()
    number = 0
    following = values.next()
    while following != "]":
        number += 1
        yield number, values.value(number)
        following = values.next()
        if following == ",":
            values.skip()
            following = ""
        elif following != "]":
            raise QuietStarError(
                f"{values.source}: the array neither continues nor ends after row {number}; is the file complete?"
            )
    values.skip()
    if values.next():
        raise QuietStarError(f"{values.source}: there is more after the end of the array (row {number})")


class _Values:
    """JSON values one behind the other, read a block at a time."""

    def __init__(self, first: str, text: IO[str], source: str) -> None:
        self.source = source
        self._buffer, self._text, self._at = first, text, 0
        self._decode = json.JSONDecoder().raw_decode

    def next(self) -> str:
        """The next character that is no white space; "" at the end."""
        while True:
            found = _SPACE.match(self._buffer, self._at)
            assert found is not None
            self._at = found.end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        """Pass over one character."""
        self._at += 1

    def value(self, number: int) -> Any:
        """The value that begins here."""
        self.next()
        while True:
            try:
                value, end = self._decode(self._buffer, self._at)
                if self._buffer[end - 1] in '}]"' or end < len(self._buffer) or not self._more():
                    self._at = end
                    return value
            except RecursionError as error:
                raise QuietStarError(f"{self.source}: row {number} is nested too deep") from error
            except ValueError as error:
                if len(self._buffer) - self._at > LARGEST:
                    raise QuietStarError(
                        f"{self.source}: row {number} is no JSON, or longer than {LARGEST:,} characters"
                    ) from error
                if not self._more():
                    raise QuietStarError(f"{self.source}: row {number} is not JSON; is the file complete?") from error

    def _more(self) -> bool:
        left = self._buffer[self._at :]
        block = self._text.read(max(_BLOCK, len(left)))  # twice as much at each try
        self._buffer, self._at = left + block, 0
        return bool(block)


def _table(text: IO[str], kind: str, source: Source) -> Iterator[Row]:
    """Rows of CSV or TSV under a header; CSV may have semicolons or tabs between its cells."""
    lines = _lines(text, source)
    ahead = list(itertools.islice(lines, 1))
    signs = "\t" if kind == "tsv" else ",;\t"
    before = csv.field_size_limit()
    csv.field_size_limit(LARGEST)
    try:
        # the header tells which sign divides cells; a name in quotes may run over several lines, that of a text not
        found: dict[str, list[str]] = {}
        for sign in signs:
            with contextlib.suppress(csv.Error):
                found[sign] = next(csv.reader(ahead, delimiter=sign, strict=True), [])
        likely = [sign for sign, names in found.items() if source.text in names]
        sign = (likely or sorted(found, key=lambda one: -len(found[one])) or [signs[0]])[0]
        reader = csv.reader(itertools.chain(ahead, lines), delimiter=sign, strict=True)
        names = next(reader, [])
        source.need(names)
        for number, cells in enumerate(reader, start=1):
            if len(cells) == len(names):
                yield number, dict(zip(names, cells, strict=True))
            elif cells:
                yield number, Broken(f"{counted(len(cells), 'cell')} under {counted(len(names), 'column')}")
    except csv.Error as error:
        raise QuietStarError(f"{source.name}, line {reader.line_num} is not CSV: {error}") from error
    finally:
        csv.field_size_limit(before)


def _parquet(opened: _Opened, source: Source) -> Iterator[Row]:
    """Rows of Parquet; only the columns that are needed are read."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise QuietStarError(
            f'{source.name} is Parquet, which needs pyarrow; in a clone of quietstar: pip install ".[parquet]"'
        ) from error
    number = 0
    try:
        with tempfile.TemporaryFile() as spooled:
            target: Any = opened.path
            if target is None:  # Parquet is read from its end, which pipes and packed files do not have
                shutil.copyfileobj(opened.file, spooled, _BLOCK)
                spooled.seek(0)
                target = spooled
            with parquet.ParquetFile(target) as table:
                schema = table.schema_arrow
                source.need(schema.names)
                wanted = list(schema.names)
                if source.text is not None:
                    _check_text(schema.field(source.text).type, schema.names, source)
                    named = ["id"] if schema.names.count("id") == 1 else []
                    wanted = list(dict.fromkeys([source.text, *source.others, *named]))
                for batch in table.iter_batches(batch_size=1024, columns=wanted):
                    columns = {name: batch.column(batch.schema.get_field_index(name)) for name in wanted}
                    values = {name: _plain(column, pa) for name, column in columns.items()}
                    for n in range(batch.num_rows):
                        number += 1
                        yield number, {name: column[n] for name, column in values.items()}
    except QuietStarError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError, MemoryError) as error:
        behind = f" after row {number}" if number else ""
        raise QuietStarError(f"cannot read {source.name}{behind}: {_first(error)}") from error


def _check_text(kind: Any, names: Sequence[str], source: Source) -> None:
    import pyarrow as pa

    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    is_view = getattr(pa.types, "is_string_view", pa.types.is_string)  # pyarrow 16 and newer
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, is_view)
    if not any(test(plain) for test in tests):
        raise QuietStarError(
            f"{source.name}: column {source.text!r} is {kind}, not text (columns: {listed_columns(names)}); set "
            f"{source.option.format('field')}"
        )


def _plain(column: Any, pa: Any) -> list[Any]:
    """Values of a column; bytes of a text that are no UTF-8 become surrogates, as in `_Opened.decoded`."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        values = [None if one is None else one.decode("utf-8", errors="surrogateescape") for one in raw]
    return values


def _hub(source: Source, split: str) -> Iterator[Row]:
    """Rows of a hub's data set, streamed; `name` or `name:configuration`."""
    name = source.name
    try:
        import datasets
    except ImportError as error:
        raise QuietStarError(
            f"there is no file {name!r}; a data set of the hub needs datasets; in a clone of quietstar: "
            'pip install ".[data]"'
        ) from error
    dataset, _, configuration = name.partition(":")
    try:
        found = datasets.load_dataset(dataset, configuration or None, split=split, streaming=True)
        columns, reader = found.column_names, iter(found)
    except Exception as error:  # whatever the hub's library or a data set's own reader raises
        raise QuietStarError(
            f"there is no file {name!r}, and no data set of that name could be read: {_first(error)}"
        ) from error
    if columns is not None:
        source.need(columns)
    for number in itertools.count(1):
        try:
            row = next(reader, None)
        except Exception as error:
            raise QuietStarError(f"the data set {name!r} broke off after row {number - 1}: {_first(error)}") from error
        if row is None:
            return
        yield number, row
