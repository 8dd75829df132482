"""Rows that go through steps together, whatever depth each has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, take_rows
from ponder.errors import ArgumentError
from ponder.inference.examples import join_context
from ponder.inference.streaming.policy_groups import PolicyGroup, join_groups, take_groups
from ponder.inference.streaming.requests import Request
from ponder.parts.joining import join_rows, with_lengths
from ponder.parts.padding import Along, Padding

__all__ = ["Cohort", "join"]


@dataclass(frozen=True, eq=False)
class Cohort:
    """Some rows that go through steps together, and all that is known of them.

    Taking rows copies small tensors only; `join` copies the states.

    Args:
        requests: Whose rows these are.
        steps: The step that each has finished, on the host.
        lengths: How long the sequence of each is behind the stem.
        groups: The rows by their policies.
        past: Features that the Lambda head will read, in the order of the requests; empty where no policy reads it.
        hidden: Hidden states, of these rows and perhaps of others.
        context: The steps' context, likewise.
        mask: Which positions are no padding, likewise, where outputs or features have positions; None elsewhere.
        keep: Where the rows lie in `hidden`, `context` and `mask`, on the host; None: all of them, in order.
    """

    requests: tuple[Request, ...]
    steps: tuple[int, ...]
    lengths: tuple[int, ...]
    groups: tuple[PolicyGroup, ...]
    past: list[Tensor]
    hidden: Tree
    context: Mapping[str, Any]
    mask: Tensor | None = None
    keep: Tensor | None = None

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def device(self) -> torch.device:
        """The device on which the rows are computed."""
        return self.groups[0].running.index.device

    def take(self, positions: Sequence[int]) -> Cohort:
        """The cohort of the rows at `positions`, which ascend."""
        if len(positions) == len(self.requests):
            return self
        index = torch.tensor(positions, dtype=torch.long)
        return Cohort(
            requests=tuple([self.requests[position] for position in positions]),
            steps=tuple([self.steps[position] for position in positions]),
            lengths=tuple([self.lengths[position] for position in positions]),
            groups=take_groups(self.groups, positions),
            past=take_rows(self.past, index.to(self.device)) if self.past else [],
            hidden=self.hidden,
            context=self.context,
            mask=self.mask,
            keep=index if self.keep is None else self.keep[index],
        )


def join(cohorts: Sequence[Cohort], padding: Padding | None) -> Cohort:
    """One cohort whose states hold its rows and no others, padded to the longest of them.

    Nothing is copied where a single cohort has lost no row.
    """
    if len(cohorts) == 1:
        return cohorts[0] if cohorts[0].keep is None else _without_the_lost(cohorts[0], padding)
    sizes = [len(cohort.requests) for cohort in cohorts]
    keep = [None if cohort.keep is None else cohort.keep.to(cohort.device) for cohort in cohorts]
    requests = tuple([request for cohort in cohorts for request in cohort.requests])
    row_lengths = tuple([length for cohort in cohorts for length in cohort.lengths])
    length = 0 if padding is None else max(row_lengths)
    masks = [cohort.mask for cohort in cohorts]
    if padding is None:
        lengths = with_lengths(None)
    else:  # one function for all tensors, nearly always
        for cohort in cohorts:
            _check_nothing_hidden(cohort, padding, length)
        lengths = padding.of_hidden if isinstance(padding.hidden, Along) else padding.lengths_of_hidden
    return Cohort(
        requests=requests,
        steps=tuple([step for cohort in cohorts for step in cohort.steps]),
        lengths=row_lengths,
        groups=join_groups([cohort.groups for cohort in cohorts], sizes),
        past=_past(cohorts, sizes),
        hidden=join_rows([c.hidden for c in cohorts], sizes, keep, lengths=lengths, length=length, path="hidden state"),
        context=join_context([cohort.context for cohort in cohorts], sizes, keep, padding, length),
        mask=join_rows(masks, sizes, keep, path="mask"),  # of one length, where outputs or features have positions
    )


def _without_the_lost(cohort: Cohort, padding: Padding | None) -> Cohort:
    """A cohort whose states hold its own rows only, and are as long as the longest of them."""
    assert cohort.keep is not None
    hidden, context, keep = cohort.hidden, cohort.context, cohort.keep.to(cohort.device)
    if padding is not None:
        hidden, context = padding.trim(hidden, context, max(cohort.lengths))
    hidden, context, mask = take_rows(hidden, keep), take_rows(context, keep), take_rows(cohort.mask, keep)
    return replace(cohort, hidden=hidden, context=context, mask=mask, keep=None)


def _past(cohorts: Sequence[Cohort], sizes: Sequence[int]) -> list[Tensor]:
    """The past of several cohorts: zeros for rows whose policies do not read it, beside rows whose policies do."""
    steps = max([len(cohort.past) for cohort in cohorts])
    if not steps:
        return []
    of_all: list[Any] = [cohort.past or [None] * steps for cohort in cohorts]
    past: list[Tensor] = join_rows(of_all, sizes, absent="zeros", path="past features")
    return past


def _check_nothing_hidden(cohort: Cohort, padding: Padding, length: int) -> None:
    """Refuse rows that would be padded, and whose stem gave None for what has a length: nothing would hide padding."""
    if max(cohort.lengths) == length:
        return
    for name, value in cohort.context.items():
        if value is None and padding.of_context(name) is not None:
            raise ArgumentError(
                f"context[{name!r}]",
                expected="what hides padding, where rows of several lengths share a batch",
                got="None",
                remedy="Let ponder.Padding(stem=…) give it to every row.",
            )
