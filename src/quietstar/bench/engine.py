"""What thinking costs: ratios against plain transformers, measured in one process on one machine.

Each pair is measured in turn (A B A B ...), so a machine whose speed drifts does not favour one side; the ratio is
taken pair by pair and reported as the median with the smallest and largest value. Peak memory and start-up time belong
to a whole process and are measured in fresh ones.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
import transformers
from torch import Tensor

from quietstar._version import __version__
from quietstar.api import QuietStar
from quietstar.engine.rows import ordinary
from quietstar.errors import QuietStarError
from quietstar.inference.resampling import resample_ids

MEMORY_LENGTHS = (512, 1024, 2048, 4096)


@dataclass
class Ratio:
    """A cost as a multiple of another: seconds of both (median), ratios pair by pair, and the most it should be."""

    what: str
    seconds: float
    against: str
    against_seconds: float
    ratio: float
    lowest: float
    highest: float
    limit: float


@dataclass
class Bench:
    """All figures of one run and what they were measured on."""

    machine: dict[str, Any]
    ratios: list[Ratio] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    memory_of: str = "score"
    memory_limit_mb: float = 0.0
    start: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while measuring; `report` has what was finished."""

    def __init__(self, report: Any) -> None:
        super().__init__()
        self.report = report


@contextmanager
def kept(report: object) -> Iterator[None]:
    """Ctrl-C inside carries the report that was filled until then."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(report) from error


def run(
    model: QuietStar,
    name: str,
    dtype: str,
    device: str = "auto",
    *,
    thought_length: int = 5,
    context: int = 512,
    repeats: int = 5,
    processes: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measure everything; `processes` adds peak memory and start-up, which start fresh processes.

    Args:
        name, dtype, device: how the fresh processes load the same model.
        say: called with what is being measured.
    """
    if repeats < 1:
        raise QuietStarError(f"repeats must be at least 1, got {repeats}")
    if context < 16:
        raise QuietStarError(f"context must be at least 16 tokens, got {context}")
    model.check_fits(context + 64, thought_length, "context")
    bench = Bench(machine_of(model, name))
    bench.memory_limit_mb = 2 * bench.machine["weights_mb"] + 500
    with kept(bench), torch.inference_mode():
        ids = sample_ids(model, context)
        for title, make in (
            ("generate", _generating),
            ("trigger never", _never),
            ("score", _scoring),
            ("resample", _resampling),
        ):
            say(f"measuring {title}")
            bench.ratios.append(pairs(*make(model, ids, thought_length), repeats))
        for length in MEMORY_LENGTHS if processes else ():
            if model.context_limit is None or length + thought_length + 2 <= model.context_limit:
                say(f"measuring memory at {length} tokens")
                bench.memory.append(probe(_MEMORY, name, dtype, device, length, thought_length))
        if processes:
            say("measuring start-up")
            bench.start = _start(name, dtype, device, repeats)
    return bench


def machine_of(model: QuietStar, name: str) -> dict[str, Any]:
    """What the figures were measured on."""
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    weights = sum(p.numel() * p.element_size() for p in model.decoder_lm.parameters())
    return {
        "model": name,
        "dtype": str(model.decoder_lm.dtype).removeprefix("torch."),
        "device": str(model.device),
        "device_name": torch.cuda.get_device_name() if model.device.type == "cuda" else capabilities.get("cpu_name"),
        "threads": torch.get_num_threads(),
        "weights_mb": round(weights / 1e6, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "quietstar": __version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def sample_ids(model: QuietStar, length: int) -> Tensor:
    """Token ids (1, length) spread over the vocabulary; the cost does not depend on which they are."""
    return (torch.arange(length, device=model.device) * 7919 + 101)[None] % model.vocabulary


def clock(work: Callable[[], object]) -> float:
    """Seconds of wall time that `work` takes, on the device too."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


Side = tuple[str, Callable[[], float]]


def pairs(one: Side, other: Side, limit: float, repeats: int) -> Ratio:
    """Both sides in turn after one warm-up each."""
    one[1](), other[1]()
    pairs = [(one[1](), other[1]()) for _ in range(repeats)]
    ratios = sorted(a / b for a, b in pairs)
    return Ratio(
        what=one[0],
        seconds=median(a for a, _ in pairs),
        against=other[0],
        against_seconds=median(b for _, b in pairs),
        ratio=median(ratios),
        lowest=ratios[0],
        highest=ratios[-1],
        limit=limit,
    )


def _per_token(generate: Callable[[int], object], few: int, many: int) -> Callable[[], float]:
    """Seconds a token, from two lengths, so that reading the prompt does not count."""

    def seconds() -> float:
        short = clock(lambda: generate(few))
        return (clock(lambda: generate(many)) - short) / (many - few)

    return seconds


def plain_generate(model: QuietStar, ids: Tensor) -> Callable[[int], object]:
    """Greedy `generate` of the base model as transformers has it."""

    def generate(count: int) -> object:
        with ordinary(model.decoder_lm) as base:
            return base.generate(  # type: ignore[operator]
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )

    return generate


def _generating(model: QuietStar, ids: Tensor, thought_length: int) -> tuple[Side, Side, float]:
    def think(count: int) -> object:
        return model.generate(ids, max_new_tokens=count, thought_length=thought_length, stop_ids=[], speculate=0)

    return (
        (f"one token with a thought of {thought_length}, one by one", _per_token(think, 4, 20)),
        ("one token of plain generate", _per_token(plain_generate(model, ids), 4, 36)),
        (thought_length + 3) * 1.15,
    )


def _never(model: QuietStar, ids: Tensor, thought_length: int) -> tuple[Side, Side, float]:
    def skip(count: int) -> object:
        return model.generate(ids, max_new_tokens=count, trigger="never", stop_ids=[], speculate=0)

    return (
        ("one token, thought skipped", _per_token(skip, 4, 36)),
        ("one token of plain generate", _per_token(plain_generate(model, ids), 4, 36)),
        1.15,
    )


def _scoring(model: QuietStar, ids: Tensor, thought_length: int) -> tuple[Side, Side, float]:
    many = thought_length + 3  # base pass, start marker, T tokens, end marker: as many positions a token

    def forward() -> float:
        with ordinary(model.decoder_lm) as base:
            return clock(lambda: base(ids.repeat(many, 1), use_cache=False))

    return (
        (f"score {ids.shape[1]} tokens", lambda: clock(lambda: model.score(ids, thought_length=thought_length))),
        (f"plain forward over {many} x {ids.shape[1]} tokens", forward),
        1.3,
    )


def _resampling(model: QuietStar, ids: Tensor, thought_length: int) -> tuple[Side, Side, float]:
    prefix, hidden = model.read(ids)
    tokens, position = ids[0].tolist(), ids.shape[1] - 1

    def resample(count: int) -> Side:
        def work() -> object:
            return resample_ids(
                model,
                tokens,
                position,
                count,
                thought_length=thought_length,
                prefix=prefix,
                hidden=hidden,
                show=1,
            )

        return f"{count} thought{'s' if count > 1 else ''} at one position, text already read", lambda: clock(work)

    return resample(100), resample(1), 4.0


_MEMORY = """
import json, sys
from quietstar import QuietStar
from quietstar.bench.engine import sample_ids
from quietstar.engine.memory import peak_bytes
name, dtype, device, length, thought = *sys.argv[1:4], int(sys.argv[4]), int(sys.argv[5])
model = QuietStar.from_pretrained(name, dtype=dtype, device=device)
loaded = peak_bytes(model.device)
model.score(sample_ids(model, length), thought_length=thought)
print(json.dumps({"tokens": length, "loaded_mb": loaded / 1e6, "peak_mb": peak_bytes(model.device) / 1e6}))
"""

_FIRST = """
import json, sys, time
from quietstar import QuietStar
model = QuietStar.from_pretrained(sys.argv[1], dtype=sys.argv[2], device=sys.argv[3])
for event in model.stream("Why is the sky blue?", max_new_tokens=1, thought_length=5):
    if type(event).__name__ == "TokenEvent":
        break
print(json.dumps({"seconds": time.time() - float(sys.argv[4])}))
"""


def _start(name: str, dtype: str, device: str, repeats: int) -> dict[str, float]:
    """Seconds from starting Python to the first token with its thought, cache warm; the end of Python is left out."""
    times = sorted([probe(_FIRST, name, dtype, device, time.time())["seconds"] for _ in range(repeats + 1)][1:])
    return {"seconds": median(times), "lowest": times[0], "highest": times[-1], "limit": 5.0}


def probe(code: str, *arguments: object) -> dict[str, float]:
    """Run `code` in a fresh process and read the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
        raise QuietStarError(f"a measuring process failed: {last}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found
