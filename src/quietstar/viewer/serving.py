"""Listening: the address, the token, and the message where the port is in use."""

from __future__ import annotations

import errno
import secrets
import socket
import time
from collections.abc import Callable

from quietstar.errors import QuietStarError
from quietstar.record.store import Store
from quietstar.viewer.guard import OURS, Guard
from quietstar.viewer.server import build
from quietstar.viewer.worker import ModelWorker

PORT = 8719


def serve(
    store: Store,
    worker: ModelWorker | None,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    token: str | None = None,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until it is interrupted.

    Args:
        store: the record. worker: the model, None to show only.
        host: what to listen on. port: 0 takes any free one.
        token: the secret that clients must send, generated when None; "" lets every account of this machine connect.
        ready: called with the address when connections are accepted.

    Raises:
        QuietStarError: cannot listen on the host or port.
    """
    import uvicorn

    if token is None:
        token = secrets.token_urlsafe(18)
    with _listen(host, port) as listener:
        port = listener.getsockname()[1]
        application = Guard(build(store, worker), host, port, token or None)
        server = uvicorn.Server(
            uvicorn.Config(
                application,
                log_level="warning",
                access_log=False,
                lifespan="off",
                timeout_graceful_shutdown=2,
                server_header=False,
            )
        )
        ready(address(host, port) + (f"?token={token}" if token else ""))
        try:
            server.run(sockets=[listener])
        finally:
            if worker is not None:
                worker.close()


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"cannot listen on {host!r}, port {port}: {reason}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # connections inherit it; without, an answer in two pieces waits for the client's delayed acknowledgement
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.bind(where)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise QuietStarError(_taken(host, port)) from error
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"cannot listen on {host}, port {port}: {reason}; --port N uses another one") from error
    return listener


def _taken(host: str, port: int) -> str:
    """The message where a server is listening already: another page of quietstar, or another program."""
    if _is_quietstar(host, port):
        return (
            f"another `quietstar view` listens on port {port}: open the address it printed, or use another port with "
            "--port 0"
        )
    return f"port {port} is used by another program; --port N uses another one, --port 0 any free one"


def _is_quietstar(host: str, port: int, seconds: float = 2.0, most: int = 2**14) -> bool:
    """Whether a page of quietstar listens there, by the header of its responses.

    It may be any program: at most `most` bytes are read within `seconds`, no proxy is used, and nothing that it sends
    is shown.
    """
    end = time.monotonic() + seconds
    host = "localhost" if host in ("0.0.0.0", "::", "") else host
    answer = b""
    try:
        with socket.create_connection((host, port), timeout=seconds) as connection:
            connection.sendall(b"GET /api/about HTTP/1.0\r\nHost: localhost\r\n\r\n")
            while b"\r\n\r\n" not in answer and len(answer) < most and (left := end - time.monotonic()) > 0:
                connection.settimeout(left)
                piece = connection.recv(2**12)
                if not piece:
                    break
                answer += piece
    except OSError:
        return False
    name, value = OURS
    return f"{name}: {value}".lower().encode() in answer.partition(b"\r\n\r\n")[0].lower()
