"""`check`: the verdict on the promise of a folder, from fresh rows that made nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ponder._utils.arrays import namespace
from ponder._utils.rows import Text, class_numbers, content_ids
from ponder.calibration.records import Floats, Ints, Record
from ponder.calibration.risks import loss_at, resolved
from ponder.cascade.stages import stage_of
from ponder.deploy.folders import Opened, OpenedRanker, open
from ponder.deploy.ranking import pools_of
from ponder.errors import ArgumentError
from ponder.policies.combine import Certified
from ponder.statistics.certificate import CONFIDENCE, Certificate, count
from ponder.statistics.verdict import Verdict, judge, judge_losses

__all__ = ["Checked", "check"]


@dataclass(frozen=True, eq=False)
class Checked:
    """Result of a check.

    Args:
        verdict: Kept, not refuted or broken; None if nothing is promised and no level was named.
        rows: Number of rows that judged.
        left_out: Rows of used texts, which are not fresh.
        other_answers: Share of the rows that get another answer than the reference's.
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
    distinct = _Distinct.of([texts[n] for n in fresh])
    seen: Record = opened.model.record(distinct.texts).map(distinct.of_rows)
    answers = np.asarray(seen.outputs).argmax(axis=-1)
    steps = seen.exit_steps(opened.policy)
    if reference is None and opened.needs_reference:
        reference = opened.reference()
    wanted = answers[:, -1]
    if reference is not None:
        wanted = distinct.of_rows(_answers_of(reference, distinct.texts, opened.labels))
    differs_by_step = answers != wanted[:, None]
    differs = differs_by_step[np.arange(len(fresh)), steps - 1]
    right = wanted
    if labels is not None:
        right = np.array(class_numbers([labels[n] for n in fresh], opened.labels))
    record = replace(seen, labels=namespace(seen.outputs).asarray(right))
    accuracy = None
    if labels is not None:
        accuracy = record.correct().mean(axis=0)
    return Checked(
        verdict=_verdict(opened.promise, int(differs.sum()), len(fresh), level),
        rows=len(fresh),
        left_out=len(texts) - len(fresh),
        other_answers=float(differs.mean()),
        mean_exit_step=float(steps.mean()),
        by_step=differs_by_step.mean(axis=0),
        accuracy=accuracy,
        record=record,
    )


@dataclass(frozen=True, eq=False)
class _Distinct:
    """The distinct texts of some rows: each is run once, and counted as often as it came.

    Args:
        texts: The texts.
        places: The place of the text of each row among them, `(rows,)`.
    """

    texts: Sequence[Any]
    places: Ints

    @classmethod
    def of(cls, rows: Sequence[Any]) -> _Distinct:
        """Return the distinct texts of rows."""
        _, first, places = np.unique(content_ids(rows), return_index=True, return_inverse=True)
        return cls([rows[n] for n in first], places)

    def of_rows(self, values: Any) -> Any:
        """Return the values of rows, `(rows, …)`, from those of the texts, `(texts, …)`."""
        return values[self.places]


def _answers_of(reference: Any, texts: Sequence[Text], labels: Sequence[str]) -> Ints:
    """Return the answers of a reference, `(rows,)`, as numbers of the classes `labels`."""
    stage = stage_of(reference)
    names = tuple(stage.classes or labels)
    numbers = stage.full(texts, names).argmax(axis=1)
    return np.array(class_numbers([names[n] for n in numbers], labels, "--reference"))


def _check_ranker(opened: OpenedRanker, queries: Sequence[Any], level: float | None) -> Checked:
    """Judge the promise of a ranker on fresh queries; one that repeats itself is another query."""
    ranker = opened.ranker
    pools = pools_of(queries, ranker.first_stage)
    fresh = np.flatnonzero(opened.used.fresh([pool.query for pool in pools]))
    if not len(fresh):
        raise _none_left(len(pools))
    record = ranker.record([pools[n] for n in fresh])
    policy = ranker.settings.policy
    promise = policy.certificate if isinstance(policy, Certified) else None
    steps = record.exit_steps(policy)
    name: Any = ranker.settings.fitted.get("risk", "top_k")
    losses = np.maximum(loss_at(resolved(name, policy), record)(steps[None])[0], 0.0)
    asked = _asked(promise, level)
    verdict = None
    if asked is not None:
        verdict = judge_losses(losses, asked.level, asked.confidence)
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


@dataclass(frozen=True)
class _Asked:
    """The level and the confidence that are judged."""

    level: float
    confidence: float


def _asked(promise: Certificate | None, level: float | None) -> _Asked | None:
    """Return what is judged: a promise, perhaps at another level; None without either."""
    if promise is not None:
        return _Asked(level or promise.level, promise.confidence or CONFIDENCE)
    if level is not None:
        return _Asked(level, CONFIDENCE)
    return None


def _verdict(
    promise: Certificate | None, differ: int, rows: int, level: float | None
) -> Verdict | None:
    asked = _asked(promise, level)
    if asked is None:
        return None
    return judge(differ, rows, asked.level, asked.confidence)


def _none_left(given: int) -> ArgumentError:
    got = f"none among {count(given, 'row')}"
    remedy = "Name a file of other texts: those that made a promise cannot judge it."
    return ArgumentError("--texts", expected="fresh texts", got=got, remedy=remedy)
