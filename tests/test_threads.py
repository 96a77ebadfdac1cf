"""How many threads a command computes with, and that it does."""

import os

import pytest
import torch

from quietstar.engine import threads


@pytest.mark.parametrize(
    ("have", "busy", "width", "expected"),
    [(8, 0.0, 576, 8), (8, 3.2, 576, 5), (8, 20.0, 576, 1), (2, 2.0, 576, 1), (1, 0.0, 576, 1), (8, 0.0, 64, 1), (4, 0.4, None, 4)],
)  # fmt: skip
def test_sensible_numbers(monkeypatch, have, busy, width, expected):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: have)
    monkeypatch.setattr(os, "getloadavg", lambda: (busy, busy, busy), raising=False)
    assert threads.sensible(width) == expected


def test_the_environment_decides(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.sensible(32) is None


@pytest.mark.parametrize(("text", "expected"), [("150000 100000", 1.5), ("max 100000", None), ("broken", None)])
def test_the_quota_of_a_container(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(threads, "_CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert threads._quota() == expected
    assert 1 <= threads.cores() <= (os.cpu_count() or 1)


@pytest.fixture
def same_after():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", [["think", "the"], ["score", "text.txt"]])
def test_commands_take_a_number_of_threads(run, folder, tmp_path, monkeypatch, same_after, command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the quick brown fox")
    few = ["-n", "1"] if command[0] == "think" else ["--controls", "none"]
    for count in (2, 1):
        assert run(*command, "--model", folder, "-t", "1", *few, "--threads", str(count))[0] == 0
        assert torch.get_num_threads() == count


def test_a_very_small_model_runs_on_one_thread(run, folder, monkeypatch, same_after):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(2)
    assert run("think", "the", "--model", folder, "-n", "1", "-t", "1")[0] == 0
    assert torch.get_num_threads() == 1
