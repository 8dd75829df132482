"""`Watched`: a model whose answers are audited, and whose policy steps back when the promise no longer holds."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ponder._utils.modes import check_evaluating
from ponder._utils.trees import Tree, check_rows, take_rows
from ponder._utils.validation import check_int, check_real, check_type
from ponder.engine.loop import Exits
from ponder.engine.model import EarlyExitModel, check_model
from ponder.errors import ArgumentError, CheckpointError
from ponder.monitor.audit import Audit, StepBack
from ponder.monitor.order import check_order
from ponder.monitor.state_file import StateFile
from ponder.parts.recording import same_answers
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.certified import certificates

__all__ = ["Watched"]

_FORMAT = "ponder-watched-1"


@dataclass(frozen=True, eq=False)
class _Given:
    """Answers that were given and wait for their audit, rows of one call."""

    inputs: Tree
    context: Mapping[str, Any]
    outputs: Tensor
    stage: int


class Watched:
    """Answers with a model, and audits a share of the answers at full depth after they were given.

    Several threads may call it at once, and one of them, or another, run the audits.

    Args:
        model: The model, in evaluation mode. It must stay so and keep its weights.
        policies: The policies, from the cheapest to the safest, all of them checked; full depth comes after the last by
            itself.
        audit: The promise and its state. Where None, level and confidence are those of the first certificate among the
            policies, or those of `Audit()` where there is none.
        path: A JSON file with the state, read where it exists, written at once and by every `run_audits`; None for
            none. It is of one writer: each knows its own audits alone.
        tell: Called with every `StepBack`; None warns.
        max_waiting: Audited rows that may wait for `run_audits`; the call that brings more runs them itself.
        tolerance: In regression, the distance by which an answer may differ from that of full depth.

    Raises:
        ArgumentError: A model in training mode, no policies, one that cannot serve the model, a task whose answers
            cannot be compared, or a file that cannot be written.
        CheckpointError: The file holds the state of other policies or of another promise, or no state at all; later,
            somebody else wrote it meanwhile.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), task="classification").eval()
        >>> order = [policies.Confidence(0.9), policies.Confidence(0.99)]
        >>> watched = Watched(model, order, ponder.monitor.Audit(share=0.1))
        >>> watched(torch.randn(5, 8)).outputs.shape
        torch.Size([5, 3])
        >>> watched.policy
        Confidence(threshold=0.9)
    """

    def __init__(
        self,
        model: EarlyExitModel,
        policies: Sequence[ExitPolicy],
        audit: Audit | None = None,
        *,
        path: str | Path | None = None,
        tell: Callable[[StepBack], object] | None = None,
        max_waiting: int = 32,
        tolerance: float = 0.0,
    ) -> None:
        check_model(model)
        check_evaluating(model)
        if not policies:
            raise _refusal("policies", "at least one policy", "none", "Give them from the cheapest to the safest.")
        self._policies = tuple(model.checked(policy) for policy in policies)
        for policy in self._policies:
            model.look_at_certificate(policy)
        check_order(self._policies)
        reads = [policy for policy in self._policies if "context" in policy.needs]
        if reads:
            raise _refusal(
                "policies",
                "policies that read the model alone: the promise is about rows, whatever a caller says of them",
                f"{reads[0]!r}, which reads policy_context",
                "Watch policies without a budget of the call.",
            )
        self._task = model.task or task_named(None)
        check_real("tolerance", tolerance)
        if not self._task.comparable and not (self._task.numbers and tolerance):
            raise _refusal(
                "model",
                "a task whose answers are the same or not, or regression with a tolerance",
                f"the task {self._task.name!r}",
                "Pass tolerance=0.1, say, in the unit of the outputs, for regression.",
            )
        check_int("max_waiting", max_waiting)
        self.model, self.audit, self.tolerance = model, audit or _audit_of(self._policies), tolerance
        self._file = None if path is None else StateFile(Path(path), _FORMAT, self._policies, tolerance)
        self._tell, self._max_waiting = tell or _warn, max_waiting
        self._waiting: list[_Given] = []
        self._written: Any = None
        self._lock = threading.RLock()  # around what is counted and written; models run outside of it
        if self._file is not None:
            self.audit = self._file.read(self.audit)
            self._written = self._file.held_state()
            self.save()  # a place that cannot be written is told at once

    @property
    def stage(self) -> int:
        """The number of the policy that answers now, from 0; a pass to the next one is for good."""
        return self.audit.stage

    @property
    def policy(self) -> ExitPolicy:
        """The policy that answers now: that of the stage, and full depth after the last."""
        return self._policy_of(self.stage)

    @property
    def at_full_depth(self) -> bool:
        """Whether every policy was stepped back from; nothing is audited any more."""
        return self.audit.stage >= len(self._policies)

    @property
    def waiting(self) -> int:
        """The number of rows that wait for `run_audits`."""
        with self._lock:
            return sum(given.outputs.shape[0] for given in self._waiting)

    @torch.no_grad()
    def __call__(self, inputs: Tree, *, row_ids: Tensor | None = None, **context: Any) -> Exits:
        """Outputs and exit steps under the policy of the stage.

        Args:
            inputs: As for a call of the model.
            row_ids: As for a call of the model.
            context: What stem and steps take besides; no other argument of a call.

        Raises:
            ArgumentError: The model names no task, and answers with one number, which is the same within a tolerance
                alone.
        """
        stage = self.stage  # another thread may step back while the model runs
        exits = self.model.exits(inputs, context, self._policy_of(stage), row_ids=row_ids)
        self._note(inputs, exits.outputs, context, stage)
        return exits

    @torch.no_grad()
    def seen(self, inputs: Tree, outputs: Tensor, *, stage: int | None = None, **context: Any) -> None:
        """Note answers that the policy of a stage gave elsewhere, in a `ponder.StreamEngine`, say.

        Args:
            inputs: Inputs of a call, batch first.
            outputs: The outputs that were given, `(batch, …)`, as the model gives them: logits, not classes.
            stage: The `stage` at which the rows were submitted with `policy`. Answers of a policy that was stepped back
                from meanwhile say nothing of the next one. The stage of now where None: for answers that were not on
                their way at a step back.
            context: Context of the call.

        Raises:
            ArgumentError: There are not as many outputs as inputs. That they are of another shape than the model's is
                found by `run_audits`.
        """
        check_type("outputs", outputs, Tensor, remedy="Pass torch.as_tensor(outputs).")
        check_rows("outputs", outputs, check_rows("inputs", inputs))
        if stage is not None:
            check_int("stage", stage, 0)
        self._note(inputs, outputs, context, stage)

    def _note(self, inputs: Tree, outputs: Tensor, context: Mapping[str, Any], stage: int | None) -> None:
        if self.model.task is None:
            self._task.predictions(outputs[:1])  # one number is refused by the first call, and not by an audit later
        with self._lock:
            if stage is not None and stage > self.stage:
                raise _refusal(
                    "stage",
                    f"at most {self.stage}, that of now: stages count from 0",
                    stage,
                    "Pass watched.stage as it was.",
                )
            stage = self.stage if stage is None else stage
            if self.at_full_depth or stage != self.stage:
                return
            chosen = [row for row in range(outputs.shape[0]) if self.audit.chosen()]
            if chosen:
                index = torch.tensor(chosen, device=outputs.device)
                rows, called, given = take_rows((inputs, dict(context), outputs), index)
                self._waiting.append(_Given(rows, called, given, stage))
        if self.waiting > self._max_waiting:
            self.run_audits()

    @torch.no_grad()
    def run_audits(self) -> int:
        """Audit the rows that wait, at full depth; a service calls this when its answers are out.

        The state is written also where none waited: how many answers were given says which are audited next.

        Returns:
            How many rows were audited.

        Raises:
            ArgumentError: Outputs that `seen` was given are of another shape than the model's.
        """
        count = 0
        while (given := self._next()) is not None:
            found, left = self._disagreements(given), None
            with self._lock:
                if given.stage != self.stage:
                    continue  # an answer of a policy that was stepped back from says nothing of this one
                for disagrees in found:
                    count += 1
                    left = self.audit.record(disagrees)
                    if left is not None:
                        break
                self.save()  # before anybody is told, who may raise
            if left is not None:
                self._tell(left)
        with self._lock:
            if self._file is not None and self._written != self.audit.to_dict():
                self.save()
        return count

    def save(self) -> None:
        """Write the state to `path`, where there is one.

        Raises:
            CheckpointError: Somebody else wrote the file meanwhile, whose alarm this state would take back.
        """
        if self._file is None:
            return
        with self._lock:
            if self._file.held_state() not in (None, self._written):
                raise CheckpointError(
                    f"{self._file.path}: another writer has changed it since this one read or wrote it, and each knows "
                    "its own audits alone. Give each a file of its own."
                )
            self._written = self.audit.to_dict()
            self._file.write(self._written)

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.RLock())

    def _policy_of(self, stage: int) -> ExitPolicy:
        return self._policies[stage] if stage < len(self._policies) else LastStep()

    def _next(self) -> _Given | None:
        """The next answers to audit, of the policy of now; None where none wait."""
        with self._lock:
            self._waiting = [given for given in self._waiting if given.stage == self.stage]
            return self._waiting.pop(0) if self._waiting else None

    def _disagreements(self, given: _Given) -> list[bool]:
        full = self.model.exits(given.inputs, given.context, LastStep())
        if given.outputs.shape != full.outputs.shape:
            raise _refusal(
                "outputs",
                f"what the model gives for these rows, of shape {tuple(full.outputs.shape)}",
                f"shape {tuple(given.outputs.shape)}",
                "Give `seen` the outputs themselves, such as logits, neither classes nor those of another model.",
            )
        mask = None
        if self._task.per_position:
            mask = self.model.positions_of(given.inputs, given.context, full.outputs)
        same = same_answers(self._task, given.outputs, full.outputs, mask=mask, tolerance=self.tolerance)
        return [not agrees for agrees in same.tolist()]


def _warn(left: StepBack) -> None:
    warnings.warn(f"{left.statement}. The next, safer policy answers from now on.", RuntimeWarning, stacklevel=3)


def _audit_of(policies: Sequence[ExitPolicy]) -> Audit:
    """The audit of what the first certificate promises; the default where nothing is certified."""
    all_held = (each for policy in policies for each in certificates(policy))
    held = next((each for each in all_held if each.threshold_value is not None), None)  # others promise nothing
    if held is None:
        return Audit()
    if held.risk != "disagreement" or held.confidence is None:
        promise = f"of {held.risk}" if held.confidence is not None else "of a mean over draws"
        raise _refusal(
            "audit",
            "what is promised of answers that differ from full depth, which is what audits see",
            f"None, and a certificate {promise}",
            "Pass audit=ponder.monitor.Audit(level=0.05), say.",
        )
    return Audit(held.level, held.confidence)


def _refusal(argument: str, expected: str, got: object, remedy: str) -> ArgumentError:
    return ArgumentError(argument, expected=expected, got=got, remedy=remedy)
