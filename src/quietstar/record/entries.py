"""What the store takes and returns besides traces: entries of the lists of runs and of thoughts, and interventions."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from quietstar.events import Choice, Sample
from quietstar.record import columns
from quietstar.record.columns import Row


@dataclass
class Run:
    """One recorded run without its tokens and thoughts; fields as in the table `runs`.

    `reason` is None while it runs and after a kill. `text` is what it said, `asked` what was asked, `prompt` what the
    model read for it. `noise_kl` is the noise floor of KL in nats, None where it was not measured.
    """

    id: str
    started: str
    reason: str | None
    seconds: float | None
    drafted: int | None
    accepted: int | None
    model: str
    base: str
    base_hash: str
    head_hash: str
    adapter: str
    untrained: bool
    seed: int | None
    settings: dict[str, Any]
    phase: str
    continues: str | None
    batch: str | None
    sequence: int
    tokens: int
    thoughts: int
    flips: int
    noise_kl: float | None
    note: str
    tags: tuple[str, ...]
    asked: str
    prompt: str
    text: str

    @classmethod
    def of(cls, row: Row, tags: tuple[str, ...]) -> Run:
        """From a row of `runs`."""
        plain = {name: row[name] for name in cls.__dataclass_fields__ if name not in ("settings", "untrained", "tags")}
        return cls(**plain, settings=columns.object_of(row["settings"]), untrained=bool(row["untrained"]), tags=tags)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self) | {"tags": list(self.tags)}


@dataclass
class ThoughtEntry:
    """One entry of a list of thoughts over many runs: its position, its first sample's text, and its numbers.

    `base_token`, `mixed_token`, `only_token` are the likeliest next tokens without, with and from only the thought;
    `samples` is how many there are at the position. `above_noise` is whether KL is above its run's noise floor, None
    where that was not measured. `Store.thought` gives the rest.
    """

    run: str
    position: int
    model: str
    context: str
    text: str
    samples: int
    trigger: str
    control: str
    weight: float | None
    kl: float | None
    gain: float | None
    entropy: float | None
    surprise: float | None
    flipped: bool
    above_noise: bool | None
    base_token: str | None
    mixed_token: str | None
    only_token: str | None

    @classmethod
    def of(cls, row: Row) -> ThoughtEntry:
        """From a row of `thoughts` with its model."""
        plain = {name: row[name] for name in cls.__dataclass_fields__ if name not in ("flipped", "above_noise")}
        above = row["above_noise"]
        return cls(**plain, flipped=bool(row["flipped"]), above_noise=None if above is None else bool(above))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self)


@dataclass
class Intervention:
    """A changed thought and what it did.

    Args:
        position: where the thought was changed.
        kind: "edited", "resampled", or the name of a control ("none", "filler", "shuffled", "donor", "truncated:3").
        sample: the thought that was put there, with its own weight w.
        base, mixed, only: likeliest next tokens without it, with it, and from it alone.
        kl: KL(mixed || base) in nats. flipped: whether the likeliest token differs from the base's.
        continuation: the text that followed with it, None where none was generated.
        settings: how it was made, as far as the run's settings do not say.
        made: when, filled in by the store. number: its number in the store.
    """

    position: int
    kind: str
    sample: Sample
    base: list[Choice]
    mixed: list[Choice]
    only: list[Choice]
    kl: float
    flipped: bool
    continuation: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    made: str = ""
    number: int | None = None

    def row(self, run: str, made: str) -> dict[str, Any]:
        """As columns of `interventions`."""
        sample = columns.sample_row(run, self.position, 0, self.sample)
        del sample["sample"]
        return sample | {
            "made": made,
            "kind": columns.plain(self.kind),
            "kl": columns.real(self.kl),
            "flipped": int(self.flipped),
            "base_top": columns.choices_json(self.base),
            "mixed_top": columns.choices_json(self.mixed),
            "only_top": columns.choices_json(self.only),
            "settings": columns.to_json(self.settings),
            "continuation": None if self.continuation is None else columns.plain(self.continuation),
        }

    @classmethod
    def of(cls, row: Row) -> Intervention:
        """From a row of `interventions`."""
        return cls(
            position=row["position"],
            kind=row["kind"],
            sample=columns.sample_of(row),
            base=columns.choices_of(row["base_top"]),
            mixed=columns.choices_of(row["mixed_top"]),
            only=columns.choices_of(row["only_top"]),
            kl=columns.number(row["kl"]),
            flipped=bool(row["flipped"]),
            continuation=row["continuation"],
            settings=columns.object_of(row["settings"]),
            made=row["made"],
            number=row["number"],
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self)
