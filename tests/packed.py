"""Tiny models as GGUF files, with whatever a test wants their metadata to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFWriter, get_tensor_name_map
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

_SMALL = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    max_position_embeddings=512, initializer_range=0.3, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    pad_token_id=2,
)  # fmt: skip
_PLAIN = {"rope_type": "default", "rope_theta": 1e4}
_HEADS_16 = {"attention.key_length": 16, "attention.value_length": 16}
_GEMMA = dict(head_dim=16, query_pre_attn_scalar=16, sliding_window=8)
# architecture in GGUF -> (family, its configuration, what its files say beside the sizes)
ARCHITECTURES: dict[str, tuple[str, dict, dict]] = {
    "qwen2": ("qwen2", {}, {}),
    "qwen3": ("qwen3", dict(head_dim=16), _HEADS_16),
    "qwen3moe": ("qwen3_moe", dict(head_dim=16, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                                   norm_topk_prob=True),
                 _HEADS_16 | {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 16}),
    "gemma2": ("gemma2", _GEMMA | dict(attn_logit_softcapping=20.0, final_logit_softcapping=10.0),
               _HEADS_16 | {"attention.sliding_window": 8, "attn_logit_softcapping": 20.0,
                            "final_logit_softcapping": 10.0}),
    "gemma3": ("gemma3_text", _GEMMA | dict(num_hidden_layers=6, rope_parameters={
                   "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
                   "sliding_attention": _PLAIN}),
               _HEADS_16 | {"attention.sliding_window": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}),
    "phi3": ("phi3", dict(sliding_window=8, rope_parameters=_PLAIN), {"attention.sliding_window": 8}),
    "starcoder2": ("starcoder2", {}, {"attention.layer_norm_epsilon": 1e-5}),
}  # fmt: skip


def llama(vocabulary: int, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**_SMALL | dict(vocab_size=vocabulary) | options)).eval()


def other(architecture: str, vocabulary: int) -> PreTrainedModel:
    family, options, _ = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**_SMALL | dict(vocab_size=vocabulary) | options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return model


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows llama.cpp keeps queries and keys in."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, architecture: str = "llama", **more
) -> Path:
    """Write `model`; `more` are further keys of its architecture (dots as __) and tensors by name (arrays)."""
    config = model.config
    writer = GGUFWriter(str(path), architecture)
    values = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": getattr(config, "rms_norm_eps", None), "rope.freq_base": 10000.0,
        "rope.dimension_count": getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
    }  # fmt: skip
    values |= ARCHITECTURES[architecture][2] if architecture in ARCHITECTURES else {}
    tensors = {key.replace("__", "."): value for key, value in more.items() if isinstance(value, np.ndarray)}
    values |= {key.replace("__", "."): value for key, value in more.items() if not isinstance(value, np.ndarray)}
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(f"{architecture}.{key}", value)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    for name, array in [*_named(model, architecture), *tensors.items()]:
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(model: PreTrainedModel, architecture: str):
    """The weights by the names, and in the form, that llama.cpp's files have."""
    config = model.config
    number = next(number for number, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names = get_tensor_name_map(number, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        array = weight.float().numpy()
        stem, _, ending = key.rpartition(".") if key.endswith((".weight", ".bias")) else (key, "", "weight")
        if stem == "lm_head":
            continue  # tied in all of these
        if stem.endswith("experts.gate_up_proj"):
            half = array.shape[1] // 2
            for part, name in ((array[:, :half], "gate"), (array[:, half:], "up")):
                yield f"blk.{stem.split('.')[2]}.ffn_{name}_exps.weight", part
            continue
        name = names.get_name(stem)
        if architecture == "llama" and name.endswith(("attn_q", "attn_k")):
            array = _permuted(
                array, config.num_attention_heads if name.endswith("attn_q") else config.num_key_value_heads
            )
        if architecture.startswith("gemma") and "norm" in name:
            array = array + 1
        yield f"{name}.{ending}", array
