"""`create_front_app`: `Live` in front of a server with OpenAI's interface.

Clients keep their prompts and change one address. Of each call of `POST /v1/chat/completions`:

1. It is a classification call if it names every label and wants one plain text. Every other call,
   of this route or another, is passed on as it is, and so is what comes back.
2. Its row is its last message, with a digest of all else that the answer may depend on: another
   prompt or model is another row.
3. `Live` decides. If it asks, the call is sent on as it is, and its response is passed on as it is,
   also an error. A response with a text teaches the cheap model, and is in the database before the
   client has it.
4. Otherwise the answer is a text that the gateway gave before: for the same row, or as the cheap
   model's class. An answer outside the labels is kept like any other, but the cheap model gives
   none.

Who may call is the business of the proxy in front: an answer that needs no call of the gateway is
given without its authentication.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, generate_latest
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response, StreamingResponse

from ponder._utils.checks import library
from ponder._utils.rounding import rounded_up
from ponder.cascade import Student
from ponder.cascade.asking import Asking
from ponder.cascade.clients import bare_answer
from ponder.cascade.live import BudgetSpentError, Live
from ponder.deploy.server_http import Limits, RequestMetrics, new_app
from ponder.errors import ArgumentError, PonderError
from ponder.statistics.certificate import CONFIDENCE, LEVEL

__all__ = ["Front", "create_front_app"]

_ROUTE = "/v1"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_MAX_BODY = 1 << 26
_THREADS = 256
"""Calls that wait for an answer at the same time; more wait for a thread."""
_RICHER = ("stream", "tools", "functions", "logprobs", "audio", "web_search_options")
"""Fields of calls that want more than one plain text."""
_UNREAD = ("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier")
"""Fields that a model does not read."""
# Of one connection (RFC 9110, 7.6.1), or set anew by the client and the server.
_OF_CONNECTION = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade", "host", "content-length"),
}
_WORD = re.compile(r"[^\W_]+")
_OUTSIDE = "an answer that is none of the labels"


@dataclass(eq=False)
class _Call:
    """A classification call, and what the gateway said to it."""

    request: httpx.Request
    response: Response | None = None


class Front:
    """Classification calls that `Live` answers, and a gateway that answers all others.

    Args:
        base_url: The address of the gateway, up to `/v1`.
        labels: The answers of a classification call, two at least.
        level: The share of the answers that may differ.
        confidence: The probability with which the promise holds.
        path: The SQLite file with answers and the ledger; None for memory.
        budget: Limit of the calls that `Live` makes, those of earlier processes included; None for
            no limit.
        price: The price of a call.
        timeout: Seconds that the gateway may take.

    Attributes:
        live: The models and the promise.
    """

    def __init__(
        self,
        base_url: str,
        labels: Sequence[str],
        level: float = LEVEL,
        confidence: float = CONFIDENCE,
        path: str | Path | None = None,
        *,
        budget: int | None = None,
        price: float = 1.0,
        timeout: float = 600.0,
    ) -> None:
        if len(set(labels)) < 2:
            got = f"{len(set(labels))}"
            remedy = "Name all answers of a classification call, one a line."
            raise ArgumentError("labels", expected="two at least", got=got, remedy=remedy)
        self.metrics = _Metrics(self)
        self._price = price
        self._gateway = base_url.rstrip("/")
        self._labels = {bare_answer(label) for label in labels}
        self._named = [_words(label) for label in labels]
        self._client = httpx.AsyncClient(timeout=timeout, limits=httpx.Limits(max_connections=None))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="ponder-front")
        self._waiting: dict[str, list[_Call]] = {}
        # A call is tried once, and a gateway that is down is asked again: its clients have rules
        # of their own for both.
        asking = Asking(attempts=1, failures=None)
        library("sklearn.linear_model", "a front", "cascade")  # else the first teaching loads it
        self.live = Live(
            self._ask,
            level,
            confidence,
            path,
            teach=self._teach,
            budget=budget,
            asking=asking,
            teach_apart=True,
        )
        self._texts = {bare_answer(text): text for text in self.live.asked_by_class()}
        """The text in which the gateway first gave each answer."""

    def facts(self) -> dict[str, Any]:
        """Return the promise in words, and its numbers."""
        account = self.live.account
        saved = account.answers - account.asked
        return {
            "statement": self.live.statement,
            "level": self.live.level,
            "confidence": self.live.confidence,
            "answers": account.answers,
            "W": account.ledger.bound,
            "asked": account.asked,
            "saved": saved,
            "spent": account.asked * self._price,
            "unspent": saved * self._price,
        }

    def fact(self, name: str) -> float:
        """Return one of the numbers of `facts`."""
        return float(self.facts()[name])

    async def complete(self, request: Request) -> Response:
        """Answer a call of `/chat/completions`, or pass it on."""
        body = await request.body()
        row = self._row_of(body)
        if row is None:
            return await self.forward(request)
        self._loop = asyncio.get_running_loop()
        call = _Call(await self._onward(request))
        # An answer that is read here comes without compression.
        call.request.headers["accept-encoding"] = "identity"
        calls = self._waiting.setdefault(row, [])
        calls.append(call)
        try:
            found = await self._loop.run_in_executor(self._threads, self.live.answer, [row])
        finally:
            calls.remove(call)
            if not calls:
                del self._waiting[row]
        asked = call.response is not None
        if call.response is None and not found.errors:
            call.response = _completion(json.loads(body).get("model"), found.labels[0])
        response = call.response or _error_response(found.errors[0])
        account = self.live.account
        share = account.ledger.bound / max(account.answers, 1)
        _mark(response, found.source[0], asked=asked)
        response.headers["x-ponder-bound"] = rounded_up(share, 4)
        request.state.note = f"source={found.source[0]} asked={asked}"
        return response

    async def forward(self, request: Request) -> Response:
        """Pass a call on, and its response as it comes, also in parts."""
        self.metrics.passed.inc()
        onward = await self._onward(request)
        try:
            came = await self._client.send(onward, stream=True)
        except httpx.HTTPError as error:
            return _error_response(error)
        response = StreamingResponse(
            came.aiter_raw(), came.status_code, background=BackgroundTask(came.aclose)
        )
        response.raw_headers = _kept(came.headers.raw)
        _mark(response, "passed", asked=True)
        return response

    async def close(self) -> None:
        """Return when all calls under way are answered, and the database is closed."""
        await asyncio.to_thread(self._threads.shutdown)
        self.live.close()
        await self._client.aclose()

    def _row_of(self, body: bytes) -> str | None:
        """Return the row of a classification call; None for another call."""
        try:
            asked = json.loads(body)
            *before, last = asked["messages"]
            text = _text_of(last["content"])
            plain = last["role"] == "user" and asked.get("n") in (None, 1)
            if not plain or any(asked.get(field) for field in _RICHER):
                return None
            rest = {name: value for name, value in asked.items() if name not in _UNREAD}
            rest["messages"] = [*before, {**last, "content": None}]
            context = json.dumps(rest, ensure_ascii=False, sort_keys=True)
            digest = blake2b(context.encode(), digest_size=6).hexdigest()
        except (ValueError, KeyError, TypeError):
            return None  # the gateway says what is wrong with it
        words = _words_of_context(context) + _words(text)
        if not all(label in words for label in self._named):
            return None
        return f"{text}\n{digest}"

    def _ask(self, rows: Sequence[str]) -> list[str]:
        """Send the call of a row on, keep its response for its client, and return its text."""
        (row,) = rows
        call = self._waiting[row][0]
        assert self._loop is not None
        sending = asyncio.run_coroutine_threadsafe(self._client.send(call.request), self._loop)
        try:
            came = sending.result()
        except httpx.HTTPError as error:
            call.response = _error_response(error)
            raise
        call.response = Response(came.content, came.status_code)
        call.response.raw_headers = _kept(came.headers.raw, but="content-encoding")
        call.response.headers["content-length"] = str(len(came.content))
        text = _text_of_completion(came)
        return [self._texts.setdefault(bare_answer(text), text)]

    def _teach(self, rows: Sequence[str], texts: Sequence[str]) -> _LabelModel:
        """Teach a cheap model the answers that are labels."""
        names = [text if self._is_label(text) else _OUTSIDE for text in texts]
        return _LabelModel(rows, names)

    def _is_label(self, text: str) -> bool:
        """Return whether an answer is a label, or JSON with one value, which is a label."""
        try:
            found = json.loads(text)
        except ValueError:
            found = text
        if isinstance(found, dict) and len(found) == 1:
            (found,) = found.values()
        return bare_answer(str(found)) in self._labels or bare_answer(text) in self._labels

    async def _onward(self, request: Request) -> httpx.Request:
        """Return a call as it goes to the gateway."""
        path = request.scope["raw_path"].decode("ascii").removeprefix(_ROUTE)
        query = request.scope["query_string"].decode("ascii")
        address = f"{self._gateway}{path}?{query}" if query else f"{self._gateway}{path}"
        headers = [(b"accept-encoding", b"identity")]
        if "accept-encoding" in request.headers:
            headers = []
        headers += _kept(request.headers.raw)
        content = await request.body()
        return httpx.Request(request.method, address, headers=headers, content=content)


class _LabelModel:
    """A student whose answers are labels alone; to another row it has no answer."""

    def __init__(self, rows: Sequence[str], names: Sequence[str]) -> None:
        self._student: Student | None = None
        self.classes: tuple[str, ...] = (_OUTSIDE,)
        if len(set(names)) > 1:
            self._student = Student.fit(rows, names)
            self.classes = tuple(self._student.classes)

    def predict_proba(self, rows: Sequence[str]) -> NDArray[Any]:
        """Return probabilities, `(rows, classes)`; NaN for a row without an answer."""
        if self._student is None:
            return np.full((len(rows), 1), np.nan)
        shares = np.array(self._student.predict_proba(rows))
        best = np.array(self.classes)[shares.argmax(axis=1)]
        shares[best == _OUTSIDE] = np.nan
        return shares


class _Metrics(RequestMetrics):
    """Calls that were passed on, and gauges of the promise and of its costs."""

    def __init__(self, front: Front) -> None:
        super().__init__()
        self.passed = Counter(
            "ponder_passed", "Calls that were passed on untouched.", registry=self.registry
        )
        for name, what in (
            ("answers", "Classification calls that were answered."),
            ("W", "Bound on the answers that differ from the gateway's."),
            ("asked", "Classification calls that went to the gateway."),
            ("saved", "Classification calls that did not."),
            ("spent", "Price of the calls that went to the gateway."),
        ):
            gauge = Gauge(f"ponder_{name}", what, registry=self.registry)
            gauge.set_function(partial(front.fact, name))


def create_front_app(front: Front) -> FastAPI:
    """Return the application of a front, which it closes when the server's lifespan ends."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await front.close()

    app = new_app(Limits(deadline=None), _MAX_BODY, front.metrics, lifespan)

    @app.get("/health")
    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        """Return the promise in words and numbers, and what was asked, saved and spent."""
        return {"status": "ok", **front.facts()}

    @app.get("/metrics")
    def metrics() -> Response:
        """Return counters, histograms and gauges in the format of Prometheus."""
        return Response(generate_latest(front.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(f"{_ROUTE}/chat/completions")
    async def complete(request: Request) -> Response:
        """Answer a classification call; pass any other call on."""
        return await front.complete(request)

    @app.api_route(_ROUTE + "/{path:path}", methods=list(_METHODS), include_in_schema=False)
    async def forward(request: Request) -> Response:
        """Pass a call on to the gateway."""
        return await front.forward(request)

    return app


def _text_of(content: Any) -> str:
    """Return the text of a message, also of one in parts.

    Raises:
        TypeError: It has an image, say, and not only text.
    """
    if isinstance(content, str):
        return content
    return "\n".join([_only_text(part) for part in content])


def _only_text(part: Any) -> str:
    if part["type"] != "text":
        raise TypeError(part["type"])
    text: str = part["text"]
    return text


def _words(text: str) -> str:
    """Return the words of a text between spaces, to look for those of a label."""
    words = " ".join(_WORD.findall(text.casefold()))
    return f" {words} "


_words_of_context = lru_cache(maxsize=64)(_words)  # most calls have the prompt of the last one


def _text_of_completion(came: httpx.Response) -> str:
    """Return the text of a response.

    Raises:
        PonderError: It has none: the gateway refused the call, or the body is cut.
    """
    try:
        text = came.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        text = None
    if came.status_code != 200 or not isinstance(text, str):
        raise PonderError(f"the gateway gave no text (status {came.status_code}).")
    return text


def _completion(model: Any, text: str) -> Response:
    """Return a completion that no model was asked for."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    return JSONResponse(
        {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": model,
            "choices": [choice],
            "usage": usage,
        }
    )


def _error_response(error: Exception) -> Response:
    """Return an error in the form of OpenAI's interface."""
    status = 502
    code = "gateway_failed"
    headers = {}
    if isinstance(error, BudgetSpentError):
        status = 429
        code = "insufficient_quota"
        headers["x-should-retry"] = "false"
    elif isinstance(error, httpx.TimeoutException):
        status = 504
        code = "gateway_timed_out"
    what = str(error) or type(error).__name__
    content = {"error": {"message": what, "type": code, "param": None, "code": code}}
    return JSONResponse(content, status, headers)


def _mark(response: Response, source: str, *, asked: bool) -> None:
    """Say in the headers of a response whose it is, and whether the gateway was asked."""
    response.headers["x-ponder-source"] = source
    response.headers["x-ponder-asked"] = str(asked).lower()


def _kept(headers: Sequence[tuple[bytes, bytes]], but: str = "") -> list[tuple[bytes, bytes]]:
    """Return the headers that are passed on."""
    names = {*_OF_CONNECTION, but}
    return [(name.lower(), value) for name, value in headers if name.decode().lower() not in names]
