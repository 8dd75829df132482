"""The application: `/predict`, `/healthz` and `/metrics` over HTTP, for uvicorn, Ray Serve, or any ASGI server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from importlib.metadata import version as version_of
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from ponder.errors import ArgumentError, PonderError
from ponder.serving.auditing import AuditPlan
from ponder.serving.body_limit import BodyLimit
from ponder.serving.limits import Limits
from ponder.serving.metrics import CONTENT_TYPE
from ponder.serving.model import ServedModel
from ponder.serving.refusals import BrokenError, OverloadedError, StoppingError, TooLateError
from ponder.serving.requests import PredictRequest
from ponder.serving.service import Prediction, Service

__all__ = ["create_app"]

_CLIENT_GONE = 499
_MOST_ERRORS = 8
_MOST_CHARACTERS = 80


def create_app(
    model: ServedModel | Callable[[], ServedModel],
    limits: Limits | None = None,
    audit: AuditPlan | Callable[[ServedModel], AuditPlan | None] | None = None,
) -> FastAPI:
    """The application that serves a model. It is opened and closed by the server's lifespan.

    `app.state.service` is the `Service` while the application is open.

    Args:
        model: The model, or what reads it when the application is opened.
        limits: What is accepted.
        audit: What is audited; or what makes the plan, given the model.

    Example:
        >>> from fastapi.testclient import TestClient  # in earnest: uvicorn.run(create_app(served))
        >>> with TestClient(create_app(served)) as client:
        ...     client.post("/predict", json={"texts": ["a text"]}).json()["num_steps"]
        4
    """
    limits = Limits.checked(limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        served = model if isinstance(model, ServedModel) else model()
        plan = audit if isinstance(audit, AuditPlan) or audit is None else audit(served)
        app.state.service = service = Service(served, limits, plan)
        try:
            yield
        finally:
            await service.close()

    version = version_of("ponder-torch")
    app = FastAPI(title="ponder", version=version, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=limits.max_body, refused=lambda outcome: _service(app).metrics.ended(outcome))
    _add_routes(app, limits)
    _add_errors(app)
    return app


def _add_routes(app: FastAPI, limits: Limits) -> None:
    @app.post("/predict", responses={code: {} for code in (408, 413, 422, 429, 503, 504)})
    async def predict(body: PredictRequest, request: Request) -> Response:
        """Answer one text or many, each at its exit."""
        texts, service = body.all_texts(), _service(app)
        if len(texts) > limits.max_texts:
            service.metrics.ended("invalid")
            most, came = limits.max_texts, len(texts)
            return _refused(422, f"texts: expected at most {most}; got {came}. Send several requests.")
        asked = {"threshold": body.threshold, "max_steps": body.max_steps, "deadline": body.deadline}
        given = await _while_there(request.receive, service.predict(texts, **asked))  # type: ignore[arg-type]
        if given is None:
            return Response(status_code=_CLIENT_GONE)
        told = {"answers": given.answers, "num_steps": service.model.num_steps}
        return JSONResponse(told, background=BackgroundTask(_audit, service, given))

    @app.get("/healthz")
    async def healthz() -> Response:
        """Whether requests are taken, by which policy they are answered, and where the audits stand."""
        service = _service(app)
        failure = service.failure
        told = {
            "status": "broken" if failure is not None else "stopping" if service.stopping else "ok",
            "failure": None if failure is None else f"the thread that answers has ended with {failure!r}",
            "folder": None if service.model.folder is None else str(service.model.folder),
            "folder_changed": await run_in_threadpool(service.folder_changed),
            "waiting": service.waiting,
            "policy": repr(service.policy),
            "audit": None if service.audit is None else service.audit.state(),
        }
        return JSONResponse(told, 200 if told["status"] == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters, histograms and gauges, as Prometheus reads them."""
        return Response(await run_in_threadpool(_service(app).metrics.page), media_type=CONTENT_TYPE)


def _add_errors(app: FastAPI) -> None:
    """Every error is `{"detail": …}` with what was expected; the content of a request is never sent back."""

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        _service(app).metrics.ended("invalid")
        told = [{"where": [_shown(part) for part in each["loc"]], "what": _what(each)} for each in error.errors()]
        return _refused(422, told[:_MOST_ERRORS])

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if request.url.path == "/predict":
            _service(app).metrics.ended("invalid")
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refused(500, "the model failed on this request; the service's log says how.")  # the server logs it

    @app.exception_handler(ArgumentError)
    async def argument(request: Request, error: ArgumentError) -> Response:
        return _refused(422, str(error))

    @app.exception_handler(OverloadedError)
    async def overloaded(request: Request, error: OverloadedError) -> Response:
        return _refused(429, str(error), {"retry-after": str(error.retry_after)})

    @app.exception_handler(StoppingError)
    async def stopping(request: Request, error: StoppingError) -> Response:
        return _refused(503, str(error), {"retry-after": "1"})

    @app.exception_handler(BrokenError)
    async def broken(request: Request, error: BrokenError) -> Response:
        return _refused(503, str(error))

    @app.exception_handler(TooLateError)
    async def too_late(request: Request, error: TooLateError) -> Response:
        return _refused(504, str(error))


def _service(app: FastAPI) -> Service:
    service: Service | None = getattr(app.state, "service", None)
    if service is None:
        raise PonderError(
            "the application is not open: its lifespan opens the service, and nothing has run that. Enter "
            "`with TestClient(app) as client`, or run the app's lifespan_context in that of what mounts it."
        )
    return service


def _what(error: Mapping[str, Any]) -> str:
    """What is wrong with a request; a body that is no object is JSON that was sent as something else, mostly."""
    if tuple(error["loc"]) == ("body",) and error["type"] in ("missing", "model_attributes_type"):
        return 'expected a JSON object, such as {"text": "a text"}, with the header content-type: application/json'
    told: str = error["msg"]
    return told


def _shown(part: str | int) -> str | int:
    """A part of a path in a request, which may be anything that its sender made up."""
    return part if isinstance(part, int) else part.encode(errors="replace").decode()[:_MOST_CHARACTERS]


def _refused(status: int, detail: Any, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"detail": detail}, status, headers)


async def _audit(service: Service, given: Prediction) -> None:
    service.audit_some(given)


async def _while_there(receive: Receive, work: Any) -> Prediction | None:
    """What `work` comes to; None, and `work` cancelled, where the client leaves before."""
    gone, working = asyncio.ensure_future(_gone(receive)), asyncio.ensure_future(work)
    try:
        await asyncio.wait({gone, working}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            return None
        given: Prediction = working.result()
        return given
    finally:
        for task in (gone, working):
            task.cancel()
        for task in (gone, working):
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
