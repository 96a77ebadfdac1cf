"""The loss report: figures are means over tokens, intervals are over documents, files are read or named."""

import json

import numpy as np
import pytest
import torch

from quietstar import QuietStarError
from quietstar.documents.reading import Document
from quietstar.evals import losses
from quietstar.evals.intervals import bootstrap
from quietstar.evals.losses import Interrupted, effects_of, evaluate


def test_totals_are_means_over_the_tokens_of_score(tiny):
    texts = ["the quick brown fox jumps", "it says the thing and then thinks", "a b c", "before it", "then the end"]
    documents = [Document(text[:3], text) for text in texts]
    report = evaluate(tiny, documents, thought_length=2, controls=["filler", "donor"])
    scores = [tiny.score(d.text, thought_length=2, controls=["filler", "donor"], seed=n << 24)  # draws of its own each
              for n, d in enumerate(documents)]  # fmt: skip
    for name, of in (
        ("base", lambda s: s.base_logprobs), ("own", lambda s: s.mixed_logprobs), ("only", lambda s: s.thought_logprobs),
        ("filler", lambda s: s.controls["filler"].mixed_logprobs), ("donor", lambda s: s.controls["donor"].mixed_logprobs),
    ):  # fmt: skip
        every = np.concatenate([-of(s)[0].numpy() for s in scores])
        assert report.losses[name].mean == pytest.approx(every.mean(), rel=1e-5)
        assert report.losses[name].low <= report.losses[name].mean <= report.losses[name].high
    gain = report.losses["base"].mean - report.losses["own"].mean
    assert report.effects["own gain"].mean == pytest.approx(gain, abs=1e-6)
    assert report.effects["content"].mean == pytest.approx(
        report.losses["donor"].mean - report.losses["own"].mean, abs=1e-6
    )
    assert sum(row["tokens"] for row in report.deciles) == report.tokens == sum(r["tokens"] for r in report.documents)
    bases = [row["losses"]["base"] for row in report.deciles]
    assert bases == sorted(bases)


def test_long_documents_are_read_in_windows(tiny):
    report = evaluate(tiny, [Document("a", "x1 " * 300)], thought_length=1, window=100, controls=[])
    ids = tiny.encode("x1 " * 300, raw=True)[0][0]
    assert report.tokens == len(ids) - -(-len(ids) // 100)
    assert evaluate(tiny, [Document("a", "x1 " * 300)], window=100, max_tokens=50, controls=[]).tokens == 49


def test_effects_have_the_sign_they_are_defined_with():
    table = {k: np.array([v]) for k, v in {"base": 3.0, "own": 1.0, "filler": 2.5, "donor": 1.5}.items()}
    assert {k: v[0] for k, v in effects_of(table).items()} == {
        "own gain": 2.0, "compute": 0.5, "content": 0.5, "own over filler": 1.5,
    }  # fmt: skip


def test_intervals_are_over_documents_not_tokens():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 50)
    shared = rng.normal(size=40)[groups]  # tokens of one document are all alike: 2,000 tokens, 40 observations
    found = bootstrap(shared, groups)
    width = found.high - found.low
    assert width == pytest.approx(2 * 1.96 * shared[::50].std() / np.sqrt(40), rel=0.25)
    assert bootstrap(shared[:200], groups[:200]).low is None  # four documents are too few
    assert bootstrap(shared, groups) == found


def test_empty_documents_are_skipped_and_named(tiny):
    report = evaluate(tiny, [Document("a", "the quick brown fox"), Document("empty", " \n")], thought_length=1)
    assert report.skipped == ["empty"]
    with pytest.raises(QuietStarError, match="nothing to score"):
        evaluate(tiny, [Document("empty", "")])


def test_any_whole_number_is_a_seed():
    values, groups = np.arange(20.0), np.repeat(np.arange(5), 4)
    assert bootstrap(values, groups, seed=-1) == bootstrap(values, groups, seed=2**64 - 1)


def test_a_text_of_two_tokens_has_every_control(tiny):
    report = evaluate(tiny, [Document("two", "ab")], thought_length=1, controls=["donor", "filler"])
    assert report.tokens == 1 and report.losses["donor"].mean == report.losses["filler"].mean  # it has no earlier place


def test_a_window_wider_than_the_context_is_named(tiny):
    with pytest.raises(QuietStarError, match="the window has 600 tokens .* context is 512"):
        evaluate(tiny, [Document("long", "x" * 900)], window=600, thought_length=2)


def test_an_interrupt_keeps_the_documents_that_were_finished(tiny):
    documents = [Document(name, "the quick brown fox") for name in "abc"]

    def stop_in(name):
        def told(document, share):
            if document == name:
                raise KeyboardInterrupt

        return told

    with pytest.raises(Interrupted) as stopped:
        evaluate(tiny, documents, thought_length=1, told=stop_in("c"))
    report = stopped.value.report
    assert [row["document"] for row in report.documents] == ["a", "b"] and report.unfinished == ["c"]
    assert report.losses == evaluate(tiny, documents[:2], thought_length=1).losses
    with pytest.raises(Interrupted) as stopped:
        evaluate(tiny, documents, thought_length=1, told=stop_in("a"))
    assert stopped.value.report is None


def test_thoughts_that_continue_the_text_are_counted_place_by_place(tiny):
    ids = [5, 6, 7, 8, 9, 10]
    thoughts = torch.tensor([[[[6, 7, 0]], [[7, 0, 9]], [[0, 0, 0]], [[9, 10, 3]], [[10, 9, 9]]]])
    score = tiny.score(ids, thoughts=thoughts)
    # of three tokens two; of three two; none of three; both that the text still has; the one it still has
    assert losses._continues(score)[0].tolist() == pytest.approx([2 / 3, 2 / 3, 0.0, 1.0, 1.0])


def test_the_hardest_fifth_is_a_fifth(tiny):
    report = losses.evaluate(tiny, [Document(str(n), "the quick brown fox thinks" * 3) for n in range(6)])
    top = [row for row in report.deciles if row["decile"] >= 9]
    tokens = sum(row["tokens"] for row in top)
    wanted = sum(row["effects"]["own gain"]["mean"] * row["tokens"] for row in top) / tokens
    assert report.hardest["own gain"].mean == pytest.approx(wanted, rel=1e-6)


def test_two_models_are_compared_document_by_document(tiny):
    documents = [Document(str(n), f"the thing {n} says it thinks") for n in range(6)]
    report = losses.evaluate(tiny, documents, controls=()).to_dict()
    other = json.loads(json.dumps(report))
    for n, row in enumerate(other["documents"]):
        row["base"] = row["own"] + 0.5 + 0.01 * n
    found = losses.against(report, other)
    assert 0.5 <= found.low <= found.mean <= found.high <= 0.55
    assert losses.against(report, report, "base", "base").mean == 0
    other["documents"].pop()
    with pytest.raises(QuietStarError, match=r"not of the same documents \(6 and 5\)"):
        losses.against(report, other)


def test_reports_of_other_texts_tokens_or_windows_are_not_compared(tiny):
    documents = [Document(str(n), f"the thing {n} says it thinks before it speaks") for n in range(5)]
    report = json.loads(json.dumps(evaluate(tiny, documents, controls=(), thought_length=1).to_dict()))
    same = dict(window=512, max_tokens=None)
    losses.check_comparable(tiny, documents, report, **same)
    swapped = [Document(d.name, d.text[::-1]) for d in documents]  # the same names and counts
    assert [len(d.text) for d in swapped] == [len(d.text) for d in documents]
    with pytest.raises(QuietStarError, match="^0 is another text in the other report"):
        losses.check_comparable(tiny, swapped, report, **same)
    with pytest.raises(QuietStarError, match="0 has other tokens in the other report: window 512 there, 8 here"):
        losses.check_comparable(tiny, documents, report, window=8, max_tokens=None)
    with pytest.raises(QuietStarError, match="other tokens in the other report: max_tokens None there, 6 here"):
        losses.check_comparable(tiny, documents, report, window=512, max_tokens=6)
    other = json.loads(json.dumps(report))
    for row in other["documents"]:  # what a tokenizer of another vocabulary leaves: as many tokens, other ids
        row["tokens_hash"] = "0" * 16
    with pytest.raises(QuietStarError, match="0 has other tokens in the other report: another tokenizer"):
        losses.against(report, other)
    del other["documents"][0]["text_hash"]
    with pytest.raises(QuietStarError, match="does not say which tokens were scored"):
        losses.against(report, other)
    for broken in ({}, {"documents": []}, {"documents": [1]}, {"documents": 5}):
        with pytest.raises(QuietStarError, match="no report of scored documents"):
            losses.against(report, broken)


def test_a_wider_window_that_cuts_nothing_can_be_compared_and_is_told(tiny):
    documents = [Document("a", "the quick brown fox")]
    one = evaluate(tiny, documents, controls=(), thought_length=1, window=100).to_dict()
    two = evaluate(tiny, documents, controls=(), thought_length=1, window=200, seed=3).to_dict()
    assert losses.against(one, two, "base", "base").mean == 0
    assert losses.differences(one, two) == [
        "window is 200 in the other report, 100 here", "seed is 3 in the other report, 0 here",
    ]  # fmt: skip
