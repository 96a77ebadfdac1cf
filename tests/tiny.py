"""Tiny random models of every served family, wrapped and bare, with a mixing head and markers that do something."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from quietstar import QuietStar

VOCABULARY = 97
_COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.4,
    bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False,
)  # fmt: skip
_FULL_HEADS = {k: v for k, v in _COMMON.items() if k != "num_key_value_heads"}
_ALTERNATING = dict(num_hidden_layers=4, sliding_window=5)

# family -> configuration; windows are shorter than the texts of the tests, and layers alternate where they can
FAMILIES: dict[str, dict] = {
    "llama": _COMMON,
    "mistral": _COMMON | {"sliding_window": 5, "head_dim": 8},
    "qwen2": _COMMON | _ALTERNATING | {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": _COMMON | {"head_dim": 16},
    "gemma2": _COMMON | _ALTERNATING | {
        "head_dim": 8, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 12,
    },
    "gemma3_text": _COMMON | _ALTERNATING | {"head_dim": 8, "query_pre_attn_scalar": 12,
        "layer_types": ["sliding_attention", "full_attention"] * 2},
    "phi3": _COMMON | {"sliding_window": 6},
    "gpt2": dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.4,
                 bos_token_id=0, eos_token_id=1),
    "gpt_neox": _FULL_HEADS | {"rotary_pct": 0.5},
    "olmo2": _COMMON,
    "opt": dict(vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                max_position_embeddings=128, init_std=0.4, word_embed_proj_dim=24, bos_token_id=0, eos_token_id=1,
                pad_token_id=1),
    "granite": _COMMON | {"logits_scaling": 2.5, "attention_multiplier": 0.2, "embedding_multiplier": 3.0,
                          "residual_multiplier": 0.7},
    "smollm3": _COMMON | {"num_hidden_layers": 4, "no_rope_layer_interval": 2},
    "gpt_oss": _COMMON | {"head_dim": 8, "sliding_window": 5, "num_local_experts": 4, "num_experts_per_tok": 2,
                          "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": _COMMON | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
}  # fmt: skip


def bare(family: str, seed: int = 0):
    """An untouched tiny model of `family` with random weights, in fp32 and with its slow attention."""
    torch.manual_seed(seed)
    config = CONFIG_MAPPING[family](**FAMILIES[family])
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # norms and sinks differ from their start too, so that leaving them out shows
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            if "sinks" in name:
                weight.normal_()
    return model


def thinking(family: str, seed: int = 0) -> tuple[QuietStar, object]:
    """(model under test, its untouched twin); head and markers random, so that thoughts move the predictions."""
    base = bare(family, seed)
    model = QuietStar.from_base(copy.deepcopy(base))
    with torch.no_grad():
        for weight in model.head.parameters():
            weight.normal_(std=0.3)
        scale = base.get_input_embeddings().weight.std() / 100
        model.markers.start.normal_(std=float(scale))
        model.markers.end.normal_(std=float(scale))
    return model, base
