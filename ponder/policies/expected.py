"""Optimal stopping: leave when what the remaining steps are expected to gain is not worth their price."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.stopping import stopping_table
from ponder._utils.trees import Tree
from ponder._utils.validation import check_int, check_real
from ponder.errors import ArgumentError
from ponder.parts.recording import Recording, check_evaluated
from ponder.parts.signals import confidence as confidence_of
from ponder.policies.base import ExitPolicy, ModelSpec, StepView, has_classes, registry
from ponder.policies.fitted import some_rows
from ponder.policies.threshold import Threshold

__all__ = ["Expected"]


@registry.register("expected")
@dataclass(frozen=True, repr=False)
class Expected(ExitPolicy):
    r"""Stop where the value of the answer is at least the expected value of going on, less the price of a step.

    A row's state is its step and the bin of its confidence (the probability of the most probable class). Let r_n(b) be
    the chance that an answer of this state is right and T_n(b, b') the chance to be in bin b' one step later, both
    counted on calibration data. Backward induction gives the value of each state,

        V_N(b) = r_N(b),    V_n(b) = max(r_n(b), Σ_b' T_n(b, b') V_{n+1}(b') − price),

    and the row leaves where the first term is at least the second: no rule on these states earns more (Chow, Robbins &
    Siegmund 1971). Make one with `fit`; the price is its threshold. A row whose outputs are not finite stays.

    Args:
        price: What one more step costs, in the unit of the reward: 0.01 is a percent of accuracy.
        edges: Bounds between the bins, rising, `(steps, bins − 1)`.
        rewards: r, `(steps, bins)`.
        transitions: T, `(steps − 1, bins, bins)`.
        fitted_on: Some of the rows on which the tables were counted, as `Gate` has them.

    Example:
        >>> policy = policies.Expected.fit(trajectory, price=0.01)
        >>> policy
        Expected(price=0.01, over 4 steps and 10 bins)
        >>> trajectory.replay(policy).exit_step[:3]
        tensor([1, 2, 3])
    """

    price: float
    edges: tuple[tuple[float, ...], ...]
    rewards: tuple[tuple[float, ...], ...]
    transitions: tuple[tuple[tuple[float, ...], ...], ...]
    fitted_on: tuple[tuple[float, ...], ...] = field(default=(), compare=False)
    needs = frozenset({"output"})
    tunable = Threshold("price", "at_most")

    def __post_init__(self) -> None:
        check_real("price", self.price)
        bins = {len(row) for row in self.rewards}
        steps = len(self.rewards)
        fits = (
            len(bins) == 1
            and [len(row) for row in self.edges] == [max(bins) - 1] * steps
            and len(self.transitions) == steps - 1
            and all(len(table) == max(bins) and {len(row) for row in table} == bins for table in self.transitions)
        )
        if not fits:
            raise ArgumentError(
                "rewards, edges, transitions",
                expected="tables (steps, bins), (steps, bins − 1) and (steps − 1, bins, bins)",
                got=f"{steps} steps with {sorted(bins)} bins, {len(self.edges)} and {len(self.transitions)} tables",
                remedy="Make them with policies.Expected.fit(trajectory, price=0.01).",
            )
        object.__setattr__(self, "_stops", stopping_table(self.rewards, self.transitions, self.price))

    def __repr__(self) -> str:
        return f"Expected(price={self.price:g}, over {len(self.rewards)} steps and {len(self.rewards[0])} bins)"

    @classmethod
    def fit(cls, trajectory: Recording, price: float = 0.0, bins: int = 10) -> Self:
        """Count the tables on a trajectory; its threshold is chosen, and judged, on other rows.

        Args:
            trajectory: A full-depth run of a classifier. With labels the reward is a right answer; without, the
                answer of full depth.
            price: What one more step costs, in the unit of the reward: 0.01 is a percent of accuracy.
            bins: Bins of the confidence at each step, with about as many rows in each; sparse ones lean on all rows.
        """
        outputs = trajectory.outputs
        task = trajectory.meaning
        if not len(trajectory) or outputs.dim() != 3 or not task.one_class:
            raise ArgumentError(
                "trajectory",
                expected="classes (batch, steps, classes) of at least one row",
                got=f"outputs of shape {tuple(outputs.shape)}, task {trajectory.task!r}",
                remedy="Unroll a classifier on calibration data.",
            )
        check_evaluated(trajectory)
        check_int("bins", bins, remedy="Pass bins=10, say.")
        right = trajectory.agreement() if trajectory.labels is None else trajectory.correct()
        confidence = confidence_of(outputs).double().nan_to_num(nan=0.0)
        shares = torch.arange(1, bins, dtype=torch.float64, device=outputs.device) / bins
        bounds = torch.quantile(confidence, shares, dim=0).T.contiguous()
        places = F.one_hot((confidence.unsqueeze(2) > bounds).sum(2), bins).double()
        means = _mean_by_bin(places, right.double().unsqueeze(2)).squeeze(2)
        moves = _mean_by_bin(places[:, :-1], places[:, 1:])
        edges, rewards, transitions = (_tuples(table.tolist()) for table in (bounds, means, moves))
        return cls(price, edges, rewards, transitions, some_rows(trajectory))

    @property
    def stops(self) -> tuple[tuple[bool, ...], ...]:
        """Whether a row that stands in a bin at a step leaves, `(steps − 1, bins)` bool."""
        table: tuple[tuple[bool, ...], ...] = self.__dict__["_stops"]
        return table

    def check(self, spec: ModelSpec) -> None:
        super().check(spec)
        if len(self.rewards) != spec.num_steps or spec.task.per_token or not has_classes(spec, self):
            raise ArgumentError(
                "policy",
                expected=f"a policy fitted to one class a row over {spec.num_steps} steps, and such a task",
                got=f"Expected over {len(self.rewards)} steps, task {spec.task.name!r}",
                remedy="Fit it on a trajectory of this model.",
            )

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        place, device = step.index - 1, step.output.device
        confidence = confidence_of(step.output).double()
        edges = torch.tensor(self.edges, dtype=torch.float64, device=device)[place]
        stops = torch.tensor(self.stops, device=device)[place]
        stop = stops.gather(1, (confidence.unsqueeze(1) > edges).sum(1, keepdim=True)).squeeze(1)
        return stop & ~confidence.isnan(), state


def _mean_by_bin(places: Tensor, values: Tensor) -> Tensor:
    """Means of `values` `(batch, steps, k)` in each bin, `(steps, bins, k)`, with the mean of all as one row more."""
    totals = torch.einsum("bns,bnk->nsk", places, values)
    return (totals + values.mean(0).unsqueeze(1)) / (places.sum(0).unsqueeze(2) + 1.0)


def _tuples(nested: list[Any]) -> tuple[Any, ...]:
    return tuple(_tuples(item) if isinstance(item, list) else item for item in nested)
