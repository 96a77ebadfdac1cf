"""Finding, loading and saving thinking models: base-model resolution, our own layout, the published layout.

Ours: `config.json`, `quietstar.safetensors` (markers and head), `adapter/` in PEFT's format if there are any,
`tokenizer/` and `generation_config.json` where they are no longer the base's own, `base/` only where the base itself
was changed or has no name to be found by. The published layout is one Mistral-named checkpoint with `talk_head.0.*`,
`start_embedding`, `end_embedding` among its tensors. Safetensors only, never pickle.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import math
import os
import re
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from huggingface_hub.constants import ENDPOINT
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from quietstar.engine import adapters, families
from quietstar.engine.identity import VERSION, fingerprint, fingerprint_1
from quietstar.engine.model import QuietStarConfig, ThinkingModel
from quietstar.errors import QuietStarError, first_line
from quietstar.extras import install
from quietstar.loading import default_model, gguf_files, model_files
from quietstar.loading.folders import clear, finish, replacing
from quietstar.loading.origin import Origin, changes, check_structure, check_tokenizer, is_tied

WEIGHTS = "quietstar.safetensors"
TOKENIZER = "tokenizer"  # a folder, where the tokenizer is not the base's own
GENERATION = "generation_config.json"  # where it is not the base's own
SHARD = "5GB"  # most bytes in one file of a base
_OURS = ("config.json", WEIGHTS, f"{WEIGHTS}.part", "adapter", "base", TOKENIZER, GENERATION)  # what `save` writes
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_HEAD = "talk_head.0."


# -- loading ----------------------------------------------------------------------------------------------------------


def load(
    cls: type[ThinkingModel],
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Build a thinking model of class `cls` from a name; see `QuietStar.from_pretrained`."""
    options = dict(
        revision=revision, dtype=pick_dtype(dtype), device=pick_device(device), quantize=quantize,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    if quantize is not None and quantize not in QUANTIZED:
        raise QuietStarError(f"quantize must be 4bit or 8bit, got {quantize!r}")
    if name == default_model.DEFAULT:
        folder = default_model.thinking_folder()
        with _of_the_cache(folder):
            model = _ours(cls, str(folder), _json(str(folder), "config.json", None) or {}, options)
        model.config.name_or_path = model.config.base_name = default_model.DEFAULT
        model.config.base_hash = model.loaded_fingerprint
        return model
    if name in default_model.BARE:
        folder = default_model.folder()
        with _of_the_cache(folder):
            base, tokenizer = _base(str(folder), options)
        return fresh(cls, base, tokenizer, name=default_model.NAME, loaded=True)
    if not name or not (_exists(name) or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)):
        raise QuietStarError(f"unknown model {name!r}: there is no such folder or file")
    if _exists(name) and Path(name).is_file() and not name.endswith(".gguf"):
        raise QuietStarError(f"{name} is a file; give a model folder, or a file that ends in .gguf")
    if _exists(name) and Path(name).is_dir():
        finish(Path(name))
        clear(Path(name))
    with readable(name):
        config = _json(name, "config.json", revision)
        if config is None and (adapter := _json(name, "adapter_config.json", revision)) is not None:
            if (Path(name).resolve().parent / WEIGHTS).is_file():
                raise QuietStarError(f"{name} is the adapter of a model; load {Path(name).resolve().parent}")
            raise QuietStarError(
                f"{name} is a PEFT adapter alone, not a model; put it on its base: QuietStar.from_base("
                "PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("
                f"{str(adapter.get('base_model_name_or_path') or 'BASE')!r}), {name!r}), tokenizer)"
            )
        if config is None and not name.endswith(".gguf") and not _exists(name):
            raise QuietStarError(
                f"unknown model {name!r}: neither a folder or .gguf file here nor a model of the hub"
                + (" in the cache, and the hub cannot be reached" if _offline() else "")
            )
        if config is not None and config.get("model_type") == QuietStarConfig.model_type:
            model = _ours(cls, name, config, options)
            model.revision = _commit(name, revision)
            return model
        base, tokenizer = _base(name, options)
        extra = _published(name, revision) if not name.endswith(".gguf") else {}
        known_as = str(Path(name).resolve()) if _exists(name) else name
        model = fresh(cls, base, tokenizer, name=known_as, revision=_commit(name, revision), loaded=True)
        model.revision = model.config.base_revision
        if extra:
            _fill_published(model, extra, config or {})
    return model


def fresh(
    cls: type[ThinkingModel],
    base: PreTrainedModel,
    tokenizer: Any,
    name: str | None = None,
    revision: str | None = None,
    loaded: bool = False,
) -> Any:
    """A thinking model around `base` whose head is at its start (w = 0) and whose markers begin as "---".

    `loaded` says that base and tokenizer are what `name` holds; otherwise they are compared with it when saved.
    """
    inner = base.get_base_model() if hasattr(base, "get_base_model") else base
    adapters.check_usable(base, inner)
    embeddings = inner.get_input_embeddings()
    if name is None and base is not inner:
        name = getattr(inner.config, "_name_or_path", "") or None
    if name is not None and name not in (default_model.DEFAULT, *default_model.BARE) and Path(name).exists():
        name = str(Path(name).resolve())
    config = QuietStarConfig(
        base_name=name,
        base_revision=revision,
        hidden_size=_width(inner),
    )
    model = cls(config, base, tokenizer)
    for adapter, kind in adapters.kinds(base, inner).items():
        if kind not in adapters.VERIFIED:
            families.compare_with_itself(inner, f"the base model with adapter {adapter!r} of type {kind}", base)
    dashes = tokenizer.encode("---", add_special_tokens=False) if tokenizer is not None else []
    with torch.no_grad():
        ids = torch.tensor(dashes[:1] or [0], device=inner.device)
        model.markers.set_from(embeddings(ids)[0])
    model.origin = Origin.of(inner, tokenizer) if loaded else None
    model.loaded_fingerprint = model.origin.fingerprint if loaded else fingerprint(inner)
    config.base_hash = None if _is_quantised(inner) else model.loaded_fingerprint
    return model.eval()


def _width(base: PreTrainedModel) -> int:
    """E: what the output layer reads, which the input embeddings need not have (OPT); those where there is none."""
    inner = base.get_base_model() if hasattr(base, "get_base_model") else base
    layer = inner.get_output_embeddings()
    return int((layer if layer is not None else inner.get_input_embeddings()).weight.shape[-1])


def _is_quantised(base: PreTrainedModel) -> bool:
    """Whether the weights are packed in 4 or 8 bit (not merely read from such a file)."""
    return bool(getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False))


def _base(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The base model and its tokenizer from a folder, a GGUF file or a hub name."""
    source: dict[str, Any] = {"revision": options["revision"], "trust_remote_code": options["trust_remote_code"]}
    source["local_files_only"] = _exists(name) or _offline()
    source["subfolder"] = options.get("subfolder", "")
    packed, stored, asked_for = None, None, name
    if name.endswith(".gguf"):
        if not Path(name).is_file():
            raise QuietStarError(f"unknown model {name!r}: there is no such folder or file")
        packed = gguf_files.read_header(Path(name))
        name, source["gguf_file"] = str(Path(name).parent), Path(name).name
        stored = model_files.Stored({key: tensor.shape for key, tensor in packed.tensors.items()})
        config = gguf_files.configuration(packed)
    else:
        inside = partial(_inside, name, source["subfolder"], options["revision"])
        _, stored = model_files.check_base(name, inside, local=_exists(name))
        config = AutoConfig.from_pretrained(name, **source)
    if stored is not None and not options["trust_remote_code"]:
        with torch.device("meta"):  # takes no memory, whatever the configuration asks for
            parts = AutoModelForCausalLM.from_config(config).parameters()
        model_files.check_parameters(asked_for, sum(part.numel() for part in parts), stored)
    loading: dict[str, Any] = dict(source, config=config, dtype=_dtype(options, config, packed is not None))
    if packed is None:
        loading["use_safetensors"] = True
    if options["quantize"]:
        loading |= {"quantization_config": _quantization(options["quantize"]), "device_map": str(options["device"])}
    base, found = AutoModelForCausalLM.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **loading
    )  # a mismatch is refused here, in one line that names the weight
    if absent := sorted(found["missing_keys"]):
        raise QuietStarError(
            f"the weights of {asked_for} lack {absent[0]} ({len(absent)} in all); the download is incomplete"
        )
    if other := sorted(found["mismatched_keys"]):
        key, stored_shape, wanted = other[0]
        raise QuietStarError(
            f"{asked_for}: {key} has shape {tuple(stored_shape)}, but config.json asks for {tuple(wanted)} "
            f"({len(other)} such weights); the two files do not belong together"
        )
    if packed is not None:
        gguf_files.check_tensors(packed, base)
    _refuse_left_over(asked_for, base, [key for key in found["unexpected_keys"] if not _is_extra(key)])
    if not options["quantize"]:
        base.to(options["device"])
    elif options["quantize"] == "4bit" and base.config.hidden_size % _BLOCK:
        raise QuietStarError(
            f"{name} cannot run in 4 bit: its hidden size must be a multiple of {_BLOCK}, and is "
            f"{base.config.hidden_size}; use --quantize 8bit, or none"
        )
    for holder in (base.config, base.generation_config):
        ids = getattr(holder, "eos_token_id", None)
        if ids is not None and not all(isinstance(one, int) for one in (ids if isinstance(ids, list) else [ids])):
            raise QuietStarError(f"{asked_for}: eos_token_id should be a token id or a list of them, and is {ids!r}")
    return base, _tokenizer(name, source, packed is None)


def _refuse_left_over(name: str, base: PreTrainedModel, unused: list[str]) -> None:
    """Refuse weights of layers that the configuration leaves out; tell of others that the model has no place for."""

    def anywhere(key: str) -> str:
        return re.sub(r"\d+", "N", key)

    known = {anywhere(key) for key in base.state_dict()}
    if layers := sorted(key for key in unused if anywhere(key) in known):
        raise QuietStarError(
            f"{name}: its weights hold {layers[0]}, which config.json leaves out ({len(layers)} such weights); the two "
            "files do not belong together"
        )
    if unused:
        warnings.warn(f"{name}: {len(unused)} of its weights are not used, as {sorted(unused)[0]}", stacklevel=2)


def _tokenizer(name: str, source: dict[str, Any], may_lack: bool) -> Any:
    """The tokenizer of a base, or None where a folder of weights has none: it still works on token ids."""
    where = Path(name) / source["subfolder"]
    if may_lack and where.is_dir() and not any(any(where.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return None  # some classes would make an empty one
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
        tokenizer.decode(tokenizer("a b", verbose=False)["input_ids"])  # some broken files show only when used
        return tokenizer
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise QuietStarError(f"the tokenizer of {name} cannot be read: {first_line(error)}") from error


def _inside(name: str, subfolder: str, revision: str | None, file: str) -> Path | None:
    """A file of a model, or of its `subfolder`."""
    return _file(name, f"{subfolder}/{file}" if subfolder else file, revision)


def _dtype(options: dict[str, Any], config: Any, packed: bool) -> Any:
    """The asked dtype; "auto" is the checkpoint's own, but fp32 on a CPU whose 16-bit arithmetic is emulated."""
    if options["dtype"] != "auto":
        return options["dtype"]
    if torch.device(options["device"]).type != "cpu":
        return "auto"
    own = None if packed else getattr(config, "dtype", None)
    if own == torch.bfloat16 and _cpu_has_bf16():
        return own
    return torch.float32 if own in (None, torch.float16, torch.bfloat16) else own


def _cpu_has_bf16() -> bool:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def pick_dtype(dtype: Any) -> Any:
    """ "auto" or a floating-point dtype of torch, from its name or itself."""
    if isinstance(dtype, str) and (dtype == "auto" or dtype in DTYPES):
        return DTYPES.get(dtype, dtype)
    if isinstance(dtype, torch.dtype) and dtype in (*DTYPES.values(), torch.float64):
        return dtype
    raise QuietStarError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")


def pick_device(device: str | torch.device | None) -> torch.device:
    """The asked device, or CUDA where there is one, else the CPU."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)  # type: ignore[arg-type]
        if found.type == "cuda" and not torch.cuda.is_available():
            raise QuietStarError(f"device {str(device)!r} was asked for, but this machine has no CUDA device; use cpu")
        if found.type == "meta":
            raise QuietStarError("device 'meta' holds no values; use cpu or cuda")
        torch.zeros(1, device=found).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        raise QuietStarError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error
    return found


QUANTIZED = ("4bit", "8bit")
_TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "*.gguf")

_BLOCK = 64  # weights that bitsandbytes scales together


def _quantization(kind: str) -> Any:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise QuietStarError(f"--quantize needs bitsandbytes; {install('quantize')}") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=kind == "4bit", load_in_8bit=kind == "8bit", bnb_4bit_quant_type="nf4")


def _json(name: str, file: str, revision: str | None) -> dict[str, Any] | None:
    """A JSON file of a folder or hub repository, or None where there is none."""
    path = _file(name, file, revision)
    return None if path is None else model_files.read_json(path)


def _exists(name: str) -> bool:
    """Whether a folder or file is called so; False for what no file system takes as a name."""
    try:
        return Path(name).exists()
    except (OSError, ValueError):
        return False


def _file(name: str, file: str, revision: str | None) -> Path | None:
    if name.endswith(".gguf"):
        return None
    if _exists(name):
        path = Path(name) / file
        if (path.is_symlink() or path.exists()) and not path.is_file():
            raise QuietStarError(f"{path} should be a file; it is a folder, or a link that leads nowhere")
        return path if path.is_file() else None
    found = cached_file(
        name, file, revision=revision, local_files_only=_offline(), _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit a hub name stands for now, from where its files are cached; `revision` where that cannot be told."""
    path = None if _exists(name) else _file(name, "config.json", revision)
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else revision


def _offline() -> bool:
    """True where the hub's name cannot be resolved or the proxy does not answer: waiting for retries would be idle."""
    hub, proxies = urlsplit(ENDPOINT), getproxies()
    proxy = proxies.get(hub.scheme) or proxies.get("all")
    try:
        if proxy and not proxy_bypass(hub.hostname or ""):
            through = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
            default = {"https": 443}.get(through.scheme, 1080 if through.scheme.startswith("socks") else 80)
            socket.create_connection((through.hostname or "", through.port or default), timeout=10).close()
        else:
            socket.getaddrinfo(hub.hostname, hub.port or 443)
    except (OSError, ValueError):
        return True
    return False


@contextlib.contextmanager
def readable(name: str) -> Iterator[None]:
    """Turns what the libraries raise for a missing, broken or unreachable model into one line that names it.

    A broken file can make other people's code raise anything, so anything is caught; what they log meanwhile is not
    shown, since the one line says it.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    except (QuietStarError, MemoryError, torch.OutOfMemoryError):
        raise
    except SafetensorError as error:
        raise QuietStarError(
            f"{name}: a weights file is broken or half downloaded ({first_line(error)}); fetch it again"
        ) from error
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise QuietStarError(f"no space left on the disk while fetching {name}; free some and try again") from error
        if not _exists(name) and isinstance(error, OSError):
            raise QuietStarError(f"the model {name} could not be fetched from the hub: {first_line(error)}") from error
        said = first_line(error)
        if not isinstance(error, (OSError, ValueError, RuntimeError, ImportError)):  # else the kind says the most
            said = f"{type(error).__name__}: {said}"
        raise QuietStarError(f"the model {name} cannot be loaded: {said}") from error
    finally:
        logging.set_verbosity(verbosity)


def _is_panic(error: BaseException) -> bool:
    """True for what the Rust code of tokenizers and safetensors raises where it fails; no Exception, by its makers."""
    return type(error).__name__ == "PanicException"


@contextlib.contextmanager
def _of_the_cache(folder: Path) -> Iterator[None]:
    """Says of a broken folder of the cache that it can be deleted."""
    try:
        with readable(str(folder)):
            yield
    except QuietStarError as error:
        raise QuietStarError(f"{error}: delete that folder, and the model is fetched again") from error


# -- the published layout ---------------------------------------------------------------------------------------------


def _published(name: str, revision: str | None) -> dict[str, Tensor]:
    """The Quiet-STaR tensors of a published checkpoint, {} where `name` is an ordinary base model."""
    index = model_files.shards(name, partial(_inside, name, "", revision))
    files = {file for key, file in index.items() if _is_extra(key)} if index else {model_files.WEIGHTS}
    found: dict[str, Tensor] = {}
    for file in sorted(files):
        path = _file(name, file, revision)
        if path is None:
            continue
        with safe_open(path, framework="pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if _is_extra(key)}  # noqa: SIM118
    for key, tensor in found.items():
        _check_finite(name, key, tensor)
    return found


def _check_finite(where: str | Path, key: str, tensor: Tensor) -> None:
    if not bool(tensor.isfinite().all()):
        raise QuietStarError(f"{where}: {key} holds values that are not finite (NaN or infinity); the file is broken")


def _is_extra(key: str) -> bool:
    return key.startswith("talk_head.") or key in ("start_embedding", "end_embedding")


def _fill_published(model: ThinkingModel, extra: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Put the published head and markers in place; the last two vocabulary rows are their reserved ids."""
    head = {key.removeprefix(_HEAD): tensor.float() for key, tensor in extra.items() if key.startswith(_HEAD)}
    if several := sorted(key for key in extra if key.startswith("talk_head.") and not key.startswith(_HEAD)):
        raise QuietStarError(
            f"this Quiet-STaR checkpoint has several mixing heads ({several[0]}); only one for all places ahead "
            "(merged_talk_heads) is supported"
        )
    expected = model.head.layers.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in head.items()}
    if shapes != {key: tuple(tensor.shape) for key, tensor in expected.items()}:
        raise QuietStarError(
            "this Quiet-STaR checkpoint has another mixing head than Linear(2E, E), ReLU, Linear(E, E), ReLU, "
            f"Linear(E, 1) on cat[base, thought]: {shapes}"
        )
    options = (("use_weighted_talk_head", True), ("use_concat_talk_head", True), ("use_shallow_talk", False))
    for option, supported in options:
        if config.get(option, supported) is not supported:
            raise QuietStarError(f"this Quiet-STaR checkpoint has {option} = {config[option]}, which is not supported")
    missing = {"start_embedding", "end_embedding"} - extra.keys()
    if missing:
        raise QuietStarError(
            f"this Quiet-STaR checkpoint lacks {', '.join(sorted(missing))}; the download is incomplete"
        )
    for key in ("start_embedding", "end_embedding"):  # mean and log deviation; only the mean is used
        shape = tuple(extra[key].shape)
        if len(shape) != 2 or not shape[0] or shape[1] != model.config.hidden_size:
            raise QuietStarError(
                f"this Quiet-STaR checkpoint has {key} of shape {shape}, not (2, {model.config.hidden_size})"
            )
    model.head.layers.load_state_dict(head)
    with torch.no_grad():
        model.markers.start.copy_(extra["start_embedding"][0].float())
        model.markers.end.copy_(extra["end_embedding"][0].float())
    names = ("<|startthought|>", "<|endthought|>")
    known = model.tokenizer.get_vocab() if model.tokenizer is not None else {}
    last = model.vocabulary
    model.config.marker_ids = [known.get(names[0], last - 2), known.get(names[1], last - 1)]


# -- our layout -------------------------------------------------------------------------------------------------------


def _kept(model: ThinkingModel) -> dict[str, Tensor]:
    """Markers and head by the names they are saved under."""
    return {
        f"{part}.{key}": value
        for part, module in (("markers", model.markers), ("head", model.head))
        for key, value in module.state_dict().items()
    }


def save(
    model: ThinkingModel,
    folder: str | Path,
    save_base: bool | None = None,
    max_shard_size: int | str = SHARD,
) -> None:
    """Write `model` in our layout; see `QuietStar.save_pretrained`."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise QuietStarError(f"cannot save to {folder}: it is a file; give a folder")
    try:
        plan = _plan(model, save_base, folder)
        with replacing(folder, _OURS) as aside:
            _write(model, plan, aside, max_shard_size)
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        if isinstance(error, QuietStarError):
            raise
        if getattr(error, "errno", None) == errno.ENOSPC or "No space" in str(error):
            raise QuietStarError(
                f"no space left on the disk while saving to {folder}; free some and save again"
            ) from error
        reason = first_line(error)
        if isinstance(error, OSError) and error.strerror:
            reason = error.strerror + (f": {error.filename}" if error.filename else "")
        raise QuietStarError(f"cannot save to {folder}: {reason}") from error


def check_can_save(model: ThinkingModel) -> None:
    """Refuse now what `save` would refuse: called before a training run begins.

    Raises:
        QuietStarError: the model is in a state that a saved folder cannot hold; the message says what to do.
    """
    _plan(model, None, None)


@dataclass(frozen=True)
class _Plan:
    """What `save` writes beside markers and head."""

    base: bool
    generation: bool
    tokenizer: bool
    config: QuietStarConfig


def _plan(model: ThinkingModel, save_base: bool | None, folder: Path | None) -> _Plan:
    """Decide what has to be written for everything of `model` to come back, or refuse."""
    inner, config = model.decoder_lm, copy.deepcopy(model.config)
    adapters.check_can_save(model.base, inner)
    known = _origin(model)
    named = config.base_name
    if folder is not None and named is not None and Path(named).is_absolute():
        into = Path(os.path.realpath(folder))
        if Path(os.path.realpath(named)).is_relative_to(into):  # the new files would take its place
            named = None
    found = changes(model.base, inner, model.tokenizer, known or _NOTHING)
    if found.lost and known is not None:
        raise QuietStarError(
            f"{found.lost[0]} was changed ({len(found.lost)} such tensors), but it is computed from the configuration "
            "when a model is loaded and no file keeps it; change the configuration instead"
        )
    changed = bool(found.base) and known is not None
    if save_base is False and (changed or named is None):
        what = f"{found.base[0]} was changed ({len(found.base)} in all)" if changed else "it has no name to be found by"
        raise QuietStarError(f"the base model has to be saved too, since {what}; leave save_base out")
    whole = save_base if save_base is not None else changed or named is None or known is None
    if whole:
        if _is_quantised(inner):
            what = f"{found.base[0]} was changed" if changed else "it has no name to be found by"
            raise QuietStarError(
                f"a base model in 4 or 8 bit cannot be saved, and {what}; give from_base the base_name of the "
                "unquantised model and leave its weights as they are"
            )
        check_structure(inner)
        config.base_name = config.base_revision = None
    if not _is_quantised(inner):  # its hash says nothing about the weights that its name holds
        config.base_hash = found.now.fingerprint
        config.base_dtype = str(inner.dtype).removeprefix("torch.")
        if inner.dtype == torch.float32:  # so that the same base is known in another precision
            config.base_hash_rounded = fingerprint(inner, rounded=True)
        else:
            config.base_hash_rounded = config.base_hash if inner.dtype == torch.bfloat16 else None
    state = adapters.state(model.base, inner)
    config.adapter, config.adapters = bool(state), state or None
    tokenizer = model.tokenizer is not None and (found.tokenizer or whole)
    return _Plan(bool(whole), found.generation or bool(whole), tokenizer, config)


_NOTHING = Origin({}, {}, "", False, "", "", "", torch.float32)  # differs from every model in everything


def _origin(model: ThinkingModel) -> Origin | None:
    """What the model was loaded with; for one built by `from_base`, what lies under the name of its base.

    None where there is no name or what it names cannot be read: then everything has to be written.
    """
    if model.origin is None and model.config.base_name is not None and _is_quantised(model.decoder_lm):
        return Origin.of(model.decoder_lm, model.tokenizer)  # what its name holds is not packed: no comparison
    if model.origin is None and model.config.base_name is not None:
        remote = type(model.decoder_lm).__module__.startswith("transformers_modules")
        options = dict(
            dtype=model.decoder_lm.dtype, device=torch.device("cpu"), quantize=None, trust_remote_code=remote,
            revision=model.config.base_revision,
        )  # fmt: skip
        with contextlib.suppress(QuietStarError):
            base, tokenizer = _named_base(str(model.config.base_name), str(model.config.base_name), options)
            model.origin = Origin.of(base, tokenizer)
    return model.origin


def _write(model: ThinkingModel, plan: _Plan, folder: Path, max_shard_size: int | str) -> None:
    inner, config = model.decoder_lm, plan.config
    if plan.base:
        _write_base(inner, folder / "base", max_shard_size)
    if plan.tokenizer:
        where = folder / ("base" if plan.base else TOKENIZER)
        model.tokenizer.save_pretrained(where)
        check_tokenizer(model.tokenizer, where)
    if plan.generation and getattr(inner, "generation_config", None) is not None:
        # written as it is: what transformers finds unwise in it was so before
        inner.generation_config.to_json_file(folder / ("base" if plan.base else "") / GENERATION, use_diff=False)
    if config.adapter:
        base_name, card = _card(config)
        adapters.save(model.base, folder / "adapter", base_name, config.base_revision, card)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in _kept(model).items()},
        folder / WEIGHTS, metadata={"format": "pt"},
    )  # fmt: skip
    config.save_pretrained(folder)


def _write_base(inner: PreTrainedModel, folder: Path, max_shard_size: int | str) -> None:
    """The base alone, as if no adapter were in it, in transformers' layout."""
    tied, state, seen = is_tied(inner), {}, set()
    for name, tensor in adapters.plain_tensors(inner).items():
        if tied and name.endswith(_output_name(inner)):
            continue
        place = (tensor.device, tensor.data_ptr())
        state[name] = tensor.detach().clone() if place in seen else tensor.detach()  # safetensors know no sharing
        seen.add(place)
    config = inner.config
    kept = inner.generation_config, getattr(config, "dtype", None), getattr(config, "architectures", None)
    inner.generation_config = GenerationConfig()  # its own is written as it is, by `_write`
    try:
        inner.save_pretrained(folder, state_dict=state, max_shard_size=max_shard_size)
    finally:
        inner.generation_config, config.dtype, config.architectures = kept
    (folder / GENERATION).unlink(missing_ok=True)
    file = folder / "config.json"
    written = json.loads(file.read_text(encoding="utf-8"))
    written.pop("quantization_config", None)  # of a GGUF file; the weights are plain now
    for part in (written, written.get("text_config")):
        if isinstance(part, dict):
            part["tie_word_embeddings"] = tied
    file.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _output_name(inner: PreTrainedModel) -> str:
    """The name of the output embeddings' weight."""
    output = inner.get_output_embeddings()
    return next(f"{name}.weight" for name, module in inner.named_modules() if module is output)


def _card(config: QuietStarConfig) -> tuple[str, str]:
    """The name that the adapters give their base, and a README that says how to load them."""
    name = config.base_name
    if name in (default_model.DEFAULT, *default_model.BARE):
        where = 'thinking_folder() / "base"' if name == default_model.DEFAULT else "folder()"
        base, said = (
            str(name),
            (
                f"The base is quietstar's model `{name}`, converted from a 4 bit file: its weights differ from those "
                "published on a model hub, so it has no hub name. With PEFT:\n\n```python\n"
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
                "from quietstar.loading import default_model\n\n"
                f"base = AutoModelForCausalLM.from_pretrained(default_model.{where})\n"
            ),
        )
    elif name is None:
        base, said = (
            "base",
            (
                "The base lies beside this folder, in `base`. With PEFT, from the folder above:\n\n```python\n"
                "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                'base = AutoModelForCausalLM.from_pretrained("base")\n'
            ),
        )
    else:
        base, said = (
            str(name),
            (
                "The base is named in `adapter_config.json`. With PEFT:\n\n```python\n"
                "from peft import PeftConfig, PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                'name = PeftConfig.from_pretrained("adapter").base_model_name_or_path\n'
                "base = AutoModelForCausalLM.from_pretrained(name)\n"
            ),
        )
    first = config.adapters["names"][0] if config.adapters else "default"
    path = "adapter" if first == "default" else f"adapter/{first}"
    return base, (
        "---\nlibrary_name: peft\n---\n\n# An adapter of a quietstar model\n\n"
        "Load it with its markers and mixing head: `quietstar.QuietStar.from_pretrained(FOLDER)`, where FOLDER is the "
        f'folder above this one.\n\n{said}model = PeftModel.from_pretrained(base, "{path}")\n```\n'
    )


def _named_base(name: str, base_name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The base model of that name with its tokenizer, for the model `name`."""
    if base_name == default_model.DEFAULT:
        where = str(default_model.thinking_folder())
        return _base(where, options | {"revision": None, "subfolder": "base"})
    if base_name in default_model.BARE:
        return _base(str(default_model.folder()), options | {"revision": None})
    if Path(base_name).is_absolute() and not _exists(base_name):
        raise QuietStarError(
            f"{name} holds thoughts for the base model {base_name}, which is not there; put it back, or save "
            "with save_base=True where it is"
        )
    with readable(base_name):
        return _base(base_name, options)


def _ours(cls: type[ThinkingModel], name: str, raw: dict[str, Any], options: dict[str, Any]) -> Any:
    revision = options["revision"]
    config = _our_config(name, raw)
    if _file(name, "adapter_config.json", revision) is not None:  # transformers would load it with the base
        raise QuietStarError(f"{name} has an adapter_config.json beside its config.json; it belongs into adapter/")
    if config.base_name is None:
        base, tokenizer = _base(name, options | {"subfolder": "base"})
    else:
        base, tokenizer = _named_base(name, config.base_name, options | {"revision": config.base_revision})
    origin = Origin.of(base, tokenizer)
    found = origin.fingerprint
    if not _same(config, base, found, bool(options["quantize"])):
        warnings.warn(
            f"{name} was made for another version of {config.base_name} (fingerprint {config.base_hash}, this one has "
            f"{found}); its thoughts may not fit",
            stacklevel=2,
        )
    if (path := _file(name, GENERATION, revision)) is not None:
        base.generation_config = GenerationConfig.from_dict(_json(name, GENERATION, revision) or {})
    if _file(name, f"{TOKENIZER}/tokenizer_config.json", revision) is not None:
        local = {"revision": revision, "local_files_only": _exists(name) or _offline()}
        tokenizer = AutoTokenizer.from_pretrained(
            name, subfolder=TOKENIZER, trust_remote_code=options["trust_remote_code"], **local
        )
    if config.adapter:
        state = config.adapters or {"names": ["default"], "active": ["default"], "off": False}
        for adapter in state["names"]:
            where = "adapter" if adapter == "default" else f"adapter/{adapter}"
            _check_adapter(name, where, revision)
        inner = base
        base = adapters.load(inner, name, state, revision)
        for adapter in state["names"]:
            where = "adapter" if adapter == "default" else f"adapter/{adapter}"
            path = _file(name, f"{where}/adapter_model.safetensors", revision)
            assert path is not None
            adapters.restore_dtype(base, inner, adapter, path)
    path = _file(name, WEIGHTS, revision)
    if path is None:
        raise QuietStarError(f"{name} has no {WEIGHTS}; the folder or download is incomplete")
    if (width := _width(base)) != config.hidden_size:
        raise QuietStarError(
            f"{name} holds thoughts for a base of hidden size {config.hidden_size}, but its base has {width}; the two "
            "do not belong together"
        )
    model = cls(config, base, tokenizer)
    beyond = [token for token in (*config.marker_ids, config.filler_id or 0) if token >= model.vocabulary]
    if beyond:
        raise QuietStarError(
            f"{name}: config.json names token {beyond[0]}, but the base has {model.vocabulary} tokens; the two do not "
            "belong together"
        )
    load_parts(model, path)
    model.config.name_or_path = name
    model.loaded_fingerprint, model.origin = found, origin
    return model.eval()


def _is_state(value: Any) -> bool:
    """Whether `adapters` in our settings is what `adapters.state` gives, with names that are folders of their own."""
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("off"), bool):
        return False
    lists = [value.get("names"), value.get("active")]
    if not all(isinstance(one, list) and all(isinstance(name, str) for name in one) for one in lists):
        return False
    names = value["names"]
    return bool(names) and not any(name in ("", ".", "..") or set(name) & set("/\\\0") for name in names)


def _our_config(name: str, raw: dict[str, Any]) -> QuietStarConfig:
    """Our settings from a `config.json`, each value of its kind and range.

    Raises:
        QuietStarError: names the key, what it should be and what it is.
    """

    def whole(least: int) -> Any:
        return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 31

    def text(value: Any) -> bool:
        return value is None or isinstance(value, str)

    rules = {
        "base_name": (text, "a name or null"),
        "base_revision": (text, "a commit or null"),
        "base_hash": (text, "a fingerprint or null"),
        "base_hash_rounded": (text, "a fingerprint or null"),
        "base_dtype": (text, "a dtype or null"),
        "adapters": (_is_state, "names of adapters, which are active, and whether they are off"),
        "adapter": (lambda value: isinstance(value, bool), "true or false"),
        "hidden_size": (whole(1), "a whole number above 0"),
        "thought_length": (whole(0), "a whole number, at least 0"),
        "marker_ids": (lambda value: isinstance(value, list) and all(map(whole(0), value)), "a list of token ids"),
        "filler_id": (lambda value: value is None or whole(0)(value), "a token id or null"),
        "weight_floor": (
            lambda value: isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1,
            "a number from 0 to 1",
        ),
    }  # fmt: skip
    for key, (allowed, what) in rules.items():
        if key in raw and not allowed(raw[key]):
            raise QuietStarError(f"{name}: {key} in config.json should be {what}, and is {raw[key]!r}")
    if "hidden_size" not in raw:
        raise QuietStarError(f"{name}: config.json lacks hidden_size; the file is broken")
    return QuietStarConfig(**{key: value for key, value in raw.items() if key != "model_type"})


def _check_adapter(name: str, where: str, revision: str | None) -> None:
    """Look at a PEFT adapter before PEFT does, which would go on to pickled weights or to files its settings name."""
    path = _file(name, f"{where}/adapter_model.safetensors", revision)
    if path is None:
        raise QuietStarError(
            f"{name} has no {where}/adapter_model.safetensors; the folder or download is incomplete (pickled "
            "weights are not read)"
        )
    settings = _json(name, f"{where}/adapter_config.json", revision)
    if settings is None:
        raise QuietStarError(f"{name} has no {where}/adapter_config.json; the folder or download is incomplete")
    for key in ("prompt_tuning_init_state_dict_path", "tokenizer_kwargs"):
        if settings.get(key):
            raise QuietStarError(
                f"{name}: adapter_config.json has {key}, which would read or run other files; it is not loaded"
            )
    shapes = model_files.header(path)
    widest = max((min(shape[:2]) for shape in shapes.values() if len(shape) > 1), default=0)
    pattern = settings.get("rank_pattern")
    ranks = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    if too_large := [r for r in ranks if isinstance(r, int) and r > 64 * max(1, widest)]:
        raise QuietStarError(
            f"{name}: adapter_config.json asks for rank {too_large[0]}, but its weights have at most {widest}; "
            "the two files do not belong together"
        )
    with safe_open(path, framework="pt") as tensors:
        for key in shapes:
            _check_finite(path, key, tensors.get_tensor(key))


def _same(config: QuietStarConfig, base: PreTrainedModel, found: str, quantised: bool) -> bool:
    """Whether the base that was found is the one the folder was made for, as far as the precision can tell."""
    if not config.base_hash or config.base_hash == found or quantised or base.dtype == torch.float16:
        return True
    if not config.base_hash.startswith(VERSION):
        return fingerprint_1(base) == config.base_hash
    if config.base_dtype == str(base.dtype).removeprefix("torch.") or config.base_hash_rounded is None:
        return config.base_dtype == "float16"  # rounded twice: cannot be told
    return fingerprint(base, rounded=True) == config.base_hash_rounded


def refill(model: ThinkingModel, folder: str | Path) -> None:
    """Fill markers, head, adapter and base of `model` from a folder that `save` wrote for the same kind of model.

    Raises:
        QuietStarError: something is missing, broken, or of other shapes.
    """
    folder = Path(folder)
    with readable(str(folder)):
        load_parts(model, folder / WEIGHTS)
        if (folder / "base").is_dir():
            model_files.check_base(str(folder / "base"), partial(_inside, str(folder / "base"), "", None))
            trained = AutoModelForCausalLM.from_pretrained(
                folder / "base", dtype=model.decoder_lm.dtype, use_safetensors=True
            )
            there, here = adapters.plain_tensors(trained), adapters.plain_tensors(model.decoder_lm)
            if {k: v.shape for k, v in there.items()} != {k: v.shape for k, v in here.items()}:
                raise QuietStarError(f"{folder / 'base'} is another base model than this one")
            with torch.no_grad():
                for name, tensor in here.items():
                    tensor.copy_(there[name])
        if model.base is not model.decoder_lm:
            from peft import set_peft_model_state_dict

            for name in model.base.peft_config:
                where = folder / "adapter" if name == "default" else folder / "adapter" / name
                weights = load_file(where / "adapter_model.safetensors")
                set_peft_model_state_dict(model.base, weights, adapter_name=name)


def load_parts(model: ThinkingModel, path: Path) -> None:
    """Put the saved markers and head in place; refuses those of another hidden size."""
    tensors = load_file(path)
    kept = {name: tuple(value.shape) for name, value in _kept(model).items()}
    if kept != {name: tuple(value.shape) for name, value in tensors.items()}:
        raise QuietStarError(f"{path} does not hold the markers and head of hidden size {model.config.hidden_size}")
    for key, tensor in tensors.items():
        _check_finite(path, key, tensor)
    for part, module in (("markers", model.markers), ("head", model.head)):
        module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")})
