"""Who may connect to the page: a browser of this machine that has the token. An ASGI layer around the application.

Four things are kept out: other machines (the server listens on 127.0.0.1 unless --host is given); other accounts of
this machine (a token is required); other web sites in the same browser (Host, Origin and Sec-Fetch-Site are checked);
and markup in what models and files say (the Content-Security-Policy allows this server's own files and nothing else,
and no text ever becomes HTML).
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
OURS = ("X-Quietstar", "view")  # by which a second server knows the first
_HEADERS = {
    OURS[0]: OURS[1],
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """True for the names and addresses that only this machine can reach."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Refuses requests that do not come from the page itself.

    Args:
        app: the application. host: what the server listens on. port: its port, part of the cookie's name.
        token: the secret that a client must send, None where every account of this machine may connect.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, token: str | None) -> None:
        self.app, self.token = app, token
        self.open = not is_loopback(host)
        self.names = {host.lower(), "localhost", socket.gethostname().lower()} if self.open else {"localhost"}
        self.cookie = f"quietstar-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with one line that gives the reason."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        if refusal := self._refusal(headers, scope):
            await JSONResponse({"error": refusal}, 403)(scope, receive, guarded)
            return
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        if self.token is not None:
            if "token" in query and self._known(query.pop("token")):  # once; after that the browser has a cookie
                path = "/" + scope["path"].lstrip("/\\")  # a browser takes // at the beginning for another host
                answer = RedirectResponse(path + (f"?{urlencode(query)}" if query else ""), 303)
                # "lax" because --open arrives from a file, another site; the checks above refuse what other sites send
                answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax")
                await answer(scope, receive, guarded)
                return
            if not self._known(self._given(headers)):
                line = "this page needs its token: open the address that `quietstar view` printed"
                await JSONResponse({"error": line}, 401)(scope, receive, guarded)
                return
        await self.app(scope, receive, guarded)

    def _refusal(self, headers: Headers, scope: Scope) -> str | None:
        host = headers.get("host", "")
        if not self._serves(_name(host)):
            return f"this server does not answer to the name {host!r}; open the address that `quietstar view` printed"
        origin = headers.get("origin")
        if origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
            return f"a page of {origin} may not read or change this record"
        site = headers.get("sec-fetch-site", "none")
        if site not in ("same-origin", "none") and not (scope["method"] == "GET" and scope["path"] == "/"):
            return "another site may not read or change this record"
        return None

    def _serves(self, name: str) -> bool:
        """Names are checked against rebinding; an address in the Host header cannot have been rebound."""
        if name in self.names or is_loopback(name):
            return True
        if not self.open:
            return False
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def _given(self, headers: Headers) -> str:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return bearer
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        return jar[self.cookie].value if self.cookie in jar else ""

    def _known(self, given: str) -> bool:
        return self.token is not None and hmac.compare_digest(given.encode(), self.token.encode())


def _name(host: str) -> str:
    """The name in a Host header, without port and brackets."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.rpartition(":")[0] if ":" in name else name
