"""Every difference between model families that the rows attention does not already take from the model itself.

What the model tells on its own (grouped heads, scaling, windows, soft-capped attention, sinks, positions) is read from
its calls in `rows`. Left over are: how a hidden state becomes logits, how long a text may be, and who is refused.
A family not in `VERIFIED` is compared with its own code path once, when it is wrapped, and refused if they differ.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quietstar.errors import UnsupportedModel
from quietstar.exact import linear
from quietstar.rows import Prefix, Rows, install, ordinary

# Compared with a slow, obvious implementation in tests/test_families.py; no check at load is needed.
VERIFIED = frozenset(
    [
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "phi3",
        "gpt2",
        "gpt_neox",
        "olmo2",
        "opt",
        "granite",
        "smollm3",
        "gpt_oss",
        "mixtral",
    ]
)

# Refused before anything is run, with the reason a person reads.
REFUSED = {
    "bloom": "its ALiBi position bias is built inside the model and rows cannot shift it",
    "mpt": "its ALiBi position bias is built inside the model and rows cannot shift it",
    "gemma3n": "it needs token ids at every layer and shares states between layers; a marker has no token id",
    "gemma3n_text": "it needs token ids at every layer and shares states between layers; a marker has no token id",
    "mamba": "it has a recurrent state instead of attention, so a prefix cannot be shared by rows",
    "mamba2": "it has a recurrent state instead of attention, so a prefix cannot be shared by rows",
    "rwkv": "it has a recurrent state instead of attention, so a prefix cannot be shared by rows",
    "xlnet": "it predicts in permuted order, not left to right",
}


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of the language part of `model` (multimodal models nest it)."""
    return model.config.get_text_config(decoder=True)


def unembed(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits in fp32, (..., V), from hidden states after the final norm, (..., E), with scaling and soft-cap."""
    return shaped(model, products(model, hidden))


def products(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What the output layer gives in fp32, (..., V), for hidden states (..., E), before scaling and soft-cap.

    A plain layer, and one wrapped by adapters, computes in fp32 whatever the precision of its weights and of `hidden`;
    a quantized one computes as it does.
    """
    layer = model.get_output_embeddings()
    with torch.autocast(hidden.device.type, enabled=False):
        if _called(layer):
            dtype = next((p.dtype for p in layer.parameters() if p.is_floating_point()), model.dtype)
            called: Tensor = layer(hidden.to(model.dtype if quantized(model) else dtype)).float()
            return called
        if type(layer) is nn.Linear:
            return linear(hidden, layer.weight, layer.bias)
        weights = {
            name: value.float()
            for name, value in [*layer.named_parameters(), *layer.named_buffers()]
            if value.is_floating_point()
        }
        return torch.func.functional_call(layer, weights, (hidden.float(),)).float()


def quantized(model: PreTrainedModel) -> bool:
    """Whether the output layer keeps anything else than floating-point numbers; it need not be linear then."""
    layer = model.get_output_embeddings()
    return any(
        not value.is_floating_point() or type(value) not in (Tensor, nn.Parameter)
        for value in [*layer.parameters(), *layer.buffers()]
    )


def _called(layer: nn.Module) -> bool:
    """Whether a layer must be called as it is: quantized, or with hooks that fetch or change its weights."""
    return (
        any(
            not value.is_floating_point() or value.is_meta or type(value) not in (Tensor, nn.Parameter)
            for value in [*layer.parameters(), *layer.buffers()]
        )
        or bool(layer._forward_hooks or layer._forward_pre_hooks)
        or hasattr(layer, "_hf_hook")
    )


def shaped(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Products with the output layer as logits, the same arithmetic as the model's own forward, (..., V).

    Granite divides by `logits_scaling`, Cohere multiplies by `logit_scale`, Gemma squashes with
    `final_logit_softcapping`.
    """
    config = text_config(model)
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


def context_limit(model: PreTrainedModel) -> int | None:
    """Most positions the model can tell apart (visible text and thought together), or None where it names none.

    Rotary scalings that change all frequencies once a text is long ("dynamic", "longrope") would make states computed
    earlier stale, so such models are served up to the length they were first trained on.
    """
    config = text_config(model)
    limit: int | None = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    rope = getattr(config, "rope_parameters", None) or {}
    for one in [rope, *(part for part in rope.values() if isinstance(part, dict))]:
        if one.get("rope_type") in ("dynamic", "longrope"):
            first = one.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(x for x in (first, limit) if x is not None) if (first or limit) else None
    return limit


def prepare(model: PreTrainedModel) -> None:
    """Make `model` able to serve rows, or refuse it by name.

    Raises:
        UnsupportedModel: the family cannot be served; the message says why.
    """
    config = text_config(model)
    family = config.model_type
    if family in REFUSED:
        raise UnsupportedModel(f"model type {family!r} cannot be served: {REFUSED[family]}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"model type {family!r} cannot be served: it is an encoder-decoder, not a causal LM")
    if model.get_output_embeddings() is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no output embeddings to predict tokens with; load the model for causal LM"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    if recurrent := {kind for kind in kinds if "attention" not in kind or "linear" in kind}:
        raise UnsupportedModel(
            f"model type {family!r} cannot be served: it has {', '.join(sorted(recurrent))} layers, whose state rows "
            "cannot share"
        )
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"model type {family!r} cannot be served: this version of transformers computes its attention inside the "
            "model file, out of reach of a registered attention function"
        )
    install(model)
    if family not in VERIFIED:
        compare_with_itself(model, f"model type {family!r}")


@torch.no_grad()
def compare_with_itself(model: PreTrainedModel, what: str, whole: Any = None) -> None:
    """Refuse a model whose rows do not give what its own forward gives (the two must agree to rounding).

    `what` names it in the message; `whole` is what it is called through, such as PEFT's wrapper.
    """
    vocabulary = text_config(model).vocab_size
    ids = (torch.arange(12, device=model.device) * 7919 + 13)[None] % vocabulary
    training = model.training
    model.eval()
    try:
        with ordinary(model):
            expected = (model if whole is None else whole)(input_ids=ids, use_cache=False).logits[0].float()
        embeds = model.get_input_embeddings()(ids)
        prefix = Prefix(model, 1)
        by_prefix = unembed(model, prefix.extend(embeds[:, :8]))[0]
        zero, seen = torch.zeros(2, dtype=torch.long, device=model.device), torch.tensor([4, 8], device=model.device)
        rows = Rows(prefix, zero, seen)
        by_rows = unembed(model, rows.extend(torch.stack([embeds[0, 4:8], embeds[0, 8:12]])))
    finally:
        model.train(training)
    found = torch.cat([by_prefix, by_rows[0], by_rows[1]])
    wanted = torch.cat([expected[:8], expected[4:8], expected[8:12]])
    error = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    if not error < tolerance:
        raise UnsupportedModel(
            f"{what} cannot be served: its rows differ from its own forward by {error:.1e} of the "
            f"largest logit (at most {tolerance:.0e} is rounding)"
        )
