"""The store: every run ever recorded, to list, search, read again, name and delete.

One SQLite file (see `schema`), one connection per thread, any number of processes. Reading is lazy: runs are read in
pages, a list of thoughts reads no lists of candidates, and a whole trace is built only on request. Knows events and
tables; knows nothing about models or display.
"""

from __future__ import annotations

import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from quietstar.arguments import any_text, checked, usable
from quietstar.errors import QuietStarError
from quietstar.events import ThoughtEvent, Trace
from quietstar.record import columns, schema, search
from quietstar.record.columns import Statement, insert
from quietstar.record.entries import Intervention, Run, ThoughtEntry
from quietstar.record.recorder import Recorder, RunWriter, new_id, now

PAGE = 100  # runs fetched at once
ORDERS = {**search.SQL_OF_MEASURE, "position": "t.position", "number": "t.number"}  # what thoughts can be sorted by

_Entry = TypeVar("_Entry")


class _Held:
    """A connection that is closed when its thread has ended."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db

    def __del__(self) -> None:
        self.db.close()


@checked
class Store:
    """All recorded runs of one file.

    Example:
        >>> store = Store.open()                                              # doctest: +SKIP
        >>> for run in store.runs("sky", limit=10):                           # doctest: +SKIP
        ...     print(run.id, run.asked, store.trace(run.id).text)
    """

    def __init__(self, path: Path, writable: bool) -> None:
        self.path, self.writable = path, writable
        self._local = threading.local()
        self._opened: weakref.WeakSet[_Held] = weakref.WeakSet()

    @classmethod
    def open(cls, path: str | Path | None = None, *, create: bool = True) -> Store:
        """Open a record, creating or upgrading the file where needed.

        Args:
            path: the file; $QUIETSTAR_DB or the user's data folder when None.
            create: create the file where there is none.

        Raises:
            QuietStarError: no file (unless `create`); a foreign, damaged, newer or locked one; recording is off.
        """
        found = schema.default_path() if path is None else usable(path, "the name of the record")
        if found is None:
            raise QuietStarError("recording is switched off (QUIETSTAR_DB=off); give a record with --db")
        store = cls(found, schema.prepare(found, create))
        if store.writable:
            store._complete_killed_runs()
        return store

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._opened:
            self._opened.pop().db.close()
        self._local = threading.local()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- runs ---------------------------------------------------------------------------------------------------------

    def runs(
        self,
        query: Annotated[str, any_text()] = "",
        *,
        tag: str | None = None,
        limit: int | None = None,
        after: str | None = None,
    ) -> Iterator[Run]:
        """Runs, newest first, read in pages as they are needed.

        Args:
            query: words that occur in the prompt, the answer or a thought; "words in quotes" occur together.
            tag: with this tag only. limit: at most so many. after: continue after the run with this id.
        """
        if limit is not None and limit < 0:
            raise QuietStarError(f"limit must be at least 0, got {limit}")
        conditions, values = search.in_runs(query)
        if tag is not None:
            conditions.append("r.id IN (SELECT run FROM tags WHERE tag = ?)")
            values.append(tag)
        last = None
        if after is not None:
            last = tuple(self._row("SELECT started, number FROM runs WHERE id = ?", [self.find(after)]))
        while limit is None or limit > 0:
            page = PAGE if limit is None else min(PAGE, limit)
            where, bound = list(conditions), list(values)
            if last is not None:
                where.append("(r.started, r.number) < (?, ?)")
                bound += last
            rows = self._rows(
                f"SELECT r.* FROM runs r {search.where(where)} ORDER BY r.started DESC, r.number DESC LIMIT ?",
                [*bound, page],
            )
            yield from self._entries(rows)
            if len(rows) < page:
                return
            last = (rows[-1]["started"], rows[-1]["number"])
            limit = None if limit is None else limit - len(rows)

    def find(self, name: str) -> str:
        """The id of the run called `name`: its id, or as many of its first letters as no other run has."""
        typed = name.strip().lower()
        if typed:
            rows = self._rows(
                "SELECT id FROM runs WHERE id >= ? AND id < ? ORDER BY id LIMIT 4", [typed, typed + "\U0010ffff"]
            )
            found = [row["id"] for row in rows]
            if typed in found or len(found) == 1:
                return typed if typed in found else str(found[0])
            if found:
                more = ", ..." if len(found) > 3 else ""
                raise QuietStarError(f"{name} is the beginning of several runs: {', '.join(found[:3])}{more}")
        raise QuietStarError(f"there is no run {name!r} in {self.path}; `quietstar runs` lists them")

    def run(self, name: str) -> Run:
        """One run without its tokens and thoughts."""
        return self._entries([self._row("SELECT * FROM runs WHERE id = ?", [self.find(name)])])[0]

    def trace(self, name: str) -> Trace:
        """Everything recorded about one run, equal to the trace that was recorded."""
        run = self.find(name)
        with self._reading() as db:
            row = db.execute("SELECT * FROM runs WHERE id = ?", [run]).fetchone()
            batch = db.execute(
                "SELECT * FROM runs WHERE batch = ? AND batch_size = ? UNION SELECT * FROM runs WHERE id = ?",
                [row["batch"], row["batch_size"], run],
            ).fetchall()
            tokens = db.execute("SELECT * FROM tokens WHERE run = ? ORDER BY position", [run]).fetchall()
            thoughts = db.execute("SELECT * FROM thoughts WHERE run = ? ORDER BY position", [run]).fetchall()
            samples: dict[int, list[sqlite3.Row]] = {}
            for one in db.execute("SELECT * FROM samples WHERE run = ? ORDER BY position, sample", [run]):
                samples.setdefault(one["position"], []).append(one)
        with self.decoding(f"run {run}"):
            sequence = row["sequence"]
            return Trace(
                start=columns.start_of(row, batch),
                sequence=sequence,
                thoughts=[columns.thought_of(one, samples.get(one["position"], ()), sequence) for one in thoughts],
                tokens=[columns.token_of(one, sequence) for one in tokens],
                end=columns.end_of(row),
                noise=columns.noise_of(row),
            )

    def thought(self, name: str, position: int) -> ThoughtEvent:
        """One thought of a run with all its samples and candidates."""
        run = self.find(name)
        found = self._rows("SELECT * FROM thoughts WHERE run = ? AND position = ?", [run, position])
        if not found:
            raise QuietStarError(f"run {run} has no thought at position {position}")
        samples = self._rows("SELECT * FROM samples WHERE run = ? AND position = ? ORDER BY sample", [run, position])
        sequence = self._row("SELECT sequence FROM runs WHERE id = ?", [run])["sequence"]
        with self.decoding(f"run {run}, position {position}"):
            return columns.thought_of(found[0], samples, sequence)

    # -- thoughts over many runs --------------------------------------------------------------------------------------

    def thoughts(
        self,
        query: Annotated[str, any_text()] = "",
        *,
        run: str | None = None,
        tag: str | None = None,
        model: str | None = None,
        trigger: str | None = None,
        control: str | None = None,
        flipped: bool | None = None,
        above_noise: bool | None = None,
        least: Mapping[str, float] | None = None,
        most: Mapping[str, float] | None = None,
        order: str = "kl",
        descending: bool = True,
        limit: int | None = 50,
        offset: int = 0,
    ) -> list[ThoughtEntry]:
        """Thoughts of all runs in one list, the most influential first.

        Args:
            query: words that occur in the thought. run, tag, model, trigger, control, flipped: only those.
            above_noise: only those whose KL is above the noise floor of their run (or is not); thoughts of runs
                without a measured noise floor are in both.
            least, most: bounds of measures, as in ``least={"kl": 0.1}``: kl, weight, gain, entropy, surprise.
            order: one of these, position, or number (order of arrival). descending: largest first; unknown last.
            limit, offset: which part of the list; all of it where limit is None.
        """
        if order not in ORDERS:
            raise QuietStarError(f"order must be one of {', '.join(ORDERS)}; got {order!r}")
        where, values = search.of_thoughts(
            self,
            query,
            run=run,
            tag=tag,
            model=model,
            trigger=trigger,
            control=control,
            flipped=flipped,
            above_noise=above_noise,
            least=least,
            most=most,
        )
        way = "DESC" if descending else "ASC"
        rows = self._rows(
            f"SELECT t.*, {search.SQL_OF_MEASURE['gain']} AS gain, {search.SQL_OF_MEASURE['surprise']} AS surprise, "
            f"r.model, {search.ABOVE_NOISE} AS above_noise, "
            "(SELECT count(*) FROM samples s WHERE s.run = t.run AND s.position = t.position) "
            f"AS samples FROM thoughts t CROSS JOIN runs r ON r.id = t.run {where} "
            f"ORDER BY {ORDERS[order]} {way} NULLS LAST, t.number {way} LIMIT ? OFFSET ?",
            [*values, -1 if limit is None else limit, offset],
        )
        return [ThoughtEntry.of(row) for row in rows]

    def totals(self) -> dict[str, int]:
        """How many runs and thoughts there are, and the bytes of the file with its write-ahead log."""
        row = self._row("SELECT (SELECT count(*) FROM runs) AS runs, (SELECT count(*) FROM thoughts) AS thoughts", [])
        files = [self.path, self.path.with_name(self.path.name + "-wal")]
        return {**dict(row), "bytes": sum(file.stat().st_size for file in files if file.exists())}

    def select(self, statement: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Rows of any SELECT over the tables of the file."""
        return self._rows(statement, values)

    def columns(self, table: str) -> dict[str, str]:
        """The columns of a table with their types: INTEGER, REAL or TEXT."""
        return {row["name"]: row["type"] for row in self._rows(f"PRAGMA table_info({table})", [])}

    def rows(self, table: str, run: str) -> list[sqlite3.Row]:
        """The rows of one run in a table, in its order; tables as in `schema.TABLES`."""
        key = "id" if table == "runs" else "run"
        order = {"tags": "tag", "tokens": "position", "measures": "position, name"}.get(table, "number")
        return self._rows(f"SELECT * FROM {table} WHERE {key} = ? ORDER BY {order}", [run])

    # -- writing ------------------------------------------------------------------------------------------------------

    def recorder(self) -> Recorder:
        """A recorder of event streams into this store; one a stream."""
        return Recorder(lambda statements, wait: self._checked(lambda: self._write(statements, wait)))

    def add(
        self,
        trace: Trace,
        *,
        run: str | None = None,
        batch: str | None = None,
        continues: str | None = None,
        started: str | None = None,
    ) -> str:
        """Record a whole trace; returns its id.

        Args:
            run: the id to give it, a new one when None. batch: the batch it belongs to; without one, a trace of several
                sequences is stored with its own prompt only.
            continues: id of the run that it continues. started: when it was made, now when None.
        """
        writer = RunWriter(
            run or new_id(), trace.start, trace.sequence, batch=batch, continues=continues, started=started
        )
        statements = [writer.begin]
        for event in trace.events:
            statements += writer.add(event)
        self.change(statements)
        return writer.run

    def tag(self, name: str, *tags: Annotated[str, any_text()]) -> None:
        """Add tags to a run."""
        run = self.find(name)
        self.change([("INSERT OR IGNORE INTO tags (run, tag) VALUES (?, ?)", [run, checked_tag(tag)]) for tag in tags])

    def untag(self, name: str, *tags: str) -> None:
        """Remove tags; one that the run does not have is an error."""
        entry = self.run(name)
        for tag in tags:
            if tag not in entry.tags:
                raise QuietStarError(f"run {entry.id} has no tag {tag!r}; it has: {', '.join(entry.tags) or 'none'}")
        self.change([("DELETE FROM tags WHERE run = ? AND tag = ?", [entry.id, tag]) for tag in tags])

    def note(self, name: str, text: Annotated[str, any_text()]) -> None:
        """Set the note of a run; "" removes it."""
        self.change([("UPDATE runs SET note = ? WHERE id = ?", [columns.plain(text), self.find(name)])])

    def delete(self, *names: str) -> list[str]:
        """Delete runs with all that belongs to them, erasing their text from the file; returns their ids."""
        runs = list(dict.fromkeys(self.find(name) for name in names))
        if runs:
            removals: list[Statement] = [("DELETE FROM runs WHERE id = ?", [run]) for run in runs]
            for table in ("runs_search", "samples_search"):  # only so do words of deleted rows leave the index
                removals.append((f"INSERT INTO {table}({table}) VALUES ('optimize')", []))
            self.change(removals)
            self._checked(lambda: self._db().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall())
        return runs

    def intervene(self, name: str, intervention: Intervention) -> int:
        """Record a changed thought and what it did at its position of a run; returns its number."""
        columns_ = intervention.row(self.find(name), intervention.made or now())
        with self.transaction() as db:
            return int(db.execute(*insert("interventions", columns_)).lastrowid or 0)

    def interventions(self, name: str, position: int | None = None) -> list[Intervention]:
        """The interventions on a run, at one position or at all, oldest first."""
        where, values = self._at(name, position)
        rows = self._rows(f"SELECT * FROM interventions {where} ORDER BY number", values)
        with self.decoding(f"an intervention on run {name}"):
            return [Intervention.of(row) for row in rows]

    def _at(self, name: str, position: int | None) -> tuple[str, list[Any]]:
        """The WHERE clause for a run, or one position of it, and its values."""
        values: list[Any] = [self.find(name)]
        if position is None:
            return search.where(["run = ?"]), values
        return search.where(["run = ?", "position = ?"]), [*values, position]

    def measured(self, name: str, position: int | None = None) -> dict[int, dict[str, float]]:
        """The results of `evals.thoughts.measure` for the thoughts of a run, at one position or at all, by name."""
        where, values = self._at(name, position)
        found: dict[int, dict[str, float]] = {}
        for row in self._rows(f"SELECT position, name, value FROM measures {where}", values):
            found.setdefault(row["position"], {})[row["name"]] = columns.number(row["value"])
        return found

    def measure(self, name: str, found: Mapping[int, Mapping[str, float]]) -> None:
        """Store what was measured about thoughts of a run, by position and name; replaces earlier values."""
        run = self.find(name)
        statement = "INSERT OR REPLACE INTO measures (run, position, name, value) VALUES (?, ?, ?, ?)"
        self.change(
            (statement, [run, position, key, columns.real(value)])
            for position, values in found.items()
            for key, value in values.items()
        )

    def continued_with(
        self, number: int, text: Annotated[str, any_text()], original: Annotated[str, any_text()] | None = None
    ) -> None:
        """Store the text that followed an intervention, given by its number.

        Args:
            original: what follows the own thought, where that was computed anew; kept in the intervention's settings.
        """
        change = "settings = json_remove(settings, '$.original')"
        values: list[Any] = [columns.plain(text), number]
        if original is not None:
            change = "settings = json_set(settings, '$.original', ?)"
            values.insert(1, columns.plain(original))
        self.change([(f"UPDATE interventions SET continuation = ?, {change} WHERE number = ?", values)])

    def change(self, statements: Iterable[Statement]) -> None:
        """Run statements in one transaction."""
        self._checked(lambda: self._write(list(statements), schema.BUSY_SECONDS))

    def _write(self, statements: Sequence[Statement], wait: float) -> None:
        """The same with SQLite's own errors, waiting at most `wait` seconds for another writer."""
        with self._writing(wait) as db:
            for statement, values in statements:
                db.execute(statement, values)

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Several changes in one transaction."""
        try:
            with self._writing(schema.BUSY_SECONDS) as db:
                yield db
        except schema.TROUBLE as error:
            raise schema.as_quietstar_error(error, self.path) from error

    # -- connections --------------------------------------------------------------------------------------------------

    def _db(self) -> sqlite3.Connection:
        """This thread's connection; it is closed when the thread ends."""
        held: _Held | None = getattr(self._local, "held", None)
        if held is None:
            held = self._local.held = _Held(schema.connect(self.path, self.writable))
            held.db.row_factory = schema.ColumnTypes(held.db, self.path)
            self._opened.add(held)
        return held.db

    @contextmanager
    def _writing(self, wait: float) -> Iterator[sqlite3.Connection]:
        db = self._db()
        db.execute(f"PRAGMA busy_timeout = {round(wait * 1000)}")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one and the same state."""
        try:
            db = self._db()
            if db.in_transaction:  # inside a transaction it reads its own writes
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")
        except schema.TROUBLE as error:
            raise schema.as_quietstar_error(error, self.path) from error

    def _checked(self, action: Callable[[], _Entry]) -> _Entry:
        try:
            return action()
        except schema.TROUBLE as error:
            raise schema.as_quietstar_error(error, self.path) from error
        except OverflowError as error:
            raise QuietStarError(f"a number is too large for the record {self.path}") from error

    @contextmanager
    def decoding(self, what: str) -> Iterator[None]:
        """While rows become objects: values that quietstar never writes are reported as a damaged file, in one line."""
        try:
            yield
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, MemoryError, RecursionError) as error:
            raise QuietStarError(
                f"the record {self.path} is damaged: {what} cannot be read ({type(error).__name__}); "
                "`quietstar runs delete` removes a run, --db selects another record"
            ) from error

    def _rows(self, statement: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        return self._checked(lambda: self._db().execute(statement, values).fetchall())

    def _row(self, statement: str, values: Sequence[Any]) -> sqlite3.Row:
        return self._rows(statement, values)[0]

    def _entries(self, rows: Sequence[sqlite3.Row]) -> list[Run]:
        marks = ", ".join("?" * len(rows))
        tags: dict[str, list[str]] = {}
        for row in self._rows(f"SELECT * FROM tags WHERE run IN ({marks}) ORDER BY tag", [row["id"] for row in rows]):
            tags.setdefault(row["run"], []).append(row["tag"])
        with self.decoding("a run"):
            return [Run.of(row, tuple(tags.get(row["id"], ()))) for row in rows]

    def chain(self, name: str) -> list[Run]:
        """A run and the runs that it continues, oldest first; an answer after its reasoning."""
        chain = [self.run(name)]
        while (before := chain[0].continues) is not None and before not in {run.id for run in chain}:
            chain.insert(0, self.run(before))
        return chain

    def _complete_killed_runs(self) -> None:
        """Update text and counts of runs without an end to their tokens, so that killed runs are listed and found."""
        behind = self._rows(
            "SELECT id FROM runs WHERE reason IS NULL AND tokens < (SELECT count(*) FROM tokens WHERE run = runs.id)",
            [],
        )
        for run in (row["id"] for row in behind):
            said = [row["text"] for row in self._rows("SELECT text FROM tokens WHERE run = ? ORDER BY position", [run])]
            counted = self._row("SELECT count(*), coalesce(sum(flipped), 0) FROM thoughts WHERE run = ?", [run])
            change = "UPDATE runs SET text = ?, tokens = ?, thoughts = ?, flips = ? WHERE id = ? AND reason IS NULL"
            try:
                self._write([(change, ["".join(said), len(said), *counted, run])], wait=0)
            except sqlite3.OperationalError as error:
                if schema.code_of(error) != schema.BUSY:
                    raise schema.as_quietstar_error(error, self.path) from error
                return  # another process is writing; the next one to open the record does this


def checked_tag(text: str) -> str:
    """A tag in its stored form, or an error that says what a tag is."""
    tag = columns.plain(text).strip()
    if not tag or len(tag) > 100 or not tag.isprintable():
        raise QuietStarError(f"a tag has 1 to 100 printable characters, got {text[:100]!r}")
    return tag
