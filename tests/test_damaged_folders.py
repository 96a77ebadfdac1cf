"""Property: a model folder with one thing damaged gives a model that thinks, or one line; nothing else, and no pickle."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import trained
from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError

GOLDEN = Path(__file__).parent / "golden" / "infer-greedy"
KINDS = ["plain", "sharded", "ours", "whole", "adapted", "published"]


def shard(folder: Path, count: int = 3) -> None:
    weights = load_file(folder / "model.safetensors")
    index = {}
    for n in range(count):
        file = f"model-{n + 1:05}-of-{count:05}.safetensors"
        names = sorted(weights)[n::count]
        index |= dict.fromkeys(names, file)
        save_file({key: weights[key] for key in names}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


@pytest.fixture(scope="session")
def layouts(tiny_folder, tokenizer, tmp_path_factory) -> dict[str, Path]:
    """One whole folder of every layout that is read."""
    import peft
    from transformers import AutoModelForCausalLM

    made = {kind: tmp_path_factory.mktemp("layouts") / kind for kind in KINDS}
    for kind in ("plain", "sharded"):
        shutil.copytree(tiny_folder, made[kind])
    shard(made["sharded"])
    shutil.copytree(GOLDEN, made["published"])
    model = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"))
    model.save_pretrained(made["ours"])
    model.save_pretrained(made["whole"], save_base=True)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = tiny_folder
    trained(QuietStar.from_base(adapted, tokenizer)).save_pretrained(made["adapted"])
    return made


def attempt(folder: Path) -> str:
    """ "" where the folder gives a model that thinks, or the one line."""
    try:
        model = QuietStar.from_pretrained(folder)
        _, trace = model.generate([3, 4, 5], max_new_tokens=2, thought_length=1, stop_ids=[])
        assert all(0 <= thought.weight <= 1 or thought.weight == thought.weight for thought in trace.thoughts)
        if model.tokenizer is not None:
            model.generate("the", max_new_tokens=1, thought_length=1)
    except QuietStarError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    return ""


NUMBERS = [0, -1, 1, 3, 7, 10**6, 10**9, 10**12, 10**30, 0.5, -0.0, 1e400, float("nan")]
ODD = [None, True, False, "", "x", "../../x", [], [1], {}, {"x": 1}, [[]] * 3, *NUMBERS]


def paths_of(value, here=()):
    """Where every value of a JSON document stands."""
    yield here
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in list(items)[:60]:
        yield from paths_of(one, (*here, key))


def damage_json(data, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    how = data.draw(st.sampled_from(["value", "value", "value", "drop", "swap", "cut", "flip", "deep", "array", "nul"]))
    if how in ("value", "drop", "swap"):
        document = json.loads(text)
        places = [place for place in paths_of(document) if place]
        if not places:
            return
        place = data.draw(st.sampled_from(places))
        parent = document
        for key in place[:-1]:
            parent = parent[key]
        if how == "value":
            parent[place[-1]] = data.draw(st.sampled_from(ODD))
        elif how == "drop":
            del parent[place[-1]]
        else:
            other = data.draw(st.sampled_from(places))
            value = document
            for key in other:
                value = value[key]
            parent[place[-1]] = json.loads(json.dumps(value))
        path.write_text(json.dumps(document))
    elif how == "deep":
        path.write_text("[" * 100_000 if data.draw(st.booleans()) else '{"a":' * 5_000 + "1" + "}" * 5_000)
    elif how == "array":
        path.write_text(data.draw(st.sampled_from(["[]", "3", "null", '"x"', "{}", "NaN", ""])))
    elif how == "nul":
        path.write_bytes(b"\0" * len(text))
    else:
        damage_bytes(data, path, how)


def damage_bytes(data, path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "cut":
        content = content[: data.draw(st.integers(0, len(content)))]
    elif content:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)


def damage_weights(data, path: Path) -> None:
    how = data.draw(
        st.sampled_from(["cut", "flip", "head", "length", "lie", "shape", "dtype", "rename", "drop", "nan"])
    )
    if how in ("cut", "flip"):
        damage_bytes(data, path, how)
        return
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    if how == "length":
        length = data.draw(st.sampled_from([0, 1, length - 1, length + 8, 2**31, 2**63]))
        path.write_bytes(struct.pack("<Q", length) + content[8:])
    elif how in ("head", "lie"):
        table = json.loads(content[8 : 8 + length])
        name = data.draw(st.sampled_from([key for key in sorted(table) if key != "__metadata__"]))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
        lies = {"dtype": ["F64", "I8", "BOOL", "X"], "shape": [[], [-1], [2**62, 4], [0]], "data_offsets": [[0, 2**60]]}
        table[name][key] = data.draw(st.sampled_from(ODD if how == "head" else lies[key]))
        head = json.dumps(table).encode()
        path.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + length :])
    else:
        weights = load_file(path)
        name = data.draw(st.sampled_from(sorted(weights)))
        tensor = weights.pop(name)
        if how == "shape":
            weights[name] = data.draw(st.sampled_from([tensor[:-1], tensor[None], tensor.reshape(-1), tensor[:0]]))
        elif how == "dtype":
            kinds = [torch.float64, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64]
            weights[name] = tensor.to(data.draw(st.sampled_from(kinds)))
        elif how == "rename":
            weights[data.draw(st.sampled_from(["x", "", "model", name + ".x", "talk_head.0.0.weight"]))] = tensor
        elif how == "nan":
            weights[name] = torch.full_like(
                tensor.float(), data.draw(st.sampled_from([float("nan"), float("inf"), 0.0, 1e30]))
            )
        save_file({key: value.contiguous() for key, value in weights.items()}, path, metadata={"format": "pt"})


def damage_file(data, folder: Path, path: Path) -> None:
    others = sorted(other for other in folder.rglob("*") if other.is_file() and other != path)
    how = data.draw(st.sampled_from(["empty", "gone", "folder", "loop", "dangling", "swap", "pickle", "noise"]))
    if how == "swap":
        path.write_bytes(data.draw(st.sampled_from(others)).read_bytes())
        return
    if how == "noise":
        path.write_bytes(data.draw(st.binary(max_size=64)))
        return
    if how == "pickle":
        torch.save({"x": torch.zeros(2)}, path.with_suffix(".bin"))
        if data.draw(st.booleans()):
            path.write_bytes(path.with_suffix(".bin").read_bytes())
            return
    path.unlink()
    if how == "empty":
        path.touch()
    elif how == "folder":
        path.mkdir()
    elif how in ("loop", "dangling"):
        path.symlink_to(path.name if how == "loop" else "nowhere")


def damage_index(data, folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    key = data.draw(st.sampled_from(sorted(index["weight_map"])))
    torch.save(load_file(folder / index["weight_map"][key]), folder / "model-00001-of-00003.bin")
    names = ["absent.safetensors", "../x.safetensors", str(folder / "x.safetensors"), "model-00001-of-00003.bin",
             "config.json", "", ".", "x" * 300 + ".safetensors", "a\0b.safetensors", 3, None, ["x"]]  # fmt: skip
    index["weight_map"][key] = data.draw(st.sampled_from(names))
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("kind", KINDS)
def test_whole_folders_are_served(layouts, kind):
    assert attempt(layouts[kind]) == ""


@fuzz(30)
@given(st.data())
def test_a_damaged_folder_gives_a_model_or_one_line(layouts, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(KINDS))
    folder = tmp_path_factory.mktemp("damaged") / kind
    shutil.copytree(layouts[kind], folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    if kind == "sharded" and data.draw(st.integers(0, 4)) == 0:
        damage_index(data, folder)
    elif data.draw(st.integers(0, 3)) == 0:
        damage_file(data, folder, path)
    elif path.suffix == ".safetensors":
        damage_weights(data, path)
    elif path.suffix == ".json":
        damage_json(data, path)
    else:
        damage_bytes(data, path, data.draw(st.sampled_from(["cut", "flip"])))
    real = torch.load
    torch.load = lambda *_, **__: pytest.fail("a pickled file was read")
    try:
        attempt(folder)
    finally:
        torch.load = real
        shutil.rmtree(folder.parent)
