"""quietstar: see, train and test what a language model thinks before it speaks.

from quietstar import QuietStar
model = QuietStar.from_pretrained("default")
text, trace = model.generate("Why is the sky blue?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quietstar import events
from quietstar._version import __version__
from quietstar.errors import QuietStarError, UnsupportedModel

if TYPE_CHECKING:
    from quietstar.api import Generation, QuietStar
    from quietstar.events import Trace
    from quietstar.inference.generation import GenerationSettings
    from quietstar.inference.resampling import Resampled
    from quietstar.inference.scoring import Score
    from quietstar.record.store import Store
    from quietstar.training.objective import Losses, ObjectiveConfig

_LAZY = {
    "QuietStar": "api",
    "Generation": "api",
    "GenerationSettings": "inference.generation",
    "Resampled": "inference.resampling",
    "Losses": "training.objective",
    "ObjectiveConfig": "training.objective",
    "Score": "inference.scoring",
    "Store": "record.store",
    "Trace": "events",
}

__all__ = [
    "Generation",
    "GenerationSettings",
    "Losses",
    "ObjectiveConfig",
    "QuietStar",
    "QuietStarError",
    "Resampled",
    "Score",
    "Store",
    "Trace",
    "UnsupportedModel",
    "__version__",
]


def _page(trace: events.Trace) -> str:
    """The page of a run, for notebooks."""
    from quietstar.viewer.export import notebook

    return notebook(trace)


events.show_in_notebooks(_page)


def __getattr__(name: str) -> Any:
    """Load torch and transformers only when something that needs them is used, so that `--help` is instant."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"quietstar.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'quietstar' has no attribute {name!r}")
