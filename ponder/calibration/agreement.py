"""Choosing a policy that answers as a reference does: its kind on some rows, its threshold with a promise on others.

The reference is full depth of the same model, or another model: the fp32 one before quantisation, or the one from which
a deeper training started. Either way its predictions stand in the trajectories as labels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from ponder._utils.bisection import bisect
from ponder._utils.numerics import exit_shares
from ponder._utils.rounding import rounded_down, rounded_up
from ponder._utils.validation import check_choice, check_real, check_share
from ponder.analysis.policy_grid import as_policy_grid
from ponder.calibration.bounds import p_values
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.fresh import check_fresh, check_same_weights, other_model
from ponder.calibration.reference import ReferenceRisk, differences
from ponder.errors import ArgumentError
from ponder.parts.recording import check_sample
from ponder.policies import Confidence, Entropy, ExitPolicy, FixedStep, Margin
from ponder.trajectory import Trajectory

__all__ = ["AgreementControl", "AgreementCurve", "agreement_curves", "control_agreement", "most_differing"]

_BOUND = "exact_binomial"  # the sharpest there is for answers that differ or do not
_ROUNDING = 1e-9  # by which a mean may miss what it meets
_VALUES = 141
_SAMPLES = 100


@dataclass(frozen=True)
class AgreementCurve:
    """What every value of one kind of policy gives on some rows, from late exits to early ones.

    Args:
        policy: Name of the kind.
        values: The values of its threshold, from late exits to early ones.
        mean_exit_step: The mean exit step under each value.
        disagreement: For each value, the share of rows whose answer is not that of the reference.
        promise: For each value, the lowest level that these rows would have certified, had that level been asked for
            before they were seen. Only the promise that was asked for is one.
        exits: For each value, the share of rows that leave at each step.

    Example:
        >>> fixed, *_ = agreement_curves(trajectory)
        >>> fixed.mean_exit_step, [round(share, 2) for share in fixed.disagreement]
        ((4.0, 3.0, 2.0, 1.0), [0.0, 0.0, 0.33, 0.67])
    """

    policy: str
    values: tuple[float, ...]
    mean_exit_step: tuple[float, ...]
    disagreement: tuple[float, ...]
    promise: tuple[float, ...]
    exits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, eq=False)
class AgreementControl:
    """What `control_agreement` came to.

    Args:
        found: The policy with its certificate.
        kind: Name of the kind of policy, as in `AgreementCurve`.
        level: What was asked for, or what the speed-up costs.
        rows: Number of certifying rows.
        disagreement: The share of the certifying rows whose answer is not that of the reference.
        moved: The same share at full depth.
        mean_exit_step: Mean exit step of the certifying rows.
        exit_shares: The share of the certifying rows that leaves at each step, `(steps,)`.

    Example:
        >>> from dataclasses import replace
        >>> certifying = replace(trajectory, row_ids=torch.arange(300, 600))  # in earnest: other rows
        >>> made = control_agreement(trajectory, certifying, level=0.02)
        >>> print(made.statement("full depth does"))
        Answers as full depth does on all but 2% of inputs like these, with 95% confidence (certified on 300 ...).
    """

    found: RiskControl
    kind: str
    level: float
    rows: int
    disagreement: float
    moved: float
    mean_exit_step: float
    exit_shares: tuple[float, ...]

    @property
    def best_level(self) -> float:
        """The lowest level that so many rows could certify, were there no disagreement at all."""
        assert self.found.policy.confidence is not None
        return float(1.0 - (1.0 - self.found.policy.confidence) ** (1.0 / self.rows))

    def statement(self, reference: str, inputs: str = "inputs like these") -> str:
        """What is promised, or why nothing could be, in a sentence.

        Args:
            reference: Who the reference is: "the plain model does", say.
            inputs: What the promise is about.
        """
        if self.found.met:
            confidence = rounded_down(100 * (self.found.policy.confidence or 0.0))
            return (
                f"Answers as {reference} on all but {rounded_up(100 * self.level, 3)}% of {inputs}, with {confidence}% "
                f"confidence (certified on {self.rows} inputs that chose nothing)."
            )
        if self.moved:
            return f"No promise, at full depth neither, where {100 * self.moved:.2f}% differ: {self.found.statement}."
        return f"No exits: {self.found.statement}."


@dataclass(frozen=True)
class _Kind:
    """A kind of policy with the values of its threshold, from late exits to early ones."""

    name: str
    make: Callable[[float], ExitPolicy]
    values: list[float]


def control_agreement(
    choosing: Trajectory,
    certifying: Trajectory,
    *,
    level: float,
    confidence: float = 0.95,
    speed_up: float | None = None,
    own_full_depth: bool = False,
) -> AgreementControl:
    """Choose among a fixed step, confidence, margin and entropy, and certify the threshold of the chosen kind.

    The last three ask how sure every step is, or, where early steps are sure and wrong, each from a later one on. The
    kind is chosen whose certificate is the cheapest on average, over bootstrap samples of the choosing rows: a step
    that just passes on those, and fails on others, leaves the much dearer step behind it.

    Args:
        choosing: A full-depth run over rows that choose the kind of policy (and, for a speed-up, its threshold); its
            labels are what the reference predicts, and are not compared where that is the run's own full depth.
        certifying: The same over rows on which nothing was chosen, with ids of their own where rows may repeat:
            ``model.record(rows, first_row=len(choosing))``.
        level: How often answers may differ from the reference's, in (0, 1); not read where a speed-up is given.
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Aim at this many times fewer steps instead; the promise is then about what that costs.
        own_full_depth: Whether the reference is full depth of the model itself. The certificate is then one of
            ``"disagreement"``, which a service can audit, and else of ``"disagreement_with_reference"``.

    Raises:
        ArgumentError: A trajectory without labels that are needed, of training mode, or in which a row is twice;
            answers that are not the same or another; a certifying row that is among those that choose, runs of two
            models, or a number out of range.

    Example:
        >>> from dataclasses import replace
        >>> certifying = replace(trajectory, row_ids=torch.arange(300, 600))  # in earnest: other rows
        >>> made = control_agreement(trajectory, certifying, level=0.02, own_full_depth=True)
        >>> made.kind, made.mean_exit_step, made.disagreement
        ('confidence', 2.0, 0.0)
    """
    for name, run in (("choosing", choosing), ("certifying", certifying)):
        check_sample(run, name)
        _check_comparable(run, name, own_full_depth)
    check_fresh(certifying, choosing, "certifying")
    _check_same_model(choosing, certifying)
    if speed_up is not None:
        check_real("speed_up", speed_up, 1.0, float(choosing.num_steps), open_low=True)
    kinds = _candidates(choosing)
    if speed_up is None:
        counts = _resampled(len(choosing), len(certifying))
        most = most_differing(len(certifying), level, confidence)
        kind = min(kinds, key=lambda kind: _certified_cost(choosing, kind, counts, most, own_full_depth))
        return _control(certifying, kind, kind.values, level, confidence, own_full_depth)
    curves = [_outcomes(choosing, kind, own_full_depth) for kind in kinds]
    slowest = choosing.num_steps / speed_up
    allowed = [
        (d, s, place, value)
        for place, (kind, curve) in enumerate(zip(kinds, curves, strict=True))
        for d, s, value in zip(*curve, kind.values, strict=True)
        if s <= slowest + _ROUNDING
    ]
    _, _, place, value = min(allowed)
    kind = kinds[place]
    differs = _differences(certifying, kind, [value], own_full_depth)[1][0]
    bound = _upper_bound(int(differs.sum()), len(differs), confidence)
    return _control(certifying, kind, [value], bound, confidence, own_full_depth)


def _check_comparable(run: Trajectory, argument: str, own: bool) -> None:
    """Refuse answers that are not simply the same or another."""
    if not run.meaning.comparable:
        raise ArgumentError(
            argument,
            expected="answers that are the same or another",
            got=f"the task {run.task!r}",
            remedy="Certify a distance with ponder.control_risk and a risk of your own.",
        )
    if own:  # labels are the model's own; else they are the answers of the reference
        run.check_unnamed(argument)


def _check_same_model(choosing: Trajectory, certifying: Trajectory) -> None:
    """Refuse runs that cannot be of one model: what is chosen on one of them says nothing of the other."""
    for what, one, other in (
        ("steps", choosing.num_steps, certifying.num_steps),
        ("numbers an answer", choosing.outputs.shape[-1], certifying.outputs.shape[-1]),
        ("task", choosing.task, certifying.task),
    ):
        if one != other and None not in (one, other):
            raise other_model("choosing", what, one, other)
    check_same_weights(choosing, certifying, "choosing")


def agreement_curves(
    trajectory: Trajectory, confidence: float = 0.95, kind: str | None = None, *, own_full_depth: bool = False
) -> tuple[AgreementCurve, ...]:
    """What each kind of policy gives on rows whose labels are the reference's predictions.

    Args:
        trajectory: A full-depth run.
        confidence: Probability with which each promise holds, in (0, 1).
        kind: The kind that was chosen (`AgreementControl.kind`), which comes last where it is none of the four.
        own_full_depth: Whether the reference is full depth of the model itself; labels are then not read.

    Raises:
        ArgumentError: No rows, or one that is there twice; a run of training mode; a confidence outside (0, 1), or
            another kind.

    Example:
        >>> curves = agreement_curves(trajectory)
        >>> [curve.policy for curve in curves]
        ['fixed step', 'confidence', 'margin', 'entropy']
    """
    check_sample(trajectory)
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    kinds = _kinds(trajectory)
    if kind is not None and kind not in [each.name for each in kinds]:
        known = {each.name: each for each in _candidates(trajectory)}
        check_choice("kind", kind, known)
        kinds.append(known[kind])
    made = []
    for one in kinds:
        steps, differs = _differences(trajectory, one, one.values, own_full_depth)
        rows = len(trajectory)
        bounds = [_upper_bound(int(count), rows, confidence) for count in differs.sum(1).tolist()]
        shares = torch.stack([(steps == n).double().mean(1) for n in range(1, trajectory.num_steps + 1)], 1)
        made.append(
            AgreementCurve(
                policy=one.name,
                values=tuple(one.values),
                mean_exit_step=tuple(steps.double().mean(1).tolist()),
                disagreement=tuple(differs.double().mean(1).tolist()),
                promise=tuple(max(bounds[: place + 1]) for place in range(len(bounds))),  # tested in this order
                exits=tuple(tuple(each) for each in shares.tolist()),
            )
        )
    return tuple(made)


def _kinds(trajectory: Trajectory) -> list[_Kind]:
    """The kinds of policy that the outputs admit; values are fine where answers are sure."""
    kinds = [_Kind("fixed step", _fixed, [float(step) for step in range(trajectory.num_steps, 0, -1)])]
    if trajectory.meaning.classes and trajectory.outputs.shape[-1] > 1:
        sure = torch.linspace(12.0, -2.0, _VALUES, dtype=torch.float64).sigmoid().tolist()
        most = math.log10(math.log(trajectory.outputs.shape[-1]))
        unsure = torch.logspace(-6.0, most, _VALUES, dtype=torch.float64).tolist()
        kinds += [_Kind("confidence", Confidence, sure), _Kind("margin", Margin, sure)]
        kinds += [_Kind("entropy", Entropy, unsure)]
    return kinds


def _candidates(trajectory: Trajectory) -> list[_Kind]:
    """The kinds, and those that ask how sure the steps are from a later one on."""
    fixed, *sure = _kinds(trajectory)
    late = [
        _Kind(f"{kind.name} from step {step}", partial(_from_step, kind.make, step), kind.values)
        for kind in sure
        for step in range(2, trajectory.num_steps)
    ]
    return [fixed, *sure, *late]


def _from_step(make: Callable[[float], ExitPolicy], step: int, value: float) -> ExitPolicy:
    return make(value).after(step)


def _fixed(step: float) -> ExitPolicy:
    return FixedStep(int(step))


def _differences(
    trajectory: Trajectory, kind: _Kind, values: Sequence[float], own: bool = False
) -> tuple[Tensor, Tensor]:
    """Exit steps and whether the answer there is another, `(values, batch)` each."""
    steps = as_policy_grid(kind.make, values, trajectory).exit_steps(trajectory).cpu()
    return steps, differences(trajectory, own).gather(1, steps.T - 1).T


def _outcomes(trajectory: Trajectory, kind: _Kind, own: bool) -> tuple[list[float], list[float]]:
    """How often answers differ at each value, and the mean exit step."""
    steps, differs = _differences(trajectory, kind, kind.values, own)
    return differs.double().mean(1).tolist(), steps.double().mean(1).tolist()


def _resampled(rows: int, drawn: int) -> Tensor:
    """How often each row is drawn in bootstrap samples of so many, `(rows, samples)`."""
    generator = torch.Generator().manual_seed(0)
    samples = (torch.randint(rows, (drawn,), generator=generator) for _ in range(_SAMPLES))
    return torch.stack([sample.bincount(minlength=rows) for sample in samples], dim=1).double()


def _certified_cost(trajectory: Trajectory, kind: _Kind, counts: Tensor, most: int, own: bool) -> float:
    """The mean exit step that samples of the rows would certify, on average over them."""
    steps, differs = _differences(trajectory, kind, kind.values, own)
    passes = differs.double() @ counts <= most
    passes = passes.int().cummin(0).values.bool()  # values are tested in order, up to the first that fails
    costs = torch.where(passes, steps.double() @ counts / counts.sum(0), float(trajectory.num_steps))
    return float(costs.amin(0).mean())


def _control(
    trajectory: Trajectory, kind: _Kind, values: Sequence[float], level: float, confidence: float, own: bool
) -> AgreementControl:
    found = control_risk(
        trajectory,
        kind.make,
        risk="disagreement" if own else ReferenceRisk(),
        level=level,
        confidence=confidence,
        bound=_BOUND,
        grid=values,
    )
    differ, steps = differences(trajectory, own), trajectory.replay(found.policy).exit_step.cpu()
    rows = len(trajectory)
    return AgreementControl(
        found=found,
        kind=kind.name,
        level=level,
        rows=rows,
        disagreement=float(differ[torch.arange(rows), steps - 1].double().mean()),
        moved=float(differ[:, -1].double().mean()),
        mean_exit_step=float(steps.double().mean()),
        exit_shares=tuple(exit_shares(steps, trajectory.num_steps)),
    )


@cache
def most_differing(rows: int, level: float, confidence: float) -> int:
    """How many of the rows may differ where the level is certified; -1 where not even none would do."""
    return bisect_left(range(rows), True, key=lambda many: _p_value(many, rows, level) > 1.0 - confidence) - 1


@cache
def _upper_bound(differing: int, rows: int, confidence: float) -> float:
    """The lowest level that so many differing rows certify, by bisection to 10⁻⁶ from above."""

    def fails(level: float) -> bool:
        return _p_value(differing, rows, level) > 1.0 - confidence

    return bisect(fails, differing / rows, 1.0 - 1e-9, halvings=20)[1]


def _p_value(differing: int, rows: int, level: float) -> float:
    losses = torch.zeros(rows, 1, dtype=torch.float64)
    losses[:differing] = 1.0
    return float(p_values(losses, level, _BOUND))
