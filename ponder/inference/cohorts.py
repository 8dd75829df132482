"""Cohorts: rows that go through a step together, and are regrouped with others before the next.

`ponder.predict` regroups the remaining rows of many batches into full ones after each step; a stream lets rows at
different depths share a batch. Both use what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.inference.examples import Example, ExampleReader, can_regroup, fitting
from ponder.model.loop import Running, ask
from ponder.model.padding import (
    Along,
    Padding,
    join_context,
    join_rows,
    last_position,
    named_in,
    positions,
    with_lengths,
)
from ponder.model.unroll import ModelSource
from ponder.policies.base import ExitPolicy, PolicyBatch

__all__ = ["Cohort", "Exited", "Stepper", "join", "longest_first", "regroup", "started", "taken"]

_MASK = with_lengths(Along(fill=False))


@dataclass(frozen=True, eq=False)
class Cohort:
    """Rows between two steps. Taking rows copies nothing large; `join` copies the states of those that remain."""

    rows: tuple[Any, ...]  # the caller's name of each
    steps: tuple[int, ...]  # that each has finished
    lengths: tuple[int, ...]  # 0 where the model declares no padding
    running: Running
    past: list[Tensor]  # as in `ModelSource`
    hidden: Tree  # of these rows, and perhaps of exited ones; so are context and mask
    context: Mapping[str, Any]
    mask: Tensor | None = None
    policy_context: Mapping[str, Tensor] = field(default_factory=dict)
    keep: Tensor | None = None  # where the rows lie in hidden, context and mask; None: all of them, in order

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Sequence[int]) -> Cohort:
        """Return the cohort of the rows at `places`."""
        index = torch.tensor(places, dtype=torch.long)
        own = index.to(self.running.index.device)
        return Cohort(
            rows=tuple([self.rows[place] for place in places]),
            steps=tuple([self.steps[place] for place in places]),
            lengths=tuple([self.lengths[place] for place in places]),
            running=self.running.take(own),
            past=[each[own] for each in self.past],
            hidden=self.hidden,
            context=self.context,
            mask=self.mask,
            policy_context=take_rows(self.policy_context, own) if self.policy_context else self.policy_context,
            keep=index if self.keep is None else self.keep[index],
        )


@dataclass(frozen=True, eq=False)
class Exited:
    """The rows that exit at a step of a cohort: their names, exit steps, lengths and outputs, `(rows, …)`."""

    rows: tuple[Any, ...]
    steps: tuple[int, ...]
    lengths: tuple[int, ...]
    outputs: Tensor


class Stepper:
    """Run the stem and the steps of a model in evaluation mode for cohorts, under a policy that was checked."""

    def __init__(self, model: Any, policy: ExitPolicy, num_steps: int) -> None:
        self.model, self.policy, self.num_steps = model, policy, num_steps
        self.padding: Padding | None = model.padding
        self.schedule: Sequence[int] = model.steps.schedule_of(num_steps)
        """Which weights each step needs."""
        self.device: torch.device | None = next((weight.device for weight in model.parameters()), None)
        self._together = policy.exit_of_all(num_steps)
        self._use_hazard = "hazard" in policy.needs
        self._batch = PolicyBatch(torch.zeros(0, dtype=torch.long), num_steps, model.task)

    def begin(
        self,
        reader: ExampleReader,
        examples: Sequence[Example],
        rows: Sequence[Any],
        row_ids: Sequence[int],
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> Cohort:
        """Run the stem for examples, whose rows then stand before their first step."""
        spare = can_regroup(self.model) and reader.spares
        inputs, context = reader.batch(examples, spare=spare)
        context.pop("labels", None)
        if spare:
            row_ids, first = [*row_ids, 0], torch.tensor([*range(len(rows)), 0])
            policy_context = None if policy_context is None else take_rows(dict(policy_context), first)
        if self.device is not None:
            inputs, context, policy_context = map_tensors(
                lambda tensor: tensor.to(self.device, non_blocking=True), (inputs, context, policy_context)
            )
        source, batch = self.model.start(
            inputs,
            context,
            torch.tensor(row_ids, dtype=torch.long),
            policy_context,
            self.num_steps,
            use_hazard=self._use_hazard,
            use_features="features" in self.policy.needs,
        )
        size = len(row_ids)
        lengths = [0] * size
        if self.padding is not None:
            real = positions(source.hidden, (named_in(inputs, context), source.context), self.padding)
            width = self.padding.width(source.hidden) or 0
            lengths = [width] * size if real is None else last_position(real).tolist()
        cohort = Cohort(
            rows=(*rows, None) if spare else tuple(rows),
            steps=(0,) * size,
            lengths=tuple(lengths),
            running=Running.start(self.policy, batch),
            past=source.past or [],
            hidden=source.hidden,
            context=source.context,
            mask=source.mask,
            policy_context=source.policy_context,
        )
        return cohort.take(range(len(rows))) if spare else cohort

    def step(self, cohort: Cohort) -> tuple[Exited | None, Cohort | None]:
        """Run the next step of a joined cohort, and return the rows that exit there and those that remain."""
        steps = tuple([step + 1 for step in cohort.steps])
        source = ModelSource(
            self.model,
            cohort.hidden,
            cohort.context,
            self._use_hazard,
            past=list(cohort.past),
            mask=cohort.mask,
            policy_context=cohort.policy_context,
            at=steps if min(steps) != max(steps) else None,
        )
        source.advance(steps[0])
        exits, running = self._ask(source, cohort.running, steps)
        gone = exits.nonzero().flatten()
        whole, rows = len(gone) == len(steps), gone.tolist()
        exited = after = None
        if rows:
            exited = Exited(
                tuple([cohort.rows[row] for row in rows]),
                tuple([steps[row] for row in rows]),
                tuple([cohort.lengths[row] for row in rows]),
                source.output_of(None if whole else gone),
            )
        if not whole:
            after = replace(cohort, hidden=source.hidden, past=source.next_past(), steps=steps, running=running)
            after = after.take((~exits).nonzero().flatten().tolist()) if rows else after
        return exited, after

    def _ask(self, source: ModelSource, running: Running, steps: Sequence[int]) -> tuple[Tensor, Running]:
        """Return which rows exit, all at their last step among them, and the state of the others at their places."""
        last = self._together or self.num_steps
        exits = torch.tensor([step == last for step in steps])
        if self._together is not None or bool(exits.all()):
            return exits, replace(running, index=running.index + 1)
        if not bool(exits.any()):
            mask, running = ask(source, self.policy, running, self._batch)
            return exits | mask, running
        asked = (~exits).nonzero().flatten().to(running.index.device)
        places = torch.zeros_like(running.index)
        places[asked] = torch.arange(len(asked), device=asked.device)
        mask, running = ask(source, self.policy, running, self._batch, asked)
        exits[~exits] = mask
        return exits, running.take(places)


def join(cohorts: Sequence[Cohort], padding: Padding | None) -> Cohort:
    """Return one cohort whose states hold its rows and no others, as long as the longest of them."""
    if len(cohorts) == 1 and cohorts[0].keep is None:
        return cohorts[0]
    sizes = [len(cohort) for cohort in cohorts]
    device = cohorts[0].running.index.device
    keep = [None if cohort.keep is None else cohort.keep.to(device) for cohort in cohorts]
    lengths = tuple([length for cohort in cohorts for length in cohort.lengths])
    longest, of_hidden = max(lengths), with_lengths(None) if padding is None else padding.of_hidden
    return Cohort(
        rows=tuple([row for cohort in cohorts for row in cohort.rows]),
        steps=tuple([step for cohort in cohorts for step in cohort.steps]),
        lengths=lengths,
        running=_join_running([cohort.running for cohort in cohorts], sizes),
        past=join_rows([cohort.past for cohort in cohorts], sizes, path="past features"),
        hidden=join_rows(
            [c.hidden for c in cohorts], sizes, keep, lengths=of_hidden, length=longest, path="hidden state"
        ),
        context=join_context([cohort.context for cohort in cohorts], sizes, padding, longest, keep),
        mask=join_rows([c.mask for c in cohorts], sizes, keep, lengths=_MASK, length=longest, path="mask"),
        policy_context=join_rows([dict(c.policy_context) for c in cohorts], sizes, path="policy_context"),
    )


def regroup(cohorts: Sequence[Cohort], max_batch: int, max_tokens: int | None) -> list[list[Cohort]]:
    """Deal the rows of cohorts, the longest first, to full batches; each is a list of parts for `join`."""
    rows, batches, start = longest_first(cohorts), [], 0
    lengths = [-negative for negative, _, _ in rows]
    while start < len(rows):
        end = start + fitting(lengths[start : start + max_batch], max_batch, max_tokens)
        batches.append(taken(cohorts, rows[start:end]))
        start = end
    return batches


def longest_first(cohorts: Sequence[Cohort]) -> list[tuple[int, int, int]]:
    """Return all rows, the longest first: the negative of their length, the number of the cohort, the place there."""
    numbered = enumerate(cohorts)
    return sorted([(-length, number, place) for number, own in numbered for place, length in enumerate(own.lengths)])


def taken(cohorts: Sequence[Cohort], rows: Sequence[tuple[int, int, int]]) -> list[Cohort]:
    """Return some of the rows of `longest_first` as parts of their cohorts."""
    places: dict[int, list[int]] = {}
    for _, number, place in rows:
        places.setdefault(number, []).append(place)
    parts = [(cohorts[number], sorted(own)) for number, own in sorted(places.items())]
    return [whole if len(own) == len(whole) else whole.take(own) for whole, own in parts]


def _join_running(parts: Sequence[Running], sizes: Sequence[int]) -> Running:
    if len(parts) == 1:
        return parts[0]
    state = join_rows([part.state for part in parts], sizes, absent="zeros", path="policy state")
    log_survival = torch.cat([part.log_survival for part in parts])
    return Running(torch.cat([part.index for part in parts]), state, log_survival)


def started(state: Tree) -> object:
    """Return which parts of a policy's state have a value: rows that differ in this are asked in separate batches.

    A policy knows its first step by a state that is None as a whole; inside a mapping None is a value that is not there
    yet, and becomes zeros beside the values of others.
    """
    return tuple(map(started, state)) if isinstance(state, tuple) else state is not None
