"""The folder of a training run: what is complete in it, what a run was made with, and atomic writes.

Everything is written into `saving/` first, sealed (a list of its files with sizes and checksums, written last), and
then renamed. A kill at any moment leaves either the old version or the new one, and a `saving/` that the next start
removes. Knows files; knows nothing about models.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field
from safetensors import SafetensorError

from quietstar.errors import QuietStarError
from quietstar.settings import build, checked

SEAL = "training.json"
RECIPE = "recipe.yaml"
LOG = "log.jsonl"
MODEL = "model"
ASIDE = "saving"
LOCK = ".lock"
_OURS = (RECIPE, LOG, MODEL)
_PIECE = 1 << 22  # bytes read at once
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


# -- what is complete -------------------------------------------------------------------------------------------------


@checked
@dataclass(frozen=True)
class Record:
    """What is kept about a checkpoint or a finished model beside its weights.

    Args:
        step: steps trained. origin: {option: value} that it was made with. tally, divide: of the trainer.
        files: {name: (bytes, checksum)} of everything in the folder.
    """

    step: int = -1
    origin: Mapping[str, Any] = field(default_factory=dict)
    tally: Mapping[str, float] = field(default_factory=dict)
    divide: Annotated[float, Field(ge=1)] = 1.0
    files: Mapping[str, tuple[int, int]] = field(default_factory=dict)


def seal(folder: Path, record: Record) -> None:
    """Write `record` with a list of the folder's files, after all of them have reached the disk.

    Raises:
        OSError: something cannot be read or written.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
            files[path.relative_to(folder).as_posix()] = (path.stat().st_size, _checksum(path))
    _write(folder / SEAL, json.dumps(asdict(replace(record, files=files)), indent=1))


def record_of(folder: Path) -> Record:
    """What a sealed folder was sealed with.

    Raises:
        QuietStarError: it is not sealed, or its seal cannot be read.
    """
    try:
        found = json.loads((folder / SEAL).read_bytes())
        if not isinstance(found, dict) or not found.get("files"):
            raise ValueError("it lists no files")
        return build(Record, found)
    except FileNotFoundError:
        raise QuietStarError(f"{folder} has no {SEAL}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise QuietStarError(f"{folder / SEAL} is damaged ({_first_line(error)})") from error


def damage(folder: Path, checksums: bool = True) -> str | None:
    """What is wrong with a sealed folder, None where it is complete; `checksums` False checks names and sizes only."""
    try:
        for name, (size, checksum) in record_of(folder).files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or (checksums and _checksum(path) != checksum):
                return f"{name} is damaged"
    except QuietStarError as error:
        return str(error).removeprefix(f"{folder}/").removeprefix(f"{folder} ")
    except (OSError, ValueError, TypeError) as error:
        return f"it cannot be read ({_first_line(error)})"
    return None


def checkpoints(run: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first, complete or not."""
    found = [path for path in Path(run).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{1,15}", path.name)]
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(checkpoint: str | Path) -> int:
    """The step a checkpoint was saved after."""
    return int(Path(checkpoint).name.rpartition("-")[2])


def last_checkpoint(run: str | Path) -> str | None:
    """The newest checkpoint of a run that is complete by names and sizes."""
    return next((str(path) for path in reversed(checkpoints(run)) if damage(path, checksums=False) is None), None)


def to_resume(run: Path, say: Callable[[str], None]) -> str | None:
    """The newest complete checkpoint, every byte checked; `say` gets a line for each damaged one that is skipped.

    Returns:
        None where a run began but saved no checkpoint yet.

    Raises:
        QuietStarError: nothing of a run is there, or all its checkpoints are damaged.
    """
    damaged: list[str] = []
    for path in reversed(checkpoints(run)):
        wrong = damage(path)
        if wrong is None:
            for line in damaged:
                say(f"{line}; resuming from {path.name}")
            return str(path)
        damaged.append(f"{path.name} is not complete: {wrong}")
    if damaged:
        raise QuietStarError(
            f"there is no complete checkpoint in {run} to resume from ({'; '.join(damaged)}); restore the files, or "
            "start again with --overwrite or in another folder (--out)"
        )
    if not (run / LOG).exists():
        raise QuietStarError(f"there is no complete checkpoint in {run} to resume from; omit --resume to start again")
    return None


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            value = zlib.crc32(piece, value)
    return value


# -- who may write ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def held(run: Path) -> Iterator[None]:
    """Hold a run's folder for this process, made where it is not there; leftovers of a killed run are removed.

    Raises:
        QuietStarError: it cannot be written to, or another process trains there.
    """
    made: list[Path] = []
    try:
        made = [path for path in (run, *run.parents) if not path.exists()]
        run.mkdir(parents=True, exist_ok=True)
        lock = FileLock(run / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise QuietStarError(f"another process is training in {run}; wait for it, or choose another --out") from None
    except (OSError, ValueError, NotImplementedError) as error:
        _drop_empty(made)
        raise QuietStarError(
            f"the run's folder {run} cannot be written to ({_first_line(error)}); choose another with --out"
        ) from error
    try:
        clear(run)
        yield
    finally:
        with contextlib.suppress(OSError):
            (run / LOCK).unlink(missing_ok=True)
        lock.release()
        _drop_empty(made)


def _drop_empty(folders: list[Path]) -> None:
    """Remove the folders this process made, innermost first, where nothing came into them."""
    for path in folders:
        try:
            path.rmdir()
        except OSError:
            return


def clear(run: Path) -> None:
    """Remove what a killed run left half written."""
    shutil.rmtree(run / ASIDE, ignore_errors=True)


def occupied(run: Path) -> list[str]:
    """Names of what a run has left in a folder."""
    return [path.name for path in checkpoints(run)] + [name for name in _OURS if (run / name).exists()]


def empty(run: Path) -> None:
    """Remove what a run has left in a folder, for `--overwrite`; refuses to remove a model that no run made.

    Raises:
        QuietStarError: there is a model or checkpoint without the seal of a run.
    """
    folders = [*checkpoints(run), *([run / MODEL] if (run / MODEL).exists() else [])]
    for path in folders:
        if not (path / SEAL).is_file():
            raise QuietStarError(f"{path} was not made by a training run; move it away, or choose another --out")
    for path in folders:
        shutil.rmtree(path)
    for name in (RECIPE, LOG):
        (run / name).unlink(missing_ok=True)


# -- atomic writes ----------------------------------------------------------------------------------------------------


def put(run: Path, name: str) -> None:
    """Rename `saving/name` to `name`; what was there before is removed."""
    old = run / ASIDE / f"old-{name}"
    if (run / name).exists():
        (run / name).replace(old)
    (run / ASIDE / name).replace(run / name)
    shutil.rmtree(old, ignore_errors=True)


def drop(run: Path, checkpoint: Path) -> None:
    """Remove a checkpoint so that no partial one can be left behind."""
    (run / ASIDE).mkdir(exist_ok=True)
    checkpoint.replace(run / ASIDE / f"old-{checkpoint.name}")
    shutil.rmtree(run / ASIDE / f"old-{checkpoint.name}")


def write(run: Path, name: str, text: str) -> None:
    """Write a text file of the run atomically."""
    (run / ASIDE).mkdir(parents=True, exist_ok=True)
    _write(run / ASIDE / name, text)
    (run / ASIDE / name).replace(run / name)


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def writing(what: str, where: str | Path, next_step: Callable[[], str]) -> Iterator[None]:
    """Turn what a full or read-only disk makes the libraries raise into one line.

    Args:
        what: what is being written.
        where: its folder.
        next_step: says which checkpoint is complete and how to continue.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, QuietStarError) as error:
        reason = "no space left on the disk" if _is_full(error) else _first_line(error)
        raise QuietStarError(f"{what} could not be written to {where}: {reason}; {next_step()}") from error


# torch's own writer does not say why it failed
_WORDS = (
    "No space",
    "no space left",
    "os error 28",
    "os error 27",
    "File too large",
    "PytorchStreamWriter",
    "inline_container",
    "unexpected pos",
    "iostream error",
)


def _is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _FULL or any(word in str(error) for word in _WORDS)


def _first_line(error: BaseException) -> str:
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
