"""The one loop: rows advance step by step, the policy decides, and finished rows exit at once.

    for step in 1 … N:
        source.advance(step)
        at N everyone exits
        view        = the readings that the policy needs, of the running rows
        state       = policy.init(view) at 1
        mask, state = policy.decide(view, state)
        rows in the mask exit with source.output_of(rows); source and state keep the others
    put the outputs back into the order of the batch

`run` takes a `Source`. It does not know whether the source computes a model's steps, looks them up
in a record, calls an export or runs the stages of a cascade; so replay equals run by construction.
Rows at different steps are decided by `ponder.running.depths`, which reads and asks as the loop
does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ponder._utils.arrays import as_like, namespace, on_host, select_rows, softmax
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, PolicyBatch, PolicyState, StepView
from ponder.running.readings import RowState, read_step
from ponder.running.source import Array, Ints, Source

__all__ = ["Answers", "Decision", "Exited", "ask", "exits_of", "gather", "run"]


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers to some rows at their exits, in the order in which the rows were given.

    Args:
        outputs: The head's outputs at each row's exit, `(rows, …)`; with positions, `(rows,
            longest, …)`.
        exit_step: The step at which each row exited, `(rows,)` integers, 1-based.
        names: Names of the classes; their numbers are used if there are none.

    Example:
        >>> import numpy as np
        >>> from ponder.calibration import Answers
        >>> answers = Answers(np.array([[0.0, 0.0], [0.0, 9.0]]), np.array([2, 1]), ["no", "yes"])
        >>> answers.labels, answers.probabilities.round(2)
        (['no', 'yes'], array([0.5, 1. ]))
    """

    outputs: Array
    exit_step: Array
    names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.exit_step)

    @property
    def labels(self) -> list[str | None]:
        """Names of the predicted classes of each row; None if outputs are NaN."""
        numbers = self.outputs.argmax(-1).tolist()
        shares = self.probabilities.tolist()
        labels: list[str | None] = []
        for number, share in zip(numbers, shares, strict=True):
            if math.isnan(share):
                labels.append(None)
            elif self.names:
                labels.append(str(self.names[number]))
            else:
                labels.append(str(number))
        return labels

    @property
    def probabilities(self) -> Array:
        """Probability of each predicted class, `(rows,)`."""
        return namespace(self.outputs).amax(softmax(self.outputs), -1)


class Exited(NamedTuple):
    """The rows that exited at one step.

    Args:
        step: The step, 1-based.
        rows: Their places in the batch, rising, `(rows,)` on the host; None if all rows of the
            batch exited here.
        outputs: Their outputs, `(rows, …)`.
    """

    step: int
    rows: Ints | None
    outputs: Array


class Decision(NamedTuple):
    """What a policy decided about the rows that were asked about.

    Args:
        exits: The exit mask, `(rows,)` bool on the host; one bool if all rows exit, or none.
        state: The state of the policy after the step, for all rows.
    """

    exits: NDArray[np.bool_] | bool
    state: PolicyState


def run(source: Source, policy: ExitPolicy, batch: PolicyBatch) -> Answers:
    """Run all rows of a batch to their exits, under a policy that was checked against the model."""
    return gather(exits_of(source, policy, batch), batch)


def exits_of(source: Source, policy: ExitPolicy, batch: PolicyBatch) -> list[Exited]:
    """Run all rows of a batch to their exits, and return these by step; each row is in one of them.

    Args:
        source: The rows before their first step.
        policy: The policy, checked against the model.
        batch: The identities of the rows, the number of steps and the task.
    """
    if not len(batch.row_ids):  # what the head makes of h_0 gives the outputs their shape
        return [Exited(0, None, source.output())]
    together = policy.exit_of_all(batch.num_steps)
    if together is not None:  # nothing depends on the rows: one graph for torch.compile
        for step in range(1, together + 1):
            source.advance(step)
        return [Exited(together, None, source.output())]
    places: Ints | None = None  # all
    rows = RowState.start(batch.row_ids, policy.needs)
    state: PolicyState = None
    exits: list[Exited] = []
    for step in range(1, batch.num_steps + 1):
        source.advance(step)
        if step == batch.num_steps:
            break
        view, rows = read_step(source, policy.needs, rows, batch)
        if step == 1:
            state = policy.init(view)
        decision = ask(policy, view, state)
        state = decision.state
        if decision.exits is True:
            break
        if decision.exits is False:
            continue
        if places is None:
            places = np.arange(len(batch.row_ids))
        leaving = np.flatnonzero(decision.exits)
        remaining = np.flatnonzero(~decision.exits)
        exits.append(Exited(step, places[leaving], source.output_of(leaving)))
        source.keep(remaining)
        index = as_like(remaining, batch.row_ids)
        rows = rows.keep(index)
        state = select_rows(state, index)
        places = places[remaining]
    return [*exits, Exited(step, places, source.output())]


def ask(policy: ExitPolicy, view: StepView, state: PolicyState) -> Decision:
    """Ask a policy about rows that have finished a step before their last.

    Bringing the mask to the host is the one synchronisation with the device in a step.
    """
    exits, state = policy.decide(view, state)
    if isinstance(exits, bool):
        return Decision(exits, state)
    mask = None
    if getattr(exits, "shape", None) == view.index.shape:
        mask = on_host(exits)
    if mask is None or mask.dtype != np.bool_:
        expected = f"bool, shape ({len(view.index)},): one answer for each running row"
        got = type(exits).__name__
        if hasattr(exits, "dtype"):
            got = f"{exits.dtype} {tuple(exits.shape)}"
        remedy = "Compare per row, and reduce over every dimension but the first."
        raise ArgumentError(f"exit mask of {policy!r}", expected=expected, got=got, remedy=remedy)
    count = int(np.count_nonzero(mask))
    if 0 < count < len(mask):
        return Decision(mask, state)
    return Decision(count > 0, state)


def gather(exits: Sequence[Exited], batch: PolicyBatch) -> Answers:
    """Put the outputs of rows that exited at several steps into the order of the batch."""
    exit_step = batch.row_ids * 0
    if len(exits) == 1:
        return Answers(exits[0].outputs, exit_step + exits[0].step)
    for one in exits:
        exit_step[one.rows] = one.step
    _, rows, outputs = zip(*exits, strict=True)
    order = np.argsort(np.concatenate(rows))
    return Answers(namespace(outputs[0]).concatenate(outputs)[order], exit_step)
