"""Any request to the page's server gets 2xx, 3xx or 4xx and one line, small answers come at once, and work can be stopped."""

import contextlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import fuzz
from quietstar.scratchpad.store import Store
from quietstar.viewer import serving as listening
from recorded import trace
from served import serving, until

ODD = [
    None, True, -1, 0, 1.5, 2**31, 2**63, 10**30, 1e308, "", "x", "\ud800", "\0", "9" * 5000, [], {}, [[]], {"raw": True},
    {"prompt": "x"}, {"seed": 2**64}, {"stop": [1]}, {"": 0}, {"samples": "3"}, {"model": "x"}, {"thoughts": [1]},
]  # fmt: skip
NUMBERS = ["0", "1", "-1", "9" * 18, "9" * 20, "9" * 4400, "1e3", "%00", "x", "1.0", "%F0%9F%98%80", "..%2f"]
NAMES = [
    "query",
    "tag",
    "after",
    "run",
    "model",
    "trigger",
    "flipped",
    "min_kl",
    "max_gain",
    "order",
    "way",
    "offset",
    "token",
]
VALUES = [
    "",
    "x",
    "nan",
    "inf",
    "1e999",
    "9" * 4400,
    "%00",
    "%ff",
    '"',
    '"' * 50,
    "kl;DROP",
    "a+" * 60,
    "%F0%9F%98%80",
    "-1",
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    with Store.open(tmp_path_factory.mktemp("s") / "r.db") as store:
        store.add(trace(), run="abcdefgh")
        yield store


class Nothing:
    """A model that is never reached by what is wrong."""

    def stream(self, *arguments, **options):
        return iter(())


@pytest.fixture(scope="module")
def served(filled):
    with serving(filled, Nothing()) as at:
        yield at


@fuzz(60)
@given(seed=st.integers(0, 2**32))
def test_every_request_is_answered(served, seed):
    rng = random.Random(seed)
    run = rng.choice(["abcdefgh", "abc", "%00", "%ff", "x" * 3000, "..", "%2e%2e%2f"])
    path = rng.choice([
        "/", "/api/about", "/api/runs", f"/api/runs/{run}", f"/api/runs/{run}/statistics", "/api/thoughts",
        f"/api/runs/{run}/thoughts/{rng.choice(NUMBERS)}", "/api/histograms", "/static/" + rng.choice([*NUMBERS, run]),
        "/nothing", "/api/ask", f"/api/runs/{run}/thoughts/{rng.choice(NUMBERS)}/change",
        f"/api/runs/{run}/interventions/{rng.choice(NUMBERS)}/follow",
    ])  # fmt: skip
    if rng.random() < 0.5:
        path += "?" + "&".join(f"{rng.choice(NAMES)}={rng.choice(VALUES)}" for _ in range(rng.randint(1, 4)))
    body = None
    if rng.random() < 0.5:
        keys = ["prompt", "system", "raw", "settings", "kind", "text", "n", "seed", "donor", "most"]
        body = {rng.choice(keys): rng.choice(ODD) for _ in range(rng.randint(0, 4))}
        if rng.random() < 0.3:
            body = {
                "prompt": "x",
                "settings": {rng.choice(["raw", "seed", "stop", "samples", "show"]): rng.choice(ODD)},
            }
        if rng.random() < 0.2:
            body = rng.choice([b"[" * 5000, b"{", b"\xff", b"", b'{"a":' * 900 + b"1" + b"}" * 900, b"9" * 5000])
    headers = {"Content-Type": "application/json"} if isinstance(body, bytes) else {}
    method = rng.choice([None, None, None, "PUT", "DELETE", "OPTIONS", "HEAD"])
    status, told, found = served.request(path, body, method, **headers)
    assert status < 500, (path, body, told)
    if status >= 400 and method != "HEAD":
        assert set(told) == {"error"} and told["error"] and "\n" not in told["error"], (path, told)
    if status == 200 and found.get("content-type", "").startswith("text/event-stream"):
        assert "Error:" not in told, (path, body, told)


@pytest.mark.parametrize("number", ["9" * 18, "9" * 5000, str(2**63)])
def test_huge_numbers_are_refused(served, number):
    for path in (f"/api/runs/abcdefgh/thoughts/{number}", f"/api/thoughts?offset={number}"):
        assert served.request(path)[0] in (400, 404)


def test_small_answers_are_sent_at_once():
    with listening._listen("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY on such sockets only
    with Store.open() as store, serving(store) as at:
        connection = at.connection()
        connection.request("GET", "/api/about")
        connection.getresponse().read()
        times = []
        for _ in range(10):
            began = time.perf_counter()
            connection.request("GET", "/api/about")
            connection.getresponse().read()
            times.append(time.perf_counter() - began)
        connection.close()
    assert sorted(times)[2] < 0.035, "delayed acknowledgements cost 40 ms"


def squatting(answer):
    """A program that listens and answers every connection by `answer(link)`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run():
        try:
            while True:
                link, _ = listener.accept()
                with link, contextlib.suppress(OSError):
                    answer(link)
        except OSError:
            pass

    threading.Thread(target=run, daemon=True).start()
    return listener, listener.getsockname()[1]


def endless(link):
    link.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        link.sendall(b"x" * 65536)


def dripping(link):
    while True:
        link.sendall(b"H")
        time.sleep(0.2)


def shouting(link):
    link.sendall(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"record": "\x1b[31m\x07 pwned"}')


@pytest.mark.parametrize("answer", [endless, dripping, shouting, lambda link: time.sleep(5)])
def test_a_program_on_our_port_can_neither_speak_nor_hang_nor_feed_us(run, monkeypatch, answer):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    listener, port = squatting(answer)
    began = time.monotonic()
    with listener:
        code, _, err = run("view", "--port", str(port))
    assert code == 2 and err.count("\n") == 1 and "another program" in err and "pwned" not in err and "\x1b" not in err
    assert time.monotonic() - began < 4


def test_threads_that_ended_leave_no_connection_open(filled):
    def look():
        list(filled.runs())

    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    look()
    before = descriptors()
    for _ in range(30):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert descriptors() <= before + 2


def test_a_cancelled_measurement_frees_its_place(store_of_tiny):
    store, tiny, run = store_of_tiny
    with serving(store, tiny) as at:
        answer, connection = at.open_stream(f"/api/runs/{run}/measure", {})
        answer.close()
        connection.close()
        assert until(lambda: not at.live._jobs, 10)
        assert at.frames("/api/ask", {"prompt": "the", "settings": {"max_new_tokens": 2}})[-1][1]["event"] == "end"


@pytest.fixture
def store_of_tiny(tmp_path, tiny):
    with Store.open(tmp_path / "r.db") as store:
        yield store, tiny, store.add(tiny.generate("the quick", max_new_tokens=40, thought_length=6, stop_ids=[]).trace)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_terminated_says_so(folder, tmp_path, number):
    path = tmp_path / "r.db"
    command = [sys.executable, "-m", "quietstar", "think", "the quick", "-m", folder, "-n", "400", "-t", "4", "--raw",
               "--json", "--db", str(path)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(6):
        assert process.stdout.readline()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    with Store.open(path) as store:
        (run,) = store.runs()
    assert run.reason == "interrupted" and run.tokens > 0 and process.returncode == 128 + number, err
    assert "Traceback" not in err
