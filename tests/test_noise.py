"""Numbers in half precision: predictions in fp32, ties that are no flips, and the noise floor."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from quietstar import QuietStar, QuietStarError
from quietstar.engine import families
from quietstar.engine.exact import linear
from quietstar.engine.mixing import mix
from quietstar.engine.sampling import best, distribution, flipped, nucleus, race, top
from quietstar.events import NoiseFloor, Trace
from tiny import thinking

SOURCE = Path(__file__).parent.parent / "src" / "quietstar"
IDS = [5, 17, 3, 88, 42, 9, 61, 30, 12, 7, 55, 23]
HALF = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


def half(family: str, dtype: torch.dtype = torch.bfloat16) -> QuietStar:
    model, _ = thinking(family)
    model.base.to(dtype)
    return model


# -- fp32 -------------------------------------------------------------------------------------------------------------


@HALF
@pytest.mark.parametrize("family", ["llama", "gemma2", "granite", "opt", "gpt2"])
def test_predictions_are_those_of_double_precision_from_the_same_states(family, dtype):
    model = half(family, dtype)
    layer, config = model.decoder_lm.get_output_embeddings(), families.text_config(model.decoder_lm)

    def told(hidden):
        logits = hidden.double() @ layer.weight.double().t()
        if layer.bias is not None:
            logits = logits + layer.bias.double()
        logits = logits / (getattr(config, "logits_scaling", None) or 1.0)
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = torch.tanh(logits / cap) * cap
        return torch.log_softmax(logits, -1)

    score = model.score(IDS, thought_length=3)
    prefix, base = model.read(torch.tensor([IDS]))
    for i in range(len(IDS) - 1):
        place = torch.tensor([0]), torch.tensor([i])
        from quietstar.engine.model import Place

        thought = model.think(prefix, Place(*place, torch.tensor([0])), length=3, tokens=score.thoughts[0, i])
        w, mixed, only = model.predict(base[:, i], thought.hidden)
        b, g = base[:, i].double(), thought.hidden.double()
        want = told(b), told((1 - w.double()) * b + w.double() * g), told(g)
        torch.testing.assert_close(mixed.double(), want[1], atol=5e-5, rtol=0)
        torch.testing.assert_close(only.double(), want[2], atol=5e-5, rtol=0)
        kl = (want[1].exp() * (want[1] - want[0])).sum()
        got = (mixed.double().exp() * (mixed.double() - model.logprobs(model.products(base[:, i])).double())).sum()
        torch.testing.assert_close(got, kl, atol=1e-5, rtol=1e-3)


@HALF
def test_the_gradient_is_that_of_an_ordinary_layer(dtype):
    torch.manual_seed(0)
    weight = torch.randn(2500, 16).to(dtype).requires_grad_()
    hidden = torch.randn(3, 2, 16, requires_grad=True)
    bias = torch.randn(2500).to(dtype).requires_grad_()
    pull = torch.randn(3, 2, 2500)
    found = linear(hidden, weight, bias)
    assert found.dtype == torch.float32
    want = torch.nn.functional.linear(hidden.double(), weight.double(), bias.double())
    torch.testing.assert_close(found.double(), want, atol=1e-4, rtol=1e-5)
    got = torch.autograd.grad((found * pull).sum(), [hidden, weight, bias])
    right = torch.autograd.grad((want * pull).sum(), [hidden, weight, bias])
    for one, other in zip(got, right, strict=True):
        torch.testing.assert_close(one.double(), other.double(), atol=0.02 * float(other.abs().max()), rtol=0.02)


def test_a_changed_output_layer_is_seen_at_once():
    """Nothing is kept of the weights: edits in place, behind autograd's back, and another layer all show."""
    model = half("llama")
    hidden = torch.randn(2, 32).bfloat16()
    layer = model.decoder_lm.get_output_embeddings()
    for edit in (
        lambda: layer.weight.data[3].add_(1),
        lambda: layer.weight.data.mul_(2),
        lambda: model.decoder_lm.set_output_embeddings(nn.Linear(32, 97, bias=False, dtype=torch.bfloat16)),
    ):
        edit()
        now = model.decoder_lm.get_output_embeddings()
        want = hidden.float() @ now.weight.detach().float().t()
        torch.testing.assert_close(model.unembed(hidden).detach(), want)
    assert not [name for name in model.state_dict() if "fp32" in name or "exact" in name]


@pytest.mark.parametrize("how", ["lora", "modules_to_save"])
def test_a_wrapped_output_layer_counts(how):
    peft = pytest.importorskip("peft")
    model = half("llama")
    options = {"target_modules": ["lm_head"]} if how == "lora" else {
        "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]
    }  # fmt: skip
    base = peft.get_peft_model(copy.deepcopy(model.base), peft.LoraConfig(r=4, init_lora_weights=False, **options))
    adapted = QuietStar.from_base(base)
    layer = adapted.decoder_lm.get_output_embeddings()
    hidden = torch.randn(2, 32).bfloat16()
    plain = hidden.float() @ model.decoder_lm.get_output_embeddings().weight.detach().float().t()
    if how == "lora":
        a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
        want = plain + layer.scaling["default"] * (hidden.float() @ a.t()) @ b.t()
    else:
        with torch.no_grad():
            layer.modules_to_save["default"].weight.mul_(3)
        want = hidden.float() @ layer.modules_to_save["default"].weight.float().t()
    found = adapted.unembed(hidden)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.detach(), want.detach(), atol=2e-4, rtol=1e-4)
    found.sum().backward()
    assert all(p.grad is not None for n, p in layer.named_parameters() if p.requires_grad)
    with base.disable_adapter():
        torch.testing.assert_close(adapted.unembed(hidden).detach(), plain, atol=1e-4, rtol=1e-4)


def test_a_quantized_output_layer_computes_as_it_does_and_states_are_mixed_before_it():
    class Eight(nn.Module):
        def __init__(self, weight):
            super().__init__()
            self.scale = nn.Parameter(weight.abs().amax(1, keepdim=True) / 127, requires_grad=False)
            self.register_buffer("weight", (weight / self.scale).round().to(torch.int8))

        def forward(self, x):
            assert x.dtype == torch.bfloat16
            return x @ (self.weight.to(x.dtype) * self.scale.to(x.dtype)).t()

    model = half("llama")
    base = model.decoder_lm
    with torch.no_grad():
        base.lm_head = Eight(base.lm_head.weight.float())
    assert families.quantized(base)
    h, g = torch.randn(2, 3, 32).bfloat16()
    w, mixed, only = model.predict(h, g)
    want = torch.log_softmax(base.lm_head(mix(h, g, w).bfloat16()).float(), -1)
    torch.testing.assert_close(mixed, want)
    torch.testing.assert_close(only, torch.log_softmax(base.lm_head(g).float(), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_thought_without_weight_changes_nothing_at_all(dtype):
    model = half("llama", dtype)
    score = model.score(IDS, thought_length=2, mixing_weight=0.0)
    assert score.kl.abs().max() == 0 and torch.equal(score.base_logprobs, score.mixed_logprobs)
    only = model.score(IDS, thought_length=2, control="only")
    assert torch.equal(only.mixed_logprobs, only.thought_logprobs)


# -- ties -------------------------------------------------------------------------------------------------------------


def test_the_lowest_of_equals_is_chosen_everywhere():
    values = torch.zeros(3, 5000)
    values[0, [17, 4000]] = 2.0
    values[1, 4999] = values[1, 1234] = 1.0
    assert best(values).tolist() == [17, 1234, 0]
    assert top(values, 4)[1].tolist() == [[17, 4000, 0, 1], [1234, 4999, 0, 1], [0, 1, 2, 3]]
    assert top(values[:, :2], 9)[1].tolist() == [[0, 1]] * 3
    assert top(torch.tensor([[-torch.inf, 1.0, -torch.inf]]), 3)[1].tolist() == [[1, 0, 2]]
    assert race(torch.tensor([[0.25, 0.5, 0.25]]), torch.tensor([[1.0, 2.0, 1.0]])).tolist() == [0]
    kept = nucleus(torch.full((1, 64), 1 / 64), 0.25)
    assert kept.nonzero()[:, 1].tolist() == list(range(16))
    assert distribution(torch.zeros(1, 64), 0.5, 1 / 64).nonzero()[:, 1].tolist() == [0]


def test_a_tie_is_no_flip_and_neither_is_a_change_within_the_floor():
    base = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]).log()
    mixed = torch.tensor([[0.3, 0.5, 0.2], [0.3, 0.5, 0.2], [0.4, 0.4, 0.2], [0.5, 0.3, 0.2]]).log()
    assert flipped(base, mixed).tolist() == [True, False, False, False]
    floors = [0.0, 0.1, 0.4, 0.52, 1.0]
    found = [int(flipped(base, mixed, floor).sum()) for floor in floors]
    assert found == sorted(found, reverse=True) and found[0] == 1 and found[-1] == 0


def test_nobody_else_decides_between_equals():
    rule = re.compile(r"\b(argmax|argmin|topk)\b")
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.name != "sampling.py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if rule.search(re.sub(r'"[^"]*"', "", line.split("#")[0])) and not _is_prose(path, number)
    ]
    assert not found, "use sampling.best and sampling.top"


def _is_prose(path: Path, number: int) -> bool:
    """Whether a line of a file lies inside a string."""
    import ast

    tree = ast.parse(path.read_text(encoding="utf-8"))
    return any(
        isinstance(node, ast.Constant) and isinstance(node.value, str) and node.lineno <= number <= node.end_lineno
        for node in ast.walk(tree)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_equal_words_give_one_choice_and_no_flip_however_they_are_asked_for(dtype):
    """Every row of the vocabulary stands there twice: each prediction is a tie of its two best tokens."""
    model = half("llama", dtype)
    head, embeddings = model.decoder_lm.get_output_embeddings(), model.decoder_lm.get_input_embeddings()
    with torch.no_grad():
        for layer in (head, embeddings):
            layer.weight[48:96] = layer.weight[:48]
            layer.weight[96] = 0
    options = dict(thought_length=2, max_new_tokens=8, stop_ids=[], mixing_weight=0.05)
    runs = [model.generate([IDS], speculate=k, **options)[0].trace for k in (0, 4, "auto")]
    runs += [one.trace for one in model.generate([IDS, IDS[:7]], **options)][:1]
    assert len({tuple(trace.ids) for trace in runs}) == 1
    for trace in runs:
        said = trace.ids[len(IDS) :]
        assert all(token < 48 for token in said)
        for thought, token in zip(trace.thoughts, said, strict=True):
            assert thought.mixed[0].id == token and thought.mixed[0].prob == thought.mixed[1].prob
            assert thought.mixed[1].id == token + 48
            assert all(token < 48 for token in thought.samples[0].ids)
            if thought.base[0].id == thought.mixed[0].id:
                assert not thought.flipped
    trace = runs[0]
    score = model.score(trace.ids, thought_length=2, mixing_weight=0.05)
    resampled = model.resample(len(IDS) - 1, 1, of=trace, thought_length=2, mixing_weight=0.05, thought_temperature=0.0)
    assert bool(resampled.flipped[0]) == trace.thoughts[0].flipped == bool(score.flipped[0, len(IDS) - 1])
    assert resampled.mixed[0][0].id == trace.ids[len(IDS)]
    still = model.score(trace.ids, thought_length=2, mixing_weight=1e-9)
    assert not still.flipped.any()


# -- the noise floor --------------------------------------------------------------------------------------------------


def test_the_floor_is_told_once_before_the_first_thought_and_only_with_thoughts(tiny):
    options = dict(raw=True, max_new_tokens=6, thought_length=2, stop_ids=[])
    for more in ({}, {"trigger": "every(3)"}, {"speculate": 0}):
        kinds = [e.event for e in tiny.stream(["the quick", "fox"], **options, **more)]
        assert kinds.count("noise") == 1 and kinds[kinds.index("noise") + 1] == "thought"
        assert "thought" not in kinds[: kinds.index("noise")]
    assert "noise" not in [e.event for e in tiny.stream("the", trigger="never", **options)]
    assert "noise" not in [e.event for e in tiny.stream("the", control="none", **options)]
    phases = [e.event for e in tiny.reason_then_answer("the", max_new_tokens=2, answer_tokens=1, thought_length=1)]
    assert phases.count("noise") == phases.count("start") == 2


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "opt", "gpt_oss"])
def test_the_floor_is_rounding_and_no_more(family):
    model, _ = thinking(family)
    fine = model.score(IDS, thought_length=3).noise
    assert 0 <= fine.gain < 1e-3
    assert fine.places == 8 and 0 <= fine.kl < 2e-4 and 0 < fine.logprob < 1e-3 and fine.weight < 1e-3
    coarse = half(family).score(IDS, thought_length=3).noise
    assert coarse.logprob > 10 * fine.logprob and coarse.kl > fine.kl and coarse.weight > fine.weight


@pytest.mark.parametrize("length", [1, 2, 3, 5, 20])
@pytest.mark.parametrize("thought_length", [0, 1, 4])
def test_a_text_of_any_length_has_a_floor(length, thought_length):
    model = half("llama")
    ids = (IDS * 2)[:length]
    trace = model.generate([ids], max_new_tokens=1, thought_length=thought_length, stop_ids=[])[0].trace
    assert 1 <= trace.noise.places <= 8 and 0 <= trace.noise.kl < 1 and 0 <= trace.noise.logprob < 1
    assert model.resample(length - 1, 2, of=ids, thought_length=thought_length).noise.places == trace.noise.places


def test_the_floor_does_not_depend_on_how_a_run_is_computed():
    for dtype in (torch.float32, torch.bfloat16):
        model = half("llama", dtype)
        options = dict(thought_length=3, max_new_tokens=9, stop_ids=[])
        for more in ({}, {"temperature": 1.0, "seed": 3}, {"samples": 3}, {"trigger": "every(4)"}):
            floors = [model.generate([IDS], speculate=k, **options, **more)[0].trace.noise for k in (0, 0, 5, "auto")]
            assert floors[0] is not None and all(floor == floors[0] for floor in floors)


def test_scores_and_resampled_thoughts_carry_their_floor(tiny):
    score = tiny.score("the quick brown fox", thought_length=2, controls=["none", "only"])
    assert isinstance(score.noise, NoiseFloor) and score.controls["none"].noise is None
    assert score.controls["only"].noise.weight == 0
    assert json.loads(json.dumps(score.to_dict()))["noise"] == score.noise.to_dict()
    found = tiny.resample(3, 2, of="the quick brown fox", thought_length=2)
    assert json.loads(json.dumps(found.to_dict()))["noise"] == found.noise.to_dict()


def test_no_thought_below_the_floor_is_a_flip():
    model = half("llama")
    trace = model.generate([IDS], max_new_tokens=40, thought_length=2, stop_ids=[], mixing_weight=0.02)[0].trace
    score = model.score(trace.ids, thought_length=2, mixing_weight=0.02)
    for thought in trace.thoughts:
        if thought.flipped:
            was, now = thought.base[0], thought.mixed[0]
            before = {c.id: c.prob for c in thought.base}
            assert was.id != now.id and before[was.id] > before.get(now.id, 0)
    ranked = trace.most_influential()
    assert [trace.above_noise(t) for t in ranked] == sorted((trace.above_noise(t) for t in ranked), reverse=True)
    assert score.flipped.sum() <= (score.kl > 0).sum()


# -- what no prediction can be made from ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["layer", "output", "head", "word"])
def test_numbers_that_are_not_finite_are_an_error(bad, where):
    model, _ = thinking("llama")
    weights = {
        "layer": lambda: model.decoder_lm.model.layers[1].mlp.down_proj.weight.data[0],
        "output": lambda: model.decoder_lm.get_output_embeddings().weight.data[7],
        "head": lambda: model.head.layers[0].weight.data[0],
        "word": lambda: model.decoder_lm.get_input_embeddings().weight.data[IDS[4]],
    }
    weights[where]().fill_(bad)
    calls = [
        lambda: model.generate([IDS], max_new_tokens=2, thought_length=2, stop_ids=[]),
        lambda: model.score(IDS, thought_length=2),
        lambda: model.resample(5, 2, of=IDS, thought_length=2),
    ]
    for call in calls:
        with pytest.raises(QuietStarError, match="not finite") as told:
            call()
        assert "\n" not in str(told.value)
    if where == "word":
        with pytest.raises(QuietStarError, match="at position 4"):
            model.score(IDS, thought_length=2)


def test_banned_tokens_are_no_error():
    model, _ = thinking("llama")
    model.config.marker_ids = [3, 4]
    trace = model.generate([IDS], max_new_tokens=2, thought_length=2, stop_ids=[])[0].trace
    assert isinstance(trace, Trace) and not {3, 4} & set(trace.ids[len(IDS) :])


# -- devices without doubles ------------------------------------------------------------------------------------------


def test_no_double_is_made_on_a_device():
    """Every tensor that leaves the CPU, and every one made of such, has at most four bytes a number."""
    wide = re.compile(r"\.double\(|dtype=torch\.float64|\.to\(torch\.float64")
    for path in sorted(SOURCE.rglob("*.py")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            if wide.search(code) and "np." not in code and "pa." not in code and '"""' not in code:
                assert re.search(r"\.cpu\(\)", code) or _is_prose(path, number), f"{path.name}:{number}: {code.strip()}"


# -- the default model ------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_the_question_of_the_readme_has_no_flip_in_either_precision():
    question, found = "Why is the sky blue?", {}
    for dtype in ("float32", "bfloat16"):
        model = QuietStar.from_pretrained("default", dtype=dtype)
        found[dtype] = model.generate(question, max_new_tokens=24).trace
    mean = {name: sum(t.kl for t in trace.thoughts) / len(trace.thoughts) for name, trace in found.items()}
    assert abs(mean["bfloat16"] - mean["float32"]) < 3 * found["bfloat16"].noise.kl
    assert not any(t.flipped for trace in found.values() for t in trace.thoughts)
    assert found["float32"].noise.kl < 1e-5 < found["bfloat16"].noise.kl
