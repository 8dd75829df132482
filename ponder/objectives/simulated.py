"""COSEE's objectives: simulated exits weight the losses, and certainty is calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.checks import check_choice, check_int, check_real
from ponder.errors import ArgumentError
from ponder.objectives.base import Objective, Unrolled
from ponder.policies.certainty import SIGNALS

__all__ = ["SignalCalibration", "SimulatedExits"]


@dataclass(frozen=True)
class SimulatedExits(Objective):
    r"""The losses of all steps, weighted by the distance of a step from the example's exit.

    For each of K thresholds t_k, an example would exit at n*_k, the first step whose signal is
    above t_k, or at the last. The loss is

        (1/K) Σ_k Σ_n w_n(n*_k) ℓ_n   with   w_n(m) = exp(−β |n − m|) / Σ_j exp(−β |j − m|),

    and β = `sharpness` · (share of training that is done): all steps learn alike at first, and each
    from its own examples in the end (He et al. 2025, "COSEE: Consistency-Oriented Signal-Based
    Early Exiting via Calibrated Sample Weighting Mechanism", arXiv 2412.13236; Eq. 3–7). No
    gradient flows through the weights.

    The paper draws the thresholds at random from the signal's range in the epoch before; here they
    are the middles of K equal parts of its range in the batch, without the last step: the same
    average with less noise, and no memory.

    Args:
        thresholds: K ≥ 1.
        sharpness: β at the end of training, ≥ 0; 0 weighs all steps alike.
        signal: A certainty of class logits; ``"energy"`` is the paper's.

    Example:
        >>> model.objective = objectives.SimulatedExits(thresholds=5, sharpness=10.0)
        >>> model.progress = objectives.Progress(step=10, total=100)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    thresholds: int = 5
    sharpness: float = 10.0
    signal: Literal["confidence", "energy", "margin", "negative_entropy"] = "confidence"
    needs = frozenset({"progress"})

    def __post_init__(self) -> None:
        check_int("thresholds", self.thresholds)
        check_real("sharpness", self.sharpness)
        check_choice("signal", self.signal, SIGNALS)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        losses = unrolled.losses
        share = unrolled.given("progress").share
        num_steps = losses.shape[1]
        if num_steps == 1:
            return losses[:, 0]
        exits = self._exit_steps(_certainty(self.signal, unrolled).detach()[:, :-1])
        steps = torch.arange(num_steps, device=losses.device)
        distance = (steps - exits.unsqueeze(-1)).abs().to(losses.dtype)
        weights = torch.softmax(-self.sharpness * share * distance, dim=-1)
        return (weights.mean(1) * losses).sum(-1)

    def _exit_steps(self, sure: Tensor) -> Tensor:
        """Return the exit of each row at each threshold, `(batch, thresholds)`, from 0."""
        low = sure.min()
        high = sure.max()
        numbers = torch.arange(self.thresholds, device=sure.device, dtype=sure.dtype)
        thresholds = low + (high - low) * ((numbers + 0.5) / self.thresholds)
        crossed = sure.unsqueeze(1) > thresholds.unsqueeze(-1)
        # All rows that remain exit at the last step.
        return F.pad(crossed, (0, 1), value=True).long().argmax(-1)


@dataclass(frozen=True)
class SignalCalibration(Objective):
    r"""Mean over the early steps of max(0, s̄_n(wrong) − s̄_n(right) + ε).

    s̄_n(right) and s̄_n(wrong) are the mean signals of the examples of the batch whose answer at
    step n is right or wrong; steps with only right or only wrong answers are skipped. It is the
    online signal calibration of COSEE (He et al. 2025, arXiv 2412.13236, Eq. 9), which is added to
    the loss of `SimulatedExits` with a small weight. It is one number, the same for all examples of
    the batch.

    Args:
        margin: ε ≥ 0.
        signal: The certainty of a class that the policy will read; ``"energy"`` is the paper's.

    Example:
        >>> model.objective = objectives.SimulatedExits() + 0.1 * objectives.SignalCalibration()
        >>> model.progress = objectives.Progress(step=10, total=100)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    margin: float = 0.3
    signal: Literal["confidence", "energy", "margin", "negative_entropy"] = "confidence"

    def __post_init__(self) -> None:
        check_real("margin", self.margin)
        check_choice("signal", self.signal, SIGNALS)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        sure = _certainty(self.signal, unrolled)[:, :-1]
        target, known = unrolled.task.targets(unrolled.labels)
        answers = unrolled.outputs[:, :-1].argmax(-1)
        is_known = known.unsqueeze(1)
        is_correct = answers == target.unsqueeze(1)
        right = is_known & is_correct
        wrong = is_known & ~is_correct
        mean_gap = _mean_of(sure, wrong) - _mean_of(sure, right)
        penalty = F.relu(mean_gap + self.margin)
        # A step with only right or only wrong answers has no gap.
        has_both = (right.any(0) & wrong.any(0)).to(sure.dtype)
        mean: Tensor = (penalty * has_both).sum() / has_both.sum().clamp(min=1.0)
        return mean.to(unrolled.losses.dtype).expand(unrolled.losses.shape[0])


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean over the chosen rows at each step, `(steps,)`; 0 if none is chosen."""
    weights = chosen.to(values.dtype)
    return (values * weights).sum(0) / weights.sum(0).clamp(min=1.0)


def _certainty(signal: str, unrolled: Unrolled) -> Tensor:
    """Return the certainty of the class of every row at every step, `(batch, steps)`."""
    task = unrolled.task
    outputs = unrolled.outputs
    if not task.one_class or not task.fits(outputs[:, -1]):
        expected = f"a task with one class an example, for signal={signal!r}"
        got = f"the task {task.name!r} with outputs of shape {tuple(outputs.shape)}"
        raise ArgumentError("signal", expected=expected, got=got, remedy="Use DeepSupervision.")
    return SIGNALS[signal](outputs)  # type: ignore[no-any-return]
