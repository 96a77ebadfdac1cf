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
import os
import re
import socket
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from huggingface_hub.constants import ENDPOINT
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import cached_file

from quietstar import adapters, default_model, families
from quietstar.errors import QuietStarError
from quietstar.folders import clear, finish, replacing
from quietstar.identity import VERSION, fingerprint, fingerprint_1
from quietstar.model import QuietStarConfig, ThinkingModel
from quietstar.origin import Origin, changes, check_structure, check_tokenizer, is_tied

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
    device = pick_device(device)
    if isinstance(dtype, str) and dtype != "auto":
        if dtype not in DTYPES:
            raise QuietStarError(f"dtype must be auto, {', '.join(DTYPES)}; got {dtype!r}")
        dtype = DTYPES[dtype]
    options = dict(
        revision=revision, dtype=dtype, device=device, quantize=quantize, trust_remote_code=trust_remote_code
    )
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
    if not name or not (Path(name).exists() or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name)):
        raise QuietStarError(f"unknown model {name!r}: there is no such folder or file")
    if Path(name).is_dir():
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
        if config is None and not name.endswith(".gguf") and not Path(name).exists():
            raise QuietStarError(
                f"unknown model {name!r}: neither a folder or .gguf file here nor a model of the hub"
                + (" in the cache, and the hub cannot be reached" if _offline() else "")
            )
        if config is not None and config.get("model_type") == QuietStarConfig.model_type:
            model = _ours(cls, name, config, options)
            model.revision = _commit(name, revision)
            return model
        base, tokenizer = _base(name, options)
        extra = _published(name, revision) if config is not None and not name.endswith(".gguf") else {}
    known_as = str(Path(name).resolve()) if Path(name).exists() else name
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
    width = inner.get_output_embeddings().weight.shape[-1] if inner.get_output_embeddings() is not None else 0
    if name is None and base is not inner:
        name = getattr(inner.config, "_name_or_path", "") or None
    if name is not None and name not in (default_model.DEFAULT, *default_model.BARE) and Path(name).exists():
        name = str(Path(name).resolve())
    config = QuietStarConfig(
        base_name=name,
        base_revision=revision,
        hidden_size=width or embeddings.weight.shape[-1],
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


def _is_quantised(base: PreTrainedModel) -> bool:
    """Whether the weights are packed in 4 or 8 bit (not merely read from such a file)."""
    return bool(getattr(base, "is_loaded_in_4bit", False) or getattr(base, "is_loaded_in_8bit", False))


def _base(name: str, options: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    """The base model and its tokenizer from a folder, a GGUF file or a hub name."""
    source: dict[str, Any] = {"revision": options["revision"], "trust_remote_code": options["trust_remote_code"]}
    source["local_files_only"] = Path(name).exists() or _offline()
    source["subfolder"] = options.get("subfolder", "")
    if name.endswith(".gguf"):
        path = Path(name)
        if not path.is_file():
            raise QuietStarError(f"unknown model {name!r}: there is no such folder or file")
        name, source["gguf_file"] = str(path.parent), path.name
    loading: dict[str, Any] = dict(source, dtype=_dtype(name, options, source))
    if "gguf_file" not in source:
        loading["use_safetensors"] = True
    if options["quantize"]:
        loading |= {"quantization_config": _quantization(options["quantize"]), "device_map": str(options["device"])}
    base, found = AutoModelForCausalLM.from_pretrained(
        name, output_loading_info=True, ignore_mismatched_sizes=True, **loading
    )  # a mismatch is refused here, in one line that names the weight
    if absent := sorted(found["missing_keys"]):
        raise QuietStarError(
            f"the weights of {name} lack {absent[0]} ({len(absent)} in all); the download is incomplete"
        )
    if other := sorted(found["mismatched_keys"]):
        key, stored, wanted = other[0]
        raise QuietStarError(
            f"{name}: {key} has shape {tuple(stored)}, but config.json asks for {tuple(wanted)} ({len(other)} such "
            "weights); the two files do not belong together"
        )
    if not options["quantize"]:
        base.to(options["device"])
    elif options["quantize"] == "4bit" and base.config.hidden_size % _BLOCK:
        raise QuietStarError(
            f"{name} cannot run in 4 bit: its hidden size must be a multiple of {_BLOCK}, and is "
            f"{base.config.hidden_size}; use --quantize 8bit, or none"
        )
    where = Path(name) / source["subfolder"]
    if where.is_dir() and not any(any(where.glob(pattern)) for pattern in _TOKENIZER_FILES):
        return base, None  # some classes would make an empty one
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **source)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QuietStarError(f"the tokenizer of {name} cannot be read: {_first_line(error)}") from error
    return base, tokenizer


def _dtype(name: str, options: dict[str, Any], source: dict[str, Any]) -> Any:
    """The asked dtype; "auto" is the checkpoint's own, but fp32 on a CPU whose 16-bit arithmetic is emulated."""
    if options["dtype"] != "auto":
        return options["dtype"]
    if torch.device(options["device"]).type != "cpu":
        return "auto"
    own = getattr(AutoConfig.from_pretrained(name, **source), "dtype", None) if "gguf_file" not in source else None
    if own == torch.bfloat16 and _cpu_has_bf16():
        return own
    return torch.float32 if own in (None, torch.float16, torch.bfloat16) else own


def _cpu_has_bf16() -> bool:
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("avx512_bf16") or found.get("amx_bf16") or found.get("bf16"))


def pick_device(device: str | torch.device | None) -> torch.device:
    """The asked device, or CUDA where there is one, else the CPU."""
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)  # type: ignore[arg-type]
        if found.type == "cuda" and not torch.cuda.is_available():
            raise QuietStarError(f"device {str(device)!r} was asked for, but this machine has no CUDA device; use cpu")
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise QuietStarError(f"device {str(device)!r} cannot be used: {_first_line(error)}") from error
    return found


_TOKENIZER_FILES = ("*token*", "vocab*", "merges*", "*.model", "*.gguf")

_BLOCK = 64  # weights that bitsandbytes scales together


def _quantization(kind: str) -> Any:
    if kind not in ("4bit", "8bit"):
        raise QuietStarError(f"quantize must be 4bit or 8bit, got {kind!r}")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise QuietStarError('--quantize needs bitsandbytes: pip install "quietstar[quantize]"') from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=kind == "4bit", load_in_8bit=kind == "8bit", bnb_4bit_quant_type="nf4")


def _json(name: str, file: str, revision: str | None) -> dict[str, Any] | None:
    """A JSON file of a folder or hub repository, or None where there is none."""
    path = _file(name, file, revision)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise QuietStarError(f"{path} is not valid JSON ({error}); the download may be incomplete") from error
    if not isinstance(found, dict):
        raise QuietStarError(f"{path} should hold a JSON object; the file is broken")
    return found


def _file(name: str, file: str, revision: str | None) -> Path | None:
    if name.endswith(".gguf"):
        return None
    if Path(name).exists():
        path = Path(name) / file
        return path if path.is_file() else None
    found = cached_file(
        name, file, revision=revision, local_files_only=_offline(), _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return None if found is None else Path(found)


def _commit(name: str, revision: str | None) -> str | None:
    """The commit a hub name stands for now, from where its files are cached; `revision` where that cannot be told."""
    path = None if Path(name).exists() else _file(name, "config.json", revision)
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
    """Turns what the libraries raise for a missing, broken or unreachable model into one line that names it."""
    try:
        yield
    except QuietStarError:
        raise
    except SafetensorError as error:
        raise QuietStarError(
            f"{name}: a weights file is broken or half downloaded ({error}); fetch it again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, StrictDataclassError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise QuietStarError(f"no space left on the disk while fetching {name}; free some and try again") from error
        if not Path(name).exists() and isinstance(error, OSError):
            raise QuietStarError(f"the model {name} cannot be had from the hub: {_first_line(error)}") from error
        raise QuietStarError(f"the model {name} cannot be loaded: {_first_line(error)}") from error


@contextlib.contextmanager
def _of_the_cache(folder: Path) -> Iterator[None]:
    """Says of a broken folder of the cache that it can be deleted."""
    try:
        with readable(str(folder)):
            yield
    except QuietStarError as error:
        raise QuietStarError(f"{error}: delete that folder, and the model is fetched again") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


# -- the published layout ---------------------------------------------------------------------------------------------


def _published(name: str, revision: str | None) -> dict[str, Tensor]:
    """The Quiet-STaR tensors of a published checkpoint, {} where `name` is an ordinary base model."""
    index = _json(name, "model.safetensors.index.json", revision)
    shards = set(index["weight_map"].values()) if index else {"model.safetensors"}
    if index:
        wanted = {key for key in index["weight_map"] if _is_extra(key)}
        shards = {index["weight_map"][key] for key in wanted}
    found: dict[str, Tensor] = {}
    for shard in sorted(shards):
        path = _file(name, shard, revision)
        if path is None:
            continue
        with safe_open(path, framework="pt") as tensors:
            found |= {key: tensors.get_tensor(key) for key in tensors.keys() if _is_extra(key)}  # noqa: SIM118
    return found


def _is_extra(key: str) -> bool:
    return key.startswith("talk_head.") or key in ("start_embedding", "end_embedding")


def _fill_published(model: ThinkingModel, extra: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Put the published head and markers in place; the last two vocabulary rows are their reserved ids."""
    head = {key.removeprefix(_HEAD): tensor.float() for key, tensor in extra.items() if key.startswith(_HEAD)}
    expected = model.head.layers.state_dict()
    shapes = {key: tuple(tensor.shape) for key, tensor in head.items()}
    if shapes != {key: tuple(tensor.shape) for key, tensor in expected.items()}:
        raise QuietStarError(
            "this Quiet-STaR checkpoint has another mixing head than Linear(2E, E), ReLU, Linear(E, E), ReLU, "
            f"Linear(E, 1) on cat[base, thought]: {shapes}"
        )
    for option, supported in (("use_weighted_talk_head", True), ("use_shallow_talk", False)):
        if config.get(option, supported) is not supported:
            raise QuietStarError(f"this Quiet-STaR checkpoint has {option} = {config[option]}, which is not supported")
    missing = {"start_embedding", "end_embedding"} - extra.keys()
    if missing:
        raise QuietStarError(
            f"this Quiet-STaR checkpoint lacks {', '.join(sorted(missing))}; the download is incomplete"
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
        reason = _first_line(error)
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
                "from quietstar import default_model\n\n"
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
    if Path(base_name).is_absolute() and not Path(base_name).exists():
        raise QuietStarError(
            f"{name} holds thoughts for the base model {base_name}, which is not there; put it back, or save "
            "with save_base=True where it is"
        )
    with readable(base_name):
        return _base(base_name, options)


def _ours(cls: type[ThinkingModel], name: str, raw: dict[str, Any], options: dict[str, Any]) -> Any:
    revision = options["revision"]
    config = QuietStarConfig(**{k: v for k, v in raw.items() if k != "model_type"})
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
        local = {"revision": revision, "local_files_only": Path(name).exists() or _offline()}
        tokenizer = AutoTokenizer.from_pretrained(
            name, subfolder=TOKENIZER, trust_remote_code=options["trust_remote_code"], **local
        )
    if config.adapter:
        state = config.adapters or {"names": ["default"], "active": ["default"], "off": False}
        for adapter in state["names"]:
            where = "adapter" if adapter == "default" else f"adapter/{adapter}"
            file = f"{where}/adapter_model.safetensors"
            if _file(name, file, revision) is None:  # PEFT would go on to a pickled file
                raise QuietStarError(
                    f"{name} has no {file}; the folder or download is incomplete (pickled weights are not read)"
                )
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
    model = cls(config, base, tokenizer)
    load_parts(model, path)
    model.config.name_or_path = name
    model.loaded_fingerprint, model.origin = found, origin
    return model.eval()


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
    for part, module in (("markers", model.markers), ("head", model.head)):
        module.load_state_dict({k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")})
