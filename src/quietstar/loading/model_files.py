"""The files of a model, looked at before any library reads them: JSON that is JSON, weights that are safetensors.

A model folder is other people's data. What is wrong with it is told in one line that names the file; weights are read
from safetensors alone, so that nothing in a folder can run code (a pickled file could). Knows files and their headers;
knows nothing about thinking models.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from quietstar.errors import QuietStarError, first_line

Find = Callable[[str], Path | None]  # a file of the model by its name, None where there is none

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_OTHERS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_LARGEST_JSON = 100_000_000  # bytes; the index of the largest models has a few
_LAYERS = re.compile(r"(num|n)_(hidden_|decoder_)?layers?")
_REPEATED = re.compile(r"(num|n)_\w*(layer|expert|block|codebook)\w*|depth|\w*(layers|experts|blocks)")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        QuietStarError: not there, not readable, no JSON, or no object.
    """
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise QuietStarError(f"{path} has {path.stat().st_size} bytes, far too many for a file of settings")
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise QuietStarError(f"cannot read {path}: {error.strerror or error}") from error
    except RecursionError as error:
        raise QuietStarError(f"{path} is nested too deeply; the file is broken") from error
    except ValueError as error:
        raise QuietStarError(
            f"{path} is not valid JSON ({first_line(error)}); the download may be incomplete"
        ) from error
    if not isinstance(found, dict):
        raise QuietStarError(f"{path} should hold a JSON object; the file is broken")
    return found


@dataclass(frozen=True)
class Stored:
    """What the weights files of a model hold, from their headers."""

    shapes: dict[str, tuple[int, ...]]

    @property
    def elements(self) -> int:
        """How many numbers the weights hold in all."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def check_base(name: str, find: Find, local: bool = True) -> tuple[dict[str, Any], Stored | None]:
    """Look at the files of a base model before they are loaded.

    Args:
        name: of the model, for messages. find: its files.
        local: False for a model of a hub, whose weights the libraries may look for in other places.

    Returns:
        Its `config.json`, and what its weights files hold (None where they are not here yet).

    Raises:
        QuietStarError: no or broken settings, weights that are not safetensors, an index that points elsewhere, a
            PEFT adapter in place of a model, a configuration far larger than the weights.
    """
    path = find("config.json")
    adapter = find("adapter_config.json")
    if path is None and adapter is not None:
        base = read_json(adapter).get("base_model_name_or_path")
        raise QuietStarError(
            f"{name} is a PEFT adapter (for {base}), not a model: load its base with transformers and PEFT, and give "
            "both to QuietStar.from_base"
        )
    if path is None:
        raise QuietStarError(f"{name} has no config.json; the folder or download is incomplete")
    config = read_json(path)
    if adapter is not None:
        raise QuietStarError(
            f"{name} holds a model and a PEFT adapter (adapter_config.json) in one folder; move the adapter out, load "
            "both with PEFT and give them to QuietStar.from_base"
        )
    if not isinstance(config.get("model_type"), str):
        raise QuietStarError(f"{path} should name the kind of model in model_type; the file is broken")
    for other in _OTHERS:
        if (found := find(other)) is not None:
            read_json(found)
    stored = _stored(name, find, config, local)
    if stored is not None:
        _check_size(path, config, stored)
    return config, stored


def _stored(name: str, find: Find, config: dict[str, Any], local: bool) -> Stored | None:
    chosen = config.get("transformers_weights")
    if chosen is not None:
        _check_name(f"{name}: transformers_weights in config.json", chosen)
        files = [chosen]
    elif find(WEIGHTS) is not None:
        files = [WEIGHTS]
    else:
        files = sorted(set(shards(name, find).values()))
        if not files and not local:
            return None
        if not files:
            pickled = [file for file in ("pytorch_model.bin", "pytorch_model.bin.index.json") if find(file) is not None]
            only = f"only {pickled[0]}, a pickled file, which is never read" if pickled else "the folder is incomplete"
            raise QuietStarError(
                f"{name} has no {WEIGHTS} and no {INDEX}: {only}"
                + ("; save the model with safetensors (save_pretrained does)" if pickled else "")
            )
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        path = find(file)
        if path is None:
            raise QuietStarError(f"{name} has no {file}, which its index names; the folder or download is incomplete")
        shapes |= header(path)
    return Stored(shapes)


def shards(name: str, find: Find) -> dict[str, str]:
    """Which file each weight is in, from the index; {} where there is no index.

    Raises:
        QuietStarError: a broken index, or one that names anything but safetensors files beside it.
    """
    path = find(INDEX)
    if path is None:
        return {}
    found = read_json(path).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise QuietStarError(f"{path} has no weight_map that says which file each weight is in; the file is broken")
    for file in set(map(str, found.values())):
        _check_name(str(path), file)
    if not all(isinstance(file, str) for file in found.values()):
        raise QuietStarError(f"{path} has a weight_map with values that are no file names; the file is broken")
    return found


def _check_name(where: str, file: Any) -> None:
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        raise QuietStarError(f"{where} names {file!r}; only safetensors files are read, never pickled ones")
    if "/" in file or "\\" in file or "\0" in file:
        raise QuietStarError(f"{where} names {file!r}, which is not a file beside it; such a model is not read")


def header(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file.

    Raises:
        QuietStarError: broken or half downloaded.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise QuietStarError(
            f"{path}: a weights file is damaged or incomplete ({first_line(error)}); download it again"
        ) from error


# -- sizes ------------------------------------------------------------------------------------------------------------


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    """All whole numbers in a configuration with the names they stand under."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _numbers(one, key)
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(one, name)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield name, value


def _check_size(path: Path, config: dict[str, Any], stored: Stored) -> None:
    """Refuse counts of layers and experts that the weights cannot fill: building so many parts would not end."""
    tensors = len(stored.shapes)
    widest = max([10_000, tensors, *(size for shape in stored.shapes.values() for size in shape)])
    for name, value in _numbers(config):
        limit = tensors if _LAYERS.fullmatch(name) else widest if _REPEATED.fullmatch(name) else None
        least = 1 if name in config and _LAYERS.fullmatch(name) else 0
        if limit is not None and not least <= value <= limit:
            raise QuietStarError(
                f"{path} asks for {name} = {value}, but the weights hold {tensors} tensors; the two files do not match"
            )


def check_parameters(name: str, wanted: int, stored: Stored) -> None:
    """Refuse a configuration that asks for far more numbers than the weights have, before any memory is taken."""
    most = 16 * stored.elements + 1_000_000  # packed 4-bit weights have 8 in one element
    if wanted > most:
        raise QuietStarError(
            f"{name}: its settings ask for {wanted:.1e} weights, but it holds {stored.elements:.1e}; the two do not "
            "match"
        )
