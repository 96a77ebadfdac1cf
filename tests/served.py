"""The page's server inside the test process, and what a client says to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager

import uvicorn

from quietstar.viewer.guard import Guard
from quietstar.viewer.server import build
from quietstar.viewer.serving import _listen as listen
from quietstar.viewer.worker import ModelWorker


class Served:
    """Where a server is, and requests to it."""

    def __init__(self, port: int, worker: ModelWorker | None) -> None:
        self.port, self.worker = port, worker
        self.url = f"http://127.0.0.1:{port}/"

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def request(self, path: str, body=None, method: str | None = None, **headers: str):
        """(status, JSON or text, headers)."""
        connection = self.connection()
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers = {"Content-Type": "application/json"} | headers
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(text) if kind == "application/json" and text else text, answer.headers

    def get(self, path: str):
        status, found, _ = self.request(path)
        assert status == 200, found
        return found

    def open_stream(self, path: str, body):
        """A response whose frames have not been read, and its connection."""
        connection = self.connection()
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        return connection.getresponse(), connection

    def frames(self, path: str, body) -> list[tuple[str, dict]]:
        answer, connection = self.open_stream(path, body)
        assert answer.status == 200, answer.read()
        found = list(read_frames(answer))
        connection.close()
        return found


def read_frames(answer):
    kind = ""
    while line := answer.readline().decode().rstrip("\n"):
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))
            answer.readline()  # the empty line behind it


@contextmanager
def serving(store, model=None, token=None, host="127.0.0.1"):
    """A server over `store` that answers with `model`."""
    worker = None if model is None else ModelWorker("tiny", lambda: model)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        Guard(build(store, worker), host, port, token),
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=2,
        server_header=False,
        ws="none",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Served(port, worker)
    finally:
        server.should_exit = True
        thread.join(20)
        if worker is not None:
            worker.close()


def until(condition, seconds: float = 30) -> bool:
    """Whether `condition` comes true in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return bool(condition())
