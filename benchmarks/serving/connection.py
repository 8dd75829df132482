"""A client that costs little: HTTP/1.1 over one connection that is kept, with asyncio alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Self

__all__ = ["Connection", "request_bytes"]


def request_bytes(path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> bytes:
    """A request: POST where there is a body, else GET."""
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "host: service"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [] if body is None else ["content-type: application/json", f"content-length: {len(content)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


class Connection:
    """One connection to a server of this machine, which takes one request at a time.

    Args:
        reader: What comes.
        writer: What goes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Self:
        """Connect to a port of this machine."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request; its status and body come back.

        Raises:
            ConnectionError: The connection broke.
        """
        self._writer.write(request)
        return await self.answer()

    def send(self, request: bytes) -> None:
        """Send a request, and do not wait."""
        self._writer.write(request)

    async def answer(self) -> tuple[int, bytes]:
        """The next answer."""
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            lengths = [line.split(":")[1] for line in lines if line.lower().startswith("content-length:")]
            return int(lines[0].split(" ")[1]), await self._reader.readexactly(int(lengths[0]))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError("the server closed the connection") from error

    def abort(self) -> None:
        """Break the connection, as a client does that is killed."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection in good order."""
        self._writer.close()
        await self._writer.wait_closed()
