"""Saving is all or nothing: killed or out of space at any moment, a folder holds the old model or the new one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from conftest import trained
from quietstar import QuietStar, QuietStarError
from quietstar.loading import checkpoints, folders
from quietstar.loading.folders import replacing

_WRITER = """
import sys
from pathlib import Path
from quietstar.loading.folders import replacing
with replacing(Path(sys.argv[1]), ("old", "both")) as aside:
    (aside / "new").mkdir()
    (aside / "new" / "file").write_text("2")
    (aside / "both").write_text("2")
    print("ready", flush=True)
    sys.stdin.read()
"""


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(target: Path, files: dict[str, str]) -> None:
    with replacing(target, ("old", "both", "new")) as aside:
        for name, text in files.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_text(text)


def test_new_old_and_other_peoples_files(tmp_path):
    target = tmp_path / "deep" / "down" / "target"
    write(target, {"old": "1", "both": "1"})
    (target / "mine").write_text("mine")
    write(target, {"new/file": "2", "both": "2"})
    assert contents(tmp_path / "deep" / "down") == {"target/new/file": "2", "target/both": "2", "target/mine": "mine"}
    (tmp_path / "link").symlink_to(target)
    write(tmp_path / "link", {"new": "3"})  # a file where a folder was, through a link
    assert contents(target) == {"new": "3", "mine": "mine"} and (tmp_path / "link").is_symlink()
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", {"new/file": "1"})
    assert (
        contents(tmp_path / "empty") == {"new/file": "1"}
        and oct((tmp_path / "empty" / "new").stat().st_mode)[-3:] == "755"
    )


@pytest.mark.parametrize("exists", [True, False])
def test_a_kill_while_writing_leaves_the_old_and_is_cleaned_up(tmp_path, exists):
    target = tmp_path / "target"
    if exists:
        write(target, {"old": "1"})
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        write(tmp_path / "beside", {"new/file": "1"})
        folders.clear(tmp_path)
        folders.clear(target)
        assert len(list(tmp_path.rglob(".*saving-*"))) == 1  # its writer lives
        other.send_signal(signal.SIGKILL)
        other.wait()
    if exists:
        assert (target / "old").read_text() == "1" and not (target / "new").exists()
    else:
        assert not target.exists()
    write(target, {"both": "3"})
    assert contents(tmp_path) == {"target/both": "3", "beside/new/file": "1"}
    assert not list(tmp_path.rglob(".sav*"))


@pytest.mark.parametrize("moves", [0, 1, 2, 3])
def test_a_kill_while_the_new_is_put_in_place_is_finished_by_the_next(tmp_path, monkeypatch, moves):
    class Killed(BaseException): ...

    target, done, real = tmp_path / "target", [], Path.replace
    write(target, {"old": "1", "both": "1", "new/file": "1"})

    def replace(self, where):
        if len(done) == moves:
            raise Killed
        done.append(where)
        return real(self, where)

    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(
        folders.shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Killed()) if moves == 3 else rm(*_, **__)
    )
    with pytest.raises(Killed):
        write(target, {"new/file": "2", "both": "2", "extra": "2"})
    monkeypatch.undo()
    folders.finish(target)
    assert contents(target) == {"new/file": "2", "both": "2", "extra": "2"} and not list(target.glob(".sav*"))


rm = folders.shutil.rmtree


@pytest.mark.parametrize("fails", ["save_file", "_write_base", "_card"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system"),
                                   RuntimeError("unexpected"), KeyboardInterrupt()])  # fmt: skip
def test_a_failure_at_any_file_keeps_the_old_model(tiny, tmp_path, monkeypatch, fails, error):
    from test_roundtrip import lora

    saved = tmp_path / "saved"
    tiny.save_pretrained(saved)
    before = {path: path.read_bytes() for path in saved.rglob("*")}

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints, fails, failing)
    tiny.base = lora(tiny)
    with torch.no_grad():
        tiny.decoder_lm.model.norm.weight.add_(0.5)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else QuietStarError) as caught:
        tiny.save_pretrained(saved)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_places_that_cannot_be_written(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    for place, says in (("file", "it is a file"), ("file/below", "cannot save to .*file.below: .*: .*file")):
        with pytest.raises(QuietStarError, match=says) as caught:
            tiny.save_pretrained(tmp_path / place)
        assert "\n" not in str(caught.value)
    with pytest.raises(QuietStarError, match="cannot save to /proc/quietstar") as caught:
        tiny.save_pretrained("/proc/quietstar")
    assert "\n" not in str(caught.value)


_SAVER = """
import sys, torch
from quietstar import QuietStar
model = QuietStar.from_pretrained(sys.argv[1], dtype="float32")
number = 0
print("ready", flush=True)
while True:
    number += 1
    with torch.no_grad():
        model.markers.start.fill_(number)
        model.decoder_lm.model.norm.weight.fill_(number + 0.5)  # never the ones it was loaded with
        model.tokenizer.chat_template = str(number)
    model.save_pretrained(sys.argv[2])
    print(number, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_there_is_one_whole_model(tiny_folder, tmp_path):
    target = tmp_path / "target"
    for attempt in range(3 * int(os.environ.get("QUIETSTAR_FUZZ", "1"))):
        with subprocess.Popen([sys.executable, "-c", _SAVER, tiny_folder, str(target)], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL) as other:  # fmt: skip
            assert other.stdout is not None
            other.stdout.readline()
            time.sleep(0.02 + attempt * 0.137 % 0.5)
            other.kill()
            written = other.stdout.read().split()
        if not target.exists():
            assert not written
            continue
        model = QuietStar.from_pretrained(target, dtype="float32")
        number = model.markers.start[0].item()
        assert number == model.decoder_lm.model.norm.weight[0].item() - 0.5 == int(model.tokenizer.chat_template)
        assert number >= int(written[-1] if written else 0)
        assert {path.name for path in target.iterdir()} == {"config.json", "quietstar.safetensors", "base"}
        assert not list(target.glob(".*"))
    trained(QuietStar.from_pretrained(tiny_folder)).save_pretrained(target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
