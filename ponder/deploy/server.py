"""`create_app`: a model behind HTTP (needs `pip install 'ponder-torch[serve]'`).

`POST /predict` answers texts, each at its exit. A ledger audits a share of the answers at full
depth after they were given; if its bound would pass the promised level, requests are answered at
full depth until it holds again. TLS and authentication belong to the proxy in front.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTasks
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ponder.calibration.families import exchanged, part_with_threshold
from ponder.calibration.statement import in_words
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.ranking import Pool, Ranker
from ponder.deploy.server_batching import Answering, Batcher, Served, Some, Text
from ponder.deploy.tracing import add_event
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep
from ponder.policies.combine import Certified

__all__ = [
    "Limits",
    "PredictRequest",
    "RankRequest",
    "RerankRequest",
    "Service",
    "create_app",
    "create_rank_app",
    "ledger_of",
    "with_threshold",
]

_log = logging.getLogger("ponder.server")
_LOGGED = 8
"""Errors of one batch that are logged."""
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


class PredictRequest(BaseModel):
    """A request of `POST /predict`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"texts": ["a text", "another text"], "threshold": 0.9}]},
    )

    texts: list[str | tuple[str, str]] = Field(
        min_length=1, description="Texts, or pairs of texts."
    )
    threshold: float | None = Field(
        None, allow_inf_nan=False, description="Instead of the policy's own threshold."
    )


class RankRequest(BaseModel):
    """A request of `POST /rank`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"query": "a", "documents": ["b", "c"]}]}
    )

    query: str
    documents: list[str] = Field(min_length=1)
    scores: list[float] = Field(
        [], description="First-stage scores, if the exits were fitted with such."
    )
    top_k: int | None = Field(None, ge=1)
    within: float | None = Field(None, gt=0, description="Seconds that the answer may take.")


class RerankRequest(BaseModel):
    """A request of `POST /rerank`, in the shape of Text Embeddings Inference."""

    query: str
    texts: list[str] = Field(min_length=1)
    raw_scores: bool = Field(False, description="Accepted; scores are those of the model.")
    return_text: bool = False
    truncate: bool = Field(True, description="Accepted; long texts are always cut.")


class Service:
    """A model that answers requests, until it is closed; arguments as for `create_app`."""

    def __init__(
        self,
        served: Served,
        limits: Limits,
        ledger: ServedLedger | None = None,
        reference: Answering | None = None,
    ) -> None:
        self.served = served
        self.limits = limits
        self.ledger = ledger
        self.waiting = 0
        self.reference = reference
        self.metrics = _Metrics(self)
        self._batcher = Batcher(partial(_answer, served), limits.max_batch)
        self._deep = self._batcher
        if reference is not None:
            self._deep = Batcher(partial(_answer, reference), limits.max_batch)

    async def predict(self, texts: Sequence[Text], threshold: float | None = None) -> Answered:
        """Answer the texts of a request; if the ledger does not allow early answers, at full depth.

        Raises:
            HTTPException: The request is invalid (422), or too many texts wait (429).
            TimeoutError: Its time is up (504).
            ArgumentError: The policy cannot have this threshold (422).
        """
        self._check(texts, threshold)
        policy = self.served.policy
        if threshold is not None:
            policy = with_threshold(policy, threshold)
        audits = self.ledger is not None and threshold is None
        deferred = audits and self.ledger is not None and not self.ledger.allows(len(texts))
        if self.waiting + len(texts) > self.limits.max_waiting:
            raise HTTPException(429, "too many texts wait. Ask again later.", {"retry-after": "1"})
        self.waiting += len(texts)
        try:
            async with asyncio.timeout(self.limits.deadline):
                most = self.served.max_characters
                cut = [_cut(text, most) for text in texts]
                if deferred:
                    future = self._deep.submit(cut, LastStep())
                else:
                    future = self._batcher.submit(cut, policy)
                answers = await asyncio.wrap_future(future)
        finally:
            self.waiting -= len(texts)
        if deferred:
            add_event("deferral", texts=len(texts))
        if not audits:
            return Answered(answers, [])
        return Answered(answers, self._note(answers, deferred))

    def audit(self, text: Text, label: str) -> None:
        """Answer a text again at full depth, after its answer was sent, for the ledger."""
        cut = [_cut(text, self.served.max_characters)]
        self._deep.submit(cut, LastStep()).add_done_callback(partial(self._settle, label))

    def close(self) -> None:
        """Return when all accepted requests are answered, and the audits are saved."""
        self._batcher.close()
        if self._deep is not self._batcher:
            self._deep.close()
        if self.ledger is not None:
            self.ledger.close()

    def _note(self, answers: Some, deferred: bool) -> list[int]:
        """Count answers in the ledger, and return the places of those that are audited."""
        assert self.ledger is not None
        places = [n for n, share in enumerate(answers.probabilities) if not math.isnan(share)]
        # With a reference, even answers at full depth of the served model may differ.
        deepest: float = self.served.num_steps
        if self.reference is not None:
            deepest = math.inf
        early = [not deferred and answers.exit_step[n] < deepest for n in places]
        return [places[n] for n in self.ledger.note(early)]

    def _settle(self, label: str, done: Future[Some]) -> None:
        """Record an answer at full depth; a failed audit stays pending, which counts as wrong."""
        assert self.ledger is not None
        try:
            (full,) = done.result().labels
            self.ledger.settle(full != label)
        except Exception:
            _log.exception("an audit failed")

    def _check(self, texts: Sequence[Text], threshold: float | None) -> None:
        """Refuse a request that the model cannot answer."""
        most = self.limits.max_texts
        columns = self.served.columns
        if len(texts) > most:
            raise HTTPException(
                422, f"texts: expected {most} at most; got {len(texts)}. Send several requests."
            )
        sizes = {1 if isinstance(text, str) else 2 for text in texts}
        if columns and sizes != {len(columns)}:
            wanted = "texts; got pairs"
            if len(columns) == 2:
                wanted = f"pairs of texts, [{', '.join(columns)}]; got single texts"
            raise HTTPException(
                422, f"texts: expected {wanted}. Send texts like those of the exits' fit."
            )
        if any(_has_half_a_character(text) for text in texts):
            raise HTTPException(422, "texts: expected Unicode; got half of a surrogate pair.")
        if threshold is not None and self.limits.fixed_policy:
            raise HTTPException(422, "threshold: the policy is fixed. Leave it out.")


def create_app(
    served: Served,
    limits: Limits | None = None,
    ledger: ServedLedger | None = None,
    reference: Answering | None = None,
) -> FastAPI:
    """Return the application that serves a model, until the server's lifespan ends.

    Args:
        served: The model.
        limits: The limits of requests.
        ledger: The ledger of its promise (`ledger_of`); None serves without audits.
        reference: The model with which the promise compares, such as the one before int8. By
            default the served model at full depth.
    """
    service = Service(served, limits or Limits(), ledger, reference)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = _app(service.limits, service.limits.max_body, service.metrics, lifespan)

    @app.post("/predict")
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Answer texts, each at its exit."""
        answered = await service.predict(body.texts, body.threshold)
        answers = answered.answers
        labels = list(answers.labels)
        steps = [int(step) for step in answers.exit_step]
        shares = [None if math.isnan(share) else float(share) for share in answers.probabilities]
        request.state.note = f"texts={len(steps)} exit_step={sum(steps) / len(steps):.2f}"
        for step in steps:
            service.metrics.exit_step.observe(step)
        add_event("exit", texts=len(steps), mean_exit_step=sum(steps) / len(steps))
        answer = {
            "labels": [
                None if share is None else label
                for label, share in zip(labels, shares, strict=True)
            ],
            "probabilities": shares,
            "exit_step": steps,
            "num_steps": served.num_steps,
        }
        later = BackgroundTasks()
        for place in answered.audited:
            later.add_task(service.audit, body.texts[place], labels[place])
        if answered.audited:
            add_event("audit", texts=len(answered.audited))
        return JSONResponse(answer, background=later)

    @app.get("/health")
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return the policy, and the state of the ledger in words and in numbers."""
        state: dict[str, Any] = {
            "status": "ok",
            "policy": in_words(served.policy),
            "waiting": service.waiting,
            "statement": "Nothing is audited.",
            "ledger": None,
        }
        if ledger is not None:
            state["statement"] = ledger.statement
            state["ledger"] = {**ledger.to_dict(), "bound": ledger.bound}
        return state

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return counters, histograms and gauges in the format of Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def create_rank_app(ranker: Ranker, limits: Limits | None = None) -> FastAPI:
    """Return the application of a folder that ranks: `POST /rank` orders the candidates of a query.

    Args:
        ranker: The folder's model.
        limits: Bytes of a request, here 16 times as many as of texts, and its deadline.
    """
    limits = limits or Limits()
    ranking = _Ranking(ranker, limits)
    app = _app(limits, 16 * limits.max_body)

    @app.post("/rank")
    async def rank(body: RankRequest) -> Response:
        """Order the candidates of a query, the best first."""
        pool = Pool(body.query, body.documents, body.scores)
        found = await ranking.order(pool, body.top_k, body.within)
        shown = [{**one, "score": _finite(one["score"])} for one in found]
        return JSONResponse({"ranking": shown, "num_steps": ranker.num_steps})

    @app.post("/rerank")
    async def rerank(body: RerankRequest) -> Response:
        """Order texts, the best first, in the format of Text Embeddings Inference."""
        if ranker.first_stage:
            raise HTTPException(
                422,
                "texts: this model ranks by first-stage scores too, for which this format has no "
                "field. Use POST /rank.",
            )
        found = await ranking.order(Pool(body.query, body.texts), len(body.texts), None)
        shown = [{"index": one["corpus_id"], "score": _finite(one["score"])} for one in found]
        if body.return_text:
            shown = [{**one, "text": body.texts[one["index"]]} for one in shown]
        return JSONResponse(shown)

    @app.get("/health")
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return the policy."""
        return {"status": "ok", "policy": in_words(ranker.settings.policy)}

    return app


class _Ranking:
    """The queries of a service: one after the other, each until its deadline."""

    def __init__(self, ranker: Ranker, limits: Limits) -> None:
        self._ranker = ranker
        self._limits = limits
        self._waiting = 0
        self._busy = ThreadPoolExecutor(1, thread_name_prefix="ponder-rank")

    async def order(
        self, pool: Pool, top_k: int | None, within: float | None
    ) -> list[dict[str, Any]]:
        """Order the candidates of a query.

        Raises:
            HTTPException: It has too many documents or half a character (422), or too many wait
                (429).
            TimeoutError: Its time is up (504).
        """
        count = len(pool.documents)
        limits = self._limits
        if count > limits.max_documents:
            most = limits.max_documents
            raise HTTPException(422, f"documents: expected {most} at most; got {count}.")
        if any(_has_half_a_character(text) for text in (pool.query, *pool.documents)):
            raise HTTPException(422, "documents: expected Unicode; got half of a surrogate pair.")
        if self._waiting and self._waiting + count > limits.max_waiting:
            raise HTTPException(
                429, "too many documents wait. Ask again later.", {"retry-after": "1"}
            )
        end: float | None = None
        if limits.deadline is not None:
            end = time.monotonic() + limits.deadline
        self._waiting += count
        run = partial(self._run, pool, top_k, within, end)
        future = asyncio.get_running_loop().run_in_executor(self._busy, run)
        # The documents wait until the thread is done with them, even if the client has gone.
        future.add_done_callback(lambda done: self._through(count))
        async with asyncio.timeout(limits.deadline):
            return await asyncio.shield(future)

    def _run(
        self, pool: Pool, top_k: int | None, within: float | None, end: float | None
    ) -> list[dict[str, Any]]:
        """Order on the thread, within the rest of the deadline; a late query is not started."""
        if end is not None:
            remaining = end - time.monotonic()
            if remaining <= 0.0:
                return []
            within = min(within or math.inf, remaining)
        (found,) = self._ranker.rank_all([pool], top_k, within=within)
        return found

    def _through(self, count: int) -> None:
        self._waiting -= count


@dataclass(frozen=True)
class Answered:
    """The answers to a request, and the places of those that the ledger audits."""

    answers: Some
    audited: Sequence[int]


def ledger_of(policy: ExitPolicy, share: float, path: Path | None = None) -> ServedLedger | None:
    """Return the ledger of a certified policy; None if its promise is not about disagreement.

    Args:
        policy: The policy of a model.
        share: The probability of an audit, in [0, 1]; with 0 there is no ledger.
        path: A JSON file in which the state survives a restart.

    Example:
        >>> ledger_of(policies.Confidence(0.8), share=0.05) is None  # nothing is certified
        True
    """
    if not isinstance(policy, Certified) or policy.confidence is None or not share:
        return None
    if not policy.risk.startswith("disagreement") or policy.threshold_value is None:
        return None
    return ServedLedger(policy.level, policy.confidence, share, path)


def with_threshold(policy: ExitPolicy, value: float) -> ExitPolicy:
    """Return a policy with its one threshold at `value`, without a promise.

    Example:
        >>> with_threshold(policies.Confidence(0.8).after(2), 0.9)
        All(policies=(Confidence(threshold=0.9), FromStep(step=2)))
    """
    inside = policy.policy if isinstance(policy, Certified) else policy
    part = part_with_threshold(inside)
    if part is None:
        expected = "None: the policy has no threshold that could be set"
        remedy = "Leave it out."
        raise ArgumentError("threshold", expected=expected, got=f"{value:g}", remedy=remedy)
    return exchanged(inside, part, part.with_threshold(value))


class _Metrics:
    """Counters, histograms and gauges of one service."""

    def __init__(self, service: Service) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ponder_requests", "Requests, by status.", ["status"], registry=registry
        )
        self.latency = Histogram(
            "ponder_latency_seconds", "Latency of 200s.", buckets=_SECONDS, registry=registry
        )
        buckets = range(1, service.served.num_steps + 1)
        self.exit_step = Histogram(
            "ponder_exit_step", "Exit step of each text.", buckets=buckets, registry=registry
        )
        waiting = Gauge("ponder_waiting_texts", "Texts that wait for an answer.", registry=registry)
        waiting.set_function(lambda: service.waiting)
        ledger = service.ledger
        if ledger is None:
            return
        for name, what, value in (
            ("answers", "Answers that the ledger counts.", lambda: ledger.answers),
            ("audits", "Audits that were begun.", lambda: ledger.ledger.audits),
            ("caught", "Audited answers that differ.", lambda: ledger.ledger.caught),
            ("bound", "Bound on the share of the answers that differ.", lambda: ledger.bound),
        ):
            gauge = Gauge(f"ponder_ledger_{name}", what, registry=registry)
            gauge.set_function(value)


def _app(
    limits: Limits, max_body: int, metrics: _Metrics | None = None, lifespan: Any = None
) -> FastAPI:
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
        self, app: ASGIApp, metrics: _Metrics | None, max_body: int, deadline: float | None
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
        _log.log(level, "%s", line)


def _answer(served: Answering, texts: Sequence[Text], policy: ExitPolicy) -> Any:
    """Answer texts, and log the errors of those without an answer."""
    answers = served.answer(texts, policy)
    for error in list(getattr(answers, "errors", {}).values())[:_LOGGED]:
        _log.error("a text has no answer", exc_info=error)
    return answers


def _has_half_a_character(text: Text) -> bool:
    """Return whether a text has half of a surrogate pair, which no tokeniser reads."""
    joined = text if isinstance(text, str) else "".join(text)
    return any("\ud800" <= character <= "\udfff" for character in joined)


def _finite(score: float) -> float | None:
    if not math.isfinite(score):
        return None
    return score


def _cut(text: Text, most: int) -> Text:
    if isinstance(text, str):
        return text[:most]
    first, second = text
    return first[:most], second[:most]
