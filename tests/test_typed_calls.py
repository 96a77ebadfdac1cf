"""Type checkers know every option of our methods, and short reprs, summaries and completion tell what one wants to know."""

import re
import typing
from pathlib import Path

import pytest
import torch
from typing_extensions import get_type_hints

from quietstar import GenerationSettings, QuietStar, options
from quietstar.inference import resampling, scoring
from quietstar.inference.controls import Control
from quietstar.inference.triggers import Trigger

ROOT = Path(__file__).parents[1]
TYPED = ROOT / "tests" / "typed_calls.py"


def test_the_typed_options_are_the_fields_of_the_settings():
    assert list(options.GenerationOptions.__annotations__) == list(GenerationSettings.__dataclass_fields__)
    assert {name: field.default for name, field in GenerationSettings.__dataclass_fields__.items()} == vars(
        GenerationSettings()
    )


def test_the_typed_options_of_stream_and_resample_are_what_these_take():
    import inspect

    stream = set(inspect.signature(QuietStar.stream).parameters) - {"self", "prompt", "options"}
    assert set(options.StreamOptions.__annotations__) == stream | set(GenerationSettings.__dataclass_fields__)
    resample = set(inspect.signature(resampling.resample_ids).parameters)
    assert set(options.ResampleOptions.__annotations__) == resample - {
        "model",
        "ids",
        "position",
        "n",
        "prefix",
        "hidden",
    }


@pytest.mark.parametrize("typed", [options.GenerationOptions, options.StreamOptions, options.ResampleOptions])
def test_the_types_of_options_are_known_at_run_time(typed):
    assert all(hint is not typing.Any for hint in get_type_hints(typed).values())
    assert Trigger in typing.get_args(get_type_hints(options.GenerationOptions)["trigger"])
    assert Control in typing.get_args(get_type_hints(typed)["control"])


@pytest.mark.slow
def test_mypy_finds_wrong_calls_and_knows_results(tmp_path):
    api = pytest.importorskip("mypy.api")
    expected = {
        number: said.split(" | ")
        for number, line in enumerate(TYPED.read_text().splitlines(), 1)
        if (said := line.partition("# E: ")[2])
    }
    out, err, _ = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path), "--no-error-summary", str(TYPED)]
    )
    assert not err
    found = {}
    for line in out.splitlines():
        if match := re.match(r".*typed_calls\.py:(\d+): error: (.*)", line):
            found.setdefault(int(match[1]), []).append(match[2])
    assert set(found) == set(expected), out
    for number, says in expected.items():
        for part in says:
            assert any(part in one for one in found[number]), (number, part, found[number])


def test_reprs_are_short(tiny):
    generation = tiny.generate("the", max_new_tokens=3, thought_length=2)
    score = tiny.score("the quick fox", thought_length=2, controls="filler")
    resampled = tiny.resample(0, 3, of="the fox", thought_length=2)
    assert repr(generation.trace) in repr(generation) and "3 tokens, 3 thoughts" in repr(generation)
    assert repr(resampled).startswith("Resampled(position 0, control own: 3 thoughts of 2 tokens, w ")
    assert repr(score).startswith(f"Score({int(score.real.sum())} targets, loss {score.loss('base'):.4f} without")
    assert "float32 on cpu, thought_length=8, trained thoughts" in repr(tiny)
    for value in (generation, generation.trace, score, resampled, tiny):
        assert len(repr(value)) < 300 and "\n" not in repr(value)


def test_the_summary_of_a_score_is_its_means(tiny):
    score = tiny.score(["the quick fox", "then it says"], thought_length=2, controls=["filler", "none"])
    summary = score.summary()
    real = score.real
    assert summary.targets == int(real.sum()) and summary.sequences == 2
    assert summary.gain == score.loss("base") - score.loss("mixed")
    assert summary.controls == {"filler": score.controls["filler"].loss(), "none": score.controls["none"].loss()}
    assert summary.kl == float(score.kl[real].mean()) and summary.weight == float(score.mixing_weight[real].mean())
    assert summary.flips == int((score.flipped & real).sum())
    text, page = str(summary), summary._repr_html_()
    assert f"gain                      {summary.gain:+.4f} nats" in text and "noise floor" in text
    assert page.count("<tr>") == len(text.splitlines()) and "KL(mixed || base)" in page
    assert scoring.ScoreSummary is type(summary)


def test_a_score_without_targets_has_a_summary(tiny):
    ids = torch.tensor([[5, 6], [7, 8]])
    score = tiny.score(ids, thought_length=1)
    score.mask[:] = False
    assert "nan" in str(score.summary()) and "0 targets" in repr(score)


def test_completion_shows_our_methods_and_hides_no_private_ones(tiny):
    shown = dir(tiny)
    public = [name for name in shown if not name.startswith("_")]
    assert {
        "generate",
        "score",
        "stream",
        "resample",
        "save_pretrained",
        "from_pretrained",
        "base",
        "tokenizer",
    } <= set(public)
    assert "register_full_backward_pre_hook" not in public and len(public) < 60
    assert "__class__" in shown and "_parameters" in shown and callable(tiny.register_full_backward_pre_hook)
