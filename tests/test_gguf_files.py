"""Property: a GGUF file gives the numbers of the model it was written from, or is refused by the name of what is lost."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import packed
from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError

IDS = torch.arange(3, 43)[None]


def agrees(path, model) -> None:
    with torch.no_grad():
        wanted = model(input_ids=IDS).logits
    found = QuietStar.from_pretrained(path, dtype="float32")(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "default"}, {}),
        ({"rope_type": "default", "rope_theta": 500.0}, {"rope__freq_base": 500.0}),
        ({"rope_type": "linear", "factor": 4.0}, {"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}),
        ({"rope_type": "linear", "factor": 4.0}, {"rope__scaling__factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
            {"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0,
             "rope__scaling__original_context_length": 16},
        ),
        ({"rope_type": "default"}, {"rope__scaling__type": "none", "attention__causal": True, "expert_count": 0}),
    ],
)  # fmt: skip
def test_rotary_scaling_is_applied(tokenizer, tmp_path, rope, keys):
    rope = {"rope_theta": 10000.0} | rope
    model = packed.llama(len(tokenizer), rope_parameters=rope)
    agrees(packed.write(tmp_path / "x.gguf", model, tokenizer, **keys), model)


def test_frequencies_divided_one_by_one_are_applied(tokenizer, tmp_path):
    """Llama 3's scaling, which its files carry as a tensor."""
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
    model = packed.llama(len(tokenizer), rope_parameters=rope)
    plain = 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    factors = (plain / model.model.rotary_emb.inv_freq).numpy().astype("float32")
    assert not np.allclose(factors, 1)
    agrees(packed.write(tmp_path / "x.gguf", model, tokenizer, rope_freqs__weight=factors), model)


@pytest.mark.parametrize("architecture", packed.ARCHITECTURES)
def test_every_architecture_gives_the_numbers_of_its_model(tokenizer, tmp_path, architecture):
    model = packed.other(architecture, len(tokenizer))
    agrees(packed.write(tmp_path / "x.gguf", model, tokenizer, architecture), model)


@pytest.mark.parametrize(
    ("architecture", "keys", "says"),
    [
        ("gemma2", {"attention__sliding_window": None}, "it lacks gemma2.attention.sliding_window"),
        ("qwen2", {"attention__sliding_window": 8}, "qwen2.attention.sliding_window = 8"),
        ("qwen3moe", {"expert_shared_count": 1}, "qwen3moe.expert_shared_count = 1"),
        ("qwen3moe", {"expert_gating_func": 2}, "qwen3moe.expert_gating_func = 2"),
        ("phi3", {"rope_factors_long__weight": np.ones(4, "float32")}, "rope_factors_long.weight has no place"),
        ("phi3", {"rope__dimension_count": 4}, "phi3.rope.dimension_count = 4"),
    ],
)
def test_what_other_architectures_would_drop_is_refused(tokenizer, tmp_path, architecture, keys, says):
    path = packed.write(
        tmp_path / "x.gguf", packed.other(architecture, len(tokenizer)), tokenizer, architecture, **keys
    )
    with pytest.raises(QuietStarError, match=says):
        QuietStar.from_pretrained(path)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 2.0}, "rope.scaling.type = 'longrope'"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0, "rope__scaling__yarn_log_multiplier": 0.1},
         "yarn_log_multiplier"),
        ({"rope__scaling__type": "linear"}, "rope.scaling.factor = None"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 2.0, "rope_freqs__weight": np.ones(4, "float32")},
         "rope_freqs.weight"),
        ({"rope_freqs__weight": np.zeros(4, "float32")}, "not above zero"),
        ({"attn_logit_softcapping": 30.0}, "attn_logit_softcapping = 30.0"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping = 30.0"),
        ({"attention__scale": 0.5}, "attention.scale = 0.5"),
        ({"attention__sliding_window": 8}, "attention.sliding_window = 8"),
        ({"logit_scale": 2.0}, "logit_scale = 2.0"),
        ({"residual_scale": 2.0}, "residual_scale"),
        ({"expert_count": 8, "expert_used_count": 2}, "expert_count = 8"),
        ({"attention__causal": False}, "attention.causal = False"),
        ({"attention__max_alibi_bias": 8.0}, "max_alibi_bias"),
        ({"attention__key_length": 16}, "rope.dimension_count = 8"),
        ({"attention__value_length": 16}, "attention.value_length = 16"),
        ({"rope__dimension_count": 4}, "shape"),
        ({"a_key_of_tomorrow": 3}, "a_key_of_tomorrow = 3"),
        ({"attention__head_count_kv": [2, 1]}, r"attention.head_count_kv = \[2, 1\]"),
        ({"attention__layer_norm_rms_epsilon": None}, "it lacks llama.attention.layer_norm_rms_epsilon"),
        ({"context_length": None}, "llama.context_length should be a whole number, and is None"),
        ({"block_count": 10**6}, "claims 1000000 layers"),
        ({"embedding_length": 2**30}, "its settings ask for"),
        ({"feed_forward_length": 2**30}, "its settings ask for"),
        ({"blk.0.attn_q.bias": np.zeros(32, "float32")}, "attn_q.bias has no place"),
        ({"blk.0.ffn_gate_exps.weight": np.zeros((2, 48, 32), "float32")}, "ffn_gate_exps.weight has no place"),
    ],
)  # fmt: skip
def test_what_would_be_dropped_is_refused_by_name(tokenizer, tmp_path, keys, says):
    path = packed.write(tmp_path / "x.gguf", packed.llama(len(tokenizer)), tokenizer, **keys)
    with pytest.raises(QuietStarError, match=says) as caught:
        QuietStar.from_pretrained(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "x.gguf"
    return packed.write(path, packed.llama(len(tokenizer)), tokenizer).read_bytes()


@fuzz(15)
@given(st.data())
def test_damaged_files_give_a_model_or_one_line(whole, tmp_path_factory, data):
    content = bytearray(whole)
    kind = data.draw(st.sampled_from(["cut", "flip", "number", "header"]))
    if kind == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif kind == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, min(len(content), 12_000) - 1))
            content[at] ^= 1 << data.draw(st.integers(0, 7))
    else:
        at = data.draw(st.integers(0, 23 if kind == "header" else 12_000))
        number = data.draw(st.sampled_from([0, 1, 2**31, 2**62, 2**64 - 1]))
        content[at : at + 8] = number.to_bytes(8, "little")
    path = tmp_path_factory.mktemp("damaged") / "x.gguf"
    path.write_bytes(content)
    try:
        QuietStar.from_pretrained(path).generate([3, 4], max_new_tokens=2, thought_length=1)
    except QuietStarError as error:
        assert "\n" not in str(error)
