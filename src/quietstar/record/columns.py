"""Events as table rows and back: every number exactly, every list as JSON text.

Knows the events and the columns of `schema`; knows nothing about files or connections. Two things SQLite or JSON cannot
hold are mapped: lone surrogates (never valid text) become U+FFFD, and in JSON lists an infinite or undefined
number is written as the text "inf", "-inf" or "nan".
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from quietstar.events import Choice, End, Identity, NoiseFloor, Sample, Start, ThoughtEvent, TokenEvent

Row = sqlite3.Row
Statement = tuple[str, Sequence[Any]]

_WIDEST = 2**63  # of SQLite's integers
MOST_IN_A_BATCH = 2**20  # sequences; more is a damaged number


def insert(table: str, columns: Mapping[str, Any]) -> Statement:
    """The statement that adds one row."""
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", list(columns.values())


def plain(text: str) -> str:
    """Text that UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join("\ufffd" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)
    return text


def to_json(value: Any) -> str:
    """JSON text, readable as it is."""
    return plain(json.dumps(_finite(value), ensure_ascii=False, separators=(",", ":")))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    return value


def real(value: Any) -> float | None:
    """A number for a column; NULL stands for nan, as in SQLite itself."""
    return float(value) if isinstance(value, (int, float)) and not math.isnan(value) else None


def number(value: float | None) -> float:
    """A number from a column."""
    return math.nan if value is None else value


def object_of(text: str) -> dict[str, Any]:
    """A JSON object from a column; ValueError where it is something else."""
    found = json.loads(text)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def ids_of(text: str) -> list[int]:
    """Token ids from a column; ValueError where it holds something else."""
    return _list_of(text, int)


def texts_of(text: str) -> list[str]:
    """A list of texts from a column; ValueError where it holds something else."""
    return _list_of(text, str)


def numbers_of(text: str) -> list[float]:
    """A list of numbers from a column, those that are not finite too; ValueError where it holds something else."""
    return [float(one) for one in _list_of(text, float, int, str)]


def _list_of(text: str, *types: type) -> list[Any]:
    found = json.loads(text)
    if not isinstance(found, list) or not {type(one) for one in found} <= set(types):
        raise ValueError(f"not a JSON list of {' or '.join(one.__name__ for one in types)}")
    return found


def _whole(value: Any) -> int | None:
    """An integer that fits a column; a wider one is in the JSON of the settings only."""
    return value if isinstance(value, int) and -_WIDEST <= value < _WIDEST else None


def _texts(value: Any) -> str | None:
    return plain(value) if isinstance(value, str) else None


# -- runs -------------------------------------------------------------------------------------------------------------


def run_row(start: Start, sequence: int, run: str, started: str) -> dict[str, Any]:
    """The columns of `runs` that are known when a run starts."""
    settings = start.settings
    return {
        "id": run,
        "started": started,
        "model": plain(start.model),
        "base": plain(start.base),
        **{key: plain(value) if value is not None else None for key, value in asdict(start.identity).items()},
        "untrained": int(start.untrained),
        "dtype": plain(start.dtype),
        "device": plain(start.device),
        "version": plain(start.version),
        "versions": to_json(start.versions),
        "seed": _whole(settings.get("seed")),
        "trigger": _texts(settings.get("trigger")),
        "control": _texts(settings.get("control")),
        "thought_length": _whole(settings.get("thought_length")),
        "samples": _whole(settings.get("samples")),
        "temperature": real(settings.get("temperature")),
        "mixing_weight": real(settings.get("mixing_weight")),
        "settings": to_json(settings),
        "phase": plain(start.phase),
        "chat": int(start.chat),
        "sequence": sequence,
        "batch_size": len(start.prompt_ids),
        "schema": start.schema,
        "asked": plain(start.asked[sequence]) if start.asked else "",
        "prompt": plain(start.prompts[sequence]),
        "prompt_ids": to_json(start.prompt_ids[sequence]),
    }


def start_of(row: Row, batch: Iterable[Row]) -> Start:
    """The start event again; `batch` are the runs of its batch that are still there, itself included.

    The prompts of runs of the batch that were deleted are "" and [].
    """
    batch = list(batch)
    size = row["batch_size"]
    if not 0 < size <= MOST_IN_A_BATCH:
        raise ValueError(f"a batch of {size} runs")
    asked, prompts, prompt_ids = [""] * size, [""] * size, [list[int]() for _ in range(size)]
    for one in batch:
        b = one["sequence"]
        if not 0 <= b < size:
            raise ValueError(f"sequence {b} of a batch of {size} runs")
        asked[b], prompts[b] = one["asked"], one["prompt"]
        prompt_ids[b] = ids_of(one["prompt_ids"])
    return Start(
        schema=row["schema"],
        version=row["version"],
        model=row["model"],
        base=row["base"],
        dtype=row["dtype"],
        device=row["device"],
        untrained=bool(row["untrained"]),
        prompts=prompts,
        prompt_ids=prompt_ids,
        chat=bool(row["chat"]),
        settings=object_of(row["settings"]),
        phase=row["phase"],
        identity=Identity(**{key: row[key] for key in asdict(Identity())}),
        versions=object_of(row["versions"]),
        asked=asked,
    )


def end_of(row: Row) -> End | None:
    """How a run ended, None while it runs and after a kill."""
    if row["reason"] is None:
        return None
    return End(
        row["sequence"],
        row["reason"],
        row["text"],
        row["tokens"],
        row["thoughts"],
        number(row["seconds"]),
        row["drafted"] or 0,
        row["accepted"] or 0,
    )


def noise_row(event: NoiseFloor) -> dict[str, Any]:
    """The noise floor as columns of `runs`."""
    return {
        "noise_places": event.places,
        "noise_kl": real(event.kl),
        "noise_logprob": real(event.logprob),
        "noise_weight": real(event.weight),
        "noise_gain": None if event.gain is None else real(event.gain),
    }


def noise_of(row: Row) -> NoiseFloor | None:
    """The noise floor again, None where the run has none."""
    if row["noise_places"] is None:
        return None
    return NoiseFloor(
        row["noise_places"],
        number(row["noise_kl"]),
        number(row["noise_logprob"]),
        number(row["noise_weight"]),
        row["noise_gain"],
    )


# -- tokens and thoughts ----------------------------------------------------------------------------------------------


def token_row(run: str, event: TokenEvent) -> dict[str, Any]:
    """One emitted token as columns of `tokens`."""
    return {
        "run": run,
        "position": event.position,
        "token": event.id,
        "text": plain(event.text),
        "logprob": real(event.logprob),
        "thought": int(event.thought),
    }


def token_of(row: Row, sequence: int) -> TokenEvent:
    """The token event again."""
    return TokenEvent(
        sequence, row["position"], row["token"], row["text"], number(row["logprob"]), bool(row["thought"])
    )


def thought_row(run: str, event: ThoughtEvent, context: str) -> dict[str, Any]:
    """One position with its thought as columns of `thoughts`."""
    return {
        "run": run,
        "position": event.position,
        "context": plain(context),
        "text": plain(event.samples[0].text) if event.samples else "",
        "trigger": plain(event.trigger),
        "control": plain(event.control),
        "weight": real(event.weight),
        "kl": real(event.kl),
        "entropy": real(event.entropy),
        "flipped": int(event.flipped),
        "base_logprob": real(event.base_logprob),
        "mixed_logprob": real(event.mixed_logprob),
        "only_logprob": real(event.only_logprob),
        "base_token": _first(event.base),
        "mixed_token": _first(event.mixed),
        "only_token": _first(event.only),
        "base_top": choices_json(event.base),
        "mixed_top": choices_json(event.mixed),
        "only_top": choices_json(event.only),
    }


def sample_row(run: str, position: int, place: int, sample: Sample) -> dict[str, Any]:
    """One sample of a thought as columns of `samples`."""
    return {
        "run": run,
        "position": position,
        "sample": place,
        "text": plain(sample.text),
        "weight": real(sample.weight),
        "tokens": to_json(sample.ids),
        "pieces": to_json(sample.pieces),
        "logprobs": to_json(sample.logprobs),
    }


def thought_of(row: Row, samples: Iterable[Row], sequence: int) -> ThoughtEvent:
    """The thought event again."""
    return ThoughtEvent(
        sequence=sequence,
        position=row["position"],
        trigger=row["trigger"],
        control=row["control"],
        samples=[sample_of(one) for one in samples],
        weight=number(row["weight"]),
        base=choices_of(row["base_top"]),
        mixed=choices_of(row["mixed_top"]),
        only=choices_of(row["only_top"]),
        flipped=bool(row["flipped"]),
        kl=number(row["kl"]),
        entropy=number(row["entropy"]),
        base_logprob=row["base_logprob"],
        mixed_logprob=row["mixed_logprob"],
        only_logprob=row["only_logprob"],
    )


def sample_of(row: Row) -> Sample:
    """One sample again."""
    return Sample(
        ids=ids_of(row["tokens"]),
        text=row["text"],
        logprobs=numbers_of(row["logprobs"]),
        weight=number(row["weight"]),
        pieces=texts_of(row["pieces"]),
    )


def choices_json(choices: Iterable[Choice]) -> str:
    """Candidates as JSON rows [token id, text, probability]."""
    return to_json([[choice.id, choice.text, choice.prob] for choice in choices])


def choices_of(text: str) -> list[Choice]:
    """The candidates again."""
    rows = _list_of(text, list)
    if any(list(map(type, row[:2])) != [int, str] for row in rows):
        raise ValueError("not a JSON list of [token id, text, probability]")
    return [Choice(token, word, float(prob)) for token, word, prob in rows]


def _first(choices: Sequence[Choice]) -> str | None:
    return plain(choices[0].text) if choices else None
