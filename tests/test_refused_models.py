"""Models that are not supported as they are: one line at load (or at first use), and nothing of them is changed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from conftest import trained
from quietstar import QuietStar, QuietStarError, UnsupportedModel, jsontext
from test_damaged_folders import shard
from tiny import FAMILIES, bare

GOLDEN = Path(__file__).parent / "golden" / "infer-greedy"
SMALL = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, max_position_embeddings=128, pad_token_id=1)  # fmt: skip


def copy_of(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "model"))


def changed(folder: Path, file: str = "config.json", **values) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def with_weight(folder: Path, name: str, change) -> Path:
    weights = load_file(folder / "model.safetensors")
    weights[name] = change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def refused(call, says: str) -> str:
    with pytest.raises(QuietStarError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "more", "says"),
    [
        ("nemotron", {}, "'nemotron' is not supported: its own code fails where rows run through it"),
        ("doge", {}, "'doge' is not supported: its own code fails where rows run through it"),
        ("llama4_text", dict(num_local_experts=2, intermediate_size_mlp=48), "'llama4_text' is not supported"),
        ("bert", {}, "later tokens change the predictions before them"),
        ("jamba", dict(mamba_d_state=4, num_experts=2), "'jamba' is not supported: .*linear_attention"),
        ("falcon_h1", dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4), "'falcon_h1'"),
        ("gemma4_text", dict(num_hidden_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=97,
                             global_head_dim=8, layer_types=["sliding_attention", "full_attention"]),
         "fails on an embedding that is no token's"),
    ],
)  # fmt: skip
def test_families_of_these_kinds_are_one_line_and_stay_as_they_were(family, more, says):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SMALL | more), dtype=torch.float32).train()
    before = base.config.to_dict(), base.config._attn_implementation
    with pytest.raises(UnsupportedModel, match=says) as caught:
        QuietStar.from_base(base)
    assert "\n" not in str(caught.value)
    assert (base.config.to_dict(), base.config._attn_implementation) == before and base.training


@pytest.mark.parametrize("layers", ["sliding_attention", "full_attention"])
def test_a_gemma_3_that_reads_the_future_is_refused(layers):
    config = CONFIG_MAPPING["gemma3_text"](
        **FAMILIES["gemma3_text"] | dict(layer_types=[layers] * 4), use_bidirectional_attention=True
    )
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    before = base.config._attn_implementation
    refused(lambda: QuietStar.from_base(base), "later tokens change the predictions before them")
    assert base.config._attn_implementation == before


def test_reading_the_future_is_noticed_in_any_model():
    base = bare("llama")
    for layer in base.model.layers:  # mixes each state with the next one
        layer.register_forward_pre_hook(lambda _, args: (args[0] + 0.5 * args[0].roll(-1, 1), *args[1:]))
    refused(lambda: QuietStar.from_base(base), "later tokens change the predictions before them")
    assert base.config._attn_implementation == "eager"


# -- values that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_weight_that_is_not_finite_is_named(tiny_folder, tmp_path, name, value):
    folder = with_weight(copy_of(tiny_folder, tmp_path), name, lambda w: w.index_fill(0, torch.tensor([7]), value))
    refused(lambda: QuietStar.from_pretrained(folder), f"the weights? {name} of the base model holds? .*not finite")


def test_markers_and_head_that_are_not_finite_are_named(folder, tmp_path):
    made = copy_of(folder, tmp_path)
    weights = load_file(made / "quietstar.safetensors")
    weights["head.layers.0.bias"][3] = float("nan")
    save_file(weights, made / "quietstar.safetensors")
    refused(lambda: QuietStar.from_pretrained(made), "quietstar.safetensors: head.layers.0.bias holds values")


def test_a_base_that_overflows_is_an_error():
    base = bare("llama").to(torch.float16)
    with torch.no_grad():
        for layer in base.model.layers:
            layer.mlp.down_proj.weight.fill_(6e4)
    refused(lambda: QuietStar.from_base(base), "logits are not finite .* in float16; load it with --dtype float32")


@pytest.mark.parametrize("command", [["think", "the quick", "-n", "2", "--json"], ["think", "the", "-n", "2", "-q"],
                                     ["score"]])  # fmt: skip
def test_commands_say_so_and_fail(tiny_folder, tmp_path, run, command):
    folder = with_weight(copy_of(tiny_folder, tmp_path), "model.norm.weight", lambda w: w * float("nan"))
    (tmp_path / "a.txt").write_text("the quick brown fox")
    if command == ["score"]:
        command = ["score", str(tmp_path / "a.txt"), "--json"]
    code, out, err = run(*command, "--model", str(folder))
    assert code == 2 and not out and "NaN" not in out
    assert err.count("\n") == 1 and "model.norm.weight" in err and "not finite" in err


def test_json_has_no_nan_and_no_infinity():
    found = jsontext.to_json({"a": [float("nan"), (float("inf"), 1.5)], "b": {"c": -math.inf}, "d": "NaN é"})
    assert json.loads(found, parse_constant=pytest.fail) == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "NaN é"}
    assert "é" in found and "\\u00e9" in jsontext.to_json("é", ascii_only=True)


def test_all_output_as_json_goes_one_way():
    """No command prints JSON but through the one writer."""
    source = Path(QuietStar.__module__.replace(".", "/")).parent
    folder = Path(jsontext.__file__).parent / "cli"
    assert source.name == "quietstar"
    for file in folder.glob("*.py"):
        printed = [line for line in file.read_text().splitlines() if "json.dumps" in line and "print(" in line]
        assert not printed, f"{file}: {printed}"


# -- tokenizers and templates -----------------------------------------------------------------------------------------


def test_a_tokenizer_larger_than_the_embeddings_is_refused(tiny_folder, tmp_path, run):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    base.resize_token_embeddings(280)
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    refused(lambda: QuietStar.from_pretrained(tmp_path), "as token 280, but the base model has embeddings for 280")
    for command in (["think", "the quick brown", "-n", "2"], ["score", __file__]):
        code, _, err = run(*command, "--model", str(tmp_path))
        assert code == 2 and err.count("\n") == 1 and "resize_token_embeddings" in err


def test_an_added_token_beyond_the_embeddings_is_told_and_refused_where_it_is_used(tiny_folder):
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<think>"])
    with pytest.warns(UserWarning, match=f"'<think>' as token {rows}"):
        model = QuietStar.from_base(base, tokenizer)
    assert model.generate("the", max_new_tokens=1, thought_length=1).text is not None
    for use in (lambda: model.generate("a <think> b"), lambda: model.score("a <think> b"),
                lambda: model.resample(1, of="a <think> b")):  # fmt: skip
        refused(use, f"the text has '<think>', token {rows} of the tokenizer")


def test_training_refuses_a_token_beyond_the_embeddings(tiny_folder, tmp_path, run):
    folder = copy_of(tiny_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>"])
    tokenizer.save_pretrained(folder)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "the quick <think> brown fox " * 20}) + "\n")
    code, _, err = run("train", "smoke", "--model", str(folder), "--data.train", str(tmp_path / "a.jsonl"),
                       "--out", str(tmp_path / "out"))  # fmt: skip
    assert code == 2 and "the text has '<think>'" in err.splitlines()[-1]


def test_named_templates_without_a_default_are_one_line(tiny_folder, tmp_path, run):
    folder = copy_of(tiny_folder, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"tool_use": tokenizer.chat_template, "rag": tokenizer.chat_template}
    (folder / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(folder)
    model = trained(QuietStar.from_pretrained(folder))
    refused(lambda: model.generate("the quick"), "named 'rag', 'tool_use' and none named 'default'")
    assert model.generate("the quick", raw=True, max_new_tokens=1, thought_length=1).trace.ids
    code, _, err = run("think", "the quick", "--model", str(folder))
    assert code == 2 and "--raw" in err.splitlines()[-1] and "Traceback" not in err


@pytest.mark.parametrize("template", ["{{ 1 // 0 }}", "{{ messages[9].content }}", "{% for %}", "{{ x.y.z }}",
                                      "{{ raise_exception('no') }}", "{{ messages | nofilter }}"])  # fmt: skip
def test_a_template_that_fails_is_one_line(tiny, template):
    tiny.tokenizer.chat_template = template
    refused(lambda: tiny.generate("the quick"), "chat template refuses this conversation")


# -- the published layout ---------------------------------------------------------------------------------------------


def test_published_heads_that_are_not_read_are_refused(tmp_path):
    folder = copy_of(GOLDEN, tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"talk_head.1.0.weight": torch.zeros(2, 2)}, folder / "model.safetensors")
    refused(lambda: QuietStar.from_pretrained(folder), "several mixing heads")
    save_file(weights, folder / "model.safetensors")
    refused(lambda: QuietStar.from_pretrained(changed(folder, use_concat_talk_head=False)), "use_concat_talk_head")


# -- weights that are no safetensors, or elsewhere --------------------------------------------------------------------


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("file", ["model.bin", "../model.safetensors", "/tmp/model.safetensors", "weights.pt", "a.pth"])
def test_an_index_names_safetensors_beside_it_or_is_refused(tiny_folder, tmp_path, file, published, monkeypatch):
    folder = copy_of(GOLDEN if published else tiny_folder, tmp_path)
    shard(folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    key = sorted(index["weight_map"])[0]
    whole = load_file(folder / index["weight_map"][key])
    if not file.endswith(".safetensors"):
        torch.save(whole, folder / file)
    elif file.startswith(".."):
        save_file(whole, folder / file)
    old = index["weight_map"][key]
    index["weight_map"] = {k: file if v == old else v for k, v in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a pickled file was read"))
    refused(lambda: QuietStar.from_pretrained(folder), "never pickled|not a file beside it")


@pytest.mark.parametrize("file", ["adapter_model.bin", "pytorch_model.bin", "../x.safetensors"])
def test_weights_named_in_the_settings_are_checked_too(tiny_folder, tmp_path, file):
    folder = changed(copy_of(tiny_folder, tmp_path), transformers_weights=file)
    refused(lambda: QuietStar.from_pretrained(folder), "transformers_weights in config.json names")


def test_a_folder_of_pickled_weights_says_what_to_do(tiny_folder, tmp_path):
    folder = copy_of(tiny_folder, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(lambda: QuietStar.from_pretrained(folder), "only pytorch_model.bin, a pickled file, which is never read")


def test_an_adapter_is_not_a_model(tiny_folder, tmp_path):
    only = tmp_path / "adapter"
    only.mkdir()
    (only / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "some/base"}))
    refused(
        lambda: QuietStar.from_pretrained(only), "is a PEFT adapter alone, not a model; put it on its base: .*some/base"
    )
    both = copy_of(tiny_folder, tmp_path)
    shutil.copy(only / "adapter_config.json", both)
    torch.save({}, both / "adapter_model.bin")
    refused(lambda: QuietStar.from_pretrained(both), "a model and a PEFT adapter .* in one folder")


# -- sizes and options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [("hidden_size", 10**9), ("vocab_size", 10**12), ("num_hidden_layers", 10**6), ("intermediate_size", 10**10),
     ("num_attention_heads", 10**9), ("head_dim", 10**9), ("hidden_size", 10**30), ("num_hidden_layers", -1),
     ("num_key_value_heads", 0), ("vocab_size", -5), ("num_hidden_layers", 1), ("num_hidden_layers", 10**12)],
)  # fmt: skip
def test_absurd_sizes_are_refused_before_memory_is_taken(tiny_folder, tmp_path, name, value):
    import resource

    folder = changed(copy_of(tiny_folder, tmp_path), **{name: value})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(lambda: QuietStar.from_pretrained(folder), str(folder))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "dtype must be"),
        ({"dtype": torch.int8}, "dtype must be"),
        ({"dtype": 3}, "dtype must be"),
        ({"dtype": None}, "dtype must be"),
        ({"device": "cuda:99"}, "cuda:99"),
        ({"device": "mps"}, "mps"),
        ({"device": "meta"}, "meta"),
        ({"device": "cpu:x"}, "cpu:x"),
        ({"device": 3.5}, "3.5"),
        ({"device": ""}, "device ''"),
        ({"quantize": True}, "quantize must be"),
        ({"quantize": 4}, "quantize must be"),
        ({"quantize": "int4"}, "quantize must be"),
    ],
)
def test_wrong_options_are_one_line(tiny_folder, options, says):
    if options.get("device") == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    refused(lambda: QuietStar.from_pretrained(tiny_folder, **options), says)


@pytest.mark.parametrize("name", ["x" * 300, "a/b/c", "~nobody/x", "", "..", "a\0b", "/dev/null", "x.gguf"])
def test_odd_names_are_one_line(name, monkeypatch):
    monkeypatch.setattr("quietstar.loading.checkpoints._offline", lambda: True)
    refused(lambda: QuietStar.from_pretrained(name), ".")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", "many"), ("hidden_size", 64), ("thought_length", -1), ("marker_ids", ["a"]), ("marker_ids", 3),
     ("marker_ids", [10**6, 10**6 + 1]), ("filler_id", 10**6), ("weight_floor", float("nan")), ("weight_floor", 2),
     ("base_name", 5), ("adapter", "yes"), ("adapter", True), ("hidden_size", 10**9)],
)  # fmt: skip
def test_our_own_settings_are_checked(folder, tmp_path, key, value):
    refused(lambda: QuietStar.from_pretrained(changed(copy_of(folder, tmp_path), **{key: value})), ".")


def test_a_refusal_is_all_that_is_said(tiny_folder, tmp_path, run):
    folder = changed(copy_of(tiny_folder, tmp_path), num_hidden_layers=3)
    code, out, err = run("think", "the", "--model", str(folder))
    assert code == 2 and not out and err.count("\n") == 1 and "lack model.layers.2" in err
