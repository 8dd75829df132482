"""The command `rerank`: exits for a cross encoder, which rank candidates sooner."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from ponder.calibration.cost import WallClock, wall_clock
from ponder.cli.options import SHARE, Confidence, Json, Out
from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import Advance, new_folder, probe_folder, progress, say
from ponder.cli.queries import read_pools
from ponder.cli.show import keep, show
from ponder.deploy.folders import remember
from ponder.deploy.ranking import Pool, Ranker
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.policies.base import ExitPolicy, LastStep
from ponder.statistics.certificate import CONFIDENCE, LEVEL, count
from ponder.statistics.used import Used

__all__ = ["run"]

_TIMED = 40
"""Queries that are timed, at most."""
_TRIED = 4
"""Queries from whose seconds the whole is estimated."""
_RUNS = 1.0 + 6.0 * _TIMED / 1000.0
"""Runs over all queries: one, and three pairs of timed runs over some of a thousand."""


def run(
    model: Annotated[
        str, typer.Argument(help="A cross encoder: its folder or its hub name.", metavar="MODEL")
    ],
    queries: Annotated[
        Path,
        typer.Option(
            help="JSON lines with query, documents, and scores of a first stage if there are any."
        ),
    ],
    out: Out,
    top_k: Annotated[
        int, typer.Option("--top-k", min=1, help="The number of candidates to find.")
    ] = 10,
    changed: Annotated[
        float,
        typer.Option(help="The share of queries with another top k, or the mean loss.", **SHARE),
    ] = LEVEL,
    risk: Annotated[
        Literal["top_k", "top_1", "ndcg", "ndcg_gap"],
        typer.Option(help="What is promised: the same top k, the same best, or nDCG."),
    ] = "top_k",
    confidence: Confidence = CONFIDENCE,
    json: Json = False,
) -> None:
    """Stop ranking candidates early that cannot be among the best, with a promise.

    No labels are needed.

    Example: `ponder rerank my-reranker --queries log.jsonl --top-k 3 --out ranker`
    """
    probe_folder(out, "rerank", model)
    pools = read_pools(queries, "--queries")
    made = CrossEncoder(model)
    tried = pools[:_TRIED]
    started = time.perf_counter()
    made.rank_all(tried, policy=LastStep())
    seconds_of_query = (time.perf_counter() - started) / len(tried)
    duration = _duration(_RUNS * seconds_of_query * len(pools))
    say(f"{count(len(pools), 'query')}: some {duration} on this machine.")
    with progress() as advance:
        report = made.fit_exits(
            pools, top_k=top_k, changed=changed, risk=risk, confidence=confidence, progress=advance
        )
        clock = _timed(made, pools, advance)
    facts = {
        "command": "rerank",
        "top_k": top_k,
        **made.settings.fitted,
        "statement": made.statement,
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "reference": remember(model, out),
    }
    outcome = Outcome(
        facts,
        [made.statement],
        _rows(made, pools, report.observed, clock),
        title=f"Exits for the reranker {Path(model).name}",
        usage=usage_of(out, ranks=True),
    )
    with new_folder(out) as new:
        made.save(new)
        Used.of([pool.query for pool in pools]).write(new)
        outcome = keep(outcome, new, out)
    show(outcome, as_json=json)


def _rows(
    ranker: Ranker, pools: list[Pool], observed: float, clock: WallClock
) -> list[tuple[str, str]]:
    """Return the table of a ranker: queries, the observed risk, and speed-ups."""
    fitted = ranker.settings.fitted
    candidates = sum(len(pool.documents) for pool in pools) / len(pools)
    used = f"learn {fitted['learned_on']}, certify {fitted['certified_on']}"
    first = "none: no scores in the file"
    if ranker.first_stage:
        first = "its scores are the first step"
    return [
        ("queries", f"{len(pools)}, {candidates:.0f} candidates each: {used}"),
        ("first stage", first),
        ("observed", f"{100 * observed:.2f}% of the certifying queries"),
        ("pair-layers", f"×{fitted['pair_layers']:.2f} fewer than the full rerank"),
        ("seconds", f"×{clock.median:.2f} ({clock.low:.2f}–{clock.high:.2f}), this machine"),
    ]


def _timed(ranker: Ranker, pools: list[Pool], advance: Advance) -> WallClock:
    """Time the full rerank and that with exits, query by query."""
    timed = pools[-_TIMED:]
    done = 0

    def rank(policy: ExitPolicy | None = None) -> None:
        """Rank the candidates of each query."""
        nonlocal done
        for pool in timed:
            ranker.rank_all([pool], policy=policy)
        done += 1
        advance("timing", done, 8)

    return wall_clock(lambda: rank(LastStep()), rank, pairs=3)


def _duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
