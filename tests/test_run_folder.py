"""What is in a run's folder stays: reruns, resumed and finished runs, other options, damaged checkpoints."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import runs
from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError
from quietstar.cli import train as cli
from quietstar.training import folder, trainer


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return runs.write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl")


@pytest.fixture(scope="module")
def finished(tiny_folder, texts, tmp_path_factory) -> Path:
    """A run of four steps."""
    out = tmp_path_factory.mktemp("finished") / "run"
    cli.run(runs.recipe(tiny_folder, texts, out), False, "cpu")
    return out


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


# -- reruns ---------------------------------------------------------------------------------------------------------------


def test_without_save_every_the_last_checkpoint_is_kept(tiny_folder, texts, tmp_path):
    cli.run(runs.recipe(tiny_folder, texts, tmp_path / "run", watch__save_every=0), False, "cpu")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        "checkpoint-4", "log.jsonl", "model", "recipe.yaml"]  # fmt: skip


@pytest.mark.parametrize("left", ["checkpoint-4", "model", "log.jsonl", "recipe.yaml"])
def test_a_rerun_into_the_same_folder_is_refused(copied, tiny_folder, texts, left):
    for path in list(copied.iterdir()):
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = runs.contents(copied)
    with pytest.raises(QuietStarError, match=rf"has a run already \({left}\); go on with --resume, or choose another"):
        cli.run(runs.recipe(tiny_folder, texts, copied), False, "cpu")
    assert runs.contents(copied) == before


def test_overwrite_begins_anew_and_never_removes_a_model_of_another_origin(copied, finished, tiny_folder, texts):
    (copied / "notes.txt").write_text("mine")
    cli.run(runs.recipe(tiny_folder, texts, copied, optimizer__steps=2), False, "cpu", overwrite=True)
    assert [line["step"] for line in runs.log(copied)] == [1, 2]
    assert (copied / "notes.txt").read_text() == "mine"
    (copied / "model" / folder.SEAL).unlink()
    before = runs.contents(copied)
    with pytest.raises(QuietStarError, match="model was not made by a training run; move it away"):
        cli.run(runs.recipe(tiny_folder, texts, copied), False, "cpu", overwrite=True)
    assert runs.contents(copied) == before
    with pytest.raises(QuietStarError, match="--resume goes on with a run and --overwrite removes it"):
        cli.run(runs.recipe(tiny_folder, texts, copied), True, "cpu", overwrite=True)


def test_two_commands_do_not_train_in_one_folder(tiny_folder, texts, tmp_path):
    with folder.held(tmp_path), pytest.raises(QuietStarError, match="another process is training in"):
        cli.run(runs.recipe(tiny_folder, texts, tmp_path), False, "cpu")


def test_nothing_to_resume_is_told(tiny_folder, texts, tmp_path):
    with pytest.raises(QuietStarError, match="there is no complete checkpoint in"):
        cli.run(runs.recipe(tiny_folder, texts, tmp_path / "run"), True, "cpu")
    assert not (tmp_path / "run").exists()


def test_a_run_that_saved_nothing_yet_is_resumed_from_its_first_step(tiny_folder, texts, finished, tmp_path, capsys):
    out = tmp_path / "run"
    out.mkdir()
    (out / "log.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    cli.run(runs.recipe(tiny_folder, texts, out), True, "cpu")
    assert "no checkpoint had been saved yet" in capsys.readouterr().err
    assert runs.same_weights(out / "model", finished / "model")
    assert runs.log(out) == runs.log(finished)


# -- finished runs ----------------------------------------------------------------------------------------------------------


def test_resuming_a_finished_run_changes_nothing(copied, tiny_folder, texts, capsys):
    before = runs.contents(copied)
    cli.run(runs.recipe(tiny_folder, texts, copied), True, "cpu")
    assert "already finished: 4 of 4 steps" in capsys.readouterr().err
    after = runs.contents(copied)
    assert {k: v for k, v in after.items() if k != "recipe.yaml"} == {
        k: v for k, v in before.items() if k != "recipe.yaml"
    }


@pytest.mark.parametrize("damage", ["gone", "half", "older"])
def test_a_final_model_that_was_not_written_whole_is_written_again(copied, finished, tiny_folder, texts, damage):
    if damage == "gone":
        shutil.rmtree(copied / "model")
    elif damage == "half":
        (copied / "model" / "quietstar.safetensors").write_bytes(b"half")
    else:  # of a run with fewer steps
        folder.seal(copied / "model", folder.Record(step=2))
    cli.run(runs.recipe(tiny_folder, texts, copied), True, "cpu")
    assert runs.same_weights(copied / "model", finished / "model")
    assert [line["step"] for line in runs.log(copied)] == [1, 2, 3, 4]
    assert not (copied / "checkpoint-5").exists()


def test_from_python_too_a_finished_run_trains_no_further_step(copied, finished, tiny_folder, texts):
    running = trainer.ThoughtTrainer.from_recipe(runs.recipe(tiny_folder, texts, copied), device="cpu")
    assert running.train(resume_from_checkpoint=True).global_step == 4
    running.model.save_pretrained(copied.parent / "again")
    assert runs.same_weights(copied.parent / "again", finished / "model")


# -- other options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"optimizer__learning_rate": 0.01}, r"optimizer\.learning_rate was 0\.001, now 0\.01"),
        ({"weights__rank": 3}, r"weights\.rank was 2, now 3"),
        ({"seed": 6, "precision": "bf16"}, r"seed was 5, now 6, precision was fp32, now bf16"),
        ({"thinking__objective__lookahead": 3}, r"thinking\.objective\.lookahead was 2, now 3"),
        ({"data__length": 12}, r"data\.length was 16, now 12, the training texts was "),
        ({"optimizer__steps": 2}, r"optimizer\.steps was 4, now 2"),
        ({"thought_length_schedule": {0: 3}}, r"thought_length_schedule was \{\}, now \{'0': 3\}"),
    ],
)  # fmt: skip
def test_other_options_are_refused_by_name_with_both_values(copied, tiny_folder, texts, more, says):
    before = runs.contents(copied)
    with pytest.raises(QuietStarError, match=rf"checkpoint-4 is of another run: .*{says}"):
        cli.run(runs.recipe(tiny_folder, texts, copied, **more), True, "cpu")
    assert runs.contents(copied) == before


def test_other_texts_are_refused_and_the_same_texts_elsewhere_are_not(copied, tiny_folder, texts, tmp_path):
    other = runs.write_texts(
        tmp_path / "texts.jsonl", [*runs.LINES[:-1], "another one, as long as the others are here"]
    )
    with pytest.raises(QuietStarError, match="is of another run: the .* texts was .*, now "):
        cli.run(runs.recipe(tiny_folder, other, copied), True, "cpu")
    moved = shutil.copy(texts, tmp_path / "moved.jsonl")
    cli.run(runs.recipe(tiny_folder, moved, copied), True, "cpu")


def test_another_base_model_is_refused(copied, tiny_folder, texts, tmp_path):
    """By its weights, though it has the same path."""
    place = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    out = tmp_path / "other"
    cli.run(runs.recipe(place, texts, out, optimizer__steps=1), False, "cpu")
    model = QuietStar.from_pretrained(place, dtype="float32").decoder_lm
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.1)
    model.save_pretrained(place)
    with pytest.raises(QuietStarError, match="is of another run: the base model's weights was .*, now "):
        cli.run(runs.recipe(place, texts, out, optimizer__steps=2), True, "cpu")


def test_more_steps_and_other_watching_go_through_and_are_told_and_logged(copied, tiny_folder, texts, tmp_path, capsys):
    cli.run(runs.recipe(tiny_folder, texts, copied, optimizer__steps=6, watch__save_every=2), True, "cpu")
    assert "optimizer.steps is 6 from here on (it was 4)" in (said := capsys.readouterr().err)
    assert "watch.save_every is 2 from here on (it was 1)" in said
    log = runs.log(copied)
    assert [line["step"] for line in log] == [1, 2, 3, 4, 4, 5, 6]
    assert log[4]["changed"] == {"optimizer.steps": [4, 6], "watch.save_every": [1, 2]}
    cli.run(runs.recipe(tiny_folder, texts, tmp_path / "alone", optimizer__steps=6), False, "cpu")
    assert runs.same_weights(copied / "model", tmp_path / "alone" / "model")


def test_a_resumed_run_averages_over_the_steps_before_the_checkpoint_too(tiny_folder, texts, tmp_path):
    one = runs.recipe(tiny_folder, texts, tmp_path / "alone", watch__log_every=4)
    cli.run(one, False, "cpu")
    cli.run(runs.recipe(tiny_folder, texts, tmp_path / "two", watch__log_every=4, optimizer__steps=3), False, "cpu")
    cli.run(runs.recipe(tiny_folder, texts, tmp_path / "two", watch__log_every=4), True, "cpu")
    (wanted,), found = runs.log(tmp_path / "alone"), runs.log(tmp_path / "two")[-1]
    assert {key: found[key] for key in ("step", "loss", "base", "mixed", "reward", "rows")} == {
        key: wanted[key] for key in ("step", "loss", "base", "mixed", "reward", "rows")}  # fmt: skip


# -- damaged checkpoints ------------------------------------------------------------------------------------------------


NAMES = ["optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json", "training.json", "quietstar.safetensors",
         "config.json", "adapter/adapter_model.safetensors"]  # fmt: skip


@fuzz(12)
@given(
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(["gone", "empty", "cut", "flip", "text", "folder"]),
    place=st.floats(0, 1, exclude_max=True),
    both=st.booleans(),
)
def test_a_damaged_checkpoint_is_passed_over_or_told(
    finished, tiny_folder, texts, tmp_path_factory, name, kind, place, both
):
    """Whatever file is damaged: the run goes on from the whole one before, to the same result, or a line says why not."""
    out = Path(shutil.copytree(finished, tmp_path_factory.mktemp("damaged") / "run"))
    for checkpoint in ["checkpoint-4", *(["checkpoint-3"] if both else [])]:
        spoil(out / checkpoint / name, kind, place)
    before = runs.contents(out)
    if both:
        with pytest.raises(
            QuietStarError, match=r"no complete checkpoint in .* \(checkpoint-4 is not complete: .*"
        ) as told:
            cli.run(runs.recipe(tiny_folder, texts, out), True, "cpu")
        assert "\n" not in str(told.value)
        assert runs.contents(out) == before
    else:
        cli.run(runs.recipe(tiny_folder, texts, out), True, "cpu")
        assert runs.same_weights(out / "model", finished / "model")
        assert runs.log(out) == runs.log(finished)
        assert folder.damage(out / "checkpoint-4") is None
    shutil.rmtree(out)


def spoil(path: Path, kind: str, place: float) -> None:
    raw = bytearray(path.read_bytes())
    at = int(place * len(raw))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "flip":
        raw[at] ^= 1 << int(place * 1000) % 8
        if path.name == folder.SEAL:  # a flip in a name of an option shows as another run, which is right too
            raw = raw[:at]
        path.write_bytes(raw)
    elif kind != "gone":
        path.write_bytes({"empty": b"", "cut": bytes(raw[:at]), "text": b"not what it was"}[kind])


@fuzz(10)
@given(
    name=st.sampled_from([n for n in NAMES if n != folder.SEAL]),
    raw=st.one_of(
        st.binary(max_size=40), st.sampled_from([b"{}", b"[]", b"null", b"\x80\x02.", b"PK\x03\x04", b"{" * 9000])
    ),
)
def test_a_checkpoint_sealed_over_nonsense_is_one_line(finished, tiny_folder, texts, tmp_path_factory, name, raw):
    """Even where the checksums agree, what the files hold may be anything."""
    out = Path(shutil.copytree(finished, tmp_path_factory.mktemp("nonsense") / "run"))
    place = out / "checkpoint-4"
    record = folder.record_of(place)
    (place / folder.SEAL).unlink()
    (place / name).write_bytes(raw)
    folder.seal(place, record)
    try:
        cli.run(runs.recipe(tiny_folder, texts, out, optimizer__steps=5), True, "cpu")
    except QuietStarError as error:
        assert "\n" not in str(error) and "checkpoint-4" in str(error)
    else:
        assert name == "config.json"  # the weights are filled in without it
    shutil.rmtree(out)


@pytest.mark.parametrize("seal", [{}, {"files": []}, {"files": {"a": 1}}, {"files": {}}, [], {"files": {"../x": [1, 2]}},
                                  {"files": {"config.json": [1, 2]}, "origin": 3}, {"files": {"config.json": [1, 2]}, "tally": [1], "divide": "x"}])  # fmt: skip
def test_a_seal_of_another_form_is_one_line(copied, tiny_folder, texts, seal):
    shutil.rmtree(copied / "checkpoint-3")
    (copied / "checkpoint-4" / folder.SEAL).write_text(json.dumps(seal))
    with pytest.raises(QuietStarError) as told:
        cli.run(runs.recipe(tiny_folder, texts, copied), True, "cpu")
    assert "checkpoint-4" in str(told.value)


# -- what cannot be saved -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_saved_is_told_before_the_first_step(tiny_folder, texts, tmp_path, monkeypatch):
    running = trainer.ThoughtTrainer.from_recipe(runs.recipe(tiny_folder, texts, tmp_path / "run"), device="cpu")

    def refuse(*_, **__):
        raise QuietStarError("this model cannot be saved")

    monkeypatch.setattr(running.model, "save_pretrained", refuse)
    with pytest.raises(QuietStarError, match="first trial of saving the model .* this model cannot be saved"):
        running.train()
    assert running.state.global_step == 0
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("train", ["lora", "head", "full"])
def test_a_model_saved_with_its_base_trains_or_is_refused_before_the_first_step(tiny_folder, texts, tmp_path, train):
    model = QuietStar.from_pretrained(tiny_folder, dtype="float32")
    QuietStar.from_base(model.decoder_lm, model.tokenizer).save_pretrained(tmp_path / "own")
    out = tmp_path / "run"
    try:
        cli.run(runs.recipe(tmp_path / "own", texts, out, weights__train=train), False, "cpu")
    except QuietStarError as error:
        assert train == "lora" and "first trial of saving" in str(error)
        assert not out.exists()
    else:
        assert QuietStar.from_pretrained(out / "model", dtype="float32").head.untrained is False
