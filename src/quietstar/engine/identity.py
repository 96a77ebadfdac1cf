"""Which weights these are: hashes of the base, of markers and head, and of adapters, for files and records.

A hash covers every bit of every parameter and persistent buffer, as fp32 values: the same weights have the same hash
on any device and in any precision that holds them exactly. A tensor is read as a table of 4096 columns, and the sums of
its rows and of its columns (whole numbers, modulo 2^32) are hashed: one changed value always changes two sums, and the
reading runs at the memory bandwidth of the tensor's device. Knows tensors and their names; knows nothing about files.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Mapping

import numpy as np
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from quietstar._version import __version__
from quietstar.engine import adapters
from quietstar.engine.model import ThinkingModel
from quietstar.events import Identity

VERSION = "2-"  # begins each hash; those of version 1 have no such beginning
_COLUMNS = 4096
_VALUES = 256  # of each tensor, in a hash of version 1


def fingerprint(base: PreTrainedModel, rounded: bool = False) -> str:
    """A hash of all weights of the base; adapters left out. `rounded` takes them in bf16, whatever they are in."""
    return combine(digests(base, rounded))


def digests(base: PreTrainedModel, rounded: bool = False) -> dict[str, bytes]:
    """A digest of each parameter and persistent buffer of the base by name; adapters left out."""
    seen: dict[int, bytes] = {}  # tied weights are read once
    found = {}
    for name, tensor in adapters.plain_tensors(base).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = digest(tensor, rounded)
        found[name] = seen[id(tensor)]
    return found


def combine(parts: Mapping[str, bytes]) -> str:
    """One short hash of named digests."""
    whole = hashlib.sha256()
    for name in sorted(parts):
        whole.update(name.encode() + b"\0" + parts[name])
    return VERSION + whole.hexdigest()[:32]


@torch.no_grad()
def digest(tensor: Tensor, rounded: bool = False) -> bytes:
    """The digest of one tensor's shape and values."""
    tensor = tensor.detach()
    whole = hashlib.sha256(str(tuple(tensor.shape)).encode())
    if tensor.device.type == "meta":
        return whole.digest()
    flat = tensor.contiguous().reshape(-1)
    step = _COLUMNS * 2048  # so that a conversion never doubles the memory
    for start in range(0, len(flat), step):
        part = flat[start : start + step]
        if rounded and part.dtype.is_floating_point:
            part = part.to(torch.bfloat16)
        for sums in _sums(part):
            whole.update(sums.tobytes())
    return whole.digest()


def _sums(part: Tensor) -> Iterable[np.ndarray]:
    """Sums of the columns and of the rows of a flat tensor's bits as fp32, modulo 2^32; the remainder as it is."""
    shift = 0
    if part.dtype == torch.bfloat16:  # the upper half of an fp32 value
        words, shift = part.view(torch.int16), 16
    elif part.dtype == torch.float16:
        words = part.float().view(torch.int32)
    elif part.dtype in (torch.float32, torch.int32) or part.element_size() == 8:
        words = part.view(torch.int32)
    else:  # packed or short whole numbers
        words = part.view(torch.uint8).to(torch.int32)
    full = len(words) // _COLUMNS * _COLUMNS
    table = words[:full].view(-1, _COLUMNS)
    for sums in (table.sum(0, dtype=words.dtype), table.sum(1, dtype=words.dtype), words[full:]):
        yield sums.cpu().numpy().astype(np.int64).astype(np.uint32) << np.uint32(shift)


def identify(model: ThinkingModel, version: int = 2) -> Identity:
    """The hashes and revisions that identify this model in the record, as it is now (not as it was loaded)."""
    parts = ["markers"] if model.head.untrained else ["markers", "head"]  # its random layers are multiplied by zero
    trained = {f"{part}.{key}": value for part in parts for key, value in getattr(model, part).named_parameters()}
    base, inner = model.base, model.decoder_lm
    adapted = base is not inner
    active = list(base.base_model.active_adapters) if adapted else []
    if version == 1:
        lora = {key: value for key, value in base.named_parameters() if "lora_" in key} if adapted else {}
        return Identity(
            revision=model.revision,
            base_revision=model.config.base_revision,
            base_hash=fingerprint_1(inner),
            head_hash=_digest_1(trained, torch.float32),
            adapter="+".join(active),
            adapter_hash=_digest_1(lora, torch.float32) if lora else "",
        )
    own = {name: digest(value) for name, value in adapters.own_tensors(base, inner).items()}
    if own:
        own["active"] = repr((active, [getattr(m, "_disable_adapters", None) for m in inner.modules()])).encode()
    return Identity(
        revision=model.revision,
        base_revision=model.config.base_revision,
        base_hash=fingerprint(inner),
        head_hash=combine({name: digest(value) for name, value in trained.items()}),
        adapter="+".join(active),
        adapter_hash=combine(own) if own else "",
    )


def versions() -> dict[str, str]:
    """Versions of the software that computes a run."""
    return {
        "quietstar": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }


# -- version 1: folders and records written before ---------------------------------------------------------------------


def fingerprint_1(base: PreTrainedModel) -> str:
    """The hash of version 1: up to 256 evenly spaced values of each weight of the base, in bf16."""
    parts = {
        key.replace(".base_layer", ""): value
        for key, value in base.named_parameters()
        if value.is_floating_point() and "lora_" not in key
    }
    return _digest_1(parts, torch.bfloat16)


def _digest_1(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> str:
    whole = hashlib.sha256()
    for key, tensor in sorted(tensors.items(), key=lambda pair: pair[0]):
        flat = tensor.detach().reshape(-1)
        values = flat[:: max(1, len(flat) // _VALUES)].to("cpu", torch.float32).to(dtype).contiguous()
        whole.update(key.encode() + values.view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:16]
