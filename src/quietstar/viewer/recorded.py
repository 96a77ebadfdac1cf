"""A recorded run for the model that made it: its trace, its settings, and whether the model computes as the run did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quietstar.events import Trace
from quietstar.record import computed
from quietstar.record.store import Store

if TYPE_CHECKING:
    from torch import Tensor

    from quietstar.api import QuietStar
    from quietstar.inference.generation import GenerationSettings


def trace_made_by(model: QuietStar, store: Store, run: str) -> Trace:
    """The trace of a run.

    Raises:
        QuietStarError: no such run, or another model made it.
    """
    from quietstar.evals.thoughts import check_same

    trace = store.trace(run)
    check_same(model, trace, f"start quietstar view --model {trace.start.model}")
    return trace


def settings_of(trace: Trace) -> GenerationSettings:
    """The settings that a run was made with."""
    from quietstar.inference.generation import GenerationSettings

    known = GenerationSettings.__dataclass_fields__
    return GenerationSettings(**{name: value for name, value in trace.start.settings.items() if name in known})


def computed_alike(model: QuietStar, trace: Trace) -> bool:
    """Whether the model has the precision, device and library versions of the run, so that numbers can be compared."""
    from quietstar.evals.thoughts import here

    return not computed.different([here(model), computed.by(trace.start)])


def thoughts_tensor(thoughts: list[list[int]]) -> Tensor:
    """Thoughts of one length T as a tensor of token ids (n, T)."""
    import torch

    return torch.tensor(thoughts, dtype=torch.long).view(len(thoughts), -1)
