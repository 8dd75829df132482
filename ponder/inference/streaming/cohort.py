"""Rows that go through steps together, whatever depth each has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, take_rows
from ponder.engine.loop import Running
from ponder.inference.collating import join_context
from ponder.inference.streaming.ticket import Ticket
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Padding

__all__ = ["Cohort", "join"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Some rows and all that is known of them. Taking rows copies small tensors only; `join` copies the states.

    Args:
        tickets: Whose rows these are.
        steps: The step that each has finished, on the host.
        running: The policy's state and the survival, in the order of the tickets.
        past: Features that the Lambda head will read, in the order of the tickets.
        hidden: Hidden states, of these rows and perhaps of others.
        context: The steps' context, likewise.
        keep: Where the rows lie in `hidden` and `context`, on the host; None: all of them, in order.
    """

    tickets: tuple[Ticket, ...]
    steps: tuple[int, ...]
    running: Running
    past: list[Tensor]
    hidden: Tree
    context: Mapping[str, Any]
    keep: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tickets)

    @property
    def device(self) -> torch.device:
        """Where the rows are computed."""
        return self.running.index.device

    def take(self, positions: Sequence[int]) -> Cohort:
        """The rows at `positions`."""
        if len(positions) == len(self):
            return self
        index = torch.tensor(positions, dtype=torch.long)
        rows = index.to(self.device)
        return replace(
            self,
            tickets=tuple(self.tickets[position] for position in positions),
            steps=tuple(self.steps[position] for position in positions),
            running=self.running.take(rows),
            past=take_rows(self.past, rows),
            keep=index if self.keep is None else self.keep[index],
        )


def join(cohorts: Sequence[Cohort], padding: Padding | None) -> Cohort:
    """One cohort whose states hold its rows and no others, padded to the longest of them.

    Nothing is copied where a single cohort has lost no row and not its longest.
    """
    sizes = [len(cohort) for cohort in cohorts]
    keep = [None if c.keep is None else c.keep.to(c.device) for c in cohorts]
    length = max(ticket.length for cohort in cohorts for ticket in cohort.tickets)
    index, state, log_survival, past = join_rows(
        [(c.running.index, c.running.state, c.running.log_survival, c.past) for c in cohorts],
        sizes,
        path="policy state",
    )
    hidden = join_rows(
        [cohort.hidden for cohort in cohorts],
        sizes,
        keep,
        lengths=with_lengths(None) if padding is None else padding.of_hidden,
        length=length,
        path="hidden state",
    )
    return Cohort(
        tickets=tuple(ticket for cohort in cohorts for ticket in cohort.tickets),
        steps=tuple(step for cohort in cohorts for step in cohort.steps),
        running=Running(index, state, log_survival),
        past=past,
        hidden=hidden,
        context=join_context([cohort.context for cohort in cohorts], sizes, keep, padding, length),
    )
