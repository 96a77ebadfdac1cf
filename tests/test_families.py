"""Property: for every served family the engine gives what full recomputation, one thought at a time, gives."""

import copy

import pytest
import torch

from oracle import Oracle
from quietstar import QuietStar, UnsupportedModel
from quietstar.engine import families
from tiny import FAMILIES, VOCABULARY, bare, thinking

TEXT = torch.randint(2, VOCABULARY, (2, 14), generator=torch.Generator().manual_seed(5))


def oracle_of(model, base) -> Oracle:
    return Oracle(base, model.markers.start * 100, model.markers.end * 100, model.head.layers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_score_equals_full_recomputation(family, side):
    model, base = thinking(family)
    oracle = oracle_of(model, base)
    mask = torch.ones_like(TEXT)
    mask[1, 9:] = 0
    if side == "left":
        mask = mask.flip(1)
    score = model.score(TEXT, attention_mask=mask, thought_length=3, samples=2, thought_temperature=1.0, seed=3)
    for b in range(2):
        real = mask[b].bool()
        columns = real.nonzero()[:, 0].tolist()
        expected = oracle.score(TEXT[b, real].tolist(), 3, 1.0, 3, b, 2)
        for n, i in enumerate(columns[:-1]):
            pair = expected[2 * n : 2 * n + 2]
            assert score.thoughts[b, i].tolist() == [one["thought"] for one in pair]
            w = sum(one["w"] for one in pair) / 2
            torch.testing.assert_close(float(score.mixing_weight[b, i]), w, rtol=1e-3, atol=2e-4)
            mean = torch.stack([one["all_mixed"] for one in pair]).logsumexp(0) - torch.tensor(2.0).log()
            base_all = pair[0]["all_base"]
            kl = (mean.exp() * (mean - base_all)).sum()
            torch.testing.assert_close(score.kl[b, i], kl, rtol=1e-3, atol=2e-4)
            was, now = int(base_all.argmax()), int(mean.argmax())
            gap = min(float(base_all[was] - base_all[now]), float(mean[now] - mean[was]))
            assert bool(score.flipped[b, i]) == (gap > score.noise.logprob)
            for found, key in ((score.base_logprobs, "base"), (score.mixed_logprobs, "mixed"),
                               (score.thought_logprobs, "only")):  # fmt: skip
                wanted = torch.tensor([one[key] for one in pair]).logsumexp(0) - torch.tensor(2.0).log()
                torch.testing.assert_close(found[b, i], wanted, rtol=1e-3, atol=2e-4)
        outside = torch.ones(mask.shape[1] - 1, dtype=torch.bool)
        outside[columns[:-1]] = False
        assert score.base_logprobs[b, outside].isnan().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_equals_full_recomputation(family):
    """Greedy text and thoughts for a batch of unequal lengths, past the sliding window."""
    model, base = thinking(family, seed=1)
    oracle = oracle_of(model, base)
    prompts = [TEXT[0].tolist(), TEXT[1, :6].tolist()]
    for prompt, (_, trace) in zip(
        prompts, model.generate(prompts, thought_length=3, max_new_tokens=5, stop_ids=[], speculate=0), strict=True
    ):
        ids, thoughts = oracle.generate(prompt, 3, 5)
        assert trace.ids == ids
        assert [thought.samples[0].ids for thought in trace.thoughts] == thoughts


@pytest.mark.parametrize("family", FAMILIES)
def test_ordinary_calls_are_untouched(family):
    """The wrapped base still answers its ordinary calls exactly as before (same attention, same padding mask)."""
    base = bare(family)
    twin = copy.deepcopy(base)
    QuietStar.from_base(base)
    mask = torch.ones_like(TEXT)
    mask[1, :5] = 0
    wanted = twin(input_ids=TEXT, attention_mask=mask).logits
    torch.testing.assert_close(base(input_ids=TEXT, attention_mask=mask).logits, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_self_check_of_unknown_families_agrees(family, monkeypatch):
    """The check that stands in for these tests for a family nobody tested passes for every family that works."""
    monkeypatch.setattr(families, "VERIFIED", frozenset())
    families.prepare(bare(family))


def test_every_verified_family_is_tested_here():
    assert set(FAMILIES) == families.VERIFIED


def test_self_check_catches_a_family_with_other_arithmetic(monkeypatch):
    monkeypatch.setattr(families, "VERIFIED", frozenset())
    monkeypatch.setattr(families, "unembed", lambda model, hidden: 2 * model.get_output_embeddings()(hidden))
    with pytest.raises(UnsupportedModel, match="differ from its own forward"):
        families.prepare(bare("llama"))


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("bloom", dict(vocab_size=97, hidden_size=32, n_layer=1, n_head=4), "ALiBi"),
        ("mamba", dict(vocab_size=97, hidden_size=32, num_hidden_layers=1, state_size=4), "recurrent"),
        ("qwen3_next", dict(vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=4,
                            num_attention_heads=2, num_key_value_heads=1, head_dim=16, num_experts=2,
                            num_experts_per_tok=1, moe_intermediate_size=16, shared_expert_intermediate_size=16,
                            linear_num_value_heads=2, linear_num_key_heads=2, linear_key_head_dim=8,
                            linear_value_head_dim=8), "linear_attention"),
    ],
)  # fmt: skip
def test_families_that_cannot_be_served_are_refused_by_name(family, options, reason):
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    base = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**options))
    with pytest.raises(UnsupportedModel, match=rf"'{family}'.*{reason}"):
        QuietStar.from_base(base)
