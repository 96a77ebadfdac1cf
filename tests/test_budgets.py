"""Budgets: one place says how much is computed at once, and results do not depend on it."""

from dataclasses import fields, replace

import pytest
import torch

from quietstar.engine import budgets

TEXT = "the quick brown fox thinks"


def test_each_kind_of_device_has_one():
    assert budgets.of(torch.device("cpu")) is budgets.CPU
    assert budgets.of(torch.device("cuda", 1)) is budgets.CUDA
    assert budgets.of(torch.device("mps")) is budgets.CPU


@pytest.mark.parametrize("field", [field.name for field in fields(budgets.Budget)])
def test_results_do_not_depend_on_it(tiny, monkeypatch, field):
    options = dict(thought_length=3, samples=2, seed=2, controls=["donor"])
    score, text = tiny.score(TEXT, **options), tiny.generate(TEXT, thought_length=3, max_new_tokens=6).text
    monkeypatch.setattr(budgets, "CPU", replace(budgets.CPU, **{"fewest_rows": 1, field: 1}))
    other = tiny.score(TEXT, **options)
    assert (other.thoughts == score.thoughts).all()
    torch.testing.assert_close(other.mixed_logprobs, score.mixed_logprobs, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert tiny.generate(TEXT, thought_length=3, max_new_tokens=6).text == text


def test_rows_think_together_with_all_samples_of_their_place(tiny, monkeypatch):
    prefix, _ = tiny.read(torch.tensor([[1, 2, 3]]))
    key = next(iter(prefix.layers.values())).key
    assert prefix.bytes_per_token == 2 * len(prefix.layers) * key.shape[1] * key.shape[3] * 4
    for samples in (1, 3, 100, 1000):
        assert budgets.rows_at_once(prefix, 4, samples) == max(256 // samples, 1) * samples
    monkeypatch.setattr(budgets, "CPU", replace(budgets.CPU, state_bytes=100 * 6 * prefix.bytes_per_token))
    assert budgets.rows_at_once(prefix, 4, 1) == 100
    assert budgets.rows_at_once(prefix, 4, 3) == 99
