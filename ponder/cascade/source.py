"""The run of a cascade: a `Source` whose steps are its stages, and the policy that skips failures.

A stage is called when its output is first read, and once, for the running rows alone. A row on
which a stage fails has NaN, and passes to the next stage.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NoReturn

import numpy as np

from ponder.calibration.records import Floats, Ints
from ponder.cascade.stages import CascadeStage, Input
from ponder.policies.base import ExitPolicy, PolicyState, PolicyWrapper, StepView
from ponder.running.source import Array

__all__ = ["Deferring", "StagesSource", "log_failures"]

_logger = logging.getLogger(__name__)


class StagesSource:
    """The rows of a cascade that no stage has answered yet: a `ponder.running.Source`.

    Args:
        stages: The stages.
        classes: Names of the classes.
        inputs: The inputs.
        last: The policy of the steps of the last stage; None if its own decides.
        batch_size: Inputs of a call of a stage at most.
    """

    mask: None = None
    policy_context: Mapping[str, Array] = MappingProxyType({})

    def __init__(
        self,
        stages: Sequence[CascadeStage],
        classes: Sequence[str],
        inputs: Sequence[Input],
        last: ExitPolicy | None,
        batch_size: int,
    ) -> None:
        self.errors: dict[int, Exception] = {}
        """The last error about a row, by its position among the inputs."""
        self._stages = stages
        self._classes = classes
        self._inputs = inputs
        self._last = last
        self._batch_size = batch_size
        self._rows: Ints = np.arange(len(inputs))
        self._number = 0
        self._output: Floats | None = None

    def advance(self, step: int) -> None:
        """Go to a stage, from 1."""
        self._number = step
        self._output = None

    def output(self) -> Floats:
        """Return log-probabilities of the rows, `(rows, classes)`; NaN if the stage fails."""
        if self._output is None:
            self._output = self._answer()
        return self._output

    def output_of(self, index: Ints) -> Floats:
        """Return log-probabilities of some running rows."""
        return self.output()[index]

    def features(self) -> NoReturn:
        """Refuse: a stage has no features."""
        raise NotImplementedError

    def hazard_logit(self) -> NoReturn:
        """Refuse: a stage has no hazard."""
        raise NotImplementedError

    def keep(self, index: Ints) -> None:
        """See `Source.keep`."""
        self._rows = self._rows[index]
        if self._output is not None:
            self._output = self._output[index]

    def _answer(self) -> Floats:
        """Call the stage on the running rows, and keep its errors."""
        if not len(self._rows):
            return np.zeros((0, len(self._classes)))
        stage = self._stages[self._number - 1]
        policy: ExitPolicy | None = None
        if self._number == len(self._stages):
            policy = self._last
        inputs = [self._inputs[row] for row in self._rows]
        answers = stage.answer(inputs, self._classes, policy, batch_size=self._batch_size)
        for place, error in answers.errors.items():
            self.errors[int(self._rows[place])] = error
        log_failures(self._number, len(inputs), answers.errors)
        return answers.outputs


@dataclass(frozen=True)
class Deferring(PolicyWrapper):
    """The policy inside, but rows on which their stage fails stay for the next one."""

    source: StagesSource

    def exit_of_all(self, num_steps: int) -> int | None:
        """Return the stage at which all rows exit, if that is the last."""
        # At an earlier stage not all rows exit, since it can fail on some.
        inside = self.policy.exit_of_all(num_steps)
        if inside != num_steps:
            return None
        return inside

    def decide(self, step: StepView, state: PolicyState) -> tuple[Array, PolicyState]:
        """Decide as the policy inside does, but keep rows without an answer."""
        mask, state = self.policy.decide(step, state)
        if not np.any(mask):  # the output of the stage need not be read
            return False, state
        failed = np.isnan(self.source.output()).any(axis=-1)
        return mask & ~failed, state


def log_failures(number: int, rows: int, errors: Mapping[int, Exception]) -> None:
    """Log that a stage failed, once for all rows of a call."""
    if errors:
        first = next(iter(errors.values()))
        _logger.warning(
            "Stage %d gave no answer to %d of %d rows; the first: %r",
            number,
            len(errors),
            rows,
            first,
        )
