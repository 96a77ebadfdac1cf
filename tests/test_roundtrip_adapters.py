"""Adapters of every verified type, name, number and state come back; those rows cannot follow are refused by name."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import trained
from quietstar import QuietStar, QuietStarError, UnsupportedModel
from quietstar.engine.adapters import VERIFIED, carried, own_tensors, plain_tensors
from quietstar.engine.identity import identify
from quietstar.loading.checkpoints import check_can_save, refill
from test_roundtrip import comes_back, lora, same, shown

peft = pytest.importorskip("peft")
QV = ["q_proj", "v_proj"]


def adapted(folder: str, config, seed: int = 0, name: str = "default", bias_too: bool = False) -> QuietStar:
    """The tiny model with an adapter whose every weight is somewhere of its own, as if trained."""
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(seed)
    wrapped = peft.get_peft_model(base, config, adapter_name=name)
    model = trained(QuietStar.from_base(wrapped, AutoTokenizer.from_pretrained(folder)))
    plain = shown(model)["logits"]
    stir(model)
    if bias_too:
        with torch.no_grad():
            biases = carried(model.base, model.decoder_lm)
            assert biases
            for key, value in plain_tensors(model.decoder_lm).items():
                if key in biases:
                    value.add_(torch.randn_like(value) * 0.1)
    assert not torch.equal(shown(model)["logits"], plain)  # it does something
    return model


def stir(model: QuietStar) -> None:
    with torch.no_grad():
        for value in own_tensors(model.base, model.decoder_lm).values():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.05)


@pytest.fixture(scope="module")
def biased(tokenizer, tmp_path_factory) -> str:
    """A folder whose layers have biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.3, bos_token_id=1, eos_token_id=2, attention_bias=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("biased")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def configs() -> dict:
    own = dict(task_type="CAUSAL_LM", target_modules=QV)
    return {
        "LORA": peft.LoraConfig(r=2, **own),
        "LORA dora": peft.LoraConfig(r=2, use_dora=True, **own),
        "LORA rslora": peft.LoraConfig(r=3, use_rslora=True, **own),
        "LORA bias all": peft.LoraConfig(r=2, bias="all", **own),
        "LORA bias lora_only": peft.LoraConfig(r=2, bias="lora_only", **own),
        "LORA modules_to_save": peft.LoraConfig(r=2, modules_to_save=["lm_head", "norm"], **own),
        "LORA tokens": peft.LoraConfig(r=2, trainable_token_indices=[3, 90], **own),
        "LORA embeddings": peft.LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], task_type="CAUSAL_LM"),
        "LORA patterns": peft.LoraConfig(r=2, rank_pattern={"v_proj": 4}, alpha_pattern={"v_proj": 3}, **own),
        "IA3": peft.IA3Config(target_modules=[*QV, "down_proj"], feedforward_modules=["down_proj"],
                              task_type="CAUSAL_LM"),
        "ADALORA": peft.AdaLoraConfig(total_step=10, **own),
        "BOFT": peft.BOFTConfig(boft_block_size=4, **own),
        "FOURIERFT": peft.FourierFTConfig(n_frequency=20, **own),
        "HRA": peft.HRAConfig(r=2, **own),
        "LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm", "norm"], task_type="CAUSAL_LM"),
        "LOHA": peft.LoHaConfig(r=2, **own),
        "LOKR": peft.LoKrConfig(r=2, **own),
        "OFT": peft.OFTConfig(oft_block_size=4, **own),
        "TRAINABLE_TOKENS": peft.TrainableTokensConfig(token_indices=[3, 90], target_modules=["embed_tokens"],
                                                       task_type="CAUSAL_LM"),
        "VBLORA": peft.VBLoRAConfig(r=2, num_vectors=16, vector_length=16, topk=2, **own),
        "VERA": peft.VeraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        "VERA without projections": peft.VeraConfig(r=4, target_modules=["q_proj"], save_projection=False,
                                                    task_type="CAUSAL_LM"),
    }  # fmt: skip


KINDS = list(configs())


def test_every_verified_type_is_tried():
    assert {kind.partition(" ")[0] for kind in KINDS} == VERIFIED


@pytest.mark.parametrize("kind", KINDS)
def test_each_type_comes_back(biased, tmp_path, kind):
    model = adapted(biased, configs()[kind], bias_too="bias" in kind)
    again = comes_back(model, tmp_path / "saved")
    assert not (tmp_path / "saved" / "base").exists()
    stir(again)
    refill(again, tmp_path / "saved")
    same(shown(again), shown(model))


@pytest.mark.parametrize("kind", KINDS)
def test_each_type_comes_back_beside_a_base_of_its_own(biased, tmp_path, kind):
    """As for a model built by `from_base`: the base has no name to be found by."""
    model = adapted(biased, configs()[kind], bias_too="bias" in kind)
    model.config.base_name = None
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "base").exists()
    again = QuietStar.from_pretrained(tmp_path / "saved", dtype="float32")
    same(shown(again), shown(model))
    with torch.no_grad():
        again.decoder_lm.model.norm.weight.add_(1)
    refill(again, tmp_path / "saved")
    same(shown(again), shown(model))


def test_an_untouched_module_to_save_is_no_other_version(tiny_folder, tmp_path, recwarn):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = peft.LoraConfig(r=2, target_modules=QV, modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = trained(QuietStar.from_base(peft.get_peft_model(base, config), AutoTokenizer.from_pretrained(tiny_folder)))
    comes_back(model, tmp_path / "saved")
    assert not [w for w in recwarn if "another version" in str(w.message)]


def several(tiny_folder) -> QuietStar:
    model = adapted(tiny_folder, peft.LoraConfig(r=2, target_modules=QV, task_type="CAUSAL_LM"), name="maths")
    for name, targets in (("default", ["down_proj"]), ("code", ["v_proj"])):
        model.base.add_adapter(name, peft.LoraConfig(r=1, target_modules=targets, init_lora_weights=False))
    return model


@pytest.mark.parametrize("active", [["maths"], ["default"], ["code"], ["maths", "code"], ["code", "default"], []])
def test_adapters_of_any_name_with_the_active_ones_active(tiny_folder, tmp_path, active):
    model = several(tiny_folder)
    model.base.base_model.set_adapter(active)
    again = comes_back(model, tmp_path / "saved")
    assert list(again.base.base_model.active_adapters) == active
    assert identify(again).adapter == "+".join(active)
    assert set(again.base.peft_config) == {"maths", "default", "code"}


def test_adapters_that_are_switched_off_stay_off(tiny_folder, tmp_path):
    model = several(tiny_folder)
    model.base.base_model.disable_adapter_layers()
    again = comes_back(model, tmp_path / "saved")
    again.base.base_model.enable_adapter_layers()
    model.base.base_model.enable_adapter_layers()
    same(shown(again), shown(model))


def test_a_merged_adapter_is_refused_until_it_is_taken_out(tiny_folder, tmp_path):
    model = several(tiny_folder)
    model.base.merge_adapter()
    for attempt in (check_can_save, lambda m: m.save_pretrained(tmp_path / "saved")):
        with pytest.raises(QuietStarError, match="'maths' is merged into the weights.*unmerge_adapter"):
            attempt(model)
    model.base.unmerge_adapter()  # the base is a rounding away from what it was
    comes_back(model, tmp_path / "saved")
    model.base = model.base.merge_and_unload()
    comes_back(model, tmp_path / "merged")


def test_states_no_folder_holds_are_refused(tiny_folder, tmp_path):
    model = several(tiny_folder)
    layer = model.decoder_lm.model.layers[0].self_attn.q_proj
    layer.set_scale("maths", 3.0)
    with pytest.raises(QuietStarError, match="scale of adapter 'maths' was changed at model.layers.0.self_attn.q_proj"):
        model.save_pretrained(tmp_path / "saved")
    layer.set_scale("maths", 1.0)
    layer.set_adapter(["code"])
    with pytest.raises(QuietStarError, match="layers differ in which adapters are active"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_adapters_inside_a_base_without_a_wrapper_are_refused(tiny, tmp_path):
    tiny.decoder_lm.add_adapter(peft.LoraConfig(r=2, target_modules=QV))
    with pytest.raises(QuietStarError, match="adapter layers of its own .*get_peft_model"):
        tiny.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PROMPT_TUNING is not supported: .*virtual tokens"),
        (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"), "PREFIX_TUNING .*virtual"),
        (lambda: peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
         "P_TUNING .*virtual"),
        (lambda: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"), "ADAPTION_PROMPT is not supported"),
        (lambda: peft.LoraConfig(r=2, target_modules=QV, alora_invocation_tokens=[5], task_type="CAUSAL_LM"), "aLoRA is not supported"),
    ],
)  # fmt: skip
def test_what_needs_virtual_tokens_is_refused_by_name(tiny_folder, config, says):
    base = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_folder), config())
    with pytest.raises(UnsupportedModel, match=says) as caught:
        QuietStar.from_base(base)
    assert "\n" not in str(caught.value)


def test_types_that_were_not_tried_are_refused_when_saved(tiny_folder, tmp_path):
    config = peft.RandLoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = QuietStar.from_base(peft.get_peft_model(base, config))
    with pytest.raises(QuietStarError, match="of type RANDLORA, which is not among"):
        model.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("name", ["default", "smollm2-135m-instruct"])
def test_the_base_an_adapter_names_is_one_a_stranger_can_load(tiny, tiny_folder, tmp_path, monkeypatch, name):
    """On the default model the name is clear, the README has the commands, and neither knows this machine's folders."""
    from quietstar.loading import default_model

    tiny.save_pretrained(tmp_path / "thinking", save_base=True)
    monkeypatch.setattr(default_model, "thinking_folder", lambda: tmp_path / "thinking")
    monkeypatch.setattr(default_model, "folder", lambda: tmp_path / "thinking" / "base")
    model = trained(QuietStar.from_pretrained(name, dtype="float32"))
    model.base = lora(model)
    model.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "base").exists()
    card = (tmp_path / "mine" / "adapter" / "README.md").read_text()
    config = json.loads((tmp_path / "mine" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name and str(tmp_path) not in card + str(config)
    same(shown(QuietStar.from_pretrained(tmp_path / "mine", dtype="float32")), shown(model))
    run_card(card, tmp_path / "mine", monkeypatch, model)


def run_card(card: str, folder, monkeypatch, model: QuietStar) -> None:
    """Run what a README says and compare what it gives."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    ids = torch.tensor([[3, 40, 5, 90, 7]])
    with torch.no_grad():
        torch.testing.assert_close(names["model"](ids).logits, model.base(ids).logits)


@pytest.mark.parametrize("beside", [True, False])
def test_the_readme_of_an_adapter_runs(tiny_folder, tmp_path, monkeypatch, beside):
    model = several(tiny_folder)
    model.save_pretrained(tmp_path / "saved", save_base=beside)
    card = (tmp_path / "saved" / "adapter" / "README.md").read_text()
    model.base.set_adapter("maths")
    run_card(card, tmp_path / "saved", monkeypatch, model)
    found = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "saved" / "adapter" / "maths")  # as PEFT does
    assert isinstance(found, peft.PeftModel)
