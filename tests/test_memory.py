"""Work that cannot fit is refused in one line before it begins, with what it needs, what there is and what to change."""

import pytest

from quietstar import QuietStarError
from quietstar.engine import memory


def test_the_line_says_need_have_and_what_to_change(tiny, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(QuietStarError, match=r"needs about .* of memory, but 100 MB is available; give fewer samples"):
        tiny.generate("the", samples=200_000)
    with pytest.raises(QuietStarError, match=r"but 100 MB is available; ask for fewer thoughts \(n\)"):
        tiny.resample(0, 200_000, of="the fox")
    with pytest.raises(QuietStarError, match="but 100 MB is available; give fewer samples"):
        tiny.score("the fox", samples=200_000)
    with pytest.raises(QuietStarError, match="fewer or shorter prompts"):
        tiny.generate([[1, 2, 3] * 100] * 2000)
    assert tiny.generate("the", max_new_tokens=2, samples=2).trace.tokens


def test_tokens_of_a_text_without_a_limit_are_bounded_by_memory(tiny, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 100 << 20)
    with pytest.raises(QuietStarError, match="making 6000000 characters into tokens needs about"):
        tiny.encode("word " * 1_200_000, raw=True)


@pytest.mark.parametrize("limit", ["50000000", "max"])
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, limit):
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("40000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000000\n")
    assert memory._of_cgroup() == (15_000_000 if limit != "max" else None)
    found = memory.available()
    assert found is not None and (found <= 15_000_000) == (limit != "max")


def test_sizes_are_readable():
    assert [memory._size(n) for n in (3 << 20, 5 << 30, 7 << 40, 1 << 90)] == [
        "3 MB",
        "5 GB",
        "7 TB",
        "more than 1000 EB",
    ]


def test_the_tokens_of_a_text_that_fits_are_the_same_with_and_without_the_early_look(tiny):
    text = "the quick brown fox " * 90
    assert tiny.encode(text, raw=True) == tiny.encode(text, raw=True, fitting=True)
    spaces = "a" + " " * 100_000  # many characters a token: looked at further, then answered as any other text
    with pytest.raises(QuietStarError, match="context is 512"):
        tiny.generate(spaces, raw=True)
