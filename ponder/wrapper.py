"""`PonderWrapper`: any encoder, given as stem, steps, readout and head, that learns when to stop."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ponder import recipes
from ponder._utils.checks import check_int, check_type
from ponder._utils.digest import digest_of_weights
from ponder._utils.trees import Tree, check_rows, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.inference import record
from ponder.model.batch import ArgumentNames
from ponder.model.encoder import read_encoder
from ponder.model.heads import PerStep, make_heads
from ponder.model.padding import Padding, width_of
from ponder.model.readouts import Readout, ReadoutCall
from ponder.model.source import ModelSource, call_stem, unroll
from ponder.model.steps import Step, Steps, as_module, parameters_of
from ponder.objectives import Depth, FinalStep, Objective, Ponder, Progress, Unrolled
from ponder.policies import ExitPolicy, LastStep, ModelSpec, PolicyBatch, Quantile
from ponder.priors import Geometric, Prior
from ponder.recipes import Recipe, Stage
from ponder.running.loop import Answers, run
from ponder.running.source import Start
from ponder.tasks import Task, TaskName, as_task, infer_task, task_named
from ponder.trajectory import Trajectory

__all__ = ["PonderOutput", "PonderWrapper"]

LossFunction = Callable[[Tensor, Tensor], Tensor]
_ARGUMENTS = ("labels", "policy", "row_ids", "policy_context", "num_steps")


@dataclass(frozen=True, eq=False)
class PonderOutput(Answers):
    """The output of a call of a `PonderWrapper`.

    Args:
        outputs: Outputs of the last step in training, else of each row's exit, `(batch, …)`.
        exit_step: The step of `outputs`, `(batch,)` long, 1-based.
        loss: Scalar, where labels were given: in training the objective's, else the task's at the
            exits.
        trajectory: Every step, in training; None in evaluation.

    Example:
        >>> out = model.train()(inputs, labels=labels)  # training: every step
        >>> out.loss.shape, out.trajectory.outputs.shape
        (torch.Size([]), torch.Size([300, 4, 3]))
        >>> out = model.eval()(inputs)  # inference: each row to its exit
        >>> out.outputs.shape, out.exit_step.shape, out.trajectory
        (torch.Size([300, 3]), torch.Size([300]), None)
    """

    loss: Tensor | None = None
    trajectory: Trajectory | None = None


class PonderWrapper(nn.Module):
    """An encoder that decides for each example after how many steps it stops.

    Args:
        steps: One callable `step(hidden, **context) -> hidden` applied `num_steps` times, a
            sequence of callables, or `ponder.Steps`. `hidden` is a tensor, or a nested tuple or
            dict of tensors, batch first.
        num_steps: N; required for one shared step.
        head: Features to outputs; `ponder.PerStep` for one head a step.
        lambda_head: Features to hazard logits. A `ponder.LambdaHead` reads the mean over the
            positions that are no padding, where features have positions; another module reads them
            as they are. None for no hazard.
        prior: Prior of the halting step; `Geometric(0.1)`, scaled from 12 steps to N, where there
            is a Lambda head and none is given.
        objective: The training loss; `Ponder(0.5)` with a Lambda head, `FinalStep()` without, where
            None.
        policy: The exit policy; `Quantile(0.5)` with a Lambda head, `LastStep()` without, where
            None.
        stem: Inputs to hidden state, or to (hidden, context): called with the inputs and the
            context of the call. A pair whose second item is a dict is read as the latter. The
            identity where None.
        readout: Hidden state to features; the identity for 2-D states where None.
        task: The meaning of outputs and labels: ``"classification"``, ``"regression"``,
            ``"multilabel"``, ``"token_classification"``, ``"span"``, or a callable (outputs,
            labels) → losses `(batch,)`. Where None, integer labels are classes and others numbers.
        padding: Where lengths lie in the model's tensors; None where rows have no length, only one,
            or features with positions.
        checkpoint_steps: In training, keep only the hidden states between steps for the backward
            pass and compute the rest again, with the same dropout: less memory, one more forward
            pass. Steps that keep statistics (BatchNorm) update them twice.

    Raises:
        ArgumentError: The parts do not fit one another; every message says what to change.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), lambda_head=LambdaHead(8))
        >>> model.eval()(torch.randn(5, 8)).exit_step.shape
        torch.Size([5])
    """

    if TYPE_CHECKING:
        __call__: Callable[..., PonderOutput]  # which nn.Module types as Any

    progress: Progress | None = None
    """Progress of training, for objectives that change while it runs; set by the trainer, never saved."""
    main_input_name: str | None = None
    """Name of the inputs in a batch that is a dict; None where the first entry is taken."""
    policy: ExitPolicy
    """The exit policy of calls that name none; assigning one checks it against the model."""
    prior: Prior | None
    """The prior of the halting step; the weights of a learned one are the model's."""
    stages: tuple[Stage, ...]
    """The stages of training, one or those of a recipe, which `ponder.fit` runs; assigning them checks each."""
    task: Task | None
    """The meaning of outputs and labels; None where labels show it."""
    teacher: Callable[..., Any] | None = None
    """The frozen teacher of objectives that distil: a model, or a function (inputs, **context) → outputs as ours.

    It is neither trained nor saved. A `PonderWrapper` answers at full depth.
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
        padding: Padding | None = None,
        checkpoint_steps: bool = False,
    ) -> None:
        super().__init__()
        self.steps = Steps.of(steps, num_steps)
        self.num_steps = self.steps.num_steps
        """N, the number of steps at full depth."""
        self.head = as_module("head", head)
        if isinstance(head, PerStep):
            check_int(
                "the number of heads",
                len(head),
                self.num_steps,
                self.num_steps,
                remedy="Pass one head a step.",
            )
        self.lambda_head = None if lambda_head is None else as_module("lambda_head", lambda_head)
        self.stem = None if stem is None else as_module("stem", stem)
        self.readout = (
            readout if isinstance(readout, ReadoutCall) else ReadoutCall(readout, padding)
        )
        self.padding, self.checkpoint_steps = padding, checkpoint_steps
        self.task, self._context_names = as_task(task), frozenset[str]()
        halts = self.lambda_head is not None
        self.policy = policy if policy is not None else (Quantile(0.5) if halts else LastStep())
        self.prior = prior or (Geometric(0.1).rescaled(12, self.num_steps) if halts else None)
        self.objective = objective or (Ponder(0.5) if halts else FinalStep())

    @classmethod
    def from_recipe(
        cls,
        module_or_steps: nn.Module | Step | Sequence[Step] | Steps,
        recipe: str | Recipe = "frozen",
        *,
        num_outputs: int,
        example: Any,
        num_steps: int | None = None,
        task: TaskName | LossFunction | Task | None = None,
        stem: Callable[..., Tree] | None = None,
        readout: Readout | None = None,
        policy: ExitPolicy | None = None,
        head_dropout: float = 0.1,
        layers: str | None = None,
    ) -> Self:
        """Build a model from an encoder and a recipe, scaled to its steps, with new heads for `num_outputs` outputs.

        Args:
            module_or_steps: A module with a list of layers, which is captured (`ponder.capture`),
                its stem, masks and final norm included; a list of steps; or one shared step, with
                `num_steps`. Its weights are used.
            recipe: A recipe or its name; its stages of training are kept as `stages`, which
                `ponder.fit` runs.
            num_outputs: Classes, labels or numbers; 1 is regression where no task is named.
            example: The call of the encoder, for two rows or more: a tensor, or a dict of arguments
                by name, of which the first that holds a tensor is the `inputs` of the model, and
                the others are its context.
            num_steps: N, for one shared step.
            task: The meaning of an answer; ``"classification"``, or ``"regression"`` for one
                output, where None.
            stem: Inputs to h_0, for steps that do not read the inputs themselves.
            readout: Hidden state, or what a captured module makes of it, to features:
                `ponder.readouts.first_token`, say. Where None, the mean over the positions that are
                no padding, if there are positions.
            policy: An exit policy instead of the recipe's.
            head_dropout: Dropout in front of the head.
            layers: The name of the list of layers (``"encoder.layer"``), where the largest is not
                meant.

        Raises:
            ArgumentError: The encoder cannot be read or run, or is a classifier with a head of its
                own.

        Example:
            >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            >>> encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
            >>> model = PonderWrapper.from_recipe(encoder, "palbert", num_outputs=3, example=torch.randn(2, 5, 8))
            >>> model.num_steps, model.eval()(torch.randn(4, 5, 8)).outputs.shape
            (3, torch.Size([4, 3]))
        """
        check_int("num_outputs", num_outputs)
        meaning = as_task(task) or task_named(
            "regression" if num_outputs == 1 else "classification"
        )
        chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
        parts, main_input, features = read_encoder(
            module_or_steps, example, num_steps, meaning.per_position, stem, readout, layers
        )
        count = parts["steps"].num_steps
        scaled = chosen.for_steps(count).for_task(meaning)
        head, lambda_head = make_heads(scaled, features.shape[-1], num_outputs, count, head_dropout)
        model = cls(
            **parts,
            head=head.to(features),
            lambda_head=None if lambda_head is None else lambda_head.to(features),
            prior=scaled.prior,
            policy=scaled.policy if policy is None else policy,
            task=meaning,
        )
        model.stages, model.main_input_name = scaled.stages, main_input
        return model

    def forward(
        self,
        inputs: Tree = None,
        *more: Any,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        num_steps: int | None = None,
        **context: Any,
    ) -> PonderOutput:
        """Train mode: every step, and the objective's loss. Eval mode: each row to its exit.

        Args:
            inputs: The argument of the stem; the hidden state h_0 if there is no stem. It may be
                given by its own name too, as ``model(x=x, mask=mask)``.
            more: Context by position, in the order of `argument_names`.
            labels: Labels, batch first, for the loss.
            policy: An exit policy instead of the model's own, for this call (eval mode).
            row_ids: Identity of each row, `(batch,)` integers, for seeded sampling; the position
                where None.
            policy_context: Values that only policies read of each row (a budget, say), by name,
                `(batch, …)` each.
            num_steps: Number of steps, where one shared step can run for longer (or shorter) than
                it was trained.
            context: Passed to the stem and to every step. Tensors are per example, batch first,
                unless wrapped in `ponder.Shared`.
        """
        if inputs is None or more:
            inputs, context = self._by_name(inputs, more, context)
        call = {"row_ids": row_ids, "policy_context": policy_context, **context}
        if self.training:
            if policy is not None:
                expected = "None in training mode, where every step runs"
                raise ArgumentError(
                    "policy", expected=expected, got=policy, remedy="Call model.eval() first."
                )
            objective = self.objective
            depth = objective.depth(self.depth(num_steps))
            trajectory = self._unroll(inputs, objective.needs, depth, labels, **call)
            loss = None if labels is None else self._loss(objective, trajectory, inputs, context)
            last = torch.full_like(trajectory.row_ids, depth.total)
            return PonderOutput(trajectory.outputs[:, -1], last, loss=loss, trajectory=trajectory)
        policy = self.checked(policy, num_steps)
        source, batch = self.start(inputs, policy.needs, num_steps, **call)
        exits = run(source, policy, batch)
        loss = None
        if labels is not None:
            task = self.task or infer_task(exits.outputs, labels)
            labels = task.check(exits.outputs, labels)
            loss = task.mean_loss(task.losses(exits.outputs, labels), labels)
        return PonderOutput(exits.outputs, exits.exit_step, loss=loss)

    def start(
        self,
        inputs: Tree,
        needs: Container[str] = (),
        num_steps: int | None = None,
        /,
        *,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        **context: Any,
    ) -> Start[ModelSource]:
        """Check a call, run the stem, and return the rows before their first step; arguments as for a call.

        `needs` says what will be asked for, as of a policy: features may have positions where
        outputs have none.
        """
        if not context.keys() <= self._context_names:
            self._check_names(context)
        hidden, step_context, size = call_stem(self.stem, inputs, context)
        if policy_context is not None:
            check_rows("policy_context", policy_context, size)
        task, padding, mask = self.task or task_named(None), self.padding, None
        if task.per_position or ("features" in needs and padding is None):
            mask = (padding or Padding()).positions(
                context, inputs, step_context, width=width_of(hidden)
            )
        uses_hazard = "hazard" in needs
        source = ModelSource(
            self, hidden, step_context, uses_hazard, mask=mask, policy_context=policy_context or {}
        )
        if row_ids is None:
            row_ids = torch.arange(size, device=source.device)
        else:
            check_rows("row_ids", row_ids, size)
            row_ids = row_ids.to(source.device, torch.long)
        return Start(source, PolicyBatch(row_ids, num_steps or self.num_steps, task))

    def unroll(
        self,
        inputs: Tree = None,
        *more: Any,
        num_steps: int | None = None,
        keep_features: bool = False,
        **call: Any,
    ) -> Trajectory:
        """Run all steps for all rows and record them; arguments as for a call, but no policy.

        With `keep_features` the features are recorded too, for policies that read them.
        """
        if inputs is None or more:
            inputs, call = self._by_name(inputs, more, call)
        needs = {"hazard"} if self.lambda_head is not None else set[str]()
        needs |= {"features"} if keep_features else set()
        return self._unroll(inputs, needs, Depth(0, self.depth(num_steps)), **call)

    def record(self, dataset: Any, **options: Any) -> Trajectory:
        """Record every step of every example of a data set; see `ponder.inference.record`."""
        return record(self, dataset, **options)

    @property
    def objective(self) -> Objective:
        """The training loss, that of the first stage; assigning one makes it that of the only stage."""
        return self.stages[0].objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self.stages = (Stage(objective),)

    @property
    def argument_names(self) -> ArgumentNames:
        """The names of the inputs and of the context, in the order in which a call and a batch take them."""
        return ArgumentNames.of(self.stem, self.steps, self.main_input_name)

    @property
    def spec(self) -> ModelSpec:
        """The facts of the model that policies look at."""
        return ModelSpec(
            self.num_steps, self.task or task_named(None), self.lambda_head is not None
        )

    def checked(self, policy: ExitPolicy | None, num_steps: int | None = None) -> ExitPolicy:
        """Return `policy`, or the model's own where None; raise where it cannot serve the model, or so many steps."""
        if policy is None and num_steps is None:
            return self.policy
        chosen = self.policy if policy is None else policy
        check_type("policy", chosen, ExitPolicy)
        chosen.check(replace(self.spec, num_steps=self.depth(num_steps)))
        return chosen

    def depth(self, num_steps: int | None) -> int:
        """Return the number of steps of a call: N, or another that shared steps and a shared head can run."""
        if num_steps is None or num_steps == self.num_steps:
            return self.num_steps
        check_int("num_steps", num_steps)
        if not self.steps.shared or isinstance(self.head, PerStep):
            expected = (
                f"{self.num_steps}, or None: each step, or each head, has its place in the stack"
            )
            remedy = "One shared step with one head can run for longer; a stack ends earlier by policies.FixedStep(3)."
            raise ArgumentError("num_steps", expected=expected, got=num_steps, remedy=remedy)
        return num_steps

    def weights_digest(self) -> str | None:
        """Return the SHA-256 of the weights that answers and exits come from, whatever the device."""
        return digest_of_weights([self.stem, self.steps, self.readout, self.head, self.lambda_head])

    def train(self, mode: bool = True) -> Self:
        """Switch modes as PyTorch does, but leave parts whose every parameter is frozen in evaluation mode.

        Parts are the stem, steps, readout and heads; one of the encoder without parameters is as
        the encoder is.
        """
        super().train(mode)
        encoder = nn.ModuleList(
            part for part in (self.stem, *self.steps.fns, self.readout) if part is not None
        )
        heads = self.head.heads if isinstance(self.head, PerStep) else [self.head]
        for part in (encoder, *encoder, *heads, self.lambda_head) if mode else ():
            if part is not None and {weight.requires_grad for weight in part.parameters()} == {
                False
            }:
                part.eval()
        return self

    def extra_repr(self) -> str:
        """Return policy, prior and objective, which no submodule shows."""
        return f"policy={self.policy!r},\nprior={self.prior!r},\nobjective={self.objective!r}"

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign as PyTorch does; check policy and stages, own the weights of a prior, and none of a teacher's."""
        if name == "teacher":
            self.__dict__[name] = value.eval() if isinstance(value, nn.Module) else value
            return
        if name == "policy":
            value = self.checked(value)
        elif name == "objective":
            check_type(
                "objective", value, Objective
            )  # or PyTorch would take a loss for a part of the model
        elif name == "prior":
            self.prior_weights = None if value is None else value.module
        elif name == "stages":
            for stage in value:
                stage.objective.check(
                    has_hazard=self.lambda_head is not None, has_prior=self.prior is not None
                )
                stage.objective.depth(
                    self.num_steps
                )  # which raises where it reads a step that is not there
        super().__setattr__(name, value)

    def _unroll(
        self,
        inputs: Tree,
        needs: Container[str],
        depth: Depth,
        /,
        labels: Tensor | None = None,
        **call: Any,
    ) -> Trajectory:
        """Run all steps for all rows, and check the labels; the rest of a call as for `start`."""
        source, batch = self.start(inputs, needs, **call)
        if self.checkpoint_steps and torch.is_grad_enabled():
            source.run_step = partial(checkpoint, self.steps, use_reentrant=False)
        record: dict[str, Any] = unroll(source, depth, keep_features="features" in needs)
        if labels is not None:
            last = record["outputs"][:, -1]
            labels = (self.task or infer_task(last, labels)).check(last, labels)
        return Trajectory(
            **record,
            row_ids=batch.row_ids,
            labels=labels,
            task=self.task,
            mask=source.mask,
            policy_context=source.policy_context or None,
            training=self.training,
        )

    def _loss(
        self, objective: Objective, trajectory: Trajectory, inputs: Tree, context: Mapping[str, Any]
    ) -> Tensor:
        """Return the objective's loss of a batch with labels, a scalar."""
        outputs, hazards, prior = trajectory.outputs, trajectory.hazard_logits, None
        labels, task = torch.as_tensor(trajectory.labels), self.task or trajectory.meaning
        if self.prior is not None and "prior" in objective.needs:
            dtype = outputs.dtype if hazards is None else hazards.dtype
            prior = self.prior(outputs.shape[1], dtype=dtype, device=outputs.device)
        unrolled = Unrolled(
            outputs,
            task.step_losses(outputs, labels),
            task,
            halting=None if hazards is None else trajectory.halting,
            prior=prior,
            labels=labels,
            features=trajectory.features,
            progress=self.progress,
            teacher_outputs=self._taught(inputs, context) if "teacher" in objective.needs else None,
            mask=trajectory.mask,
        )
        return task.mean_loss(objective.per_example(unrolled), labels)

    @torch.no_grad()
    def _taught(self, inputs: Tree, context: Mapping[str, Any]) -> Any:
        """Return the teacher's outputs for a batch, `(batch, …)`; None without a teacher."""
        if isinstance(self.teacher, PonderWrapper):
            return self.teacher(inputs, policy=LastStep(), **context).outputs
        return None if self.teacher is None else self.teacher(inputs, **unwrap(context))

    def _by_name(
        self, inputs: Tree, more: Sequence[Any], context: dict[str, Any]
    ) -> tuple[Tree, dict[str, Any]]:
        """Return the inputs, and context that was given by position beside that by name."""
        names = self.argument_names
        context = {**names.by_name(more), **context}
        if inputs is None:
            inputs = context.pop(names.inputs, None)
        if inputs is None:
            raise ArgumentTypeError(
                "inputs",
                expected=f"the inputs, first or by the name {names.inputs!r}",
                got="none",
                remedy="Pass model(x), or the model's own arguments by name.",
            )
        return inputs, context

    def _check_names(self, context: Mapping[str, Any]) -> None:
        """Refuse names that nothing reads, and such as are misspelt, where a stem or step takes any keyword."""
        named: set[str] = set(
            getattr(self.stem, "argument_names", ())
        )  # a captured module takes no others
        parts = [] if named else [part for part in (self.stem, *self.steps.fns) if part is not None]
        parameters = [parameter for part in parts for parameter in parameters_of(part).values()]
        named |= {parameter.name for parameter in parameters}
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
        for name in context.keys() - named:
            close = get_close_matches(
                name, _ARGUMENTS if takes_any else (*_ARGUMENTS, *named), n=1, cutoff=0.75
            )
            if close or not takes_any:
                expected = "an argument of the call, or a name that the stem or a step takes"
                remedy = (
                    f"Did you mean {close[0]!r}?"
                    if close
                    else "Leave it out: nothing would read it."
                )
                raise ArgumentError(
                    name,
                    expected=expected,
                    got=f"{name!r}, which none of them names",
                    remedy=remedy,
                )
        self._context_names |= context.keys()  # looked at once


torch.export.register_dataclass(PonderOutput)
