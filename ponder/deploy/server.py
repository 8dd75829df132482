"""`create_app`: a model behind HTTP (needs `pip install 'ponder-torch[serve]'`).

`POST /predict` answers texts, each at its exit; a share of the answers is audited at full depth after it was given, and
the policy steps back where the promise can no longer be held. TLS, authentication and slow clients belong to the proxy
in front.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ponder.calibration.families import exchanged, part_with_threshold
from ponder.deploy.monitor import Audit, StepBack, Watch
from ponder.deploy.ranking import Pool, Ranker
from ponder.deploy.server_batching import Batcher, Served, Some, Text
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep
from ponder.policies.combine import Certified

__all__ = [
    "Limits",
    "PredictRequest",
    "RankRequest",
    "Service",
    "create_app",
    "create_rank_app",
    "watch_of",
    "with_threshold",
]

_log = logging.getLogger("ponder.server")
_SAFER = (1 / 2, 1 / 4)
_AUDITS_AT_ONCE = 32
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Args:
        max_batch: Texts of a batch.
        max_waiting: Texts that may wait for an answer; beyond, requests are answered by 429.
        max_texts: Texts of a request.
        max_body: Bytes of a request.
        deadline: Seconds that a request may take, tokenising and waiting included; None for any time.
        fixed_policy: Whether thresholds in requests are refused.
    """

    max_batch: int = 32
    max_waiting: int = 1024
    max_texts: int = 64
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
        [], description="First-stage scores, where the exits were fitted with such."
    )
    top_k: int | None = Field(None, ge=1)
    within: float | None = Field(None, gt=0, description="Seconds that the answer may take.")


class Service:
    """A model that answers requests, until it is closed; arguments as for `create_app`."""

    def __init__(self, served: Served, limits: Limits, watch: Watch | None = None) -> None:
        self.served, self.limits, self.watch, self.waiting = served, limits, watch, 0
        self.metrics = _Metrics(self)
        self._batcher = Batcher(served.answer, limits.max_batch)
        self._auditing, self._room = (
            ThreadPoolExecutor(1, "ponder-audits"),
            threading.Semaphore(_AUDITS_AT_ONCE),
        )

    @property
    def policy(self) -> ExitPolicy:
        """The policy that answers now, where a request brings no threshold."""
        return self.served.policy if self.watch is None else self.watch.policy

    async def predict(self, texts: Sequence[Text], threshold: float | None = None) -> Some:
        """Answer the texts of a request.

        Raises:
            HTTPException: It asks for what is not served (422), or too many texts wait (429).
            TimeoutError: Its time is up (504).
            ArgumentError: A threshold that the policy cannot have (422).
        """
        self._check(texts, threshold)
        policy = self.policy if threshold is None else with_threshold(self.served.policy, threshold)
        if self.waiting + len(texts) > self.limits.max_waiting:
            raise HTTPException(429, "too many texts wait. Ask again later.", {"retry-after": "1"})
        self.waiting += len(texts)
        try:
            async with asyncio.timeout(self.limits.deadline):
                most = self.served.max_characters
                return await asyncio.wrap_future(
                    self._batcher.submit([_cut(text, most) for text in texts], policy)
                )
        finally:
            self.waiting -= len(texts)

    def audit(self, texts: Sequence[Text], labels: Sequence[str], stage: int) -> None:
        """Answer a share of texts again at full depth, after their answers were given by the policy of a stage."""
        assert self.watch is not None
        for text, label in zip(texts, labels, strict=True):
            if self.watch.chosen(stage):
                if self._room.acquire(blocking=False):
                    full = self._batcher.submit(
                        [_cut(text, self.served.max_characters)], LastStep()
                    )
                    keep = partial(self._record, label, stage)
                    full.add_done_callback(partial(self._auditing.submit, keep))
                else:  # the traffic goes first
                    self.metrics.skipped.inc()

    def close(self) -> None:
        """Return when all that was accepted is answered, and the audits are kept."""
        self._batcher.close()
        self._auditing.shutdown()

    def _record(self, label: str, stage: int, done: Future[Some]) -> None:
        """Take an answer at full depth, on the thread of the audits, which alone writes their state."""
        self._room.release()
        assert self.watch is not None
        try:
            self.watch.record(done.result().labels[0] != label, stage)
        except Exception:
            _log.exception("an audit failed")

    def _check(self, texts: Sequence[Text], threshold: float | None) -> None:
        most, columns = self.limits.max_texts, self.served.columns
        if len(texts) > most:
            raise HTTPException(
                422, f"texts: expected {most} at most; got {len(texts)}. Send several requests."
            )
        if columns and any((1 if isinstance(text, str) else 2) != len(columns) for text in texts):
            one = len(columns) == 1
            wanted = (
                "texts; got pairs"
                if one
                else f"pairs of texts, [{', '.join(columns)}]; got single texts"
            )
            raise HTTPException(
                422, f"texts: expected {wanted}. Send what the exits were fitted to."
            )
        if threshold is not None and self.limits.fixed_policy:
            raise HTTPException(422, "threshold: the policy is fixed. Leave it out.")


def create_app(served: Served, limits: Limits | None = None, watch: Watch | None = None) -> FastAPI:
    """Return the application that serves a model, until the server's lifespan ends.

    Args:
        served: The model.
        limits: What is accepted.
        watch: The audit of its promise (`watch_of`); None for none.
    """
    service = Service(served, limits or Limits(), watch)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    app = _app(service.limits.max_body, service.metrics, lifespan)

    @app.post("/predict")
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Answer texts, each at its exit."""
        stage = -1 if service.watch is None or body.threshold is not None else service.watch.stage
        answers = await service.predict(body.texts, body.threshold)
        labels, steps = list(answers.labels), [int(step) for step in answers.exit_step]
        shares = [None if math.isnan(share) else float(share) for share in answers.probabilities]
        request.state.note = f"texts={len(steps)} exit_step={sum(steps) / len(steps):.2f}"
        for step in steps:
            service.metrics.exit_step.observe(step)
        answer = {
            "labels": [
                None if share is None else label
                for label, share in zip(labels, shares, strict=True)
            ],
            "probabilities": shares,
            "exit_step": steps,
            "num_steps": served.num_steps,
        }
        later = BackgroundTask(service.audit, body.texts, labels, stage) if stage >= 0 else None
        return JSONResponse(answer, background=later)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Say by which policy requests are answered, and where the audits stand."""
        state = None if watch is None else {**asdict(watch.audit), "wealth": watch.audit.wealth}
        return {
            "status": "ok",
            "policy": repr(service.policy),
            "waiting": service.waiting,
            "audit": state,
        }

    @app.get("/metrics")
    async def metrics() -> Response:
        """Give counters, histograms and gauges, as Prometheus reads them."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return app


def create_rank_app(ranker: Ranker, limits: Limits | None = None) -> FastAPI:
    """Return the application of a folder that ranks: `POST /rank` orders the candidates of a query.

    Args:
        ranker: The folder's model.
        limits: Bytes of a request, here 16 times as many as of texts, and its deadline.
    """
    limits, busy = limits or Limits(), ThreadPoolExecutor(1, thread_name_prefix="ponder-rank")
    app = _app(16 * limits.max_body)

    @app.post("/rank")
    async def rank(body: RankRequest) -> Response:
        """Order the candidates of a query, the best first."""
        run = partial(
            ranker.rank_all,
            [Pool(body.query, body.documents, body.scores)],
            body.top_k,
            within=body.within,
        )
        async with asyncio.timeout(limits.deadline):
            (found,) = await asyncio.get_running_loop().run_in_executor(busy, run)
        shown = [
            {**one, "score": one["score"] if math.isfinite(one["score"]) else None} for one in found
        ]
        return JSONResponse({"ranking": shown, "num_steps": ranker.num_steps})

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Say by which policy candidates leave."""
        return {"status": "ok", "policy": repr(ranker.settings.policy)}

    return app


def watch_of(
    policy: ExitPolicy,
    share: float,
    path: Path | None = None,
    on_step_back: Callable[[StepBack], object] | None = None,
) -> Watch | None:
    """Return the watch over a certified policy; None where nothing is promised that full depth can be asked about.

    The safer policies have thresholds that the certificate tested before its own, the latest exits first: half-way and
    a quarter of the way to it; of a policy with several thresholds there is none. Full depth comes after them.

    Args:
        policy: The policy of a model.
        share: The share of the answers that is audited, in [0, 1]; 0 for no audit.
        path: A JSON file in which the state survives a restart.
        on_step_back: Called with every `StepBack`.

    Example:
        >>> watch_of(policies.Confidence(0.8), share=0.01) is None  # nothing is certified
        True
    """
    if (
        not isinstance(policy, Certified)
        or policy.risk != "disagreement"
        or policy.confidence is None
        or not share
    ):
        return None
    if (chosen := policy.threshold_value) is None:
        return None
    order, tested = list[ExitPolicy]([policy]), [value for value, _, _ in policy.path]
    if part_with_threshold(policy.policy) is not None:
        safer = sorted({int(tested.index(chosen) * part) for part in _SAFER}, reverse=True)
        order += [
            with_threshold(policy, tested[place]) for place in safer if tested[place] != chosen
        ]
    return Watch(order, Audit(policy.level, policy.confidence, share), path, on_step_back)


def with_threshold(policy: ExitPolicy, value: float) -> ExitPolicy:
    """Return a policy with its one threshold at `value`, without the promise that was made for another.

    Example:
        >>> with_threshold(policies.Confidence(0.8).after(2), 0.9)
        All(policies=(Confidence(threshold=0.9), FromStep(step=2)))
    """
    inside = policy.policy if isinstance(policy, Certified) else policy
    part = part_with_threshold(inside)
    if part is None:
        expected = "none: the policy has no threshold of its own"
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
        self.skipped = Counter(
            "ponder_audit_skipped", "Audits that were left out under load.", registry=registry
        )
        for name in (
            ("stage", "audits", "disagreements", "wealth") if service.watch is not None else ()
        ):
            gauge = Gauge(
                f"ponder_audit_{name}", f"{name.title()} of the audit.", registry=registry
            )
            gauge.set_function(partial(getattr, service.watch.audit, name))  # type: ignore[union-attr]


def _app(max_body: int, metrics: _Metrics | None = None, lifespan: Any = None) -> FastAPI:
    app = FastAPI(title="ponder", version=version("ponder-torch"), lifespan=lifespan)
    app.add_middleware(_Door, metrics=metrics, max_body=max_body)
    for kind in (ArgumentError, RequestValidationError, TimeoutError, Exception):
        app.add_exception_handler(kind, _refused)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    """Answer by `{"detail": …}`; the content of a request is never sent back."""
    status: int = 422
    detail: Any = str(error)
    if isinstance(error, RequestValidationError):
        wrong = error.errors()[:8]
        detail = [
            {"where": [str(part)[:80] for part in each["loc"]], "what": each["msg"]}
            for each in wrong
        ]
    elif isinstance(error, TimeoutError):
        status, detail = 504, "no answer within the time of a request."
    elif not isinstance(error, ArgumentError):
        status, detail = 500, "the model failed on this request; the log of the service says how."
    return JSONResponse({"detail": detail}, status)


class _Door:
    """ASGI middleware: bounds the body, counts the request, and writes one line of log about it."""

    def __init__(self, app: ASGIApp, metrics: _Metrics | None, max_body: int) -> None:
        self._app, self._metrics, self._max = app, metrics, max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size, status, started = 0, 500, time.perf_counter()

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
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
        asked, note = scope["method"] == "POST", scope.get("state", {}).get("note", "")
        if asked and self._metrics is not None:
            self._metrics.requests.labels(status).inc()
            if status == 200:
                self._metrics.latency.observe(seconds)
        line = f"{scope['method']} {scope['path']} {status} {1000 * seconds:.1f} ms {note}".rstrip()
        _log.log(logging.INFO if asked else logging.DEBUG, "%s", line)


def _cut(text: Text, most: int) -> Text:
    return text[:most] if isinstance(text, str) else (text[0][:most], text[1][:most])
