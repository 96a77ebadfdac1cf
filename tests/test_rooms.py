"""The structure of the package: rooms know only rooms below them, and no module knows itself through others."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src" / "quietstar"

# From the ground up; a module may import from its own room and from those before it.
ROOMS = [
    "_version",
    "errors",
    "text",
    "arguments",
    "settings",
    "jsontext",
    "extras",
    "events",
    "documents",
    "engine",
    "inference",
    "loading",
    "prompts",
    "options",
    "api",
    "record",
    "tasks",
    "evals",
    "training",
    "bench",
    "viewer",
    "cli",
    "__main__",
    "__init__",
]


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name, the package itself as "__init__"."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


MODULES = modules()


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too; what is for type checkers only is left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quietstar":
            base = (node.module or "").split(".")[1:]
            for alias in node.names:
                inner = ".".join([*base, alias.name])
                found.add(inner if inner in MODULES else ".".join(base) or "__init__")
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


GRAPH = {name: imported(path) for name, path in MODULES.items()}


def test_every_room_has_its_place():
    assert {name.split(".")[0] for name in MODULES} == set(ROOMS)


def test_no_room_knows_one_above_it():
    against = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if other != "__init__" and ROOMS.index(other.split(".")[0]) > ROOMS.index(name.split(".")[0])
    ]
    assert not against


def test_no_module_knows_itself_through_others():
    graph = {
        name: {other for other in others if other != "__init__"} for name, others in GRAPH.items() if name != "__init__"
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_storage_is_unknown_below_it():
    """Events belong to no store: nothing that computes or loads imports the record."""
    below = ROOMS[: ROOMS.index("record")]
    assert not [
        name
        for name, others in GRAPH.items()
        if name.split(".")[0] in below and any(o.startswith("record") for o in others)
    ]
