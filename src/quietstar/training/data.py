"""Texts to train on: read from local files or a hub's data sets, held out by document, cut into spans.

A span is a run of tokens of one document, or of several where documents are packed, with border tokens between them (no
span holds two documents if the tokenizer has no such token). It begins with what the tokenizer puts before a text, and
has a number that identifies it in the random numbers, so that its thoughts are the same in whatever batch or process it
comes.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from quietstar.documents import framing
from quietstar.documents import reading as documents
from quietstar.errors import QuietStarError
from quietstar.settings import BelowOne, Count, Text, Whole, checked
from quietstar.settings import Texts as Names


@checked
@dataclass(frozen=True)
class DataConfig:
    """Which texts, and how they are cut.

    Args:
        train: files (JSON, JSON Lines, CSV, TSV, Parquet: each row a document; otherwise one plain text), or the name
            of a hub's data set.
        heldout: the same, for evaluation; where empty, `heldout_share` of the training documents are set aside.
        heldout_share: part of the documents held out, drawn by the seed.
        field: the column of the text. split: of a hub's data set.
        only: {column: [values]}: keep the rows whose column has one of these values, e.g. a licence.
        broken: "refuse" a file with broken rows, or "skip" them; either way they are counted and named.
        cut: a regular expression (^ and $ at lines); plain text is cut before each match into several documents.
        length: tokens of a span.
        spans: "pack" documents one behind the other with their begin- and end-of-text tokens (a tokenizer that has
            neither: no span holds two documents), or "random" spans, each inside one document.
        limit: read at most so many documents; 0 is all of them.
    """

    train: Names = ()
    heldout: Names = ()
    heldout_share: BelowOne = 0.02
    field: Text = "text"
    split: Text = "train"
    only: Mapping[str, Names] = dataclasses.field(default_factory=dict)
    broken: Text = "refuse"
    cut: Annotated[str, Field(strict=True)] = ""
    length: Annotated[Count, Field(ge=8)] = 256
    spans: Text = "pack"
    limit: Whole = 0

    def __post_init__(self) -> None:
        self.rules()
        if self.spans not in ("pack", "random"):
            raise QuietStarError(f"spans must be pack or random, got {self.spans!r}")

    def rules(self) -> documents.Rules:
        """How the files are read."""
        return documents.Rules(
            field=self.field,
            only=self.only,
            broken=self.broken,
            limit=self.limit,
            cut=self.cut or None,
            hub_split=self.split,
        )


@dataclass
class Texts:
    """Documents for training and for evaluation, and what was left out of them, as sentences."""

    train: list[str]
    heldout: list[str]
    notes: list[str]


def read(config: DataConfig, seed: int) -> Texts:
    """Read and split the documents.

    Raises:
        QuietStarError: no data named, a missing or broken file, a missing column; names file and row.
    """
    if not config.train:
        raise QuietStarError("there is nothing to train on: name files or a hub's data set in data.train")
    found = documents.read(config.train, config.rules())
    notes = list(found.notes)
    train = [document.text for document in found.documents]
    if config.heldout:
        held = documents.read(config.heldout, config.rules())
        heldout = [document.text for document in held.documents]
        notes += held.notes
    else:
        count = min(round(config.heldout_share * len(train)), len(train) - 1)
        chosen = set(np.random.default_rng(seed).permutation(len(train))[:count].tolist())
        heldout = [text for number, text in enumerate(train) if number in chosen]
        train = [text for number, text in enumerate(train) if number not in chosen]
        if not heldout and config.heldout_share:
            notes.append(
                f"no document is held out of {len(train)} (data.heldout_share {config.heldout_share}), so nothing is "
                "evaluated while training; name data.heldout, or cut plain text into documents with data.cut"
            )
    seen = set(train)
    shared = sum(text in seen for text in heldout)
    if shared:
        notes.append(f"{shared} of {len(heldout)} held-out documents are trained on too, word for word")
    return Texts(train, heldout, notes)


# -- spans ------------------------------------------------------------------------------------------------------------


class Spans(torch.utils.data.Dataset[dict[str, Any]]):
    """Spans of tokens, each {"input_ids": list of int, "span": its number}.

    Args:
        texts: documents. tokenizer: of the base model.
        length: tokens of a span. kind: "pack" or "random", see `DataConfig`.
        shortest: spans with fewer tokens are left out.
        seed: where random spans begin.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any, length: int, kind: str, shortest: int, seed: int) -> None:
        if tokenizer is None:
            raise QuietStarError("training on texts needs a tokenizer, and this model has none")
        self.notes: list[str] = []  # what was left out of the documents, as sentences
        begin, behind = framing.frame(tokenizer)
        if length - len(begin) < shortest:
            raise QuietStarError(
                f"data.length must be at least {shortest + len(begin)} tokens ({len(begin)} of them begin a text), "
                f"got {length}"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "longer than the model's maximum": documents are cut below
            encoded = [
                ids for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if ids
            ]
        last = tokenizer.eos_token_id
        if kind == "pack":
            end = behind if last is None or last in behind else [*behind, last]
            if not begin and not end:
                self.notes.append("the tokenizer has no token for the border of a text: no span holds two documents")
            spans = framing.pack(encoded, begin, end, length)
        else:
            spans = _random_spans(encoded, begin, behind, length, np.random.default_rng(seed))
        self._spans: list[np.ndarray] = []
        short = 0
        for span in spans:
            if len(span) >= shortest:
                self._spans.append(np.asarray(span, dtype=np.int32))
            else:
                short += len(span)
        if not self._spans:
            raise QuietStarError(f"the texts give no span of {shortest} tokens or more; give longer texts")
        if short:
            total = short + sum(map(len, self._spans))
            self.notes.append(f"{short} of {total} tokens are in spans of fewer than {shortest} and are left out")

    @property
    def largest(self) -> int:
        """The largest token id there is."""
        return max(int(span.max()) for span in self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self._spans[number].tolist(), "span": number}


def _random_spans(
    encoded: Sequence[list[int]], begin: list[int], behind: list[int], length: int, random: np.random.Generator
) -> Iterator[list[int]]:
    """Spans inside one document, as many as it is long, each anywhere in it."""
    room = length - len(begin)
    for ids in encoded:
        body = [*ids, *behind]
        for _ in range(max(1, len(body) // room)):
            start = int(random.integers(0, max(1, len(body) - room + 1)))
            yield [*begin, *body[start : start + room]]


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch: input_ids (B, N) padded on the right with 0, attention_mask (B, N), span (B,)."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[b, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "span": torch.tensor([row["span"] for row in rows])}
