"""Too much at once, too late, gone, and stopping: nothing is lost, nothing answered twice."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

import ponder
from ponder import policies
from ponder.errors import ArgumentError
from ponder.serving import Limits, Service
from tests.ponder.serving.serving_toys import STEPS, Gate, application, client_of, opened, outcomes, served, toy

pytestmark = pytest.mark.anyio


def post(client: httpx.AsyncClient, text: str = "a", **more: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/predict", json={"text": text, **more}))


async def reached(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.reached.wait, 30)


async def until(client: httpx.AsyncClient, waiting: int) -> None:
    """Until so many texts wait."""
    while (await client.get("/healthz")).json()["waiting"] != waiting:
        await asyncio.sleep(0)


@pytest.mark.parametrize("batching", ["stream", "window"])
async def test_a_full_queue_is_429_at_once_and_nothing_is_lost(batching: str) -> None:
    gate = Gate()
    async with opened(application(toy(gate=gate), Limits(max_waiting=4, max_texts=4), batching=batching)) as client:
        held = [post(client, f"text {number}") for number in range(3)]
        await until(client, 3)
        told = await client.post("/predict", json={"texts": ["a", "b"]})  # all of a request, or nothing
        assert told.status_code == 429
        assert int(told.headers["retry-after"]) >= 1
        held.append(post(client, "the last place"))
        await until(client, 4)
        assert (await client.post("/predict", json={"text": "a"})).status_code == 429
        gate.opened.set()
        assert [(await task).status_code for task in held] == [200] * 4
        assert (await client.post("/predict", json={"texts": ["a", "b"]})).status_code == 200
        assert await outcomes(client) == {"answered": 5.0, "overloaded": 2.0}


@pytest.mark.parametrize("batching", ["stream", "window"])
async def test_a_client_that_leaves_frees_its_place(batching: str) -> None:
    gate = Gate()
    async with opened(application(toy(gate=gate), Limits(max_waiting=2, max_texts=2), batching=batching)) as client:
        gone, stays = post(client, "gone"), post(client, "stays")
        await until(client, 2)
        await reached(gate)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        await until(client, 1)
        next_one = post(client, "next")
        await until(client, 2)
        gate.opened.set()
        assert (await stays).status_code == (await next_one).status_code == 200
        assert await outcomes(client) == {"answered": 2.0, "cancelled": 1.0}


async def test_a_connection_that_breaks_frees_its_place() -> None:
    gate = Gate()
    app = application(toy(gate=gate))
    async with opened(app) as client:
        sent: list[Any] = []
        broken = asyncio.Event()
        asked = False

        async def receive() -> dict[str, Any]:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b'{"text": "a"}', "more_body": False}
            await broken.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers, "query_string": b""}
        handled = asyncio.create_task(app({**scope, "raw_path": b"/predict", "scheme": "http"}, receive, send))  # type: ignore[arg-type]
        await until(client, 1)
        broken.set()
        await handled
        assert (await client.get("/healthz")).json()["waiting"] == 0
        gate.opened.set()
        assert await outcomes(client) == {"cancelled": 1.0}


async def test_a_body_that_does_not_come_is_no_longer_waited_for() -> None:
    # Trap: half a body held the server up when it was told to stop, for ever where requests have no deadline.
    app = application()
    app.user_middleware[0].kwargs["seconds"] = 0.0
    parts: list[dict[str, Any]] = [{"type": "http.request", "body": b"{", "more_body": True}]
    sent: list[Any] = []

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async with opened(app) as client:
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [], "query_string": b""}
        await app({**scope, "raw_path": b"/predict", "scheme": "http"}, receive, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 408
        assert (b"connection", b"close") in sent[0]["headers"]
        assert json.loads(sent[1]["body"]) == {"detail": "the request did not come within 0 seconds."}
        assert await outcomes(client) == {"too_slow": 1.0}


async def test_deadlines() -> None:
    gate = Gate()
    async with opened(application(toy(policies.LastStep(), gate=gate))) as client:
        first = post(client, "held", deadline=1e-9)
        assert (await first).status_code == 504, "the deadline passes while the text is tokenised"
        gate.opened.set()
        late = await client.post("/predict", json={"text": "a", "deadline": 1e9})
        assert late.json()["answers"][0]["exit_step"] == STEPS
        assert await outcomes(client) == {"answered": 1.0, "timed_out": 1.0}


async def test_an_overdue_text_is_answered_from_the_step_that_it_has_finished() -> None:
    now = [0.0]
    model = toy(policies.LastStep())
    step = model.steps.fns[0]
    forward = step.forward

    def slow(hidden: Any) -> Any:
        now[0] += 1.0
        return forward(hidden)

    step.forward = slow  # type: ignore[method-assign, assignment]

    made = replace(served(model), start=lambda limits: ponder.StreamEngine(model, max_batch=2, clock=lambda: now[0]))
    service = Service(made, Limits(deadline=1.5), clock=lambda: now[0])
    given = await service.predict(["a"])
    assert given.answers[0]["overdue"] is True
    assert given.answers[0]["exit_step"] == 2
    await service.close()


async def test_stopping_answers_what_was_accepted_and_takes_nothing_more() -> None:
    gate = Gate()
    app = application(toy(gate=gate))
    client = client_of(app)
    lifespan = app.router.lifespan_context(app)
    await lifespan.__aenter__()
    held = [post(client, f"text {number}") for number in range(5)]
    await until(client, 5)
    stopping = asyncio.create_task(lifespan.__aexit__(None, None, None))
    while (await client.get("/healthz")).status_code == 200:
        await asyncio.sleep(0)
    told = await client.post("/predict", json={"text": "too late"})
    assert told.status_code == 503
    assert "retry-after" in told.headers
    assert not stopping.done()
    gate.opened.set()
    assert [(await task).status_code for task in held] == [200] * 5
    await stopping
    assert (await client.post("/predict", json={"text": "closed"})).status_code == 503
    await client.aclose()


async def test_stopping_with_nothing_to_do_is_at_once() -> None:
    async with opened(application()):
        pass


@pytest.mark.parametrize(
    "bounds", [{"max_body": 0}, {"max_texts": 5, "max_waiting": 4}, {"deadline": 0.0}, {"window": -1.0}]
)
def test_limits_that_cannot_be(bounds: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError):
        Limits(**bounds)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("batching", ["stream", "window"])
async def test_when_the_thread_that_answers_has_ended_all_are_told(batching: str) -> None:
    gate = Gate()
    async with opened(application(toy(gate=gate), Limits(max_batch=2), batching=batching)) as client:
        held = [post(client, text) for text in ("kill", "beside it", "waits", "waits too")]
        await until(client, 4)
        gate.opened.set()
        told = [await task for task in held]
        assert [each.status_code for each in told] == [503] * 4
        assert all("must be started again" in each.json()["detail"] for each in told)
        assert (await client.post("/predict", json={"text": "comes later"})).status_code == 503
        health = await client.get("/healthz")
        assert health.status_code == 503
        assert health.json()["status"] == "broken"
        assert "KeyboardInterrupt('a thread that ends')" in health.json()["failure"]
        assert health.json()["waiting"] == 0
        assert await outcomes(client) == {"broken": 5.0}
