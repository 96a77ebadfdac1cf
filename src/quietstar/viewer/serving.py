"""Listening: the address, the token, and what to say where the port is taken."""

from __future__ import annotations

import errno
import json
import secrets
import socket
import urllib.request
from collections.abc import Callable
from urllib.error import URLError

from quietstar.errors import QuietStarError
from quietstar.scratchpad.store import Store
from quietstar.viewer.guard import Guard, is_loopback
from quietstar.viewer.live import Live
from quietstar.viewer.server import build

PORT = 8719


def serve(
    store: Store, live: Live | None, *, host: str = "127.0.0.1", port: int = PORT, token: str | None = None,
    ready: Callable[[str], None],
) -> None:  # fmt: skip
    """Serve the page until it is interrupted.

    Args:
        store: the record. live: the model, None to show only.
        host: what to listen on. port: 0 takes any free one.
        token: what one must know to come in; made up where other machines can reach the host and none is given.
        ready: is told the address when connections are taken.

    Raises:
        QuietStarError: the host or port cannot be had.
    """
    import uvicorn

    if token is None and not is_loopback(host):
        token = secrets.token_urlsafe(18)
    with _listen(host, port) as listener:
        port = listener.getsockname()[1]
        application = Guard(build(store, live), host, port, token)
        server = uvicorn.Server(
            uvicorn.Config(
                application, log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2,
                server_header=False,
            )
        )  # fmt: skip
        ready(address(host, port) + (f"?token={token}" if token is not None else ""))
        try:
            server.run(sockets=[listener])
        finally:
            if live is not None:
                live.close()


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds the page."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"cannot listen on {host!r}, port {port}: {reason}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise QuietStarError(_taken(host, port)) from error
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"cannot listen on {host}, port {port}: {reason}; --port names another one") from error
    return listener


def _taken(host: str, port: int) -> str:
    """What to say where somebody listens already: another page of ours, or another program."""
    try:
        with urllib.request.urlopen(address(host, port) + "api/about", timeout=2) as answer:
            record = json.loads(answer.read())["record"]
    except (URLError, OSError, ValueError, KeyError, TypeError):
        return f"port {port} is taken by another program; --port names another one, --port 0 takes any that is free"
    return (
        f"another `quietstar view` serves {record} there: open {address(host, port)}, "
        "or take another port with --port 0"
    )
