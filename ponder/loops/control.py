"""Risk control on runs: the cheapest threshold that rarely differs from full depth.

A record at full depth holds the answers of positions when all run on. In a run that freezes halted
positions the others attend to the frozen states, so that a replay is an approximation, and no
promise can rest on it. Here the model is run again for every threshold that is tested:

    run at full depth once
    for each threshold, from the latest exits to the earliest: run, compare, test; stop at the first
    that fails (fixed-sequence testing, Angelopoulos et al. 2021)
    take the cheapest that passed

So the list of thresholds is short, and fixed before any row is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ponder._utils.arrays import Floats
from ponder._utils.checks import check_choice, check_share
from ponder.errors import ArgumentError
from ponder.loops.loop import Loop, LoopOutput
from ponder.model.steps import Context
from ponder.policies import Certified, ExitPolicy, LastStep
from ponder.statistics.bounds import BOUNDS
from ponder.statistics.certificate import Certificate
from ponder.statistics.sequence import FixedSequence

__all__ = ["LoopControl", "control_risk"]


@dataclass(frozen=True, eq=False)
class LoopControl:
    """The policy that risk control chose for a loop, and its promise.

    Args:
        policy: The policy with its certificate; full depth if no threshold passed.
        observed: The risk of the policy on the calibration rows.
        steps_saved: The share of the position-steps of full depth that it saves there.
    """

    policy: Certified
    observed: float
    steps_saved: float

    @property
    def certificate(self) -> Certificate:
        """The facts of the promise."""
        return self.policy.certificate

    @property
    def met(self) -> bool:
        """Whether some threshold was certified."""
        return self.certificate.met

    @property
    def statement(self) -> str:
        """The promise in words, or why none could be given."""
        return self.certificate.sentence


_CHANGES = {
    "sequence": "another answer than at full depth at some position",
    "position": "share of positions with another answer than at full depth",
}
"""How the sentence of the promise names each risk."""


def control_risk(
    loop: Loop,
    batches: Iterable[Context],
    policies: Callable[[float], ExitPolicy],
    thresholds: Sequence[float],
    *,
    max_steps: int,
    risk: Literal["sequence", "position"] = "sequence",
    level: float,
    confidence: float = 0.95,
    bound: str | None = None,
) -> LoopControl:
    """Choose the cheapest of a few thresholds whose risk on fresh rows is at most `level`.

    With probability at least `confidence` over the draw of the calibration rows, the risk of the
    chosen threshold is at most `level` on rows like them; each threshold costs a run, and the walk
    ends at the first that fails.

    Args:
        loop: The loop, in evaluation mode.
        batches: The arguments of calls of the loop on calibration rows, ``{"hidden": …,
            "attention_mask": …}`` each; nothing else was chosen on these rows.
        policies: A threshold to its policy: `policies.Confidence`, say.
        thresholds: The thresholds, the latest exits first, fixed before any row was seen.
        max_steps: The number of steps of full depth.
        risk: ``"sequence"``, the share of rows of which any position has another answer than at
            full depth; ``"position"``, the mean over rows of the share of their positions that
            have. Rows are what is drawn: the positions of one row depend on each other.
        level: Upper limit of the risk, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        bound: ``"hoeffding_bentkus"``, ``"betting"``, or ``"exact_binomial"`` for ``"sequence"``.
            If None, ``"exact_binomial"`` for ``"sequence"``, whose losses are 0 or 1, and
            ``"hoeffding_bentkus"`` for ``"position"``.

    Raises:
        ArgumentError: No thresholds, or a loop in training mode.

    Example:
        >>> loop = ponder.loops.Loop(ponder.loops.Block(8, heads=2), nn.Linear(8, 3)).eval()
        >>> found = ponder.loops.control_risk(
        ...     loop,
        ...     [{"hidden": torch.randn(40, 5, 8)}],
        ...     policies.Confidence,
        ...     [0.99, 0.9],
        ...     max_steps=4,
        ...     level=0.1,
        ... )
        >>> found.met, found.certificate.num_steps
        (True, 4)
    """
    check_share("level", level, remedy="Pass level=0.05, say.")
    check_share("confidence", confidence, remedy="Pass confidence=0.95, say.")
    check_choice("risk", risk, ("sequence", "position"))
    if bound is None:
        # Losses of whole rows are 0 or 1, for which the exact bound is the tightest.
        bound = "exact_binomial" if risk == "sequence" else "hoeffding_bentkus"
    check_choice("bound", bound, BOUNDS)
    _check_loop(loop, thresholds)
    calls = list(batches)
    full = [_run(loop, call, LastStep(), max_steps) for call in calls]
    rows = sum(len(out) for out in full)
    sequence = FixedSequence(bound, level, confidence, rows)
    position_steps = list[int]()
    for value in thresholds:
        policy = policies(value)
        outputs = [_run(loop, call, policy, max_steps) for call in calls]
        position_steps.append(_position_steps(outputs))
        if not sequence.test([value], _losses(loop, outputs, full, risk)[None]):
            break
    place: int | None = None
    chosen: ExitPolicy = LastStep()
    rule = chosen.rule("row")
    observed = 0.0
    saved = 0.0
    if sequence.num_passed:
        place = int(np.argmin(position_steps[: sequence.num_passed]))
        value, observed, _ = sequence.path[place]
        chosen = policies(value)
        rule = (
            f"Halt each position at the first step with {chosen.words()}, and run the others to "
            "the last step"
        )
        saved = 1.0 - position_steps[place] / _position_steps(full)
    certificate = sequence.certificate(
        place,
        rule=rule,
        change=_CHANGES[risk],
        is_mean=risk == "position",
        risk=risk,
        threshold_name=_name_of(policies(thresholds[0])),
        num_steps=max_steps,
        weights=loop.weights_digest(),
    )
    return LoopControl(Certified(chosen, certificate), observed, saved)


def _check_loop(loop: Loop, thresholds: Sequence[float]) -> None:
    """Refuse a loop whose answers are random, and a call without thresholds."""
    if loop.training or not thresholds:
        expected = "a loop in evaluation mode, and a threshold or more"
        got = f"{loop.training=}, {len(thresholds)} thresholds"
        remedy = "Call loop.eval(), and pass thresholds=[0.99, 0.95, 0.9], say."
        raise ArgumentError("loop", expected=expected, got=got, remedy=remedy)


@torch.no_grad()
def _run(loop: Loop, call: Context, policy: ExitPolicy, max_steps: int) -> LoopOutput:
    return loop(**call, max_steps=max_steps, policy=policy)


def _position_steps(outputs: Sequence[LoopOutput]) -> int:
    """Return the number of steps of real positions in several calls."""
    return sum(out.position_steps for out in outputs)


def _losses(
    loop: Loop, outputs: Sequence[LoopOutput], full: Sequence[LoopOutput], risk: str
) -> Floats:
    """Return the loss of each row of several calls against full depth, `(rows,)` in [0, 1]."""
    pairs = zip(outputs, full, strict=True)
    losses = torch.cat([_losses_of_call(loop, *pair, risk) for pair in pairs])
    each: Floats = losses.double().cpu().numpy()
    return each


def _losses_of_call(loop: Loop, run: LoopOutput, full: LoopOutput, risk: str) -> Tensor:
    """Return the loss of each row of a call, `(rows,)` in [0, 1]."""
    real = full.exit_step > 0
    task = loop.meaning(full.outputs)
    differ = task.predictions(run.outputs) != task.predictions(full.outputs)
    if differ.dim() > real.dim():  # an answer of several parts is another one if any part is
        differ = differ.flatten(real.dim()).any(-1)
    if real.dim() == 1:  # rows without positions have one answer each
        real = real[:, None]
        differ = differ[:, None]
    changed: Tensor = (differ & real).sum(1)
    if risk == "sequence":
        return changed.clamp(max=1)
    return changed / real.sum(1).clamp(min=1)


def _name_of(policy: ExitPolicy) -> str:
    return "threshold" if policy.tunable is None else policy.tunable.field
