"""`create_app`: a model behind HTTP (needs `pip install 'ponder-torch[serve]'`).

`POST /predict` answers texts, each at its exit. A ledger audits a share of the answers at full
depth after they were given; if its bound would pass the promised level, requests are answered at
full depth until it holds again. TLS and authentication belong to the proxy in front.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTasks
from starlette.responses import JSONResponse, Response

from ponder.calibration.families import exchanged, part_with_threshold
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.server_batching import Answering, Batcher, Served, Some, Text
from ponder.deploy.server_http import (
    LOG,
    Limits,
    RequestMetrics,
    has_half_a_character,
    new_app,
    too_many_wait,
)
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, LastStep
from ponder.policies.combine import Certified
from ponder.statistics.certificate import Certificate

__all__ = [
    "Limits",
    "PredictRequest",
    "Service",
    "create_app",
    "ledger_of",
    "with_threshold",
]

_LOGGED = 8
"""Errors of one batch that are logged."""


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
        ledger = self.ledger
        if threshold is not None:
            policy = with_threshold(policy, threshold)
            ledger = None  # the promise is about the model's own threshold
        deferred = ledger is not None and not ledger.allows(len(texts))
        if self.waiting + len(texts) > self.limits.max_waiting:
            raise too_many_wait("texts")
        self.waiting += len(texts)
        try:
            async with asyncio.timeout(self.limits.deadline):
                answers = await self._answers(texts, policy, deferred)
        finally:
            self.waiting -= len(texts)
        audited: list[int] = []
        if ledger is not None:
            audited = self._note(ledger, answers, deferred)
        return Answered(answers, audited)

    async def _answers(self, texts: Sequence[Text], policy: ExitPolicy, deferred: bool) -> Some:
        """Wait for the answers to texts, by the reference or at full depth if they are deferred."""
        cut = [_cut(text, self.served.max_characters) for text in texts]
        if deferred:
            future = self._deep.submit(cut, LastStep())
        else:
            future = self._batcher.submit(cut, policy)
        return await asyncio.wrap_future(future)

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

    def _note(self, ledger: ServedLedger, answers: Some, deferred: bool) -> list[int]:
        """Count answers in the ledger, and return the places of those that are audited."""
        places = [n for n, share in enumerate(answers.probabilities) if not math.isnan(share)]
        # With a reference, even answers at full depth of the served model may differ.
        deepest: float = self.served.num_steps
        if self.reference is not None:
            deepest = math.inf
        early = [not deferred and answers.exit_step[n] < deepest for n in places]
        return [places[n] for n in ledger.note(early)]

    def _settle(self, label: str, done: Future[Some]) -> None:
        """Record an answer at full depth; a failed audit stays pending, which counts as wrong."""
        assert self.ledger is not None
        try:
            (full,) = done.result().labels
            self.ledger.settle(full != label)
        except Exception:
            LOG.exception("an audit failed")

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
        if any(has_half_a_character(text) for text in texts):
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

    app = new_app(service.limits, service.limits.max_body, service.metrics, lifespan)

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
        return JSONResponse(answer, background=later)

    @app.get("/health")
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return the policy, and the state of the ledger in words and in numbers."""
        state: dict[str, Any] = {
            "status": "ok",
            "policy": served.policy.words(),
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


@dataclass(frozen=True)
class Answered:
    """The answers to a request, and the places of those that the ledger audits."""

    answers: Some
    audited: Sequence[int]


def ledger_of(
    promise: Certificate | None, share: float, path: Path | None = None
) -> ServedLedger | None:
    """Return the ledger of a promise; None if there is none, or it is not about disagreement.

    Args:
        promise: The certificate of the policy of a model.
        share: The probability of an audit, in [0, 1]; with 0 there is no ledger.
        path: A JSON file in which the state survives a restart.
    """
    if promise is None or not promise.met or promise.confidence is None or not share:
        return None
    if not promise.risk.startswith("disagreement"):
        return None
    return ServedLedger(promise.level, promise.confidence, share, path)


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


class _Metrics(RequestMetrics):
    """Histogram of exit steps, and gauges of the queue and of the ledger, beside the requests."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        registry = self.registry
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


def _answer(served: Answering, texts: Sequence[Text], policy: ExitPolicy) -> Any:
    """Answer texts, and log the errors of those without an answer."""
    answers = served.answer(texts, policy)
    for error in list(getattr(answers, "errors", {}).values())[:_LOGGED]:
        LOG.error("a text has no answer", exc_info=error)
    return answers


def _cut(text: Text, most: int) -> Text:
    if isinstance(text, str):
        return text[:most]
    first, second = text
    return first[:most], second[:most]
