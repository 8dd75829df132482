"""What the services of this room share: limits, refusals, and the log and count of requests.

`new_app` makes an application whose door (`_Door`) bounds the bodies of requests, and whose errors
are answered in one form, `{"detail": …}`. `ponder.deploy.server` and `ponder.deploy.server_ranking`
add their routes to it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ponder.deploy.server_batching import Text
from ponder.errors import ArgumentError

__all__ = ["LOG", "Limits", "RequestMetrics", "has_half_a_character", "new_app", "too_many_wait"]

LOG = logging.getLogger("ponder.server")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Args:
        max_batch: Texts of a batch.
        max_waiting: Texts or documents that may wait for an answer; further requests get status
            429.
        max_texts: Texts of a request.
        max_documents: Documents of a query.
        max_body: Bytes of a request.
        deadline: Seconds that a request may take, with its body, tokenising and waiting; None for
            any time.
        fixed_policy: Whether thresholds in requests are refused.
    """

    max_batch: int = 32
    max_waiting: int = 1024
    max_texts: int = 64
    max_documents: int = 1000
    max_body: int = 1 << 16
    deadline: float | None = 30.0
    fixed_policy: bool = False


class RequestMetrics:
    """Counter and latency of the requests of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "ponder_requests", "Requests, by status.", ["status"], registry=self.registry
        )
        self.latency = Histogram(
            "ponder_latency_seconds", "Latency of 200s.", buckets=_SECONDS, registry=self.registry
        )


def new_app(
    limits: Limits, max_body: int, metrics: RequestMetrics | None = None, lifespan: Any = None
) -> FastAPI:
    """Return an application without routes, but for `GET /`, which lists them.

    Args:
        limits: The limits of requests.
        max_body: Bytes of a request.
        metrics: What counts the requests; None counts nothing.
        lifespan: The context in which the service runs, as FastAPI takes it.
    """
    app = FastAPI(title="ponder", version=version("ponder-torch"), lifespan=lifespan)
    app.add_middleware(_Door, metrics=metrics, max_body=max_body, deadline=limits.deadline)

    @app.get("/")
    async def routes() -> dict[str, str]:
        """Return the routes of this service, each with what it does."""
        described = [route for route in app.routes if isinstance(route, APIRoute)]
        listed = [
            (f"{min(route.methods or {'GET'})} {route.path}", route.description)
            for route in described
        ]
        return {**dict(listed), "GET /docs": "Show these routes with their fields, to try them."}

    for kind in (ArgumentError, RequestValidationError, TimeoutError, Exception):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answer with `{"detail": …}`; the content of a request is never sent back."""
    status: int = 422
    detail: Any = str(error)
    kind = request.headers.get("content-type", "")
    if isinstance(error, RequestValidationError) and "json" not in kind:
        detail = "expected JSON. Send the header content-type: application/json."
    elif isinstance(error, RequestValidationError):
        detail = []
        for each in error.errors()[:8]:
            location = [str(part)[:80] for part in each["loc"]]
            detail.append({"where": location, "what": each["msg"]})
    elif isinstance(error, TimeoutError):
        status = 504
        detail = "no answer within the time of a request."
    elif not isinstance(error, ArgumentError):
        status = 500
        detail = "the model failed on this request; the log of the service says how."
    return JSONResponse({"detail": detail}, status)


class _Door:
    """ASGI middleware that bounds the body, counts the request, and logs it in one line."""

    def __init__(
        self, app: ASGIApp, metrics: RequestMetrics | None, max_body: int, deadline: float | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._max = max_body
        self._deadline = deadline

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = 0
        status = 500
        started = time.perf_counter()
        whole = False
        end: float | None = None
        if self._deadline is not None:
            end = asyncio.get_running_loop().time() + self._deadline

        async def limited() -> Message:
            nonlocal size, whole
            try:
                # The message after the body says that the client has gone: it has no deadline.
                async with asyncio.timeout_at(None if whole else end):
                    message = await receive()
            except TimeoutError as error:
                why = "the body did not come within the time of a request."
                raise HTTPException(504, why, {"connection": "close"}) from error
            size += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if size > self._max:
                raise HTTPException(
                    413, f"the request is larger than {self._max} bytes.", {"connection": "close"}
                )
            return message

        async def noted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, limited, noted)
        finally:
            self._note(scope, status, time.perf_counter() - started)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        asked = scope["method"] == "POST"
        note = scope.get("state", {}).get("note", "")
        if asked and self._metrics is not None:
            self._metrics.requests.labels(status).inc()
            if status == 200:
                self._metrics.latency.observe(seconds)
        line = f"{scope['method']} {scope['path']} {status} {1000 * seconds:.1f} ms {note}".rstrip()
        level = logging.INFO if asked else logging.DEBUG
        LOG.log(level, "%s", line)


def too_many_wait(noun: str) -> HTTPException:
    """Return the refusal of a request for which there is no room."""
    return HTTPException(429, f"too many {noun} wait. Ask again later.", {"retry-after": "1"})


def has_half_a_character(text: Text) -> bool:
    """Return whether a text has half of a surrogate pair, which no tokeniser reads."""
    joined = text if isinstance(text, str) else "".join(text)
    return any("\ud800" <= character <= "\udfff" for character in joined)
