"""The promises of a race, from recorded answers alone.

For each way `promise` chooses a policy on the texts that choose, and certifies on the other texts
how often answers differ from those of the model as it is. No model runs here, so that benchmarks
redraw whole races from arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.advice.specs import Depth, WaySpec
from ponder.calibration.cascades import certify_cascade
from ponder.calibration.certifying import candidates, certify
from ponder.calibration.records import Floats, Ints, Record
from ponder.calibration.risks import OtherAnswers, RiskLike
from ponder.policies import FixedStep, LastStep
from ponder.policies.base import ExitPolicy
from ponder.statistics.bounds import rows_needed

__all__ = ["COSTS", "Promise", "Recorded", "Sides", "promise"]

COSTS = (0.03, 1.0)
"""Costs of a student and of a model, whose seconds differ by 20 times or more."""

Rows: TypeAlias = NDArray[np.int64]


class Sides(NamedTuple):
    """Positions of the texts that choose, and of those that certify."""

    choosing: Rows
    certifying: Rows


@dataclass(frozen=True, eq=False)
class Recorded:
    """The answers of the models to the texts that choose and certify.

    Args:
        ids: Ids of the texts, by which they are split, `(texts,)`.
        exits: Logits at each step, `(texts, steps, classes)`; those of the last step are the
            answers of the model as it is.
        student: Log-probabilities of the student, `(texts, classes)`.
        int8: Logits of the int8 model, as `exits`.
        seed: Seed of the split.
        weights: Digest of the weights that gave `exits`.
    """

    ids: Ints
    exits: Floats
    student: Floats | None = None
    int8: Floats | None = None
    seed: int = 0
    weights: str | None = None

    @property
    def sides(self) -> Sides:
        """The texts that choose, and those that certify."""
        choosing, certifying = split(self.ids, CHOOSE_AND_CERTIFY, self.seed)
        return Sides(choosing, certifying)

    def taken(self, rows: Rows) -> Recorded:
        """Return the answers to some of the texts."""
        taken = replace(self, ids=self.ids[rows], exits=self.exits[rows])
        if self.student is not None:
            taken = replace(taken, student=self.student[rows])
        if self.int8 is not None:
            taken = replace(taken, int8=self.int8[rows])
        return taken


@dataclass(frozen=True, eq=False)
class Promise:
    """The promise of one way.

    Args:
        policy: The policy, with a certificate if the level was certified.
        met: Whether the level was certified.
        answers: Answers to the certifying texts, numbers of classes, `(texts,)`.
        depth: The step of its record at which each of these exits, from 1, `(texts,)`.
    """

    policy: ExitPolicy
    met: bool
    answers: Ints
    depth: Ints


def promise(seen: Recorded, way: WaySpec, level: float, confidence: float) -> Promise:
    """Choose the policy of a way, and certify how often its answers differ.

    Args:
        seen: The recorded answers.
        way: One of `ponder.advice.specs.WAYS`.
        level: Upper limit of the share of other answers than those of the model as it is.
        confidence: Probability with which the promise holds.

    Returns:
        The promise. If the level cannot be certified, a cascade, or any way with too few texts, is
        replaced by full depth.
    """
    outputs: Floats | None = seen.exits
    risk: RiskLike = "disagreement"
    weights = seen.weights
    if way.int8:  # its own full depth may answer otherwise than the model as it is
        outputs = seen.int8
        risk = OtherAnswers()
        weights = None
    assert outputs is not None
    certifying = seen.sides.certifying
    if rows_needed(level, confidence) > len(certifying):
        return _full_depth(outputs[certifying])
    of_way = outputs
    if way.depth is Depth.FULL:
        of_way = outputs[:, -1:]
    if way.student:
        made = _cascade_promise(seen, of_way, risk, level, confidence)
        if not made.met:
            return _full_depth(outputs[certifying])
        return made
    record = replace(_record(seen, of_way), weights=weights)
    return _model_promise(seen.sides, record, way.depth, risk, level, confidence)


def _full_depth(outputs: Floats) -> Promise:
    """Return the answers at full depth, which promise nothing, from outputs `(texts, steps, …)`."""
    texts, steps = outputs.shape[:2]
    return Promise(LastStep(), False, outputs[:, -1].argmax(axis=-1), np.full(texts, steps))


def _cascade_promise(
    seen: Recorded, outputs: Floats, risk: RiskLike, level: float, confidence: float
) -> Promise:
    """Certify a student in front of a model."""
    assert seen.student is not None
    record = _record(seen, np.concatenate([seen.student[:, None], outputs], axis=1))
    report = certify_cascade(
        record, COSTS, risk=risk, level=level, confidence=confidence, seed=seen.seed
    )
    certifying = record.map(lambda rows: rows[seen.sides.certifying])
    return _promise_of(certifying, report.policy, report.met)


def _model_promise(
    sides: Sides, record: Record, depth: Depth, risk: RiskLike, level: float, confidence: float
) -> Promise:
    """Certify a model by itself: with exits, cut at a step, or at full depth after int8."""
    choosing = record.map(lambda rows: rows[sides.choosing])
    certifying = record.map(lambda rows: rows[sides.certifying])
    if depth is Depth.EXITS:
        kinds = candidates(record)
    else:
        kinds = [(FixedStep, range(record.num_steps, 0, -1))]
    found = certify(choosing, certifying, kinds, risk=risk, level=level, confidence=confidence)
    policy = found.policy
    if record.num_steps == 1:
        # Only full depth was recorded, as one step; the promise is of any number of steps.
        policy = replace(policy, policy=LastStep()).with_facts(num_steps=None)
    return _promise_of(certifying, policy, found.met)


def _record(seen: Recorded, outputs: Floats) -> Record:
    """Return answers as a record, whose labels are the answers of the model as it is."""
    labels = seen.exits[:, -1].argmax(axis=-1)
    return Record(outputs, None, seen.ids, labels=labels, task="classification", content_ids=True)


def _promise_of(certifying: Record, policy: ExitPolicy, met: bool) -> Promise:
    """Return the answers of a policy to the certifying texts, with their exits."""
    depth = certifying.exit_steps(policy)
    at_exits = certifying.outputs[np.arange(len(depth)), depth - 1]
    return Promise(policy, met, at_exits.argmax(axis=-1), depth)
