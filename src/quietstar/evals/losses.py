"""Losses of texts with and without thoughts, with controls, intervals over documents, and by difficulty.

Every figure is a mean over predicted tokens in nats; every interval is a 95 % percentile bootstrap over documents
(resampled whole, so that tokens of one document stay together).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor

from quietstar.arguments import checked, one_or_more
from quietstar.documents import framing
from quietstar.documents.reading import Document
from quietstar.errors import QuietStarError
from quietstar.evals.intervals import RESAMPLES, Interval, bootstrap
from quietstar.evals.thoughts import here

if TYPE_CHECKING:
    from quietstar.api import QuietStar
    from quietstar.events import NoiseFloor
    from quietstar.inference.scoring import Score

CONTROLS = ("filler", "donor", "shuffled")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `evaluate`; `report` covers the documents finished until then, None where there are none."""

    def __init__(self, report: LossReport | None) -> None:
        super().__init__()
        self.report = report


@dataclass
class LossReport:
    """The result of `evaluate`.

    Args:
        losses: mean loss of "base", "own", "only" and each control.
        effects: "own gain" = base - own; "compute" = base - filler; "content" = donor - own; "own over filler".
        documents: the same losses a document, with hashes of its text (`text_hash`) and of its tokens as they were cut
            into windows (`tokens_hash`). deciles: losses and effects by base difficulty, easiest first.
        hardest: the effects on the fifth of the tokens that is hardest for the base.
        continues: share of thought tokens that are the text's own next tokens, place by place (x_{i+1}, x_{i+2}, ...):
            how far thoughts merely continue the text.
        flipped, weight, kl: share of positions with another argmax, mean w, mean KL(mixed || base) in nats.
        skipped: names of documents too short to score. settings: everything needed to run it again.
        unfinished: names of documents not read because of Ctrl-C.
        noise: largest noise floors of the documents, as in `NoiseFloor`; None where one was not measured.
        computed: dtype, device and versions, as `record.computed` has them.
    """

    tokens: int
    losses: dict[str, Interval]
    effects: dict[str, Interval]
    documents: list[dict[str, Any]]
    deciles: list[dict[str, Any]]
    flipped: Interval
    weight: Interval
    kl: Interval
    hardest: dict[str, Interval]
    continues: Interval
    skipped: list[str]
    settings: dict[str, Any]
    unfinished: list[str] = field(default_factory=list)
    noise: dict[str, float] | None = None
    computed: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self)


@dataclass
class _Encoded:
    """A document as it is read: its tokens in windows, each after the tokens that begin a text."""

    document: Document
    windows: list[list[int]]

    def hashes(self) -> dict[str, str]:
        """Equal in two reports of the same text cut into the same tokens."""
        text = self.document.text.encode("utf-8", errors="surrogatepass")
        return {
            "text_hash": hashlib.sha256(text).hexdigest()[:16],
            "tokens_hash": hashlib.sha256(repr(self.windows).encode()).hexdigest()[:16],
        }


def _encode(
    model: QuietStar, documents: Sequence[Document], window: int, max_tokens: int | None
) -> tuple[list[_Encoded], list[str]]:
    """The documents as they are read, and the names of those too short to score."""
    begin, _ = framing.frame(model.tokenizer)
    for name, value in (("window", window), ("max_tokens", max_tokens)):
        if value is not None and value < max(2, len(begin) + 1):
            also = f" ({len(begin)} of them begin a text)" if len(begin) > 1 else ""
            raise QuietStarError(f"{name} must be at least {max(2, len(begin) + 1)} tokens{also}, got {value}")
    encoded, skipped = [], []
    for document in documents:
        try:
            ids = model.encode(document.text, raw=True)[0][0][:max_tokens] if document.text.strip() else []
        except QuietStarError as error:
            raise QuietStarError(f"{document.name}: {error}") from error
        body = ids[len(begin) :] if ids[: len(begin)] == begin else ids
        pieces = [piece for piece in framing.windows(body, begin, window) if len(piece) > max(1, len(begin))]
        if pieces:
            encoded.append(_Encoded(document, pieces))
        else:
            skipped.append(document.name)
    if not encoded:
        raise QuietStarError("no document has two tokens or more; there is nothing to score")
    return encoded, skipped


@checked
def evaluate(
    model: QuietStar,
    documents: Sequence[Document],
    *,
    controls: Annotated[Sequence[str], one_or_more()] = CONTROLS,
    window: int = 512,
    max_tokens: int | None = None,
    thought_length: int | None = None,
    samples: int = 1,
    thought_temperature: float | None = None,
    mixing_weight: float | None = None,
    seed: int = 0,
    told: Callable[[str, float], None] = lambda name, share: None,
) -> LossReport:
    """Score every document with its own thoughts and with each control.

    Args:
        window: tokens read at once; longer documents are cut into windows, each read alone and after the
            tokens that the tokenizer puts before a text (they count as tokens of the window).
        max_tokens: read at most so many tokens of each document.
        told: called with the name of each document and the share of all tokens done.

    Raises:
        QuietStarError: a wrong value, or nothing to score.
        Interrupted: on Ctrl-C, with the report of the documents finished until then.
    """
    encoded, skipped = _encode(model, documents, window, max_tokens)
    begin = len(framing.frame(model.tokenizer)[0])
    length = model.config.thought_length if thought_length is None else thought_length
    model.check_fits(max(len(piece) for one in encoded for piece in one.windows), length, "window")
    total = sum(len(piece) for one in encoded for piece in one.windows)
    done = 0
    parts: list[dict[str, np.ndarray]] = []  # of finished documents
    noises: list[NoiseFloor | None] = []
    finished = 0
    interrupt: KeyboardInterrupt | None = None
    try:
        for number, one in enumerate(encoded):
            found = []
            start = 0
            for piece in one.windows:
                told(one.document.name, done / total)
                done += len(piece)
                score = model.score(
                    piece,
                    controls=controls,
                    thought_length=thought_length,
                    samples=samples,
                    thought_temperature=thought_temperature,
                    mixing_weight=mixing_weight,
                    seed=_wrapped(seed + start + (number << 24)),  # other draws in every window of every document
                )
                noises.append(score.noise)
                columns = {name: values[max(0, begin - 1) :] for name, values in _columns(score).items()}
                found.append(columns | {"document": np.full(len(columns["base"]), number)})
                start += len(piece) - begin
            parts, finished = parts + found, number + 1
    except KeyboardInterrupt as error:
        interrupt = error
        if not finished:
            raise Interrupted(None) from error
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = [one.document.name for one in encoded]
    settings = {
        "model": model.config.name_or_path or model.config.base_name,
        "controls": list(controls),
        "window": window,
        "max_tokens": max_tokens,
        "begin": framing.frame(model.tokenizer)[0],
        "thought_length": length,
        "samples": samples,
        "thought_temperature": thought_temperature,
        "mixing_weight": mixing_weight,
        "seed": seed,
        "resamples": RESAMPLES,
    }
    report = _report(table, names, list(controls), skipped, settings, seed)
    report.noise, report.computed = _largest(noises), here(model)
    for row, one in zip(report.documents, encoded, strict=False):  # fewer rows after Ctrl-C
        row |= one.hashes()
    if interrupt is not None:
        report.unfinished = names[finished:]
        raise Interrupted(report) from interrupt
    return report


def _wrapped(seed: int) -> int:
    """The seed of 64 bits that draws the same numbers."""
    return (seed + 2**63) % 2**64 - 2**63


def _largest(noises: Sequence[NoiseFloor | None]) -> dict[str, float] | None:
    """The largest noise floors of several texts, None where one has none."""
    known = [one for one in noises if one is not None]
    if not known or len(known) < len(noises):
        return None
    found = {name: [getattr(one, name) for one in known] for name in ("kl", "logprob", "weight", "gain")}
    return {name: float(max(values)) for name, values in found.items() if None not in values}


def _columns(score: Score) -> dict[str, np.ndarray]:
    """The numbers of one text as columns, one entry a predicted token."""
    columns = {
        "base": -score.base_logprobs,
        "own": -score.mixed_logprobs,
        "only": -score.thought_logprobs,
        "flipped": score.flipped.float(),
        "weight": score.mixing_weight,
        "kl": score.kl,
    }
    columns |= {name: -found.mixed_logprobs for name, found in score.controls.items()}
    columns["continues"] = _continues(score)
    return {name: values[0].cpu().double().numpy() for name, values in columns.items()}


def _continues(score: Score) -> Tensor:
    """Share of each position's thought tokens that equal the text at their place, (B, N - 1); 0 for empty thoughts."""
    length, wide = score.thoughts.shape[-1], score.ids.shape[1]
    place_NT = torch.arange(1, wide)[:, None] + torch.arange(length)
    inside_NT = place_NT < wide
    same_BNPT = (score.thoughts == score.ids[:, place_NT.clamp_max(wide - 1)][:, :, None]) & inside_NT[:, None]
    return same_BNPT.float().sum(-1).mean(-1) / inside_NT.sum(-1).clamp_min(1)


@checked
def effects_of(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences per token in nats, above zero where the thought helps; see `LossReport`."""
    if missing := {"base", "own"} - set(table):
        raise QuietStarError(f"the table has no losses of {sorted(missing)[0]!r}")
    found = {"own gain": table["base"] - table["own"]}
    if "filler" in table:
        found["compute"] = table["base"] - table["filler"]
    if "donor" in table:
        found["content"] = table["donor"] - table["own"]
    if "filler" in table:
        found["own over filler"] = table["filler"] - table["own"]
    return found


def _report(
    table: dict[str, np.ndarray],
    names: list[str],
    controls: list[str],
    skipped: list[str],
    settings: dict[str, Any],
    seed: int,
) -> LossReport:
    documents_of = table["document"]
    kinds = ["base", "own", "only", *controls]

    def interval(values: np.ndarray, where: np.ndarray | None = None) -> Interval:
        return bootstrap(values, documents_of, where, seed)

    effects = effects_of(table)
    per_document = []
    for number, name in enumerate(names):
        mine = documents_of == number
        if mine.any():
            row = {kind: float(table[kind][mine].mean()) for kind in kinds}
            per_document.append({"document": name, "tokens": int(mine.sum()), **row})
    edges = np.quantile(table["base"], np.linspace(0, 1, 11))
    decile_of = np.clip(np.searchsorted(edges, table["base"], side="right") - 1, 0, 9)
    deciles = []
    for number in range(10):
        mine = decile_of == number
        if mine.any():
            deciles.append(
                {
                    "decile": number + 1,
                    "tokens": int(mine.sum()),
                    "from": float(edges[number]),
                    "losses": {kind: float(table[kind][mine].mean()) for kind in kinds},
                    "effects": {name: asdict(interval(values, mine)) for name, values in effects.items()},
                }
            )
    hard = table["base"] >= np.quantile(table["base"], 0.8)
    return LossReport(
        hardest={name: interval(values, hard) for name, values in effects.items()},
        continues=interval(table["continues"]),
        tokens=len(documents_of),
        losses={kind: interval(table[kind]) for kind in kinds},
        effects={name: interval(values) for name, values in effects.items()},
        documents=per_document,
        deciles=deciles,
        flipped=interval(table["flipped"]),
        weight=interval(table["weight"]),
        kl=interval(table["kl"]),
        skipped=skipped,
        settings=settings,
    )


def check_scorable(model: QuietStar, documents: Sequence[Document], *, window: int, max_tokens: int | None) -> None:
    """Check that `evaluate` has something to score.

    Raises:
        QuietStarError: no document has two tokens, or a window that is too short.
    """
    _encode(model, documents, window, max_tokens)


def check_comparable(
    model: QuietStar, documents: Sequence[Document], other: dict[str, Any], *, window: int, max_tokens: int | None
) -> None:
    """Check before anything is scored that `against` will be able to compare with the report `other`.

    Raises:
        QuietStarError: `other` is no report, or of other texts, another tokenizer, or tokens cut in another way.
    """
    rows = []
    begin = max(1, len(framing.frame(model.tokenizer)[0]))
    for one in _encode(model, documents, window, max_tokens)[0]:
        tokens = sum(len(piece) - begin for piece in one.windows)
        rows.append({"document": one.document.name, "tokens": tokens, **one.hashes()})
    _check_same(rows, other, {"window": window, "max_tokens": max_tokens})


def _check_same(rows: list[dict[str, Any]], other: dict[str, Any], settings: dict[str, Any]) -> None:
    theirs = other.get("documents")
    if not isinstance(theirs, list) or not theirs or not all(isinstance(row, dict) for row in theirs):
        raise QuietStarError("the other report is no report of scored documents")
    if [row["document"] for row in rows] != [row.get("document") for row in theirs]:
        raise QuietStarError(
            f"the two reports are not of the same documents ({len(rows)} and {len(theirs)}); score both on the same "
            "texts"
        )
    for mine, row in zip(rows, theirs, strict=True):
        if not row.get("text_hash") or not row.get("tokens_hash"):
            raise QuietStarError(
                "the other report does not say which tokens were scored (it is an older one); score it again"
            )
        if mine["text_hash"] != row["text_hash"]:
            raise QuietStarError(
                f"{mine['document']} is another text in the other report; score both on the same texts"
            )
        if mine["tokens_hash"] != row["tokens_hash"] or mine["tokens"] != row.get("tokens"):
            found = other.get("settings")
            before: dict[str, Any] = found if isinstance(found, dict) else {}
            cut = [
                f"{name} {before.get(name)} there, {value} here"
                for name, value in settings.items()
                if before.get(name) != value
            ]
            raise QuietStarError(
                f"{mine['document']} has other tokens in the other report: "
                + (f"{'; '.join(cut)}; score both in the same way" if cut else "another tokenizer")
            )


@checked
def differences(own: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Settings that two reports do not share, besides the model and the controls, one sentence each."""
    mine, theirs = own.get("settings"), other.get("settings")
    if not isinstance(mine, dict):
        raise QuietStarError("this is no report of losses: it has no settings")
    if not isinstance(theirs, dict):
        return ["the other report has no settings"]
    names = [name for name in {**mine, **theirs} if name not in ("model", "controls")]
    return [
        f"{name} is {theirs.get(name)} in the other report, {mine.get(name)} here"
        for name in names
        if json.dumps(mine.get(name), default=str) != json.dumps(theirs.get(name), default=str)
    ]


@checked
def against(own: dict[str, Any], other: dict[str, Any], mine: str = "own", theirs: str = "base") -> Interval:
    """Loss of another model less this one's on the same documents, per token: above 0 where this one is better.

    Args:
        own, other: reports as `LossReport.to_dict` gives them, of the same texts in the same tokens and windows.
        mine, theirs: which losses are compared.

    Raises:
        QuietStarError: the two are not of the same texts and tokens, or a loss is missing.
    """
    if not isinstance(own.get("settings"), dict) or not isinstance(own.get("documents"), list):
        raise QuietStarError("this is no report of losses: it has no documents and settings")
    settings = own["settings"]
    _check_same(own["documents"], other, {name: settings.get(name) for name in ("window", "max_tokens")})
    rows = list(zip(own["documents"], other["documents"], strict=True))
    tokens = np.array([row["tokens"] for row, _ in rows])
    try:
        each = np.array([float(theirs_row[theirs]) - mine_row[mine] for mine_row, theirs_row in rows])
    except (KeyError, TypeError, ValueError) as error:
        raise QuietStarError(f"the other report has no loss {theirs!r} for every document") from error
    return bootstrap(np.repeat(each, tokens), np.repeat(np.arange(len(rows)), tokens))


@checked
def names_of(text: str) -> Iterable[str]:
    """Control names from a comma-separated list, "none" for no control at all."""
    return [] if text.strip() in ("", "none") else [name.strip() for name in text.split(",")]
