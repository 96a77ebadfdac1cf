"""Estimates how much memory work needs and how much there is, so that it is refused before it begins, not killed.

Estimates are upper bounds of the large parts (key/value states, logits of the vocabulary, what is kept of each thought)
and leave out what every run needs. Knows counts and bytes; knows nothing about what is computed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.engine.model import ThinkingModel

TOKENISING = 200  # bytes that one character needs while it is made into tokens (measured: 130 to 190)
CHOICE = 400  # bytes of one candidate for the next token with its text, as Python objects
_LOGITS = 24  # bytes for each logit of a row: raw, in fp32, as log-probabilities, mixed and from the thought alone
_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes this process can still take: of the machine, of its control group, of its own limit; None if unknown."""
    found = [limit for limit in (_of_machine(), _of_cgroup(), _of_limit()) if limit is not None]
    return min(found) if found else None


def _of_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # no Linux: what follows knows less
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def _of_cgroup() -> int | None:
    """What the control group of a container still allows (version 2, or 1)."""
    for limit, used, stat, cache in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
    ):
        try:
            most = (_CGROUP / limit).read_text().strip()
            if most == "max":
                return None
            words = dict(line.split()[:2] for line in (_CGROUP / stat).read_text().splitlines() if " " in line)
            return max(0, int(most) - int((_CGROUP / used).read_text()) + int(words.get(cache, 0)))
        except (OSError, ValueError):
            continue
    return None


def _of_limit() -> int | None:
    """What `ulimit -v` leaves."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft == resource.RLIM_INFINITY:
            return None
        return max(0, soft - int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        return None


def check(need: int, what: str, advice: str, have: int | None = None) -> None:
    """Refuse work that cannot fit.

    Args:
        need: bytes. what: the work, for the message. advice: what to change. have: bytes there are, if known already.

    Raises:
        QuietStarError: `need` is above what is available.
    """
    if need < 1 << 24:  # not worth a look
        return
    have = available() if have is None else have
    if have is not None and need > have:
        raise QuietStarError(f"{what} needs about {_size(need)} of memory, but {_size(have)} is available; {advice}")


def thinking(
    model: ThinkingModel, lengths: Sequence[int], rows: int, length: int, *, samples: int, advice: str, kept: int
) -> None:
    """Refuse thinking that cannot fit.

    Args:
        lengths: tokens of each sequence. rows: thoughts kept at the same time. length: T. samples: P, which run
            together at one place. kept: bytes kept of each row besides its hidden state.
    """
    import torch

    from quietstar.engine.families import text_config

    config = text_config(model.decoder_lm)
    width, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = _largest(config, "num_attention_heads") or 1
    states = _largest(config, "num_key_value_heads") or heads
    size = _largest(config, "head_dim") or width // heads
    item = model.decoder_lm.dtype.itemsize
    per_token = 2 * layers * states * size * item
    longest = max(lengths)
    text = len(lengths) * longest * (2 * per_token + 12 * width * item) + len(lengths) * longest * longest
    alive = max(samples, min(rows, model.budget.most_rows))
    thoughts = alive * ((length + 2) * per_token + heads * (longest + length) * 8 + 8 * width * item)
    logits = max(samples, min(rows, model.budget.logit_rows)) * model.vocabulary * _LOGITS
    have = None
    if model.device.type == "cuda":
        have = torch.cuda.mem_get_info(model.device)[0] + torch.cuda.memory_reserved(model.device)
        have -= torch.cuda.memory_allocated(model.device)
    need = text + thoughts + logits + rows * (width * item + kept + 24)
    what = f"{rows} thoughts of {length} tokens after {sum(lengths)} tokens of text"
    check(int(need), what, advice, have)


def _largest(config: Any, name: str) -> int:
    """A size in a model's configuration, the largest over its layers where they differ; 0 where it has none."""
    layers = getattr(config, "per_layer_config", None) or [config]
    return max(int(getattr(layer, name, None) or 0) for layer in layers)


def _size(count: int) -> str:
    for unit, power in (("EB", 60), ("PB", 50), ("TB", 40), ("GB", 30)):
        if count >= 1 << power:
            return f"{count / (1 << power):.3g} {unit}" if count < 1 << 70 else f"more than 1000 {unit}"
    return f"{count / (1 << 20):.0f} MB"


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process so far, in bytes: of the device on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # where there is one: getrusage may count the parent's peak
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text()) if status.exists() else None
    if found:
        return int(found[1]) * 1024
    import resource  # not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
