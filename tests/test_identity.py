"""Hashes tell models apart: equal for the same weights in another precision, other after any training."""

import pytest
import torch

from conftest import trained
from quietstar import QuietStar
from quietstar.engine.identity import digest, fingerprint, identify, versions


def test_the_base_is_the_same_in_another_precision_that_holds_it(tiny_folder):
    base = QuietStar.from_pretrained(tiny_folder, dtype="float32").decoder_lm
    rounded = fingerprint(base, rounded=True)
    assert rounded != fingerprint(base)
    base.to(torch.bfloat16)
    assert fingerprint(base) == fingerprint(base, rounded=True) == rounded
    assert fingerprint(base.to(torch.float32)) == rounded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("size", [1, 7, 4096, 4097, 3 * 4096 + 5])
def test_every_single_value_counts(dtype, size):
    torch.manual_seed(size)
    tensor = (torch.randn(size) * 50).abs().to(dtype)
    first = digest(tensor)
    assert first == digest(tensor.clone())
    for index in {0, size // 2, size - 1}:
        other = tensor.clone()
        bits = other.view(torch.uint8).view(size, -1)
        bits[index, 0] ^= 1  # the smallest change there is
        assert digest(other) != first
    if size > 1:
        assert digest(tensor.reshape(1, -1)) != first
        other = tensor.clone()
        other[[0, -1]] = other[[-1, 0]]
        assert torch.equal(other, tensor) or digest(other) != first


def test_a_view_has_the_digest_of_its_copy():
    tensor = torch.randn(70, 90)
    assert digest(tensor.T) == digest(tensor.T.contiguous()) != digest(tensor)


@pytest.mark.parametrize(
    "weight", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
def test_one_value_of_any_weight_shows(tiny, weight):
    before = identify(tiny)
    with torch.no_grad():
        dict(tiny.decoder_lm.named_parameters())[weight].view(-1)[-2] += 1e-6
    assert identify(tiny).base_hash != before.base_hash
    before = identify(tiny)
    with torch.no_grad():
        next(tiny.head.parameters()).view(-1)[-2] += 1e-6
    assert identify(tiny).head_hash != before.head_hash


def test_a_small_step_of_training_shows_in_the_hash_of_the_head(tiny):
    before = identify(tiny)
    with torch.no_grad():
        for weight in tiny.head.parameters():
            weight.add_(1e-6)
    after = identify(tiny)
    assert before.head_hash != after.head_hash and before.base_hash == after.base_hash
    with torch.no_grad():
        tiny.markers.start.add_(1e-6)
    assert identify(tiny).head_hash != after.head_hash


def test_an_untrained_head_is_the_same_every_time(tiny_folder):
    first, second = (identify(QuietStar.from_pretrained(tiny_folder, dtype="float32")) for _ in range(2))
    assert first == second and first.head_hash


def test_an_adapter_has_a_name_and_a_hash_of_its_own(tiny_folder):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    plain = identify(QuietStar.from_base(base))
    assert (plain.adapter, plain.adapter_hash) == ("", "")
    adapted = get_peft_model(base, LoraConfig(target_modules=["q_proj"], r=2, task_type="CAUSAL_LM"))
    model = trained(QuietStar.from_base(adapted))
    found = identify(model)
    assert found.adapter == "default" and found.adapter_hash and found.base_hash == plain.base_hash
    with torch.no_grad():
        for name, weight in model.base.named_parameters():
            if "lora_A" in name:
                weight.add_(1e-6)
    assert identify(model).adapter_hash != found.adapter_hash


def test_the_start_event_says_which_weights_and_versions(tiny):
    start = next(iter(tiny.stream("the", max_new_tokens=1)))
    assert start.identity == identify(tiny) and start.versions == versions()
    assert start.versions["torch"] == torch.__version__
