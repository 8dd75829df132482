"""Optimal stopping by tables that were counted: each row is where its step and the bin of its confidence say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ponder._utils.stopping import stopping_table
from ponder._utils.validation import check_real
from ponder.errors import ArgumentError
from ponder.export.policies.base import Array, ModelSpec, NumpyPolicy, StepView, check_classes, registry
from ponder.export.policies.signals import confidence

__all__ = ["Expected"]


@registry.register("expected")
@dataclass(frozen=True, repr=False)
class Expected(NumpyPolicy):
    """Twin of `ponder.policies.Expected`."""

    price: float
    edges: tuple[tuple[float, ...], ...]
    rewards: tuple[tuple[float, ...], ...]
    transitions: tuple[tuple[tuple[float, ...], ...], ...]
    needs = frozenset({"output"})

    def __post_init__(self) -> None:
        check_real("price", self.price)
        steps, bins = np.shape(self.rewards)
        later = (steps - 1, bins, bins) if steps > 1 else (0,)
        if np.shape(self.edges) != (steps, bins - 1) or np.shape(self.transitions) != later:
            raise ArgumentError(
                "rewards, edges, transitions",
                expected="tables (steps, bins), (steps, bins − 1) and (steps − 1, bins, bins)",
                got=f"{np.shape(self.rewards)}, {np.shape(self.edges)} and {np.shape(self.transitions)}",
                remedy="Make them with policies.Expected.fit(trajectory, price=0.01).",
            )
        table = stopping_table(self.rewards, self.transitions, self.price)
        object.__setattr__(self, "_stops", [np.array(of_step) for of_step in table])

    def __repr__(self) -> str:
        return f"Expected(price={self.price:g}, over {len(self.rewards)} steps and {len(self.rewards[0])} bins)"

    def check(self, model: ModelSpec) -> None:
        super().check(model)
        check_classes(model, self)
        if len(self.rewards) != model.num_steps or model.task.per_token:
            raise ArgumentError(
                "policy",
                expected=f"a policy fitted to one class a row over {model.num_steps} steps",
                got=f"Expected over {len(self.rewards)} steps, task {model.task.name!r}",
                remedy="Fit it on a trajectory of this model.",
            )

    def decide(self, step: StepView, state: Any) -> tuple[Array, Any]:
        assert step.output is not None
        surest = confidence(step.output).astype(np.float64)
        bins = (surest[:, None] > np.array(self.edges[step.index - 1])).sum(1)
        stops: list[Array] = self.__dict__["_stops"]
        return stops[step.index - 1][bins] & ~np.isnan(surest), state
