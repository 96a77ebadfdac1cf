"""Hashes tell models apart: equal for the same weights in another precision, other after any training."""

import torch

from conftest import trained
from quietstar import QuietStar
from quietstar.identity import fingerprint, identify, versions


def test_the_base_is_the_same_in_another_precision(tiny_folder):
    model = QuietStar.from_pretrained(tiny_folder, dtype="float32")
    first = fingerprint(model.decoder_lm)
    assert first == fingerprint(model.decoder_lm.to(torch.bfloat16))
    with torch.no_grad():
        next(model.decoder_lm.parameters()).mul_(1.5)
    assert fingerprint(model.decoder_lm) != first


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
