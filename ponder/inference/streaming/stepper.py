"""What a model does for a cohort: begin, one step, an answer. A cohort that was passed in is not changed.

Only a step that works in place may change the states of a cohort that it was given uncopied; `Stepper.again` computes
those anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, take_rows
from ponder.engine.loop import ask
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ModelSource, call_stem
from ponder.errors import ArgumentError
from ponder.inference.examples import ExampleReader, placed
from ponder.inference.streaming.cohort import Cohort
from ponder.inference.streaming.policy_groups import GroupView, PolicyGroup, start_groups, take_groups
from ponder.inference.streaming.requests import Request
from ponder.parts.heads import PerStep

__all__ = ["Stepped", "Stepper"]


@dataclass(frozen=True, eq=False)
class Stepped:
    """A cohort after a step.

    Args:
        leaving: Positions of the rows that exit.
        outputs: Their outputs, `(leaving, …)`; None where nobody leaves.
        staying: The rows that go on.
    """

    leaving: list[int]
    outputs: Tensor | None
    staying: Cohort | None


@dataclass
class MixedSource(ModelSource):
    """Rows at different depths, which the same weights take one step further.

    Args:
        steps: The step at which each row stands after `advance`.
    """

    steps: Sequence[int] = field(default=())

    def run_step(self, step: int) -> Tree:
        """See `ModelSource.run_step`."""
        at = torch.tensor(self.steps, device=self.device) if self._steps.index else None
        return self._steps(step, self.hidden, at=at, **self._call)

    def call_head(self, features: Tensor, index: Tensor | None) -> Tensor:
        """See `ModelSource.call_head`: every row has the head of its own step."""
        head: nn.Module = self._head
        if not isinstance(head, PerStep):
            outputs: Tensor = head(features)
            return outputs
        steps = self.steps if index is None else [self.steps[position] for position in index.tolist()]
        return _each_at_its_step(head, features, steps)


class Stepper:
    """A model, as a stream runs it.

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
        one_length = self._task.per_token or (padding is not None and not (padding.pooled and padding.mixed))
        self.reader = ExampleReader(padding, one_length=one_length, check=True)
        padded = None if self.padding is None else self.padding.stem
        self._stem = model.stem if padded is None else padded

    def begin(self, requests: Sequence[Request]) -> Cohort:
        """Rows after the stem, before their first step."""
        hidden, context, mask = self._stemmed(requests)
        use_hazard = any("hazard" in request.policy.needs for request in requests)
        source = ModelSource(self.model, hidden, context, use_hazard)
        groups = start_groups(requests, self.num_steps, self._task, source.device)
        return Cohort(tuple(requests), (0,) * len(requests), groups, source.past or [], hidden, context, mask)

    def step(self, cohort: Cohort) -> Stepped:
        """One step of all rows of a cohort (joined), all of which have their next step in common."""
        steps = tuple([step + 1 for step in cohort.steps])
        source = self._source(cohort, steps)
        source.advance(steps[0])
        groups, leaving = self._asked(cohort, source, steps)
        left = sorted(leaving)
        outputs = None if not left else source.output_of(None if len(left) == len(steps) else torch.tensor(left))
        if outputs is not None and len(outputs) != len(left):
            raise ArgumentError(
                "features of the readout",
                expected=f"a row for each of {len(left)} rows",
                got=f"{len(outputs)} rows",
                remedy="Keep the batch dimension of the hidden state.",
            )
        return Stepped(left, outputs, self._staying(cohort, source, steps, groups, leaving))

    def answer(self, cohort: Cohort) -> Tensor:
        """The outputs of a cohort (joined) at the step that each row has finished, `(rows, …)`."""
        return self._source(cohort, cohort.steps).output()

    def again(self, cohort: Cohort) -> list[Cohort]:
        """A cohort with its states computed anew from its examples, in parts whose rows are at one depth each.

        What policies remember stays, since they are pure.
        """
        parts: list[Cohort] = []
        for depth in sorted(set(cohort.steps)):
            part = cohort.take([position for position, step in enumerate(cohort.steps) if step == depth])
            hidden, context, mask = self._stemmed(part.requests)
            source = ModelSource(self.model, hidden, context, use_hazard=False, past=[])
            for step in range(1, depth + 1):
                source.advance(step)
            parts.append(replace(part, hidden=source.hidden, context=source.context, mask=mask, keep=None))
        return parts

    def _stemmed(self, requests: Sequence[Request]) -> tuple[Tree, Mapping[str, Any], Tensor | None]:
        """The hidden states, the steps' context and the mask of rows before their first step."""
        inputs, context = self.reader.batch([request.example for request in requests])
        inputs, context = placed(inputs, context, self._device)
        mask = self.model.positions(context) if self._task.per_token else None
        hidden, step_context, _ = call_stem(self._stem, inputs, context)
        return hidden, step_context, mask

    def _asked(self, cohort: Cohort, source: MixedSource, steps: tuple[int, ...]) -> tuple[list[PolicyGroup], set[int]]:
        """The groups after their policies were asked about the rows before their last step, and which rows leave."""
        leaving = {position for position, step in enumerate(steps) if step == self.num_steps}
        asked: list[PolicyGroup] = []
        for group in cohort.groups:
            places = [place for place, row in enumerate(group.rows) if row not in leaving]
            if not places:
                continue
            part = group.take(places, [group.rows[place] for place in places])
            rows = None if len(places) == len(steps) else torch.tensor(part.rows, device=cohort.device)
            view = GroupView(source, rows, part.policy_context)
            mask, running = ask(view, part.policy, part.running, self.num_steps, self._task)
            exits = [mask] * len(places) if isinstance(mask, bool) else mask.tolist()
            leaving.update([row for row, exit in zip(part.rows, exits, strict=True) if exit])
            asked.append(replace(part, running=running))
        return asked, leaving

    def _staying(
        self,
        cohort: Cohort,
        source: MixedSource,
        steps: tuple[int, ...],
        groups: Sequence[PolicyGroup],
        leaving: set[int],
    ) -> Cohort | None:
        """The rows that go on."""
        if len(leaving) == len(steps):
            return None
        past = source.next_past()
        if not leaving:
            return replace(cohort, hidden=source.hidden, past=past, steps=steps, groups=tuple(groups))
        staying = [position for position in range(len(steps)) if position not in leaving]
        keep = torch.tensor(staying)
        return Cohort(
            requests=tuple([cohort.requests[position] for position in staying]),
            steps=tuple([steps[position] for position in staying]),
            groups=take_groups(groups, staying),
            past=take_rows(past, source.on_device(keep)) if past else [],
            hidden=source.hidden,
            context=cohort.context,
            mask=cohort.mask,
            keep=keep,
        )

    def _source(self, cohort: Cohort, steps: Sequence[int]) -> MixedSource:
        use_hazard = cohort.use_hazard
        return MixedSource(
            self.model,
            cohort.hidden,
            cohort.context,
            use_hazard,
            past=list(cohort.past) if use_hazard else [],
            mask=cohort.mask,
            steps=steps,
        )


def _each_at_its_step(head: PerStep, features: Tensor, steps: Sequence[int]) -> Tensor:
    """Every row through the head of its own step."""
    groups: dict[int, list[int]] = {}
    for position, step in enumerate(steps):
        groups.setdefault(step, []).append(position)
    if len(groups) == 1:
        outputs: Tensor = head(features, steps[0])
        return outputs
    rows = {step: torch.tensor(positions, device=features.device) for step, positions in groups.items()}
    outputs = torch.cat([head(features[of_step], step) for step, of_step in rows.items()])
    return outputs[torch.argsort(torch.cat(list(rows.values())))]
