"""What a model does for a cohort: begin, one step, an answer. A cohort that was passed in is not changed.

Only a step that works in place may change the states of a cohort that it was given uncopied; `Stepper.again` computes
those anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from ponder._utils.trees import Tree, first_tensor
from ponder.engine.loop import Readings, ask
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ModelSource, call_stem
from ponder.errors import ArgumentError
from ponder.inference.examples import ExampleReader, placed
from ponder.inference.streaming.cohort import Cohort
from ponder.inference.streaming.policy_groups import GroupView, PolicyGroup, start_groups
from ponder.inference.streaming.requests import Request
from ponder.parts.padding import named_in

__all__ = ["Stepped", "Stepper"]


@dataclass(frozen=True, eq=False)
class Stepped:
    """What a step made of a cohort: who leaves, with which outputs, and who stays.

    Args:
        leaving: Positions of the rows that exit.
        outputs: Their outputs, `(leaving, …)`; None where nobody leaves.
        staying: The rows that go on.
    """

    leaving: list[int]
    outputs: Tensor | None
    staying: Cohort | None


class Stepper:
    """Runs the stem and the steps of a model for the cohorts of a stream.

    Args:
        model: The model, in evaluation mode.
        device: Where rows are computed; None leaves them where they come from.
        num_steps: How many steps; the model's own number where None.
    """

    def __init__(self, model: EarlyExitModel, device: torch.device | None, num_steps: int | None = None) -> None:
        self.model, self.padding = model, model.padding
        self.num_steps = model.depth(num_steps)
        self.schedule = model.steps.schedule_of(self.num_steps)
        self._device, self._task = device, model.spec.task
        padding = self.padding
        one_length = self._task.per_position or (padding is not None and not (padding.pooled and padding.mixed))
        self._has_positions = self._task.per_position or padding is None or not padding.pooled
        self.reader = ExampleReader(padding, one_length=one_length, check=True)
        padded = None if self.padding is None else self.padding.stem
        self._stem = model.stem if padded is None else padded

    def begin(self, requests: Sequence[Request]) -> Cohort:
        """Run the stem for rows, which then stand before their first step."""
        hidden, context, mask, lengths = self._stemmed(requests)
        if self.padding is not None:
            length = max(lengths)
            if not isinstance(hidden, Tensor) or hidden.shape[1:2] != (length,):  # else it is one sequence a row
                self.padding.of_state(hidden, self.padding.width(context) or length)
        groups = start_groups(requests, self.num_steps, self._task, first_tensor(hidden).device)
        use_hazard = any("hazard" in group.policy.needs for group in groups)
        source = ModelSource(self.model, hidden, context, use_hazard)
        return Cohort(tuple(requests), (0,) * len(requests), lengths, groups, source.past or [], hidden, context, mask)

    def step(self, cohort: Cohort) -> Stepped:
        """One step of all rows of a cohort (joined), all of which have their next step in common."""
        steps = tuple([step + 1 for step in cohort.steps])
        source = self._source(cohort, steps)
        source.advance(steps[0])
        groups, leaving = self._asked(cohort, source, steps)
        left = sorted(leaving)
        outputs = None if not left else source.output_of(None if len(left) == len(steps) else torch.tensor(left))
        if outputs is not None and len(outputs) != len(left):
            raise _lost_rows(len(outputs), len(left))
        if len(left) == len(steps):
            return Stepped(left, outputs, None)
        after = replace(cohort, hidden=source.hidden, past=source.next_past(), steps=steps, groups=tuple(groups))
        return Stepped(left, outputs, after.take([row for row in range(len(steps)) if row not in leaving]))

    def answer(self, cohort: Cohort) -> Tensor:
        """The outputs of a cohort (joined) at the step that each row has finished, `(rows, …)`."""
        outputs = self._source(cohort, cohort.steps).output()
        if len(outputs) != len(cohort):
            raise _lost_rows(len(outputs), len(cohort))
        return outputs

    def again(self, cohort: Cohort) -> list[Cohort]:
        """A cohort with its states computed anew from its examples, in parts whose rows are at one depth each.

        What policies remember stays, since they are pure.
        """
        parts: list[Cohort] = []
        for depth in sorted(set(cohort.steps)):
            part = cohort.take([position for position, step in enumerate(cohort.steps) if step == depth])
            hidden, context, mask, _ = self._stemmed(part.requests)
            source = ModelSource(self.model, hidden, context, use_hazard=False, past=[])
            for step in range(1, depth + 1):
                source.advance(step)
            parts.append(replace(part, hidden=source.hidden, context=source.context, mask=mask, keep=None))
        return parts

    def _stemmed(self, requests: Sequence[Request]) -> tuple[Tree, Mapping[str, Any], Tensor | None, tuple[int, ...]]:
        """The hidden states, the steps' context, the mask and the lengths of rows before their first step."""
        inputs, context = self.reader.batch([request.example for request in requests])
        self.model.check_names(context)
        inputs, context = placed(inputs, context, self._device)
        hidden, step_context, _ = call_stem(self._stem, inputs, context)
        named = context if isinstance(inputs, Tensor) else named_in(inputs, context)
        mask = self.model.positions(named, step_context) if self._has_positions else None
        own = None
        if step_context is not context or named is not context:  # the stem hands on a context of its own
            self.model.warn_of_lost_mask(hidden, named, step_context)
            own = None if self.padding is None else self.padding.lengths_of_stem(step_context, named)
        lengths = [request.length for request in requests] if own is None else own.tolist()
        return hidden, step_context, mask, tuple(lengths)

    def _asked(self, cohort: Cohort, source: ModelSource, steps: tuple[int, ...]) -> tuple[list[PolicyGroup], set[int]]:
        """The groups after their policies were asked about the rows before their last step, and which rows leave."""
        leaving: set[int] = set()
        groups: Sequence[PolicyGroup] = cohort.groups
        if self.num_steps in steps:
            leaving = {position for position, step in enumerate(steps) if step == self.num_steps}
            groups = [group.without(leaving) for group in groups if not leaving.issuperset(group.rows)]
        asked: list[PolicyGroup] = []
        for group in groups:
            view: Readings = source
            if len(group.rows) < len(steps) or group.policy_context:
                view = GroupView(source, group)
            mask, running = ask(view, group.policy, group.running, self.num_steps, self._task)
            if isinstance(mask, bool):
                leaving.update(group.rows if mask else ())
            else:
                leaving.update(compress(group.rows, mask.tolist()))
            asked.append(replace(group, running=running))
        return asked, leaving

    def _source(self, cohort: Cohort, steps: Sequence[int]) -> ModelSource:
        reads_past = bool(cohort.past) and any("hazard" in group.policy.needs for group in cohort.groups)
        return ModelSource(
            self.model,
            cohort.hidden,
            cohort.context,
            use_hazard=reads_past,
            past=list(cohort.past) if reads_past else [],
            mask=cohort.mask,
            at=steps,
        )


def _lost_rows(found: int, rows: int) -> ArgumentError:
    return ArgumentError(
        "features of the readout",
        expected=f"a row for each of {rows} rows",
        got=f"{found} rows",
        remedy="Keep the batch dimension of the hidden state.",
    )
