"""The command `rerank`: exits for a cross encoder; and `predict` and `export` of its folders."""

from __future__ import annotations

import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ponder.cli.outcome import Outcome, usage_of
from ponder.cli.output import Advance, new_folder, probe_folder, progress, say
from ponder.cli.show import keep, show
from ponder.cli.texts import read_rows
from ponder.deploy import export
from ponder.deploy.folders import card_of, remember
from ponder.deploy.ranking import RERANK, Pool, Ranker, pools_of
from ponder.deploy.used import Used
from ponder.policies.base import ExitPolicy, LastStep, all_within
from ponder.policies.combine import Certified
from ponder.policies.topk import TopK
from ponder.statistics.certificate import count

if TYPE_CHECKING:
    from ponder.calibration.cost import WallClock

__all__ = ["export_ranker", "is_ranker", "promise_of", "read_pools", "run"]

_TIMED = 40
"""Queries that are timed, at most."""
_TRIED = 4
"""Queries from whose seconds the whole is estimated."""
_RUNS = 1.0 + 6.0 * _TIMED / 1000.0
"""Runs over all queries: one, and three pairs of timed runs over some of a thousand."""


def run(
    model: str,
    queries: Path,
    out: Path,
    top_k: int,
    changed: float,
    risk: str,
    confidence: float,
    *,
    as_json: bool,
) -> None:
    """Fit exits to a cross encoder on queries without labels, time them, and write the folder."""
    probe_folder(out, "rerank", model)
    pools = read_pools(queries, "--queries")
    made = import_module("ponder.integrations.transformers.rerank").CrossEncoder(model)
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
        "statement": promise_of(made),
        "speed_up_in_seconds": [clock.low, clock.median, clock.high],
        "reference": remember(model, out),
    }
    outcome = Outcome(
        facts,
        [promise_of(made)],
        _rows(made, pools, report.observed, clock),
        title=f"Exits for the reranker {Path(model).name}",
        usage=usage_of(out, ranks=True),
    )
    with new_folder(out) as new:
        made.save(new)
        Used.of([pool.query for pool in pools]).write(new)
        outcome = keep(outcome, new, out)
    show(outcome, as_json=as_json)


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


def read_pools(path: Path, option: str = "--texts") -> list[Pool]:
    """Read queries with their candidates; a row that lacks scores or labels has none."""
    queries = [
        {name: value for name, value in row.items() if value is not None}
        for row in read_rows(path, option)
    ]
    return list(pools_of(queries))


def promise_of(ranker: Ranker) -> str:
    """Return the promise of a ranker in one sentence, or why nothing is promised."""
    policy = ranker.settings.policy
    if isinstance(policy, Certified):
        return policy.statement
    fallback = "No promise: exits were not fitted."
    return str(ranker.settings.fitted.get("statement", fallback))


def is_ranker(folder: Path) -> bool:
    """Return whether a folder ranks."""
    return (folder / RERANK).is_file()


def export_ranker(folder: Path, out: Path, queries: Path | None, *, as_json: bool) -> None:
    """Write a folder of `ponder rerank` as ONNX; with queries, in int8 and certified again."""
    source = Ranker.load(folder)
    pools: list[Pool] = []
    if queries is not None:
        pools = read_pools(queries)
    used = Used.read(folder) | Used.of([pool.query for pool in pools])
    with new_folder(out) as new:
        made = _exported(source, new, pools)
        used.write(new)
        outcome = keep(_export_page(made, folder, out, int8=queries is not None), new, out)
    show(outcome, as_json=as_json)


def _exported(source: Ranker, out: Path, pools: list[Pool]) -> Ranker:
    """Write a ranker as ONNX, in int8 if there are queries to certify its margin on."""
    pairs = [(pool.query, document) for pool in pools[::10] for document in pool.documents[:8]]
    export.onnx(source.model, out, int8=bool(pools), calibration=pairs[:256] or None)
    made = Ranker(export.OnnxModel(out), source.settings)
    fitted = source.settings.fitted
    exits = [part for part in all_within(made.settings.policy) if isinstance(part, TopK)]
    if pools and exits:
        made.certify(pools, exits[0], changed=fitted["level"], risk=fitted["risk"])
    made.settings.write(out)
    return made


def _export_page(made: Ranker, folder: Path, out: Path, *, int8: bool) -> Outcome:
    """Return the promise of an exported ranker, and the uses of its folder."""
    statement = promise_of(made)
    facts = {
        "command": "export",
        "statement": statement,
        "int8": int8,
        "reference": card_of(folder).get("reference"),
    }
    usage = usage_of(out, torch=False, ranks=True)
    return Outcome(facts, [statement], title=f"{folder.name} as ONNX graphs", usage=usage)


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

    wall_clock = import_module("ponder.calibration.cost").wall_clock
    clock: WallClock = wall_clock(lambda: rank(LastStep()), rank, pairs=3)
    return clock


def _duration(seconds: float) -> str:
    """Return a time in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes"
