"""Cohorts: rows that go through a step together, and are regrouped with others before the next.

`ponder.predict` regroups the remaining rows of many batches into full ones after each step; a stream lets rows at
different depths share a batch. Both use what stands here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ponder._utils.batches import cut
from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.inference.examples import Example, ExampleReader
from ponder.model.loop import Running, ask
from ponder.model.padding import Along, Padding, join_context, join_rows
from ponder.model.unroll import ModelSource
from ponder.policies.base import ExitPolicy, PolicyBatch

__all__ = ["Cohort", "Exited", "Stepper", "deal", "join", "taken"]


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
    mask: Tensor | None
    policy_context: Mapping[str, Tensor]
    keep: Tensor | None = None  # where the rows lie in hidden, context and mask; None: all of them, in order

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: Sequence[int]) -> Cohort:
        """Return the cohort of the rows at `places`."""
        index = torch.tensor(places, dtype=torch.long)
        own = index.to(self.running.index.device)
        return replace(
            self,
            rows=tuple([self.rows[place] for place in places]),
            steps=tuple([self.steps[place] for place in places]),
            lengths=tuple([self.lengths[place] for place in places]),
            running=self.running.take(own),
            past=[each[own] for each in self.past],
            policy_context=take_rows(self.policy_context, own) if self.policy_context else self.policy_context,
            keep=index if self.keep is None else self.keep[index],
        )


@dataclass(frozen=True, eq=False)
class Exited:
    """The rows that exit at a step of a cohort: their names, exit steps and outputs, `(rows, …)`."""

    rows: tuple[Any, ...]
    steps: tuple[int, ...]
    outputs: Tensor


class Stepper:
    """Run the stem and the steps of a model in evaluation mode for cohorts, under a policy that was checked."""

    def __init__(self, model: Any, policy: ExitPolicy, num_steps: int | None) -> None:
        self.model, self.policy, self.num_steps = model, policy, num_steps or model.num_steps
        self.reader = ExampleReader(model)
        self.schedule: Sequence[int] = model.steps.schedule_of(self.num_steps)
        """Which weights each step needs."""
        self.batch = PolicyBatch(torch.zeros(0, dtype=torch.long), self.num_steps, model.task)
        self._together = policy.exit_of_all(self.num_steps)

    def begin(
        self,
        rows: Sequence[Any],
        examples: Sequence[Example],
        row_ids: Tensor,
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> Cohort:
        """Run the stem for examples, whose rows then stand before their first step."""
        spare, padding = self.reader.spares, self.reader.padding
        inputs, context = self.reader.batch(examples, spare=spare)
        if spare:  # which is dropped at the end
            row_ids, policy_context = map_tensors(
                lambda tensor: torch.cat([tensor, tensor[:1]]), (row_ids, policy_context)
            )
        source, batch = self.model.start(
            inputs,
            context,
            row_ids,
            policy_context,
            self.num_steps,
            self.policy.needs,
        )
        lengths = [example.length for example in examples] + [1] * spare
        width = None if padding is None else padding.width(source.hidden)
        if width != max([2 if spare else 0, *lengths]):  # the stem makes positions of its own
            lengths = [width or 0] * len(lengths)
        cohort = Cohort(
            rows=(*rows, None) if spare else tuple(rows),
            steps=(0,) * len(lengths),
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
            "hazard" in self.policy.needs,
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
            names, own = tuple([cohort.rows[row] for row in rows]), tuple([steps[row] for row in rows])
            exited = Exited(names, own, source.output_of(None if whole else gone))
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
        others = ~exits
        asked = others.nonzero().flatten().to(running.index.device) if bool(exits.any()) else None
        mask, after = ask(source, self.policy, running, self.batch, asked)
        exits[others] = mask
        places = (others.cumsum(0) - 1).clamp(min=0).to(running.index.device)
        return exits, after if asked is None else after.take(places)


def join(cohorts: Sequence[Cohort], padding: Padding | None) -> Cohort:
    """Return one cohort whose states hold its rows and no others, as long as the longest of them."""
    if len(cohorts) == 1 and cohorts[0].keep is None:
        return cohorts[0]
    sizes, running = [len(cohort) for cohort in cohorts], [cohort.running for cohort in cohorts]
    keep = [None if cohort.keep is None else cohort.keep.to(running[0].index.device) for cohort in cohorts]
    lengths = tuple([length for cohort in cohorts for length in cohort.lengths])
    longest, of_hidden = max(lengths), None if padding is None else padding.of_hidden
    return Cohort(
        rows=tuple([row for cohort in cohorts for row in cohort.rows]),
        steps=tuple([step for cohort in cohorts for step in cohort.steps]),
        lengths=lengths,
        running=Running(
            torch.cat([own.index for own in running]),
            join_rows([own.state for own in running], sizes, absent="zeros", path="policy state"),
            torch.cat([own.log_survival for own in running]),
        ),
        past=join_rows([cohort.past for cohort in cohorts], sizes, path="past features"),
        hidden=join_rows(
            [c.hidden for c in cohorts], sizes, keep, lengths=of_hidden, length=longest, path="hidden state"
        ),
        context=join_context([cohort.context for cohort in cohorts], sizes, padding, longest, keep),
        mask=join_rows([c.mask for c in cohorts], sizes, keep, lengths=Along(fill=False), length=longest, path="mask"),
        policy_context=join_rows([dict(c.policy_context) for c in cohorts], sizes, path="policy_context"),
    )


def deal(cohorts: Sequence[Cohort], max_batch: int, max_tokens: int | None) -> list[list[tuple[int, int]]]:
    """Deal the rows of cohorts, the longest first, to batches: the number of the cohort, and the place there, of each.

    `taken` gives such rows as parts of their cohorts, for `join`.
    """
    numbered = [(-n, number, place) for number, own in enumerate(cohorts) for place, n in enumerate(own.lengths)]
    rows = sorted(numbered)
    batches = cut([-length for length, _, _ in rows], max_batch, max_tokens)
    return [[(number, place) for _, number, place in rows[batch]] for batch in batches]


def taken(cohorts: Sequence[Cohort], rows: Sequence[tuple[int, int]]) -> list[Cohort]:
    """Return some of the rows of cohorts as parts of these."""
    places: dict[int, list[int]] = {}
    for number, place in rows:
        places.setdefault(number, []).append(place)
    parts = [(cohorts[number], sorted(own)) for number, own in sorted(places.items())]
    return [whole if len(own) == len(whole) else whole.take(own) for whole, own in parts]
