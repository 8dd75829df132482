"""`PonderWrapper`: any encoder, given as stem, steps, readout and head, that learns when to stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ponder.checks import as_row_ids, check_head, check_masks, check_type
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.heads import as_lambda_head
from ponder.loop import Exits, run
from ponder.objectives import FinalStep, Objective, Ponder, Unrolled
from ponder.padding import Padding
from ponder.policies import Batch, ExitPolicy, LastStep, Quantile, Setting
from ponder.priors import Geometric, Prior
from ponder.readouts import Readout, ReadoutCall
from ponder.rows import Tree, tensors
from ponder.source import ModelSource, Parts, call_stem
from ponder.steps import Step, Steps
from ponder.tasks import LossFunction, Task, TaskName, as_task, infer_task
from ponder.trajectory import Recorder, Trajectory

if TYPE_CHECKING:
    from ponder.prediction import Predictions

__all__ = ["PonderOutput", "PonderWrapper"]


@dataclass(frozen=True, eq=False)
class PonderOutput:
    """What a call of the model gives.

    Args:
        outputs: In training the outputs of the last step, else of each row's exit, `(batch, …)`.
        exit_step: The step of `outputs`, `(batch,)` long, 1-based.
        loss: Scalar, where labels were given: in training the objective's, else the task's at the exits.
        trajectory: Every step, in training; None otherwise.
    """

    outputs: Tensor
    exit_step: Tensor
    loss: Tensor | None = None
    trajectory: Trajectory | None = None


class PonderWrapper(nn.Module):
    """An encoder that stops per example.

    Args:
        steps: One callable `step(hidden, **context) -> hidden` applied `num_steps` times, a sequence of
            callables, or `ponder.Steps`. `hidden` is a tensor, or a nested tuple or dict of tensors, batch first.
        num_steps: N; required for one shared step.
        head: Features to outputs; `ponder.PerStep` for one head a step.
        lambda_head: Features to hazard logits; None where nothing needs a hazard.
        prior: Prior of the halting step; `Geometric(0.1)`, scaled from 12 steps to N, where there is a Lambda
            head and none is given.
        objective: The training loss; `Ponder(0.5)` with a Lambda head, `FinalStep()` without, where None.
        policy: Who decides to exit; `Quantile(0.5)` with a Lambda head, `LastStep()` without, where None.
        stem: Inputs to hidden state, or to (hidden, context): called with the inputs and the context of the
            call. A pair whose second item is a dict is read as the latter. The identity where None.
        readout: Hidden state to features; the identity for 2-D states where None.
        task: What outputs and labels mean: ``"classification"``, ``"regression"``, ``"multilabel"``,
            ``"token_classification"``, or a callable (outputs, labels) → losses `(batch,)`. Where None, integer
            labels are classes and others numbers.
        check_finite: Look for NaN and infinity after every step (costs a synchronisation each).
        padding: Where lengths lie in the model's tensors; None where rows have no length, or only one.

    Raises:
        ArgumentError: The parts do not fit one another; every message says what to change.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), lambda_head=LambdaHead(8))
        >>> model.eval()(torch.randn(5, 8)).exit_step.shape
        torch.Size([5])
    """

    def __init__(
        self,
        steps: Steps | Step | Sequence[Step],
        num_steps: int | None = None,
        *,
        head: nn.Module,
        lambda_head: nn.Module | None = None,
        prior: Prior | None = None,
        objective: Objective | None = None,
        policy: ExitPolicy | None = None,
        stem: Callable[..., Tree] | None = None,
        readout: Readout | None = None,
        task: TaskName | LossFunction | Task | None = None,
        check_finite: bool = False,
        padding: Padding | None = None,
    ) -> None:
        super().__init__()
        self.steps = Steps.of(steps, num_steps)
        self.head = check_head(head, self.num_steps)
        self.lambda_head = None if lambda_head is None else as_lambda_head(lambda_head)
        self.stem = stem
        self.readout = ReadoutCall(readout)
        self.task = as_task(task)
        self.check_finite = check_finite
        self.padding = padding
        pondering = self.lambda_head is not None
        if prior is None and pondering:
            prior = Geometric(0.1).rescaled(12, self.num_steps)
        self.prior = prior
        self.objective = objective or (Ponder(0.5) if pondering else FinalStep())
        self.policy = policy or (Quantile(0.5) if pondering else LastStep())

    @property
    def num_steps(self) -> int:
        """N, the number of steps at full depth."""
        return self.steps.num_steps

    @property
    def policy(self) -> ExitPolicy:
        """The policy of calls that name none; assigning one checks it against the model."""
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self._policy = self._checked(policy)

    @property
    def objective(self) -> Objective:
        """The training loss; assigning one checks it against the model."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._check_objective(objective, self.prior)
        self._objective = objective

    @property
    def prior(self) -> Prior | None:
        """The prior of the halting step; assigning one checks that it serves N steps and the objective."""
        return self._prior

    @prior.setter
    def prior(self, prior: Prior | None) -> None:
        self._check_prior(prior)
        objective: Objective | None = getattr(self, "_objective", None)
        if objective is not None:
            self._check_objective(objective, prior)
        self._hold_prior(prior)

    def forward(
        self,
        inputs: Tree,
        *,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **context: Any,
    ) -> PonderOutput:
        """Train mode: every step, and the objective's loss. Eval mode: each row to its exit.

        Args:
            inputs: What the stem takes; the hidden state h_0 where there is no stem.
            labels: Labels, batch first, for the loss.
            policy: Decides instead of the model's own policy, for this call (eval mode).
            row_ids: Who each row is, `(batch,)` integers, for seeded sampling; the position where None.
            context: Passed to the stem and to every step. Tensors are per example, batch first, unless wrapped
                in `ponder.Shared`.
        """
        if self.training and policy is not None:
            raise ArgumentError(
                "policy",
                expected="None in training mode, where every step runs",
                got=repr(policy),
                remedy="Call model.eval() first.",
            )
        if self.training:
            trajectory = self.unroll(inputs, labels=labels, row_ids=row_ids, **context)
            loss = None if labels is None else self._objective_loss(trajectory)
            last = torch.full_like(trajectory.row_ids, self.num_steps)
            return PonderOutput(trajectory.outputs[:, -1], last, loss, trajectory)
        policy = self.policy if policy is None else self._checked(policy)
        source, batch = self._start(inputs, context, row_ids, "hazard" in policy.needs)
        exits = run(source, policy, batch) if batch.size else self._nothing(source)
        return PonderOutput(exits.outputs, exits.exit_step, self._exit_loss(exits.outputs, labels))

    def unroll(
        self,
        inputs: Tree,
        *,
        labels: Tensor | None = None,
        row_ids: Tensor | None = None,
        keep_features: bool = False,
        **context: Any,
    ) -> Trajectory:
        """Run all steps for all rows and record them; arguments as for a call.

        Args:
            inputs: What the stem takes.
            labels: Kept with the trajectory.
            row_ids: Who each row is.
            keep_features: Record features too, for policies that read them.
            context: As for a call.
        """
        use_hazard = self.lambda_head is not None
        source, batch = self._start(inputs, context, row_ids, use_hazard)
        record = Recorder(use_hazard, keep_features)
        if batch.size:
            run(source, LastStep(), batch, record)
        else:
            record.outputs = [self._nothing(source).outputs] * self.num_steps
            record.hazard_logits = [torch.zeros(0, device=batch.device)] * self.num_steps
            record.features = [source.features()] * self.num_steps
        if labels is not None:
            labels = self._task_of(record.outputs[-1], labels).check(record.outputs[-1], labels)
        return record.trajectory(batch, labels)

    def predict(self, dataset: Any, **options: Any) -> Predictions:
        """Every example of a data set to its exit, in its order, in batches of similar length; see `ponder.predict`."""
        from ponder.prediction import predict  # it calls models: the arrow points to here

        return predict(self, dataset, **options)

    def settings(self) -> dict[str, Any]:
        """Everything but weights, as plain JSON."""
        return {
            "num_steps": self.num_steps,
            "schedule": list(self.steps.schedule),
            "task": None if self.task is None else self.task.name,
            "policy": self.policy.to_dict(),
            "objective": self.objective.to_dict(),
            "prior": None if self.prior is None else self.prior.to_dict(),
        }

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Take policy, prior and objective from what `settings` gave for a model of the same shape; all or none."""
        own = self.settings()
        for key in ("num_steps", "schedule", "task"):
            if settings.get(key) != own[key]:
                raise CheckpointError(
                    f"{key}: the saved model has {settings.get(key)!r}, this one {own[key]!r}. Build it as it was."
                )
        try:
            prior = None if settings["prior"] is None else Prior.from_dict(settings["prior"])
            objective = Objective.from_dict(settings["objective"])
            policy = self._checked(ExitPolicy.from_dict(settings["policy"]))
            self._check_prior(prior)
            self._check_objective(objective, prior)
        except (KeyError, PonderError) as error:
            raise CheckpointError(f"the saved prior, objective or policy cannot be used: {error}") from error
        self._hold_prior(self.prior if prior == self.prior else prior)  # an equal one has its weights in place
        self._objective, self._policy = objective, policy

    def _hold_prior(self, prior: Prior | None) -> None:
        self._prior = prior
        self.prior_weights = None if prior is None else prior.module

    def _check_prior(self, prior: Prior | None) -> None:
        if prior is not None:
            check_type("prior", prior, Prior)
            prior(self.num_steps)

    def _check_objective(self, objective: Objective, prior: Prior | None) -> None:
        check_type("objective", objective, Objective)
        objective.check(has_hazard=self.lambda_head is not None, has_prior=prior is not None)

    def _checked(self, policy: ExitPolicy) -> ExitPolicy:
        check_type("policy", policy, ExitPolicy)
        task = None if self.task is None else self.task.name
        policy.check(Setting(self.num_steps, task, self.lambda_head is not None))
        return policy

    def _start(
        self, inputs: Tree, context: Mapping[str, Any], row_ids: Tensor | None, use_hazard: bool
    ) -> tuple[ModelSource, Batch]:
        """Everything that is checked once per call, and h_0."""
        check_masks(context)
        lengths = None if self.padding is None or self.training else self.padding.lengths(context)
        hidden, context, size = call_stem(self.stem, inputs, context)
        device = next(tensor.device for _, tensor in tensors(hidden))
        parts = Parts(self.steps, self.readout, self.head, self.lambda_head, self.check_finite, self.padding)
        batch = Batch(as_row_ids(row_ids, size, device), self.num_steps, None if self.task is None else self.task.name)
        return ModelSource(parts, hidden, context, use_hazard and size > 0, lengths=lengths), batch

    def _nothing(self, source: ModelSource) -> Exits:
        """The outputs of no rows: no step runs, and the last head gives them their shape."""
        source.step = self.num_steps
        return Exits(source.output(), torch.zeros(0, dtype=torch.long, device=source.output().device))

    def _objective_loss(self, trajectory: Trajectory) -> Tensor:
        labels, outputs = trajectory.labels, trajectory.outputs
        assert labels is not None
        if not len(trajectory):
            return outputs.sum() * 0.0
        task = self._task_of(outputs[:, -1], labels)
        losses = torch.stack([task.losses(of_step, labels) for of_step in outputs.unbind(1)], dim=1)
        prior = None if self.prior is None else self.prior(self.num_steps, device=losses.device)
        halting = None if trajectory.hazard_logits is None else trajectory.halting
        return self.objective.per_example(Unrolled(outputs, losses, task, halting, prior)).mean()

    def _exit_loss(self, outputs: Tensor, labels: Tensor | None) -> Tensor | None:
        if labels is None:
            return None
        task = self._task_of(outputs, labels)
        labels = task.check(outputs, labels)
        return task.losses(outputs, labels).mean() if outputs.shape[0] else outputs.sum() * 0.0

    def _task_of(self, outputs: Tensor, labels: Tensor) -> Task:
        check_type("labels", labels, Tensor)
        return infer_task(outputs, labels) if self.task is None else self.task
