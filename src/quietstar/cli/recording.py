"""How commands record: where, what happens where that fails, and how to see a run again."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.record.recorder import Recorder
    from quietstar.record.store import Store


def start(db: str | None, no_record: bool) -> Recorder | None:
    """A recorder for one run, or None.

    A record that was asked for by name and cannot be had is an error at once, before anything is computed. The usual
    one is kept beside the answer a person asked for: where it fails, a line says so and the answer comes all the same.
    """
    if db is not None and no_record:
        raise QuietStarError("give --db or --no-record, not both")
    if no_record:
        return None
    from quietstar.record import schema
    from quietstar.record.store import Store

    if db is None and schema.default_path() is None:
        return None
    try:
        store = Store.open(db)
        if store.writable:
            return store.recorder()
        problem = QuietStarError(f"the record {store.path} cannot be written")
    except QuietStarError as error:
        problem = error
    if db is not None:
        raise problem
    print(f"note: this run is not recorded: {problem}", file=sys.stderr, flush=True)
    return None


def finish(recorder: Recorder | None, db: str | None, model: str = "default") -> str:
    """Say what could not be recorded; the lines that tell how to see the run again, "" where it cannot be seen."""
    if recorder is None or not recorder.runs:
        return ""
    if recorder.problem is not None:
        print(f"note: this run is not fully recorded: {recorder.problem}", file=sys.stderr, flush=True)
        return ""
    run = recorder.runs[-1]
    page = command("view", run, db) + (f" --model {shlex.quote(model)}" if model != "default" else "")
    return f"see it again: {command('show', run, db)}\nin the browser: {page}"


def command(name: str, run: str, db: str | None) -> str:
    """A command on a run, as it is typed."""
    return f"quietstar {name} {run}" + (f" --db {shlex.quote(db)}" if db is not None else "")


def opened(db: str | None) -> Store:
    """The record that is there, for commands that read or change it."""
    from quietstar.record.store import Store

    return Store.open(None if db is None else Path(db), create=False)
