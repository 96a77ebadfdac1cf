"""A changed thought is compared with its original computed beside it, and what computed either is told."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import trained
from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError
from quietstar.evals import thoughts as measuring
from quietstar.events import Choice
from quietstar.record import computed
from quietstar.record.compared import Compared, changed
from quietstar.record.store import Store
from served import serving

OPTIONS = dict(max_new_tokens=8, thought_length=3, stop_ids=[])


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


@pytest.fixture
def half(tiny_folder) -> QuietStar:
    return trained(QuietStar.from_pretrained(tiny_folder, dtype="bfloat16"))


@pytest.fixture
def whole(half) -> QuietStar:
    """The very weights of `half`, computing in fp32."""
    return copy.deepcopy(half).float()


def tried(served, run, position, **wanted):
    frames = served.frames(f"/api/runs/{run}/thoughts/{position}/change", wanted)
    assert frames[-1][0] == "tries", frames
    return frames[-1][1]["tries"]


def followed(served, run, number, **wanted):
    return served.frames(f"/api/runs/{run}/interventions/{number}/follow", wanted)[-1][1]


def test_the_own_thought_put_back_differs_from_its_original_in_nothing(store, half):
    """In bf16 too, where the recorded number was made in another batch."""
    made = half.generate("the quick fox", **OPTIONS).trace
    run = store.add(made)
    with serving(store, half) as served:
        for own in made.thoughts:
            (one,) = tried(served, run, own.position, kind="edited", text=own.samples[0].text)
            compared = Compared.of(one["settings"])
            assert [[c.id, c.text, c.prob] for c in compared.mixed] == [
                [c["id"], c["text"], c["prob"]] for c in one["mixed"]
            ]
            assert compared.kl == one["kl"] and not compared.changed and compared.recorded is None


@pytest.mark.parametrize("kind", ["filler", "shuffled", "donor", "truncated:0", "none", "resampled", "edited"])
def test_the_original_is_computed_beside_every_kind_of_change(store, tiny, kind):
    made = tiny.generate("the quick fox", **OPTIONS).trace
    run = store.add(made)
    own = made.thoughts[4]
    made.thoughts[4].mixed = [Choice(3, "nonsense", 1.0)]  # what a record says is no part of it
    wrong = store.add(made)
    with serving(store, tiny) as served:
        for name in (run, wrong):
            for one in tried(served, name, own.position, kind=kind, seed=1, n=3, text="fox"):
                compared = Compared.of(one["settings"])
                again = tiny.resample(own.position, 1, of=made.ids, thoughts=torch.tensor([own.samples[0].ids]), show=5)
                assert [c.id for c in compared.mixed][:2] == [c.id for c in again.mixed[0]][:2]
                assert compared.kl == pytest.approx(float(again.kl[0]), abs=1e-5)
                assert compared.computed["dtype"] == "float32" and "torch" in compared.computed


def test_a_run_of_another_precision_is_computed_anew_and_that_is_said(store, half, whole, run):
    made = half.generate("the quick fox", **OPTIONS).trace
    name = store.add(made)
    own = made.thoughts[2]
    with serving(store, whole) as served:
        (one,) = tried(served, name, own.position, kind="filler")
        told = followed(served, name, one["number"])
    compared = Compared.of(one["settings"])
    assert compared.computed["dtype"] == "float32" and compared.recorded["dtype"] == "bfloat16"
    first = whole.generate([made.ids[: own.position + 1]], thoughts=torch.tensor(own.samples[0].ids).view(1, 1, 1, -1),
                          **OPTIONS | {"max_new_tokens": 1})[0].trace  # fmt: skip
    assert told["original"].startswith(first.text) and told["text"] == store.interventions(name)[0].continuation
    assert store.interventions(name)[0].settings["original"] == told["original"]
    assert "recomputed in float32 on cpu" in run("show", name, "--db", str(store.path))[1]


@pytest.mark.parametrize("other", [{"torch": "1.0"}, {"transformers": "4.0"}])
def test_another_version_is_said_too_and_the_original_text_computed_anew(store, tiny, other):
    made = tiny.generate("the quick fox", **OPTIONS).trace
    made.start.versions |= other
    name = store.add(made)
    with serving(store, tiny) as served:
        (one,) = tried(served, name, made.thoughts[2].position, kind="edited", text=made.thoughts[2].samples[0].text)
        told = followed(served, name, one["number"])
        frames = served.frames(f"/api/runs/{name}/measure", {})
    (key,) = other
    assert Compared.of(one["settings"]).recorded[key] == other[key] and told["original"] == told["text"]
    assert f"{key} {other[key]}" in frames[-1][1]["warning"]


def test_a_run_of_another_precision_or_device_is_not_measured(store, half, whole):
    made = half.generate("the quick fox", **OPTIONS).trace
    with pytest.raises(QuietStarError, match=r"computed in bfloat16 on cpu.*--dtype bfloat16 --device cpu"):
        measuring.measure(whole, made)
    made.start.dtype, made.start.device = "float32", "cuda:0"
    with pytest.raises(QuietStarError, match="on cuda:0"):
        measuring.measure(whole, made)


def test_weights_that_another_precision_rounds_are_other_weights_and_that_is_said(half, tiny):
    made = half.generate("the quick fox", **OPTIONS).trace
    with pytest.raises(QuietStarError, match="weights were in bfloat16, here they are in float32; .* --dtype bfloat16"):
        measuring.measure(tiny, made)


def test_what_computes_here_is_told_as_in_a_run(tiny):
    start = tiny.generate("the", max_new_tokens=1, thought_length=1).trace.start
    assert measuring.here(tiny) == computed.by(start) and not computed.different(
        [measuring.here(tiny), computed.by(start)]
    )
    assert computed.in_words(computed.by(start)).startswith("float32 on cpu, quietstar ")


def choices(*pairs: tuple[int, float]) -> list[Choice]:
    return [Choice(token, f"t{token}", prob) for token, prob in pairs]


def test_a_swap_of_two_words_that_are_nearly_alike_is_no_change():
    tie, swapped = choices((1, 0.3001), (2, 0.3)), choices((2, 0.3001), (1, 0.3))
    assert changed(tie, swapped, 0.0) and not changed(tie, swapped, 0.001)
    assert not changed(tie, tie, 0.0) and not changed([], tie, 0.0) and not changed(tie, [], 0.0)
    clear, other = choices((1, 0.6), (3, 0.2)), choices((2, 0.6), (3, 0.2))  # the other first is not even listed
    assert changed(clear, other, 0.5) and not changed(clear, other, 2.0)
    assert not changed(tie, other, 0.5), "a tie of two that one side then prefers is no change of the likeliest"


@fuzz(100)
@given(st.recursive(st.none() | st.integers() | st.floats() | st.text(max_size=3),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["mixed", "kl", "floor", "changed", "computed", "recorded"]), inner),
                    max_leaves=12))  # fmt: skip
def test_damaged_settings_have_no_comparison(value):
    Compared.of({"compared": value})


def test_a_comparison_survives_the_record():
    import json

    one = Compared(choices((1, 0.5)), 0.25, {"kl": 0.5}, True, {"dtype": "float32"}, {"dtype": "bfloat16"})
    assert Compared.of(json.loads(json.dumps(one.to_settings()))) == one
    assert Compared.of({}) is None
