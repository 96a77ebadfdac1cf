"""What computed a run: precision, device and library versions, and which of them differ between runs.

Numbers computed in other ways differ by rounding, so this is shown wherever they are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quietstar.events import Start

By = dict[str, str]


def by(start: Start) -> By:
    """Names and values of what computed a run: dtype, device, quietstar, then each library; Python itself left out."""
    return {"dtype": start.dtype, "device": start.device, "quietstar": start.version} | {
        name: version for name, version in start.versions.items() if name not in ("python", "quietstar")
    }


def in_words(one: Mapping[str, str]) -> str:
    """As in "float32 on cpu, quietstar 0.1.0, torch 2.9.0"."""
    rest = [f"{name} {value}" for name, value in one.items() if name not in ("dtype", "device")]
    return ", ".join([f"{one.get('dtype', '?')} on {one.get('device', '?')}", *rest])


def different(runs: Sequence[Mapping[str, str]]) -> list[str]:
    """The names whose values are not the same in all of them, in order."""
    names = dict.fromkeys(name for one in runs for name in one)
    return [name for name in names if len({one.get(name) for one in runs}) > 1]
