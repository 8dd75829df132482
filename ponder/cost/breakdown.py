"""`Cost`: what each part of a wrapped model costs, and what an exit costs, given what the policy reads.

A row that exits at step n has paid for the stem, for steps 1 to n, for one answer, and for what the policy read on the
way: features are a readout, an output is a readout and a head, a hazard a readout and a Lambda head. At the last step
nobody asks the policy.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ponder._utils.validation import check_real
from ponder.errors import ArgumentError, ArgumentTypeError, PonderError
from ponder.policies.base import READINGS

__all__ = ["Cost", "break_even", "checked_plain"]


@dataclass(frozen=True)
class Cost:
    """FLOPs per example of the parts of a wrapped model; seconds, or any unit, where you build it yourself.

    `needs`, below, is what the policy reads: `policy.needs`.

    Args:
        stem: Cost of the stem.
        steps: Cost of each step, `(steps,)`.
        readouts: Cost of the readout at each step, `(steps,)`.
        heads: Cost of the head at each step, `(steps,)`.
        lambda_head: Cost of the Lambda head at one step; 0 where there is none.
        first_readout: Cost of the readout of h_0, where the Lambda head reads the steps before; else 0.
        hazard_reads_features: Whether the Lambda head reads the features, so that a hazard costs their readout; False
            where it has a readout of its own, which is counted in `lambda_head`.

    Example:
        >>> cost = Cost(stem=0, steps=(100, 100, 100), readouts=(0, 0, 0), heads=(10, 10, 10))
        >>> cost.plain
        310.0
        >>> cost.of({"output"}, torch.tensor([1, 3]))  # with a policy that looks at every answer
        tensor([110., 330.], dtype=torch.float64)
        >>> round(cost.break_even({"output"}), 2)
        2.82
    """

    stem: float
    steps: tuple[float, ...]
    readouts: tuple[float, ...]
    heads: tuple[float, ...]
    lambda_head: float = 0.0
    first_readout: float = 0.0
    hazard_reads_features: bool = True

    def __post_init__(self) -> None:
        if not self.steps or not len(self.steps) == len(self.readouts) == len(self.heads):
            raise ArgumentError(
                "steps, readouts, heads",
                expected="as many numbers each as there are steps",
                got=f"{len(self.steps)}, {len(self.readouts)} and {len(self.heads)}",
                remedy="Give one number for each step.",
            )
        numbers = [self.stem, *self.steps, *self.readouts, *self.heads, self.lambda_head, self.first_readout]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ArgumentError(
                "cost", expected="numbers from 0", got=numbers, remedy="Measure again what is none of these."
            )

    @property
    def num_steps(self) -> int:
        """N, the number of steps at full depth."""
        return len(self.steps)

    @property
    def readout(self) -> float:
        """The cost of one readout, averaged over the steps."""
        return statistics.fmean(self.readouts)

    @property
    def head(self) -> float:
        """The cost of one head, averaged over the steps."""
        return statistics.fmean(self.heads)

    @property
    def plain(self) -> float:
        """The cost of the unwrapped encoder: the stem, every step, the last readout and the last head."""
        return float(self.stem + sum(self.steps) + self.readouts[-1] + self.heads[-1])

    def of(self, needs: Iterable[str], exit_step: Tensor | int) -> Tensor:
        """The cost of examples that exit at `exit_step`.

        Args:
            needs: What the policy reads.
            exit_step: Steps, 1-based, of any shape.

        Returns:
            One number for each step, float64.
        """
        step = torch.as_tensor(exit_step).cpu()
        if step.is_floating_point() or step.dtype is torch.bool or bool(((step < 1) | (step > self.num_steps)).any()):
            raise ArgumentError(
                "exit_step",
                expected=f"whole numbers in 1..{self.num_steps}",
                got=step.tolist(),
                remedy="Steps are 1-based; pass out.exit_step.",
            )
        return self._exits(needs)[step.long() - 1]

    def cumulative(self, needs: Iterable[str]) -> Tensor:
        """The cost of exiting at each step, relative to the unwrapped encoder, `(steps,)` float64.

        Pass it to a sweep as its `costs`.
        """
        return self._exits(needs) / checked_plain(self)

    def overhead(self, needs: Iterable[str]) -> float:
        """What wrapping adds to a row that reaches the last step, relative to the unwrapped encoder: 0.05 is 5%."""
        return float(self.cumulative(needs)[-1]) - 1.0

    def break_even(self, needs: Iterable[str]) -> float:
        """The mean exit step below which the wrapped model costs less than the plain one; see `break_even`."""
        return break_even(self._exits(needs), checked_plain(self))

    def _exits(self, needs: Iterable[str]) -> Tensor:
        """The cost of exiting at each step, `(steps,)` float64."""
        needs = _check_needs(needs) - {"context"}  # nothing is computed for it
        steps, readouts, heads = (
            torch.tensor(each, dtype=torch.float64) for each in (self.steps, self.readouts, self.heads)
        )
        zeros = torch.zeros_like(steps)
        read = needs if self.hazard_reads_features else needs - {"hazard"}
        asked = (
            (readouts if read else zeros)
            + (heads if "output" in needs else zeros)
            + (self.lambda_head if "hazard" in needs else 0.0)
        )
        answer = (zeros if read else readouts) + (zeros if "output" in needs else heads)
        asked[-1], answer[-1] = 0.0, readouts[-1] + heads[-1]
        once = self.stem + (self.first_readout if "hazard" in needs else 0.0)
        return once + (steps + asked).cumsum(0) + answer


def checked_plain(cost: Cost) -> float:
    """The cost of the unwrapped encoder, which other costs are relative to.

    Raises:
        PonderError: It is 0.
    """
    if cost.plain <= 0:
        raise PonderError(
            "No part of this model costs anything that is counted (matrix products, convolutions, attention), "
            "so nothing is relative to it. Count steps, or measure seconds."
        )
    return cost.plain


def break_even(costs: Sequence[float] | Tensor, plain: float) -> float:
    """The mean exit step below which exiting costs less than the plain model, in FLOPs, seconds, or any unit.

    It is the step at which `costs`, interpolated linearly, reaches `plain`. For steps that cost the same it holds
    for every mix of exits with that mean; else for mixes of the two steps around it.

    Args:
        costs: Mean cost per example of exiting at each step, `(steps,)`, reading included; they must not fall.
        plain: Mean cost per example of the plain model.

    Returns:
        A step from 1, where no exit is cheaper, to N, where none is dearer.

    Example:
        >>> break_even([12.0, 22.0, 32.0, 42.0], plain=37.0)
        3.5
    """
    if isinstance(costs, Cost) or not isinstance(costs, Iterable):
        raise ArgumentTypeError(
            "costs",
            expected="one number for each step",
            got=type(costs).__name__,
            remedy="Of a Cost, call cost.break_even(policy.needs).",
        )
    exits = [float(cost) for cost in costs]
    finite = all(map(math.isfinite, exits))
    if not exits or not finite or any(later < earlier for earlier, later in itertools.pairwise(exits)):
        raise ArgumentError(
            "costs",
            expected="one number for each step, that do not fall",
            got=exits,
            remedy="Measure again, with more repeats, where they are times.",
        )
    check_real("plain", float(plain), low=-math.inf, remedy="Pass the mean cost of the plain model.")
    dearer = next((place for place, cost in enumerate(exits) if cost > plain), len(exits))
    if dearer in (0, len(exits)):
        return float(max(dearer, 1))
    before, after = exits[dearer - 1], exits[dearer]
    return dearer + (plain - before) / (after - before)


def _check_needs(needs: Iterable[str]) -> frozenset[str]:
    asked = frozenset([needs] if isinstance(needs, str) else needs)
    if not asked <= READINGS or isinstance(needs, str):
        raise ArgumentError(
            "needs",
            expected=f"a set of {', '.join(sorted(READINGS))}",
            got=needs if isinstance(needs, str) else sorted(asked),
            remedy="Pass policy.needs.",
        )
    return asked
