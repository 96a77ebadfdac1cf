"""Every difference between model families that the rows attention does not already take from the model itself.

What the model passes to its attention function (grouped heads, scaling, windows, soft-capped attention, sinks,
positions) is read in `rows`. Left over are: how a hidden state becomes logits, how long a text may be, and which models
are refused.
Every model is tried once on a short text when it is wrapped: its weights and logits must be finite, what it predicts
must not depend on later tokens, and rows must give what its own forward gives (left out in 16 bits for a family in
`VERIFIED`, whose experts rounding may exchange).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from quietstar.engine.exact import linear
from quietstar.engine.rows import Prefix, Rows, installing, ordinary
from quietstar.errors import QuietStarError, UnsupportedModel, first_line

# Compared with a slow, obvious implementation in tests/test_families.py.
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

# Refused before anything is run, with the reason for the message.
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
    """The largest number of positions (visible text and thought together); None where the model states none.

    Rotary scalings that change all frequencies once a text is long ("dynamic", "longrope") would make states computed
    earlier stale, so such models are supported up to the length they were first trained on.
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
    """Prepare `model` to run rows, or refuse it; a refused model keeps its own attention function.

    Raises:
        UnsupportedModel: the family is not supported; the message gives the reason.
        QuietStarError: its weights or logits are not finite, or its own forward fails.
    """
    config = text_config(model)
    family = config.model_type
    if family in REFUSED:
        raise UnsupportedModel(f"model type {family!r} is not supported: {REFUSED[family]}")
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(f"model type {family!r} is not supported: it is an encoder-decoder, not a causal LM")
    if model.get_output_embeddings() is None:
        raise UnsupportedModel(
            f"{type(model).__name__} has no output embeddings to predict tokens with; load the model for causal LM"
        )
    kinds = set(getattr(config, "layer_types", None) or ())
    if recurrent := {kind for kind in kinds if "attention" not in kind or "linear" in kind}:
        raise UnsupportedModel(
            f"model type {family!r} is not supported: it has {', '.join(sorted(recurrent))} layers, whose state rows "
            "cannot share"
        )
    if getattr(model, "_is_stateful", False):
        raise UnsupportedModel(
            f"model type {family!r} is not supported: some of its layers keep a recurrent state, which rows cannot "
            "share"
        )
    if not getattr(model, "_supports_attention_backend", False):
        raise UnsupportedModel(
            f"model type {family!r} is not supported: this version of transformers computes its attention inside the "
            "model file, out of reach of a registered attention function"
        )
    _refuse_broken_weights(model)
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), _foreign(f"model type {family!r}", "its attention cannot be replaced"), installing(model):
            _try(model, f"model type {family!r}", family in VERIFIED)
    finally:
        model.train(training)


def compare_with_itself(model: PreTrainedModel, what: str, whole: Any = None) -> None:
    """Refuse a model whose rows do not give what its own forward gives (the two must agree to rounding).

    `what` names it in the message; `whole` is what it is called through, such as PEFT's wrapper.
    """
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            _try(model, what, False, whole)
    finally:
        model.train(training)


def check_tokenizer(model: PreTrainedModel, tokenizer: Any) -> None:
    """Refuse a tokenizer whose own vocabulary exceeds the embeddings; warn where only added tokens do.

    Those are often never used (a padding token), so the model is accepted, and a text with one of them refused.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((token_id, token) for token, token_id in vocabulary.items() if token_id >= rows)
    if not beyond:
        return
    added = set(tokenizer.get_added_vocab())
    plain = [pair for pair in beyond if pair[1] not in added]
    token_id, token = (plain or beyond)[0]
    what = f"the tokenizer has {token!r} as token {token_id}, but the base model has embeddings for {rows} tokens only"
    if plain:
        raise QuietStarError(
            f"{what} ({len(beyond)} tokens are beyond them); give the tokenizer that belongs to the model, or resize "
            "the model with resize_token_embeddings"
        )
    warnings.warn(f"{what}; a text with it is refused", stacklevel=2)


def _refuse_broken_weights(model: PreTrainedModel) -> None:
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.numel() and not weight.is_meta:
            values = weight.detach() if weight.element_size() > 1 else weight.detach().to(torch.bfloat16)
            low, high = values.aminmax()  # both carry a NaN on; one pass, no copy
            if not (low.isfinite() and high.isfinite()):
                raise QuietStarError(
                    f"the weight {name} of the base model holds values that are not finite (NaN or infinity); the file "
                    f"is broken, or its values do not fit {str(weight.dtype).removeprefix('torch.')}"
                )


def _try(model: PreTrainedModel, named: str, compared: bool, whole: Any = None) -> None:
    """Run a short text: the logits must be finite, causal and, for a family not in `VERIFIED`, the same by rows.

    In 16 bits rounding alone can send a token to another expert; what fails on one text is tried on a second.
    """
    whole = model if whole is None else whole
    dtype = next(model.parameters()).dtype
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    vocabulary = text_config(model).vocab_size
    problem: UnsupportedModel | None = None
    for step in (7919, 104729):
        ids = (torch.arange(12, device=model.device) * step + 13)[None] % vocabulary
        both = ids.repeat(2, 1)
        both[1, 8:] = (both[1, 8:] + 1) % vocabulary
        with _foreign(named, "its own forward fails"), ordinary(model):
            logits = whole(input_ids=both, use_cache=False).logits
        _refuse_infinite(logits, dtype)
        problem = _refuse_future(named, logits.float(), tolerance)
        if problem is None and (not compared or dtype == torch.float32):  # there rounding sends nothing astray
            problem = _refuse_other_arithmetic(model, whole, named, ids, logits[0].float(), tolerance)
        if problem is None:
            return
    assert problem is not None
    raise problem


def _refuse_infinite(logits: Tensor, dtype: torch.dtype) -> None:
    if not bool(logits.isfinite().all()):
        raise QuietStarError(
            f"the base model's own logits are not finite (NaN or infinity) in {str(dtype).removeprefix('torch.')}; "
            'load it with --dtype float32 (dtype="float32"), or its weights or settings are broken'
        )


def _refuse_future(named: str, logits: Tensor, tolerance: float) -> UnsupportedModel | None:
    """The error if the logits of two texts that differ from token 8 on differ earlier, else None; (2, 12, V)."""
    moved = ((logits[0, :8] - logits[1, :8]).abs().max() / logits.abs().max().clamp_min(1e-6)).item()
    if moved < tolerance / 2:
        return None
    return UnsupportedModel(
        f"{named} is not supported as it is configured: later tokens change the predictions before them (by "
        f"{moved:.1e} of the largest logit), so it is not a causal LM"
    )


def _refuse_other_arithmetic(
    model: PreTrainedModel, whole: Any, named: str, ids: Tensor, expected: Tensor, tolerance: float
) -> UnsupportedModel | None:
    """What is wrong where rows do not give what the model's own forward gives (to rounding); `expected` is (12, V).

    One of the rows begins with an embedding that is no token's, as a marker is.
    """
    embeds = model.get_input_embeddings()(ids)
    marked = embeds.clone()
    marked[:, 8] = embeds[:, 8:10].mean(1)
    with _foreign(named, "its own forward fails on an embedding that is no token's"), ordinary(model):
        after_marker = whole(inputs_embeds=marked, use_cache=False).logits[0, 8:].float()
    with _foreign(named, "its own code fails where rows run through it"):
        prefix = Prefix(model, 1)
        by_prefix = unembed(model, prefix.extend(embeds[:, :8]))[0]
        zero, seen = torch.zeros(2, dtype=torch.long, device=model.device), torch.tensor([4, 8], device=model.device)
        rows = Rows(prefix, zero, seen)
        by_rows = unembed(model, rows.extend(torch.stack([embeds[0, 4:8], marked[0, 8:12]])))
    layers = len(prefix.layers)
    total = getattr(text_config(model), "num_hidden_layers", layers)
    if layers < total:
        return UnsupportedModel(
            f"{named} is not supported: rows reach the attention of {layers} of its {total} layers only"
        )
    found = torch.cat([by_prefix, by_rows[0], by_rows[1]])
    _refuse_infinite(found, embeds.dtype)
    wanted = torch.cat([expected[:8], expected[4:8], after_marker])
    error = ((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()
    if error < tolerance:
        return None
    return UnsupportedModel(
        f"{named} is not supported: its rows differ from its own forward by {error:.1e} of the "
        f"largest logit (at most {tolerance:.0e} is rounding)"
    )


@contextlib.contextmanager
def _foreign(named: str, what: str) -> Iterator[None]:
    """Run code of an untested model file: whatever it raises is a reason to refuse the model."""
    try:
        yield
    except (QuietStarError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "allocate memory" in str(error):  # torch's message on a CPU
            raise
        raise UnsupportedModel(
            f"{named} is not supported: {what} ({type(error).__name__}: {first_line(error)})"
        ) from error
