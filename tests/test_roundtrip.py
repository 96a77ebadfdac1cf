"""What is saved is what was there: any change to a loaded model comes back from its folder, or saving refuses."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from conftest import trained
from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError
from quietstar.engine.adapters import plain_modules, plain_tensors
from quietstar.engine.identity import identify
from quietstar.loading.checkpoints import check_can_save, refill
from quietstar.loading.origin import generation_text, is_tied
from quietstar.training import recipe as recipes
from quietstar.training.trainer import ThoughtTrainer
from tiny import FAMILIES, thinking

TEXT = "the quick <think>brown</think> fox says <new>the thing"
CHAT = [{"role": "user", "content": "the fox"}]


def shown(model: QuietStar) -> dict:
    """Everything a folder has to give back."""
    tokenizer, ids = model.tokenizer, torch.tensor([[3, 40, 5, 90, 7]])
    model.eval()
    with torch.no_grad():
        logits = model(ids).logits
    score = model.score(ids, thought_length=2)
    return {
        "logits": logits,
        "mixed": score.mixed_logprobs,
        "identity": identify(model),
        "generation": generation_text(model.decoder_lm),
        "tied": is_tied(model.decoder_lm),
        "ids": tokenizer and tokenizer(TEXT)["input_ids"],
        "text": tokenizer and tokenizer.decode(list(range(len(tokenizer))), skip_special_tokens=True),
        "chat": tokenizer and tokenizer.chat_template and tokenizer.apply_chat_template(CHAT, tokenize=False),
        "config": (model.config.thought_length, model.config.weight_floor, model.config.marker_ids),
    }


def same(found: dict, wanted: dict, exact: bool = True) -> None:
    for key, value in wanted.items():
        if isinstance(value, torch.Tensor):
            if exact:
                assert torch.equal(found[key], value), key
            else:  # another attention code
                torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-4)
        else:
            assert found[key] == value, key


def comes_back(model: QuietStar, folder: Path, exact: bool = True, **options) -> QuietStar:
    """Save, load, compare; then once more from what was loaded, into the same folder."""
    model.save_pretrained(folder, **options)
    again = QuietStar.from_pretrained(folder, dtype="float32")
    same(shown(again), shown(model), exact)
    again.save_pretrained(folder)
    same(shown(QuietStar.from_pretrained(folder, dtype="float32")), shown(model), exact)
    assert not [path for path in folder.parent.rglob("*") if "sav" in path.name and path.name.startswith(".")]
    return again


def edit(weight: torch.Tensor, index: int = -2) -> None:
    with torch.no_grad():
        weight.view(-1)[index % weight.numel()] += 0.25


def test_a_chat_template(tiny, tmp_path):
    tiny.tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    again = comes_back(tiny, tmp_path / "saved")
    assert again.encode("x")[1] == ["[x]"] and not (tmp_path / "saved" / "base").exists()
    again.tokenizer.chat_template = None
    assert not comes_back(again, tmp_path / "without").has_chat_template


def test_a_chat_template_set_before_from_base(tiny_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = trained(QuietStar.from_base(base, tokenizer, base_name=tiny_folder))
    comes_back(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "base").exists()


@pytest.fixture
def padded(tokenizer, tmp_path_factory) -> str:
    """A folder whose embeddings have room for more tokens than the tokenizer knows."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 9, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("padded")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("before", [True, False])
def test_added_tokens_without_a_resize(padded, tmp_path, before):
    tokenizer = AutoTokenizer.from_pretrained(padded)
    base = AutoModelForCausalLM.from_pretrained(padded, dtype=torch.float32)
    if before:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>"]})
    model = trained(QuietStar.from_base(base, tokenizer, base_name=padded))
    if not before:
        tokenizer.add_tokens(["<think>"])
    again = comes_back(model, tmp_path / "saved")
    assert len(again.tokenizer("<think>")["input_ids"]) == 1
    assert not (tmp_path / "saved" / "base").exists()


def test_resized_embeddings(tiny, tmp_path):
    tiny.tokenizer.add_tokens(["<think>", "</think>"])
    tiny.decoder_lm.resize_token_embeddings(len(tiny.tokenizer))
    assert comes_back(tiny, tmp_path / "saved").vocabulary == len(tiny.tokenizer)


def test_resized_embeddings_under_an_adapter(tiny_folder, tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    tokenizer.add_tokens(["<think>", "</think>"])
    base.resize_token_embeddings(len(tokenizer))
    base = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model = trained(QuietStar.from_base(base, tokenizer))
    comes_back(model, tmp_path / "saved")


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "model.layers.0.input_layernorm.weight",
             "model.layers.1.mlp.down_proj.weight"],
)  # fmt: skip
@pytest.mark.parametrize("adapter", [False, True])
def test_one_edited_value(tiny, tiny_folder, tmp_path, name, adapter):
    if adapter:
        tiny.base = lora(tiny)
    edit(plain_tensors(tiny.decoder_lm)[name])
    comes_back(tiny, tmp_path / "saved")
    with pytest.raises(QuietStarError, match=rf"has to be saved too, since {name} was changed"):
        tiny.save_pretrained(tmp_path / "refused", save_base=False)
    assert not (tmp_path / "refused").exists()


def test_a_base_that_was_edited_before_from_base_is_not_taken_for_the_named_one(tiny_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    edit(base.model.norm.weight)
    comes_back(trained(QuietStar.from_base(base, base_name=tiny_folder)), tmp_path / "saved")


def test_untied_and_tied_outputs(tiny, padded, tmp_path):
    tiny.decoder_lm.lm_head.weight = nn.Parameter(tiny.decoder_lm.lm_head.weight.detach().clone())
    edit(tiny.decoder_lm.lm_head.weight)
    assert not is_tied(comes_back(tiny, tmp_path / "untied").decoder_lm)
    other = trained(QuietStar.from_pretrained(padded, dtype="float32"))
    other.decoder_lm.lm_head.weight = other.decoder_lm.model.embed_tokens.weight
    assert is_tied(comes_back(other, tmp_path / "tied").decoder_lm)


def test_generation_defaults(tiny, tmp_path):
    tiny.decoder_lm.generation_config.eos_token_id = [2, 7]
    tiny.decoder_lm.generation_config.temperature = 0.3  # without do_sample, which transformers would not write
    again = comes_back(tiny, tmp_path / "saved")
    assert again.decoder_lm.generation_config.eos_token_id == [2, 7] and not (tmp_path / "saved" / "base").exists()
    edit(tiny.decoder_lm.model.norm.weight)
    assert comes_back(tiny, tmp_path / "whole").decoder_lm.generation_config.temperature == 0.3


def test_a_changed_configuration(tiny, tmp_path):
    tiny.decoder_lm.config.rms_norm_eps = 0.5
    for module in tiny.decoder_lm.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.5
    comes_back(tiny, tmp_path / "saved")


def test_what_no_file_holds_is_refused(tiny, tmp_path):
    with torch.no_grad():
        tiny.decoder_lm.model.rotary_emb.inv_freq.mul_(0.5)
    for _ in range(2):
        with pytest.raises(QuietStarError, match=r"inv_freq was changed .* computed from the configuration"):
            tiny.save_pretrained(tmp_path / "saved")
        edit(tiny.decoder_lm.model.norm.weight)


def test_a_model_that_its_configuration_does_not_build_is_refused(tiny, tiny_folder, tmp_path):
    def fresh():
        return QuietStar.from_pretrained(tiny_folder, dtype="float32")

    one, two, three, four = fresh(), fresh(), fresh(), fresh()
    four.decoder_lm.model.norm.variance_epsilon = 0.5
    del one.decoder_lm.model.layers[1]
    two.decoder_lm.model.layers[0].mlp.act_fn = nn.Tanh()
    three.decoder_lm.model.extra = nn.Parameter(torch.ones(3))
    for model, says in (
        (one, "layers.1"),
        (two, "act_fn is Tanh"),
        (three, "model.extra"),
        (four, "model.norm.variance_epsilon is 0.5, but its configuration builds 1e-06"),
    ):
        with pytest.raises(QuietStarError, match=f"cannot be saved: .*{says}") as caught:
            model.save_pretrained(tmp_path / "saved")
        assert "\n" not in str(caught.value) and not (tmp_path / "saved").exists()
        with pytest.raises(QuietStarError, match="cannot be saved"):
            check_can_save(model)


def test_into_the_folder_of_the_base_itself(tiny_folder, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(tiny_folder, own)
    (own / "notes.txt").write_text("mine")
    comes_back(trained(QuietStar.from_pretrained(own, dtype="float32")), own)
    assert (own / "notes.txt").read_text() == "mine"


def test_a_base_no_longer_needed_goes_from_the_folder(tiny, tiny_folder, tmp_path):
    tiny.save_pretrained(tmp_path / "saved", save_base=True)
    other = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"))
    other.save_pretrained(tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"config.json", "quietstar.safetensors"}


def test_a_large_base_in_several_files(tiny, tmp_path):
    comes_back(tiny, tmp_path / "saved", save_base=True, max_shard_size="20KB")
    tiny.save_pretrained(tmp_path / "parts", save_base=True, max_shard_size="20KB")
    assert len(list((tmp_path / "parts" / "base").glob("model-*.safetensors"))) > 2
    assert not list((tmp_path / "parts").rglob("*.bin"))
    for options, says in (({"max_shard_size": "much"}, "much"), ({"safe_serialization": False}, "unknown option")):
        with pytest.raises(QuietStarError, match=says) as caught:
            tiny.save_pretrained(tmp_path / "refused", save_base=True, **options)
        assert "\n" not in str(caught.value)


def test_weights_rounded_after_loading(tiny, tmp_path):
    tiny.decoder_lm.to(torch.bfloat16)
    tiny.save_pretrained(tmp_path / "saved")
    again = QuietStar.from_pretrained(tmp_path / "saved", dtype="bfloat16")
    assert identify(again) == identify(tiny)


@pytest.mark.parametrize("first", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("second", ["float32", "bfloat16", "float16"])
def test_another_precision_is_not_another_version(tiny_folder, tmp_path, recwarn, first, second):
    QuietStar.from_pretrained(tiny_folder, dtype=first).save_pretrained(tmp_path / "saved")
    QuietStar.from_pretrained(tmp_path / "saved", dtype=second)
    assert not [w for w in recwarn if "another version" in str(w.message)]


@pytest.mark.parametrize("right", [True, False])
def test_a_folder_with_a_hash_of_the_first_version(tiny, tmp_path, recwarn, right):
    from quietstar.engine.identity import fingerprint_1

    tiny.save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "config.json"
    old = json.loads(file.read_text())
    old |= {"base_hash": fingerprint_1(tiny.decoder_lm) if right else "0123456789abcdef"}
    for key in ("base_hash_rounded", "base_dtype", "adapters"):
        old.pop(key)
    file.write_text(json.dumps(old))
    same(shown(QuietStar.from_pretrained(tmp_path / "saved", dtype="float32")), shown(tiny))
    assert right is not any("another version" in str(w.message) for w in recwarn)


def test_an_adapter_alone_says_how_it_is_loaded(tiny, tiny_folder, tmp_path):
    lora(tiny).save_pretrained(tmp_path / "adapter")
    with pytest.raises(QuietStarError, match=r"is a PEFT adapter alone, .*QuietStar.from_base\(PeftModel"):
        QuietStar.from_pretrained(tmp_path / "adapter")
    tiny.base = lora(tiny)
    tiny.save_pretrained(tmp_path / "saved")
    with pytest.raises(QuietStarError, match=r"is the adapter of a model; load .*saved$"):
        QuietStar.from_pretrained(tmp_path / "saved" / "adapter")


def test_a_base_named_by_a_relative_path(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(tiny_folder).parent)
    base = AutoModelForCausalLM.from_pretrained(Path(tiny_folder).name, dtype=torch.float32)
    model = trained(QuietStar.from_base(base, base_name=Path(tiny_folder).name))
    model.save_pretrained(tmp_path / "saved")
    monkeypatch.chdir(tmp_path)
    assert identify(QuietStar.from_pretrained("saved", dtype="float32")) == identify(model)
    assert not Path("saved/base").exists()


# -- any sequence of changes ------------------------------------------------------------------------------------------


def lora(model: QuietStar, **options):
    from peft import LoraConfig, get_peft_model

    settings = dict(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(model.decoder_lm, LoraConfig(**settings | options))


def _edit(model, n):
    weights = list(plain_tensors(model.decoder_lm).values())
    edit(weights[n % len(weights)], n)


def _edit_own(model, n):
    weights = [*model.head.parameters(), *model.markers.parameters()]
    edit(weights[n % len(weights)], n)


def _add_token(model, n):
    model.tokenizer.add_tokens([f"<new{n % 3}>", "<think>"][: n % 2 + 1], special_tokens=bool(n % 5))


def _special(model, n):
    model.tokenizer.pad_token = ["<|endoftext|>", "<|im_end|>", "the"][n % 3]
    model.tokenizer.padding_side = ["left", "right"][n % 2]


def _template(model, n):
    model.tokenizer.chat_template = f"{n}{{% for m in messages %}}[{{{{ m['content'] }}}}]{{% endfor %}}"


def _resize(model, n):
    model.decoder_lm.resize_token_embeddings(max(len(model.tokenizer), model.vocabulary) + n % 4, mean_resizing=False)


def _add_adapter(model, n):
    from peft import LoraConfig

    name, options = ["default", "maths", "code"][n % 3], {"use_dora": n % 4 == 1, "use_rslora": n % 2 == 1}
    if model.base is model.decoder_lm:
        model.base = lora(model, **options) if n % 2 else lora(model)
    elif name not in model.base.peft_config:
        model.base.add_adapter(
            name, LoraConfig(r=1 + n % 3, target_modules=["v_proj"], init_lora_weights=False, **options)
        )


def _activate(model, n):
    if model.base is not model.decoder_lm:
        names = list(model.base.peft_config)
        model.base.base_model.set_adapter(names if n % 3 == 0 else names[n % len(names)])


def _switch(model, n):
    if model.base is not model.decoder_lm:
        (model.base.base_model.disable_adapter_layers if n % 2 else model.base.base_model.enable_adapter_layers)()


def _merge(model, n):
    if model.base is model.decoder_lm:
        return
    if n % 3 == 0:
        model.base = model.base.merge_and_unload()
    elif n % 3 == 1:
        model.base.merge_adapter()
    else:
        model.base.unmerge_adapter()


def _drop(model, n):
    if model.base is not model.decoder_lm and len(model.base.peft_config) > 1:
        model.base.delete_adapter(list(model.base.peft_config)[n % len(model.base.peft_config)])


def _generation(model, n):
    setattr(model.decoder_lm.generation_config, ["max_length", "top_k", "repetition_penalty"][n % 3], 1 + n)


def _untie(model, n):
    output = dict(plain_modules(model.decoder_lm))["lm_head"]
    output.weight = nn.Parameter(output.weight.detach().clone())


def _save_and_load(model, n):
    return n


STEPS = [_edit, _edit_own, _add_token, _special, _template, _resize, _add_adapter, _activate, _switch, _merge, _drop,
         _generation, _untie, _save_and_load]  # fmt: skip


@fuzz(12)
@given(steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1000)), min_size=1, max_size=7), data=st.data())
def test_any_sequence_of_changes_comes_back_or_is_refused(tiny_folder, tmp_path_factory, steps, data):
    folder = tmp_path_factory.mktemp("any") / "saved"
    model = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"))
    torch.manual_seed(0)
    for step, n in steps:
        if step is _save_and_load:
            try:
                model.save_pretrained(folder)
            except QuietStarError:
                continue
            model = QuietStar.from_pretrained(folder, dtype="float32")
        else:
            step(model, n)
    before = copy.deepcopy(shown(model))
    old = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        check_can_save(model)
        model.save_pretrained(folder)
    except QuietStarError as error:
        assert "\n" not in str(error)
        assert any(word in str(error) for word in ("is merged", "the layers differ", "the tokenizer would come back"))
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == old
    else:
        same(shown(model), before)  # saving changes nothing
        same(shown(QuietStar.from_pretrained(folder, dtype="float32")), before)
    shutil.rmtree(folder.parent)


# -- families, precisions, training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_base_of_each_family(tmp_path, family):
    model, _ = thinking(family)
    edit(plain_tensors(model.decoder_lm)[next(iter(plain_tensors(model.decoder_lm)))], 700)
    comes_back(model, tmp_path / "saved", exact=False)


def test_quantised_bases_are_known_by_name_or_refused(tokenizer, tmp_path, recwarn):
    pytest.importorskip("bitsandbytes")
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
                         num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    model = trained(QuietStar.from_pretrained(tmp_path / "plain", quantize="8bit", dtype="bfloat16"))
    model.save_pretrained(tmp_path / "saved")
    for quantize in (None, "8bit"):
        again = QuietStar.from_pretrained(tmp_path / "saved", quantize=quantize, dtype="bfloat16")
        assert torch.equal(again.markers.start, model.markers.start)
    assert not [w for w in recwarn if "another version" in str(w.message)]
    edit(model.decoder_lm.model.norm.weight)
    for change in (lambda: None, lambda: setattr(model.config, "base_name", None)):
        change()
        with pytest.raises(QuietStarError, match="4 or 8 bit cannot be saved") as caught:
            model.save_pretrained(tmp_path / "refused")
        assert "\n" not in str(caught.value)


def test_an_adapter_is_trained_on_a_model_built_from_a_base(tiny_folder, tmp_path):
    """Its checkpoints hold the base too, and the run goes on from them."""
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    QuietStar.from_base(base, AutoTokenizer.from_pretrained(tiny_folder)).save_pretrained(tmp_path / "mine")
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": f"the quick fox {n}" * 9}) + "\n" for n in range(9))
    )
    found = []
    for steps, resume in ((2, None), (4, str(tmp_path / "run" / "checkpoint-2"))):
        mapping = {
            "model": str(tmp_path / "mine"), "out": str(tmp_path / "run"), "precision": "fp32",
            "data": {"train": [str(tmp_path / "texts.jsonl")], "length": 16, "heldout_share": 0.0},
            "weights": {"train": "lora", "rank": 2}, "thinking": {"thought_length": 2, "samples": 2},
            "optimizer": {"steps": steps, "batch": 1, "accumulate": 1, "warmup": 0, "schedule": "constant"},
            "watch": {"save_every": 2},
        }  # fmt: skip
        trainer = ThoughtTrainer.from_recipe(recipes.from_mapping(mapping, "here"))
        if resume:
            refill(trainer.model, resume)
            same(shown(trainer.model), found[-1])
        trainer.train()
        found.append(shown(trainer.model))
        where = tmp_path / "run" / f"checkpoint-{steps}"
        assert (where / "base").is_dir()
        same(shown(QuietStar.from_pretrained(where, dtype="float32")), found[-1])
        trainer.save_model(str(tmp_path / "run" / "model"))
        same(shown(QuietStar.from_pretrained(tmp_path / "run" / "model", dtype="float32")), found[-1])
