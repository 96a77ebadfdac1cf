"""A tiny Llama as a GGUF file, with whatever a test wants its metadata to say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFWriter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def llama(vocabulary: int, **options) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**dict(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.3, tie_word_embeddings=True,
    ) | options)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """The order of rows llama.cpp keeps queries and keys in."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def write(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, **more) -> Path:
    """Write `model`; `more` are further keys of its architecture (dots as __) and tensors by name (arrays)."""
    config = model.config
    writer = GGUFWriter(str(path), "llama")
    values = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps, "rope.freq_base": 10000.0,
        "rope.dimension_count": config.head_dim,
    }  # fmt: skip
    tensors = {key.replace("__", "."): value for key, value in more.items() if isinstance(value, np.ndarray)}
    values |= {key.replace("__", "."): value for key, value in more.items() if not isinstance(value, np.ndarray)}
    for key, value in values.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        if value is not None:
            add.get(type(value), writer.add_array)(f"llama.{key}", value)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * len(vocabulary))
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in model.state_dict().items():
        array = weight.float().numpy()
        stem, ending = name.removeprefix("model.").rsplit(".", 1)
        if stem == "lm_head":
            continue
        if stem.startswith("layers."):
            _, number, inner = stem.split(".", 2)
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(_NAMES[inner])
            array = array if heads is None else _permuted(array, heads)
            stem = f"blk.{number}.{_NAMES[inner]}"
        else:
            stem = {"embed_tokens": "token_embd", "norm": "output_norm"}[stem]
        writer.add_tensor(f"{stem}.{ending}", np.ascontiguousarray(array))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
