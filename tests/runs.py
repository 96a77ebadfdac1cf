"""Small training runs for tests: texts, a recipe over a tiny model, and what a run left."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from quietstar.training import recipe as recipes
from quietstar.training import run_log

LINES = [
    f"the quick brown fox number {n} thinks before it speaks and then it says the thing {n * n}" for n in range(40)
]


def write_texts(path: Path, lines: list[str] = LINES) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def recipe(model, texts, out, **more) -> recipes.Recipe:
    """Four steps with a checkpoint after each; `section__key` overrides."""
    raw: dict = {
        "model": str(model), "out": str(out), "seed": 5, "precision": "fp32",
        "data": {"train": [str(texts)], "length": 16, "heldout_share": 0.2},
        "weights": {"train": "lora", "rank": 2, "dropout": 0.1},
        "thinking": {"thought_length": 2, "samples": 2, "positions": "random", "share": 0.3,
                     "objective": {"lookahead": 2, "policy_weight": 1.0}},
        "optimizer": {"learning_rate": 1e-3, "steps": 4, "warmup": 1, "batch": 2, "accumulate": 1},
        "watch": {"save_every": 1, "evaluate_every": 0},
    }  # fmt: skip
    for key, value in more.items():
        *sections, name = key.split("__")
        where = raw
        for section in sections:
            where = where.setdefault(section, {})
        where[name] = value
    return recipes.from_mapping(raw, "here")


def log(out) -> list[dict]:
    """The log without what depends on the clock."""
    return [line for line in run_log.read(out) if "train_runtime" not in line]


def weights(folder) -> dict[str, torch.Tensor]:
    return {str(p.relative_to(folder)) + k: v for p in Path(folder).rglob("*.safetensors")
            for k, v in load_file(p).items()}  # fmt: skip


def same_weights(folder, other) -> bool:
    found, wanted = weights(folder), weights(other)
    return found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


def contents(folder) -> dict[str, bytes]:
    """Every file below a folder, byte by byte."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
