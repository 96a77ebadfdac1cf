"""The page over HTTP: its files, the record as JSON, and the model's work as server-sent events.

Knows routes and forms. What the page shows is in `pages`; what the model does in `asking`, `changing` and `following`;
who may connect in `guard`.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from quietstar.errors import QuietStarError
from quietstar.record.columns import to_json
from quietstar.record.store import Store
from quietstar.viewer import asking, changing, following, pages
from quietstar.viewer.files import STATIC
from quietstar.viewer.worker import Job, ModelWorker, Work

_LARGEST = 2**20  # bytes of what the page may send


class _Number(Convertor[int]):
    """A whole number in an address, within the range of the record's columns; longer ones match no route."""

    regex = "[0-9]{1,15}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("number", _Number())

_Form = TypeVar("_Form")


class Json(Response):
    """Plain data; numbers that are not finite are texts, as in the record."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200) -> None:
        super().__init__(to_json(content), status_code)


class EventStream(Response):
    """The frames of a job as server-sent events; the job is stopped when the client goes away."""

    def __init__(self, job: Job) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self.job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send frames until the job ends or the client disconnects."""
        watching = asyncio.create_task(self._watch(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for frame in self.job:
                chunk = f"event: {frame.kind}\ndata: {to_json(frame.data)}\n\n".encode()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:  # it is gone; the job is stopped below
            pass
        finally:
            self.job.stop()
            watching.cancel()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.job.stop()


def build(store: Store, worker: ModelWorker | None) -> Starlette:
    """The application over a record; without `worker` there is no model to ask."""
    record = _RecordRoutes(store, worker.name if worker is not None else None)
    routes = [
        Route("/", _index),
        Route("/api/about", record.about),
        Route("/api/runs", record.runs),
        Route("/api/runs/{run}", record.run),
        Route("/api/runs/{run}/statistics", record.statistics),
        Route("/api/runs/{run}/thoughts/{position:number}", record.thought),
        Route("/api/thoughts", record.thoughts),
        Route("/api/histograms", record.histograms),
    ]
    if worker is not None:
        model = _ModelRoutes(store, worker)
        routes += [
            Route("/api/ask", model.ask, methods=["POST"]),
            Route("/api/runs/{run}/thoughts/{position:number}/change", model.change, methods=["POST"]),
            Route("/api/runs/{run}/measure", model.measure, methods=["POST"]),
            Route("/api/runs/{run}/interventions/{number:number}/follow", model.follow, methods=["POST"]),
        ]
    return Starlette(
        routes=[*routes, Mount("/static", StaticFiles(directory=STATIC))],
        exception_handlers={QuietStarError: _problem, HTTPException: _refused, Exception: _failed},
    )


def _index(request: Request) -> Response:
    return FileResponse(STATIC / "index.html")


async def _problem(request: Request, error: Exception) -> Response:
    return Json({"error": str(error)}, 400)


async def _refused(request: Request, error: Exception) -> Response:
    """No such address, or not in this way."""
    assert isinstance(error, HTTPException)
    line = f"{request.method} {request.url.path[:200]}: {error.detail}"
    return Json({"error": line}, error.status_code)


async def _failed(request: Request, error: Exception) -> Response:
    """A bug: the page gets one line, the terminal the traceback."""
    return Json({"error": f"{type(error).__name__}: {error}; the terminal of the server has the traceback"}, 500)


class _RecordRoutes:
    """Routes that read the record."""

    def __init__(self, store: Store, model: str | None) -> None:
        self.store, self.model = store, model

    def about(self, request: Request) -> Response:
        return Json(pages.about(self.store, self.model))

    def runs(self, request: Request) -> Response:
        asked = request.query_params
        return Json(
            pages.runs(self.store, asked.get("query", ""), asked.get("tag") or None, asked.get("after") or None)
        )

    def run(self, request: Request) -> Response:
        return Json(pages.run(self.store, request.path_params["run"]))

    def statistics(self, request: Request) -> Response:
        return Json(pages.statistics(self.store, request.path_params["run"]))

    def thought(self, request: Request) -> Response:
        return Json(pages.thought(self.store, request.path_params["run"], request.path_params["position"]))

    def thoughts(self, request: Request) -> Response:
        asked = request.query_params
        order, descending = pages.order(asked)
        offset = asked.get("offset", "0")
        if not (offset.isascii() and offset.isdigit() and len(offset) <= 15):
            raise QuietStarError(f"offset must be a whole number of at most 15 digits, got {offset[:40]!r}")
        return Json(pages.thoughts(self.store, pages.filters(asked), order, descending, int(offset)))

    def histograms(self, request: Request) -> Response:
        return Json(pages.histograms(self.store, pages.filters(request.query_params)))


class _ModelRoutes:
    """Routes that need the model; each answers with a stream of frames."""

    def __init__(self, store: Store, worker: ModelWorker) -> None:
        self.store, self.worker = store, worker

    async def ask(self, request: Request) -> Response:
        question = await _form(request, asking.Question)
        return self._stream(lambda model: asking.ask(model, self.store, question))

    async def change(self, request: Request) -> Response:
        wanted = await _form(request, changing.Change)
        run, position = request.path_params["run"], request.path_params["position"]
        return self._stream(lambda model: changing.change(model, self.store, run, position, wanted))

    async def measure(self, request: Request) -> Response:
        await _body(request)
        run = request.path_params["run"]
        return self._stream(lambda model: asking.measure(model, self.store, run))

    async def follow(self, request: Request) -> Response:
        most = (await _body(request)).get("most")
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise QuietStarError(f"most must be a whole number of at least 1, got {str(most)[:40]!r}")
        run, number = request.path_params["run"], request.path_params["number"]
        return self._stream(lambda model: following.follow(model, self.store, run, number, most))

    def _stream(self, work: Work) -> Response:
        return EventStream(self.worker.start(work))


async def _body(request: Request) -> dict[str, Any]:
    """The JSON object of a request. Other sites cannot send one: browsers do not let them use this content type."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise QuietStarError("the request must have the type application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST:
            raise QuietStarError(f"a request may have at most {_LARGEST} bytes")
    try:
        found = json.loads(bytes(body) or b"{}")
    except (ValueError, RecursionError) as error:  # deep nesting, or a number of thousands of digits
        raise QuietStarError(f"the request is not JSON ({str(error)[:100]})") from error
    if not isinstance(found, dict):
        raise QuietStarError("the request must be a JSON object")
    return found


async def _form(request: Request, kind: type[_Form]) -> _Form:
    """The body as one of the forms that requests have."""
    try:
        return TypeAdapter(kind).validate_python(await _body(request))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise QuietStarError(f"{where}: {first['msg']}") from error
