"""The benchmark gives every figure it promises (no time is asserted)."""

import json
import sys

import pytest

from quietstar.cli import main as cli
from quietstar.evals import bench


def test_all_figures_are_there(tiny, tiny_folder):
    said = []
    report = bench.run(
        tiny, tiny_folder, "float32", thought_length=2, context=32, repeats=2, processes=False, say=said.append
    )
    assert len(report.ratios) == 4 and len(said) == 4
    for ratio in report.ratios:
        assert ratio.lowest <= ratio.ratio <= ratio.highest and ratio.limit > 1
    assert report.machine["torch"] and report.machine["dtype"] == "float32"


@pytest.mark.slow
def test_the_command_prints_memory_and_start_too(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(bench, "MEMORY_LENGTHS", (32, 64))
    monkeypatch.setattr(sys, "argv", ["quietstar", "bench", "--model", tiny_folder, "--context", "32", "-t", "2",
                                      "--repeats", "1", "--json"])  # fmt: skip
    with pytest.raises(SystemExit) as left:
        cli.main()
    report = json.loads(capsys.readouterr().out)
    assert not left.value.code
    assert [row["tokens"] for row in report["memory"]] == [32, 64] and report["start"]["seconds"] > 0
