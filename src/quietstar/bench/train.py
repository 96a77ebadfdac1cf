"""What a training step costs: time against plain forward and backward over as many token positions, and peak memory.

Both sides are measured in turn in one process (see `bench`); peak memory belongs to a whole process and is measured on
fresh ones. All weights learn, in the model's own dtype; no optimizer, which costs the same in both.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from quietstar.api import QuietStar
from quietstar.bench.engine import Bench, Side, clock, kept, machine_of, pairs, probe, sample_ids
from quietstar.engine.rows import ordinary
from quietstar.errors import QuietStarError
from quietstar.training.objective import ObjectiveConfig
from quietstar.training.step import StepConfig, training_loss

MEMORY_LENGTHS = (256, 512, 1024)
LIMIT = 1.35  # times plain forward and backward
MEMORY_LIMIT_MB = 4000.0


def run(
    model: QuietStar,
    name: str,
    dtype: str,
    device: str = "auto",
    *,
    thought_length: int = 5,
    lookahead: int = 4,
    samples: int = 2,
    length: int = 256,
    repeats: int = 3,
    processes: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Bench:
    """Measure a step on one sequence with thoughts at every position, and peak memory by length.

    Args:
        name, dtype, device: how the fresh processes load the same model.
    """
    if repeats < 1:
        raise QuietStarError(f"repeats must be at least 1, got {repeats}")
    if length < lookahead + 2:
        raise QuietStarError(f"length must be at least lookahead + 2 = {lookahead + 2} tokens, got {length}")
    config = StepConfig(objective=ObjectiveConfig(lookahead=lookahead), thought_length=thought_length, samples=samples)
    bench = Bench(machine_of(model, name), memory_of="a training step", memory_limit_mb=MEMORY_LIMIT_MB)
    wake(model)
    say("measuring a training step")
    with kept(bench):
        bench.ratios.append(pairs(*step_and_plain(model, sample_ids(model, length), config), LIMIT, repeats))
        for tokens in MEMORY_LENGTHS if processes else ():
            if model.context_limit is None or tokens + thought_length + lookahead + 2 <= model.context_limit:
                say(f"measuring memory at {tokens} tokens")
                bench.memory.append(probe(_MEMORY, name, dtype, device, tokens, thought_length, lookahead, samples))
    return bench


def wake(model: QuietStar) -> None:
    """Make thoughts count: a head at its start has w = 0 and no reward, so the policy term would be skipped."""
    if model.head.untrained:
        with torch.no_grad():
            model.head.last.weight.fill_(1e-3)
    model.train()
    model.requires_grad_(True)


def step_and_plain(model: QuietStar, ids: Tensor, config: StepConfig) -> tuple[Side, Side]:
    """The two sides: a step with everything in it, and plain training over as many token positions."""
    length, own = ids.shape[1], config.thought_length + 1 + config.objective.lookahead
    positions = length + (length - 1) * config.samples * own
    mask = torch.ones_like(ids)
    few = 4  # sequences at once, so that the plain side fits in memory too

    def step() -> float:
        def work() -> None:
            training_loss(model, ids, mask, config)[0].backward()
            model.zero_grad()

        return clock(work)

    def plain() -> float:
        batches = max(1, round(positions / (few * length)))
        text = ids.repeat(few, 1)

        def work() -> None:
            with ordinary(model.decoder_lm) as base:
                for _ in range(batches):
                    base(input_ids=text, labels=text, use_cache=False).loss.backward()
            model.zero_grad()

        return clock(work) * positions / (batches * few * length)

    thoughts = f"T {config.thought_length}, A {config.objective.lookahead}, P {config.samples}"
    return (
        (f"training step, 1 x {length} tokens, {thoughts}", step),
        (f"plain forward + backward over {positions} token positions", plain),
    )


_MEMORY = r"""
import json, sys
import torch
from quietstar import QuietStar
from quietstar.bench.engine import sample_ids
from quietstar.engine.memory import peak_bytes
from quietstar.bench.train import wake
from quietstar.training.objective import ObjectiveConfig
from quietstar.training.step import StepConfig, training_loss
name, dtype, device = sys.argv[1:4]
length, thought, lookahead, samples = map(int, sys.argv[4:8])
model = QuietStar.from_pretrained(name, dtype=dtype, device=device)
loaded = peak_bytes(model.device)
wake(model)
ids = sample_ids(model, length)
config = StepConfig(objective=ObjectiveConfig(lookahead=lookahead), thought_length=thought, samples=samples)
training_loss(model, ids, torch.ones_like(ids), config)[0].backward()
print(json.dumps({"tokens": length, "loaded_mb": loaded / 1e6, "peak_mb": peak_bytes(model.device) / 1e6}))
"""
