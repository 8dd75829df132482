"""The promises of a race, from arrays alone: the policy and the answers of each way."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration.bounds import rows_needed
from ponder.calibration.cascades import certify_cascade
from ponder.calibration.certifying import candidates, certify
from ponder.calibration.records import Record
from ponder.calibration.risks import OtherAnswers
from ponder.policies import FixedStep, LastStep
from ponder.policies.base import ExitPolicy

__all__ = ["COSTS", "WAYS", "Promise", "Recorded", "promise"]

WAYS = (
    "best fixed step",
    "exits",
    "cascade",
    "cascade + exits",
    "int8",
    "int8 + exits",
    "int8 cascade",
    "int8 cascade + exits",
)
"""The ways that are certified, apart from a model cut to half its layers."""
COSTS = (0.03, 1.0)
"""Costs of a student and of a model, whose seconds differ by 20 times or more."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the models answer on the texts that choose and certify, which are split by their ids."""

    ids: NDArray[Any]  # (texts,)
    exits: NDArray[
        Any
    ]  # logits (texts, steps, classes); the last step's are the answers that are to be kept
    student: NDArray[Any] | None = None  # logarithms of its probabilities, (texts, classes)
    int8: NDArray[Any] | None = None  # logits as `exits`, of any model in the place of the whole
    seed: int = 0  # of the split
    weights: str | None = None  # digest of the weights behind `exits`

    @property
    def sides(self) -> list[NDArray[Any]]:
        """The texts that choose and those that certify, as positions."""
        return split(self.ids, CHOOSE_AND_CERTIFY, self.seed)

    def taken(self, rows: NDArray[Any]) -> Recorded:
        """Return some of the texts."""
        names = ("ids", "exits", "student", "int8")
        some: Any = {n: getattr(self, n)[rows] for n in names if getattr(self, n) is not None}
        return replace(self, **some)


@dataclass(frozen=True, eq=False)
class Promise:
    """What one way promises."""

    policy: ExitPolicy  # with its certificate, if any
    met: bool  # whether the level was certified
    answers: NDArray[Any]  # to the certifying texts, numbers of classes, (texts,)
    depth: NDArray[Any]  # the column of its record at which each of these exits, (texts,), from 1


def promise(seen: Recorded, way: str, level: float, confidence: float) -> Promise:
    """Choose the policy of one of the `WAYS`, and certify how often its answers differ."""
    (choose, check), small = seen.sides, way.startswith("int8")
    outputs: Any = seen.int8 if small else seen.exits
    whole = Promise(
        LastStep(), False, outputs[check, -1].argmax(-1), np.full(len(check), outputs.shape[1])
    )
    if rows_needed(level, confidence) > len(check):
        return whole
    if not way.endswith(("exits", "step")):
        outputs = outputs[:, -1:]
    options: Any = {
        "risk": OtherAnswers() if small else "disagreement",
        "level": level,
        "confidence": confidence,
    }
    if "cascade" in way:
        assert seen.student is not None
        record = _record(seen, np.concatenate([seen.student[:, None], outputs], axis=1))
        report = certify_cascade(record, COSTS, seed=seen.seed, **options)
        made = _made(record.map(lambda rows: rows[check]), report.policy, report.met)
        return made if made.met else whole
    record = replace(_record(seen, outputs), weights=None if small else seen.weights)
    choosing = record.map(lambda rows: rows[choose])
    certifying = record.map(lambda rows: rows[check])
    if way.endswith("exits"):
        kinds = candidates(record)
    else:
        kinds = [(FixedStep, range(record.num_steps, 0, -1))]
    found = certify(choosing, certifying, kinds, **options)
    policy = found.policy
    if record.num_steps == 1:  # a promise of full depth, for any number of steps
        policy = replace(policy, policy=LastStep(), num_steps=None)
    return _made(certifying, policy, found.met)


def _record(seen: Recorded, outputs: NDArray[Any]) -> Record:
    """Return answers as a record, whose labels are the answers of the model as it is."""
    labels = seen.exits[:, -1].argmax(-1)
    return Record(outputs, None, seen.ids, labels=labels, task="classification", content_ids=True)


def _made(certifying: Record, policy: ExitPolicy, met: bool) -> Promise:
    depth = certifying.exit_steps(policy)
    return Promise(
        policy, met, certifying.outputs[np.arange(len(depth)), depth - 1].argmax(-1), depth
    )
