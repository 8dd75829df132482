"""`Loop`: one shared step, applied until each position of each row has its answer.

    every step: h ← S(h) for positions that run, h for others;  answer and hazard of the running
    positions; the policy says which of them halt;  a row whose real positions have all halted
    leaves the batch

A halted position keeps its state, and the others still attend to it (``"frozen"``), or attend to
it no longer (``"hidden"``). In a shared step its keys and values stay what they are, so that
nothing of it is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ponder._utils.checks import check_choice, check_int, check_type
from ponder._utils.seals import digest_of_tensors
from ponder._utils.trees import Tree, check_rows, first_tensor, map_tensors, unwrap
from ponder.errors import ArgumentError
from ponder.loops.blocks import position_step
from ponder.loops.carry import Carried, Problem, carry
from ponder.loops.deciding import Decider
from ponder.loops.places import Places, PositionStep
from ponder.loops.positions import (
    Halted,
    PositionSource,
    as_bool,
    at_positions,
    over_positions,
    real_units,
)
from ponder.loops.unrolling import unroll
from ponder.model.steps import Context, ContextDict, as_module, optional_module, parameters_of
from ponder.objectives import Depth, FinalStep, Objective, Ponder, Progress
from ponder.policies import ExitPolicy, LastStep, ModelSpec, Quantile
from ponder.policies.base import PolicyBatch
from ponder.priors import Geometric, Prior
from ponder.running.loop import run
from ponder.tasks import Task, TaskName, as_task, infer_task, task_named
from ponder.trajectory import Trajectory, objective_loss

__all__ = ["Loop", "LoopOutput"]


@dataclass(frozen=True, eq=False)
class LoopOutput:
    """The output of a call of a `Loop`.

    Args:
        outputs: The head's outputs at each position's exit, in training at the last step, `(batch,
            length, …)`; zeros at padding.
        exit_step: The step of `outputs`, `(batch, length)` long, 1-based; 0 at padding. `(batch,)`
            of states that have no positions.
        hidden: The states at the exits, `(batch, length, …)`.
        loss: Scalar, if labels were given: in training the objective's, else the task's at the
            exits.
        trajectory: In training, every step of the real positions as rows, `(positions, steps, …)`,
            in the order of the batch; of whole rows with ``halted="together"``. None in evaluation.

    Example:
        >>> block = ponder.loops.Block(8, heads=2)
        >>> loop = ponder.loops.Loop(block, nn.Linear(8, 3), policy=policies.Confidence(0.5))
        >>> out = loop.eval()(torch.randn(2, 5, 8), max_steps=4)
        >>> out.outputs.shape, out.exit_step.shape
        (torch.Size([2, 5, 3]), torch.Size([2, 5]))
    """

    outputs: Tensor
    exit_step: Tensor
    hidden: Tree
    loss: Tensor | None = None
    trajectory: Trajectory | None = None

    def __len__(self) -> int:
        return len(self.exit_step)

    @property
    def position_steps(self) -> int:
        """The number of steps of real positions that were needed, Σ exit steps."""
        return int(self.exit_step.sum())


class Loop(nn.Module):
    """A shared step that is applied to each position until its answer is ready.

    Args:
        step: `step(hidden, **context) -> hidden`, a module or a pure function on states `(batch,
            length, …)`, or trees of them. It is given `attention_mask`, `(batch, length)` bool, and
            `index`, the number of the step of each row, `(batch,)` long, if it names them. One that
            is a `PositionStep`, an `nn.TransformerEncoderLayer` or an `AlbertLayer` of Transformers
            computes the running positions alone; any other computes all, and halted ones keep their
            states: right, but no time is saved until rows leave.
        head: Features of positions, `(positions, width)`, to outputs, `(positions, …)`.
        lambda_head: Features of positions to hazard logits, `(positions,)`; None where no policy or
            objective needs one.
        policy: The exit policy, which sees positions as rows; `Quantile(0.5)` with a Lambda head
            and `LastStep()` without if None.
        halted: ``"frozen"``, a halted position keeps its state, and others attend to it;
            ``"hidden"``, others no longer attend to it; ``"together"``, the policy sees rows, whose
            positions halt together.
        prior: The prior of the halting step, for objectives that need one; `Geometric(0.1)` for 12
            steps, scaled to those of a call, if there is a Lambda head and none is given.
        readout: States to features, `(batch, length, …)`; None if a state is one tensor that the
            head reads.
        task: The meaning of the outputs of one position (of one row with ``halted="together"``),
            see `ponder.PonderWrapper`. If None, integer labels are classes and others numbers.

    Raises:
        ArgumentError: The parts do not fit one another.

    Example:
        >>> block = ponder.loops.Block(8, heads=2)
        >>> loop = ponder.loops.Loop(block, nn.Linear(8, 3), ponder.LambdaHead(8))
        >>> hidden, labels = torch.randn(2, 5, 8), torch.randint(3, (2, 5))
        >>> objective = objectives.Ponder(0.5)
        >>> loop.train()(hidden, max_steps=4, labels=labels, objective=objective).loss.shape
        torch.Size([])
        >>> loop.eval()(hidden, max_steps=4, policy=policies.Quantile(0.5)).exit_step.shape
        torch.Size([2, 5])
    """

    if TYPE_CHECKING:
        __call__: Callable[..., LoopOutput]

    progress: Progress | None = None
    """Progress of training, for objectives that depend on it; set by the trainer, never saved."""

    def __init__(
        self,
        step: Callable[..., Tree],
        head: nn.Module,
        lambda_head: nn.Module | None = None,
        *,
        policy: ExitPolicy | None = None,
        halted: Halted = "frozen",
        prior: Prior | None = None,
        readout: Callable[[Tree], Tensor] | None = None,
        task: TaskName | Task | Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        check_choice("halted", halted, ("frozen", "hidden", "together"))
        self.step = position_step(step)
        self.head = as_module("head", head)
        self.lambda_head = optional_module("lambda_head", lambda_head)
        self.readout = optional_module("readout", readout)
        self.halted: Halted = halted
        self.task = as_task(task)
        self.prior = prior
        if policy is None:
            policy = LastStep() if lambda_head is None else Quantile(0.5)
        check_type("policy", policy, ExitPolicy)
        self.policy = policy
        self.runs_positions = halted != "together" and isinstance(self.step, PositionStep)
        """Whether the step computes the running positions alone."""
        self._names = _names_of(self.step)
        if halted == "hidden" and not self.runs_positions and "attention_mask" not in self._names:
            expected = "a step that takes attention_mask, which hides halted positions"
            remedy = "Name it in the step, or use halted='frozen'."
            got = type(step).__name__
            raise ArgumentError("step", expected=expected, got=got, remedy=remedy)

    @property
    def prior(self) -> Prior | None:
        """The prior of the halting step; the weights of a learned one are the loop's."""
        return self._prior

    @prior.setter
    def prior(self, prior: Prior | None) -> None:
        self.prior_weights: nn.Module | None = None
        if prior is not None:
            self.prior_weights = prior.module
        self._prior = prior

    def forward(
        self,
        hidden: Tree,
        *,
        max_steps: int,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        objective: Objective | None = None,
        policy: ExitPolicy | None = None,
        halting: bool = False,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        **context: Any,
    ) -> LoopOutput:
        """Train mode: every step, and the objective's loss. Eval mode: each position to its exit.

        Args:
            hidden: The states before the first step, `(batch, length, …)`.
            max_steps: The number of steps after which every position exits, ≥ 1.
            attention_mask: Which positions are real, `(batch, length)`, 1 or True; all are if
                None.
            labels: Labels of positions, `(batch, length)`; −100 for none.
            objective: The training loss; `Ponder(0.5)` with a Lambda head, `FinalStep()` without if
                None.
            policy: An exit policy instead of the loop's own, for this call.
            halting: In training, whether positions halt as at inference: the policy decides without
                a gradient, and the outputs of a halted position are those of the state that it
                keeps. If False, all positions run.
            row_ids: Identity of each row, `(batch,)` integers, for seeded sampling; the position in
                the batch if None.
            policy_context: Values that only policies read of each position, by name, `(batch,
                length, …)` each.
            context: Passed to the step by name, `(batch, …)` each, unless wrapped in
                `ponder.Shared`.
        """
        check_int("max_steps", max_steps)
        if self.training:
            call = {"attention_mask": attention_mask, "row_ids": row_ids, **context}
            return self._train(hidden, max_steps, labels, objective, policy, halting, call)
        task = self._task_of_policies(hidden)
        policy = self._checked(policy, max_steps, task)
        mask = as_bool(attention_mask)
        source = self._source(
            hidden,
            mask,
            context,
            use_hazard="hazard" in policy.needs,
            policy_context=policy_context,
        )
        real = source.real
        ids = source.ids(_row_ids(hidden, row_ids))
        answers = run(source, policy, PolicyBatch(ids, max_steps, task))
        loss = None
        if labels is not None:
            loss = self._loss_at_exits(answers.outputs, labels[real], mask)
        states = source.states()
        exit_step = over_positions(self, at_positions(answers.exit_step, real), states, mask)
        return LoopOutput(at_positions(answers.outputs, real), exit_step, states, loss)

    def unroll(
        self,
        hidden: Tree,
        *,
        max_steps: int,
        attention_mask: Tensor | None = None,
        policy: ExitPolicy | None = None,
        keep_features: bool = False,
        row_ids: Tensor | None = None,
        **context: Any,
    ) -> Trajectory:
        """Run all steps of all positions and record them; real positions are the trajectory's rows.

        A replay says when each position would halt if all the others ran on. With
        ``halted="frozen"`` or ``"hidden"`` a run differs, since the others attend to the states
        that halted positions keep: a replay is an approximation there, and certificates come from
        runs (`ponder.loops.control_risk`).

        Args:
            hidden: The states before the first step.
            max_steps: The number of steps.
            attention_mask: Which positions are not padding.
            policy: A policy by which positions halt and keep their states, as in training with
                ``halting=True``; None lets all run.
            keep_features: Whether features are recorded, for policies that read them.
            row_ids: Identity of each row.
            context: Passed to the step.

        Example:
            >>> loop = ponder.loops.Loop(ponder.loops.Block(8, heads=2), nn.Linear(8, 3)).eval()
            >>> loop.unroll(torch.randn(2, 5, 8), max_steps=4).outputs.shape
            torch.Size([10, 4, 3])
        """
        call = {"attention_mask": attention_mask, "row_ids": row_ids, **context}
        if policy is not None:
            policy = self._checked(policy, max_steps, self._task_of_policies(hidden))
        depth = Depth(0, max_steps)
        out = self._unroll(hidden, max_steps, depth, policy, keep_features=keep_features, **call)
        assert out.trajectory is not None
        return out.trajectory

    def carry(
        self,
        problems: Iterable[Problem | Tree],
        *,
        max_steps: int,
        slots: int = 64,
        policy: ExitPolicy | None = None,
    ) -> Iterator[Carried]:
        """Answer problems in the order in which they halt; a halted one frees its slot at once.

        Args:
            problems: Problems of one shape: `Problem`, or states alone, `(length, …)`. Read as
                slots become free.
            max_steps: The number of steps after which every position of a problem exits.
            slots: How many problems run at a time, ≥ 1.
            policy: An exit policy instead of the loop's own.

        Example:
            >>> block = ponder.loops.Block(8, heads=2)
            >>> loop = ponder.loops.Loop(block, nn.Linear(8, 3), ponder.LambdaHead(8)).eval()
            >>> answers = loop.carry(torch.randn(10, 5, 8), max_steps=6, slots=4)
            >>> sorted(answer.number for answer in answers) == list(range(10))
            True
        """
        check_int("max_steps", max_steps)
        check_int("slots", slots)
        given = (each if isinstance(each, Problem) else Problem(each) for each in problems)
        first = next(given, None)
        if first is None:
            return
        example = map_tensors(_with_batch, first.hidden)
        task = self._task_of_policies(example)
        decider = Decider(self._checked(policy, max_steps, task), max_steps, task)
        yield from carry(self, decider, chain([first], given), slots)

    def weights_digest(self) -> str | None:
        """Return the SHA-256 of the weights, on any device."""
        return digest_of_tensors(self.state_dict().values())

    def meaning(self, outputs: Tensor) -> Task:
        """Return the task of outputs: the loop's own, classes if it names none."""
        return self._task_of_units(outputs) or task_named(None)

    def read(self, hidden: Tree) -> Tensor:
        """Return the features of states, `(batch, length, …)`."""
        features: Tensor = hidden
        if self.readout is not None:
            features = self.readout(hidden)
        return features

    def call_step(self, hidden: Tree, mask: Tensor | None, index: Tensor, context: Context) -> Tree:
        """Return the states of all positions after a step; `index` is the step of each row."""
        given = unwrap(context)
        if "attention_mask" in self._names:
            given["attention_mask"] = mask
        if "index" in self._names:
            given["index"] = index
        return self.step(hidden, **given)

    def call_positions(
        self, hidden: Tree, places: Places, kept: Tree, index: Tensor, context: Context
    ) -> tuple[Tree, Tree]:
        """Return the states of the running positions after a step, and the kept values of all."""
        given = unwrap(context)
        if "index" in self._names:
            given["index"] = index
        step = cast(PositionStep, self.step)
        return step.positions(hidden, places, kept, **given)

    def _source(
        self,
        hidden: Tree,
        mask: Tensor | None,
        context: Context,
        *,
        use_hazard: bool,
        policy_context: Mapping[str, Tensor] | None = None,
    ) -> PositionSource:
        """Return the positions before their first step."""
        size = check_rows("hidden", hidden)
        if context:
            check_rows("context", context, size)
        return PositionSource(
            self, hidden, context, mask, use_hazard=use_hazard, policy_context=policy_context
        )

    def _train(
        self,
        hidden: Tree,
        max_steps: int,
        labels: Tensor | None,
        objective: Objective | None,
        policy: ExitPolicy | None,
        halting: bool,
        call: ContextDict,
    ) -> LoopOutput:
        """Run all steps with a gradient, and take the objective's loss of the real positions."""
        if objective is None:
            objective = FinalStep() if self.lambda_head is None else Ponder(0.5)
        prior = self._prior_over(max_steps)
        objective.check(has_hazard=self.lambda_head is not None, has_prior=prior is not None)
        depth = objective.depth(max_steps)
        if halting:
            policy = self._checked(policy, max_steps, self._task_of_policies(hidden))
        else:
            policy = None
        keep_features = "features" in objective.needs
        out = self._unroll(hidden, max_steps, depth, policy, keep_features=keep_features, **call)
        if labels is None:
            return out
        mask = as_bool(call["attention_mask"])
        labels = labels[real_units(hidden, mask, together=self.halted == "together")]
        assert out.trajectory is not None
        trajectory = replace(out.trajectory, labels=labels)
        loss = self._loss(objective, prior, trajectory, labels)
        return replace(out, loss=loss, trajectory=trajectory)

    def _unroll(
        self,
        hidden: Tree,
        max_steps: int,
        depth: Depth,
        policy: ExitPolicy | None,
        *,
        keep_features: bool = False,
        attention_mask: Tensor | None,
        row_ids: Tensor | None,
        **context: Any,
    ) -> LoopOutput:
        """Run all steps of all units, and record those that are not padding."""
        mask = as_bool(attention_mask)
        use_hazard = self.lambda_head is not None
        source = self._source(hidden, mask, context, use_hazard=use_hazard)
        ids = source.ids(_row_ids(hidden, row_ids))
        batch = PolicyBatch(ids, max_steps, self._task_of_policies(hidden))
        unrolled = unroll(
            source, batch, depth, policy, use_hazard=use_hazard, keep_features=keep_features
        )
        record = unrolled.record
        last = record.outputs[:, -1]
        one_answer = self.halted != "together" or last.dim() < 3
        trajectory = Trajectory(
            record.outputs,
            record.hazard_logits,
            ids,
            features=record.features,
            task=self._task_of_units(last),
            mask=None if one_answer else mask,
            training=self.training,
        )
        states = source.states()
        exit_step = over_positions(
            self, at_positions(unrolled.exit_step, source.real), states, mask
        )
        return LoopOutput(at_positions(last, source.real), exit_step, states, None, trajectory)

    def _loss_at_exits(self, outputs: Tensor, labels: Tensor, mask: Tensor | None) -> Tensor:
        """Return the task's loss of units at their exits, a scalar."""
        task = self._task_of_units(outputs) or infer_task(outputs, labels)
        labels = task.check(outputs, labels)
        if self.halted == "together":
            labels = task.inside(labels, mask)
        return task.mean_loss(task.losses(outputs, labels), labels)

    def _loss(
        self,
        objective: Objective,
        prior: Prior | None,
        trajectory: Trajectory,
        labels: Tensor,
    ) -> Tensor:
        """Return the objective's loss, averaged over the units that have a label, a scalar."""
        last = trajectory.outputs[:, -1]
        task = as_task(trajectory.task) or infer_task(last, labels)
        labels = task.inside(task.check(last, labels), trajectory.mask)
        return objective_loss(
            objective, trajectory, labels, task, prior=prior, progress=self.progress
        )

    def _prior_over(self, max_steps: int) -> Prior | None:
        """Return the prior for this number of steps; a Lambda head has one by default."""
        if self.prior is None and self.lambda_head is not None:
            return Geometric(0.1).rescaled(12, max_steps)
        return self.prior

    def _checked(self, policy: ExitPolicy | None, max_steps: int, task: Task) -> ExitPolicy:
        """Return the policy of a call, by default the loop's, after a check against the loop."""
        if policy is None:
            policy = self.policy
        check_type("policy", policy, ExitPolicy)
        policy.check(ModelSpec(max_steps, task, self.lambda_head is not None))
        return policy

    def _task_of_policies(self, hidden: Tree) -> Task:
        """Return the task by which policies read outputs."""
        task = self.task
        if self.halted == "together":
            task = self._task_of_units(self.read(hidden))
        return task or task_named(None)

    def _task_of_units(self, units: Tensor) -> Task | None:
        """Return the task of units; rows that halt together may have an answer at each position.

        Args:
            units: Their outputs or features, `(units, …)`.
        """
        task = self.task
        one_class = task is None or task.one_class
        if self.halted == "together" and one_class and units.dim() > 2:
            return task_named("token_classification")
        return task


def _names_of(step: nn.Module) -> frozenset[str]:
    """Return the names of a step's arguments, except the states."""
    return frozenset(list(parameters_of(step))[1:])


def _with_batch(tensor: Tensor) -> Tensor:
    return rearrange(tensor, "... -> 1 ...")


def _row_ids(hidden: Tree, row_ids: Tensor | None) -> Tensor:
    """Return the identity of each row, `(rows,)` long: by default its position in the batch."""
    states = first_tensor(hidden)
    number = torch.arange(len(states), device=states.device)
    if row_ids is None:
        return number
    return row_ids.to(number)
