"""Paths as people write them, checked once: every file of the record, its imports and its exports goes through here."""

from __future__ import annotations

from pathlib import Path

from quietstar.errors import QuietStarError


def place(text: str | Path) -> Path:
    """A path with `~` expanded.

    Raises:
        QuietStarError: an empty path, a NUL character in it, or a home folder that does not exist.
    """
    if not str(text):
        raise QuietStarError("the name of a file must not be empty")
    if "\0" in str(text):
        raise QuietStarError(f"{str(text)[:200]!r} is not the name of a file: it contains a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise QuietStarError(f"{str(text)[:200]!r} names a home folder that does not exist; write it out") from None
