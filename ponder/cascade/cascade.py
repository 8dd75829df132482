"""`Cascade`: stages from the cheapest to the dearest, a threshold for each but the last, and the promise on both."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import namespace
from ponder._utils.files import read_json, write_json
from ponder._utils.rows import class_numbers, content_ids, split
from ponder.calibration.agreement import candidates, certify
from ponder.calibration.bounds import rows_needed
from ponder.calibration.control import RiskControl
from ponder.calibration.records import Record
from ponder.calibration.risks import Missed, OtherAnswers, Risk, RiskLike, losses_of
from ponder.cascade.stages import Stage, stage_of
from ponder.errors import ArgumentError
from ponder.policies.base import (
    ExitPolicy,
    LastStep,
    StepView,
    Threshold,
    ThresholdPolicy,
    all_within,
    registry,
)
from ponder.running.loop import Answers

__all__ = ["Cascade", "CascadeAnswers", "CascadeReport", "StageThresholds"]

Floats = NDArray[Any]
_FILE, _FORMAT = "cascade.json", "ponder-cascade-1"
_SHARES = (0.0, 1e-9, 0.25, 1.0, 4.0)
"""Rows that each later stage may lose for one of the first; the best is found on the rows that choose."""


@registry.register("stage-thresholds")
@dataclass(frozen=True)
class StageThresholds(ExitPolicy):
    """A certainty policy with a threshold of its own at each stage.

    Args:
        policy: The kind, such as `Confidence`; its own threshold is not read.
        thresholds: The threshold of each stage but the last.
    """

    policy: ThresholdPolicy
    thresholds: tuple[float, ...]
    needs = frozenset({"output"})

    def decide(self, step: StepView, state: Any) -> tuple[Any, Any]:
        """Compare each row's certainty with the threshold of its stage."""
        value, state = self.policy.statistic(step, state)
        xp = namespace(value)
        each = xp.asarray(self.thresholds, dtype=value.dtype)
        each = each if xp is np else each.to(value.device)
        return self.policy.tunable.crossed(value, each[step.index - 1]), state


@dataclass(frozen=True)
class _Ladder(ThresholdPolicy):
    """Thresholds of the stages from late exits to early, `(rungs, stages)`: one number moves them all."""

    policy: ThresholdPolicy
    rungs: tuple[tuple[float, ...], ...]
    rung: float = 0.0
    needs = frozenset({"output"})
    tunable = Threshold("rung", "at_most")

    def statistic(self, step: StepView, state: Any) -> tuple[Any, Any]:
        """Return the first rung at which each row exits; the rows of a record are at one stage."""
        value, _ = self.policy.statistic(step, None)
        own: Any = np.array(self.rungs)[:, int(step.index[0]) - 1]
        crossed = self.policy.tunable.crossed(value[:, None], own)
        return np.where(crossed.any(1), crossed.argmax(1).astype(np.float64), np.inf), state


@dataclass(frozen=True, eq=False)
class CascadeAnswers(Answers):
    """The answers of a cascade, in the order of the inputs; its outputs are log-probabilities of the classes.

    Args:
        errors: Errors of stages, by the position of the rows that they were to answer; these have no label.
    """

    errors: Mapping[int, Exception] = field(default_factory=dict)

    @property
    def stage(self) -> NDArray[Any]:
        """The stage that answered each row, `(rows,)`, from 1."""
        return np.asarray(self.exit_step)


@dataclass(frozen=True, eq=False)
class CascadeReport(RiskControl):
    """Result of certifying a cascade: the promise, and what it saves.

    Args:
        shares: The share of the certifying rows that each stage answers, `(stages,)`.
        seconds: Measured or given cost of each stage for a text, `(stages,)`.
        speed_up: Cost of the last stage alone ÷ mean cost of the cascade.
        chosen_on: Number of rows that chose the kind of policy and the order of the thresholds.
        certified_on: Number of rows that certify.
    """

    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    speed_up: float
    chosen_on: int
    certified_on: int


class Cascade:
    """Models from the cheapest to the dearest: each answers the rows of which it is sure, and defers the others.

    Where the last stage has exits, `certify` chooses these anew: its steps are stages as well.

    Args:
        stages: Two or more of: models with `predict_proba` (scikit-learn, `Student`), models of ponder, exports,
            folders of any of these, functions from inputs to probabilities, other cascades.
        costs: The cost of each stage for one input; measured by `certify` where None.
        policy: Decides which rows are answered; everything goes to the last stage where None.
        classes: Names of the classes; those of the last stage, or of the first that has names, where None.

    Example:
        >>> import numpy as np
        >>> cheap = lambda texts: np.array([[0.99, 0.01] if "card" in text else [0.5, 0.5] for text in texts])
        >>> dear = lambda texts: np.array([[1.0, 0.0] if "card" in text else [0.0, 1.0] for text in texts])
        >>> cascade = ponder.cascade.Cascade([cheap, dear], costs=[1, 20], classes=["card", "loan"])
        >>> report = cascade.certify([f"{word} {n}" for n in range(500) for word in ("card", "loan")], level=0.02)
        >>> report.met, cascade.predict(["my card", "a loan"]).stage.tolist()
        (True, [1, 2])
    """

    def __init__(
        self,
        stages: Sequence[Any],
        costs: Sequence[float] | None = None,
        *,
        policy: ExitPolicy | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.stages: list[Stage] = [stage_of(stage) for stage in stages]
        named = [classes, *(stage.classes for stage in reversed(self.stages))]
        self.classes = next((tuple(map(str, names)) for names in named if names is not None), ())
        """Names of the classes, in the order of the probabilities."""
        if (
            len(self.stages) < 2
            or len(costs or self.stages) != len(self.stages)
            or not self.classes
        ):
            expected = "two or more, a cost for each if any, and names of the classes"
            got = f"{len(self.stages)} stages, costs {costs}, classes {self.classes}"
            raise ArgumentError(
                "stages", expected=expected, got=got, remedy="Pass [cheap, dear], classes=[…]."
            )
        self.costs = None if costs is None else tuple(map(float, costs))
        self.policy: ExitPolicy = LastStep() if policy is None else policy

    def predict(
        self, inputs: Sequence[Any], *, policy: ExitPolicy | None = None, batch_size: int = 256
    ) -> CascadeAnswers:
        """Answer every input at the first stage that is sure of it; what a stage defers is batched for the next.

        Args:
            inputs: The inputs, texts say.
            policy: Decides instead of the cascade's own policy.
            batch_size: Inputs of a call of a stage at most.
        """
        policy = self.policy if policy is None else policy
        size, count = len(inputs), len(self.stages)
        outputs, at = np.full((size, len(self.classes)), np.nan), np.full(size, count)
        rows, errors = np.arange(size), dict[int, Exception]()
        for number, stage in enumerate(self.stages, 1):
            deferred = []
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                own = self._exits(policy) if number == count else None
                try:
                    made = stage.outputs([inputs[row] for row in batch], self.classes, own)
                except Exception as error:  # of the stage; the rows of other batches are answered
                    errors |= dict.fromkeys(batch.tolist(), error)
                    continue
                sure = (
                    np.ones(len(batch), dtype=bool)
                    if number == count
                    else self._sure(policy, made, number)
                )
                outputs[batch[sure]], at[batch[sure]] = made[sure], number
                deferred.append(batch[~sure])
            rows = np.concatenate(deferred) if deferred else rows[:0]
        return CascadeAnswers(outputs, at, self.classes, errors)

    def record(self, inputs: Sequence[Any], labels: Sequence[Any] | None = None) -> Record:
        """Ask every stage about every input: a trajectory whose steps are the stages; costs are measured where None.

        The steps of a last stage with exits are there too, unless its own policy decides on these.

        Args:
            inputs: The inputs.
            labels: Names of the right classes, or None.
        """
        seconds, columns, last = list[float](), list[Floats](), self.stages[-1]
        for stage in self.stages:
            start, exits = (
                time.perf_counter(),
                stage is last and self._exits(self.policy) is not None,
            )
            columns.append(
                stage.steps(inputs, self.classes)
                if exits
                else stage.outputs(inputs, self.classes)[:, None]
            )
            seconds.append((time.perf_counter() - start) / max(len(inputs), 1))
        if self.costs is None:
            self.costs = tuple(seconds)
        numbers = (
            None if labels is None else np.array(class_numbers(labels, self.classes, "labels"))
        )
        ids = content_ids([str(each) for each in inputs])
        outputs = np.concatenate(columns, axis=1)
        return Record(outputs, None, ids, labels=numbers, task="classification", content_ids=True)

    def certify(
        self,
        inputs: Sequence[Any] | Record,
        labels: Sequence[Any] | None = None,
        *,
        risk: Literal["disagreement", "error", "missed"] | Risk = "disagreement",
        level: float = 0.02,
        confidence: float = 0.95,
        positive: Any = None,
        reference: Any = None,
        seed: int = 0,
    ) -> CascadeReport:
        """Choose the thresholds, and certify how often answers differ from those of the last stage.

        A third of the inputs chooses the kind of policy and the order of thresholds; the others, on which nothing was
        chosen, certify by the exact binomial bound (see `ponder.calibration.certify`). An input that repeats another
        counts once. The cascade has the policy afterwards.

        Args:
            inputs: Inputs like those to come, which taught no stage; or their record.
            labels: Names of the right classes, for ``"error"``.
            risk: ``"disagreement"`` with the last stage (no labels), ``"error"``, or ``"missed"``: of the inputs whose
                reference is in the `positive` classes, the share that is answered otherwise; or a `Risk`.
            level: Upper limit of the risk.
            confidence: Probability with which the promise holds.
            positive: The class or classes of ``"missed"``.
            reference: A model whose full depth is to be kept, in the place of the last stage's: that before int8.
            seed: Seed of the split.
        """
        record = inputs if isinstance(inputs, Record) else self._asked(inputs, labels, reference)
        once = np.unique(record.row_ids, return_index=True)[1]
        record = record.map(lambda rows: rows[once])
        chosen = self._risk(risk, positive, referred=reference is not None)
        chooses, certifies = split(record.row_ids, (1 / 3, 2 / 3), seed=seed)
        choosing, certifying = (
            record.map(lambda rows: rows[chooses]),
            record.map(lambda rows: rows[certifies]),
        )
        counting, needed = losses_of(chosen, certifying)[1], rows_needed(level, confidence)
        count = len(certifying) if counting is None else int(counting.sum())
        if count < needed:
            raise ArgumentError(
                "inputs",
                expected=f"{needed} {'positives' if risk == 'missed' else 'inputs'} that certify, or more, for a level "
                f"of {level:g} with confidence {confidence:g}",
                got=f"{count}, after a third of {len(record)} different inputs chose",
                remedy=f"Give about {needed * len(record) // max(count, 1) + 1} inputs, or a higher level.",
            )
        own = np.asarray(self.costs)
        steps = record.num_steps - len(own) + 1  # of the last stage, which cost the same each
        costs = np.cumsum([*own[:-1], *[own[-1] / steps] * steps])
        options: Any = {
            "risk": chosen,
            "level": level,
            "confidence": confidence,
            "costs": costs.tolist(),
        }
        found = certify(choosing, certifying, _candidates(choosing, chosen), **options)
        inside = found.policy.policy
        if isinstance(inside, _Ladder):
            thresholds = StageThresholds(inside.policy, inside.rungs[int(inside.rung)])
            found = replace(found, policy=replace(found.policy, policy=thresholds))
        self.policy, shares, before = found.policy, found.exit_shares, len(own) - 1
        return CascadeReport(
            **vars(found),
            shares=(*shares[:before], sum(shares[before:])),
            seconds=self.costs or (),
            speed_up=float(own[-1] / (np.asarray(shares) @ costs)),
            chosen_on=len(choosing),
            certified_on=len(certifying),
        )

    def _asked(self, inputs: Sequence[Any], labels: Sequence[Any] | None, reference: Any) -> Record:
        """Return the record with the steps of a last stage with exits; the answers of a reference are its labels."""
        self.policy = LastStep()
        if reference is not None:
            labels = [
                self.classes[n] for n in stage_of(reference).full(inputs, self.classes).argmax(1)
            ]
        return self.record(inputs, labels)

    def _risk(self, risk: Any, positive: Any, *, referred: bool) -> RiskLike:
        if risk == "missed":
            numbers = class_numbers(np.atleast_1d(positive).tolist(), self.classes, "positive")
            return Missed(numbers, reference="labels" if referred else "full_depth")
        return OtherAnswers() if referred and risk == "disagreement" else risk

    def save(self, folder: str | Path) -> None:
        """Write the cascade with its stages; functions cannot be written."""
        target = Path(folder)
        for number, stage in enumerate(self.stages, 1):
            stage.save(target / f"stage_{number}")
        said = {"stages": len(self.stages), "costs": self.costs, "classes": self.classes}
        write_json(target / _FILE, _FORMAT, said | {"policy": self.policy.to_dict()})

    @classmethod
    def load(cls, folder: str | Path, stages: Sequence[Any] | None = None) -> Self:
        """Read what `save` wrote.

        Args:
            folder: The folder.
            stages: The stages, where they could not be written.
        """
        said = read_json(Path(folder) / _FILE, _FORMAT, "cascade")
        own = [Path(folder) / f"stage_{n}" for n in range(1, said["stages"] + 1)]
        return cls(
            stages or own,
            said["costs"],
            policy=ExitPolicy.from_dict(said["policy"]),
            classes=said["classes"],
        )

    def _sure(self, policy: ExitPolicy, outputs: Floats, number: int) -> NDArray[Any]:
        """Return which rows a stage answers, `(rows,)` bool."""
        view = StepView(np.full(len(outputs), number), len(self.stages), {"output": outputs})
        return np.broadcast_to(np.asarray(policy.decide(view, None)[0]), len(outputs))

    def _exits(self, policy: ExitPolicy) -> ExitPolicy | None:
        """Return the policy of the steps of the last stage; None where its own decides, or it has no steps."""
        before, steps = len(self.stages) - 1, self.stages[-1].num_steps
        if steps > 1 and policy.exit_of_all(before + steps) == before + steps:
            return LastStep()  # promises are about its full depth
        parts = [each for each in all_within(policy) if isinstance(each, StageThresholds)]
        return next(
            (
                replace(p, thresholds=p.thresholds[before:])
                for p in parts
                if len(p.thresholds) > before
            ),
            None,
        )


def _candidates(choosing: Record, risk: RiskLike) -> list[Any]:
    """Return the kinds of policy, each with its thresholds from the latest exits to the earliest."""
    kinds: Any = candidates(choosing)[1:4]  # confidence, margin and entropy
    if choosing.num_steps == 2:
        return list(kinds)
    losses, counting = losses_of(risk, choosing)
    losses = losses if counting is None else losses * counting[:, None]
    made: list[Any] = []
    for kind, values in kinds:
        exits = kind.scores(choosing)[:, :-1, None] > (
            values if kind.tunable.higher_exits_later else -values
        )
        lost = np.maximum.accumulate(
            (exits * losses[:, :-1, None]).mean(0), axis=1
        )  # no more by late exits than early
        for share in _SHARES:
            rungs = _rungs(lost, values, share)
            made.append((_Ladder(kind, rungs), range(len(rungs))))
    return made


def _rungs(lost: Floats, values: Any, share: float) -> tuple[tuple[float, ...], ...]:
    """Return thresholds of the stages, from late exits to early: one moves at a time, that with the least to lose.

    Each later stage may lose `share` rows for one of the first; where that is 0, the first alone moves.
    """
    losses = (lost / np.array([1.0, *[share] * (len(lost) - 1)])[:, None]) if share else lost[:1]
    at, rungs = [0] * len(lost), [tuple(float(values[0]) for _ in lost)]
    for loss, stage in sorted(
        {(loss, stage) for stage, row in enumerate(losses.tolist()) for loss in row}
    ):
        at[stage] = int((losses[stage] <= loss).sum()) - 1
        rungs.append(tuple(float(values[place]) for place in at))
    return tuple(dict.fromkeys(rungs))
