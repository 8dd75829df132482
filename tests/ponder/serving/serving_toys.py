"""A tiny model behind a service, and ways to hold it up: no sleeping, no sockets."""

from __future__ import annotations

import threading
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.engine.loop import Exits
from ponder.policies import ExitPolicy
from ponder.serving import Batcher, Limits, ServedModel, Text, Tokens, WindowBatcher, create_app

STEPS = 4
WIDTH = 8
LONGEST = 20
LABELS = ("no", "maybe", "yes")


@dataclass
class Gate:
    """Holds a step up until it is opened, and tells that a step has come."""

    opened: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(30)


class ToyStep(nn.Module):
    """A step that may be held up; it fails on rows whose first feature is 1,000, and ends its thread at 2,000."""

    def __init__(self, gate: Gate | None) -> None:
        super().__init__()
        self.linear, self.gate = nn.Linear(WIDTH, WIDTH), gate

    def forward(self, hidden: Tensor) -> Tensor:
        if self.gate is not None:
            self.gate()
        if bool((hidden[:, 0] >= 2000).any()):
            raise KeyboardInterrupt("a thread that ends")
        if bool((hidden[:, 0] >= 1000).any()):
            raise RuntimeError("a step that fails")
        changed: Tensor = hidden + torch.tanh(self.linear(hidden))
        return changed


def toy(policy: ExitPolicy | None = None, gate: Gate | None = None, **parts: Any) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    task = parts.pop("task", "classification")
    head = nn.Linear(WIDTH, parts.pop("outputs", len(LABELS)))
    return ponder.PonderWrapper(
        ToyStep(gate),
        STEPS,
        head=head,
        policy=policies.Confidence(0.6) if policy is None else policy,
        task=task,
        **parts,
    ).eval()


def features(text: Text) -> Tensor:
    """A vector that is a function of the text."""
    if text in ("fail", "kill"):
        return torch.full((WIDTH,), 1000.0 if text == "fail" else 2000.0)
    if text == "nan":
        return torch.full((WIDTH,), float("nan"))
    key = zlib.crc32(repr(text).encode())
    return 2.0 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(key))


def tokenize(texts: Sequence[Text]) -> Tokens:
    return Tokens([features(text) for text in texts], [len(text) > LONGEST for text in texts])


def served(model: ponder.PonderWrapper, batching: str = "stream", **options: Any) -> ServedModel:
    def stream(limits: Limits) -> Batcher:
        return ponder.StreamEngine(model, max_batch=limits.max_batch, max_waiting=limits.max_waiting + 8)

    def window(limits: Limits) -> Batcher:
        def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
            with torch.no_grad():
                return model.exits(torch.stack(list(examples)), {}, model.checked(policy))

        return WindowBatcher(run, max_batch=limits.max_batch, window=0.0, max_waiting=limits.max_waiting + 8)

    start: Callable[[Limits], Batcher] = stream if batching == "stream" else window
    given = {"labels": LABELS, "policy": model.policy, "check": model.checked, **options}
    task = model.task
    assert task is not None
    return ServedModel(num_steps=STEPS, task=task, tokenize=tokenize, start=start, **given)


@asynccontextmanager
async def opened(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that is open."""
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def client_of(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://service", timeout=None)


def application(
    model: ponder.PonderWrapper | None = None, limits: Limits | None = None, audit: Any = None, batching: str = "stream"
) -> FastAPI:
    return create_app(served(model or toy(), batching), limits, audit)


async def outcomes(client: httpx.AsyncClient) -> dict[str, float]:
    """How requests have ended so far, those that did."""
    page = (await client.get("/metrics")).text
    return {
        line.split('"')[1]: float(line.split()[-1])
        for line in page.splitlines()
        if line.startswith("ponder_requests_total{") and not line.endswith(" 0.0")
    }
