"""YAML of plain values only: maps, lists, texts, numbers, true and false.

What a file from a stranger could do harm or surprise with is refused before anything is built from it: tags, keys
given twice, and more than a person writes by hand, counted with every alias written out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from quietstar.errors import QuietStarError

LARGEST = 200_000  # bytes of a file
DEEPEST = 20  # maps and lists in one another
MOST = 10_000  # values, every alias written out


class NotPlain(QuietStarError):
    """The text is not YAML of plain values; says why and where."""


def load(path: Path) -> Any:
    """The value of a file, None where it is empty.

    Raises:
        OSError: it cannot be read.
        NotPlain: it is not UTF-8 YAML of plain values.
    """
    with path.open("rb") as file:
        raw = file.read(LARGEST + 1)
    if len(raw) > LARGEST:
        raise NotPlain(f"it is larger than {LARGEST} bytes")
    try:
        return read(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise NotPlain(f"byte {error.start} is not UTF-8") from error


def read(text: str) -> Any:
    """The value of a text, None where it is empty.

    Raises:
        NotPlain: it is not YAML of plain values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _count(node, {}) > MOST:
            raise NotPlain(f"it holds more than {MOST} values")
        return loader.construct_document(node)
    except NotPlain:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a whole number of more digits than Python reads
        raise NotPlain(" ".join(str(error).replace('in "<unicode string>", ', "at ").split())[:300]) from error


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node expands to; a node that contains itself has been refused before."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        parts = [one for pair in node.value for one in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """Without tags, dates and merge keys; refuses a key given twice; reads 1e-6 as the number it is."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in found if tag.rpartition(":")[2] in ("bool", "int", "float", "null")]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.open: list[str] = []  # anchors of the maps and lists around here, "" where there is none

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.open:
                raise NotPlain(f"the alias *{event.anchor} is inside the node it refers to{_at(event)}")
            return super().compose_node(parent, index)
        if event.tag not in (None, "!"):
            raise NotPlain(f"tags are not allowed ({event.tag[:60]}){_at(event)}")
        if len(self.open) >= DEEPEST:
            raise NotPlain(f"more than {DEEPEST} maps and lists in one another{_at(event)}")
        self.open.append(event.anchor or "")
        try:
            return super().compose_node(parent, index)
        finally:
            self.open.pop()

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise NotPlain(f"a key must be a single value{_at(key)}")
            value = self.construct_object(key)
            if value in seen:
                raise NotPlain(f"the key {str(value)[:60]!r} is given twice{_at(key)}")
            seen.add(value)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _at(where: Any) -> str:
    mark = where.start_mark
    return f" (line {mark.line + 1}, column {mark.column + 1})"
