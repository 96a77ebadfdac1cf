"""The training step: chunks, subsets and options give what the whole batch, or plain arithmetic, gives."""

import math

import pytest
import torch

from quietstar import QuietStar, QuietStarError
from quietstar.engine.mixing import mix
from quietstar.engine.model import Place
from quietstar.engine.rows import Rows
from quietstar.training.objective import ObjectiveConfig, advantages, objective
from quietstar.training.step import StepConfig, training_loss
from tiny import thinking

B, N, P, T, A = 2, 14, 3, 4, 2
CONSTANTS = ObjectiveConfig(lookahead=A, policy_weight=0.7, policy_temperature=1.5)


def batch(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 97, (B, N), generator=generator)
    mask = torch.ones(B, N, dtype=torch.long)
    mask[1, -3:] = 0
    thoughts = torch.randint(0, 97, (B, N, P, T), generator=generator)
    return ids, mask, thoughts


def gradients(model: QuietStar) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def same(found, wanted, relative=1e-4):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        error = (found[name] - gradient).norm() / gradient.norm().clamp_min(1e-10)
        assert error < relative, f"{name}: relative error {error:.1e}"


def whole(model, ids, mask, thoughts, constants=CONSTANTS):
    base, rows = model.think_ahead(ids, mask.bool(), thoughts, constants.lookahead)
    return objective(base, rows, thoughts, ids, mask, model.weight, model.unembed, (), constants)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_oss", "mistral"])
@pytest.mark.parametrize("recompute", [False, True])
def test_chunks_give_the_loss_and_gradient_of_the_whole_batch(family, recompute):
    model, _ = thinking(family)
    ids, mask, thoughts = batch()
    losses = whole(model, ids, mask, thoughts)
    losses.total.backward()
    wanted = gradients(model)
    config = StepConfig(objective=CONSTANTS, chunk_mb=0.3)
    loss, report = training_loss(model, ids, mask, config, thoughts=thoughts, recompute=recompute)
    (2 * loss).backward()  # as loss scaling does
    assert loss.item() == pytest.approx(losses.total.item(), rel=1e-5)
    assert report.total == pytest.approx(losses.total.item(), rel=1e-5)
    assert report.base == pytest.approx(losses.base.item(), rel=1e-5)
    assert report.mixed == pytest.approx(losses.mixed.mean().item(), rel=1e-5)
    assert report.policy == pytest.approx(losses.policy.item(), rel=1e-4)
    found = gradients(model)
    for name in set(found) - set(wanted):  # a marker that nothing uses gets zeros here, nothing there
        assert not found.pop(name).any()
    same({name: g / 2 for name, g in found.items()}, wanted)


def test_a_sampled_thought_depends_on_its_sequence_and_not_on_the_batch():
    model, _ = thinking("llama")
    ids, mask, _ = batch()
    config = StepConfig(objective=CONSTANTS, samples=P, thought_length=T)
    names = torch.tensor([70, 9])
    both, _ = training_loss(model, ids, mask, config, seed=3, names=names)
    alone = [training_loss(model, ids[b : b + 1], mask[b : b + 1], config, seed=3, names=names[b : b + 1])[1]
             for b in range(B)]  # fmt: skip
    again = [training_loss(model, ids.flip(0)[b : b + 1], mask.flip(0)[b : b + 1], config, seed=3,
                           names=names.flip(0)[b : b + 1])[1] for b in range(B)]  # fmt: skip
    assert [one.mixed for one in alone] == pytest.approx([one.mixed for one in again[::-1]], rel=1e-6)
    other, _ = training_loss(model, ids, mask, config, seed=4, names=names)
    assert other.item() != both.item()


def test_a_random_subset_estimates_the_whole_without_bias():
    model, _ = thinking("llama")
    ids, mask, thoughts = batch()
    mask[:] = 1
    config = StepConfig(objective=CONSTANTS, positions="random", share=0.25)
    _, exact = training_loss(model, ids, mask, StepConfig(objective=CONSTANTS), thoughts=thoughts)
    draws = [training_loss(model, ids, mask, config, thoughts=thoughts, seed=s)[1] for s in range(150)]
    assert {one.rows for one in draws} == {B * round(0.25 * (N - 1)) * P}
    for name in ("mixed", "policy", "total"):
        values = torch.tensor([getattr(one, name) for one in draws])
        error = values.std() / math.sqrt(len(values))
        assert abs(values.mean() - getattr(exact, name)) < 4 * error, name


def test_entropy_places_are_those_where_the_base_knows_least():
    model, _ = thinking("llama")
    ids, mask, thoughts = batch()
    mask[:] = 1
    config = StepConfig(objective=CONSTANTS, positions="entropy", share=0.3)
    _, report = training_loss(model, ids, mask, config, thoughts=thoughts)
    _, hidden = model.read(ids)
    logprobs = torch.log_softmax(model.logits(hidden), -1)
    entropy = -(logprobs.exp() * logprobs).sum(-1)[:, :-1]
    count = round(0.3 * (N - 1))
    chosen = entropy.topk(count).indices
    # the mean over exactly these places, by the slow way
    losses = []
    for b in range(B):
        for i in chosen[b].tolist():
            place = Place(*(torch.full((P,), x) for x in (b, i, 0)))
            prefix, base = model.read(ids)
            rows = model.ahead(prefix, place, thoughts[b, i], ids, A)
            for k in range(A):
                if i + k + 1 < N:
                    g, h = rows[:, T + 1 + k], base[b, i + k].expand(P, -1)
                    mixed = model.logits(mix(h, g, model.weight(h, g)))
                    losses += [(k, -torch.log_softmax(mixed, -1)[:, ids[b, i + k + 1]])]
    wanted = sum(torch.cat([x for k, x in losses if k == j]).mean() for j in range(A)) / A
    assert report.rows == B * count * P
    assert report.mixed == pytest.approx(wanted.item(), rel=1e-5)


def test_donor_reward_compares_with_the_thought_of_an_earlier_place():
    model, _ = thinking("llama")
    ids, mask, _ = batch()
    mask[:] = 1
    same_thought = torch.full((B, N, P, T), 5)  # every place has the same thought: nothing to gain over a donor
    config = StepConfig(objective=CONSTANTS, donor_reward=True)
    _, report = training_loss(model, ids, mask, config, thoughts=same_thought)
    _, plain = training_loss(model, ids, mask, StepConfig(objective=CONSTANTS), thoughts=same_thought)
    model.config.filler_id = 5  # and the first place's rival is filler
    _, with_filler = training_loss(model, ids, mask, config, thoughts=same_thought)
    assert abs(with_filler.reward) < 1e-5
    assert abs(report.reward) < abs(plain.reward)
    assert plain.mixed == pytest.approx(with_filler.mixed, rel=1e-6)
    for seen in (report, plain, with_filler):  # whatever the reward compares with, the gain is told against the base
        assert seen.gain == pytest.approx(seen.base - seen.next, abs=1e-5)


def test_fp16_is_refused():
    model, _ = thinking("llama")
    ids, mask, _ = batch()
    with torch.autocast("cpu", torch.float16), pytest.raises(QuietStarError, match="training in fp16 is not supported"):
        training_loss(model, ids, mask, StepConfig(objective=CONSTANTS))
    with torch.autocast("cpu", torch.bfloat16):
        training_loss(model, ids, mask, StepConfig(objective=CONSTANTS))
    model.half()
    with pytest.raises(QuietStarError, match="use bf16 or fp32"):
        training_loss(model, ids, mask, StepConfig(objective=CONSTANTS))


def test_only_probability_predicts_from_the_thought_alone():
    model, _ = thinking("llama")
    ids, mask, thoughts = batch()
    _, report = training_loss(
        model, ids, mask, StepConfig(objective=CONSTANTS, only_probability=1.0), thoughts=thoughts
    )
    constants = ObjectiveConfig(lookahead=A, policy_weight=0)
    base, rows = model.think_ahead(ids, mask.bool(), thoughts, A)
    one = objective(
        base, rows, thoughts, ids, mask, lambda h, g: torch.ones(h.shape[:-1]), model.unembed, (), constants
    )
    assert report.mixed == pytest.approx(one.mixed.mean().item(), rel=1e-5)
    assert report.mixing_weight == 1.0
    free, some = (
        training_loss(model, ids, mask, StepConfig(objective=CONSTANTS, only_probability=p), thoughts=thoughts)[1]
        for p in (0.0, 0.5)
    )
    share = (some.mixing_weight - free.mixing_weight) / (1 - free.mixing_weight)  # of rows forced to w = 1, about
    assert 0.2 < share < 0.8


def test_hidden_near_text_cannot_reach_the_end_of_a_thought():
    model, _ = thinking("llama")
    ids, _, thoughts = batch()
    place = Place(torch.zeros(P, dtype=torch.long), torch.full((P,), 9), torch.arange(P))

    def run(ids, hide):
        prefix, _ = model.read(ids)
        return model.ahead(prefix, place, thoughts[0, 9], ids, A, hide)

    def gradient(own: int, hide: int) -> torch.Tensor:
        prefix, _ = model.read(ids)
        twin = prefix.over([t.detach().requires_grad_() for t in prefix.tensors()])
        rows = Rows(twin, place.sequence, place.position + 1, blind=(T + 1, hide) if hide else None)
        hidden = rows.extend(model.wrapped(thoughts[0, 9]))
        hidden[:, own].sum().backward()
        return twin.tensors()[1].grad[0].abs().sum((0, 2))  # per prefix token, values of the first layer

    assert not torch.allclose(run(ids, 0)[:, T + 1 :], run(ids, 3)[:, T + 1 :])
    torch.testing.assert_close(run(ids, 0)[:, : T + 1], run(ids, 3)[:, : T + 1])  # the thought itself saw all
    last = gradient(T + 1, 3)
    assert bool((gradient(T + 1, 0)[:10] > 0).all())
    assert bool((last[:10] > 0).all())  # through the thought's own states the near text still speaks
    first_layer_only, _ = thinking("llama")
    first_layer_only.decoder_lm.model.layers = first_layer_only.decoder_lm.model.layers[:1]
    model = first_layer_only
    assert gradient(T + 1, 3)[7:10].abs().sum() == 0  # but not directly: with one layer nothing of it arrives
    assert bool((gradient(T + 1, 3)[:7] > 0).all())


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [[0.0, 0.0, 3.0]]),
        ({"keep_negative": True}, [[-2.0, -1.0, 3.0]]),
        ({"baseline": "leave_one_out"}, [[0.0, 0.0, 4.5]]),
        ({"baseline": "no_thought"}, [[0.0, 1.0, 5.0]]),
        ({"keep_negative": True, "normalise": True}, [[-2 / 7**0.5, -1 / 7**0.5, 3 / 7**0.5]]),
    ],
)
def test_advantages(options, wanted):
    reward = torch.tensor([[0.0, 1.0, 5.0]])
    torch.testing.assert_close(
        advantages(reward, ObjectiveConfig(**options)), torch.tensor(wanted), rtol=1e-3, atol=1e-3
    )


def test_one_sample_has_no_baseline():
    assert advantages(torch.tensor([[2.0], [-1.0]]), ObjectiveConfig()).tolist() == [[2.0], [0.0]]


def test_policy_gradient_raises_what_was_rewarded():
    """One step along the policy's gradient makes a thought with a positive advantage likelier, and only keeps signs."""
    model, _ = thinking("llama")
    ids, mask, thoughts = batch()
    constants = ObjectiveConfig(
        lookahead=A, policy_weight=1.0, policy_temperature=1.0, baseline="no_thought", keep_negative=True
    )

    def policy(weights: ObjectiveConfig) -> float:
        return training_loss(model, ids, mask, StepConfig(objective=weights), thoughts=thoughts)[1].policy

    loss, before = training_loss(model, ids, mask, StepConfig(objective=constants), thoughts=thoughts)
    loss.backward()
    nothing = ObjectiveConfig(lookahead=A, policy_weight=0.0)
    with_policy = gradients(model)
    training_loss(model, ids, mask, StepConfig(objective=nothing), thoughts=thoughts)[0].backward()
    without = gradients(model)
    moved = 0.0
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in with_policy:
                direction = with_policy[name] - without[name]
                p -= 1e-4 * direction
                moved += float(direction.norm())
    assert moved > 0
    assert policy(constants) < before.policy


def test_kl_needs_an_adapter_and_is_zero_at_its_start():
    peft = pytest.importorskip("peft")
    model, _ = thinking("llama")
    ids, mask, thoughts = batch()
    config = StepConfig(objective=ObjectiveConfig(lookahead=A, policy_weight=0, kl_weight=2.0))
    with pytest.raises(QuietStarError, match="adapter"):
        training_loss(model, ids, mask, config, thoughts=thoughts)
    model.base = peft.get_peft_model(
        model.decoder_lm, peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    _, report = training_loss(model, ids, mask, config, thoughts=thoughts)
    assert report.kl == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        for name, p in model.base.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.5)
    loss, report = training_loss(model, ids, mask, config, thoughts=thoughts)
    assert report.kl > 1e-3
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for n, p in model.base.named_parameters() if "lora_" in n)


def test_filler_and_no_thoughts_are_their_own_controls():
    model, _ = thinking("llama")
    ids, mask, _ = batch()
    model.config.filler_id = 11
    _, filler = training_loss(
        model, ids, mask, StepConfig(objective=CONSTANTS, samples=1, filler=True, thought_length=T)
    )
    forced = torch.full((B, N, 1, T), 11)
    _, same_by_hand = training_loss(model, ids, mask, StepConfig(objective=CONSTANTS), thoughts=forced)
    assert filler.total == pytest.approx(same_by_hand.total, rel=1e-6)
    loss, plain = training_loss(model, ids, mask, StepConfig(thoughts=False))
    wanted = -model.score(ids, attention_mask=mask, control="none").base_logprobs
    assert loss.item() == pytest.approx(wanted[wanted.isfinite()].mean().item(), rel=1e-5)
    assert plain.rows == 0
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.head.parameters())


def test_a_floor_keeps_the_weight_up_and_lets_the_gradient_through():
    model, _ = thinking("llama")
    h, g = torch.randn(5, 32), torch.randn(5, 32)
    free = model.weight(h, g)
    model.config.weight_floor = free.median().item()
    floored = model.weight(h, g)
    torch.testing.assert_close(floored, free.clamp_min(model.config.weight_floor))
    floored.sum().backward()
    with_floor = model.head.last.weight.grad.clone()
    model.zero_grad()
    model.config.weight_floor = 0.0
    model.weight(h, g).sum().backward()
    torch.testing.assert_close(with_floor, model.head.last.weight.grad)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"samples": 0}, "samples must be at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"positions": "some"}, "positions must be all, random or entropy; got 'some'"),
        ({"share": 0.0}, "share must be above 0"),
        ({"only_probability": 1.5}, "only_probability must be at most 1, got 1.5"),
    ],
)
def test_wrong_values_are_told(options, says):
    with pytest.raises(QuietStarError, match=says):
        StepConfig(**options)


def test_empty_thoughts_train_the_mixing_of_the_markers_alone():
    model, _ = thinking("llama")
    ids, mask, _ = batch()
    config = StepConfig(objective=CONSTANTS, thought_length=0, samples=P, chunk_mb=0.3)
    loss, report = training_loss(model, ids, mask, config)
    assert report.policy == 0.0 and report.rows == P * ((N - 1) + (N - 4))
    loss.backward()
    wanted = gradients(model)
    assert wanted["markers.start"].any() and wanted["markers.end"].any()
    again, _ = training_loss(model, ids, mask, config, recompute=True)
    again.backward()
    assert loss.item() == pytest.approx(again.item(), rel=1e-6)
    same(gradients(model), wanted)
