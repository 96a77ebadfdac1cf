"""Randomness keyed by place, and draws that follow their distribution."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quietstar.engine.sampling import (
    choose,
    clocks,
    distribution,
    entropy,
    kl_divergence,
    nucleus,
    pick,
    race,
    uniforms,
)


def test_uniforms_depend_on_the_place_alone():
    whole = uniforms(7, 0, np.arange(50)[:, None], np.arange(6))
    assert (uniforms(7, 0, np.arange(20, 30)[:, None], np.arange(6)) == whole[20:30]).all()
    for other in (
        uniforms(8, 0, np.arange(50)[:, None], np.arange(6)),
        uniforms(7, 1, np.arange(50)[:, None], np.arange(6)),
    ):
        assert not np.isclose(other, whole).any()


@pytest.mark.parametrize(
    "keys", [(np.arange(20000),), (np.arange(200)[:, None], np.arange(100)), (0, np.arange(20000))]
)
def test_uniforms_are_uniform_and_uncorrelated(keys):
    values = uniforms(3, 2, *keys).ravel()
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03
    assert values.min() >= 0 and values.max() < 1


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**31), st.floats(0, 1, exclude_max=True))
def test_pick_is_the_inverse_of_the_running_sum(vocabulary, seed, u):
    weights = torch.rand(3, vocabulary, generator=torch.Generator().manual_seed(seed)) ** 4
    weights[:, : vocabulary // 3] = 0
    probabilities = weights / weights.sum(-1, keepdim=True)
    found = pick(probabilities, torch.full((3,), u, dtype=torch.float64))
    running = probabilities.double().cumsum(-1) / probabilities.double().sum(-1, keepdim=True)
    for row in range(3):
        token = int(found[row])
        assert probabilities[row, token] > 0
        before = float(running[row, token - 1]) if token else 0.0
        assert before - 1e-6 <= u <= float(running[row, token]) + 1e-6


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, 0.5]]).expand(30000, -1)
    uniform = torch.from_numpy(uniforms(0, 0, np.arange(30000)))
    for temperature, top_p in ((1.0, 1.0), (0.7, 1.0), (1.0, 0.8)):
        tokens, logprobs = choose(logits, uniform, temperature, top_p)
        wanted = distribution(logits[:1].double(), temperature, top_p)[0].numpy()
        counts = np.bincount(tokens.numpy(), minlength=5)
        assert (counts[wanted == 0] == 0).all()
        kept = wanted > 0
        assert stats.chisquare(counts[kept], wanted[kept] / wanted[kept].sum() * 30000).pvalue > 1e-3
        torch.testing.assert_close(logprobs, torch.log_softmax(logits, -1).gather(1, tokens[:, None])[:, 0])


def test_greedy_takes_the_best_and_tells_its_probability():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    token, logprob = choose(logits, None, 0.0)
    assert token.tolist() == [1]
    torch.testing.assert_close(logprob, torch.log_softmax(logits, -1)[:, 1])


def test_nucleus_keeps_the_smallest_set_that_reaches_the_mass():
    kept = nucleus(torch.tensor([[0.5, 0.3, 0.15, 0.05]]), 0.7)
    torch.testing.assert_close(kept, torch.tensor([[0.625, 0.375, 0.0, 0.0]]))
    assert nucleus(torch.tensor([[0.6, 0.4]]), 1e-9).tolist() == [[1.0, 0.0]]


def test_entropy_and_divergence_of_known_distributions():
    fair = torch.tensor([0.5, 0.5, 0.0]).log()
    sure = torch.tensor([1.0, 0.0, 0.0]).log()
    assert entropy(fair).item() == pytest.approx(np.log(2))
    assert entropy(sure).item() == 0
    assert kl_divergence(sure, fair).item() == pytest.approx(np.log(2))
    assert kl_divergence(fair, fair).item() == 0
    assert kl_divergence(torch.tensor([torch.nan, 0.0]), torch.tensor([0.0, 0.0])).isnan()


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 5e-324])
def test_the_coldest_draws_are_greedy(temperature):
    logits = torch.tensor([[0.0, 1.0, 3.0, -torch.inf, 2.5]])
    assert distribution(logits, temperature).tolist() == [[0.0, 0.0, 1.0, 0.0, 0.0]]
    assert choose(logits, torch.tensor([0.999]), temperature)[0].tolist() == [2]


def agreement(p: torch.Tensor, q: torch.Tensor) -> tuple[float, float, float]:
    """How often two draws agree: at best (min(1, p / q) accepted), raced, and by inverse CDF with one uniform; exact."""
    best = torch.minimum(p, q).sum()
    k = (p > 0) & (q > 0)  # the others are never drawn by both
    raced = (1 / torch.maximum(p[None] / p[k, None], q[None] / q[k, None]).sum(1)).sum()
    upper = torch.minimum(p.cumsum(0), q.cumsum(0))
    lower = torch.maximum(p.cumsum(0) - p, q.cumsum(0) - q)
    return float(best), float(raced), float((upper - lower).clamp_min(0).sum())


def test_races_follow_their_distribution_and_agree_as_often_as_promised():
    runs = 20_000
    place = np.arange(runs)
    times = torch.from_numpy(clocks(5, 1, np.zeros(runs, dtype=int), place, vocabulary=6))
    assert (torch.from_numpy(clocks(5, 1, [0, 0], [7, 9], vocabulary=6)) == times[[7, 9]]).all()
    p = torch.tensor([0.4, 0.25, 0.0, 0.2, 0.1, 0.05], dtype=torch.float64)
    q = torch.tensor([0.3, 0.3, 0.1, 0.2, 0.05, 0.05], dtype=torch.float64)
    drawn = [race(x.expand(runs, -1), times) for x in (p, q)]
    for tokens, wanted in zip(drawn, (p, q), strict=True):
        counts = np.bincount(tokens.numpy(), minlength=6)
        assert counts[wanted == 0].sum() == 0
        assert stats.chisquare(counts[wanted > 0], wanted[wanted > 0].numpy() * runs).pvalue > 1e-3
    agreed = int((drawn[0] == drawn[1]).sum())
    assert stats.binomtest(agreed, runs, agreement(p, q)[1]).pvalue > 1e-3


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 60), st.integers(0, 2**31), st.floats(0.0, 2.0))
def test_a_race_agrees_nearly_as_often_as_any_draws_can(vocabulary, seed, distance):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, vocabulary, generator=generator).double()
    p = torch.softmax(logits[0], -1)
    q = torch.softmax(logits[0] + distance * logits[1], -1)
    best, raced, _ = agreement(p, q)
    assert best / (2 - best) - 1e-9 <= raced <= best + 1e-9
