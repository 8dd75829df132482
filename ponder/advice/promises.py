"""The promises of a race, from arrays alone: the policy of each way, its answers, and whether it is certified."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ponder._utils.rows import split
from ponder.calibration.agreement import candidates, certify
from ponder.calibration.bounds import rows_needed
from ponder.calibration.records import Record
from ponder.calibration.risks import OtherAnswers
from ponder.cascade.cascade import Cascade
from ponder.policies import FixedStep, LastStep
from ponder.policies.base import ExitPolicy

__all__ = ["WAYS", "Promise", "Recorded", "promise"]

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
"""The ways that are certified, beside a model cut to half its layers, ``"half"``."""
_COSTS = (0.03, 1.0)  # a student, and a model: seconds differ by 20 times or more


@dataclass(frozen=True, eq=False)
class Recorded:
    """What the models answer on the texts that choose and certify.

    Args:
        ids: Identity of each text, `(texts,)`, by which the two sides are split.
        exits: Logits of every step, `(texts, steps, classes)`; the last are the answers that are to be kept.
        student: Logarithms of the student's probabilities, `(texts, classes)`.
        int8: Logits of every step in int8, `(texts, steps, classes)`.
        half: Logits of the model of half its layers, `(texts, classes)`.
        seed: Seed of the split.
        weights: Digest of the weights behind `exits`.
    """

    ids: NDArray[Any]
    exits: NDArray[Any]
    student: NDArray[Any] | None = None
    int8: NDArray[Any] | None = None
    half: NDArray[Any] | None = None
    seed: int = 0
    weights: str | None = None

    @property
    def sides(self) -> list[NDArray[Any]]:
        """The texts that choose and those that certify, as positions."""
        return split(self.ids, (1 / 3, 2 / 3), self.seed)

    def taken(self, rows: NDArray[Any]) -> Recorded:
        """Return some of the texts."""
        names = ("ids", "exits", "student", "int8", "half")
        taken: Any = {n: getattr(self, n)[rows] for n in names if getattr(self, n) is not None}
        return replace(self, **taken)


@dataclass(frozen=True, eq=False)
class Promise:
    """What one way promises.

    Args:
        policy: Its policy, with the certificate where there is one.
        met: Whether the level was certified.
        answers: Its answers to the certifying texts, numbers of classes, `(texts,)`.
        depth: The column of its record at which each of them exits, `(texts,)`, from 1.
    """

    policy: ExitPolicy
    met: bool
    answers: NDArray[Any]
    depth: NDArray[Any]


def promise(seen: Recorded, way: str, level: float, confidence: float) -> Promise:
    """Choose the policy of one way, and certify how often its answers differ from those of the model as it is.

    Args:
        seen: The answers.
        way: One of `WAYS`, or ``"half"``.
        level: Upper bound of the share of other answers.
        confidence: Probability with which it holds.
    """
    small, check = way.startswith("int8"), seen.sides[1]
    deep: Any = seen.int8 if small else seen.half[:, None] if seen.half is not None and way == "half" else seen.exits
    whole = Promise(LastStep(), False, deep[check, -1].argmax(-1), np.full(len(check), deep.shape[1]))
    if rows_needed(level, confidence) > len(check):
        return whole
    if "cascade" in way:
        made = _cascade(seen, deep if way.endswith("exits") else deep[:, -1:], small, level, confidence)
        return made if made.met else whole
    reference, own = seen.exits[:, -1].argmax(-1), deep is seen.exits
    choosing, certifying = (
        Record(deep[side], None, seen.ids[side], labels=reference[side], task="classification", content_ids=True)
        for side in seen.sides
    )
    last = deep.shape[1]
    kinds: Any = [(FixedStep, range(last, 0, -1))] if way == "best fixed step" else [(FixedStep, [last])]
    kinds = candidates(choosing) if way.endswith("exits") else kinds
    risk: Any = "disagreement" if own else OtherAnswers()
    given = replace(certifying, weights=seen.weights) if own else certifying
    found = certify(choosing, given, kinds, risk=risk, level=level, confidence=confidence)
    policy = found.policy
    if way in ("int8", "half"):  # a promise of full depth, whatever the number of steps
        policy = replace(policy, policy=LastStep(), num_steps=None)
    return _made(certifying, policy, found.met)


def _cascade(seen: Recorded, deep: NDArray[Any], small: bool, level: float, confidence: float) -> Promise:
    """Certify a student before a model; in int8 the answers to be kept are a column behind it."""
    assert seen.student is not None
    behind = [seen.exits[:, -1:]] if small else []
    outputs = np.concatenate([seen.student[:, None], deep, *behind], axis=1)
    record = Record(outputs, None, seen.ids, task="classification", content_ids=True)
    cascade = Cascade([_unasked, _unasked], _COSTS)
    options: Any = {"level": level, "confidence": confidence, "seed": seen.seed}
    report = cascade.certify(record, reference=_unasked if small else None, **options)
    policy: Any = report.policy
    certifying = Record(outputs[seen.sides[1]], None, seen.ids[seen.sides[1]], task="classification")
    made = _made(certifying, policy, report.met)
    if small and report.met:
        policy = replace(policy, policy=policy.policy.policy, risk=OtherAnswers.name, num_steps=policy.num_steps - 1)
    return replace(made, policy=policy)


def _made(certifying: Record, policy: ExitPolicy, met: bool) -> Promise:
    depth = certifying.exit_steps(policy)
    return Promise(policy, met, certifying.outputs[np.arange(len(depth)), depth - 1].argmax(-1), depth)


def _unasked(inputs: Any) -> Any:
    raise NotImplementedError
