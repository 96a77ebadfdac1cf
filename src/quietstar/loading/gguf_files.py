"""What a GGUF file says beside its weights: applied to the configuration transformers makes of it, or refused by name.

transformers reads some keys of a GGUF file and drops the others without a word, among them rotary scaling, windows,
soft-caps and tensors that it has no place for. Here every key of the file's architecture is accounted for: read by
transformers, applied by this module, of no effect, or a reason to refuse the file.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from quietstar.errors import QuietStarError

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_F32 = 0  # the type number of plain fp32 tensors


@dataclass(frozen=True)
class GGUFTensor:
    """One entry of the tensor table; `start` is its first byte in the file, `shape` as torch names it."""

    shape: tuple[int, ...]
    kind: int
    start: int
    elements: int


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata and tensor table of a file. An array is kept as its list of numbers, or as the count of its texts."""

    path: Path
    fields: dict[str, Any]
    tensors: dict[str, GGUFTensor]

    @property
    def architecture(self) -> str:
        """The name of the architecture, as in "llama"; "" where the file gives none."""
        return str(self.fields.get("general.architecture", ""))

    @property
    def own(self) -> dict[str, Any]:
        """The fields of the architecture, without its name in front."""
        prefix = self.architecture + "."
        return {key[len(prefix) :]: value for key, value in self.fields.items() if key.startswith(prefix)}


class _Cursor:
    """Reads forward and refuses to pass the end, whatever lengths the file claims."""

    def __init__(self, path: Path) -> None:
        self.path, self.data, self.at = path, np.memmap(path, mode="r"), 0

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.data) - self.at:
            raise _broken(self.path, f"it ends in the middle of its header, at byte {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at].tobytes()

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY or depth > 3:
            raise _broken(self.path, f"its metadata has a value of unknown type {kind}")
        inner, count = self.number("<I"), self.number("<Q")
        if inner in _SCALARS:
            size = struct.calcsize(_SCALARS[inner])
            return np.frombuffer(self.take(count * size), dtype=_SCALARS[inner]).tolist()
        if count > len(self.data):
            raise _broken(self.path, f"its metadata has an array of {count} entries, more than it has bytes")
        for _ in range(count):
            self.value(inner, depth + 1)
        return count


def _broken(path: Path, why: str) -> QuietStarError:
    return QuietStarError(f"{path} is not a complete GGUF file: {why}; download it again")


def read_header(path: Path) -> GGUFHeader:
    """Metadata and tensor table, checked against the size of the file.

    Raises:
        QuietStarError: no GGUF file, a broken one, or one of another byte order or version.
    """
    from gguf import GGML_QUANT_SIZES

    size = path.stat().st_size
    if size < 24:
        raise _broken(path, f"it has {size} bytes")
    cursor = _Cursor(path)
    if cursor.take(4) != b"GGUF":
        raise QuietStarError(f"{path} is not a GGUF file (it does not begin with the letters GGUF)")
    version = cursor.number("<I")
    if version not in (2, 3):
        raise QuietStarError(f"{path} has GGUF version {version}; 2 and 3 in little-endian order are read")
    count, keys = cursor.number("<Q"), cursor.number("<Q")
    fields: dict[str, Any] = {}
    for _ in range(min(keys, size)):
        name = cursor.text()
        fields[name] = cursor.value(cursor.number("<I"))
    table = []
    for _ in range(min(count, size)):
        name, dimensions = cursor.text(), cursor.number("<I")
        if dimensions > 8:
            raise _broken(path, f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
        table.append((name, shape, cursor.number("<I"), cursor.number("<Q")))
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        raise _broken(path, f"its alignment is {alignment!r}")
    first = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    sizes = {int(kind): found for kind, found in GGML_QUANT_SIZES.items()}
    for name, shape, kind, offset in table:
        if kind not in sizes:
            raise QuietStarError(f"{path}: tensor {name!r} has type {kind}, which this version of gguf does not know")
        block, block_bytes = sizes[kind]
        elements = math.prod(shape)
        if elements % block or first + offset + elements // block * block_bytes > size:
            raise _broken(path, f"tensor {name!r} of shape {shape} passes the end of the file")
        if name in tensors:
            raise _broken(path, f"tensor {name!r} is there twice")
        tensors[name] = GGUFTensor(shape, kind, first + offset, elements)
    if not isinstance(fields.get("general.architecture"), str):
        raise _broken(path, "it does not name its architecture")
    if not tensors:
        raise _broken(path, "it holds no tensors")
    return GGUFHeader(path, fields, tensors)


# -- the configuration ------------------------------------------------------------------------------------------------

# Needed to make any sense of the weights; transformers would put its own defaults in their place.
_NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count")
_EPSILON = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
# Copied where the configuration has the attribute.
_COPIED = {
    "attention.key_length": "head_dim",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
_WINDOWED = ("phi3", "mistral", "starcoder2", "gemma2", "gemma3_text")  # apply config.sliding_window as it stands
# Values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "pooling_type": (0,),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "attention.max_alibi_bias": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "nextn_predict_layers": (0,),
    "attention.shared_kv_layers": (0,),
}
_NO_EFFECT = frozenset(["tensor_data_layout", "rope.scaling.finetuned"])
_SCALING = "rope.scaling."
_27B = {"gemma2": 46, "gemma3_text": 62}  # layers of the one size whose queries are scaled by hidden size / heads


def configuration(header: GGUFHeader) -> PreTrainedConfig:
    """The configuration of the model in a GGUF file, with all that the file says.

    Raises:
        QuietStarError: the architecture is not read, or the file says something that cannot be applied.
    """
    from transformers import AutoConfig
    from transformers.integrations import GGUF_CONFIG_MAPPING

    own = header.own
    for key in _NEEDED:
        if not isinstance(own.get(key), int) or own[key] < 1:
            raise _broken(header.path, f"{header.architecture}.{key} should be a whole number, and is {own.get(key)!r}")
    if own["block_count"] > len(header.tensors):
        raise _broken(header.path, f"it claims {own['block_count']} layers and holds {len(header.tensors)} tensors")
    if not any(key in own for key in _EPSILON):
        raise _broken(header.path, f"it lacks {header.architecture}.{_EPSILON[0]}")
    if varied := sorted(key for key, value in own.items() if isinstance(value, list)):
        raise _refused(header, varied[0], own[varied[0]])
    config = AutoConfig.from_pretrained(str(header.path.parent), gguf_file=header.path.name, local_files_only=True)
    read = {
        key
        for key, attribute in GGUF_CONFIG_MAPPING.get(config.model_type.removesuffix("_text"), {}).items()
        if attribute is not None
    }
    for key, value in sorted(
        own.items(), key=lambda pair: pair[0] not in _COPIED
    ):  # the others are compared with these
        if key.startswith(_SCALING) or key in _NO_EFFECT:
            continue
        if not _applied(config, key, value) and key not in read and not any(value == x for x in _NEUTRAL.get(key, ())):
            raise _refused(header, key, value)
    rotated = own.get("rope.dimension_count")
    if rotated is not None and not _applied(config, "rope.dimension_count", rotated):
        raise _refused(header, "rope.dimension_count", rotated)
    _set_window(config, header)
    _set_query_scale(config)
    _set_rope(config, header)
    return config


def _refused(header: GGUFHeader, key: str, value: Any) -> QuietStarError:
    return QuietStarError(
        f"{header.path} cannot be loaded faithfully: {header.architecture}.{key} = {value!r} is not supported by this "
        "version of transformers; use the model's folder with safetensors instead"
    )


def _head_dim(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _applied(config: PreTrainedConfig, key: str, value: Any) -> bool:
    """True where `config` says the same as the file, if need be because it was set here."""
    if key in _COPIED and hasattr(config, _COPIED[key]):
        setattr(config, _COPIED[key], value)
        return True
    if key in ("attention.key_length", "attention.value_length"):
        return bool(value == _head_dim(config))
    if key == "rope.dimension_count":
        share = (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0)
        return bool(value == int(_head_dim(config) * share))
    if key == "attention.scale":
        return math.isclose(value, _head_dim(config) ** -0.5, rel_tol=1e-4)
    if key == "use_parallel_residual":
        return bool(value == getattr(config, "use_parallel_residual", False))
    if key == "expert_shared_count":
        return value == 0 or (value == 1 and config.model_type == "qwen2_moe")
    return key in ("rope.freq_base", "attention.sliding_window")  # set below


def _set_window(config: PreTrainedConfig, header: GGUFHeader) -> None:
    window = header.own.get("attention.sliding_window")
    if config.model_type in _WINDOWED:
        config.sliding_window = window or None
        if window is None and config.model_type.startswith("gemma"):
            raise _broken(header.path, f"it lacks {header.architecture}.attention.sliding_window")
    elif window and window < header.own["context_length"]:
        raise _refused(header, "attention.sliding_window", window)


def _set_query_scale(config: PreTrainedConfig) -> None:
    """Gemma's query scale stands in no key: all sizes take the head size, but the one with 27 billion weights."""
    if config.model_type in _27B:
        largest = config.num_hidden_layers == _27B[config.model_type]
        config.query_pre_attn_scalar = (
            config.hidden_size // config.num_attention_heads if largest else _head_dim(config)
        )


def _set_rope(config: PreTrainedConfig, header: GGUFHeader) -> None:
    own, rope = header.own, getattr(config, "rope_parameters", None)
    factors = header.tensors.get("rope_freqs.weight")
    kind = own.get(_SCALING + "type", "linear" if own.get(_SCALING + "factor", 1.0) != 1.0 else "none")
    if not rope:
        if factors is not None or kind != "none":
            raise _refused(header, _SCALING + "type", kind)
        return
    main = rope.get("full_attention", rope)  # the windows of Gemma 3 are never scaled
    main["rope_theta"] = float(own.get("rope.freq_base", 10000.0))
    if factors is not None:
        if kind != "none":
            raise _refused(header, _SCALING + "type", f"{kind} together with rope_freqs.weight")
        main |= _by_factors(header, factors, own["context_length"])
    elif kind != "none":
        main |= _by_name(header, kind)
    unknown = {key for key in own if key.startswith(_SCALING)} - _KNOWN_SCALING
    if unknown:
        key = sorted(unknown)[0]
        raise _refused(header, key, own[key])


_KNOWN_SCALING = {
    _SCALING + key
    for key in (
        "type",
        "factor",
        "attn_factor",
        "original_context_length",
        "finetuned",
        "yarn_beta_fast",
        "yarn_beta_slow",
        "yarn_ext_factor",
        "yarn_attn_factor",
    )
}


def _by_factors(header: GGUFHeader, tensor: GGUFTensor, context: int) -> dict[str, Any]:
    """Frequencies divided one by one (Llama 3); "longrope" is what transformers calls that, here at every length."""
    if tensor.kind != _F32 or len(tensor.shape) != 1:
        raise _refused(header, "rope_freqs.weight", f"type {tensor.kind} of shape {tensor.shape}")
    with header.path.open("rb") as file:
        file.seek(tensor.start)
        factors = np.frombuffer(file.read(4 * tensor.elements), dtype="<f4")
    if not np.isfinite(factors).all() or (factors <= 0).any():
        raise _broken(header.path, "rope_freqs.weight holds values that are not above zero")
    return {
        "rope_type": "longrope",
        "short_factor": factors.tolist(),
        "long_factor": factors.tolist(),
        "factor": 1.0,
        "attention_factor": 1.0,
        "original_max_position_embeddings": context,
    }


def _by_name(header: GGUFHeader, kind: str) -> dict[str, Any]:
    own = {key.removeprefix(_SCALING): value for key, value in header.own.items() if key.startswith(_SCALING)}
    factor = own.get("factor")
    if kind not in ("linear", "yarn"):
        raise _refused(header, _SCALING + "type", kind)
    if not isinstance(factor, float) or not 0 < factor < math.inf:
        raise _refused(header, _SCALING + "factor", factor)
    if kind == "linear":
        if own.get("attn_factor", 1.0) != 1.0:
            raise _refused(header, _SCALING + "attn_factor", own["attn_factor"])
        return {"rope_type": "linear", "factor": factor}
    if own.get("yarn_ext_factor", 1.0) not in (1.0, -1.0):
        raise _refused(header, _SCALING + "yarn_ext_factor", own["yarn_ext_factor"])
    times = own.get("yarn_attn_factor", own.get("attn_factor", 1.0))
    original = own.get("original_context_length") or header.own["context_length"]
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": original,
        "attention_factor": times * (1.0 + 0.1 * math.log(factor)) if factor > 1 else times,
        "beta_fast": own.get("yarn_beta_fast", 32.0),
        "beta_slow": own.get("yarn_beta_slow", 1.0),
    }


def check_tensors(header: GGUFHeader, model: PreTrainedModel) -> None:
    """Refuse a file with tensors that the loaded `model` has no place for; transformers leaves them out silently."""
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    processor = TENSOR_PROCESSORS.get(header.architecture, TensorProcessor)(config=model.config.to_dict())
    known = set(get_gguf_hf_weights_map(model, processor)) | {"rope_freqs.weight"}
    known |= {f"{name}.weight" for name in known}  # merged experts are mapped without the ending
    if header.architecture == "gpt2":
        known.add("output.weight")
    if unused := sorted(set(header.tensors) - known):
        raise QuietStarError(
            f"{header.path} cannot be loaded faithfully: its tensor {unused[0]} has no place in a "
            f"{model.config.model_type} model of this version of transformers ({len(unused)} in all); use the model's "
            "folder with safetensors instead"
        )
