"""Kinds of things that are chosen by name, and that other packages can add to through entry points.

Knows names and classes; knows nothing about what the classes do.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from quietstar.errors import QuietStarError

_Kind = TypeVar("_Kind")


class Registry(Generic[_Kind]):
    """Classes by their `name`: those of this package, and those in an entry point group.

    The name of an entry point is the `name` of the class it points to: lowercase letters and underscores. A name of
    this package cannot be taken over by another one.

    Args:
        base: the class that all kinds derive from. what: a word for it in messages. group: the entry point group.
    """

    def __init__(self, base: type[_Kind], what: str, group: str) -> None:
        self.base, self.what, self.group = base, what, group
        self.built_in: dict[str, type[_Kind]] = {}

    def add(self, kind: type[Any]) -> type[Any]:
        """Register a class of this package; a decorator."""
        self.built_in[kind.name] = kind
        return kind

    def names(self) -> list[str]:
        """All names, those of this package first."""
        return [*self.built_in, *self.extensions()]

    def extensions(self) -> list[str]:
        """The names that other packages add."""
        return sorted({entry.name for entry in entry_points(group=self.group)} - set(self.built_in))

    def find(self, name: str) -> type[_Kind] | None:
        """The class of this name, None where there is none.

        Raises:
            QuietStarError: another package promises the class, but it cannot be imported or is not of the right kind.
        """
        if name in self.built_in:
            return self.built_in[name]
        for entry in entry_points(group=self.group, name=name):
            try:
                kind = entry.load()
            except Exception as error:
                raise QuietStarError(f"{self.what} {name!r} ({entry.value}) could not be loaded: {error}") from error
            if not (isinstance(kind, type) and issubclass(kind, self.base)) or getattr(kind, "name", None) != name:
                raise QuietStarError(
                    f"{self.what} {name!r} ({entry.value}) must be a subclass of {self.base.__module__}."
                    f"{self.base.__name__} with name = {name!r}"
                )
            return kind
        return None
