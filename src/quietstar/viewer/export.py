"""The page as one file: the same scripts and style sheet with the runs inside, no server and no network.

Its own Content-Security-Policy lets no script run but these, identified by their hashes, and lets nothing be fetched.
The runs are JSON in a data block, with every `<` written as an escape.
"""

from __future__ import annotations

import base64
import hashlib
import html
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quietstar._version import __version__
from quietstar.arguments import checked
from quietstar.record.columns import to_json
from quietstar.record.exchange import complete
from quietstar.record.store import Store
from quietstar.viewer import files, pages

if TYPE_CHECKING:
    from quietstar.events import Trace


@checked
def write(store: Store, path: str | Path, runs: Sequence[str]) -> int:
    """Write runs as one HTML file, or to standard output for "-"; returns how many. The file appears when complete.

    Raises:
        QuietStarError: no such run, a full disk, a place that cannot be written.
    """
    text = page(store, runs)
    with complete(path) as file:
        file.write(text.encode())
    return len(runs)


@checked
def page(store: Store, runs: Sequence[str]) -> str:
    """The HTML of a page over some runs."""
    data = to_json(_data(store, [store.find(run) for run in runs])).replace("<", "\\u003c")
    script, style = files.script(), files.style()
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; img-src data:; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>quietstar</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{style}</style>\n</head>\n<body>\n'
        f'<script type="application/json" id="quietstar-data">{data}</script>\n'
        f'<script type="module">{script}</script>\n</body>\n</html>\n'
    )


@checked
def notebook(trace: Trace) -> str:
    """A trace as a notebook shows it: the page of its run, in a frame that cannot touch the notebook."""
    with tempfile.TemporaryDirectory() as folder, Store.open(Path(folder) / "record.db") as store:
        whole = page(store, [store.add(trace)])
    return (
        f'<iframe srcdoc="{html.escape(whole)}" sandbox="allow-scripts" title="quietstar" '
        'style="width:100%;height:42rem;border:0"></iframe>'
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(store: Store, runs: Sequence[str]) -> dict[str, Any]:
    """Everything the page asks a server for."""
    inside = []
    listed: list[dict[str, Any]] = []
    for run in runs:
        whole = pages.run(store, run)
        whole["run"]["continued"] = [one for one in whole["run"]["continued"] if one in runs]
        if whole["run"]["continues"] not in runs:
            whole["run"]["continues"] = None
        positions = whole["thoughts"]["position"]
        inside.append(
            {
                "page": whole,
                "entry": pages.entry(store.run(run)),
                "statistics": pages.statistics(store, run),
                "thoughts": {position: pages.thought(store, run, position) for position in positions},
            }
        )
        listed += [one.to_dict() for one in store.thoughts(run=run, order="position", descending=False, limit=None)]
    facets = {
        "model": sorted({one["entry"]["model"] for one in inside}),
        "tag": sorted({tag for one in inside for tag in one["entry"]["tags"]}),
        "trigger": sorted({one["trigger"] for one in listed}),
        "control": sorted({one["control"] for one in listed}),
    }
    about = {
        "version": __version__,
        "record": "",
        "model": None,
        "facets": facets,
        "only": runs[0] if runs else None,
        "totals": {"runs": len(inside), "thoughts": len(listed)},
    }
    return {"about": about, "runs": inside, "list": listed}
