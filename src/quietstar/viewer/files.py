"""The page's own files, and all of them as one script and one style sheet for a self-contained page.

The modules need no bundler: they use named imports without renaming, from the same folder, and no two define the same
name. So the script is the modules in order, without their import and export keywords.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|class|const)", re.MULTILINE)
_DEFINED = re.compile(r"^(?:async )?(?:function|class|const|let) (\w+)|^(?:const|let) \[(.*?)\]", re.MULTILINE)


@cache
def style() -> str:
    """The style sheet."""
    return (STATIC / "style.css").read_text(encoding="utf-8")


@cache
def script() -> str:
    """All modules as one, each after those it imports.

    Raises:
        ValueError: a module breaks these rules (a tag in it, another kind of import or export, a name defined twice).
    """
    order: list[str] = []
    _visit("main", order, [])
    parts = []
    owners: dict[str, str] = {}
    for name in order:
        text = _EXPORT.sub("", _IMPORT.sub("", _read(name)))
        if left := re.search(r"^(import|export)\b.*|</script|<!--", text, re.MULTILINE):
            raise ValueError(f"{name}.js: {left[0]!r} is not allowed in a self-contained page")
        for found in _DEFINED.finditer(text):
            for word in re.findall(r"\w+", found[1] or found[2]):
                if owners.setdefault(word, name) != name:
                    raise ValueError(f"{word} is defined by {owners[word]}.js and by {name}.js")
        parts.append(f"// {name}.js\n{text}")
    return "\n".join(parts)


def _read(name: str) -> str:
    return (STATIC / f"{name}.js").read_text(encoding="utf-8")


def _visit(name: str, order: list[str], above: list[str]) -> None:
    """Modules in the order in which they can run."""
    if name in above:
        raise ValueError(f"modules import each other in a circle: {' '.join([*above, name])}")
    if name in order:
        return
    for found in _IMPORT.finditer(_read(name)):
        _visit(found[2], order, [*above, name])
    order.append(name)
