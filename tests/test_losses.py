"""The loss report: figures are means over tokens, intervals are over documents, files are read or named."""

import numpy as np
import pytest

from quietstar import QuietStarError
from quietstar.evals.losses import Document, bootstrap, effects_of, evaluate, read_documents


def test_totals_are_means_over_the_tokens_of_score(tiny):
    texts = ["the quick brown fox jumps", "it says the thing and then thinks", "a b c", "before it", "then the end"]
    documents = [Document(text[:3], text) for text in texts]
    report = evaluate(tiny, documents, thought_length=2, controls=["filler", "donor"])
    scores = [tiny.score(d.text, thought_length=2, controls=["filler", "donor"]) for d in documents]
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


def test_broken_files_are_named_with_their_line(tmp_path):
    broken = tmp_path / "a.jsonl"
    for content, says in (
        ('{"text": "ok"}\n{"text": \n', "line 2 is not JSON"),
        ('{"text": "ok"}\n\n{"body": "x"}\n', "line 3 has no text field 'text' .it has body."),
        ("[1]\n", "line 1 has no text field"),
    ):
        broken.write_text(content)
        with pytest.raises(QuietStarError, match=says):
            read_documents([broken])
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(QuietStarError, match="not UTF-8 text .byte 3."):
        read_documents([tmp_path / "b.txt"])
