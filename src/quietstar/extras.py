"""The one place that says how to install an optional part of this package."""

from __future__ import annotations


def install(extra: str) -> str:
    """What to type for an optional part: quietstar is installed from a clone of its repository."""
    return f'run pip install ".[{extra}]" in the clone of quietstar'
