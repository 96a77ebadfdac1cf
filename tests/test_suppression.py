"""What a checkpoint's generation config forbids to say is not said: without thoughts, mixed, and drafted ahead."""

import itertools
import warnings

import pytest
import torch

OPTIONS = dict(raw=True, max_new_tokens=12, thought_length=2, stop_ids=[])


def plain(model, prompt, **config):
    """What transformers' own generate says with these settings."""
    ids, _ = model.encode(prompt, raw=True)
    found = model.base.generate(
        torch.tensor(ids), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=2, **config
    )
    return found[0].tolist()


def configured(model, **config):
    for name, value in config.items():
        setattr(model.base.generation_config, name, value)
    return model


def bad_words(model):
    """Settings that forbid what the model says freely: two tokens, its first one, and its pairs of tokens."""
    free = model.generate("the fox", trigger="never", **OPTIONS).trace
    said = [token.id for token in free.tokens]
    pairs = [list(pair) for pair in itertools.pairwise(said)]
    return {
        "suppress_tokens": said[3:5], "begin_suppress_tokens": said[:1],
        "bad_words_ids": [*pairs[:2], [said[2]]],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens", "bad_words_ids"])
def test_greedy_text_without_thoughts_is_that_of_transformers(tiny, name):
    forbidden = {name: bad_words(tiny)[name]}
    expected = plain(tiny, "the fox", **forbidden)
    assert expected != plain(tiny, "the fox")
    configured(tiny, **forbidden)
    for speculate in (0, 4, "auto"):
        assert tiny.generate("the fox", trigger="never", speculate=speculate, **OPTIONS).trace.ids == expected


@pytest.mark.parametrize("speculate", [0, 4, "auto"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_forbidden_is_said_with_thoughts(tiny, speculate, temperature):
    forbidden = bad_words(tiny)
    configured(tiny, **forbidden)
    trace = tiny.generate("the fox", speculate=speculate, temperature=temperature, **OPTIONS).trace
    said = [token.id for token in trace.tokens]
    never = set(forbidden["suppress_tokens"]) | {word[0] for word in forbidden["bad_words_ids"] if len(word) == 1}
    assert len(said) == 12 and not never & set(said)
    assert said[0] not in forbidden["begin_suppress_tokens"]
    pairs = set(itertools.pairwise(trace.ids))
    assert not pairs & {tuple(word) for word in forbidden["bad_words_ids"] if len(word) == 2}


def test_drafting_ahead_changes_nothing(tiny):
    configured(tiny, **bad_words(tiny))
    one, ahead = (tiny.generate("the fox", speculate=k, **OPTIONS).trace.ids for k in (0, 5))
    assert one == ahead


def test_settings_that_are_not_used_are_named_once(tiny):
    configured(tiny, repetition_penalty=1.3, no_repeat_ngram_size=0)
    with pytest.warns(UserWarning, match=r"does not use: repetition_penalty$"):
        tiny.generate("the fox", **OPTIONS)


def test_an_ordinary_generation_config_says_nothing(tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.generate("the fox", **OPTIONS)
