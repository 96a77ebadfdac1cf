"""Runs that are stopped: by a signal, a kill at any write, a full disk; what was saved stays whole and is gone on from."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import runs
from fuzzing import TIMES
from quietstar import QuietStarError
from quietstar.cli import train as cli
from quietstar.training import folder, trainer


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return runs.write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl")


@pytest.fixture(scope="module")
def alone(tiny_folder, texts, tmp_path_factory) -> Path:
    """The run that nothing disturbed."""
    out = tmp_path_factory.mktemp("alone") / "run"
    cli.run(runs.recipe(tiny_folder, texts, out, watch__save_every=2), False, "cpu")
    return out


def again(tiny_folder, texts, out: Path) -> None:
    """Go on, or begin where nothing was left to go on from."""
    cli.run(runs.recipe(tiny_folder, texts, out, watch__save_every=2), (out / folder.LOG).exists(),
            "cpu", overwrite=not (out / folder.LOG).exists())  # fmt: skip


def same(out: Path, wanted: Path) -> bool:
    names = sorted(p.name for p in out.iterdir())
    return (
        runs.same_weights(out / "model", wanted / "model")
        and runs.log(out) == runs.log(wanted)
        and names == ["checkpoint-2", "checkpoint-4", "log.jsonl", "model", "recipe.yaml"]
    )


# -- kills ----------------------------------------------------------------------------------------------------------------


def killed_at(number: int, work) -> bool:
    """Run `work` in a process of its own that dies, as by kill -9, before its n-th change of a folder or file name."""
    child = os.fork()
    if child == 0:
        left = [number]

        def deadly(whole):
            def change(*arguments, **keywords):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return whole(*arguments, **keywords)

            return change

        for name in ("replace", "rename", "mkdir", "rmdir", "unlink", "fsync"):
            setattr(os, name, deadly(getattr(os, name)))
        for name in ("replace", "mkdir", "unlink", "open"):
            setattr(Path, name, deadly(getattr(Path, name)))
        torch.save = deadly(torch.save)
        try:
            work()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "it failed where it should have been killed"
    return os.WIFSIGNALED(status)


EVERY = max(1, 40 // TIMES)  # of about 130 places, all with QUIETSTAR_FUZZ=40


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.timeout(600 * TIMES)
def test_killed_before_any_write_it_goes_on_to_the_same_result(tiny_folder, texts, alone, tmp_path):
    """Wherever a file or folder is made, renamed or removed, the final model's too."""
    number, tried = 3, 0
    while killed_at(number, lambda: again(tiny_folder, texts, tmp_path / "run")):
        again(tiny_folder, texts, tmp_path / "run")
        assert same(tmp_path / "run", alone), f"killed before change {number}"
        shutil.rmtree(tmp_path / "run")
        number += EVERY
        tried += 1
    print(f"killed at {tried} places")
    assert tried > 1


def command(tiny_folder, texts, out, *more: str, **options) -> list[str]:
    path = out.parent / f"{out.name}.yaml"
    path.write_text(runs.recipe(tiny_folder, texts, out, **options).to_yaml())
    return [sys.executable, "-m", "quietstar.cli.main", "train", str(path), "--device", "cpu", *more]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_with_a_checkpoint_and_says_how_to_go_on(tiny_folder, texts, tmp_path, number, code):
    options = dict(optimizer__steps=400, watch__save_every=0)
    out = tmp_path / "run"
    with subprocess.Popen(command(tiny_folder, texts, out, **options), stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None and len(runs.log(out)) < 2:
            time.sleep(0.01)
        process.send_signal(number)
        said = process.stderr.read()
    assert process.returncode == code, said
    assert "Traceback" not in said
    last = int(trainer.last_checkpoint(out).rpartition("-")[2])
    assert f"stopped after step {last} of 400; go on with the same command and --resume" in said
    assert [line["step"] for line in runs.log(out)] == list(range(1, last + 1))
    assert not (out / "model").exists()
    done = {}
    for name, resume in (("run", True), ("alone", False)):
        one = runs.recipe(tiny_folder, texts, tmp_path / name, optimizer__steps=last + 2, watch__save_every=0)
        cli.run(one, resume, "cpu")
        done[name] = tmp_path / name / "model"
    assert runs.same_weights(done["run"], done["alone"])


def test_a_stop_asked_for_in_between_saves_and_resumes_to_the_same_result(tiny_folder, texts, alone, tmp_path):
    """As a signal does, without one: after step 3, where no checkpoint was due."""
    out = tmp_path / "run"
    one = runs.recipe(tiny_folder, texts, out, watch__save_every=2)

    class Ask(trainer.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            running.stopping = state.global_step == 2

    running = trainer.ThoughtTrainer.from_recipe(one, device="cpu", callbacks=[Ask()])
    running.train()
    assert running.stopped and folder.last_checkpoint(out) == str(out / "checkpoint-3")
    cli.run(one, True, "cpu")
    assert runs.same_weights(out / "model", alone / "model")


# -- disks ----------------------------------------------------------------------------------------------------------------


def stopped_by_a_full_disk(tiny_folder, texts, out: Path, work) -> str:
    """The line with which the run stopped; its checkpoints are whole."""
    with pytest.raises(QuietStarError) as told:
        work()
    assert "\n" not in str(told.value)
    assert "no space left on the disk" in str(told.value)
    assert all(folder.damage(one) is None for one in folder.checkpoints(out))
    return str(told.value)


@pytest.mark.parametrize("limit", [100, 1_000, 5_000, 20_000, 30_000, 40_000, 60_000])
def test_a_limit_on_file_sizes_stops_in_one_line_and_can_be_gone_on_from(tiny_folder, texts, alone, tmp_path, limit):
    """Files larger than the limit cannot be written, as on a full disk; the limit comes before step 3."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Fill(trainer.TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    one = runs.recipe(tiny_folder, texts, out, watch__save_every=2)
    from quietstar.training.run_log import Log

    running = trainer.ThoughtTrainer.from_recipe(one, device="cpu", callbacks=[Fill(), Log(out)])
    try:
        running.train()
        running.save_final()
    except QuietStarError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error) and "no space left on the disk" in str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all(folder.damage(path) is None for path in folder.checkpoints(out))
    cli.run(one, True, "cpu")
    assert same(out, alone)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
@pytest.mark.parametrize("kilobytes", [60, 100, 150, 200, 250, 300, 350, 400, 450, 500, 600])
def test_a_full_disk_stops_in_one_line_and_can_be_gone_on_from(tiny_folder, texts, alone, tmp_path, kilobytes):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        out = disk / "run"
        one = runs.recipe(tiny_folder, texts, out, watch__save_every=2)
        try:
            cli.run(one, False, "cpu")
        except QuietStarError as error:
            assert "\n" not in str(error) and "no space left on the disk" in str(error)
        begun = (out / folder.LOG).exists()
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert all(folder.damage(path) is None for path in folder.checkpoints(out))
        cli.run(one, begun, "cpu")
        assert same(out, alone)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tiny_folder, texts, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("long" * 100)):
        with pytest.raises(
            QuietStarError, match="the run's folder .* cannot be written to .*; choose another with --out"
        ):
            cli.run(runs.recipe("no such model", texts, out), False, "cpu")


# -- numbers ----------------------------------------------------------------------------------------------------------------


def test_weights_that_are_no_numbers_are_not_saved(tiny_folder, texts, tmp_path):
    """The last update breaks them, after which no loss is taken that could tell."""
    out = tmp_path / "run"
    running = trainer.ThoughtTrainer.from_recipe(runs.recipe(tiny_folder, texts, out), device="cpu")

    class Break(trainer.TrainerCallback):
        def on_optimizer_step(self, args, state, control, model=None, **_):
            if state.global_step == 3:
                model.markers.start.data.fill_(float("nan"))

    running.add_callback(Break())
    with pytest.raises(
        QuietStarError, match=r"markers.start became infinite or not a number at step 4; .*checkpoint-3 is"
    ):
        running.train()
    assert folder.last_checkpoint(out) == str(out / "checkpoint-3")
