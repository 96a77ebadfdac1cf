"""PEFT adapters in a base model: which tensors are theirs, what state they are in, and how they are written and read.

Knows PEFT's modules and folder format. It knows nothing about fingerprints or about how the base itself is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from quietstar.errors import QuietStarError, UnsupportedModel

# Each is saved and loaded again in tests/test_roundtrip_adapters.py; another type is refused when it is to be saved.
VERIFIED = frozenset(
    [
        "ADALORA",
        "BOFT",
        "FOURIERFT",
        "HRA",
        "IA3",
        "LN_TUNING",
        "LOHA",
        "LOKR",
        "LORA",
        "OFT",
        "TRAINABLE_TOKENS",
        "VBLORA",
        "VERA",
    ]
)
_OUTSIDE = {
    "ADAPTION_PROMPT": "it adds learned positions inside the attention, which rows do not pass through",
    "XLORA": "it weighs its adapters by a first pass over the whole text, which rows do not make",
    "POLY": "it needs a task id with every call",
}


# -- what belongs to whom ---------------------------------------------------------------------------------------------


def plain_modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, module) of the base model as if it had no adapter: each wrapped layer under its own name."""
    while (within := _wrapped(module)) is not None:
        module = within
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from plain_modules(child, f"{prefix}.{name}" if prefix else name)


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The base model's own layer inside a layer of PEFT."""
    if not any(kind.__module__.startswith("peft.") for kind in type(module).__mro__):
        return None
    for name in ("base_layer", "original_module"):
        within = getattr(module, name, None)
        if isinstance(within, nn.Module):
            return within
    return None


def plain_tensors(model: nn.Module, persistent: bool = True) -> dict[str, Tensor]:
    """Parameters and persistent buffers of the base by their own names; with `persistent` False the other buffers."""
    found: dict[str, Tensor] = {}
    for prefix, module in plain_modules(model):
        start = f"{prefix}." if prefix else ""
        passing = module._non_persistent_buffers_set
        if persistent:
            found |= {start + name: p for name, p in module._parameters.items() if p is not None}
        found |= {
            start + name: b
            for name, b in module._buffers.items()
            if b is not None and (name in passing) is not persistent
        }
    return found


def own_tensors(base: Any, inner: PreTrainedModel) -> dict[str, Tensor]:
    """What the adapters of `base` add to its base model `inner`, {} without adapters."""
    if base is inner:
        return {}
    plain = {id(tensor) for tensor in plain_tensors(inner).values()}
    return {name: value for name, value in base.state_dict(keep_vars=True).items() if id(value) not in plain}


def carried(base: Any, inner: PreTrainedModel) -> set[str]:
    """Names of the base's own tensors that an adapter's file holds (biases that were trained with it)."""
    if base is inner or all(getattr(config, "bias", "none") == "none" for config in base.peft_config.values()):
        return set()
    held = {_place(value) for name in base.peft_config for value in _file(base, name).values()}
    return {name for name, value in plain_tensors(inner).items() if _place(value) in held}


def _file(base: Any, name: str) -> dict[str, Tensor]:
    """What PEFT writes for one adapter, not yet copied."""
    from peft import get_peft_model_state_dict

    tensors: dict[str, Tensor] = get_peft_model_state_dict(base, adapter_name=name, save_embedding_layers=False)
    return tensors


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.data_ptr(), tuple(tensor.shape)


# -- refusing ---------------------------------------------------------------------------------------------------------


def kinds(base: Any, inner: PreTrainedModel) -> dict[str, str]:
    """PEFT's name of each adapter's type, by the adapter's name; {} without adapters."""
    found = {} if base is inner else base.peft_config
    return {name: getattr(config.peft_type, "value", str(config.peft_type)) for name, config in found.items()}


def check_usable(base: Any, inner: PreTrainedModel) -> None:
    """Refuse adapters that rows cannot follow.

    Raises:
        UnsupportedModel: prompt, prefix or p-tuning and the like; the message names the type.
    """
    for name, kind in kinds(base, inner).items():
        config = base.peft_config[name]
        reason = _OUTSIDE.get(kind)
        if config.is_prompt_learning:
            reason = "it puts virtual tokens before the text, which rows do not know"
        elif getattr(config, "alora_invocation_tokens", None):
            kind, reason = "aLoRA", "it looks for its invocation tokens in the whole text, which rows do not see"
        if reason:
            raise UnsupportedModel(
                f"adapter {name!r} of type {kind} is not supported: {reason}; use an adapter of the weights, such as "
                "LoRA"
            )


def check_can_save(base: Any, inner: PreTrainedModel) -> None:
    """Refuse a state of the adapters that a saved folder cannot hold.

    Raises:
        QuietStarError: in one line, with what to do first.
    """
    if base is inner:
        if any(_wrapped(module) is not None for module in inner.modules()):
            raise QuietStarError(
                "the base model has adapter layers of its own (add_adapter or inject_adapter_in_model), which would "
                "be lost; put them on with peft.get_peft_model, or merge them first"
            )
        return
    check_usable(base, inner)
    for name, kind in kinds(base, inner).items():
        if kind not in VERIFIED:
            raise QuietStarError(
                f"adapter {name!r} is of type {kind}, which is not among those known to come back whole "
                f"({', '.join(sorted(VERIFIED))}); merge it first (merge_and_unload)"
            )
        if name in ("", ".", "..") or "/" in name or "\\" in name or name.startswith("adapter_"):
            raise QuietStarError(f"adapter name {name!r} cannot be a folder's name; rename the adapter")
    state(base, inner)
    _check_scaling(base, inner)
    held = {_place(value) for name in base.peft_config for value in _file(base, name).values()}
    for name, value in own_tensors(base, inner).items():
        if _place(value.detach()) not in held and not _given(name, value, base):
            raise QuietStarError(f"{name} belongs to an adapter, but PEFT does not save it; merge the adapter first")


def _given(name: str, value: Tensor, base: Any) -> bool:
    """Whether a tensor that PEFT leaves out is what the adapter's configuration gives: AdaLoRA's count of ranks."""
    within, _, adapter = name.rpartition(".")
    config = base.peft_config.get(adapter)
    return within.endswith(".ranknum") and not config.rank_pattern and bool((value == config.init_r).all())


def state(base: Any, inner: PreTrainedModel) -> dict[str, Any]:
    """Names of the adapters, which are active, and whether they are switched off; {} without adapters.

    Raises:
        QuietStarError: layers disagree, or an adapter is merged into the weights it would be applied to again.
    """
    if base is inner:
        return {}
    layers = [module for module in inner.modules() if hasattr(module, "_disable_adapters")]
    for module in layers:
        if getattr(module, "merged_adapters", None):
            raise QuietStarError(
                f"adapter {module.merged_adapters[0]!r} is merged into the weights (merge_adapter), and would be "
                "applied twice when loaded; call unmerge_adapter first, or merge_and_unload for good"
            )
    off = {bool(module._disable_adapters) for module in layers}
    active = list(base.base_model.active_adapters)
    tuned = [module for module in layers if hasattr(module, "base_layer")]
    found = {tuple(module.active_adapters) for module in tuned} or {tuple(active)}
    if len(off) > 1 or found != {tuple(active)}:
        raise QuietStarError(
            "the layers differ in which adapters are active, which cannot be saved; set_adapter for the whole model "
            "first"
        )
    return {"names": list(base.peft_config), "active": active, "off": off == {True}}


def _check_scaling(base: Any, inner: PreTrainedModel) -> None:
    """Refuse a LoRA layer whose scale was set by hand: PEFT computes it anew from rank and alpha."""
    for path, module in inner.named_modules():
        scales, ranks, alphas = (getattr(module, key, None) for key in ("scaling", "r", "lora_alpha"))
        if not (isinstance(scales, dict) and isinstance(ranks, dict) and isinstance(alphas, dict)):
            continue
        for name, scale in scales.items():
            config = base.peft_config.get(name)
            if getattr(getattr(config, "peft_type", None), "value", "") != "LORA" or not ranks.get(name):
                continue
            rank = ranks[name] ** 0.5 if config.use_rslora else ranks[name]
            if abs(float(scale) - alphas[name] / rank) > 1e-6 * abs(float(scale)) + 1e-12:
                raise QuietStarError(
                    f"the scale of adapter {name!r} was changed at {path} ({float(scale):g} in place of "
                    f"{alphas[name] / rank:g}), which PEFT does not save; undo it, or change the adapter's alpha"
                )


# -- files ------------------------------------------------------------------------------------------------------------


def save(base: Any, folder: Path, base_name: str | None, revision: str | None, card: str) -> None:
    """Write all adapters in PEFT's format.

    Args:
        folder: where to; the adapter "default" lies in it and each other one in a folder of its name.
        base_name: what `adapter_config.json` shall name as the base. card: the text of README.md.
    """
    base.save_pretrained(folder, save_embedding_layers=False)
    for name in base.peft_config:
        where = folder if name == "default" else folder / name
        file = where / "adapter_config.json"
        config = json.loads(file.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": base_name, "revision": revision}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")


def load(base: PreTrainedModel, name: str, kept: dict[str, Any], revision: str | None) -> Any:
    """Put the saved adapters on `base`, each in the state it was saved in."""
    from peft import PeftModel

    adapted: Any = None
    for adapter in kept["names"]:
        where = "adapter" if adapter == "default" else f"adapter/{adapter}"
        if adapted is None:
            adapted = PeftModel.from_pretrained(base, name, subfolder=where, adapter_name=adapter, revision=revision)
        else:
            adapted.load_adapter(name, adapter_name=adapter, subfolder=where, revision=revision)
    check_usable(adapted, base)
    active = list(kept["active"])
    if active != list(adapted.base_model.active_adapters):
        if len(active) == 1:
            adapted.set_adapter(active[0], inference_mode=True)
        else:
            adapted.base_model.set_adapter(active, inference_mode=True)
    if kept["off"]:
        adapted.base_model.disable_adapter_layers()
    return adapted


def restore_dtype(adapted: Any, base: PreTrainedModel, adapter: str, file: Path) -> None:
    """PEFT reads 16-bit adapters as fp32; where file and base agree on another dtype, the adapter has it again."""
    with safe_open(file, framework="pt") as tensors:
        names = list(tensors.keys())
        dtypes = {tensors.get_tensor(key).dtype for key in names}
    if dtypes == {base.dtype} and base.dtype != torch.float32:
        for name, value in own_tensors(adapted, base).items():
            if f".{adapter}" in name and value.is_floating_point():
                value.data = value.data.to(base.dtype)
