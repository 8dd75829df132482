"""`carry`: problems take turns in a few slots; a halted problem makes place for the next at once.

    while problems are left or running: fill the free slots, run one step, hand out what has halted

So rows at different depths share a batch, as HRM and TRM carry their states in training. The steps
of a problem do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter

import torch
from torch import Tensor

from ponder._utils.trees import Tree, first_tensor, map_tensors
from ponder.loops.deciding import Decider
from ponder.loops.positions import Parts, as_bool
from ponder.loops.slots import Slots
from ponder.model.padding import join_rows
from ponder.model.steps import Context

__all__ = ["Carried", "Problem", "carry"]


@dataclass(frozen=True, eq=False)
class Problem:
    """One problem for `Loop.carry`; tensors have no batch dimension.

    Args:
        hidden: The state before the first step, `(length, …)`, or a tree of such tensors.
        context: Further arguments of the step, by name, `(…)` each.
        attention_mask: Which positions are not padding, `(length,)`; None if all are. All problems
            have one, or none.
        row_id: Identity of the row, for seeded sampling; the number of the problem if None.

    Example:
        >>> ponder.loops.Problem(torch.zeros(5, 8), {"problem": torch.ones(5, 8)}).hidden.shape
        torch.Size([5, 8])
    """

    hidden: Tree
    context: Context = field(default_factory=dict)
    attention_mask: Tensor | None = None
    row_id: int | None = None


@dataclass(frozen=True, eq=False)
class Carried:
    """The answer to one problem, without a batch dimension.

    Args:
        number: The number of the problem, from 0 in the order in which they came.
        outputs: The head's outputs at the exits, `(length, …)`.
        exit_step: The exit steps, `(length,)` long; one number, `()`, of a row without positions.
        hidden: The state at the exits.
    """

    number: int
    outputs: Tensor
    exit_step: Tensor
    hidden: Tree


@torch.no_grad()
def carry(
    parts: Parts, decider: Decider, problems: Iterable[Problem], slots: int
) -> Iterator[Carried]:
    """Yield the answers as they come; at most `slots` problems run at a time."""
    waiting = enumerate(problems)
    running = Slots(parts, decider)
    while True:
        admitted = list(islice(waiting, slots - len(running)))
        if admitted:
            _admit(running, admitted)
        if not running:
            return
        answers = running.advance()
        if answers is None:
            continue
        for place, number in enumerate(answers.number.tolist()):
            hidden = map_tensors(itemgetter(place), answers.hidden)
            yield Carried(number, answers.outputs[place], answers.exit_step[place], hidden)


def _admit(running: Slots, admitted: list[tuple[int, Problem]]) -> None:
    numbers = [number for number, _ in admitted]
    ids = list(numbers)
    for place, (_, problem) in enumerate(admitted):
        if problem.row_id is not None:
            ids[place] = problem.row_id
    trees = [(each.hidden, dict(each.context), each.attention_mask) for _, each in admitted]
    rows = [map_tensors(lambda tensor: tensor[None], tree) for tree in trees]
    hidden, context, mask = join_rows(rows, path="problems")
    device = first_tensor(hidden).device
    running.admit(
        hidden,
        context,
        mask=as_bool(mask),
        number=torch.tensor(numbers, device=device),
        row_ids=torch.tensor(ids, device=device),
    )
