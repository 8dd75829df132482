"""Certify a cascade from its record: a threshold for each stage, and the promise on all of them.

A cascade is a trajectory whose steps are models. One threshold for all stages is wrong, since their
scores are not comparable: a student may be as reliable at a confidence of 0.6 as the model behind
it at 0.99. But a promise by fixed-sequence testing needs one number that moves all exits from late
to early. So the choosing rows fix a *path* through the vectors of thresholds, and the certifying
rows walk it:

1. On the choosing rows, compute the loss of each stage at each threshold: the share of rows that
   exit there with another answer.
2. Begin with the latest thresholds at every stage.
3. Move one stage at a time to its next earlier threshold: the stage that loses least by it. A later
   stage may lose `share` rows for each row that the first loses; several shares give several paths.
4. `certify` picks the kind of certainty and the path on the choosing rows, and certifies on the
   others how far along the path exits may go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ponder._utils.arrays import as_array
from ponder._utils.rows import CHOOSE_AND_CERTIFY, split
from ponder.calibration.certifying import Candidate, certainties, certify, counted_losses
from ponder.calibration.control import RiskControl
from ponder.calibration.records import Floats, Record
from ponder.calibration.risks import RiskLike, losses_of, words_of
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, StepView, Threshold, ThresholdPolicy
from ponder.policies.stages import StageThresholds
from ponder.statistics.bounds import rows_needed
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.repeats import check_rows

__all__ = ["CascadeReport", "certify_cascade", "check_costs", "stages_rule"]

_LOSS_SHARES = (0.0, 1e-9, 0.25, 1.0, 4.0)
"""Rows that each later stage may lose for one that the first loses; the choosing rows pick one."""


@dataclass(frozen=True, eq=False, repr=False)
class CascadeReport(RiskControl):
    """Result of certifying a cascade: the promise and the costs.

    Args:
        shares: The share of the certifying rows that each stage answers, `(stages,)`.
        seconds: Measured or given cost of each stage for a text, `(stages,)`.
        speed_up: Cost of the last stage alone ÷ mean cost of the cascade; infinite if all earlier
            stages are free and answer everything.
        chosen_on: Number of rows that chose the kind of policy and the order of the thresholds.
        certified_on: Number of rows that certify.
        unanswered: Number of rows without an answer of the last stage. If an earlier stage answers
            one, that counts as another answer.
    """

    shares: tuple[float, ...]
    seconds: tuple[float, ...]
    speed_up: float
    chosen_on: int
    certified_on: int
    unanswered: int = 0

    @property
    def last_stage_needed(self) -> bool:
        """Whether the last stage answered any certifying row; if not, the promise needs none."""
        return self.shares[-1] > 0.0

    @property
    def remark(self) -> str:
        """Advice about a last stage that is not needed, or that fails; empty without any."""
        if not self.last_stage_needed:
            return (
                "The last stage is no longer needed: earlier stages answered all "
                f"{self.certified_on} rows that certify."
            )
        if not self.unanswered:
            return ""
        return (
            f"The last stage gave no answer to {self.unanswered} rows; early answers to them count "
            "as other answers. Ask again, or leave such rows out if the promise is to be of others."
        )

    def __repr__(self) -> str:
        shares = ", ".join(f"{share:.3f}" for share in self.shares)
        rows = f"chosen_on={self.chosen_on}, certified_on={self.certified_on}"
        remark = ""
        if not self.last_stage_needed:
            remark = ", the last stage is no longer needed"
        return (
            f"CascadeReport(met={self.met}, shares=({shares}), speed_up={self.speed_up:.2f}, "
            f"observed={self.observed:.4f}, {rows}{remark})"
        )


def certify_cascade(
    record: Record,
    costs: Sequence[float],
    *,
    risk: RiskLike = "disagreement",
    level: float = LEVEL,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> CascadeReport:
    """Choose a threshold for each stage, and certify how often answers differ from the last one's.

    A third of the rows chooses the kind of policy and the order of the thresholds; the others, on
    which nothing was chosen, certify by the exact binomial bound. A text that occurs twice is two
    rows, as it is in traffic (see `ponder.statistics.repeats`). If an earlier stage answers a row
    that the last stage does not, this counts as another answer.

    Args:
        record: The answers of all stages to inputs on which none was trained: a full-depth run
            whose steps are the stages. If it has more steps than there are costs, the last stage
            has several steps, which share its cost.
        costs: The cost of each stage for one row, `(stages,)`; 0 for stages that are free, but not
            for the last.
        risk: A risk whose losses are 0 or 1, as for `control_risk`.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        seed: Seed of the split.

    Raises:
        ArgumentError: Too few rows certify for the level, or costs are negative or not finite.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.cascades import certify_cascade
        >>> from ponder.calibration.records import Record
        >>> easy_row = [[0.99, 0.01], [1.0, 1e-9]]  # probabilities of two stages
        >>> hard_row = [[0.6, 0.4], [1e-9, 1.0]]
        >>> outputs = np.tile(np.log([easy_row, hard_row]), (400, 1, 1))
        >>> record = Record(outputs, None, np.arange(800), task="classification")
        >>> report = certify_cascade(record, costs=[1, 20], level=0.02)
        >>> report.met, report.shares
        (True, (0.47..., 0.52...))
    """
    stage_costs = check_costs(costs)
    last_steps = record.num_steps - len(stage_costs) + 1  # steps of the last stage, of equal cost
    step_costs = [*stage_costs[:-1], *[stage_costs[-1] / last_steps] * last_steps]
    by_step = np.cumsum(step_costs)
    if record.content_ids:
        check_rows(record.row_ids, "inputs")
    choosing_rows, certifying_rows = split(record.row_ids, CHOOSE_AND_CERTIFY, seed=seed)
    choosing = record.map(lambda values: values[choosing_rows])
    certifying = record.map(lambda values: values[certifying_rows])
    _check_enough(record, certifying, risk, level, confidence)
    found = certify(
        choosing,
        certifying,
        _candidates(choosing, risk),
        risk=risk,
        level=level,
        confidence=confidence,
        costs=by_step.tolist(),
    )
    policy = found.policy
    if isinstance(policy.policy, ThresholdPath):
        policy = replace(policy, policy=policy.policy.thresholds)
    policy = policy.with_facts(
        rule=stages_rule(policy, record.num_steps),
        change=words_of(risk, "those of the last stage").change,
    )
    shares = np.asarray(found.exit_shares)
    before = len(stage_costs) - 1
    mean_cost = float(shares @ by_step)
    speed_up = math.inf
    if mean_cost:
        speed_up = float(stage_costs[-1]) / mean_cost
    return CascadeReport(
        **{**vars(found), "policy": policy},
        shares=(*shares[:before].tolist(), float(shares[before:].sum())),
        seconds=tuple(stage_costs.tolist()),
        speed_up=speed_up,
        chosen_on=len(choosing),
        certified_on=len(certifying),
        unanswered=int(np.isnan(as_array(record.outputs[:, -1])).any(axis=-1).sum()),
    )


def stages_rule(
    policy: ExitPolicy, num_stages: int, first: str = "first stage", last: str = "last stage"
) -> str:
    """Return the thresholds of a cascade as the rule of a promise.

    Args:
        policy: The policy of its stages.
        num_stages: Number of steps of its record: the stages, those of a last stage with exits too.
        first: What the first of two stages is called.
        last: What the last stage is called.

    Example:
        >>> stages_rule(policies.Confidence(0.9), 2, "student", "model")
        "Take the student's answers with a confidence above 0.9, and ask the model for the others"
    """
    words = policy.words()
    if num_stages == 2:
        return f"Take the {first}'s answers with {words}, and ask the {last} for the others"
    return f"Take the first answer with {words}, and run the others to the last stage"


def check_costs(costs: Sequence[float]) -> Floats:
    """Return the costs of stages as an array, `(stages,)`; refuse negative or infinite ones."""
    values = np.asarray(costs, dtype=np.float64)
    finite = values.ndim == 1 and bool(np.isfinite(values).all())
    if not finite or (values < 0).any() or values[-1] <= 0:
        raise ArgumentError(
            "costs",
            expected="the cost of each stage for one input, 0 or more, of the last above 0",
            got=str(list(costs)),
            remedy="Pass costs=[0, 1], say; any unit will do.",
        )
    return values


@dataclass(frozen=True)
class ThresholdPath(ThresholdPolicy):
    """Thresholds of all stages that one number moves, from late exits to early ones.

    The module's docstring says how the path is made.

    Args:
        policy: The kind of certainty, whose threshold is not read.
        rungs: The thresholds of the stages at each place of the path, `(rungs, stages − 1)`.
        rung: The place.
    """

    policy: ThresholdPolicy
    rungs: tuple[tuple[float, ...], ...]
    rung: float = 0.0
    needs = frozenset({"output"})
    tunable = Threshold("rung", "at_most")

    @property
    def thresholds(self) -> StageThresholds:
        """The policy at this place of the path."""
        return StageThresholds(self.policy, self.rungs[int(self.rung)])

    def words(self) -> str:
        return self.thresholds.words()

    def statistic(self, step: StepView, state: Any) -> tuple[Floats, Any]:
        """Return the first rung at which each row exits; infinite if it exits at none."""
        value, _ = self.policy.statistic(step, None)
        stage = int(step.index[0])  # all rows of a record are at one stage
        thresholds: Any = np.array(self.rungs)[:, stage - 1]
        crossed = self.policy.tunable.crossed(value[:, None], thresholds)
        first = crossed.argmax(axis=1).astype(np.float64)
        return np.where(crossed.any(axis=1), first, np.inf), state


def threshold_path(
    losses: Floats, values: Floats, loss_share: float
) -> tuple[tuple[float, ...], ...]:
    """Return thresholds of the stages from late exits to early ones; see the module's docstring.

    Args:
        losses: The loss of each stage at each value, `(stages − 1, values)`, rising along the
            values.
        values: The values of the threshold, from the latest exits to the earliest.
        loss_share: Rows that each later stage may lose for one that the first loses; if it is 0,
            the first alone moves.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration.cascades import threshold_path
        >>> losses = np.array([[0.0, 0.1, 0.3], [0.0, 0.0, 0.2]])
        >>> threshold_path(losses, np.array([0.9, 0.8, 0.7]), loss_share=1.0)
        ((0.9, 0.9), (0.9, 0.8), (0.8, 0.8), (0.8, 0.7), (0.7, 0.7))
    """
    if loss_share:
        shares = np.array([1.0, *[loss_share] * (len(losses) - 1)])
        moving = losses / shares[:, None]
    else:
        moving = losses[:1]
    moves = set[tuple[float, int]]()
    for stage, of_stage in enumerate(moving.tolist()):
        moves |= {(loss, stage) for loss in of_stage}
    places = [0] * len(losses)
    path = [tuple(float(values[0]) for _ in places)]
    for loss, stage in sorted(moves):
        places[stage] = int((moving[stage] <= loss).sum()) - 1
        path.append(tuple(float(values[place]) for place in places))
    return tuple(dict.fromkeys(path))  # each vector once, in order


def _candidates(choosing: Record, risk: RiskLike) -> list[Candidate]:
    """Return the kinds of certainty with the paths through the thresholds of all stages."""
    kinds = certainties(choosing)
    if choosing.num_steps == 2:  # a single threshold: its values are the path
        return list(kinds)
    losses = counted_losses(risk, choosing).losses
    paths = list[Candidate]()
    for kind, values in kinds:
        sign = 1.0 if kind.tunable.higher_exits_later else -1.0
        scores = np.asarray(kind.scores(choosing))[:, :-1, None]
        exits = scores > sign * values  # (rows, stages − 1, values)
        of_stages = np.mean(exits * losses[:, :-1, None], axis=0)
        # Exits, and so losses, only grow along the values; the maximum removes rounding of means.
        rising = np.maximum.accumulate(of_stages, axis=1)
        for share in _LOSS_SHARES:
            rungs = threshold_path(rising, values, share)
            paths.append((ThresholdPath(kind, rungs), range(len(rungs))))
    return paths


def _check_enough(
    record: Record, certifying: Record, risk: RiskLike, level: float, confidence: float
) -> None:
    """Refuse a level for which too few rows certify, and name a number that is enough."""
    count = len(certifying)
    noun = "inputs"
    if count:
        counting = losses_of(risk, certifying).rows
        if counting is not None:
            count = int(counting.sum())
            noun = "positives"
    needed = rows_needed(level, confidence)
    if count < needed:
        enough = needed * len(record) // max(count, 1) + 1
        raise ArgumentError(
            "inputs",
            expected=f"{needed} {noun} that certify, or more, for a level of {level:g} "
            f"with confidence {confidence:g}",
            got=f"{count}, after a third of {len(record)} inputs chose",
            remedy=f"Give about {enough} inputs, or a higher level.",
        )
