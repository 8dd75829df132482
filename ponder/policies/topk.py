r"""`TopK`: the rows of a group are decided together, and those that can no longer be among its best k exit.

In a reranker the rows are the candidates of a query. The score of one that has lost is not needed,
nor are those of the winners once only they remain, unless their order is asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ponder._utils.arrays import at_least_float32, namespace
from ponder._utils.checks import check_int, check_real
from ponder.policies.base import Array, ExitPolicy, PolicyBatch, StepView, Threshold, registry

__all__ = ["TopK"]


@registry.register("top-k")
@dataclass(frozen=True)
class TopK(ExitPolicy):
    r"""Let go of rows whose score is more than a margin below the k-th of their group.

    A row of group g exits at step n where z < z₍ₖ₎ − margin · σ_n, z₍ₖ₎ being the k-th highest score of the rows of g
    that remain; and all of g exit once at most k remain. Rows that tie with the k-th stay. NaN is the lowest score.

    The groups are integers in the `policy_context` of a call: ``policy_context={"group": …}``, `(batch,)`.

    Args:
        k: How many of each group are wanted.
        margin: The margin, in units of `spread`, ≥ 0.
        spread: σ_n, how far the scores of each step are from those of the last, `(steps − 1,)` or more; 1 where empty.
        ordered: Whether the order of the k is wanted too, so that they run to the last step.

    Example:
        >>> scores = torch.tensor([[4.0, 4.0], [3.0, 5.0], [1.0, 0.0], [7.0, 7.0]]).unsqueeze(-1)
        >>> groups = {"group": torch.tensor([0, 0, 0, 1])}
        >>> record = Trajectory(scores, None, torch.arange(4), task="regression", policy_context=groups)
        >>> record.replay(policies.TopK(1, margin=2.0)).exit_step
        tensor([2, 2, 1, 1])
    """

    k: int
    margin: float
    spread: tuple[float, ...] = ()
    ordered: bool = False
    needs = frozenset({"output", "group"})
    tunable = Threshold("margin", "above", high=10.0)

    def __post_init__(self) -> None:
        check_int("k", self.k)
        check_real("margin", self.margin, 0.0, math.inf)

    def init(self, batch: PolicyBatch) -> Array:
        return (
            batch.row_ids == batch.row_ids
        )  # the rows that remain, where a record shows those that exited too

    def decide(self, step: StepView, state: Any) -> tuple[Array, Array]:
        scores, xp = at_least_float32(step.output[:, 0]), namespace(step.output)
        spread = xp.ones_like(scores)
        for number, own in enumerate(self.spread, 1):
            spread = xp.where(step.index == number, own, spread)
        scores = xp.where(state & ~xp.isnan(scores), scores, -math.inf)
        order, first, last = _by_group(step.group, scores)
        ranked, kth = scores[order], xp.where(first + self.k - 1 < last, first + self.k - 1, last)
        stays = (ranked >= ranked[kth] - self.margin * spread[order]) & state[order]
        if not self.ordered:
            many = xp.cumsum(stays, 0)
            stays = stays & (many[last] - many[first] + xp.where(stays[first], 1, 0) > self.k)
        stays = stays[xp.argsort(order)]
        return ~stays, stays


def _by_group(groups: Array, scores: Array) -> tuple[Array, Array, Array]:
    """The order of rows by group, and by falling score within; and where the group of each begins and ends in it."""
    xp, size = namespace(groups), groups.shape[0]  # `len` would be a constant of a graph
    order = xp.argsort(groups)
    found = groups[order]
    changes = xp.concatenate([found[:1] == found[:1], found[1:] != found[:-1]])
    number = xp.cumsum(changes, 0) - 1
    starts = xp.where(changes)[0]
    ends = xp.concatenate([starts[1:], starts[:1] + size]) - 1
    place = xp.argsort(
        xp.argsort(-scores)
    )  # no two are equal, so that the sort below need not be stable
    return xp.argsort(number[xp.argsort(order)] * size + place), starts[number], ends[number]
