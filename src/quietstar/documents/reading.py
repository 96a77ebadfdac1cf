"""Documents: named texts, read from files and tables by one set of rules for every command.

A plain text is one document, or several where it is cut by a regular expression; of everything else each row is one
document, its text in one named column. A row without a text is left out and counted, a broken one refuses the file
unless it is to be skipped, and whatever was left out, or read in another way than the file's name says, is reported in
`Found.notes`.

This module knows rows and texts; it knows nothing about file formats (`documents.files` does), models or training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quietstar.documents import files as datafiles
from quietstar.documents.files import counted, kind_of, listed, listed_columns
from quietstar.errors import QuietStarError

_REMEMBERED = 1000  # names and values that a message may need
_ENOUGH = 1000  # broken rows that refuse a file before its end; a stream may have none
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class Document:
    """A named text."""

    name: str
    text: str


@dataclass
class Found:
    """What was read, and what there is to say about it, one sentence each."""

    documents: list[Document]
    notes: list[str]


@dataclass(frozen=True)
class Rules:
    """How files become documents.

    Args:
        field: the column of a row's text.
        only: {column: values}: keep the rows whose column has one of the values. Numbers, true and false are compared
            as JSON writes them.
        broken: "refuse" a file with broken rows, or "skip" them; either way they are counted and named.
        limit: read at most so many documents; 0 is all of them.
        cut: a regular expression (^ and $ at lines); plain text is cut before each match into several documents.
        hub_split: the split of a hub's data set; None where only files are read.
        option: how a message names one of these settings, e.g. "--{}".
    """

    field: str = "text"
    only: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    broken: str = "refuse"
    limit: int = 0
    cut: str | None = None
    hub_split: str | None = None
    option: str = "data.{}"

    def __post_init__(self) -> None:
        if self.broken not in ("refuse", "skip"):
            raise QuietStarError(f"broken must be refuse or skip, got {self.broken!r}")
        if self.limit < 0:
            raise QuietStarError(f"limit must be 0 (all) or above, got {self.limit}")
        try:
            self.cuts()
        except (re.error, RecursionError, OverflowError) as error:
            raise QuietStarError(f"cut must be a regular expression, got {self.cut!r}: {error}") from error

    def cuts(self) -> re.Pattern[str] | None:
        """Matches the empty place before each piece of a plain text."""
        return re.compile(f"(?={self.cut})", re.MULTILINE) if self.cut else None


def read(sources: str | Path | Iterable[str | Path], rules: Rules | None = None) -> Found:
    """Read documents from files ("-" is standard input) and, where the rules allow it, a hub's data sets.

    A document is named after its row's `id` where it has one, otherwise after its file and row.

    Raises:
        QuietStarError: a missing, unreadable or damaged file, a missing column or one that holds no text, broken rows,
            or no document at all; names the file, the row and what is there.
    """
    rules = rules or Rules()
    names = [str(source) for source in ([sources] if isinstance(sources, (str, Path)) else sources)]
    documents: list[Document] = []
    notes: list[str] = []
    for name in names:
        if rules.limit and len(documents) >= rules.limit:
            break
        choice = _Choice(name, rules)
        left = rules.limit - len(documents) if rules.limit else None
        with contextlib.closing(choice.documents()) as found:
            documents += itertools.islice(found, left)
        notes += choice.close()
    if not documents:
        why = f" ({'; '.join(notes[:3])})" if notes else ""
        raise QuietStarError(f"{listed(names)}: no document with text in it{why}")
    repeated = len(documents) - len({document.text for document in documents})
    if repeated:
        notes.append(f"{repeated} of {counted(len(documents), 'document')} repeat another word for word")
    return Found(documents, notes)


class _Places:
    """A count of rows, and the first of them in words."""

    def __init__(self) -> None:
        self.count, self._first = 0, []  # type: int, list[str]

    def add(self, place: object) -> None:
        self.count += 1
        if self.count <= 3:
            self._first.append(str(place))

    def __str__(self) -> str:
        return ", ".join(self._first) + (f" and {self.count - 3} more" if self.count > 3 else "")


class _Choice:
    """The documents of one source by the rules, and counts of what is left out."""

    def __init__(self, name: str, rules: Rules) -> None:
        self.source = datafiles.Source(name, rules.field, tuple(rules.only), rules.option)
        self.rules = rules
        self._rows = self._unlike = self._objects = 0
        self._lacking: Counter[str] = Counter()
        self._columns: dict[str, None] = {}
        self._values: Counter[str] = Counter()
        self._left = {"null": _Places(), "empty": _Places()}
        self._odd = {"NUL characters": _Places(), "a byte order mark (U+FEFF) inside": _Places()}
        self._broken = _Places()

    def documents(self) -> Generator[Document, None, None]:
        """Read the source."""
        with contextlib.closing(datafiles.rows(self.source, self.rules.hub_split)) as rows:
            for number, row in rows:
                found = self._plain(row) if self.source.unit == "text" else self._chosen(number, row)
                yield from found

    def close(self) -> list[str]:
        """The notes on what was read.

        Raises:
            QuietStarError: it has broken rows that are not to be skipped, or no row has a column that is needed.
        """
        name, unit, option = self.source.name, self.source.unit, self.rules.option
        for column in (*self.rules.only, self.rules.field):
            if self._objects and self._lacking[column] == self._objects:
                raise self.source.missing(column, list(self._columns))
        notes = list(self.source.notes)
        if self._broken.count:
            line = f"{name}: {counted(self._broken.count, f'broken {unit}')}: {self._broken}"
            if self.rules.broken == "refuse":
                raise QuietStarError(f"{line}; fix them, or skip them with {option.format('broken')} skip")
            notes.append(f"{line}; left out")
        if self.rules.only and self._rows:
            line = f"{name}: {option.format('only')} keeps {self._rows - self._unlike} of {counted(self._rows, unit)}"
            for column in self.rules.only:
                if self._lacking[column]:
                    line += f"; {counted(self._lacking[column], unit)} without {column!r}"
            there = ", ".join(f"{value!r:.60} ({count})" for value, count in self._values.most_common(5))
            notes.append(line + (f"; left out: {there}" if there else ""))
        if left := sum(at.count for at in self._left.values()):
            line = ", ".join(f"{at.count} {what} ({unit} {at})" for what, at in self._left.items() if at.count)
            notes.append(f"{name}: {left} of {counted(self._rows, unit)} left out: {line}")
        for what, at in self._odd.items():
            if at.count:
                notes.append(f"{name}: {counted(at.count, unit)} with {what}, kept ({unit} {at})")
        return notes

    def _plain(self, content: str) -> Generator[Document, None, None]:
        """The pieces of a plain text."""
        if self.rules.only:
            raise QuietStarError(
                f"{self.source.name} is plain text without columns, so {self.rules.option.format('only')} cannot "
                "choose from it; leave one of them out"
            )
        cuts = self.rules.cuts()
        pieces = [piece for piece in cuts.split(content) if piece.strip()] if cuts else []
        pieces = pieces or [content]
        for number, piece in enumerate(pieces, start=1):
            self._rows += 1
            name = Path(self.source.name).name
            yield from self._document(number, piece, f"{name}:{number}" if len(pieces) > 1 else name)

    def _chosen(self, number: int, row: Any) -> Generator[Document, None, None]:
        """The document of a row, if it has one."""
        field = self.rules.field
        self._rows += 1
        if isinstance(row, datafiles.Broken):
            self._break(number, row)
            return
        if not isinstance(row, Mapping):
            self._break(number, f"{kind_of(row)}, not an object with fields")
            return
        self._objects += 1
        if len(self._columns) < _REMEMBERED:
            self._columns |= dict.fromkeys(map(str, row))
        self._lacking.update({column for column in (field, *self.rules.only) if column not in row})
        if not self._matches(row):
            self._unlike += 1
        elif field not in row:
            self._break(number, f"no {self.source.column} {field!r} among {listed_columns(row) or 'none'}")
        elif row[field] is None:
            self._left["null"].add(number)
        elif not isinstance(row[field], str):
            self._break(number, f"{self.source.column} {field!r} is {kind_of(row[field])}, not text")
        else:
            own = row.get("id")
            named = isinstance(own, (str, int)) and str(own).strip() and not _SURROGATE.search(str(own))
            yield from self._document(
                number, row[field], str(own) if named else f"{Path(self.source.name).name}:{number}"
            )

    def _document(self, number: int, text: str, name: str) -> Generator[Document, None, None]:
        if found := _SURROGATE.search(text):
            byte = "\udc80" <= found.group() <= "\udcff"  # see `datafiles.rows`
            self._break(number, "not UTF-8" if byte else "half of a surrogate pair, no character")
        elif not text.strip():
            self._left["empty"].add(number)
        else:
            for character, at in zip("\0\ufeff", self._odd.values(), strict=True):
                if character in text:
                    at.add(number)
            yield Document(name, text)

    def _matches(self, row: Mapping[str, Any]) -> bool:
        for column, values in self.rules.only.items():
            value = row.get(column)
            if isinstance(value, (list, tuple, dict, bytes)):
                raise QuietStarError(
                    f"{self.source.name}: {self.source.column} {column!r} is {kind_of(value)}; "
                    f"{self.rules.option.format('only')} compares texts, numbers, true and false"
                )
            if isinstance(value, (bool, int, float)):
                value = json.dumps(value)
            if value is None or str(value) not in values:
                if column in row and (str(value) in self._values or len(self._values) < _REMEMBERED):
                    self._values[str(value)] += 1
                return False
        return True

    def _break(self, number: int, why: str) -> None:
        self._broken.add(f"{number} ({why})")
        if self.rules.broken == "refuse" and self._broken.count == _ENOUGH:
            self.close()
