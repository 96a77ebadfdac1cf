"""Folders that are replaced as a whole: a kill or a full disk leaves what was there or what is new, never half of each.

New files are written aside, in a folder that their writer holds locked. A folder that does not exist yet is then put in
place by one rename. In one that exists (it may be a mount, a link, or hold other people's files) the folder aside gets
a name that says "complete", and its entries are moved to their places; whoever finds a complete one finishes the moves.
The lock ends with the process that holds it, so that what a killed one left is known and removed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: leftovers of a kill stay, everything else is the same
    fcntl = None  # type: ignore[assignment]

_ASIDE = ".saving-"
_DONE = ".saved-"
_LEFT = re.compile(r"\.(.+\.)?saving-[0-9a-f]{8}")
_GONE = "replaced.json"  # in a complete folder: entries of the old save that the new one does not have


@contextlib.contextmanager
def replacing(target: Path, replaced: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield an empty folder to fill; when the block ends without error, its entries are those of `target`.

    Args:
        target: the folder to write, made with its parents where missing; entries of other names in it stay.
        replaced: names in it that go where the new ones lack them.

    Raises:
        OSError: it cannot be written. What was there is as it was.
    """
    target = Path(os.path.realpath(target))
    exists = target.is_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    place = target if exists else target.parent
    finish(target)
    clear(place)
    aside = place / f"{'' if exists else '.' + target.name[:80]}{_ASIDE}{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        with _held(aside, wait=False):
            yield aside
            if exists:
                gone = [name for name in replaced if (target / name).exists() and not (aside / name).exists()]
                (aside / _GONE).write_text(json.dumps(gone))
                done = aside.with_name(_DONE + aside.name.removeprefix(_ASIDE))
                with _held(target):
                    aside.rename(done)
                    _move(done, target)
            else:
                aside.rename(target)  # fails where somebody made it in the meantime and put something in
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def finish(target: Path) -> None:
    """Finish what a killed process had written in full but not yet put in place."""
    with contextlib.suppress(OSError):
        if any(target.glob(f"{_DONE}*")):
            with _held(target):
                for done in sorted(target.glob(f"{_DONE}*")):
                    _move(done, target)


def clear(place: Path) -> None:
    """Remove folders aside in `place` whose writer is gone."""
    for left in place.glob(".*saving-*"):
        if _LEFT.fullmatch(left.name) and left.is_dir() and not left.is_symlink() and not _alive(left):
            shutil.rmtree(left, ignore_errors=True)


def _move(done: Path, target: Path) -> None:
    listed = done / _GONE
    for name in json.loads(listed.read_text()) if listed.is_file() else ():
        _remove(target / name)
    for entry in sorted(done.iterdir()):
        if entry.name == _GONE:
            continue
        place = target / entry.name
        if place.is_dir() or entry.is_dir():
            _remove(place)
        entry.replace(place)
    shutil.rmtree(done)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold `folder` locked: no other writer enters, and nobody takes it for a leftover."""
    if fcntl is None:
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then `_alive` cannot tell either
            fcntl.flock(opened, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(opened)


def _alive(folder: Path) -> bool:
    """Whether a process holds `folder` locked, or that cannot be told."""
    if fcntl is None:
        return True
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(opened)
    return False
