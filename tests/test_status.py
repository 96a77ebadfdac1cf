"""What is said on stderr before the first token, and what Ctrl-C leaves while a model loads or thinks."""

import io
import json
import signal
import subprocess
import sys
import time

import pytest

from quietstar import QuietStar
from quietstar.cli import status as status_module
from quietstar.cli.status import Status
from quietstar.record.store import Store


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_line_that_vanishes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Status() as status:
        status("loading the model")
        assert sys.stderr.getvalue().endswith("loading the model ...")
    assert sys.stderr.getvalue().endswith("\r\x1b[2K")


def test_elsewhere_only_a_long_step_is_told(monkeypatch):
    monkeypatch.setattr(status_module, "PATIENCE", 0.05)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Status() as status:
        status("short")
        status("long")
        time.sleep(0.5)
    assert sys.stderr.getvalue() == "long ...\n"


def test_quiet_says_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Status(quiet=True) as status:
        status("loading")
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(("form", "shown"), [([], True), (["--live"], True), (["-q"], False), (["--json"], False)])
def test_thinking_is_told_until_there_is_output(run, folder, monkeypatch, form, shown):
    told = []
    monkeypatch.setattr(Status, "_write", lambda self, text: told.append(text))
    monkeypatch.setattr(status_module, "PATIENCE", 0.0)
    wait = QuietStar.stream

    def slowly(self, *arguments, **options):
        events = wait(self, *arguments, **options)
        yield next(events)
        time.sleep(0.3)
        yield from events

    monkeypatch.setattr(QuietStar, "stream", slowly)
    assert run("think", "the", "--model", folder, "-n", "1", "-t", "1", *form)[0] == 0
    assert ("reading the prompt and thinking" in told) == shown


def test_ctrl_c_while_the_model_loads_is_one_line(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(QuietStar, "from_pretrained", interrupted)
    assert run("think", "the") == (130, "", "quietstar: interrupted; what was finished is above\n")


@pytest.mark.slow
@pytest.mark.parametrize("wait", [0.3, 1.5, 4.0])
def test_ctrl_c_at_any_moment_is_one_line(folder, wait):
    process = subprocess.Popen(
        [sys.executable, "-m", "quietstar", "think", "the", "--model", folder, "-n", "400", "--stop", "zzzz", "-q"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(wait)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    if process.returncode != 0:
        assert process.returncode in (130, -signal.SIGINT)  # the latter before the first line of ours has run
        assert process.returncode < 0 or err.strip().startswith("quietstar: interrupted"), err


def test_ctrl_c_while_thinking_keeps_the_run(run, folder, monkeypatch):
    stream = QuietStar.stream

    def interrupted(self, *arguments, **options):
        for number, event in enumerate(stream(self, *arguments, **options)):
            if number == 4:  # behind start, noise, a thought and its token
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(QuietStar, "stream", interrupted)
    code, out, err = run("think", "the", "--model", folder, "-n", "5", "-t", "1", "--json")
    assert code == 130 and err.splitlines()[-1] == "quietstar: interrupted; what was finished is above"
    assert json.loads(out.splitlines()[-1])["reason"] == "interrupted"
    with Store.open() as store:
        entry = next(store.runs())
        assert entry.reason == "interrupted" and entry.tokens == 1
