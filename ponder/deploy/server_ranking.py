"""`create_rank_app`: a folder that ranks behind HTTP (needs `pip install 'ponder-torch[serve]'`).

`POST /rank` orders the candidates of a query. Queries are ranked one after the other on one thread.
"""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse, Response

from ponder.deploy.ranking import Pool, Ranker
from ponder.deploy.server_http import Limits, has_half_a_character, new_app, too_many_wait

__all__ = ["RankRequest", "create_rank_app"]


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


def create_rank_app(ranker: Ranker, limits: Limits | None = None) -> FastAPI:
    """Return the application of a folder that ranks: `POST /rank` orders the candidates of a query.

    Args:
        ranker: The folder's model.
        limits: Bytes of a request, here 16 times as many as of texts, and its deadline.
    """
    limits = limits or Limits()
    ranking = _Ranking(ranker, limits)
    app = new_app(limits, 16 * limits.max_body)

    @app.post("/rank")
    async def rank(body: RankRequest) -> Response:
        """Order the candidates of a query, the best first."""
        pool = Pool(body.query, body.documents, body.scores)
        found = await ranking.order(pool, body.top_k, body.within)
        shown = [{**one, "score": _finite(one["score"])} for one in found]
        return JSONResponse({"ranking": shown, "num_steps": ranker.num_steps})

    @app.get("/health")
    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        """Return the policy."""
        return {"status": "ok", "policy": ranker.settings.policy.words()}

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
        if any(has_half_a_character(text) for text in (pool.query, *pool.documents)):
            raise HTTPException(422, "documents: expected Unicode; got half of a surrogate pair.")
        if self._waiting and self._waiting + count > limits.max_waiting:
            raise too_many_wait("documents")
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


def _finite(score: float) -> float | None:
    if not math.isfinite(score):
        return None
    return score
