"""Public functions and methods with arguments of wrong types: a result or one clear line, found from their signatures."""

import importlib
import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import quietstar
from fuzzing import fuzz
from quietstar import GenerationSettings, QuietStar, QuietStarError, Trace
from quietstar.documents.reading import Document
from quietstar.errors import WrongType
from quietstar.inference.controls import Control
from quietstar.inference.triggers import Trigger
from quietstar.record.store import Store
from recorded import trace as recorded

MODULES = [
    "quietstar.evals.losses", "quietstar.evals.thoughts", "quietstar.evals.statistics", "quietstar.evals.measures", "quietstar.record.overview",
    "quietstar.record.exchange", "quietstar.record.recorder", "quietstar.viewer.export", "quietstar.evals.intervals",
    "quietstar.training.recipe",
]  # fmt: skip
WRONG = [
    None, True, False, 0, 1, -1, 1.5, math.nan, math.inf, 2**63, 2**200, -(2**200), "", "x", "filler", "\ud800", "a\0", "a" * 5000,
    "~nosuchuser/x", b"x", [], [1], ["x"], [None], [[1, 2]], (), {}, {"a": 1}, {1: {2: 3}}, {"x"}, range(3), object(), len, int,
    1j, np.int64(3), np.float32(2.5), np.array([1.5]), np.array(["x"]), np.zeros((2, 0)), torch.tensor(1), torch.tensor([1.5]),
    torch.zeros(2, 3, 4, 5, dtype=torch.long), torch.tensor([[True]]), Control.parse("own"), Trigger.parse("always"),
]  # fmt: skip
# left out: what would reach a network, what is another program's, and what only repeats the fields of a result
SKIPPED = {
    "QuietStar": {"forward", "__init__"}, "Generation": None, "UnsupportedModel": None, "QuietStarError": None, "Losses": None,
    "Score": {"__init__"}, "Resampled": {"__init__"}, "Store": {"__init__", "transaction", "close", "change", "write", "select"},
    "RunWriter": None, "key_names": None, "Recipe": None, "WeightsConfig": None, "OptimizerConfig": None, "WatchConfig": None,
    "LossReport": None, "Measure": None, "Statistic": None, "Histogram": None, "Line": None, "Imported": None, "Interval": None,
    "complete": None, "check_scorable": None, "check_comparable": None, "new_id": None, "now": None,
}  # fmt: skip


def entries():
    """Every public function and method as (name, owner, member name)."""
    found = []
    things = [(name, getattr(quietstar, name)) for name in quietstar.__all__]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        things += [(name, one) for name, one in vars(module).items() if getattr(one, "__module__", "") == module_name]
    for name, thing in things:
        if (
            name.startswith("_")
            or isinstance(thing, str)
            or (inspect.isclass(thing) and issubclass(thing, BaseException))
        ):
            continue
        skipped = SKIPPED.get(name, set())
        if skipped is None:
            continue
        if inspect.isfunction(thing):
            found.append((name, None, thing))
        elif inspect.isclass(thing):
            for member, raw in vars(thing).items():
                function = raw.__func__ if isinstance(raw, (classmethod, staticmethod)) else raw
                public = not member.startswith("_") or member == "__init__"
                checked = hasattr(function, "__quietstar_checked__") or name == "GenerationSettings"
                if (
                    public
                    and member not in skipped
                    and inspect.isfunction(function)
                    and (member != "__init__" or checked)
                ):
                    found.append((f"{name}.{member}", name, member))
    return [*found, ("Trigger.parse", None, Trigger.parse), ("Control.parse", None, Control.parse)]


ENTRIES = entries()


@pytest.fixture
def world(tiny, folder, own_record, tmp_path, monkeypatch):
    """An object of each class to call methods of, and usable values for parameters by their names."""
    from quietstar.loading import checkpoints

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "_offline", lambda: True)
    store = Store.open()
    trace = recorded()
    store.add(trace, run="r1")
    (tmp_path / "text.txt").write_text("the fox")
    good = {
        "prompt": "the", "text": "the fox", "position": 0, "n": 2, "of": "the fox", "name": "r1", "run": "r1", "store": store,
        "runs": ["r1"], "trace": trace, "model": tiny, "events": list(trace.events), "event": trace.start, "start": trace.start,
        "save_directory": str(tmp_path / "saved"), "base": tiny.base, "path": "out.jsonl", "format": "jsonl", "table": "runs",
        "files": ["text.txt"], "documents": [Document("a", "the fox")], "source": "smoke", "raw": {}, "where": "x", "measure": "kl",
        "measured": {}, "found": {}, "number": 1, "thought": [1], "a": [1], "b": [1], "values": np.ones(3), "groups": np.zeros(3),
        "own": {"documents": []}, "other": {"documents": []}, "logprob": -1.0, "same": [1.0], "sequence": 0, "shifts": [0],
    }  # fmt: skip
    score = tiny.score("the fox", thought_length=1)
    objects = {
        "QuietStar": tiny, "Store": store, "Trace": trace, "Score": score, "Recorder": store.recorder(),
        "Resampled": tiny.resample(0, 1, of="the fox", thought_length=1), "Document": Document("a", "b"),
    }  # fmt: skip
    yield good, objects, folder
    store.close()


SMALL = {"max_new_tokens": 1, "thought_length": 1, "answer_tokens": 1}


@fuzz(120)
@given(st.sampled_from(ENTRIES), st.data())
def test_wrong_types_are_one_line(world, entry, data):
    tried(world, entry, data.draw)


def tried(world, entry, draw):
    """Call an entry with wrong values that `draw` chooses."""
    good, objects, folder = world
    name, owner, member = entry
    if owner is None:
        call = member
    else:
        cls = objects.get(owner) if member != "__init__" else None
        known = getattr(quietstar, owner, None) or next(
            (vars(importlib.import_module(m))[owner] for m in MODULES if owner in vars(importlib.import_module(m))),
            None,
        )
        call = known if member == "__init__" else getattr(cls if cls is not None else known, member)
    parameters = [p for p in inspect.signature(call).parameters.values() if p.name not in ("self", "cls")]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "push_to_hub"]
    keywords = {p.name: good[p.name] for p in named if p.default is p.empty and p.name in good}
    if any(p.kind is p.VAR_KEYWORD for p in parameters) and name.partition(".")[2] in (
        "generate",
        "stream",
        "reason_then_answer",
    ):
        keywords |= SMALL if "reason" in name else {k: v for k, v in SMALL.items() if k != "answer_tokens"}
        options = list(GenerationSettings.__dataclass_fields__)
    else:
        options = []
    if name == "QuietStar.from_pretrained":
        keywords["name"] = folder
    for wrong in draw(
        st.lists(st.sampled_from([p.name for p in named] + options + ["unknown_option"]), min_size=1, max_size=2)
    ):
        keywords[wrong] = draw(st.sampled_from(WRONG))
    try:
        result = call(**keywords)
        if inspect.isgenerator(result) or hasattr(result, "__next__"):
            list(itertools.islice(result, 5))
    except QuietStarError as error:
        assert str(error) and "\n" not in str(error)
    except NotImplementedError:
        raise
    except Exception as error:
        raise AssertionError(f"{name}({keywords!r:.600}): {type(error).__name__}: {error}") from error


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(max_new_tokens=1.5), "max_new_tokens must be a whole number, got 1.5"),
        (dict(max_new_tokens=True), "max_new_tokens must be a whole number, got True"),
        (dict(trigger=3), "trigger must be text or a Trigger, got 3"),
        (dict(control=3), "control must be text or a Control, got 3"),
        (dict(seed="x"), "seed must be a whole number, got 'x'"),
        (dict(seed=2**63), "seed must be a whole number of at most 64 bits"),
        (dict(seed=2**200), "got a number of 201 bits"),
        (dict(temperature=math.nan), "temperature must be a finite number, got nan"),
        (dict(temperature="warm"), "temperature must be a number, got 'warm'"),
        (dict(stop_ids=[1, "x"]), "stop_ids must be a list of a whole number or None"),
        (dict(max_new_token=3), "unknown option 'max_new_token'; did you mean 'max_new_tokens'?"),
        (dict(show=10**9), "show must be from 1 to 1000, got 1000000000"),
        (dict(attention_mask="x"), "a tensor of whole numbers is needed, got 'x'"),
        (dict(samples=10**18), "give fewer samples"),
    ],
)
def test_listed_cases_of_generate(tiny, options, says):
    with pytest.raises(QuietStarError) as raised:
        tiny.generate("the", **options)
    assert says in str(raised.value)


def test_other_listed_cases(tiny):
    with pytest.raises(
        WrongType, match=r"base must be a loaded causal LM, got 'gpt2'; QuietStar.from_pretrained\('gpt2'\)"
    ):
        QuietStar.from_base("gpt2")
    with pytest.raises(WrongType, match="missing a required argument: 'text' of score"):
        tiny.score()
    with pytest.raises(QuietStarError, match="ask for fewer thoughts"):
        tiny.resample(0, 10**18, of="the fox")
    with pytest.raises(QuietStarError, match="of memory"):
        tiny.score("the fox", samples=10**12)
    assert issubclass(WrongType, TypeError) and issubclass(WrongType, ValueError)


def test_one_control_may_be_given_as_text(tiny):
    assert list(tiny.score("the fox", controls="filler", thought_length=1).controls) == ["filler"]


def test_numbers_of_numpy_and_torch_are_numbers(tiny):
    plain = tiny.generate("the", seed=3, max_new_tokens=2, thought_length=1, temperature=1.0)
    arrays = tiny.generate(
        "the", seed=np.int64(3), max_new_tokens=np.int32(2), thought_length=torch.tensor(1), temperature=np.float32(1)
    )
    assert arrays.text == plain.text


def test_settings_have_a_json_schema():
    from pydantic import TypeAdapter

    schema = TypeAdapter(GenerationSettings).json_schema()
    assert set(schema["properties"]) == set(GenerationSettings.__dataclass_fields__)


def test_a_long_prompt_is_refused_before_it_is_made_into_tokens(tiny, monkeypatch):
    seen = []
    ids = QuietStar._ids
    monkeypatch.setattr(
        QuietStar, "_ids", lambda self, text, special: seen.append(len(text)) or ids(self, text, special)
    )
    text = "word 🙂 " * 8_000_000  # 56 million characters
    for entry in (tiny.generate, tiny.score, lambda t: tiny.resample(0, 1, of=t)):
        with pytest.raises(QuietStarError, match="context is 512 tokens; shorten it"):
            entry(text)
    assert max(seen) < 50_000


def test_a_trace_is_not_changed_by_the_check():
    trace = recorded()
    assert Trace(trace.start, 0, trace.thoughts, trace.tokens, trace.end) == trace
