"""A server of OpenAI's interface that answers by rule, and fails in every way on request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

LABELS = ("card", "loan")
PROMPT = "Is the text about a card or a loan? Answer with one word."


def said_to(text: str) -> str:
    """Return what the model says: in capitals, with a full stop; to odd texts none of the labels."""
    if "odd" in text:
        return f"I cannot say what {text} is."
    return "Card." if "card" in text else "Loan."


class Gateway(ThreadingHTTPServer):
    """The server.

    Attributes:
        failing: What it does in place of an answer: a status, "cut", "slow", "no json" or "refusal".
        requests: Paths, headers and bodies of the requests.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failing: int | str | None = None
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.slow = Event()

    @property
    def asked(self) -> int:
        """The number of requests."""
        return len(self.requests)

    @property
    def address(self) -> str:
        """Its address, up to the version."""
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Gateway

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers), b""))
        self._send(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.requests.append((self.path, dict(self.headers), body))
        asked = json.loads(body) if body.startswith(b"{") else {}
        failing = self.server.failing
        if asked.get("stream"):
            self._stream()
        elif not self.path.startswith("/v1/chat/completions"):
            self._send(200, {"length": len(body)})
        elif isinstance(failing, int):
            self._send(failing, {"error": {"message": "not now", "code": "stub"}})
        elif failing == "no json":
            self._send_bytes(200, b"<html>")
        elif failing == "slow":
            self.server.slow.wait(30)
            self.close_connection = True
        elif failing == "refusal":
            self._send(200, _completion(None))
        else:
            self._send(200, _completion(said_to(_text(asked))), cut=failing == "cut")

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        for word in ("Hello", " you"):
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            part = {**chunk, "choices": [{"index": 0, "delta": {"content": word}}]}
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def _send(self, status: int, content: Any, *, cut: bool = False) -> None:
        self._send_bytes(status, json.dumps(content).encode(), cut=cut)

    def _send_bytes(self, status: int, content: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.send_header("x-request-id", "from-the-gateway")
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = True

    def log_message(self, *given: Any) -> None:
        pass


def _text(asked: dict[str, Any]) -> str:
    content = asked["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def _completion(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22}
    head = {"id": "c", "object": "chat.completion", "created": int(time.time()), "model": "m"}
    return {**head, "choices": [choice], "usage": usage}


@contextmanager
def gateway() -> Iterator[Gateway]:
    """Run a gateway."""
    server = Gateway()
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.slow.set()
        server.shutdown()
        thread.join()
        server.server_close()
