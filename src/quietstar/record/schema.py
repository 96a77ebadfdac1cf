"""The file of the record: its tables, its versions, and opening it safely.

One SQLite file of plain columns, meant to be read by pandas, DuckDB and Datasette as it is (docs/record.md). Lists are
JSON text. `application_id` marks a file as a record of quietstar, `user_version` is its version; an older file is
upgraded when it is opened, a newer or foreign one is refused and not changed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from quietstar.arguments import usable
from quietstar.errors import QuietStarError

APPLICATION_ID = 0x51535452  # "QSTR"
BUSY_SECONDS = 5.0  # how long a writer waits for another one
_HEADER = b"SQLite format 3\0"

_FIRST = """
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    id TEXT NOT NULL UNIQUE,          -- short, stable name
    started TEXT NOT NULL,            -- UTC, ISO 8601
    reason TEXT,                      -- why it ended; NULL while running and after a kill
    seconds REAL,                     -- from the first step to the end
    drafted INTEGER,                  -- tokens drafted ahead of their thoughts
    accepted INTEGER,                 -- how many of them became the emitted token
    model TEXT NOT NULL,              -- name or folder
    revision TEXT,                    -- commit of the model on its hub
    base TEXT NOT NULL,               -- the base model's name
    base_revision TEXT,               -- its commit
    base_hash TEXT NOT NULL,          -- fingerprint of its weights
    head_hash TEXT NOT NULL,          -- of markers and mixing head
    adapter TEXT NOT NULL,            -- name of the active adapter, '' without one
    adapter_hash TEXT NOT NULL,       -- of its weights
    untrained INTEGER NOT NULL,       -- 1 where thoughts could not change the answer
    dtype TEXT NOT NULL,              -- precision
    device TEXT NOT NULL,             -- cpu, cuda:0, ...
    version TEXT NOT NULL,            -- of quietstar
    versions TEXT NOT NULL,           -- JSON object: library -> version
    seed INTEGER,                     -- from the settings, as the six columns that follow
    trigger TEXT,                     -- when it thought
    control TEXT,                     -- what stood in the thoughts' place
    thought_length INTEGER,           -- tokens of a thought
    samples INTEGER,                  -- thoughts at a position
    temperature REAL,                 -- of the answer
    mixing_weight REAL,               -- fixed w, NULL for the head's own
    settings TEXT NOT NULL,           -- JSON object: all settings
    phase TEXT NOT NULL,              -- answer, or reason
    chat INTEGER NOT NULL,            -- 1 where the prompt went through a chat template
    continues TEXT REFERENCES runs(id) ON DELETE SET NULL,  -- the run whose text this one goes on from
    batch TEXT,                       -- id of the first run of the batch, NULL for one alone
    sequence INTEGER NOT NULL,        -- place in the batch
    batch_size INTEGER NOT NULL,      -- runs in the batch
    schema INTEGER NOT NULL,          -- version of the event frames
    tokens INTEGER NOT NULL DEFAULT 0,    -- how many it emitted
    thoughts INTEGER NOT NULL DEFAULT 0,  -- positions where it thought
    flips INTEGER NOT NULL DEFAULT 0,     -- thoughts that changed the likeliest token
    note TEXT NOT NULL DEFAULT '',    -- yours
    asked TEXT NOT NULL,              -- what was asked, without template; '' where ids were given
    prompt TEXT NOT NULL,             -- what the model read
    text TEXT NOT NULL DEFAULT '',    -- what it said
    prompt_ids TEXT NOT NULL          -- JSON list of token ids
);
CREATE INDEX runs_started ON runs(started, number);
CREATE INDEX runs_batch ON runs(batch);
CREATE INDEX runs_continues ON runs(continues);
CREATE INDEX runs_unfinished ON runs(number) WHERE reason IS NULL;

CREATE TABLE tags (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    tag TEXT NOT NULL,                -- yours
    PRIMARY KEY (run, tag)
) WITHOUT ROWID;
CREATE INDEX tags_tag ON tags(tag, run);

CREATE TABLE tokens (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- counted from the prompt's first token
    token INTEGER NOT NULL,           -- token id
    text TEXT NOT NULL,               -- what it completes, '' inside a character
    logprob REAL,                     -- nats, under the mixed prediction
    thought INTEGER NOT NULL,         -- 1 where a thought came before it
    PRIMARY KEY (run, position)
) WITHOUT ROWID;

CREATE TABLE thoughts (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- index of the last visible token; the thought helps to predict the next
    context TEXT NOT NULL,            -- the end of the text before it
    text TEXT NOT NULL,               -- the first sample's text
    trigger TEXT NOT NULL,            -- the rules that asked for it
    control TEXT NOT NULL,            -- what stood in its place, 'own' for nothing
    weight REAL,                      -- mixing weight w, mean over samples
    kl REAL,                          -- KL(mixed || base), nats
    entropy REAL,                     -- of the base prediction, nats
    flipped INTEGER NOT NULL,         -- 1 where it changed the likeliest token
    base_token TEXT,                  -- likeliest next token without the thought
    mixed_token TEXT,                 -- with it
    only_token TEXT,                  -- from it alone
    base_top TEXT NOT NULL,           -- JSON list of [token id, text, probability], likeliest first
    mixed_top TEXT NOT NULL,          -- the same with the thought
    only_top TEXT NOT NULL,           -- the same from the thought alone
    UNIQUE (run, position)
);
CREATE INDEX thoughts_kl ON thoughts(kl);
CREATE INDEX thoughts_weight ON thoughts(weight);
CREATE INDEX thoughts_entropy ON thoughts(entropy);

CREATE TABLE samples (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL,                -- id of the run
    position INTEGER NOT NULL,        -- the thought's
    sample INTEGER NOT NULL,          -- 0, 1, ...
    text TEXT NOT NULL,               -- the whole thought
    weight REAL,                      -- its own w
    tokens TEXT NOT NULL,             -- JSON list of token ids
    pieces TEXT NOT NULL,             -- JSON list of the tokens' texts
    logprobs TEXT NOT NULL,           -- JSON list, nats each token had when thought
    UNIQUE (run, position, sample),
    FOREIGN KEY (run, position) REFERENCES thoughts(run, position) ON DELETE CASCADE
);

CREATE TABLE interventions (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- where the thought was changed
    made TEXT NOT NULL,               -- UTC, ISO 8601
    kind TEXT NOT NULL,               -- edited, resampled, or the name of a control
    text TEXT NOT NULL,               -- the thought that was put there
    tokens TEXT NOT NULL,             -- JSON list of its token ids
    pieces TEXT NOT NULL,             -- JSON list of the tokens' texts
    logprobs TEXT NOT NULL,           -- JSON list, nats
    weight REAL,                      -- mixing weight w
    kl REAL,                          -- KL(mixed || base), nats
    flipped INTEGER NOT NULL,         -- 1 where the likeliest token differs from the base's
    base_top TEXT NOT NULL,           -- likeliest next tokens without it, JSON as in thoughts
    mixed_top TEXT NOT NULL,          -- with it
    only_top TEXT NOT NULL,           -- from it alone
    continuation TEXT,                -- the text that followed, NULL where none was asked for
    settings TEXT NOT NULL            -- JSON object: how it was made
);
CREATE INDEX interventions_run ON interventions(run, position);

CREATE VIRTUAL TABLE runs_search USING fts5(prompt, text, content="runs", content_rowid="number");
CREATE VIRTUAL TABLE samples_search USING fts5(text, content="samples", content_rowid="number");

CREATE TRIGGER runs_added AFTER INSERT ON runs BEGIN
    INSERT INTO runs_search(rowid, prompt, text) VALUES (new.number, new.prompt, new.text);
END;
CREATE TRIGGER runs_removed AFTER DELETE ON runs BEGIN
    INSERT INTO runs_search(runs_search, rowid, prompt, text) VALUES ('delete', old.number, old.prompt, old.text);
END;
CREATE TRIGGER runs_changed AFTER UPDATE OF prompt, text ON runs BEGIN
    INSERT INTO runs_search(runs_search, rowid, prompt, text) VALUES ('delete', old.number, old.prompt, old.text);
    INSERT INTO runs_search(rowid, prompt, text) VALUES (new.number, new.prompt, new.text);
END;
CREATE TRIGGER samples_added AFTER INSERT ON samples BEGIN
    INSERT INTO samples_search(rowid, text) VALUES (new.number, new.text);
END;
CREATE TRIGGER samples_removed AFTER DELETE ON samples BEGIN
    INSERT INTO samples_search(samples_search, rowid, text) VALUES ('delete', old.number, old.text);
END;

CREATE VIEW thought_list AS
SELECT t.run, r.started, r.model, r.base, r.asked, t.position, t.context, t.text AS thought,
       t.trigger, t.control, t.weight, t.kl, t.entropy, t.flipped, t.base_token, t.mixed_token, t.only_token
FROM thoughts t JOIN runs r ON r.id = t.run;
"""

_MEASURES = """
ALTER TABLE thoughts ADD COLUMN base_logprob REAL;   -- of the token that was said, nats, without the thought
ALTER TABLE thoughts ADD COLUMN mixed_logprob REAL;  -- with it
ALTER TABLE thoughts ADD COLUMN only_logprob REAL;   -- from it alone
CREATE INDEX thoughts_gain ON thoughts(mixed_logprob - base_logprob);
CREATE INDEX thoughts_surprise ON thoughts(-mixed_logprob);

CREATE TABLE measures (
    run TEXT NOT NULL,                -- id of the run
    position INTEGER NOT NULL,        -- the thought's
    name TEXT NOT NULL,               -- what was measured, see quietstar.evals.statistics
    value REAL,                       -- NULL where it has no value
    PRIMARY KEY (run, position, name),
    FOREIGN KEY (run, position) REFERENCES thoughts(run, position) ON DELETE CASCADE
) WITHOUT ROWID;

DROP VIEW thought_list;
CREATE VIEW thought_list AS
SELECT t.run, r.started, r.model, r.base, r.asked, t.position, t.context, t.text AS thought,
       t.trigger, t.control, t.weight, t.kl, t.entropy, t.flipped, t.base_token, t.mixed_token, t.only_token,
       t.mixed_logprob - t.base_logprob AS gain, -t.mixed_logprob AS surprise
FROM thoughts t JOIN runs r ON r.id = t.run;
"""

_NOISE = """
ALTER TABLE runs ADD COLUMN noise_kl REAL;       -- largest change of KL(mixed || base) by rounding alone, nats
ALTER TABLE runs ADD COLUMN noise_logprob REAL;  -- of a log-probability, nats
ALTER TABLE runs ADD COLUMN noise_weight REAL;   -- of the mixing weight w
ALTER TABLE runs ADD COLUMN noise_places INTEGER;  -- places read twice to find out; NULL where nobody did
"""

# Accents are folded in every script's composed letters, several on one letter included (remove_diacritics 2).
_SEARCH = """
DROP TABLE runs_search;
DROP TABLE samples_search;
CREATE VIRTUAL TABLE runs_search USING fts5(
    prompt, text, content="runs", content_rowid="number", tokenize="unicode61 remove_diacritics 2");
CREATE VIRTUAL TABLE samples_search USING fts5(
    text, content="samples", content_rowid="number", tokenize="unicode61 remove_diacritics 2");
INSERT INTO runs_search(runs_search) VALUES ('rebuild');
INSERT INTO samples_search(samples_search) VALUES ('rebuild');
"""

_GAIN = """
ALTER TABLE runs ADD COLUMN noise_gain REAL;     -- of a gain, nats
"""

# One script per version: the script at index v upgrades a file from version v to v + 1. Add, never change: files of
# every release exist (tests/test_schema.py keeps one of each).
MIGRATIONS: list[str] = [_FIRST, _MEASURES, _NOISE, _SEARCH, _GAIN]

TABLES = ("runs", "tags", "tokens", "thoughts", "samples", "interventions", "measures")


def default_path() -> Path | None:
    """Where runs are recorded: $QUIETSTAR_DB, or record.db in the user's data folder; None where that is "off"."""
    import platformdirs

    asked = os.environ.get("QUIETSTAR_DB", "")
    if asked.strip().lower() == "off":
        return None
    return usable(asked, "QUIETSTAR_DB") if asked else Path(platformdirs.user_data_dir("quietstar")) / "record.db"


def prepare(path: Path, create: bool) -> bool:
    """Make sure that `path` is a record of this version: create it, or upgrade it. True where it can be written.

    A file that cannot be written is only looked at; see `connect`.

    Raises:
        QuietStarError: no such file (unless `create`), no place for one, a foreign, damaged, newer or locked file.
    """
    try:
        if not path.exists():
            if not create:
                raise QuietStarError(
                    f"there is no record at {path}; `quietstar think` creates one, --db selects another"
                )
            _make_room(path)
        elif path.is_dir():
            raise QuietStarError(f"{path} is a folder, not a record; give a file, as in --db {path / 'record.db'}")
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
    except OSError as error:
        raise QuietStarError(f"cannot read the record {path}: {error.strerror or error}") from error
    if header and header != _HEADER:
        raise QuietStarError(f"{path} is not a record of quietstar (it is not a SQLite file); select another with --db")
    writable = os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)
    try:
        with closing(connect(path, writable)) as db:
            version = _version(db, path)
            if version < len(MIGRATIONS):
                if not writable:
                    raise QuietStarError(
                        f"the record {path} has an older version and cannot be upgraded: it is not writable"
                    )
                _use_wal(db)
                _upgrade(db, path)
    except TROUBLE as error:
        raise as_quietstar_error(error, path) from error
    return writable


def connect(path: Path, writable: bool = True) -> sqlite3.Connection:
    """A connection with this file's rules: transactions are begun by hand, foreign keys hold, deleted text is erased.

    A file that cannot be written is read in place. Where SQLite cannot do that (a file with a write-ahead log in
    a folder that cannot be written has no place for the index of the log), a copy of it in memory is read.
    """
    try:
        db = _connect(path.resolve().as_uri() + ("?mode=rw" if writable else "?mode=ro"))
        if not writable:
            db.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.OperationalError as error:
        if writable or code_of(error) not in (CANTOPEN, READONLY):
            raise
        db = _copied(path)
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA foreign_keys = ON")
        if writable:
            db.execute("PRAGMA synchronous = NORMAL")  # with WAL: a killed process loses nothing that was committed
            db.execute("PRAGMA secure_delete = ON")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _connect(uri: str) -> sqlite3.Connection:
    """A connection that any thread may close and one thread uses."""
    return sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _copied(path: Path) -> sqlite3.Connection:
    """The file, and its write-ahead log if there is one, as a database in memory."""
    memory = _connect("file::memory:")
    with tempfile.TemporaryDirectory(prefix="quietstar-") as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        log = path.with_name(path.name + "-wal")
        if log.exists():
            shutil.copyfile(log, copy.with_name(copy.name + "-wal"))
        with closing(_connect(copy.as_uri())) as db:
            db.backup(memory)
    return memory


# SQLite's primary result codes (sqlite.org/rescode.html) and the words of their messages: all that Python 3.10 gives.
BUSY, LOCKED, PERM, READONLY, CORRUPT, FULL, CANTOPEN, CONSTRAINT, NOTADB = 5, 6, 3, 8, 11, 13, 14, 19, 26
_WORDS = {
    "database is locked": BUSY,
    "table is locked": LOCKED,
    "readonly database": READONLY,
    "malformed": CORRUPT,
    "disk is full": FULL,
    "unable to open": CANTOPEN,
    "constraint failed": CONSTRAINT,
    "not a database": NOTADB,
}


def code_of(error: sqlite3.Error) -> int:
    """The primary result code of an error, 0 where it is unknown."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    return next((code for words, code in _WORDS.items() if words in str(error)), 0)


_ANY_TYPE: frozenset[type] = frozenset({int, float, str, bytes, type(None)})  # what SQLite gives
_DECLARED: dict[str, frozenset[type]] = {
    "INTEGER": frozenset({int}),
    "REAL": frozenset({float, int}),
    "TEXT": frozenset({str}),
}


class ColumnTypes:
    """A row factory that refuses values of types which the columns of the record never hold.

    SQLite stores any type in any column, so a damaged byte can turn a number into a text. Columns are identified by
    name; a name that two tables use may have the types of both. A result has few distinct combinations of types, so
    each is checked once, and a row costs one look-up.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self.path = path
        self._allowed: dict[str, frozenset[type]] = {}
        self._description: object = None  # of the cursor that the last row came from
        self._passed: set[tuple[type, ...]] = set()  # types of rows of that description that were found right
        for table in TABLES:
            for row in db.execute(f"PRAGMA table_info({table})"):
                _, name, declared, not_null, _, key = tuple(row)
                types = _DECLARED.get(declared, _ANY_TYPE)
                if not (not_null or key):
                    types = types | {type(None)}
                self._allowed[name] = self._allowed.get(name, frozenset()) | types

    def __call__(self, cursor: sqlite3.Cursor, values: tuple[object, ...]) -> sqlite3.Row:
        """The row, after a look at the types of its values."""
        if cursor.description is not self._description:
            self._description, self._passed = cursor.description, set()
        types = tuple(map(type, values))
        if types not in self._passed:
            self._check(cursor.description, types)
            self._passed.add(types)
        return sqlite3.Row(cursor, values)

    def _check(self, description: Sequence[Sequence[Any]], types: tuple[type, ...]) -> None:
        for (name, *_), found in zip(description, types, strict=True):
            if found not in self._allowed.get(name, _ANY_TYPE):
                raise QuietStarError(
                    f"the record {self.path} is damaged ({name} holds a {found.__name__}); sqlite3's .recover may "
                    "save its rows, --db selects another record"
                )


# What SQLite raises; where the file is damaged, even its message may not be UTF-8.
TROUBLE = (sqlite3.Error, UnicodeDecodeError)


def as_quietstar_error(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> QuietStarError:
    """An error of SQLite as one line for a person."""
    if isinstance(error, UnicodeDecodeError):
        error = sqlite3.DatabaseError("it holds bytes that are not UTF-8, malformed")
    text, code = " ".join(str(error).split()), code_of(error)
    if code in (BUSY, LOCKED):
        return QuietStarError(f"the record {path} is locked by another program; try again when that has finished")
    if code == FULL:
        return QuietStarError(f"no space left on the disk of the record {path}; free some")
    if code in (CORRUPT, NOTADB):
        return QuietStarError(
            f"the record {path} is damaged ({text}); sqlite3's .recover may save its rows, --db selects another record"
        )
    if code in (READONLY, CANTOPEN, PERM):
        return QuietStarError(f"the record {path} cannot be written ({text})")
    if code == CONSTRAINT and "FOREIGN KEY" in text:
        return QuietStarError(f"the run was deleted while it was recorded in {path}")
    return QuietStarError(f"the record {path} cannot be used ({text})")


def _make_room(path: Path) -> None:
    """An empty file for a new record that nobody else can read, and its folder."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600, exist_ok=True)
    except OSError as error:
        raise QuietStarError(
            f"cannot create a record at {path}: {error.strerror or error}; "
            "select another place with --db or QUIETSTAR_DB"
        ) from error


def _version(db: sqlite3.Connection, path: Path) -> int:
    """The version of an open file, 0 for an empty one; refuses other programs' and newer files."""
    kind = db.execute("PRAGMA application_id").fetchone()[0]
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if kind != APPLICATION_ID:
        if kind or version or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise QuietStarError(
                f"{path} is another program's database, not a record of quietstar; select another with --db"
            )
        return 0
    if version > len(MIGRATIONS):
        raise QuietStarError(
            f"the record {path} was written by a newer quietstar (its version is {version}, this quietstar knows "
            f"{len(MIGRATIONS)}); upgrade quietstar, or select another with --db"
        )
    return version


def _use_wal(db: sqlite3.Connection) -> None:
    """Readers and a writer at the same time. The switch does not wait for other connections, so this does."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _upgrade(db: sqlite3.Connection, path: Path) -> None:
    """Run the missing migrations in one transaction; another process may have been faster."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for script in MIGRATIONS[_version(db, path) :]:
            for statement in _statements(script):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _statements(script: str) -> list[str]:
    """A script cut into statements; `executescript` would commit between them."""
    out, pending = [], ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            out.append(pending.strip())
            pending = ""
    if pending.strip():
        out.append(pending.strip())
    return [statement for statement in out if statement]
