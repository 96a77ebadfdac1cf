"""quietstar: see, train and test what a language model thinks before it speaks.

from quietstar import QuietStar
model = QuietStar.from_pretrained("default")
text, trace = model.generate("Why is the sky blue?")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from quietstar._version import __version__
from quietstar.errors import QuietStarError, UnsupportedModel

if TYPE_CHECKING:
    from quietstar.api import Generation, QuietStar
    from quietstar.generation import GenerationSettings
    from quietstar.objective import Losses, ObjectiveConfig
    from quietstar.resampling import Resampled
    from quietstar.scoring import Score
    from quietstar.scratchpad.store import Store
    from quietstar.scratchpad.trace import Trace

_LAZY = {
    "QuietStar": "api", "Generation": "api", "GenerationSettings": "generation", "Resampled": "resampling",
    "Losses": "objective", "ObjectiveConfig": "objective", "Score": "scoring",
    "Store": "scratchpad.store", "Trace": "scratchpad.trace",
}  # fmt: skip

__all__ = [
    "Generation", "GenerationSettings", "Losses", "ObjectiveConfig", "QuietStar", "QuietStarError", "Resampled",
    "Score", "Store", "Trace", "UnsupportedModel", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Load torch and transformers only when something that needs them is used, so that `--help` is instant."""
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"quietstar.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'quietstar' has no attribute {name!r}")
