"""What generating with thoughts costs: plain generate, thinking one by one and speculatively, in one run.

The three are measured in turn, on the same texts, as seconds a token behind a text that is already read; ratios are
taken repeat by repeat and reported as the median with the smallest and largest. The share of drafted tokens accepted is
reported with them, because the speed of speculation depends on it. The texts are the base model's own sampled answers:
text of any length for any model, of four kinds, that is not one passage repeated (drafts would be accepted too often).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from quietstar.api import Generation, QuietStar
from quietstar.bench.engine import clock, kept, machine_of, plain_generate, probe
from quietstar.engine import budgets, sampling
from quietstar.engine.model import Place, chunks
from quietstar.errors import QuietStarError
from quietstar.events import Trace

OPENINGS = {
    "prose": "Tell me a long story about a fisherman and the sea.",
    "arithmetic": "Compute step by step: 17 * 23 + 45 * 12, then 96 / 4 - 7 * 3, and explain each step.",
    "code": "Write a Python module with a stack, a queue and a binary tree, with tests for each.",
    "dialogue": "Write a long dialogue between a doctor and a patient who has a cold.",
}
_LAST_ANSWER = 32  # tokens of the answer that the measured generation continues with
WEIGHTS = (0.05, 0.1, 0.25)  # fixed mixing weights at which the rules of acceptance are compared


@dataclass
class Spread:
    """Median, smallest and largest of the repeats."""

    middle: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass
class Cell:
    """One text at one context and thought length.

    Args:
        plain, one_by_one, speculative: seconds a token, medians.
        one_by_one_ratio, speculative_ratio: against plain generate, repeat by repeat.
        drafted, accepted: drafts of the speculative run. tokens: emitted.
        parted: the first place at which the speculative text or thought is not that of one by one, or None; below
            fp32, rounding decides between equally good tokens. gap: how far apart the two tokens were there, in nats
            under the prediction they were chosen from.
    """

    kind: str
    context: int
    thought_length: int
    plain: float
    one_by_one: float
    speculative: float
    one_by_one_ratio: Spread
    speculative_ratio: Spread
    tokens: int
    drafted: int
    accepted: int
    parted: int | None
    gap: float | None


@dataclass
class Coupling:
    """How often a drafted and an emitted token agree when sampled at temperature 1, by exact sums; means over places.

    Args:
        best: accepting with min(1, p / q), the most any rule can reach. raced: the rule in use, see `sampling.race`.
        inverse: one uniform number through both inverse CDFs, for comparison. greedy: share of equal argmaxes.
    """

    kind: str
    weight: float
    best: float
    raced: float
    inverse: float
    greedy: float


@dataclass
class Report:
    """All figures of one run and what they were measured on."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    row_cost: Spread | None = None
    throughput: dict[str, Any] = field(default_factory=dict)
    couplings: list[Coupling] = field(default_factory=list)
    memory: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self)


@torch.inference_mode()
def run(
    model: QuietStar,
    name: str,
    dtype: str,
    device: str = "auto",
    *,
    contexts: Sequence[int] = (128, 512, 2048),
    thought_lengths: Sequence[int] = (5, 8, 16),
    tokens: int = 48,
    repeats: int = 3,
    speculate: int | str = "auto",
    mixing_weight: float | None = None,
    temperature: float = 0.0,
    processes: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Report:
    """Measure everything.

    Args:
        contexts: tokens of text before; all of them at the middle thought length.
        thought_lengths: T; all of them at the middle context.
        tokens: emitted tokens of each measurement. repeats: measurements of each, after one warm-up of all.
        speculate, mixing_weight, temperature: as in `GenerationSettings`; plain generate is always greedy.
        processes: measure peak memory too, in fresh processes that load `name` with `dtype` on `device`.
        say: called with what is being measured.
    """
    for label, values in (("contexts", contexts), ("thought lengths", thought_lengths)):
        if not values:
            raise QuietStarError(f"give at least one of the {label}")
    if min(contexts) < 64:
        raise QuietStarError(f"contexts must be at least 64 tokens, got {min(contexts)}")
    if repeats < 1:
        raise QuietStarError(f"repeats must be at least 1, got {repeats}")
    if tokens < 2:
        raise QuietStarError(f"tokens must be at least 2, got {tokens}")
    model.check_fits(max(contexts) + tokens, max(thought_lengths), "largest context with the tokens to emit")
    middle_context, middle_length = (sorted(x)[len(x) // 2] for x in (contexts, thought_lengths))
    options = dict(speculate=speculate, mixing_weight=mixing_weight, temperature=temperature)
    report = Report(
        machine_of(model, name),
        options | {"tokens": tokens, "repeats": repeats, "context": middle_context, "thought_length": middle_length},
    )
    cells = sorted({(c, middle_length) for c in contexts} | {(middle_context, t) for t in thought_lengths})
    with kept(report):
        say(f"writing texts of {max(contexts)} tokens")
        texts = sample_texts(model, max(contexts))
        _Measurement(model, texts["prose"][-64:], 2, 4, options).repeat()  # warm-up
        for (kind, ids), (context, length) in itertools.product(texts.items(), cells):
            say(f"measuring {kind}, context {context}, thoughts of {length}")
            report.cells.append(_cell(model, kind, ids[-context:], length, tokens, repeats, options))
        say("measuring the cost of a row")
        report.row_cost = _row_cost(model, texts["prose"][-middle_context:], middle_length, repeats)
        say("measuring eight prompts at once")
        report.throughput = _throughput(model, texts, middle_length, tokens, repeats, options)
        say("comparing rules of acceptance")
        report.couplings = [c for kind, ids in texts.items() for c in _couplings(model, kind, ids[-middle_context:])]
        if processes:
            say("measuring memory")
            for label, drafts in (("one_by_one", "0"), ("speculative", str(speculate))):
                found = probe(_MEMORY, name, dtype, device, middle_context, middle_length, tokens, drafts)
                report.memory[label] = found["peak_mb"]
    return report


def sample_texts(model: QuietStar, length: int) -> dict[str, list[int]]:
    """A text of so many tokens for each opening, the same on every run: answers to it, the last one unfinished."""
    prompts = [
        model.encode(opening)[0][0] if model.tokenizer is not None else [n + 1, n + 2, n + 3]
        for n, opening in enumerate(OPENINGS.values())
    ]
    texts: dict[str, list[int]] = {kind: [] for kind in OPENINGS}
    for seed in itertools.count():
        last = min(map(len, texts.values())) >= length
        done = model.generate(
            prompts,
            max_new_tokens=_LAST_ANSWER if last else 256,
            trigger="never",
            seed=seed,
            temperature=0.8,
            top_p=0.95,
        )
        for kind, one in zip(OPENINGS, done, strict=True):
            texts[kind] += one.trace.ids
        if last:
            break
    return {kind: ids[-length:] for kind, ids in texts.items()}


class _Measurement:
    """One text measured three ways, seconds a token."""

    def __init__(self, model: QuietStar, ids: list[int], length: int, tokens: int, options: dict[str, Any]) -> None:
        self.model, self.ids, self.tokens = model, torch.tensor([ids], device=model.device), tokens
        self.options: dict[str, Any] = dict(max_new_tokens=tokens, thought_length=length, stop_ids=[]) | options
        self.done: dict[str, Generation] = {}

    def repeat(self) -> tuple[float, float, float]:
        """Plain, one by one, speculative, in turn."""
        plain = plain_generate(self.model, self.ids)
        first = clock(lambda: plain(1))
        base = (clock(lambda: plain(self.tokens)) - first) / (self.tokens - 1)
        return base, self._thinking("one_by_one", 0), self._thinking("speculative", self.options["speculate"])

    def _thinking(self, label: str, speculate: int | str) -> float:
        def work() -> None:
            self.done[label] = self.model.generate(self.ids, **(self.options | {"speculate": speculate}))

        read = clock(lambda: self.model.unembed(self.model.read(self.ids)[1][:, -1]))
        return (clock(work) - read) / self.tokens


def _cell(
    model: QuietStar, kind: str, ids: list[int], length: int, tokens: int, repeats: int, options: dict[str, Any]
) -> Cell:
    measured = _Measurement(model, ids, length, tokens, options)
    times = [measured.repeat() for _ in range(repeats)]
    one, other = measured.done["one_by_one"].trace, measured.done["speculative"].trace
    assert other.end is not None
    parted, gap = _parting(one, other)
    plain, alone, ahead = (median(column) for column in zip(*times, strict=True))
    return Cell(
        kind=kind,
        context=len(ids),
        thought_length=length,
        plain=plain,
        one_by_one=alone,
        speculative=ahead,
        one_by_one_ratio=Spread.of([t[1] / t[0] for t in times]),
        speculative_ratio=Spread.of([t[2] / t[0] for t in times]),
        tokens=len(other.tokens),
        drafted=other.end.drafted,
        accepted=other.end.accepted,
        parted=parted,
        gap=gap,
    )


def _parting(one: Trace, other: Trace) -> tuple[int | None, float | None]:
    """Where two traces of one text first differ, in a thought or a token, and by how many nats the choice was made."""
    thoughts = {t.position: t for t in other.thoughts}
    alone = {t.position: t for t in one.thoughts}
    for n, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=True)):
        mine, its = alone[a.position - 1], thoughts[b.position - 1]
        for x, y in zip(mine.samples, its.samples, strict=True):
            differ = next((j for j, (s, t) in enumerate(zip(x.ids, y.ids, strict=True)) if s != t), None)
            if differ is not None:  # the same prediction up to rounding, so each log-probability tells on its own token
                return n, abs(x.logprobs[differ] - y.logprobs[differ])
        if a.id != b.id:
            return n, abs(a.logprob - b.logprob)
    return None, None


def _row_cost(model: QuietStar, ids: list[int], length: int, repeats: int) -> Spread:
    """What one more row adds to a pass of thinking, in passes over one row; `speculation.ROW_COST` is its value."""
    prefix, _ = model.read(torch.tensor([ids], device=model.device))
    most = budgets.of(model.device).logit_rows
    last = torch.arange(len(ids) - most, len(ids), device=model.device)
    zero = torch.zeros_like(last)

    def think(rows: int) -> float:
        place = Place(zero[-rows:], last[-rows:], zero[-rows:])
        return clock(lambda: model.think(prefix, place, length=length, temperature=0.0))

    think(most)
    pairs = [(think(1), think(most)) for _ in range(repeats)]
    return Spread.of([(many / one - 1) / (most - 1) for one, many in pairs])


def _throughput(
    model: QuietStar, texts: dict[str, list[int]], length: int, tokens: int, repeats: int, options: dict[str, Any]
) -> dict[str, Any]:
    """Tokens a second of eight prompts of unequal length at once, against the same prompts one at a time."""
    prompts = [ids[-length:] for ids in texts.values() for length in (64, 128)]
    settings: dict[str, Any] = dict(max_new_tokens=tokens, thought_length=length, stop_ids=[]) | options

    def alone() -> None:
        for prompt in prompts:
            model.generate(prompt, **settings)

    pairs = [(clock(lambda: model.generate(prompts, **settings)), clock(alone)) for _ in range(repeats)]
    made = tokens * len(prompts)
    return {
        "prompts": len(prompts),
        "together": median(made / a for a, _ in pairs),
        "alone": median(made / b for _, b in pairs),
        "ratio": asdict(Spread.of([b / a for a, b in pairs])),
    }


def _couplings(model: QuietStar, kind: str, ids: list[int], places: int = 64) -> list[Coupling]:
    """The rules of acceptance compared at the last places of a text, with thoughts of 8 tokens at fixed weights."""
    prefix, hidden_1NE = model.read(torch.tensor([ids], device=model.device))
    position = torch.arange(max(0, len(ids) - places), len(ids), device=model.device)
    zero = torch.zeros_like(position)
    thought = model.think(prefix, Place(zero, position, zero), length=8, temperature=0.0)
    base_ME = hidden_1NE[0, position]
    found = []
    for weight in WEIGHTS:
        rows: list[Tensor] = []
        for r in chunks(len(position), budgets.of(model.device).logit_rows):
            base_MV = torch.softmax(model.logits(base_ME[r]), dim=-1).cpu().double()
            mixed_MV = model.predict(base_ME[r], thought.hidden[r], weight)[1].exp().cpu().double()
            greedy = (sampling.best(base_MV) == sampling.best(mixed_MV)).to(base_MV)
            rows.append(torch.stack([*agreements(base_MV, mixed_MV), greedy]))
        found.append(Coupling(kind, weight, *torch.cat(rows, dim=1).mean(1).tolist()))
    return found


def agreements(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How often draws from q and p (M, V) agree under three rules, (M,) each: best, raced, inverse CDF; exact.

    Raced: token k wins both races with probability 1 / sum over j of max(p_j / p_k, q_j / q_k). Ordered by p / q, the
    first ratio is the larger one for the tokens up to k and the second for those behind.
    """
    best = torch.minimum(p, q).sum(-1)
    order = (p / q).nan_to_num(0.0).argsort(dim=-1, descending=True)
    p_MV, q_MV = p.gather(-1, order), q.gather(-1, order)
    rings = p_MV.cumsum(-1) / p_MV + (q_MV.sum(-1, keepdim=True) - q_MV.cumsum(-1)).clamp_min(0) / q_MV
    raced = torch.where((p_MV > 0) & (q_MV > 0), 1 / rings, 0.0).sum(-1)
    upper = torch.minimum(p.cumsum(-1), q.cumsum(-1))
    lower = torch.maximum(p.cumsum(-1) - p, q.cumsum(-1) - q)
    return best, raced, (upper - lower).clamp_min(0).sum(-1)


_MEMORY = r"""
import json, sys
from quietstar import QuietStar
from quietstar.bench.engine import sample_ids
from quietstar.engine.memory import peak_bytes
name, dtype, device, context, thought, tokens, speculate = *sys.argv[1:4], *map(int, sys.argv[4:7]), sys.argv[7]
model = QuietStar.from_pretrained(name, dtype=dtype, device=device)
model.generate(sample_ids(model, context), thought_length=thought, max_new_tokens=tokens, stop_ids=[],
               speculate=speculate)
print(json.dumps({"peak_mb": peak_bytes(model.device) / 1e6}))
"""
