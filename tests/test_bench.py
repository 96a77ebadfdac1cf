"""The benchmark gives every figure it promises (no time is asserted)."""

import json
import sys

import pytest
import torch

from quietstar import QuietStarError
from quietstar.bench import engine as bench
from quietstar.bench import generate as bench_generate
from quietstar.cli import main as cli


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


def test_generation_is_measured_three_ways(tiny, tiny_folder):
    report = bench_generate.run(tiny, tiny_folder, "float32", contexts=[64, 90], thought_lengths=[2, 3], tokens=6,
                                repeats=2, mixing_weight=0.05, processes=False)  # fmt: skip
    assert [(c.kind, c.context, c.thought_length) for c in report.cells if c.kind == "code"] == [
        ("code", 64, 3), ("code", 90, 2), ("code", 90, 3),
    ]  # fmt: skip
    assert {c.kind for c in report.cells} == set(bench_generate.OPENINGS)
    for cell in report.cells:
        assert cell.tokens == 6 and cell.parted is None and 0 <= cell.accepted <= cell.drafted
        for ratio in (cell.one_by_one_ratio, cell.speculative_ratio):
            assert ratio.lowest <= ratio.middle <= ratio.highest
    assert report.throughput["prompts"] == 8
    for coupling in report.couplings:
        assert coupling.best / (2 - coupling.best) - 1e-6 <= coupling.raced <= coupling.best + 1e-6
        assert 0 <= coupling.inverse <= coupling.best + 1e-6
    assert json.loads(json.dumps(report.to_dict()))["settings"]["tokens"] == 6
    for options, says in (
        (dict(contexts=[8]), "contexts must be at least 64"), (dict(tokens=1), "tokens must be at least 2"),
        (dict(repeats=0), "repeats must be"), (dict(contexts=[]), "at least one"), (dict(contexts=[999]), "context is 512"),
    ):  # fmt: skip
        with pytest.raises(QuietStarError, match=says):
            bench_generate.run(tiny, tiny_folder, "float32", **options)


def test_agreements_are_those_of_the_definition():
    p, q = torch.softmax(3 * torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(1)).double(), dim=-1)
    p[:, :4], q[:, 2:6] = 0, 0
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    best, raced, inverse = bench_generate.agreements(q, p)
    for m in range(4):
        rings = [
            1 / sum(max(float(p[m, j] / p[m, k]), float(q[m, j] / q[m, k])) for j in range(30)) for k in range(6, 30)
        ]
        assert float(raced[m]) == pytest.approx(sum(rings))
        assert float(best[m]) == pytest.approx(sum(min(float(a), float(b)) for a, b in zip(p[m], q[m], strict=True)))
    assert (inverse <= best + 1e-12).all()
    assert [float(x[0]) for x in bench_generate.agreements(q[:1], q[:1])] == pytest.approx([1.0] * 3)


@pytest.mark.slow
def test_the_command_prints_generation(tiny_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quietstar", "bench", "generate", "--model", tiny_folder, "--contexts", "64",
                                      "-t", "2", "--repeats", "1", "-n", "4"])  # fmt: skip
    with pytest.raises(SystemExit) as left:
        cli.main()
    out = capsys.readouterr().out
    assert not left.value.code
    assert "prose" in out and "prompts at once" in out and "peak memory" in out


@pytest.mark.parametrize(("command", "module"), [((), "engine"), (("generate",), "generate")])
def test_after_ctrl_c_what_was_measured_is_printed(run, tiny_folder, monkeypatch, command, module):
    import importlib

    bench = importlib.import_module(f"quietstar.bench.{module}")
    calls = []

    def stop(*_, **__):
        calls.append(1)
        raise KeyboardInterrupt

    if module == "engine":
        monkeypatch.setattr(bench, "_scoring", stop)
        options = ("--context", "32", "--repeats", "1", "-t", "2", "--no-processes")
    else:
        monkeypatch.setattr(bench, "_row_cost", stop)
        options = ("--contexts", "64", "-t", "2", "-n", "2", "--repeats", "1", "--no-processes")
    code, out, err = run("bench", *command, "--model", tiny_folder, *options, "--json")
    assert code == 130 and calls and "interrupted" in err
    found = json.loads(out)
    assert len(found["ratios"] if module == "engine" else found["cells"]) in (2, 4)
