"""What a model does for a cohort: begin, one step, an answer. Pure: a cohort that was passed in is not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from ponder._utils.trees import Tree, map_tensors, take_rows
from ponder.engine.loop import Readings, Running, ask
from ponder.engine.model import EarlyExitModel
from ponder.engine.sources import ModelSource, call_stem
from ponder.inference.collating import collate
from ponder.inference.streaming.cohort import Cohort
from ponder.inference.streaming.ticket import Ticket
from ponder.parts.heads import PerStep
from ponder.policies import ExitPolicy, PolicyBatch

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
        at = torch.tensor(self.steps, device=self.device) if self.parts.steps.index else None
        return self.parts.steps(step, self.hidden, at=at, **self._call)

    def call_head(self, features: Tensor, index: Tensor | None) -> Tensor:
        head: nn.Module = self.parts.head
        if not isinstance(head, PerStep):
            outputs: Tensor = head(features)
            return outputs
        steps = self.steps if index is None else [self.steps[position] for position in index.tolist()]
        return _each_at_its_step(head, features, steps)


class Stepper:
    """A model and a policy.

    Args:
        model: The model, in evaluation mode.
        policy: Who decides; it has been checked against the model.
        device: Where rows are computed; None leaves them where they come from.
        num_steps: How many steps; the model's own number where None.
    """

    def __init__(
        self, model: EarlyExitModel, policy: ExitPolicy, device: torch.device | None, num_steps: int | None = None
    ) -> None:
        self.model, self.policy, self.padding = model, policy, model.padding
        self.num_steps = model.depth(num_steps)
        self.schedule = model.steps.schedule_of(self.num_steps)
        self._device = device
        self._task = model.spec.task
        self._use_hazard = "hazard" in policy.needs

    def begin(self, tickets: Sequence[Ticket]) -> Cohort:
        """Rows after the stem, before their first step."""
        inputs, context = collate([ticket.example for ticket in tickets if ticket.example is not None], self.padding)
        if self._device is not None:
            inputs, context = map_tensors(lambda tensor: tensor.to(self._device), (inputs, context))
        own_stem = self.padding is None or self.padding.stem is None
        stem = self.model.stem if own_stem or self.padding is None else self.padding.stem
        hidden, layer_context, _ = call_stem(stem, inputs, context)
        source = ModelSource(self.model, hidden, layer_context, self._use_hazard)
        row_ids = torch.tensor([ticket.row_id for ticket in tickets], device=source.device)
        running = Running.start(self.policy, PolicyBatch(row_ids, self.num_steps, self._task))
        return Cohort(tuple(tickets), (0,) * len(tickets), running, source.past or [], hidden, layer_context)

    def step(self, cohort: Cohort) -> Stepped:
        """One step of all rows of a cohort, all of which have their next step in common."""
        steps = tuple(step + 1 for step in cohort.steps)
        source = self._source(cohort, steps)
        source.advance(steps[0])
        asked = [position for position, step in enumerate(steps) if step < self.num_steps]
        running, leaving = cohort.running, set(range(len(steps))) - set(asked)
        if asked:
            view: Readings = source
            if leaving:
                view, running = _Some(source, rows := source.on_device(torch.tensor(asked))), running.take(rows)
            mask, running = ask(view, self.policy, running, self.num_steps, self._task)
            exits = [mask] * len(asked) if isinstance(mask, bool) else mask.tolist()
            leaving |= {position for position, exit in zip(asked, exits, strict=True) if exit}
        left = sorted(leaving)
        outputs = None if not left else source.output_of(None if len(left) == len(steps) else torch.tensor(left))
        return Stepped(left, outputs, self._staying(cohort, source, steps, asked, running, leaving))

    def answer(self, cohort: Cohort) -> Tensor:
        """The outputs of a cohort (joined) at the step that each row has finished, `(rows, …)`."""
        return self._source(cohort, cohort.steps).output()

    def _staying(
        self,
        cohort: Cohort,
        source: MixedSource,
        steps: tuple[int, ...],
        asked: list[int],
        running: Running,
        leaving: set[int],
    ) -> Cohort | None:
        """The rows that go on; `running` knows of the rows `asked` only."""
        if len(leaving) == len(steps):
            return None
        past = source.next_past()
        if not leaving:
            return replace(cohort, hidden=source.hidden, past=past, steps=steps, running=running)
        staying = [position for position in asked if position not in leaving]
        of_asked = [place for place, position in enumerate(asked) if position not in leaving]
        keep = torch.tensor(staying)
        return Cohort(
            tickets=tuple(cohort.tickets[position] for position in staying),
            steps=tuple(steps[position] for position in staying),
            running=running.take(source.on_device(torch.tensor(of_asked))),
            past=take_rows(past, source.on_device(keep)),
            hidden=source.hidden,
            context=cohort.context,
            keep=keep,
        )

    def _source(self, cohort: Cohort, steps: Sequence[int]) -> MixedSource:
        return MixedSource(
            self.model, cohort.hidden, cohort.context, self._use_hazard, past=list(cohort.past), steps=steps
        )


class _Some:
    """Some rows of a source, as the policy is to see them."""

    def __init__(self, source: ModelSource, rows: Tensor) -> None:
        self.source, self.rows = source, rows
        self.mask: Tensor | None = take_rows(source.mask, rows)
        self.policy_context: Mapping[str, Tensor] = take_rows(source.policy_context, rows)

    def features(self) -> Tensor:
        return self.source.features()[self.rows]

    def output(self) -> Tensor:
        return self.source.output()[self.rows]

    def hazard_logit(self) -> Tensor:
        return self.source.hazard_logit()[self.rows]


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
