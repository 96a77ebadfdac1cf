"""Losses of texts with and without thoughts, with controls, intervals over documents, and by difficulty.

Every figure is a mean over predicted tokens in nats; every interval is a 95 % percentile bootstrap over documents
(resampled whole, so that tokens of one document stay together).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from quietstar.errors import QuietStarError
from quietstar.evals.thoughts import here
from quietstar.intervals import RESAMPLES, Interval, bootstrap

if TYPE_CHECKING:
    from quietstar.api import QuietStar
    from quietstar.scoring import Score
    from quietstar.scratchpad.trace import NoiseFloor

CONTROLS = ("filler", "donor", "shuffled")


@dataclass
class Document:
    """A named text."""

    name: str
    text: str


def read_documents(files: Sequence[str | Path], text_field: str = "text", split: str | None = None) -> list[Document]:
    """Documents of text files (one each) and JSONL files (one a line, the text in `text_field`).

    With `split`, a regular expression (^ and $ at lines), a text file is cut before each match into several documents.

    Raises:
        QuietStarError: a missing or unreadable file, a broken line, a missing field; names file and line.
    """
    documents = []
    try:
        border = re.compile(f"(?={split})", re.MULTILINE) if split else None
    except re.error as error:
        raise QuietStarError(f"split is no regular expression: {error}") from error
    for given in files:
        path = Path(given)
        try:
            content = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise QuietStarError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
        except OSError as error:
            raise QuietStarError(f"cannot read {path}: {error.strerror}") from error
        if path.suffix.lower() not in (".jsonl", ".ndjson"):
            pieces = [content] if border is None else [piece for piece in border.split(content) if piece.strip()]
            several = len(pieces) > 1
            documents += [Document(f"{path.name}:{n}" if several else path.name, piece)
                          for n, piece in enumerate(pieces, start=1)]  # fmt: skip
            continue
        for number, line in enumerate(content.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise QuietStarError(f"{path}, line {number} is not JSON: {error}") from error
            if isinstance(row, dict) and text_field in row and not isinstance(row[text_field], str):
                raise QuietStarError(
                    f"{path}, line {number}: field {text_field!r} is {row[text_field]!r:.40}, not a text"
                )
            if not isinstance(row, dict) or text_field not in row:
                have = ", ".join(map(str, row)) if isinstance(row, dict) else "no fields"
                raise QuietStarError(
                    f"{path}, line {number} has no text field {text_field!r} (it has {have}); give --field"
                )
            documents.append(Document(str(row.get("id", f"{path.name}:{number}")), row[text_field]))
    return documents


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during `evaluate`; `report` covers the documents finished until then, None where there are none."""

    def __init__(self, report: LossReport | None) -> None:
        super().__init__()
        self.report = report


@dataclass
class LossReport:
    """What `evaluate` found.

    Args:
        losses: mean loss of "base", "own", "only" and each control.
        effects: "own gain" = base - own; "compute" = base - filler; "content" = donor - own; "own over filler".
        documents: the same losses a document. deciles: losses and effects by base difficulty, easiest first.
        hardest: the effects on the fifth of the tokens that is hardest for the base.
        continues: share of thought tokens that are the text's own next tokens, place by place (x_{i+1}, x_{i+2}, ...):
            how far thoughts merely continue the text.
        flipped, weight, kl: share of positions with another argmax, mean w, mean KL(mixed || base) in nats.
        skipped: names of documents too short to score. settings: everything needed to run it again.
        unfinished: names of documents not read because of Ctrl-C.
        noise: largest noise floors of the documents, as in `NoiseFloor`; None where one was not measured.
        computed: dtype, device and versions, as `scratchpad.computed` has them.
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


def evaluate(
    model: QuietStar,
    documents: Sequence[Document],
    *,
    controls: Sequence[str] = CONTROLS,
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
        window: tokens read at once; longer documents are cut into windows, each read for itself.
        max_tokens: read at most so many tokens of each document.
        told: told the name of each document and the share of all tokens done.

    Raises:
        QuietStarError: a wrong value, or nothing to score.
        Interrupted: on Ctrl-C, with the report of the documents finished until then.
    """
    if window < 2:
        raise QuietStarError(f"window must be at least 2 tokens, got {window}")
    if max_tokens is not None and max_tokens < 2:
        raise QuietStarError(f"max_tokens must be at least 2, got {max_tokens}")
    encoded, skipped = [], []
    for document in documents:
        try:
            ids = model.encode(document.text, raw=True)[0][0][:max_tokens] if document.text.strip() else []
        except QuietStarError as error:
            raise QuietStarError(f"{document.name}: {error}") from error
        if len(ids) < 2:
            skipped.append(document.name)
        else:
            encoded.append((document, ids))
    if not encoded:
        raise QuietStarError("no document has two tokens or more; there is nothing to score")
    length = model.config.thought_length if thought_length is None else thought_length
    model.check_fits(min(window, max(len(ids) for _, ids in encoded)), length, "window")
    total = sum(len(ids) for _, ids in encoded)
    done = 0
    parts: list[dict[str, np.ndarray]] = []  # of finished documents
    noises: list[NoiseFloor | None] = []
    finished = 0
    interrupt: KeyboardInterrupt | None = None
    try:
        for number, (document, ids) in enumerate(encoded):
            found = []
            for start in range(0, len(ids), window):
                piece = ids[start : start + window]
                told(document.name, done / total)
                done += len(piece)
                if len(piece) < 2:
                    continue
                score = model.score(
                    piece, controls=controls, thought_length=thought_length, samples=samples,
                    thought_temperature=thought_temperature, mixing_weight=mixing_weight,
                    seed=seed + start + (number << 24),  # other draws in every window of every document
                )  # fmt: skip
                noises.append(score.noise)
                found.append(_columns(score) | {"document": np.full(len(piece) - 1, number)})
            parts, finished = parts + found, number + 1
    except KeyboardInterrupt as error:
        interrupt = error
        if not finished:
            raise Interrupted(None) from error
    table = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    names = [document.name for document, _ in encoded]
    settings = dict(
        model=model.config.name_or_path or model.config.base_name, controls=list(controls), window=window,
        max_tokens=max_tokens, thought_length=length, samples=samples,
        thought_temperature=thought_temperature, mixing_weight=mixing_weight, seed=seed, resamples=RESAMPLES,
    )  # fmt: skip
    report = _report(table, names, list(controls), skipped, settings, seed)
    report.noise, report.computed = _largest(noises), here(model)
    if interrupt is not None:
        report.unfinished = names[finished:]
        raise Interrupted(report) from interrupt
    return report


def _largest(noises: Sequence[NoiseFloor | None]) -> dict[str, float] | None:
    """The largest noise floors of several texts, None where one has none."""
    known = [one for one in noises if one is not None]
    if not known or len(known) < len(noises):
        return None
    return {name: max(float(getattr(one, name)) for one in known) for name in ("kl", "logprob", "weight")}


def _columns(score: Score) -> dict[str, np.ndarray]:
    """The numbers of one text as columns, one entry a predicted token."""
    columns = {
        "base": -score.base_logprobs, "own": -score.mixed_logprobs, "only": -score.thought_logprobs,
        "flipped": score.flipped.float(), "weight": score.mixing_weight, "kl": score.kl,
    }  # fmt: skip
    columns |= {name: -found.mixed_logprobs for name, found in score.controls.items()}
    columns["continues"] = _continues(score)
    return {name: values[0].double().cpu().numpy() for name, values in columns.items()}


def _continues(score: Score) -> Tensor:
    """Share of each position's thought tokens that equal the text at their place, (B, N - 1); 0 for empty thoughts."""
    length, wide = score.thoughts.shape[-1], score.ids.shape[1]
    place_NT = torch.arange(1, wide)[:, None] + torch.arange(length)
    inside_NT = place_NT < wide
    same_BNPT = (score.thoughts == score.ids[:, place_NT.clamp_max(wide - 1)][:, :, None]) & inside_NT[:, None]
    return same_BNPT.float().sum(-1).mean(-1) / inside_NT.sum(-1).clamp_min(1)


def effects_of(table: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Differences per token in nats, above zero where the thought helps; see `LossReport`."""
    found = {"own gain": table["base"] - table["own"]}
    if "filler" in table:
        found["compute"] = table["base"] - table["filler"]
    if "donor" in table:
        found["content"] = table["donor"] - table["own"]
    if "filler" in table:
        found["own over filler"] = table["filler"] - table["own"]
    return found


def _report(
    table: dict[str, np.ndarray], names: list[str], controls: list[str], skipped: list[str], settings: dict[str, Any],
    seed: int,
) -> LossReport:  # fmt: skip
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
                    "decile": number + 1, "tokens": int(mine.sum()), "from": float(edges[number]),
                    "losses": {kind: float(table[kind][mine].mean()) for kind in kinds},
                    "effects": {name: asdict(interval(values, mine)) for name, values in effects.items()},
                }
            )  # fmt: skip
    hard = table["base"] >= np.quantile(table["base"], 0.8)
    return LossReport(
        hardest={name: interval(values, hard) for name, values in effects.items()},
        continues=interval(table["continues"]), tokens=len(documents_of),
        losses={kind: interval(table[kind]) for kind in kinds},
        effects={name: interval(values) for name, values in effects.items()}, documents=per_document, deciles=deciles,
        flipped=interval(table["flipped"]), weight=interval(table["weight"]), kl=interval(table["kl"]),
        skipped=skipped, settings=settings,
    )  # fmt: skip


def against(own: dict[str, Any], other: dict[str, Any], mine: str = "own", theirs: str = "base") -> Interval:
    """Loss of another model less this one's on the same documents, per token: above 0 where this one is better.

    Args:
        own, other: reports as `LossReport.to_dict` gives them, of the same texts cut in the same way.
        mine, theirs: which losses are compared.

    Raises:
        QuietStarError: the two are not of the same documents and tokens.
    """
    rows = list(zip(own["documents"], other["documents"], strict=False))
    same = [(row["document"], row["tokens"]) for row in own["documents"]] == [
        (row["document"], row["tokens"]) for row in other["documents"]
    ]
    if not same or not rows:
        raise QuietStarError("the two reports are not of the same documents and tokens; score both in the same way")
    tokens = np.array([row["tokens"] for row, _ in rows])
    each = np.array([theirs_row[theirs] - mine_row[mine] for mine_row, theirs_row in rows])
    return bootstrap(np.repeat(each, tokens), np.repeat(np.arange(len(rows)), tokens))


def names_of(text: str) -> Iterable[str]:
    """Control names from a comma-separated list, "none" for no control at all."""
    return [] if text.strip() in ("", "none") else [name.strip() for name in text.split(",")]
