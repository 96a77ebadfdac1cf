"""Scoring: controls are what they say, results do not depend on how the work is cut, and read well."""

import html
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import trained
from quietstar import QuietStar, QuietStarError
from quietstar.engine import budgets
from quietstar.inference.controls import donor_positions
from tiny import thinking

TEXT = "the quick brown fox thinks"


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_base_numbers_are_those_of_the_plain_model(tiny):
    ids = torch.tensor(tiny.encode(TEXT, raw=True)[0])
    score = tiny.score(ids, thought_length=2)
    with torch.no_grad():
        logprobs = torch.log_softmax(tiny.base(input_ids=ids).logits[0, :-1].float(), -1)
    same(score.base_logprobs[0], logprobs.gather(1, ids[0, 1:, None])[:, 0])
    same(score.entropy[0], -(logprobs.exp() * logprobs).sum(-1))


def test_controls_equal_the_same_thoughts_put_in_by_hand(tiny):
    own = tiny.score(TEXT, thought_length=4, controls=["filler", "donor", "shuffled", "truncated:2", "none", "only"])
    thoughts = own.thoughts
    place = torch.arange(thoughts.shape[1])
    donor = donor_positions(0, torch.zeros_like(place), place)
    by_hand = {
        "filler": torch.full_like(thoughts, tiny.filler_token),
        "donor": torch.cat([torch.full_like(thoughts[:, :1], tiny.filler_token), thoughts[:, donor[1:]]], 1),
        "truncated:2": thoughts[..., :2],
    }
    for name, tokens in by_hand.items():
        assert (own.controls[name].thoughts == tokens).all()
        same(own.controls[name].mixed_logprobs, tiny.score(TEXT, thoughts=tokens).mixed_logprobs)
    assert (own.controls["shuffled"].thoughts.sort(-1).values == thoughts.sort(-1).values).all()
    assert (own.controls["shuffled"].thoughts != thoughts).any()
    same(own.controls["none"].mixed_logprobs, own.base_logprobs)
    assert (own.controls["none"].kl == 0).all() and not own.controls["none"].flipped.any()
    same(own.controls["only"].mixed_logprobs, own.thought_logprobs)
    assert (own.controls["only"].mixing_weight == 1).all()
    same(tiny.score(TEXT, thoughts=thoughts).mixed_logprobs, own.mixed_logprobs)


@pytest.mark.parametrize("control", ["none", "filler", "shuffled", "donor", "truncated:1", "only"])
def test_one_control_alone_equals_it_beside_the_own_thoughts(tiny, control):
    options = dict(thought_length=3, samples=2, seed=5)
    alone = tiny.score(TEXT, control=control, **options)
    assert alone.control == control
    same(alone.mixed_logprobs, tiny.score(TEXT, controls=[control], **options).controls[control].mixed_logprobs)


def test_results_do_not_depend_on_chunks_or_on_the_rest_of_the_batch(tiny, monkeypatch):
    options = dict(thought_length=3, samples=3, seed=2)
    whole = tiny.score([TEXT, "it says"], **options)
    monkeypatch.setattr(budgets, "CPU", replace(budgets.CPU, most_rows=34, logit_rows=1))
    cut = tiny.score([TEXT, "it says"], **options)
    assert (whole.thoughts == cut.thoughts).all()
    same(whole.mixed_logprobs, cut.mixed_logprobs)
    alone = tiny.score(TEXT, **options)
    assert (alone.thoughts == whole.thoughts[:1]).all()
    same(alone.mixed_logprobs, whole.mixed_logprobs[:1])


def test_samples_are_averaged_in_probability(tiny):
    score = tiny.score(TEXT, thought_length=3, samples=4, seed=1)
    each = [tiny.score(TEXT, thoughts=score.thoughts[:, :, p : p + 1]).mixed_logprobs for p in range(4)]
    same(score.mixed_logprobs, torch.stack(each).logsumexp(0) - math.log(4))
    same(score.sample_mixed_logprobs, torch.stack(each, -1))


def test_many_samples_over_a_text_longer_than_a_chunk(tiny):
    text = "x1 y2 z3 " * 12  # over 256 rows
    score = tiny.score(text, thought_length=2, samples=3)
    last = score.thoughts.shape[1] - 1
    same(score.mixed_logprobs[:, last], tiny.score(text, thoughts=score.thoughts).mixed_logprobs[:, last])
    assert score.mixed_logprobs.isfinite().all() and score.mixed_logprobs.numel() * 3 > 256


def test_a_control_named_twice_is_computed_once(tiny):
    score = tiny.score(TEXT, thought_length=2, controls=["own", "filler", "filler"])
    assert set(score.controls) == {"filler"} and score.to_dict()


def test_same_seed_same_thoughts_and_greedy_needs_none(tiny):
    def thoughts(**options):
        return tiny.score(TEXT, thought_length=3, **options).thoughts.tolist()

    assert thoughts(seed=1) == thoughts(seed=2)
    assert thoughts(seed=1, thought_temperature=1.0) == thoughts(seed=1, thought_temperature=1.0)
    assert thoughts(seed=1, thought_temperature=1.0) != thoughts(seed=2, thought_temperature=1.0)


def test_padding_on_the_left_gives_the_same_numbers_shifted(tiny):
    ids = torch.tensor(tiny.encode(TEXT, raw=True)[0])
    plain = tiny.score(ids, thought_length=2, controls=["donor"])
    padded = torch.cat([torch.full((1, 3), 2), ids], 1)
    mask = torch.cat([torch.zeros(1, 3), torch.ones_like(ids)], 1)
    score = tiny.score(padded, attention_mask=mask, thought_length=2, controls=["donor"])
    assert (score.ids[0, 3:] == ids[0]).all()
    for a, b in ((plain, score), (plain.controls["donor"], score.controls["donor"])):
        same(a.mixed_logprobs, b.mixed_logprobs[:, 3:])
        assert b.mixed_logprobs[:, :3].isnan().all()
    assert score.loss() == pytest.approx(plain.loss(), rel=1e-4)
    forced = tiny.score(padded, attention_mask=mask, thoughts=score.thoughts)
    same(forced.mixed_logprobs, score.mixed_logprobs)
    assert plain.to_dict()["sequences"][0]["ids"] == score.to_dict()["sequences"][0]["ids"]


def test_a_fixed_mixing_weight_takes_the_place_of_the_head(tiny):
    same(tiny.score(TEXT, thought_length=2, mixing_weight=0.0).mixed_logprobs,
         tiny.score(TEXT, thought_length=2).base_logprobs)  # fmt: skip
    one = tiny.score(TEXT, thought_length=2, mixing_weight=1.0)
    same(one.mixed_logprobs, one.thought_logprobs)


def test_thought_of_no_tokens_is_two_markers(tiny):
    score = tiny.score(TEXT, thought_length=0)
    assert score.thoughts.shape[-1] == 0 and score.mixed_logprobs.isfinite().all()
    same(score.mixed_logprobs, tiny.score(TEXT, thought_length=3, control="truncated:0").mixed_logprobs)


def test_longer_text_leaves_earlier_numbers_alone(tiny):
    long, short = tiny.score(TEXT, thought_length=2), tiny.score(TEXT[:15], thought_length=2)
    n = short.base_logprobs.shape[1] - 2
    same(long.mixed_logprobs[:, :n], short.mixed_logprobs[:, :n])


def test_results_as_dictionary_table_and_notebook(tiny):
    score = tiny.score("<b>the</b> é日", thought_length=2, controls=["filler"])
    frame = score.to_pandas()
    assert len(frame) == score.base_logprobs.shape[1]
    assert "".join(frame["token"]) + frame["next_token"].iloc[-1] == "<b>the</b> é日"
    assert {"thought", "mixed_filler", "weight", "kl"} <= set(frame)
    assert score.to_dict()["controls"]["filler"]["control"] == "filler"
    shown = score._repr_html_()
    assert "<b>" not in shown and html.escape("<") in shown
    assert score.loss("mixed") == pytest.approx(float(-score.mixed_logprobs.mean()))
    assert thinking("llama")[0].score(torch.tensor([[3, 4, 5]])).to_pandas().shape[0] == 2  # no tokenizer


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(thought_length=-1), "thought_length must be at least 0, got -1"),
        (dict(samples=0), "samples must be at least 1, got 0"),
        (dict(thought_temperature=-0.5), "thought_temperature must be 0"),
        (dict(thought_temperature=math.nan), "thought_temperature must be a finite number, got nan"),
        (dict(samples=2, thought_temperature=0.0), "samples must be 1 when thought_temperature is 0"),
        (dict(control="fill"), "control must be one of"),
        (dict(thoughts=torch.zeros(1, 2, 1, 3, dtype=torch.long)), r"\(1, \d+ or \d+, ..., ...\), got \(1, 2, 1, 3\)"),
        (dict(thoughts=torch.zeros(3, dtype=torch.long)), "must be token ids of shape"),
        (dict(thoughts=torch.full((1, 2, 1, 1), 10**6)), "outside 0 to"),
    ],
)
def test_wrong_values_are_named(tiny, options, says):
    with pytest.raises(QuietStarError, match=says):
        tiny.score(TEXT, **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"), ("   ", "empty"), ([5], "two tokens"), ("x" * 2000, "context is 512"), ([1, 10**9], "token id must be"),
    ],
)  # fmt: skip
def test_texts_that_cannot_be_scored_are_named(tiny, text, says):
    with pytest.raises(QuietStarError, match=says):
        tiny.score(text)


def test_a_mask_with_holes_is_refused(tiny):
    with pytest.raises(QuietStarError, match="holes"):
        tiny.score(torch.tensor([[3, 4, 5, 6]]), attention_mask=torch.tensor([[1, 0, 1, 1]]))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_full_precision(tiny_folder, dtype):
    full = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32"), size=0.1)
    half = trained(QuietStar.from_pretrained(tiny_folder, dtype=dtype), size=0.1)
    assert half.decoder_lm.dtype == getattr(torch, dtype)
    wanted = full.score(TEXT, thought_length=3)
    found = half.score(TEXT, thoughts=wanted.thoughts)
    assert np.abs((found.mixed_logprobs - wanted.mixed_logprobs).numpy()).mean() < (
        0.15 if dtype == "bfloat16" else 0.02
    )
    assert half.generate("the", max_new_tokens=3, thought_length=2)[1].thoughts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_cuda_gives_what_the_cpu_gives(tiny_folder, dtype):
    cpu = trained(QuietStar.from_pretrained(tiny_folder, dtype="float32", device="cpu"), size=0.1)
    gpu = trained(QuietStar.from_pretrained(tiny_folder, dtype=dtype, device="cuda"), size=0.1)
    wanted = cpu.score(TEXT, thought_length=3, samples=2, seed=1)
    found = gpu.score(TEXT, thoughts=wanted.thoughts)
    error = (found.mixed_logprobs.cpu() - wanted.mixed_logprobs).abs().mean()
    assert error < {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.02}[dtype]
    if dtype == "float32":
        assert gpu.generate("the", max_new_tokens=5)[0] == cpu.generate("the", max_new_tokens=5)[0]


def test_numpy_ids_keep_the_padding_side(tiny):
    ids, mask = torch.tensor([[2, 2, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    wanted = tiny.score(ids, attention_mask=mask, thought_length=2)
    found = tiny.score(ids.numpy(), attention_mask=mask.numpy(), thought_length=2)
    torch.testing.assert_close(found.mixed_logprobs, wanted.mixed_logprobs, equal_nan=True)
    assert found.mask[0].tolist() == [False, False, True, True, True]
