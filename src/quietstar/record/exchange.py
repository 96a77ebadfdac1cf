"""Runs to files and back: JSON lines hold whole runs, Parquet and CSV one table of the record.

Files are written atomically, so that a full disk leaves nothing half-written; an import is one transaction, so that a
damaged file changes nothing.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import sqlite3
import stat
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from quietstar.arguments import checked, usable
from quietstar.errors import QuietStarError
from quietstar.events import Trace
from quietstar.extras import install
from quietstar.record import schema
from quietstar.record.columns import choices_of, ids_of, insert, numbers_of, plain, real, texts_of, to_json
from quietstar.record.entries import Intervention
from quietstar.record.recorder import RunWriter, new_id, now
from quietstar.record.store import Store, checked_tag

FORMATS = ("jsonl", "csv", "parquet")
FORM = 1  # of a line of JSON
LONGEST_LINE = 256 * 2**20  # bytes; a run of 100,000 thoughts has about 100 MB
DEEPEST = 32  # of lists and objects inside each other
_ID = re.compile(r"[0-9a-z]{4,32}")


@dataclass
class Line:
    """One run as a line of JSON.

    Args:
        quietstar: form of the line. id, started, batch, continues, tags, note: as in the table `runs`.
        trace: as `Trace.to_dict` gives it; of a batch, with this run's own prompt only.
        interventions: as `Intervention.to_dict` gives them. measures: as `Store.measured` gives them.
    """

    quietstar: int
    id: str
    started: str
    trace: Trace
    batch: str | None = None
    continues: str | None = None
    tags: list[str] = field(default_factory=list)
    note: str = ""
    interventions: list[Intervention] = field(default_factory=list)
    measures: dict[int, dict[str, float | None]] = field(default_factory=dict)


# -- export -----------------------------------------------------------------------------------------------------------


@checked
def export(store: Store, path: str | Path, runs: Sequence[str], format: str, table: str = "thoughts") -> int:
    """Write runs to a file; returns how many.

    Args:
        path: the file; "-" is standard output.
        runs: their ids, in the order they are written.
        format: "jsonl" (whole runs), "csv" or "parquet" (one table). table: which one, see `schema.TABLES`.

    Raises:
        QuietStarError: unknown format or table, pyarrow is missing, a full disk, a place that cannot be written.
    """
    if format not in FORMATS:
        raise QuietStarError(f"format must be one of {', '.join(FORMATS)}; got {format!r}")
    if table not in schema.TABLES:
        raise QuietStarError(f"table must be one of {', '.join(schema.TABLES)}; got {table!r}")
    if format == "parquet" and str(path) == "-":
        raise QuietStarError("Parquet cannot be written to standard output; give a file")
    write = {"jsonl": _write_lines, "csv": _write_csv, "parquet": _write_parquet}[format]
    with complete(path) as file:
        write(store, file, runs, table)
    return len(runs)


@checked
def line(store: Store, run: str) -> dict[str, Any]:
    """One run as a line of JSON holds it."""
    entry, trace = store.run(run), store.trace(run)
    b, size = trace.sequence, len(trace.start.prompts)
    own = replace(
        trace.start,
        prompts=[trace.start.prompts[b] if i == b else "" for i in range(size)],
        prompt_ids=[trace.start.prompt_ids[b] if i == b else [] for i in range(size)],
        asked=[trace.start.asked[b] if i == b else "" for i in range(size)],
    )
    return {
        "quietstar": FORM,
        "id": entry.id,
        "started": entry.started,
        "batch": entry.batch,
        "continues": entry.continues,
        "tags": list(entry.tags),
        "note": entry.note,
        "trace": replace(trace, start=own).to_dict(),
        "interventions": [one.to_dict() for one in store.interventions(run)],
        "measures": store.measured(run),
    }


def _write_lines(store: Store, file: IO[bytes], runs: Iterable[str], table: str) -> None:
    for run in runs:
        file.write(to_json(line(store, run)).encode() + b"\n")


def _write_csv(store: Store, file: IO[bytes], runs: Iterable[str], table: str) -> None:
    import io

    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
    try:
        writer = csv.writer(text)
        writer.writerow(store.columns(table))
        for run in runs:
            writer.writerows(tuple(row) for row in store.rows(table, run))
    finally:
        text.detach()  # the file is closed by who opened it


def _write_parquet(store: Store, file: IO[bytes], runs: Iterable[str], table: str) -> None:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise QuietStarError(f"Parquet needs pyarrow; {install('parquet')}") from error
    types = {"INTEGER": pa.int64(), "REAL": pa.float64(), "TEXT": pa.string()}
    lists = {"ids": pa.list_(pa.int64()), "texts": pa.list_(pa.string()), "numbers": pa.list_(pa.float64())}
    lists["choices"] = pa.list_(pa.struct([("id", pa.int64()), ("text", pa.string()), ("prob", pa.float64())]))
    declared = store.columns(table)
    decode = {name: _LISTS[name] for name, kind in declared.items() if kind == "TEXT" and name in _LISTS}
    form = pa.schema(
        [(name, lists[decode[name][0]] if name in decode else types[kind]) for name, kind in declared.items()]
    )
    with parquet.ParquetWriter(file, form, compression="zstd") as writer:
        for group in _groups(store, table, runs):
            columns = {name: [row[name] for row in group] for name in declared}
            with store.decoding(f"a list in the table {table}"):
                for name, (_, read) in decode.items():
                    columns[name] = [read(text) for text in columns[name]]
            writer.write_table(pa.table(columns, schema=form))


def _choices(text: str) -> list[dict[str, Any]]:
    return [asdict(choice) for choice in choices_of(text)]


# Columns of JSON lists, which Parquet holds as lists: what they hold, and how the text is read.
_LISTS: dict[str, tuple[str, Callable[[str], list[Any]]]] = {
    "tokens": ("ids", ids_of),
    "prompt_ids": ("ids", ids_of),
    "pieces": ("texts", texts_of),
    "logprobs": ("numbers", numbers_of),
    "base_top": ("choices", _choices),
    "mixed_top": ("choices", _choices),
    "only_top": ("choices", _choices),
}


def _groups(store: Store, table: str, runs: Iterable[str], size: int = 20_000) -> Iterator[list[sqlite3.Row]]:
    """Rows of many runs in pieces of about `size`."""
    group: list[sqlite3.Row] = []
    for run in runs:
        group += store.rows(table, run)
        if len(group) >= size:
            yield group
            group = []
    yield group


@contextmanager
def complete(path: str | Path) -> Iterator[IO[bytes]]:
    """A file written atomically: it appears at `path` when it is complete. "-" and devices are written directly."""
    try:
        if str(path) == "-":
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
            return
        path = usable(path)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as file:
                yield file
            return
        path = path.resolve()  # a link keeps pointing where it points
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())  # a disk may say only now that it is full
                part.chmod(0o666 & ~_umask())
                part.replace(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        if isinstance(error, BrokenPipeError) or str(path) == "-":
            raise
        if error.errno == errno.ENOSPC:
            raise QuietStarError(f"no space left for {path}; nothing was written") from error
        raise QuietStarError(f"cannot write {path}: {error.strerror or error}; nothing was written") from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# -- import -----------------------------------------------------------------------------------------------------------


@dataclass
class Imported:
    """What an import did: ids of the runs that were added, and of those that the record had already, left unchanged."""

    added: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)


@checked
def load(store: Store, path: str | Path) -> Imported:
    """Read runs from JSON lines that `export` wrote; all of them or, where the file is damaged, none.

    A run that is there already, with the same id and trace, is left as it is; another run under a taken id gets a new
    one.

    Raises:
        QuietStarError: an unreadable, damaged or foreign file, with the number of the line.
    """
    done = Imported()
    new_names: dict[str, str] = {}
    follows: list[tuple[str, str]] = []
    with store.transaction() as db:
        for number, one in _lines(path):
            name = one.id
            if db.execute("SELECT 1 FROM runs WHERE id = ?", [one.id]).fetchone():
                if _same(store, one):
                    done.present.append(one.id)
                    continue
                name = new_id()
            new_names[one.id] = name
            try:
                _insert(db, one, name)
            except (sqlite3.IntegrityError, OverflowError) as error:
                reason = "a number is too large" if isinstance(error, OverflowError) else str(error)
                raise QuietStarError(f"{path}, line {number}: {reason}; nothing was imported") from error
            if one.batch is not None:
                db.execute("UPDATE runs SET batch = ? WHERE id = ?", [new_names.get(one.batch, one.batch), name])
            if one.continues is not None:
                follows.append((name, one.continues))
            done.added.append(name)
        for name, before in follows:  # where the run it goes on from is here
            db.execute(
                "UPDATE runs SET continues = (SELECT id FROM runs WHERE id = ?) WHERE id = ?",
                [new_names.get(before, before), name],
            )
        if circle := _circle(db, done.added):
            raise QuietStarError(f"{path}: run {circle} continues itself; nothing was imported")
    return done


def _circle(db: sqlite3.Connection, runs: Iterable[str]) -> str | None:
    """The first of these runs that continues itself, directly or through others; None where none does."""
    for run in runs:
        seen: set[str] = set()
        at: str | None = run
        while at is not None and at not in seen:
            seen.add(at)
            row = db.execute("SELECT continues FROM runs WHERE id = ?", [at]).fetchone()
            at = row[0] if row is not None else None
            if at == run:
                return run
    return None


def _same(store: Store, one: Line) -> bool:
    there = line(store, one.id)["trace"]
    return bool(to_json(there) == to_json(one.trace.to_dict()))


def _insert(db: sqlite3.Connection, one: Line, name: str) -> None:
    trace = one.trace
    writer = RunWriter(name, trace.start, trace.sequence, started=one.started)
    statements = [writer.begin]
    for event in trace.events:
        statements += writer.add(event)
    statements += [insert("tags", {"run": name, "tag": tag}) for tag in dict.fromkeys(one.tags)]
    statements += [insert("interventions", made.row(name, made.made or now())) for made in one.interventions]
    statements += [
        insert("measures", {"run": name, "position": position, "name": plain(key), "value": real(value)})
        for position, values in one.measures.items()
        for key, value in values.items()
    ]
    statements.append(("UPDATE runs SET note = ? WHERE id = ?", [plain(one.note), name]))
    for statement, values in statements:
        db.execute(statement, values)


def _lines(path: str | Path) -> Iterator[tuple[int, Line]]:
    """The checked lines of a file with their numbers."""
    from pydantic import TypeAdapter, ValidationError

    form = TypeAdapter(Line)
    number, found = 0, usable(path)
    try:
        with found.open("rb") as file:
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(raw) > LONGEST_LINE:
                    raise _InvalidLine(f"it has more than {LONGEST_LINE // 2**20} MB")
                if raw.strip():
                    one = form.validate_python(_run_of(raw))
                    _check(one)
                    yield number, one
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise QuietStarError(f"{path}, line {number}: {where}: {first['msg']}; nothing was imported") from error
    except (ValueError, RecursionError) as error:  # deeply nested JSON runs out of stack
        reason = "it is not JSON" if not isinstance(error, _InvalidLine) else str(error)
        raise QuietStarError(f"{path}, line {number}: {reason}; nothing was imported") from error
    except OSError as error:
        raise QuietStarError(f"cannot read {path}: {error.strerror or error}") from error
    if number == 0:
        raise QuietStarError(f"{path} is empty; nothing was imported")


class _InvalidLine(ValueError):
    """A line that is not a run as quietstar exports it."""


def _run_of(raw: bytes) -> dict[str, Any]:
    found = json.loads(raw)
    if _deeper(found, DEEPEST):
        raise _InvalidLine(f"it has lists or objects more than {DEEPEST} deep")
    if not isinstance(found, dict) or not isinstance(found.get("quietstar"), int):
        raise _InvalidLine("it is not a run that quietstar exported")
    if found["quietstar"] > FORM:
        raise _InvalidLine(f"it was exported by a newer quietstar (form {found['quietstar']}, this one knows {FORM})")
    return found


def _deeper(value: Any, most: int) -> bool:
    """True where lists and objects are nested more than `most` deep."""
    level = [value]
    for _ in range(most + 1):
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _utc(text: str) -> str:
    """A time in ISO 8601, in the form that the record stores; a time without a zone is UTC."""
    try:
        when = datetime.fromisoformat(text)
        when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
        return when.astimezone(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError) as error:
        raise _InvalidLine(f"{text[:40]!r} is not a time") from error


def _check(one: Line) -> None:
    """What the types alone do not guarantee."""
    trace = one.trace
    start = trace.start
    for run in (one.id, one.batch, one.continues):
        if run is not None and not _ID.fullmatch(run):
            raise _InvalidLine(f"{run[:40]!r} is not the id of a run")
    if not len(start.prompts) == len(start.prompt_ids) > trace.sequence >= 0:
        raise _InvalidLine("its prompts do not fit its sequence")
    if start.asked and len(start.asked) != len(start.prompts):
        raise _InvalidLine("it has another number of questions than of prompts")
    if any(getattr(event, "sequence", trace.sequence) != trace.sequence for event in trace.events):
        raise _InvalidLine("it has events of another sequence")
    for name, listed in (("thoughts", trace.thoughts), ("tokens", trace.tokens)):
        places = [event.position for event in listed]
        if any(a >= b for a, b in pairwise(places)):
            raise _InvalidLine(f"its {name} are not in order")
    one.tags = [checked_tag(tag) for tag in one.tags]
    one.started = _utc(one.started)
    for made in one.interventions:
        made.made = _utc(made.made) if made.made else ""
