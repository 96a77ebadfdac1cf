"""Texts to train on: read from local files or a hub's data sets, held out by document, cut into spans.

A span is a run of tokens of one document, or of several with an end-of-text token between them where documents are
packed; nothing runs over the border of a document unseen. Every span has a number that stands for it in the random
numbers, so that it is thought about the same in whatever batch or process it comes.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quietstar.errors import QuietStarError

_SHOWN = 3  # broken lines named


@dataclass(frozen=True)
class DataConfig:
    """Which texts, and how they are cut.

    Args:
        train: files (.jsonl, .txt, .parquet, each document a line, a file or a row), or the name of a hub's data set.
        heldout: the same, for evaluation; where empty, `heldout_share` of the training documents are set aside.
        heldout_share: part of the documents held out, drawn by the seed.
        field: the text column of JSONL and Parquet. split: of a hub's data set.
        only: {field: [values]}: keep the rows of JSONL whose field has one of these values, e.g. a licence.
        broken: "refuse" a file with broken lines, or "skip" them; either way they are counted and named.
        length: tokens of a span.
        spans: "pack" documents one behind the other, an end-of-text token between, or "random" spans, each inside one
            document.
        limit: read at most so many documents; 0 is all of them.
    """

    train: tuple[str, ...] = ()
    heldout: tuple[str, ...] = ()
    heldout_share: float = 0.02
    field: str = "text"
    split: str = "train"
    only: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    broken: str = "refuse"
    length: int = 256
    spans: str = "pack"
    limit: int = 0

    def __post_init__(self) -> None:
        if self.broken not in ("refuse", "skip"):
            raise QuietStarError(f"broken must be refuse or skip, got {self.broken!r}")
        if self.spans not in ("pack", "random"):
            raise QuietStarError(f"spans must be pack or random, got {self.spans!r}")
        if self.length < 8:
            raise QuietStarError(f"length must be at least 8 tokens, got {self.length}")
        if not 0 <= self.heldout_share < 1:
            raise QuietStarError(f"heldout_share must be from 0 to below 1, got {self.heldout_share}")
        if self.limit < 0:
            raise QuietStarError(f"limit must be 0 (all) or above, got {self.limit}")


@dataclass
class Texts:
    """Documents for training and for evaluation, and what was left out of them, in words."""

    train: list[str]
    heldout: list[str]
    notes: list[str]


def read(config: DataConfig, seed: int) -> Texts:
    """Read and split the documents.

    Raises:
        QuietStarError: no data named, a missing or broken file, a missing column; names file and line.
    """
    if not config.train:
        raise QuietStarError("there is nothing to train on: name files or a hub's data set in data.train")
    notes: list[str] = []
    train = _documents(config.train, config, notes)
    if not train:
        raise QuietStarError(f"{', '.join(config.train)}: no document with text in it")
    if config.heldout:
        heldout = _documents(config.heldout, config, notes)
    else:
        count = min(round(config.heldout_share * len(train)), len(train) - 1)
        chosen = set(np.random.default_rng(seed).permutation(len(train))[:count].tolist())
        heldout = [text for number, text in enumerate(train) if number in chosen]
        train = [text for number, text in enumerate(train) if number not in chosen]
    return Texts(train, heldout, notes)


def _documents(names: Sequence[str], config: DataConfig, notes: list[str]) -> list[str]:
    found: list[str] = []
    for name in names:
        path = Path(name)
        if path.exists() or path.suffix.lower() in _READERS:
            reader = _READERS.get(path.suffix.lower(), _text)
            rows = reader(path, config, notes)
        else:
            rows = _hub(name, config)
        for text in rows:
            if text.strip():
                found.append(text)
            if config.limit and len(found) >= config.limit:
                return found
    return found


def _text(path: Path, config: DataConfig, notes: list[str]) -> Iterator[str]:
    try:
        yield path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise QuietStarError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from error
    except OSError as error:
        raise QuietStarError(f"cannot read {path}: {error.strerror}") from error


def _jsonl(path: Path, config: DataConfig, notes: list[str]) -> Iterator[str]:
    broken: list[str] = []
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8"))
                except ValueError:
                    broken.append(f"{number} (not JSON)")
                    continue
                if not isinstance(row, dict) or not isinstance(row.get(config.field), str):
                    broken.append(f"{number} (no text field {config.field!r})")
                    continue
                if all(row.get(name) in values for name, values in config.only.items()):
                    yield row[config.field]
    except OSError as error:
        raise QuietStarError(f"cannot read {path}: {error.strerror}") from error
    if broken:
        named = ", ".join(broken[:_SHOWN]) + (f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else "")
        told = f"{path}: {len(broken)} broken line{'s' if len(broken) > 1 else ''}: {named}"
        if config.broken == "refuse":
            raise QuietStarError(f"{told}; mend them, or leave them out with data.broken: skip")
        notes.append(f"{told}; left out")


def _parquet(path: Path, config: DataConfig, notes: list[str]) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise QuietStarError('reading Parquet needs pyarrow: pip install "quietstar[data]"') from error
    try:
        with parquet.ParquetFile(path) as file:
            if config.field not in file.schema_arrow.names:
                have = ", ".join(file.schema_arrow.names)
                raise QuietStarError(f"{path} has no column {config.field!r} (it has {have}); set data.field")
            for batch in file.iter_batches(columns=[config.field]):
                yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)
    except (OSError, ValueError) as error:
        if isinstance(error, QuietStarError):
            raise
        raise QuietStarError(f"cannot read {path}: {str(error).splitlines()[0]}") from error


def _hub(name: str, config: DataConfig) -> Iterator[str]:
    """Texts of a hub's data set, streamed; `name` or `name:configuration`."""
    try:
        import datasets
    except ImportError as error:
        raise QuietStarError(
            f'there is no file {name!r}; a data set of the hub needs: pip install "quietstar[data]"'
        ) from error
    dataset, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(dataset, configuration or None, split=config.split, streaming=True)
        for row in rows:
            if not isinstance(row.get(config.field), str):
                have = ", ".join(row)
                raise QuietStarError(
                    f"the data set {name!r} has no text column {config.field!r} (it has {have}); set data.field"
                )
            yield row[config.field]
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, QuietStarError):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise QuietStarError(f"there is no file {name!r}, nor can a data set of that name be had: {first}") from error


_READERS = {".jsonl": _jsonl, ".ndjson": _jsonl, ".txt": _text, ".md": _text, ".parquet": _parquet}


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
        end = tokenizer.eos_token_id
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "longer than the model's maximum": documents are cut below
            encoded = [
                ids for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if ids
            ]
        if kind == "pack":
            between = [] if end is None else [end]
            stream = np.fromiter((token for ids in encoded for token in (*ids, *between)), dtype=np.int32)
            self._spans = [stream[start : start + length] for start in range(0, len(stream), length)]
        else:
            random = np.random.default_rng(seed)
            self._spans = []
            for ids in encoded:
                for _ in range(max(1, len(ids) // length)):
                    start = int(random.integers(0, max(1, len(ids) - length + 1)))
                    self._spans.append(np.asarray(ids[start : start + length], dtype=np.int32))
        self._spans = [span for span in self._spans if len(span) >= shortest]
        if not self._spans:
            raise QuietStarError(f"the texts give no span of {shortest} tokens or more; give longer texts")

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"input_ids": self._spans[number].tolist(), "span": number}


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch: input_ids (B, N) padded on the right with 0, attention_mask (B, N), span (B,)."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for b, row in enumerate(rows):
        ids[b, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        mask[b, : len(row["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "span": torch.tensor([row["span"] for row in rows])}
