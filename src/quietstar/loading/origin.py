"""What a model was loaded with, and what differs from it now: the one answer that saving goes by.

Knows weights, structure, configuration, generation defaults and tokenizer of a base model. It knows nothing about
files, and nothing about markers, mixing head and adapters, which are saved in full each time.
"""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from quietstar.engine import adapters, identity
from quietstar.errors import QuietStarError

_FREE = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config"}
_PLACES = {
    "name_or_path",
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "added_tokens_file",
    "special_tokens_map_file",
}


@dataclass(frozen=True)
class Origin:
    """A base model and its tokenizer at one moment, in hashes.

    Args:
        weights: of each parameter and persistent buffer. derived: of the other buffers, which the configuration gives.
        structure: which module is where. tied: whether input and output embeddings are one tensor.
        config, generation: as JSON. tokenizer: of everything that decides how it encodes and renders; "" without one.
        dtype: the precision the weights had.
    """

    weights: dict[str, bytes]
    derived: dict[str, bytes]
    structure: str
    tied: bool
    config: str
    generation: str
    tokenizer: str
    dtype: torch.dtype

    @classmethod
    def of(cls, base: PreTrainedModel, tokenizer: Any) -> Origin:
        """The hashes of a base model and its tokenizer as they are now."""
        return cls(
            identity.digests(base),
            _derived(base),
            structure(base),
            is_tied(base),
            config_text(base),
            generation_text(base),
            tokenizer_hash(tokenizer),
            base.dtype,
        )

    @property
    def fingerprint(self) -> str:
        """One hash of all weights."""
        return identity.combine(self.weights)


@dataclass(frozen=True)
class Changes:
    """What of a model is no longer as it was loaded; each a list of words for a message, empty where nothing is.

    Args:
        base: weights and configuration, which only the base saved in full can hold.
        lost: what no saved base could hold. generation, tokenizer: whether they are to be written beside.
        now: the model as it is.
    """

    base: list[str]
    lost: list[str]
    generation: bool
    tokenizer: bool
    now: Origin


def changes(base: Any, inner: PreTrainedModel, tokenizer: Any, was: Origin) -> Changes:
    """Compare a model with what it was loaded with.

    Args:
        base: the model as it is used, in PEFT's wrapper or not. inner: the base model within.
    """
    now = Origin.of(inner, tokenizer)
    kept = adapters.carried(base, inner)
    names = [name for name in {**was.weights, **now.weights} if was.weights.get(name) != now.weights.get(name)]
    found = [name for name in names if name not in kept]
    for what in ("config", "structure", "tied"):
        if getattr(was, what) != getattr(now, what):
            found.append({"config": "its configuration", "tied": "the tie of its embeddings"}.get(what, what))
    lost = []
    if was.dtype == now.dtype and was.config == now.config:  # another configuration or precision gives others
        lost = [name for name in was.derived if was.derived[name] != now.derived.get(name, was.derived[name])]
    return Changes(found, lost, was.generation != now.generation, was.tokenizer != now.tokenizer, now)


def check_structure(inner: PreTrainedModel) -> None:
    """Refuse a base whose configuration would build another model than it is.

    Raises:
        QuietStarError: a module or weight that was added, taken out or exchanged by hand.
    """
    try:
        with torch.device("meta"):
            other = type(inner)(copy.deepcopy(inner.config))
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise QuietStarError(
            f"the base model cannot be saved: its configuration does not build a {type(inner).__name__} "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        ) from error
    here, there = _shapes(inner), _shapes(other)
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            raise QuietStarError(
                f"the base model cannot be saved: {name or 'its class'} is {here.get(name, 'not there')}, but its "
                f"configuration builds {there.get(name, 'none')}; change the configuration too, or keep the base as "
                "it was"
            )


def _shapes(model: PreTrainedModel) -> dict[str, str]:
    found = {name: f"a weight of {tuple(t.shape)}" for name, t in adapters.plain_tensors(model).items()}
    for name, module in adapters.plain_modules(model):
        found[name] = type(module).__name__
        found |= {f"{name}.{key}": f"{value:g}" for key, value in _constants(module).items()}
    return found


def _constants(module: nn.Module) -> dict[str, float]:
    """Numbers such as an epsilon or a scale that a module computes with; some ropes set theirs by the text's length."""
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, float) and not key.startswith("_") and key != "attention_scaling"
    }


def structure(base: PreTrainedModel) -> str:
    """A hash of which module of the base is where, and of the constants in it; adapters left out."""
    kinds = [
        (name, type(module).__qualname__, sorted(_constants(module).items()))
        for name, module in adapters.plain_modules(base)
    ]
    return hashlib.sha256(repr(kinds).encode()).hexdigest()


def _derived(base: PreTrainedModel) -> dict[str, bytes]:
    """Buffers that a configuration gives and no file holds; those that follow the length of the text are left out."""
    rope = getattr(base.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    if any(kind in str(rope) for kind in ("dynamic", "longrope")):
        return {}
    return {name: identity.digest(value) for name, value in adapters.plain_tensors(base, persistent=False).items()}


def is_tied(base: PreTrainedModel) -> bool:
    """Whether input and output embeddings are the same tensor."""
    plain = dict(adapters.plain_modules(base))
    names = {id(module): name for name, module in base.named_modules()}
    found: list[Tensor] = []
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        own = plain.get(names.get(id(module), "").replace(".base_layer", "").replace(".original_module", ""))
        weight = getattr(own if own is not None else module, "weight", None)
        if not isinstance(weight, Tensor):
            return False
        found.append(weight)
    return found[0] is found[1] or (found[0].data_ptr() == found[1].data_ptr() and found[0].device.type != "meta")


def config_text(base: PreTrainedModel) -> str:
    """The configuration as JSON, without what says where, when or in which precision the model was loaded."""
    return json.dumps(_without(base.config.to_dict(), _FREE), sort_keys=True, default=str)


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {str(key): _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, (list, tuple)) else value


def generation_text(base: PreTrainedModel) -> str:
    """The generation defaults as JSON, "" without any."""
    config = getattr(base, "generation_config", None)
    if config is None:
        return ""
    said = _without(config.to_dict(), {"transformers_version", "_from_model_config"})
    return json.dumps(said, sort_keys=True, default=str)


def tokenizer_hash(tokenizer: Any) -> str:
    """A hash of what decides how a tokenizer encodes, decodes and renders conversations; "" for None."""
    if tokenizer is None:
        return ""
    settings = {key: value for key, value in tokenizer.init_kwargs.items() if key not in _PLACES}
    said = {"class": type(tokenizer).__name__, "settings": settings, **_behaviour(tokenizer)}
    return hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode()).hexdigest()


def _behaviour(tokenizer: Any) -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    model = json.dumps(sorted(tokenizer.get_vocab().items())) if backend is None else backend.to_str()
    added = sorted(tokenizer.added_tokens_decoder)
    probe = " ".join(str(tokenizer.added_tokens_decoder[index]) for index in added)
    return {
        "chat template": getattr(tokenizer, "chat_template", None),
        "special tokens": tokenizer.special_tokens_map,
        "added tokens": {str(i): repr(token) for i, token in sorted(tokenizer.added_tokens_decoder.items())},
        "tokens left out as special": tokenizer.decode(added, skip_special_tokens=True),
        "encoding of added tokens": tokenizer(probe, verbose=False)["input_ids"],
        "vocabulary": model[max(0, model.find('"added_tokens"')) :],  # before it: padding and truncation of a call
    } | {key: getattr(tokenizer, key, None) for key in ("padding_side", "truncation_side", "model_max_length")}


def check_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Refuse a tokenizer whose files, just written, give another one.

    Raises:
        QuietStarError: such as for a padding token that was named without being added.
    """
    again = _behaviour(AutoTokenizer.from_pretrained(folder, local_files_only=True))
    for key, value in _behaviour(tokenizer).items():
        if again[key] != value:
            raise QuietStarError(
                f"the tokenizer would come back with other {key}: transformers does not save it as it is; make new "
                "special tokens known with tokenizer.add_special_tokens"
            )
