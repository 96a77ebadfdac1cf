"""The errors that docs/errors.md quotes are those that the program prints."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def strings() -> str:
    """All text of the source, pieces of one string joined; `…` where a value is filled in."""
    found = []
    for path in sorted((ROOT / "src" / "quietstar").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
    return "\n".join(found)


SAID = strings()
QUOTED = re.findall(r"^> (.+)$", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_source(message):
    parts = [part.strip(" ()") for part in message.split("…")]
    parts = [part for part in parts if len(part) > 1]
    assert parts
    for part in parts:
        assert part in SAID, f"no message of the source says {part!r}"


def test_there_are_ten():
    assert len(re.findall(r"^## \d+\.", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)) == 10
