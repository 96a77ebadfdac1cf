"""Property: every causal LM of the installed transformers is either served exactly or refused in one line.

Each is built tiny, with random weights and windows shorter than the text; what is served must give what full
recomputation, one thought at a time, gives. Counts are printed with `-s`.
"""

from __future__ import annotations

import inspect
import logging
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from oracle import Oracle
from quietstar import QuietStar, QuietStarError
from quietstar.engine.rows import _configs

TEXT = list(range(3, 15))
SMALL = dict(
    vocab_size=97, vocab_size_per_layer_input=97, hidden_size=32, n_embd=32, d_model=32, dim=32, emb_dim=32,
    intermediate_size=48, ffn_dim=48, n_inner=48, d_ff=48, ffn_hidden_size=48, num_hidden_layers=2, n_layer=2,
    n_layers=2, num_layers=2, decoder_layers=2, encoder_layers=2, num_attention_heads=4, n_head=4, n_heads=4,
    num_heads=4, decoder_attention_heads=4, encoder_attention_heads=4, decoder_ffn_dim=48, encoder_ffn_dim=48,
    num_key_value_heads=2, head_dim=8, global_head_dim=8, max_position_embeddings=128, n_positions=128,
    max_seq_len=128, initializer_range=0.3, init_std=0.3, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    num_local_experts=4, num_experts=4, n_routed_experts=4, num_experts_per_tok=2, moe_topk=2, zero_expert_num=2,
    moe_intermediate_size=16, expert_ffn_hidden_size=16, n_shared_experts=1, shared_expert_intermediate_size=16,
    q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_group=1, topk_group=1,
    index_head_dim=8, index_n_heads=2, index_topk=4, state_size=4, embedding_size=32, image_size=32,
    hidden_size_per_layer_input=8, sliding_window=5, encoder_hash_byte_group_vocab=50, audio_vocab_size=97,
)  # fmt: skip
OWN = {
    "bamba": dict(attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4),
    "cohere_compass_text": dict(layer_types=["sliding_attention", "full_attention"], rope_parameters={
        kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("sliding_attention", "full_attention")}),
    "deepseek_v32": dict(qk_rope_head_dim=8), "axk2": dict(qk_rope_head_dim=8),
    "glm_moe_dsa": dict(qk_rope_head_dim=8), "minicpm3": dict(dim_model_base=32),  # the oracle's head reads behind it
    "gemma3n_text": dict(num_hidden_layers=4, num_kv_shared_layers=2, activation_sparsity_pattern=[0.0] * 4,
                         layer_types=["sliding_attention", "full_attention"] * 2),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "granitemoehybrid": dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, layer_types=["mamba", "attention"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"], num_dense_layers=1),
    "longcat_flash": dict(head_dim=4, num_key_value_heads=4),
    "mamba2": dict(num_heads=8, head_dim=8, n_groups=1),
    "reformer": dict(is_decoder=True, attention_head_size=8, axial_pos_shape=[4, 32], axial_pos_embds_dim=[16, 16]),
    "xlm": dict(max_position_embeddings=128),
    "xmod": dict(default_language="en_XX"),
    "zamba": dict(n_mamba_heads=2, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1, num_hidden_layers=4,
                  layers_block_type=["mamba", "hybrid"] * 2),
    "zamba2": dict(n_mamba_heads=8, mamba_d_state=4, num_hidden_layers=4, layers_block_type=["mamba", "hybrid"] * 2),
    "zaya": dict(num_experts_per_tok=1, router_hidden_size=8),
    "dots3_note_text": dict(qk_rope_head_dim=8, num_key_value_heads=4),
}  # fmt: skip
# Families that no tiny configuration was found for; of several parts, or with parts that are not installed.
NOT_BUILT = frozenset(
    [
        "dbrx", "dots3_note", "fuyu", "gemma3", "gemma3n", "gemma4_assistant", "gemma4_unified",
        "gemma4_unified_assistant", "got_ocr2", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "moshi",
    ]
)  # fmt: skip


def settings(cls) -> dict:
    known = set(inspect.signature(cls.__init__).parameters) | set(getattr(cls, "__annotations__", {}))
    found = {name: value for name, value in SMALL.items() if name in known}
    parts = {name: settings(part) for name, part in cls.sub_configs.items() if hasattr(part, "from_dict")}
    return found | parts | OWN.get(cls.model_type, {})


def build(family: str):
    """A tiny model with random weights in fp32, or the reason why there is none."""
    try:
        config = CONFIG_MAPPING[family](**settings(CONFIG_MAPPING[family]))
        with torch.device("meta"):
            weights = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if weights > 2e7:
            return f"{weights:.0e} weights"
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except Exception as error:  # whatever another package's code says of a configuration made up here
        return f"{type(error).__name__}: {error}".splitlines()[0]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms, biases and sinks differ from their start too, so that leaving them out shows
        for weight in model.parameters():
            if weight.dim() == 1 and weight.is_floating_point():
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model


def outcome(family: str) -> tuple[str, str]:
    base = build(family)
    if isinstance(base, str):
        return "not built", base
    before = [(config, config._attn_implementation) for config in _configs(base)]
    try:
        model = QuietStar.from_base(base)
    except QuietStarError as error:
        assert "\n" not in str(error) and family[:4] in str(error)
        assert all(config._attn_implementation == name for config, name in before), "a refused model stays as it was"
        return "refused", str(error)
    twin = build(family)
    with torch.no_grad():
        for weight in [*model.head.parameters(), *model.markers.parameters()]:
            weight.normal_(std=0.3, generator=torch.Generator().manual_seed(2))
        for marker in model.markers.parameters():
            marker.mul_(base.get_input_embeddings().weight.std() / 30)
    oracle = Oracle(twin, model.markers.start * 100, model.markers.end * 100, model.head.layers)
    found = model.score(torch.tensor([TEXT]), thought_length=2, thought_temperature=1.0, seed=3)
    for i, wanted in enumerate(oracle.score(TEXT, 2, 1.0, 3, 0, 1)):
        assert found.thoughts[0, i, 0].tolist() == wanted["thought"], f"thought at {i}"
        for name, key in (("base_logprobs", "base"), ("mixed_logprobs", "mixed"), ("thought_logprobs", "only")):
            number = float(getattr(found, name)[0, i])
            assert number == pytest.approx(wanted[key], rel=1e-3, abs=5e-4), f"{name} at {i}"
    return "served", ""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_causal_lm_is_served_exactly_or_refused_in_one_line():
    logging.disable(logging.WARNING)  # transformers on configurations made up here
    families = sorted(name for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name in CONFIG_MAPPING)
    counts, told, wrong = Counter(), {}, {}
    try:
        for family in families:
            try:
                kind, why = outcome(family)
            except Exception as error:  # gathered, so that one run names every family
                kind, why = "wrong", f"{type(error).__name__}: {error}".splitlines()[0]
                wrong[family] = why
            counts[kind] += 1
            told[family] = (kind, why)
    finally:
        logging.disable(logging.NOTSET)
    for family, (kind, why) in told.items():
        print(f"{kind:9} {family:24} {why}"[:180])
    print(dict(counts))
    assert not wrong
    assert {family for family, (kind, _) in told.items() if kind == "not built"} <= NOT_BUILT
    assert counts["served"] >= 80
