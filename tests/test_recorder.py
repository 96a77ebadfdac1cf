"""Recording: each event is in the file before it is passed on, and no trouble with the file stops what is recorded."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from quietstar.events import End, Trace
from quietstar.record import schema
from quietstar.record.store import Store
from recorded import start, thought, token, trace

HERE = Path(__file__).parent

WRITER = """
import sys
from quietstar.record.store import Store
from recorded import start, thought, token

def events(count):
    yield start(sys.argv[2])
    for n in range(count):
        yield thought(1 + n, f"secret{n} plan")
        yield token(2 + n, f" w{n}")

store = Store.open(sys.argv[1])
recorder = store.recorder()
for event in recorder.record(events(int(sys.argv[3]))):
    if event.event == "token":
        print(recorder.runs[0], event.position, flush=True)
assert recorder.problem is None, recorder.problem
"""


def writer(path: Path, prompt: str, count: int) -> subprocess.Popen:
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), prompt, str(count)], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})  # fmt: skip


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "record.db") as opened:
        yield opened


def test_a_recorded_stream_is_the_stream(store, tiny):
    recorder = store.recorder()
    events = list(recorder.record(tiny.stream(["the fox", "it says"], max_new_tokens=5, samples=2, thought_length=3)))
    traces = Trace.collect(events)
    assert [store.trace(run) for run in recorder.runs] == traces and recorder.problem is None
    assert [store.run(run).asked for run in recorder.runs] == ["the fox", "it says"]
    assert [store.run(run).flips for run in recorder.runs] == [sum(t.flipped for t in one.thoughts) for one in traces]


def test_an_answer_behind_its_reasoning_says_what_it_continues(store, tiny):
    recorder = store.recorder()
    events = list(
        recorder.record(tiny.reason_then_answer("the fox", max_new_tokens=3, answer_tokens=2, thought_length=1))
    )
    reason, answer = recorder.runs
    assert store.run(answer).continues == reason and store.run(reason).continues is None
    cut = next(n for n, event in enumerate(events) if n and event.event == "start")
    assert store.trace(reason) == Trace.collect(events[:cut])[0]
    assert store.trace(answer) == Trace.collect(events[cut:])[0]
    store.delete(reason)
    assert store.run(answer).continues is None


def test_what_was_passed_on_is_in_the_file(store):
    made = trace(words=(" a", " b"))
    recorder = store.recorder()
    seen = Trace(made.start)
    with Store.open(store.path) as other:
        for event in recorder.record(made.events):
            seen.add(event)
            assert other.trace(recorder.runs[0]) == seen


def test_a_thought_knows_the_text_before_it(store):
    run = store.add(trace("Why is it so?", (" Be", "cause", " it is")))
    assert [t.context for t in store.thoughts(run=run, order="position", descending=False)] == [
        "Why is it so?", "Why is it so? Be", "Why is it so? Because",
    ]  # fmt: skip
    chat = store.add(trace("<|im_start|>user", (" Be", "cause"), chat=True))
    assert [t.context for t in store.thoughts(run=chat, order="position", descending=False)] == ["", " Be"]


@pytest.mark.parametrize("trouble", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_is_cut_off_ends_as_interrupted(store, trouble):
    def events():
        yield start()
        yield thought(1)
        yield token(2, " so")
        raise trouble

    recorder = store.recorder()
    with pytest.raises(trouble):
        list(recorder.record(events()))
    back = store.trace(recorder.runs[0])
    assert back.end.reason == "interrupted" and back.text == " so" and (back.end.tokens, back.end.thoughts) == (1, 1)


def test_a_reader_that_leaves_ends_the_run(store):
    recorder = store.recorder()
    events = recorder.record(trace().events)
    for _ in range(3):
        next(events)
    events.close()
    assert store.trace(recorder.runs[0]).end.reason == "interrupted"


def test_kill_loses_nothing_that_was_finished(tmp_path):
    path = tmp_path / "record.db"
    process = writer(path, "killed", 1_000_000)
    said = [process.stdout.readline().split() for _ in range(200)]
    process.send_signal(signal.SIGKILL)
    said += [line.split() for line in process.communicate()[0].splitlines()]
    assert process.returncode == -signal.SIGKILL
    run, last = said[-1][0], int(said[-1][1])
    with Store.open(path) as store:
        back = store.trace(run)
        count = len(back.tokens)
        assert count >= last - 1 >= 200, "every token that was told is there"
        assert back.tokens == [token(2 + n, f" w{n}") for n in range(count)]
        assert back.thoughts[:count] == [thought(1 + n, f"secret{n} plan") for n in range(count)]
        assert len(back.thoughts) - count in (0, 1) and back.end is None
        entry = store.run(run)
        assert (entry.tokens, entry.text, entry.reason) == (count, back.text, None)
        assert [one.id for one in store.runs(f"w{count - 1}")] == [run], "its text is found"
        assert store.thoughts(f"secret{count - 1}")[0].run == run
        assert store._db().execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_several_processes_write_at_once(tmp_path):
    path = tmp_path / "record.db"  # which none of them finds there: they make it at once, too
    processes = [writer(path, f"writer {n}", 150) for n in range(3)]
    for process in processes:
        _, problems = process.communicate(timeout=120)
        assert process.returncode == 0, problems
    with Store.open(path) as store:
        runs = list(store.runs())
        assert {run.prompt for run in runs} == {f"writer {n}" for n in range(3)}
        for run in runs:
            back = store.trace(run.id)
            assert [t.text for t in back.tokens] == [f" w{n}" for n in range(150)]
            assert [t.samples[0].text for t in back.thoughts] == [f"secret{n} plan" for n in range(150)]


def test_a_passing_lock_leaves_no_hole(store, monkeypatch):
    monkeypatch.setattr("quietstar.record.recorder._BRIEFLY", 0.01)
    made, recorder = trace(), store.recorder()
    events = list(made.events)
    for event in events[:3]:
        recorder.add(event)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for event in events[3:5]:
        recorder.add(event)
    assert "locked" in recorder.problem
    assert len(store.trace(recorder.runs[0]).tokens) == 1
    other.execute("ROLLBACK")
    other.close()
    for event in events[5:]:
        recorder.add(event)
    recorder.close()
    assert recorder.problem is None and store.trace(recorder.runs[0]) == made


def test_a_lasting_lock_stops_nothing_and_is_told(store, monkeypatch):
    monkeypatch.setattr(schema, "BUSY_SECONDS", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    recorder = store.recorder()
    assert list(recorder.record(trace().events)) == list(trace().events)
    assert "is locked by another program" in recorder.problem and "\n" not in recorder.problem
    other.close()


def test_a_run_deleted_while_it_is_recorded_is_told(store):
    recorder = store.recorder()
    events = recorder.record(trace().events)
    for _ in range(3):
        next(events)
    store.delete(recorder.runs[0])
    list(events)
    assert "deleted while it was recorded" in recorder.problem
    assert not list(store.runs())


def test_a_full_disk_stops_nothing_and_is_told(store):
    store.add(trace())
    store._db().execute(f"PRAGMA max_page_count = {store._db().execute('PRAGMA page_count').fetchone()[0]}")
    recorder = store.recorder()
    long = trace(prompt="x" * 100_000)
    assert list(recorder.record(long.events)) == list(long.events)
    assert "no space left" in recorder.problem
    assert len(list(store.runs())) == 1


def test_an_unknown_sequence_is_passed_by(store):
    recorder = store.recorder()
    recorder.add(start())
    recorder.add(End(7, "stop", "", 0, 0, 0.0))
    recorder.close()
    assert store.trace(recorder.runs[0]).end.reason == "interrupted"
