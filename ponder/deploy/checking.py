"""`check`: the verdict on the promise of a folder, from fresh rows that made nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.arrays import namespace
from ponder._utils.rows import class_numbers, content_ids
from ponder.calibration.records import Floats, Record
from ponder.calibration.risks import loss_at, resolved
from ponder.calibration.statement import CONFIDENCE, count
from ponder.calibration.verdict import Verdict, judge, judge_losses
from ponder.cascade.stages import stage_of
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.deploy.ranking import pools_of
from ponder.errors import ArgumentError
from ponder.policies.combine import Certified

__all__ = ["Checked", "check"]


@dataclass(frozen=True, eq=False)
class Checked:
    """Result of a check.

    Args:
        verdict: Kept, not refuted or broken; None if nothing is promised and no level was named.
        rows: Number of rows that judged.
        left_out: Rows of used texts, which are not fresh.
        other_answers: Share of the rows that are answered otherwise than by the reference.
        mean_exit_step: Mean exit step of the rows.
        by_step: The share of other answers, were all rows answered at a step, `(steps,)`.
        accuracy: The share of right answers at each step, `(steps,)`; None without labels.
        record: The full-depth run over the rows, with the right answers (the reference's without
            labels) as labels.
    """

    verdict: Verdict | None
    rows: int
    left_out: int
    other_answers: float
    mean_exit_step: float
    by_step: Floats
    accuracy: Floats | None
    record: Record = field(repr=False)


def check(
    folder: str | Path | Opened | OpenedRanker,
    texts: Sequence[Any],
    labels: Sequence[Any] | None = None,
    *,
    reference: Any = None,
    level: float | None = None,
) -> Checked:
    """Judge the promise of a folder on fresh rows, and return the verdict with what was seen.

    Texts that taught, chose or certified are left out, and a file that consists of them is refused.
    Rows count as they come: a text that comes again is another row.

    Args:
        folder: What `ponder advise`, `exits`, `cascade`, `export` or `rerank` wrote.
        texts: Fresh texts, or pairs of texts; queries with their candidates for a ranker.
        labels: Names or numbers of the right classes, for accuracies.
        reference: The model whose answers are to be kept: a folder, or anything that can be a stage
            of a cascade. If None, the folder at full depth, or the model that it remembers.
        level: Another level than the one that is promised.

    Raises:
        ArgumentError: The texts made the promise, or the reference is missing or changed.
    """
    opened = open(folder) if isinstance(folder, str | Path) else folder
    if isinstance(opened, OpenedRanker):
        return _check_ranker(opened, texts, level)
    fresh = np.flatnonzero(opened.used.fresh(texts)).tolist()
    if not len(fresh):
        raise _none_left(len(texts))
    rows = [texts[n] for n in fresh]
    # A text that repeats itself is run once, and counted as often as it came.
    first, again = np.unique(content_ids(rows), return_index=True, return_inverse=True)[1:]
    once = [rows[n] for n in first]
    seen: Record = opened.model.record(once).map(lambda values: values[again])
    answers = np.asarray(seen.outputs).argmax(-1)
    steps = seen.exit_steps(opened.policy)
    full = answers[:, -1]
    if reference is not None or opened.needs_reference:
        stage = stage_of(opened.reference() if reference is None else reference)
        names = tuple(stage.classes or opened.labels)
        given = [names[n] for n in stage.full(once, names).argmax(1)]
        full = np.array(class_numbers(given, opened.labels, "--reference"))[again]
    other = answers != full[:, None]
    differs = other[np.arange(len(rows)), steps - 1]
    right: Any = full
    if labels is not None:
        right = np.array(class_numbers([labels[n] for n in fresh], opened.labels))
    record = replace(seen, labels=namespace(seen.outputs).asarray(right))
    return Checked(
        verdict=_verdict(opened.promise, int(differs.sum()), len(rows), level),
        rows=len(rows),
        left_out=len(texts) - len(rows),
        other_answers=float(differs.mean()),
        mean_exit_step=float(steps.mean()),
        by_step=other.mean(0),
        accuracy=None if labels is None else record.correct().mean(0),
        record=record,
    )


def _check_ranker(opened: OpenedRanker, queries: Sequence[Any], level: float | None) -> Checked:
    """Judge the promise of a ranker on fresh queries; one that repeats itself is another query."""
    ranker = opened.ranker
    pools = pools_of(queries, ranker.first_stage)
    fresh = np.flatnonzero(opened.used.fresh([pool.query for pool in pools]))
    if not len(fresh):
        raise _none_left(len(pools))
    record = ranker.record([pools[n] for n in fresh])
    policy = ranker.settings.policy
    promise = policy if isinstance(policy, Certified) else None
    steps = record.exit_steps(policy)
    name: Any = ranker.settings.fitted.get("risk", "top_k")
    losses = np.maximum(loss_at(resolved(name, policy), record)(steps[None])[0], 0.0)
    verdict = None
    if promise is not None or level is not None:
        wanted = level or (0.0 if promise is None else promise.level)
        confidence = CONFIDENCE if promise is None else promise.confidence or CONFIDENCE
        verdict = judge_losses(losses, wanted, confidence)
    return Checked(
        verdict=verdict,
        rows=len(fresh),
        left_out=len(pools) - len(fresh),
        other_answers=float(losses.mean()),
        mean_exit_step=float(steps.mean()),
        by_step=np.zeros(0),
        accuracy=None,
        record=record,
    )


def _verdict(
    promise: Certified | None, differ: int, rows: int, level: float | None
) -> Verdict | None:
    if promise is not None:
        return judge(differ, rows, level or promise.level, promise.confidence or CONFIDENCE)
    return None if level is None else judge(differ, rows, level, CONFIDENCE)


def _none_left(given: int) -> ArgumentError:
    got = f"none among {count(given, 'row')}"
    remedy = "Name a file of other texts: those that made a promise cannot judge it."
    return ArgumentError("--texts", expected="fresh texts", got=got, remedy=remedy)
