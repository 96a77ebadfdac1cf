"""Saving and loading: what was trained comes back, other people's layouts load, broken things are named."""

import json
import shutil
import socket
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import trained
from quietstar import QuietStar, QuietStarError
from quietstar.loading import checkpoints

GOLDEN = Path(__file__).parent / "golden" / "infer-greedy"


def says(model) -> tuple:
    _, trace = model.generate("the quick", raw=True, max_new_tokens=4, thought_length=3, stop_ids=[])
    return trace.ids, [t.weight for t in trace.thoughts]


def test_saves_only_what_was_trained_and_loads_it_back(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "saved")
    assert {p.name for p in (tmp_path / "saved").iterdir()} == {"config.json", "quietstar.safetensors"}
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config["model_type"] == "quietstar" and config["base_name"] and config["base_hash"]
    again = QuietStar.from_pretrained(tmp_path / "saved", dtype="float32")
    assert says(again) == says(tiny)


def test_the_auto_class_of_transformers_loads_it(tiny, tmp_path):
    from transformers import AutoModelForCausalLM

    tiny.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="float32")
    assert isinstance(again, QuietStar) and says(again) == says(tiny)
    assert again(torch.tensor([[3, 4, 5]])).logits.shape == (1, 3, again.vocabulary)


def test_a_trained_base_is_saved_too(tiny, tmp_path):
    with torch.no_grad():
        tiny.base.model.norm.weight.add_(0.5)
    for folder in ("saved", "again"):
        tiny.save_pretrained(tmp_path / folder)
        assert (tmp_path / folder / "base" / "model.safetensors").exists()
        loaded = QuietStar.from_pretrained(tmp_path / folder, dtype="float32")
        assert says(loaded) == says(tiny)
    loaded.save_pretrained(tmp_path / "third")
    assert says(QuietStar.from_pretrained(tmp_path / "third", dtype="float32")) == says(tiny)


@pytest.mark.parametrize("weight", ["model.layers.1.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_training_any_weight_of_the_base_is_noticed(tiny, tmp_path, weight):
    parameter = dict(tiny.base.named_parameters())[weight]
    optimizer = torch.optim.AdamW([parameter], lr=1e-2)
    tiny.base(input_ids=torch.tensor([[3, 4, 5, 6]]), labels=torch.tensor([[3, 4, 5, 6]])).loss.backward()
    optimizer.step()
    tiny.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "base").exists()


def test_a_base_given_as_a_model_is_saved_unless_its_name_is_given(tiny_folder, tmp_path):
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_folder)
    QuietStar.from_base(base).save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "base").exists()
    QuietStar.from_base(base, base_name=tiny_folder).save_pretrained(tmp_path / "named")
    assert not (tmp_path / "named" / "base").exists()


def test_adapters_are_saved_in_their_own_format(tiny_folder, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model = trained(QuietStar.from_base(adapted, AutoTokenizer.from_pretrained(tiny_folder)))
    adapted.peft_config["default"].base_model_name_or_path = "no-such-model"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no lookup of that name
        model.save_pretrained(tmp_path / "saved")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        p.name for p in (tmp_path / "saved/adapter").iterdir()
    }
    assert not (tmp_path / "saved" / "base").exists()
    again = QuietStar.from_pretrained(tmp_path / "saved", dtype="float32")
    assert says(again) == says(model)
    plain = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"))
    assert says(plain) != says(model)  # the adapter does something
    weights = tmp_path / "saved/adapter/adapter_model.safetensors"
    torch.save(load_file(weights), weights.with_name("adapter_model.bin"))
    weights.unlink()
    with pytest.raises(QuietStarError, match="pickled weights are not read"):
        QuietStar.from_pretrained(tmp_path / "saved")


def test_weights_of_another_size_are_named(tiny, tmp_path):
    tiny.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "quietstar.safetensors")
    save_file(tensors | {"markers.start": torch.zeros(3)}, tmp_path / "quietstar.safetensors")
    with pytest.raises(QuietStarError, match="does not hold the markers and head of hidden size 32") as caught:
        QuietStar.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_base_that_is_gone_is_named(tiny, tmp_path):
    tiny.config.base_name = str(tmp_path / "gone")
    tiny.save_pretrained(tmp_path / "saved", save_base=False)
    with pytest.raises(QuietStarError, match="gone, which does not exist"):
        QuietStar.from_pretrained(tmp_path / "saved")


def test_another_base_is_noticed(tiny, tiny_folder, tmp_path):
    tiny.save_pretrained(tmp_path / "saved")
    other = tmp_path / "other"
    shutil.copytree(tiny_folder, other)
    weights = load_file(other / "model.safetensors")
    save_file({k: v + 0.1 for k, v in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"base_name": str(other)}))
    with pytest.warns(UserWarning, match="another version"):
        QuietStar.from_pretrained(tmp_path / "saved")


def test_published_checkpoints_load_sharded_too(tmp_path):
    shutil.copytree(GOLDEN, tmp_path / "sharded")
    weights = load_file(GOLDEN / "model.safetensors")
    names = sorted(weights)
    index = {}
    for n in range(3):
        file = f"model-0000{n + 1}-of-00003.safetensors"
        index |= dict.fromkeys(names[n::3], file)
        save_file({k: weights[k] for k in names[n::3]}, tmp_path / "sharded" / file, metadata={"format": "pt"})
    (tmp_path / "sharded" / "model.safetensors").unlink()
    (tmp_path / "sharded" / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": index})
    )
    whole, parts = (QuietStar.from_pretrained(folder) for folder in (GOLDEN, tmp_path / "sharded"))
    torch.testing.assert_close(parts.markers.start, weights["start_embedding"][0], rtol=0, atol=0)
    options = dict(max_new_tokens=4, thought_length=3, stop_ids=[])
    assert whole.generate([3, 4, 5], **options)[1].ids == parts.generate([3, 4, 5], **options)[1].ids


def test_a_published_checkpoint_saved_in_our_layout_keeps_everything(tmp_path):
    model = QuietStar.from_pretrained(GOLDEN)
    model.save_pretrained(tmp_path / "ours", save_base=True)
    again = QuietStar.from_pretrained(tmp_path / "ours")
    options = dict(max_new_tokens=4, thought_length=3, stop_ids=[])
    assert again.generate([3, 4, 5], **options)[1].ids == model.generate([3, 4, 5], **options)[1].ids
    assert again.config.marker_ids == [512, 513]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda w: w.pop("end_embedding"), "lacks end_embedding"),
        (lambda w: w.update({"talk_head.0.4.weight": torch.zeros(2, 64)}), "another mixing head"),
        (lambda w: w.pop("model.norm.weight"), "lack model.norm.weight"),
    ],
)
def test_incomplete_published_checkpoints_are_refused(tmp_path, change, says):
    shutil.copytree(GOLDEN, tmp_path / "broken")
    weights = load_file(GOLDEN / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "broken" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(QuietStarError, match=says):
        QuietStar.from_pretrained(tmp_path / "broken")


def test_half_downloaded_and_broken_files_are_named(tiny_folder, tmp_path):
    def changed(**values) -> bytes:
        return json.dumps(json.loads((Path(tiny_folder) / "config.json").read_text()) | values).encode()

    for file, content, says in (
        ("model.safetensors", (Path(tiny_folder) / "model.safetensors").read_bytes()[:900], "damaged"),
        ("model.safetensors", b"", "damaged"),
        ("config.json", b'{"model_type": "lla', "not valid JSON"),
        ("config.json", b'{"model_type": "nobodyknows"}', "nobodyknows"),
        ("tokenizer.json", b'{"version"', "tokenizer"),
        ("config.json", changed(hidden_size=64), "has shape .* but config.json asks for"),
        ("config.json", changed(num_hidden_layers=3), "lack model.layers.2"),
        ("config.json", changed(hidden_size="many"), "hidden_size"),
    ):
        folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "model"
        shutil.copytree(tiny_folder, folder)
        (folder / file).write_bytes(content)
        with pytest.raises(QuietStarError, match=says) as caught:
            QuietStar.from_pretrained(folder)
        assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(tiny_folder, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(QuietStarError):
        QuietStar.from_pretrained(folder)


def test_a_proxy_that_does_not_answer_is_no_network(monkeypatch):
    for name in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert not checkpoints._offline()
    assert checkpoints._offline()  # nobody listens there any more
    with pytest.raises(QuietStarError, match="the Hub cannot be reached"):
        QuietStar.from_pretrained("nobody/knows-this-model")


def test_unknown_names_and_values_are_named(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.setattr(checkpoints, "_offline", lambda: True)
    for name, options, says in (
        ("nobody/knows-this-model", {}, "unknown model 'nobody/knows-this-model'"),
        (str(tmp_path / "none.gguf"), {}, "no such folder or file"),
        (str(tmp_path), {}, "has no config.json"),
        (tiny_folder, {"dtype": "float8"}, "dtype must be auto"),
        (tiny_folder, {"device": "abacus"}, "device 'abacus' cannot be used"),
        (tiny_folder, {"quantize": "3bit"}, "quantize must be 4bit or 8bit, got '3bit'"),
    ):
        with pytest.raises(QuietStarError, match=says) as caught:
            QuietStar.from_pretrained(name, **options)
        assert "\n" not in str(caught.value)


def test_quantised_bases_think(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = trained(QuietStar.from_pretrained(tmp_path, dtype="bfloat16"), size=0.1).score("the quick brown", seed=1)
    for bits in ("8bit", "4bit"):
        model = trained(QuietStar.from_pretrained(tmp_path, quantize=bits, dtype="bfloat16"), size=0.1)
        assert "bitsandbytes" in type(model.base.model.layers[0].mlp.up_proj).__module__
        assert model.generate("the", max_new_tokens=3, thought_length=2, stop_ids=[])[1].thoughts
        found = model.score("the quick brown", thoughts=plain.thoughts)
        assert (found.mixed_logprobs - plain.mixed_logprobs).abs().mean() < 0.3


def test_a_base_too_narrow_for_4_bit_is_refused(tiny_folder):
    pytest.importorskip("bitsandbytes")
    with pytest.raises(QuietStarError, match="hidden size must be a multiple of 64, and is 32"):
        QuietStar.from_pretrained(tiny_folder, quantize="4bit")


def test_push_to_hub_uploads_what_save_pretrained_writes(tiny, monkeypatch):
    import transformers.utils.hub as hub

    uploaded = {}

    class Api:
        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})()

    class Card:
        def save(self, path):
            Path(path).write_text("card")

    def upload(self, folder, repo_id, **_):
        uploaded[repo_id] = {p.name for p in Path(folder).iterdir()}

    monkeypatch.setattr(hub, "hf_api", Api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: Card())
    monkeypatch.setattr(type(tiny), "_upload_modified_files", upload)
    tiny.push_to_hub("me/thoughts")
    assert uploaded == {"me/thoughts": {"config.json", "quietstar.safetensors", "README.md"}}


def test_a_full_disk_while_saving_says_so(tiny, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(QuietStarError, match="no space left on the disk while saving"):
        tiny.save_pretrained(tmp_path / "saved")
