"""`PonderWrapper`: an encoder of stem, steps, readout and head that learns when to stop."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ponder import inference, recipes
from ponder import model as parts
from ponder._utils.checks import check_choice, check_int, check_type
from ponder._utils.seals import digest_of_tensors
from ponder._utils.trees import Tree, check_rows, unwrap
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.model.batch import ArgumentNames
from ponder.model.context_names import check_context_names
from ponder.model.heads import PerStep, make_heads
from ponder.model.padding import Padding, width_of
from ponder.model.readouts import Readout, ReadoutCall
from ponder.model.source import ModelSource, call_stem, unroll
from ponder.model.steps import Context, ContextDict, Step, Steps, as_module, optional_module
from ponder.objectives import Depth, FinalStep, Objective, Ponder, Progress
from ponder.policies import ExitPolicy, LastStep, ModelSpec, PolicyBatch, Quantile
from ponder.priors import Geometric, Prior
from ponder.recipes import Recipe, Stage
from ponder.running.loop import Answers, run
from ponder.running.source import Start
from ponder.tasks import Task, TaskName, as_task, infer_task, task_named
from ponder.trajectory import Trajectory, objective_loss

if TYPE_CHECKING:
    from ponder.inference.examples import DataSet
    from ponder.model.twins import Example

__all__ = ["PonderOutput", "PonderWrapper"]

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class PonderOutput(Answers):
    """The output of a call of a `PonderWrapper`.

    Args:
        outputs: In training the outputs of the last step, in evaluation those of each row at its
            exit, `(batch, …)`.
        exit_step: The step of `outputs`, `(batch,)` long, 1-based.
        loss: Scalar; None without labels. In training it is the objective's loss, in evaluation the
            task's loss at the exits.
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
        lambda_head: Features to hazard logits; None if there are no hazards. If features have
            positions, a `ponder.LambdaHead` reads their mean without padding; any other module
            reads them unchanged.
        prior: Prior of the halting step. By default `Geometric(0.1)`, scaled from 12 steps to N, if
            there is a Lambda head.
        objective: The training loss. By default `Ponder(0.5)` with a Lambda head and `FinalStep()`
            without one.
        policy: The exit policy. By default `Quantile(0.5)` with a Lambda head and `LastStep()`
            without one.
        stem: Inputs to hidden state, or to a pair (hidden, context) whose second item is a dict. It
            is called with the inputs and the context of the call. None is the identity.
        readout: Hidden state to features. None is the identity, for 2-D states.
        task: The meaning of outputs and labels: ``"classification"``, ``"regression"``,
            ``"multilabel"``, ``"token_classification"``, ``"span"``, or a callable (outputs,
            labels) → losses `(batch,)`. If None, integer labels are classes, and other labels are
            numbers.
        padding: Where lengths lie in the model's tensors; None if rows have no length, or if all
            have the same.
        checkpoint_steps: In training, keep only the hidden states between steps for the backward
            pass and compute the rest again, with the same dropout. It saves memory and costs one
            more forward pass. Steps with statistics (BatchNorm) update them twice.

    Raises:
        ArgumentError: The parts do not fit together; the message says what to change.

    Example:
        >>> model = PonderWrapper(
        ...     nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), lambda_head=LambdaHead(8)
        ... )
        >>> model.eval()(torch.randn(5, 8)).exit_step.shape
        torch.Size([5])
    """

    if TYPE_CHECKING:
        __call__: Callable[..., PonderOutput]  # which nn.Module types as Any

    progress: Progress | None = None
    """Progress of training, for objectives that depend on it; set by the trainer, never saved."""
    main_input_name: str | None = None
    """Name of the inputs in a batch that is a dict; None takes the first entry."""
    task: Task | None
    """The meaning of outputs and labels; None if the labels show it."""

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
            count = self.num_steps
            remedy = "Pass one head a step."
            check_int("the number of heads", len(head), count, count, remedy=remedy)
        self.lambda_head = optional_module("lambda_head", lambda_head)
        self.stem = optional_module("stem", stem)
        if isinstance(readout, ReadoutCall):
            self.readout = readout
        else:
            self.readout = ReadoutCall(readout, padding)
        self.padding = padding
        self.checkpoint_steps = checkpoint_steps
        self.task = as_task(task)
        self._context_names = frozenset[str]()
        self._teacher: Callable[..., Any] | None = None
        halts = self.lambda_head is not None
        if policy is None:
            policy = Quantile(0.5) if halts else LastStep()
        if objective is None:
            objective = Ponder(0.5) if halts else FinalStep()
        if prior is None and halts:
            prior = Geometric(0.1).rescaled(12, self.num_steps)
        self.policy = policy
        self.prior = prior
        self.objective = objective

    @classmethod
    def from_recipe(
        cls,
        module_or_steps: nn.Module | Step | Sequence[Step] | Steps,
        recipe: str | Recipe = "frozen",
        *,
        num_outputs: int,
        example: Example,
        num_steps: int | None = None,
        task: TaskName | LossFunction | Task | None = None,
        stem: Callable[..., Tree] | None = None,
        readout: Readout | None = None,
        policy: ExitPolicy | None = None,
        head_dropout: float = 0.1,
        layers: str | None = None,
        **recipe_options: Any,
    ) -> Self:
        """Build a model with new heads from an encoder and a recipe, which is scaled to its steps.

        Args:
            module_or_steps: A module with a list of layers, which is captured (`ponder.capture`),
                with its stem, masks and final norm; a list of steps; or one shared step, with
                `num_steps`. Its weights are used, not copied.
            recipe: A recipe or its name. Its stages of training become `stages`, which `ponder.fit`
                runs.
            num_outputs: The number of classes, labels or values. Without a task, 1 is regression.
            example: The arguments of a call of the encoder, for two or more rows: a tensor, or a
                dict of arguments by name. The first argument that holds a tensor is the `inputs` of
                the model, the others are its context.
            num_steps: N, for one shared step.
            task: The meaning of an answer. By default ``"classification"``, or ``"regression"`` for
                one output.
            stem: Inputs to h_0, for steps that do not read the inputs themselves.
            readout: Hidden state, or the output that a captured module computes from it, to
                features: `ponder.readouts.first_token`, say. By default the mean over the positions
                that are not padding, if there are positions.
            policy: An exit policy instead of the recipe's.
            head_dropout: Dropout in front of the head.
            layers: The name of the list of layers (``"encoder.layer"``); None takes the largest.
            recipe_options: Arguments of the recipe of that name, as for `recipes.get`.

        Raises:
            ArgumentError: The encoder cannot be read or run, or is a classifier that has a head.

        Example:
            >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            >>> encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
            >>> example = torch.randn(2, 5, 8)
            >>> model = PonderWrapper.from_recipe(
            ...     encoder, "palbert", num_outputs=3, example=example
            ... )
            >>> model.num_steps, model.eval()(torch.randn(4, 5, 8)).outputs.shape
            (3, torch.Size([4, 3]))
        """
        check_int("num_outputs", num_outputs)
        if task is None:
            task = "regression" if num_outputs == 1 else "classification"
        meaning = as_task(task)
        assert meaning is not None
        if isinstance(recipe, str):
            recipe = recipes.get(recipe, **recipe_options)
        elif recipe_options:
            raise ArgumentError(
                "recipe",
                expected=f"the name of a recipe, whose arguments are {sorted(recipe_options)}",
                got=recipe.name,
                remedy="Build the recipe with them: recipes.get(name, …).",
            )
        encoder = parts.read_encoder(
            module_or_steps, example, num_steps, meaning.per_position, stem, readout, layers
        )
        features = encoder.features
        count = encoder.steps.num_steps
        scaled = recipe.for_steps(count).for_task(meaning)
        head, lambda_head = make_heads(scaled, features.shape[-1], num_outputs, count, head_dropout)
        if lambda_head is not None:
            lambda_head = lambda_head.to(features)
        model = cls(
            steps=encoder.steps,
            stem=encoder.stem,
            readout=encoder.readout,
            padding=encoder.padding,
            head=head.to(features),
            lambda_head=lambda_head,
            prior=scaled.prior,
            policy=scaled.policy if policy is None else policy,
            task=meaning,
        )
        model.stages = scaled.stages
        model.main_input_name = encoder.main_input
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
        answer: Literal["exit", "expected"] = "exit",
        **context: Any,
    ) -> PonderOutput:
        """Run every step in train mode, and each row to its exit in eval mode.

        Args:
            inputs: The argument of the stem; without a stem, the hidden state h_0. It may be
                passed by its name too, as ``model(x=x, mask=mask)``.
            more: Context by position, in the order of `argument_names`.
            labels: Labels, batch first, for the loss.
            policy: An exit policy instead of the model's, for this call (eval mode).
            row_ids: Identity of each row, `(batch,)` integers, for seeded sampling. By default the
                positions of the rows.
            policy_context: Values of each row that only policies read (a budget, say), by name,
                `(batch, …)` each.
            num_steps: Number of steps; one shared step may run for more or fewer than in training.
            answer: In eval mode ``"exit"`` is the output at each row's exit, and ``"expected"`` the
                mean answer Σ_n p(n|x) y_n (`Trajectory.expected`), for which all steps are run.
            context: Passed to the stem and to every step. Tensors are per example, batch first,
                unless wrapped in `ponder.Shared`.

        Raises:
            ArgumentError: An argument does not fit the model, or a policy is given in train mode.
        """
        if inputs is None or more:
            inputs, context = self._by_name(inputs, more, context)
        check_choice("answer", answer, ("exit", "expected"))
        call = {"row_ids": row_ids, "policy_context": policy_context, **context}
        if not self.training and answer == "expected":
            return self._expect(inputs, num_steps, labels, call)
        if not self.training:
            return self._answer(inputs, policy, num_steps, labels, call)
        if policy is not None:
            raise ArgumentError(
                "policy",
                expected="None in training mode, where every step runs",
                got=policy,
                remedy="Call model.eval() first.",
            )
        objective = self.objective
        depth = objective.depth(self.depth(num_steps))
        trajectory = self._unroll(inputs, objective.needs, depth, labels, **call)
        loss = None
        if labels is not None:
            loss = self._loss(objective, trajectory, inputs, context)
        last = torch.full_like(trajectory.row_ids, depth.total)
        return PonderOutput(trajectory.outputs[:, -1], last, loss=loss, trajectory=trajectory)

    def _answer(
        self,
        inputs: Tree,
        policy: ExitPolicy | None,
        num_steps: int | None,
        labels: Tensor | None,
        call: Mapping[str, Any],
    ) -> PonderOutput:
        """Run each row to its exit, with the task's loss there if there are labels."""
        policy = self.checked(policy, num_steps)
        start = self.start(inputs, policy.needs, num_steps, **call)
        exits = run(start.source, policy, start.batch)
        loss = None
        if labels is not None:
            task = self.task or infer_task(exits.outputs, labels)
            labels = task.check(exits.outputs, labels)
            loss = task.mean_loss(task.losses(exits.outputs, labels), labels)
        return PonderOutput(exits.outputs, exits.exit_step, loss=loss)

    def _expect(
        self,
        inputs: Tree,
        num_steps: int | None,
        labels: Tensor | None,
        call: Mapping[str, Any],
    ) -> PonderOutput:
        """Run all steps, and return the mean answer of each row, with the task's loss of it."""
        trajectory = self.unroll(inputs, num_steps=num_steps, labels=labels, **call)
        outputs = trajectory.expected
        loss = None
        if labels is not None:
            task = trajectory.meaning
            checked = task.inside(torch.as_tensor(trajectory.labels), trajectory.mask)
            loss = task.mean_loss(task.losses(outputs, checked), checked)
        last = torch.full_like(trajectory.row_ids, self.depth(num_steps))
        return PonderOutput(outputs, last, loss=loss)

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
        """Check a call, run the stem, and return the rows before their first step.

        Arguments as for a call; `needs` names what will be read, as the needs of a policy do.
        """
        if not context.keys() <= self._context_names:
            check_context_names(context.keys(), self.stem, list(self.steps.fns))
            self._context_names |= context.keys()  # checked once
        stem = call_stem(self.stem, inputs, context)
        if policy_context is not None:
            check_rows("policy_context", policy_context, stem.rows)
        task = self.task or task_named(None)
        mask = None
        # Features may have positions although outputs have none.
        if task.per_position or ("features" in needs and self.padding is None):
            padding = self.padding or Padding()
            width = width_of(stem.hidden)
            mask = padding.positions(context, inputs, stem.context, width=width)
        source = ModelSource(
            self,
            stem.hidden,
            stem.context,
            use_hazard="hazard" in needs,
            mask=mask,
            policy_context=policy_context or {},
        )
        if row_ids is None:
            row_ids = torch.arange(stem.rows, device=source.device)
        else:
            check_rows("row_ids", row_ids, stem.rows)
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
        """Run all steps for all rows and record them; arguments as for a call, without a policy.

        With `keep_features` the features are recorded too, for policies that read them.
        """
        if inputs is None or more:
            inputs, call = self._by_name(inputs, more, call)
        needs: set[str] = set()
        if self.lambda_head is not None:
            needs.add("hazard")
        if keep_features:
            needs.add("features")
        return self._unroll(inputs, needs, Depth(0, self.depth(num_steps)), **call)

    def record(self, dataset: DataSet, **options: Any) -> Trajectory:
        """Record every step of every example of a data set; see `ponder.inference.record`."""
        return inference.record(self, dataset, **options)

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy of calls that name no other; one that is assigned is checked first."""
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self._policy = self.checked(policy)

    @property
    def prior(self) -> Prior | None:
        """The prior of the halting step; the weights of a learned one are the model's."""
        return self._prior

    @prior.setter
    def prior(self, prior: Prior | None) -> None:
        self.prior_weights: nn.Module | None = None
        if prior is not None:
            self.prior_weights = prior.module
        self._prior = prior

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training, which `ponder.fit` runs; each is checked if they are assigned."""
        return self._stages

    @stages.setter
    def stages(self, stages: tuple[Stage, ...]) -> None:
        for stage in stages:
            has_prior = self.prior is not None
            stage.objective.check(has_hazard=self.lambda_head is not None, has_prior=has_prior)
            stage.objective.depth(self.num_steps)  # raises if it reads a step that does not exist
        self._stages = stages

    @property
    def objective(self) -> Objective:
        """The training loss of the first stage; one that is assigned becomes the only stage."""
        return self.stages[0].objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        check_type("objective", objective, Objective)
        self.stages = (Stage(objective),)

    @property
    def teacher(self) -> Callable[..., Tree] | None:
        """The teacher of objectives that distil: a model, or (inputs, **context) → outputs.

        It is neither trained nor saved. A `PonderWrapper` teaches with its answers at full depth.
        """
        return self._teacher

    @teacher.setter
    def teacher(self, teacher: Callable[..., Tree] | None) -> None:
        if isinstance(teacher, nn.Module):
            teacher.eval()
        self.__dict__["_teacher"] = teacher  # PyTorch would make a module a part of this one

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign to the properties of this class by their setters, and to others as PyTorch does.

        PyTorch would take a module that is assigned to a property (a teacher, or a loss in the
        place of an objective) for a part of the model.
        """
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def argument_names(self) -> ArgumentNames:
        """The names of the inputs and of the context, in the order of a call and of a batch."""
        return ArgumentNames.of(self.stem, self.steps, self.main_input_name)

    @property
    def spec(self) -> ModelSpec:
        """The facts of the model that a policy is checked against."""
        task = self.task or task_named(None)
        return ModelSpec(self.num_steps, task, self.lambda_head is not None)

    def checked(self, policy: ExitPolicy | None, num_steps: int | None = None) -> ExitPolicy:
        """Return a policy, by default the model's, that can serve the model with this many steps.

        Raises:
            ArgumentError: The policy needs what the model does not give.
        """
        if policy is None and num_steps is None:
            return self.policy
        chosen = self.policy if policy is None else policy
        check_type("policy", chosen, ExitPolicy)
        chosen.check(replace(self.spec, num_steps=self.depth(num_steps)))
        return chosen

    def depth(self, num_steps: int | None) -> int:
        """Return the number of steps of a call: N, or any number of a shared step and head."""
        if num_steps is None or num_steps == self.num_steps:
            return self.num_steps
        check_int("num_steps", num_steps)
        if not self.steps.shared or isinstance(self.head, PerStep):
            raise ArgumentError(
                "num_steps",
                expected=f"{self.num_steps}, or None: each step or head has its place in the stack",
                got=num_steps,
                remedy="One shared step with one head can run for longer; a stack ends earlier "
                "with policies.FixedStep(3).",
            )
        return num_steps

    def weights_digest(self) -> str | None:
        """Return the SHA-256 of the weights that answers and exits come from, on any device."""
        tensors: list[Tensor] = []
        for part in (self.stem, self.steps, self.readout, self.head, self.lambda_head):
            if part is not None:
                tensors += part.state_dict().values()
        return digest_of_tensors(tensors)

    def train(self, mode: bool = True) -> Self:
        """Switch modes as PyTorch does, but keep parts that are frozen in evaluation mode.

        Parts are the stem, the steps, the readout and the heads. Parts of the encoder that have no
        parameters follow the encoder as a whole.
        """
        super().train(mode)
        if not mode:
            return self
        encoder = nn.ModuleList(
            part for part in (self.stem, *self.steps.fns, self.readout) if part is not None
        )
        heads = [self.head]
        if isinstance(self.head, PerStep):
            heads = list(self.head.heads)
        if self.lambda_head is not None:
            heads.append(self.lambda_head)
        for part in (encoder, *encoder, *heads):
            if {weight.requires_grad for weight in part.parameters()} == {False}:
                part.eval()
        return self

    def extra_repr(self) -> str:
        """Return the policy, the prior and the objective, which no submodule shows."""
        return f"policy={self.policy!r},\nprior={self.prior!r},\nobjective={self.objective!r}"

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
        record = unroll(source, depth, keep_features="features" in needs)
        if labels is not None:
            last = record.outputs[:, -1]
            task = self.task or infer_task(last, labels)
            labels = task.check(last, labels)
        return Trajectory(
            outputs=record.outputs,
            hazard_logits=record.hazard_logits,
            features=record.features,
            row_ids=batch.row_ids,
            labels=labels,
            task=self.task,
            mask=source.mask,
            policy_context=source.policy_context or None,
            training=self.training,
        )

    def _loss(
        self, objective: Objective, trajectory: Trajectory, inputs: Tree, context: Context
    ) -> Tensor:
        """Return the objective's loss of a batch with labels, a scalar."""
        taught = None
        if "teacher" in objective.needs:
            taught = self._teach(inputs, context)
        return objective_loss(
            objective,
            trajectory,
            torch.as_tensor(trajectory.labels),
            self.task or trajectory.meaning,
            prior=self.prior,
            progress=self.progress,
            teacher_outputs=taught,
        )

    @torch.no_grad()
    def _teach(self, inputs: Tree, context: Context) -> Tensor | None:
        """Return the teacher's outputs for a batch, `(batch, …)`; None without a teacher."""
        if self.teacher is None:
            return None
        if isinstance(self.teacher, PonderWrapper):
            outputs = self.teacher(inputs, policy=LastStep(), **context).outputs
        else:
            outputs = self.teacher(inputs, **unwrap(context))
        return torch.as_tensor(outputs)

    def _by_name(
        self, inputs: Tree, more: Sequence[object], context: ContextDict
    ) -> tuple[Tree, ContextDict]:
        """Return the inputs, and the context by name with that by position."""
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


torch.export.register_dataclass(PonderOutput)
