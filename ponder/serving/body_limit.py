"""Requests that are too large are answered by 413, before they are read as a whole."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BodyLimit"]


class BodyLimit:
    """ASGI middleware that bounds the bytes of a body, declared or not.

    Args:
        app: The application behind it.
        limit: Bytes.
        refused: Called for every request that is too large.
    """

    def __init__(self, app: ASGIApp, limit: int, refused: Callable[[], object]) -> None:
        self._app, self._limit, self._refused = app, limit, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on what is small enough; the body is read here, up to the limit."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"")
        body = b"" if declared.isdigit() and int(declared[:20]) > self._limit else await self._read(receive)
        if body is None:
            return  # the client is gone
        if len(body) > self._limit or (declared.isdigit() and int(declared[:20]) > self._limit):
            self._refused()
            told = {"detail": f"the request is larger than {self._limit} bytes."}
            await JSONResponse(told, 413, {"connection": "close"})(scope, receive, send)
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
