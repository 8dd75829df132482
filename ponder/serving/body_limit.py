"""Requests that are too large, or too slow to come, are answered by 413 and 408 before they are read as a whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ponder.serving.metrics import Outcome

__all__ = ["BodyLimit"]

_SECONDS = 10.0  # a server that is told to stop waits for bodies, too


class BodyLimit:
    """ASGI middleware that bounds the bytes of a body, declared or not, and the time in which it comes.

    Args:
        app: The application behind it.
        limit: Bytes.
        refused: Called for every request that is too large or too slow, with its outcome.
        seconds: The time from the head of a request to the end of its body.
    """

    def __init__(
        self, app: ASGIApp, limit: int, refused: Callable[[Outcome], object], seconds: float = _SECONDS
    ) -> None:
        self._app, self._limit, self._refused, self._seconds = app, limit, refused, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is small enough; the body is read here, up to the limit."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return

        async def refuse(status: int, outcome: Outcome, detail: str) -> None:
            self._refused(outcome)
            await JSONResponse({"detail": detail}, status, {"connection": "close"})(scope, receive, send)

        declared = dict(scope["headers"]).get(b"content-length", b"")
        too_large = declared.isdigit() and int(declared[:20]) > self._limit
        try:
            async with asyncio.timeout(self._seconds):
                body = b"" if too_large else await self._read(receive)
        except TimeoutError:
            await refuse(408, "too_slow", f"the request did not come within {self._seconds:g} seconds.")
            return
        if body is None:
            return  # the client is gone
        if too_large or len(body) > self._limit:
            await refuse(413, "too_large", f"the request is larger than {self._limit} bytes.")
            return
        given = False

        async def replay() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The body, or its beginning where it is too large; None where the client leaves."""
        parts, size = [], 0
        while size <= self._limit:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if not message.get("more_body", False):
                break
        return b"".join(parts)
