"""Which weights these are: short hashes of the base, of markers and head, and of an adapter, for files and records.

A hash reads at most 256 evenly spaced values of each tensor, so that it costs milliseconds whatever the model's size;
training moves all of them. Knows parameters and their names; knows nothing about files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from quietstar._version import __version__
from quietstar.model import ThinkingModel
from quietstar.scratchpad.trace import Identity

_VALUES = 256  # of each tensor


def fingerprint(base: PreTrainedModel) -> str:
    """A short hash of the base: up to 256 evenly spaced values of each of its weights, in bf16; adapters left out."""
    parts = {
        key.replace(".base_layer", ""): value
        for key, value in base.named_parameters()
        if value.is_floating_point() and "lora_" not in key
    }
    return _digest(parts.items(), torch.bfloat16)  # so that the same base in another precision is the same base


def identify(model: ThinkingModel) -> Identity:
    """What the record keeps to tell this model from every other, as it is now (not as it was loaded)."""
    parts = ["markers"] if model.head.untrained else ["markers", "head"]  # its random layers are multiplied by zero
    trained = [(f"{part}.{key}", value) for part in parts
               for key, value in getattr(model, part).named_parameters()]  # fmt: skip
    adapted = model.base is not model.decoder_lm
    lora = [(key, value) for key, value in model.base.named_parameters() if "lora_" in key] if adapted else []
    active = getattr(model.base, "active_adapter", "") if adapted else ""
    return Identity(
        revision=model.revision,
        base_revision=model.config.base_revision,
        base_hash=fingerprint(model.decoder_lm),
        head_hash=_digest(trained, torch.float32),
        adapter=active if isinstance(active, str) else "+".join(active),
        adapter_hash=_digest(lora, torch.float32) if lora else "",
    )


def versions() -> dict[str, str]:
    """Versions of what computed a run."""
    return {
        "quietstar": __version__, "python": platform.python_version(), "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }  # fmt: skip


def _digest(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    digest = hashlib.sha256()
    for key, tensor in sorted(tensors, key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _VALUES)].to("cpu", torch.float32).to(dtype).contiguous()
        digest.update(key.encode() + values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
