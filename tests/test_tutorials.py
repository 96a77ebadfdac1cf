"""The tutorials run as they are written, command by command and block by block.

All run with a tiny model in the default model's place; what the tinkerer's quotes is compared with the default model.
"""

from __future__ import annotations

import re

import pytest

from conftest import trained
from quietstar import QuietStar
from readers import TUTORIALS, Reader, follow, reader_model  # noqa: F401 (fixtures)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page, reader_model, tmp_path, monkeypatch):  # noqa: F811
    if page.stem == "trainer":
        pytest.importorskip("matplotlib")
    thinking = tmp_path / "thinking"
    trained(QuietStar.from_pretrained(reader_model)).save_pretrained(thinking)
    (tmp_path / "reader").mkdir()
    quoted = follow(page, Reader(tmp_path / "reader", str(thinking)), monkeypatch)
    assert quoted and all(printed for printed, _ in quoted)


def words(text: str) -> list[str]:
    """The words of an output without its numbers."""
    return re.findall(r"[A-Za-z]{2,}", text)


@pytest.mark.slow
@pytest.mark.model
def test_what_the_tinkerer_quotes_is_what_the_default_model_says(tmp_path, monkeypatch):
    page = next(page for page in TUTORIALS if page.stem == "tinkerer")
    found = follow(page, Reader(tmp_path, None), monkeypatch, short=False)
    assert len(found) == 5
    for printed, quoted in found[1:2] + found[3:]:  # greedy, so the same on any machine but for the last digits
        assert words(quoted) == words(printed)
    said = found[0][0]
    assert all(line in said for line in found[0][1].splitlines()[:1])
