r"""`TopK`: rows of a group are decided together, and those that cannot be among its best k exit.

In a reranker the rows are the candidates of a query. A candidate that has lost needs no score. Nor
do the winners once only they remain, unless their order is wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ponder._utils.arrays import at_least_float32, namespace
from ponder._utils.checks import check_int, check_real
from ponder._utils.rounding import rounded_up
from ponder.policies.base import Array, ExitPolicy, StepView, Threshold

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK(ExitPolicy):
    r"""Exit rows whose score is more than a margin below the k-th of their group.

    A row of group g exits at step n where z < z₍ₖ₎ − margin · σ_n, z₍ₖ₎ being the k-th highest
    score of the rows of g that remain; and all of g exit once at most k remain. Rows that tie with
    the k-th stay. NaN is the lowest score.

    The groups are integers in the `policy_context` of a call: ``policy_context={"group": …}``,
    `(batch,)`.

    Args:
        k: The number of rows of each group that are wanted.
        margin: The margin, in units of `spread`, ≥ 0.
        spread: σ_n, the typical distance of the scores of each step from those of the last,
            `(steps − 1,)` or more; empty for 1.
        ordered: Whether the order of the k is wanted too, so that they run to the last step.

    Example:
        >>> scores = torch.tensor([[4.0, 4.0], [3.0, 5.0], [1.0, 0.0], [7.0, 7.0]]).unsqueeze(-1)
        >>> groups = {"group": torch.tensor([0, 0, 0, 1])}
        >>> record = Trajectory(
        ...     scores, None, torch.arange(4), task="regression", policy_context=groups
        ... )
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
        for value in self.spread:
            check_real("spread", value, 0.0, math.inf)

    def init(self, first: StepView) -> Array:
        # The state is which rows remain. On a record it is needed: there the rows that exited are
        # shown too.
        return first.index == first.index

    def decide(self, step: StepView, state: Array) -> tuple[Array, Array]:
        """Exit the rows that have lost.

        Scores of rows that exited before are masked, rows are ranked within their groups, and each
        score is compared with the k-th of its group.
        """
        remain = state
        scores = at_least_float32(step.output[:, 0])
        xp = namespace(scores)
        spread = self._spread_of(step.index, scores)
        scores = xp.where(remain & ~xp.isnan(scores), scores, -math.inf)
        ranking = _rank_within_groups(step.group, scores)
        order = ranking.order
        ranked = scores[order]
        kth = xp.minimum(ranking.first + self.k - 1, ranking.last)
        stays = (ranked >= ranked[kth] - self.margin * spread[order]) & remain[order]
        if not self.ordered:
            # Once at most k of a group stay, the set of the best is known, and all of them exit.
            before = xp.cumsum(stays, 0)
            staying = before[ranking.last] - before[ranking.first] + stays[ranking.first] * 1
            stays = stays & (staying > self.k)
        stays = stays[xp.argsort(order)]
        return ~stays, stays

    def words(self) -> str:
        margin = rounded_up(self.margin)
        return f"candidates more than {margin} deviations below the best {self.k} leave"

    def rule(self, unit: str = "text") -> str:
        return (
            f"Drop candidates that lie more than {rounded_up(self.margin)} deviations below "
            f"the best {self.k}, and score the others to the last step"
        )

    def _spread_of(self, index: Array, scores: Array) -> Array:
        """Return σ_n of the step of each row, `(batch,)`."""
        xp = namespace(scores)
        spread = xp.ones_like(scores)
        for number, of_step in enumerate(self.spread, start=1):
            spread = xp.where(index == number, of_step, spread)
        return spread


class _Ranking(NamedTuple):
    """An order of rows by group and falling score, and where the group of each row starts and ends.

    `first` and `last` are places in that order.
    """

    order: Array
    first: Array
    last: Array


def _rank_within_groups(groups: Array, scores: Array) -> _Ranking:
    """Order rows by group and, within each, by falling score; `(rows,)` integers each.

    1. Sort by group, and number the groups in that order.
    2. Find where each group begins and ends.
    3. Take the place of each row among all scores, so that no two rows are equal.
    4. Sort by group number × rows + place. No ties are left, so that the sort need not be stable:
      ONNX has none.
    """
    xp = namespace(groups)
    size = groups.shape[0]  # `len` would be a constant of an exported graph
    by_group = xp.argsort(groups)
    sorted_groups = groups[by_group]
    is_first = xp.concatenate(
        [sorted_groups[:1] == sorted_groups[:1], sorted_groups[1:] != sorted_groups[:-1]]
    )
    number = xp.cumsum(is_first, 0) - 1
    starts = xp.where(is_first)[0]
    ends = xp.concatenate([starts[1:], starts[:1] + size]) - 1
    place = xp.argsort(xp.argsort(-scores))
    number_of_row = number[xp.argsort(by_group)]
    order = xp.argsort(number_of_row * size + place)
    return _Ranking(order, starts[number], ends[number])
