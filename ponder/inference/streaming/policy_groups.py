"""The rows of a cohort by their policies: rows of different policies share steps, and each is asked its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ponder._utils.trees import take_rows
from ponder.engine.loop import Running
from ponder.engine.sources import ModelSource
from ponder.inference.streaming.requests import Request
from ponder.parts.joining import begun, join_rows
from ponder.parts.tasks import Task
from ponder.policies import ExitPolicy, PolicyBatch

__all__ = ["GroupView", "PolicyGroup", "join_groups", "same_policy", "start_groups", "take_groups"]


@dataclass(frozen=True, eq=False)
class PolicyGroup:
    """The rows of a cohort that one policy decides on.

    Args:
        policy: Who decides.
        rows: Where they stand in the cohort, ascending.
        running: The policy's state and the survival, in the order of `rows`.
        policy_context: What the policy may read of them, likewise.
    """

    policy: ExitPolicy
    rows: tuple[int, ...]
    running: Running
    policy_context: Mapping[str, Tensor]

    def take(self, places: Sequence[int], rows: Sequence[int]) -> PolicyGroup:
        """The group of some of its rows.

        Args:
            places: Which, by their place in the group.
            rows: Where they stand in the new cohort.
        """
        if list(places) == list(range(len(self.rows))):
            return PolicyGroup(self.policy, tuple(rows), self.running, self.policy_context)
        index = torch.tensor(places, device=self.running.index.device)
        context = take_rows(self.policy_context, index) if self.policy_context else self.policy_context
        return PolicyGroup(self.policy, tuple(rows), self.running.take(index), context)

    def without(self, leaving: Collection[int]) -> PolicyGroup:
        """The group without some rows of the cohort; the others keep their places there."""
        places = [place for place, row in enumerate(self.rows) if row not in leaving]
        return self.take(places, [self.rows[place] for place in places])


class GroupView:
    """The rows of a group among those of a source, as their policy is to see them (`ponder.engine.loop.Readings`).

    Args:
        source: The rows of the batch.
        group: Which of them, and what the policy may read of these.
    """

    def __init__(self, source: ModelSource, group: PolicyGroup) -> None:
        self._source, self.policy_context = source, group.policy_context
        self._rows = torch.tensor(group.rows, device=group.running.index.device)
        self.mask = None if source.mask is None else source.mask[self._rows]

    def features(self) -> Tensor:
        """See `Readings.features`."""
        return self._source.features()[self._rows]

    def output(self) -> Tensor:
        """See `Readings.output`."""
        return self._source.output()[self._rows]

    def hazard_logit(self) -> Tensor:
        """See `Readings.hazard_logit`."""
        return self._source.hazard_logit()[self._rows]


def start_groups(
    requests: Sequence[Request], num_steps: int, task: Task, device: torch.device
) -> tuple[PolicyGroup, ...]:
    """The groups of rows before their first step."""
    found: list[tuple[Request, list[int]]] = []
    for row, request in enumerate(requests):
        for first, rows in found:
            if _alike(first, request):
                rows.append(row)
                break
        else:
            found.append((request, [row]))
    groups: list[PolicyGroup] = []
    for first, rows in found:
        row_ids = torch.tensor([requests[row].row_id for row in rows], device=device)
        running = Running.start(first.policy, PolicyBatch(row_ids, num_steps, task))
        context = {
            name: torch.cat([requests[row].policy_context[name] for row in rows]).to(device)
            for name in first.policy_context
        }
        groups.append(PolicyGroup(first.policy, tuple(rows), running, context))
    return tuple(groups)


def take_groups(groups: Sequence[PolicyGroup], positions: Sequence[int]) -> tuple[PolicyGroup, ...]:
    """The groups of the rows at `positions` of a cohort, which ascend."""
    new = {position: row for row, position in enumerate(positions)}
    taken: list[PolicyGroup] = []
    for group in groups:
        places = [place for place, row in enumerate(group.rows) if row in new]
        if places:
            taken.append(group.take(places, [new[group.rows[place]] for place in places]))
    return tuple(taken)


def join_groups(of_cohorts: Sequence[Sequence[PolicyGroup]], sizes: Sequence[int]) -> tuple[PolicyGroup, ...]:
    """The groups of cohorts that become one, in their order.

    Args:
        of_cohorts: The groups of each.
        sizes: How many rows each has.
    """
    found: list[tuple[PolicyGroup, list[PolicyGroup], list[int]]] = []
    offset = 0
    for groups, size in zip(of_cohorts, sizes, strict=True):
        for group in groups:
            rows = [row + offset for row in group.rows] if offset else list(group.rows)
            for first, members, all_rows in found:
                if _alike(first, group) and begun(first.running.state) == begun(group.running.state):
                    members.append(group)
                    all_rows += rows
                    break
            else:
                found.append((group, [group], rows))
        offset += size
    return tuple(_joined(members, rows) for _, members, rows in found)


def _joined(members: Sequence[PolicyGroup], rows: Sequence[int]) -> PolicyGroup:
    first = members[0]
    if len(members) == 1:
        return replace(first, rows=tuple(rows))
    sizes = [len(member.rows) for member in members]
    index, state, log_survival = join_rows(
        [(m.running.index, m.running.state, m.running.log_survival) for m in members],
        sizes,
        absent="zeros",
        path="policy state",
    )
    context = {name: torch.cat([m.policy_context[name] for m in members]) for name in first.policy_context}
    joined = PolicyGroup(first.policy, tuple(rows), Running(index, state, log_survival), context)
    if list(rows) == sorted(rows):
        return joined
    order = sorted(range(len(rows)), key=rows.__getitem__)
    return joined.take(order, [rows[place] for place in order])


def _alike(one: Request | PolicyGroup, other: Request | PolicyGroup) -> bool:
    """Whether rows can be of one group: their policies are equal, and so is the kind of what these may read."""
    if not same_policy(one.policy, other.policy):
        return False
    if not one.policy_context and not other.policy_context:
        return True
    return _kind(one.policy_context) == _kind(other.policy_context)


def _kind(context: Mapping[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {name: (value.dtype, value.shape[1:]) for name, value in context.items()}


def same_policy(one: ExitPolicy | None, other: ExitPolicy | None) -> bool:
    """Whether policies are the same by their hyper-parameters; where that cannot be told (tensors), they are not."""
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # whatever a user's own __eq__, or a tensor in a field, makes of it
        return False
