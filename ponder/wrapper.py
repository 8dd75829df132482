"""`PonderWrapper`: any encoder, given as stem, steps, readout and head, that learns when to stop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from ponder import recipes
from ponder._utils.plain import check_holds_no_weights
from ponder._utils.trees import Tree
from ponder._utils.validation import check_flag, check_int, check_type
from ponder.engine.building import ReadoutName, main_input_of, read_encoder
from ponder.engine.losses import check_drawn, check_truncation, checked_labels, exit_loss, no_loss, training_loss
from ponder.engine.model import EarlyExitModel
from ponder.engine.teaching import FrozenTeacher, check_no_shared_weights, check_same_task, frozen_copy, used_by
from ponder.engine.unroll import checkpointed, no_steps, unroll
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.inference.prediction import Predictions, predict
from ponder.inference.recording import record
from ponder.objectives import Depth, FinalStep, Objective, Ponder, Progress
from ponder.objectives.base import no_depth
from ponder.parts.heads import LambdaHead, PerStep
from ponder.parts.padding import Padding
from ponder.parts.readouts import Readout
from ponder.parts.steps import Step, Steps
from ponder.parts.tasks import (
    Classification,
    Regression,
    Task,
    TaskName,
    TokenClassification,
    as_task,
    infer_task,
    task_named,
)
from ponder.parts.tasks.base import positions_of
from ponder.parts.tasks.custom import LossFunction
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.certified import is_certified
from ponder.priors import Geometric, Prior
from ponder.priors.base import check_mass
from ponder.recipes import Recipe, Stage, freeze_for, mix_weights, start_heads
from ponder.recipes.staging import check_heads
from ponder.trajectory import Trajectory

__all__ = ["PonderOutput", "PonderWrapper"]

_UNKNOWN_BEFORE = (  # or of a user's own
    "readout",
    "halting_readout",
    "halting_activation",
    "halting_initial",
    "gradient_scales",
)
_HELD_BY: WeakKeyDictionary[nn.Module, ref[PonderWrapper]] = WeakKeyDictionary()
"""The model that held the weights of a learned prior first."""


@dataclass(frozen=True, eq=False)
class PonderOutput:
    """What a call of a `PonderWrapper` gives.

    Args:
        outputs: Outputs of the last step in training, else of each row's exit, `(batch, …)`.
        exit_step: The step of `outputs`, `(batch,)` long, 1-based.
        loss: Scalar, where labels were given: in training the objective's, else the task's at the exits.
        trajectory: Every step, in training; None otherwise.

    Example:
        >>> out = model.train()(inputs, labels=labels)  # training: every step
        >>> out.loss.shape, out.trajectory.outputs.shape
        (torch.Size([]), torch.Size([300, 4, 3]))
        >>> out = model.eval()(inputs)  # inference: each row to its exit
        >>> out.outputs.shape, out.exit_step.shape, out.trajectory
        (torch.Size([300, 3]), torch.Size([300]), None)
    """

    outputs: Tensor
    exit_step: Tensor
    loss: Tensor | None = None
    trajectory: Trajectory | None = None


class PonderWrapper(EarlyExitModel):
    """An encoder that decides for each example after how many steps it stops.

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
        halting_readout: Hidden state to what the Lambda head reads, `(batch, width)`, where that is not what the head
            reads: with an answer a token, the mean over the tokens, say. The readout's features where None.
        task: What outputs and labels mean: ``"classification"``, ``"regression"``, ``"multilabel"``,
            ``"token_classification"``, ``"span"``, or a callable (outputs, labels) → losses `(batch,)`. Where None,
            integer labels are classes and others numbers.
        check_finite: Look for NaN and infinity after every step (costs a synchronisation each).
        padding: Where lengths lie in the model's tensors; None where rows have no length, or only one.
        checkpoint_steps: In training, keep only the hidden states between steps for the backward pass and compute
            the rest again: less memory, one more forward pass. An option of training, which is not saved.
        truncate_below: In training, stop the batch after the first step at which every row has less than this
            mass left, which goes to that step, and in the loss to one step more; None runs every step. An option of
            training, which is not saved.

    Raises:
        ArgumentError: The parts do not fit one another; every message says what to change.

    Example:
        >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), lambda_head=LambdaHead(8))
        >>> model.eval()(torch.randn(5, 8)).exit_step.shape
        torch.Size([5])
    """

    kept: tuple[nn.Module, ...] = ()
    """Modules whose answers are to stay what they are: training on labels is refused until they are frozen."""

    _began: FrozenTeacher | None = None  # the copy of the model that the stage which was started last began with

    _instead_of_stages = False  # whether an objective was assigned after the stages; so in what was pickled without it

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
        halting_readout: Readout | None = None,
        task: TaskName | LossFunction | Task | None = None,
        check_finite: bool = False,
        padding: Padding | None = None,
        checkpoint_steps: bool = False,
        truncate_below: float | None = None,
    ) -> None:
        super().__init__(
            steps,
            num_steps,
            head=head,
            lambda_head=lambda_head,
            policy=policy,
            stem=stem,
            readout=readout,
            halting_readout=halting_readout,
            task=task,
            check_finite=check_finite,
            padding=padding,
        )
        check_flag("checkpoint_steps", checkpoint_steps)
        self.checkpoint_steps = checkpoint_steps
        self._truncate_below = truncate_below
        pondering = self.lambda_head is not None
        if prior is None and pondering:
            prior = Geometric(0.1).rescaled(12, self.num_steps)
        self.prior = prior
        self.objective = objective or (Ponder(0.5) if pondering else FinalStep())
        self.progress: Progress | None = None
        """How far training has come, for objectives that change while it runs; set by the trainer, never saved."""
        self.main_input_name: str | None = None
        """The name of the inputs in a batch that is a dict; None where the first entry is taken."""
        self._stages: tuple[Stage, ...] = ()
        self.started_stage: Stage | None = None
        """The stage that `start_stage` started last; None before, in a model that was just read, and after `fit`."""
        self._frozen_by_stage: set[str] = set()
        self._told_of: ExitPolicy | None = None  # whose certificate training has been warned of
        self._teacher: FrozenTeacher | None = None

    @property
    def objective(self) -> Objective:
        """The training loss; assigning one checks it against the model."""
        return self._objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self._check_objective(objective, self.prior)
        self._objective, self._instead_of_stages = objective, True

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training of the recipe that the model was made from, which `ponder.fit` runs; else none.

        Assigning them checks each against the model, so that none is found out after others were trained.
        """
        return self._stages

    @stages.setter
    def stages(self, stages: Sequence[Stage]) -> None:
        for stage in stages:
            self._check_stage(stage)
        self._stages, self._instead_of_stages = tuple(stages), False

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

    def take_task(self, task: Task | None) -> None:
        """The same; and refuse one whose outputs the objective cannot learn from."""
        self.objective.check_task(task or task_named(None))
        super().take_task(task)

    @property
    def truncate_below(self) -> float | None:
        """The mass below which training leaves steps out; assigning it checks it against the objective."""
        return self._truncate_below

    @truncate_below.setter
    def truncate_below(self, mass: float | None) -> None:
        check_truncation(mass, self.objective, self.lambda_head is not None)
        self._truncate_below = mass

    @classmethod
    def from_recipe(
        cls,
        module_or_steps: nn.Module | Step | Sequence[Step] | Steps,
        recipe: str | Recipe = "palbert",
        *,
        num_outputs: int,
        example: Any,
        num_steps: int | None = None,
        task: TaskName | LossFunction | Task | None = None,
        stem: Callable[..., Tree] | None = None,
        readout: Readout | ReadoutName | None = None,
        policy: ExitPolicy | None = None,
        head_dropout: float = 0.1,
        layers: str | None = None,
    ) -> Self:
        """Put a recipe's heads on an encoder: the widths come from a dry run of the example.

        What the recipe's paper tuned is scaled to the number of steps. The stages of training are kept as `stages`:
        `ponder.fit` runs them all, `start_stage` starts one.

        Args:
            module_or_steps: A module with a list of layers, which is captured (`ponder.capture`), its stem, masks and
                final norm included; a list of steps; or one shared step, with `num_steps`. Its weights are used, not
                copied.
            recipe: A recipe or its name.
            num_outputs: Classes, labels or numbers; 1 is regression where no task is named.
            example: What the encoder is called with, for two rows or more: a tensor, or a dict of arguments by name, of
                which the first that holds a tensor is the `inputs` of the model, and the others are its context.
            num_steps: N, for one shared step.
            task: What an answer is; ``"classification"``, or ``"regression"`` for one output, where None.
            stem: Inputs to h_0, for steps that do not read the inputs themselves.
            readout: Hidden state to features: a function, or ``"mean"``, ``"first_token"`` or ``"last"``, which pool
                the positions. Where None, features with positions are averaged over those that are no padding.
            policy: An exit policy instead of the recipe's.
            head_dropout: Dropout in front of the head.
            layers: The name of the list of layers (``"encoder.layer"``), where the largest is not meant.

        Raises:
            ArgumentError: An unknown recipe, or an encoder that cannot be read or run; says what to change.

        Example:
            >>> layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            >>> encoder = nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
            >>> model = PonderWrapper.from_recipe(encoder, "palbert", num_outputs=3, example=torch.randn(2, 5, 8))
            >>> model.num_steps, model.eval()(torch.randn(4, 5, 8)).outputs.shape
            (3, torch.Size([4, 3]))
        """
        check_int("num_outputs", num_outputs)
        meaning = as_task(task) or task_named("regression" if num_outputs == 1 else "classification")
        chosen = recipes.get(recipe) if isinstance(recipe, str) else recipe
        check_type("recipe", chosen, Recipe)
        read = read_encoder(
            module_or_steps,
            example,
            num_steps,
            per_position=meaning.per_position,
            stem=stem,
            readout=readout,
            layers=layers,
        )
        scaled = chosen.for_steps(read.steps.num_steps).for_task(meaning)
        width = read.features.shape[-1]
        heads = scaled.make_heads(width, num_outputs, read.steps.num_steps, head_dropout)
        head, lambda_head = (part if part is None else part.to(read.features) for part in heads)
        assert head is not None
        model = cls(
            read.steps,
            head=head,
            lambda_head=lambda_head,
            prior=scaled.prior,
            objective=scaled.stages[0].objective,
            policy=scaled.policy if policy is None else policy,
            stem=read.stem,
            readout=read.readout,
            halting_readout=read.halting_readout if lambda_head is not None else None,
            task=meaning,
            padding=read.padding,
        )
        model.stages = scaled.stages
        model.main_input_name = main_input_of(example) if isinstance(example, Mapping) else None
        return model

    def forward(
        self,
        inputs: Tree,
        *,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        num_steps: int | None = None,
        **context: Any,
    ) -> PonderOutput:
        """Train mode: every step, and the objective's loss. Eval mode: each row to its exit.

        Args:
            inputs: What the stem takes; the hidden state h_0 where there is no stem.
            labels: Labels, batch first, for the loss.
            policy: Decides instead of the model's own policy, for this call (eval mode).
            row_ids: Who each row is, `(batch,)` integers, for seeded sampling; the position where None.
            policy_context: What policies may read of each row (a budget, say), by name, `(batch, …)` each; neither
                stem nor steps see it.
            num_steps: How many steps there are in this call, where one shared step can run for longer (or shorter)
                than it was trained; N where None. Policies and priors are asked about as many.
            context: Passed to the stem and to every step. Tensors are per example, batch first, unless wrapped
                in `ponder.Shared`.
        """
        if self.training:
            if policy is not None:
                raise ArgumentError(
                    "policy",
                    expected="None in training mode, where every step runs",
                    got=repr(policy),
                    remedy="Call model.eval() first.",
                )
            return self._train_on(inputs, context, labels, row_ids, num_steps)
        passed, policy = policy, self.checked(policy, num_steps)
        if passed is not None:
            self.look_at_certificate(policy, once=True)
        exits = self.exits(inputs, context, policy, row_ids=row_ids, policy_context=policy_context, num_steps=num_steps)
        loss = None if labels is None else exit_loss(self._task, exits.outputs, labels)
        if labels is not None and self._task is None:
            self._tell_of_numbers(policy, exits.outputs, labels)
        return PonderOutput(exits.outputs, exits.exit_step, loss)

    if TYPE_CHECKING:
        # What nn.Module types as Any: a call gives what `forward` gives, and takes what it takes. Spelled out, since
        # to pyright an assignment, `__call__ = forward`, has the type that nn.Module declares.
        def __call__(
            self,
            inputs: Tree,
            *,
            labels: Tensor | None = None,
            policy: ExitPolicy | None = None,
            row_ids: Tensor | None = None,
            policy_context: Mapping[str, Tensor] | None = None,
            num_steps: int | None = None,
            **context: Any,
        ) -> PonderOutput:
            """See `forward`."""

    def unroll(
        self,
        inputs: Tree,
        *,
        labels: Tensor | None = None,
        row_ids: Tensor | None = None,
        policy_context: Mapping[str, Tensor] | None = None,
        num_steps: int | None = None,
        keep_features: bool = False,
        **context: Any,
    ) -> Trajectory:
        """Run all steps for all rows and record them; arguments as for a call.

        In training mode dropout is on, which a trajectory remembers: a warning says so, since hardly anyone wants it.

        Args:
            inputs: What the stem takes.
            labels: Kept with the trajectory.
            row_ids: Who each row is.
            policy_context: Kept with the trajectory, for policies that read it.
            num_steps: How many steps, as for a call.
            keep_features: Record features too, for policies that read them.
            context: Context of the call.
        """
        if self.training:
            warnings.warn(
                "unroll in training mode: dropout is on, and what is recorded is not what the model answers. "
                "Call model.eval() first.",
                stacklevel=2,
            )
        depth = Depth(0, self.depth(num_steps))
        return self._unroll(inputs, context, labels, row_ids, policy_context, depth, keep_features=keep_features)

    def predict(self, dataset: Any, **options: Any) -> Predictions:
        """Every example of a data set to its exit, in its order, in batches of similar length; see `ponder.predict`."""
        return predict(self, dataset, **options)

    def record(self, dataset: Any, **options: Any) -> Trajectory:
        """Every step of every example of a data set, in its order; see `ponder.inference.recording.record`."""
        return record(self, dataset, **options)

    def attach_teacher(self, teacher: PonderWrapper | Callable[..., Tensor] | None) -> None:
        """Let objectives that distil from a frozen teacher learn from this one; it is neither trained nor saved.

        Args:
            teacher: A `PonderWrapper`, which answers at full depth, or a module or function called as the model is,
                (inputs, **context) → outputs `(batch, …)`. A copy of the model as it is now is `copy.deepcopy(model)`.
                None takes the teacher away.

        Raises:
            ArgumentError: The teacher is the model itself, shares weights with it, or is a wrapper of another task.

        Example:
            >>> from copy import deepcopy
            >>> model = PonderWrapper(nn.Linear(8, 8), num_steps=4, head=nn.Linear(8, 3), task="classification")
            >>> model.attach_teacher(deepcopy(model))
            >>> model.objective = objectives.Distillation(teacher="frozen")
            >>> model.train()(torch.randn(5, 8), labels=torch.randint(3, (5,))).loss.shape
            torch.Size([])
        """
        check_no_shared_weights(self, teacher)
        numbers = isinstance(self.task, Regression)
        if teacher is None:
            self._teacher = self._began = None
        elif isinstance(teacher, PonderWrapper):
            check_same_task(self.task, teacher.task)
            self._teacher = FrozenTeacher(_FullDepth(teacher), teacher, marked=True, numbers=numbers)
        elif callable(teacher):
            module = teacher if isinstance(teacher, nn.Module) else None
            classes = isinstance(self.task, Classification | TokenClassification)
            used = used_by(teacher, self)
            self._teacher = FrozenTeacher(teacher, module, numbers=numbers, classes=classes, used=used)
        else:
            raise ArgumentTypeError(
                "teacher",
                expected="a PonderWrapper, or a callable (inputs, **context) -> outputs (batch, …)",
                got=type(teacher).__name__,
                remedy="Pass copy.deepcopy(model), say.",
            )

    @property
    def has_teacher(self) -> bool:
        """Whether a frozen teacher is attached."""
        return self._teacher is not None

    def start_stage(self, stage: Stage) -> None:
        """Take the objective of a stage of training, its teacher and heads, and freeze what it does not train.

        What was frozen before, by nobody but the caller, stays frozen.
        """
        theirs = {name for name, weight in self.named_parameters() if not weight.requires_grad} - self._frozen_by_stage
        self._began = None
        if stage.teacher == "previous":
            self.attach_teacher(None)
            self.attach_teacher(frozen_copy(self))
            self._began = self._teacher
        start_heads(stage, self.head)
        self.objective, self.started_stage = stage.objective, stage
        self._instead_of_stages = False
        encoder = [part for part in (self.stem, self.steps, self.readout) if part is not None]
        freeze_for(stage, encoder, self.head, (self.lambda_head, self.halting_readout, self.prior_weights))
        self._frozen_by_stage = {name for name, weight in self.named_parameters() if not weight.requires_grad} - theirs
        for name, weight in self.named_parameters():
            if name in theirs:
                weight.requires_grad_(False)

    def check_stages(self, instead: str) -> None:
        """Refuse an objective that was assigned after the stages, before these are trained and it is not.

        Args:
            instead: How to train it alone.

        Raises:
            ArgumentError: No stage has this objective.
        """
        if self._instead_of_stages and self.stages and all(self.objective != one.objective for one in self.stages):
            raise ArgumentError(
                "objective",
                expected="that of one of the model's stages, which are trained with their own",
                got=f"{self.objective!r}, assigned after them, which none of them trains",
                remedy=f"To train it alone, {instead}; to train the stages, assign model.stages[0].objective again.",
            )

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let all weights learn, or none, as in PyTorch; what a stage has frozen is then the caller's own affair."""
        self._frozen_by_stage = set()
        return super().requires_grad_(requires_grad)

    def thaw_stage(self) -> None:
        """Take back what the stage that was started last has frozen; what the caller froze stays frozen."""
        for name, weight in self.named_parameters():
            if name in self._frozen_by_stage:
                weight.requires_grad_(True)
        self._frozen_by_stage = set()

    @property
    def freezing_stage(self) -> Stage | None:
        """The stage that was started, as long as what it has frozen is so; None where it froze nothing."""
        theirs = [weight for name, weight in self.named_parameters() if name in self._frozen_by_stage]
        return None if not theirs or any(weight.requires_grad for weight in theirs) else self.started_stage

    def leave_stages(self) -> None:
        """Be as before the first stage, but for the weights, after a training of all stages, or one that broke off.

        What the stages froze is thawed, their own teacher let go, and the objective that of the first one again.
        """
        if self._began is not None and self._teacher is self._began:
            self.attach_teacher(None)
        self.thaw_stage()
        self._began = self.progress = self.started_stage = None
        if self._stages:
            self._objective, self._instead_of_stages = self._stages[0].objective, False

    def finish_stage(self, stage: Stage) -> None:
        """Take leave of a stage's own teacher after training, and mix the weights as `Stage.mixing` says.

        Raises:
            ArgumentError: There is something to mix, and the stage was not started, or has been finished.
        """
        if stage.teacher != "previous":
            return
        began = None if self._began is None else self._began.module
        if stage.mixing < 1:
            if not isinstance(began, PonderWrapper):
                raise ArgumentError(
                    "stage",
                    expected="the stage that was started, once, after its training",
                    got="one whose frozen copy is not there",
                    remedy="Call model.start_stage(stage), train, then model.finish_stage(stage).",
                )
            mix_weights(stage, self, self.head, began)
        if self._teacher is self._began:
            self.attach_teacher(None)
        self._began = None

    def settings(self) -> dict[str, Any]:
        """Everything that makes up the model but its weights, in plain JSON types.

        What is a user's own, as a readout or a Lambda head of another class, has no name here, and is not compared.
        """
        halting, head = self.halting_readout or self.readout, self.lambda_head
        choices = head.choices() if isinstance(head, LambdaHead) else {}
        return {
            "num_steps": self.num_steps,
            "schedule": list(self.steps.schedule),
            "task": None if self.task is None else self.task.name,
            "readout": self.readout.known_name,
            "halting_readout": None if head is None else halting.known_name,
            "halting_activation": choices.get("activation"),
            "halting_initial": choices.get("initial"),
            "gradient_scales": list(self.head.gradient_scales) if isinstance(self.head, PerStep) else None,
            "policy": self.policy.to_dict(),
            "objective": self.objective.to_dict(),
            "prior": None if self.prior is None else self.prior.to_dict(),
            "stages": [stage.to_dict() for stage in self.stages],
            "instead_of_stages": self._instead_of_stages,
        }

    def apply_settings(self, settings: Mapping[str, Any]) -> None:
        """Take all but weights from what `settings` gave for a model of the same shape; everything or nothing."""
        own = self.settings()
        for key in ("num_steps", "schedule", "task", *_UNKNOWN_BEFORE):
            unknown = key in _UNKNOWN_BEFORE and None in (settings.get(key), own[key])
            if settings.get(key) != own[key] and not unknown:
                raise CheckpointError(
                    f"{key}: the saved model has {settings.get(key)!r}, this one {own[key]!r}. Build it as it was."
                )
        try:
            prior = None if settings["prior"] is None else Prior.from_dict(settings["prior"])
            objective = Objective.from_dict(settings["objective"])
            policy = self.checked(ExitPolicy.from_dict(settings["policy"]))
            stages = tuple(Stage.from_dict(stage) for stage in settings.get("stages", ()))
            self._check_prior(prior)
            self._check_objective(objective, prior)
        except Exception as error:  # what a constructor does with values that it was not written for is its own affair
            raise CheckpointError(
                f"the saved prior, objective or policy cannot be used: {type(error).__name__}: {error}"
            ) from error
        self._hold_prior(self.prior if prior == self.prior else self._own_weights(prior))  # an equal one has its own
        self._objective, self._policy, self._stages = objective, policy, stages
        self._instead_of_stages = settings.get("instead_of_stages", False) is True

    def extra_repr(self) -> str:
        """Policy, prior and objective, which no submodule shows."""
        return f"policy={self.policy!r},\nprior={self.prior!r},\nobjective={self.objective!r}"

    def _hold_prior(self, prior: Prior | None) -> None:
        weights = None if prior is None else prior.module
        if weights is not None:
            held_by = _HELD_BY.setdefault(weights, ref(self))()
            if held_by is not self and weights is not getattr(self, "prior_weights", None):
                warnings.warn(
                    f"prior: {prior!r} was given to another model before: its weights are that one's too, and go on "
                    "from where they are. Pass copy.deepcopy(prior), or make one for each model.",
                    stacklevel=4,
                )
        self._prior, self.prior_weights = prior, weights

    def _own_weights(self, prior: Prior | None) -> Prior | None:
        """A prior that was read, with the weights of the model's own where they fit: an optimizer may have them."""
        own, made = self.prior_weights, None if prior is None else prior.module
        if own is None or made is None:
            return prior
        shapes = [{name: value.shape for name, value in each.state_dict().items()} for each in (own, made)]
        if type(own) is type(made) and shapes[0] == shapes[1]:
            object.__setattr__(prior, "module", own)
        else:
            made.to(next(own.parameters()))
        return prior

    def _check_prior(self, prior: Prior | None) -> None:
        if prior is not None:
            check_type("prior", prior, Prior)
            if prior.module is None:
                check_holds_no_weights("prior", prior, self)
            check_mass(prior, prior(self.num_steps), self.num_steps)

    def _check_objective(self, objective: Objective, prior: Prior | None) -> None:
        check_type("objective", objective, Objective)
        check_holds_no_weights("objective", objective, self)
        objective.check(has_hazard=self.lambda_head is not None, has_prior=prior is not None)
        objective.check_task(self.spec.task)
        if prior is not None:
            objective.check_prior(prior(self.num_steps))
        if objective.draws_depth:
            check_drawn(objective, self.steps.shared and not isinstance(self.head, PerStep), self.num_steps)
        check_truncation(self.truncate_below, objective, self.lambda_head is not None)

    def _check_stage(self, stage: Stage) -> None:
        check_type("stage", stage, Stage)
        check_heads(stage, self.head, self.lambda_head)
        self._check_objective(stage.objective, self.prior)

    def _train_on(
        self,
        inputs: Tree,
        context: Mapping[str, Any],
        labels: Tensor | None,
        row_ids: Tensor | None,
        num_steps: int | None,
    ) -> PonderOutput:
        objective = self._objective.at(self.progress)
        total = self.depth(num_steps)
        needs, depth = objective.needs, objective.depth(total)
        fits = type(depth) is Depth and depth.warm_up >= 0 < depth.steps
        if not fits or (depth.warm_up + depth.steps > total and not objective.draws_depth):
            raise no_depth(objective, depth, total)
        trajectory = self._unroll(
            inputs,
            context,
            labels,
            row_ids,
            None,
            depth,
            keep_features="features" in needs,
            truncate_below=self._truncate_below,
        )
        outputs = trajectory.outputs[:, -1]
        last = torch.full_like(trajectory.row_ids, depth.warm_up + trajectory.num_steps)
        if labels is None:
            return PonderOutput(outputs, last, None, trajectory)
        if not len(trajectory):
            return PonderOutput(outputs, last, no_loss(outputs, self), trajectory)
        if self.kept:
            self.check_trainable()
        self._tell_of_stages()
        self._tell_of_certificate()
        if self._task is None:
            self._tell_of_numbers(self._policy, outputs, labels)
        prior = None
        if self._prior is not None and "prior" in needs:
            statistics = outputs if trajectory.hazard_logits is None else trajectory.hazard_logits
            prior = self._prior(depth.steps, dtype=statistics.dtype, device=outputs.device)
        taught = None
        if self._teacher is not None and "teacher" in needs:
            taught = self._teacher.outputs(inputs, context, outputs)
        loss = training_loss(trajectory, self._task, objective, prior, progress=self.progress, teacher_outputs=taught)
        return PonderOutput(outputs, last, loss, trajectory)

    def check_trainable(self) -> None:
        """Refuse to let `kept` learn from labels.

        Raises:
            ArgumentError: Some of its weights are not frozen.
        """
        if any(weight.requires_grad for module in self.kept for weight in module.parameters()):
            raise ArgumentError(
                "model",
                expected="a model whose encoder is to learn from labels",
                got=f"one that answers at full depth as its {type(self.kept[0]).__name__} does",
                remedy="Train its early heads with fit_exits(model, encodings). An encoder with exits learns from "
                "labels as PonderForSequenceClassification.from_encoder(…), say.",
            )

    def _tell_of_certificate(self) -> None:
        """Warn, once a policy, where training changes the weights that its certificate is about."""
        if self._told_of is not self._policy and is_certified(self._policy):
            self._told_of = self._policy
            warnings.warn(
                "The policy of this model was certified for the weights before this training, and what is promised "
                "need not hold after it. Certify one again, and assign it to model.policy.",
                stacklevel=4,
            )

    def _tell_of_numbers(self, policy: ExitPolicy, outputs: Tensor, labels: Tensor) -> None:
        """Warn where labels tell that a model without a task answers with numbers, and its policy reads classes."""
        if "output" in policy.needs and (meant := infer_task(outputs, labels)).numbers:
            warnings.warn(
                f"The labels of this model are numbers, it names no task, and {policy!r} then reads its outputs as "
                f"logits of classes: rows leave by probabilities of what are none. Name the task: task={meant.name!r}.",
                stacklevel=4,
            )

    def _tell_of_stages(self) -> None:
        """Warn, once, where a recipe has several stages and training goes on with one that nobody started.

        That is the first; in a folder of an earlier version, whose `fit` left the objective of the last, that one.
        """
        if len(self._stages) < 2 or self._instead_of_stages:
            return
        started = self.started_stage
        if started is not None and started.objective == self._objective:
            return
        place = next((n for n, stage in enumerate(self._stages) if stage.objective == self._objective), None)
        if place is None:
            return
        self.started_stage = self._stages[place]
        warnings.warn(
            f"The recipe of this model has {len(self._stages)} stages of training, and none was started: this trains "
            f"all that is not frozen with the objective of stage {place + 1} alone, {self._objective!r}, and nothing "
            "of what other stages teach, such as the heads of early steps. Call ponder.fit(model, …) or "
            "PonderTrainer(…, all_stages=True), which run all of them, or model.start_stage(stage) for each in turn.",
            stacklevel=4,
        )

    def _unroll(
        self,
        inputs: Tree,
        context: Mapping[str, Any],
        labels: Tensor | None,
        row_ids: Tensor | None,
        policy_context: Mapping[str, Tensor] | None,
        depth: Depth,
        *,
        keep_features: bool = False,
        truncate_below: float | None = None,
    ) -> Trajectory:
        use_hazard = self.lambda_head is not None
        source, batch = self.start(
            inputs,
            context,
            row_ids,
            policy_context,
            depth.total,
            use_hazard=use_hazard,
            use_features=keep_features,
        )
        if self.checkpoint_steps:
            source.run_step = checkpointed(self.steps)
        if batch.row_ids.shape[0]:
            record = unroll(
                source,
                depth.steps,
                warm_up=depth.warm_up,
                keep_features=keep_features,
                truncate_below=truncate_below,
            )
        else:
            record = no_steps(source, depth.steps, keep_features=keep_features)
        mask = source.mask
        if mask is not None:
            mask = positions_of(mask, batch.task, None if record.features is None else record.features[:, 0])
        return Trajectory(
            outputs=record.outputs,
            hazard_logits=record.hazard_logits,
            row_ids=batch.row_ids,
            features=record.features,
            labels=None if labels is None else checked_labels(self._task, record.outputs[:, -1], labels),
            task=None if self._task is None else self._task.name,
            mask=mask,
            policy_context=policy_context,
            training=self.training,
            task_object=self._task,
        )


torch.export.register_dataclass(PonderOutput)


class _FullDepth:
    """A wrapped model as a teacher: its outputs at the last step, whatever its policy."""

    def __init__(self, model: PonderWrapper) -> None:
        self.model = model

    def __call__(self, inputs: Tree, **context: Any) -> Tensor:
        return self.model(inputs, policy=LastStep(), **context).outputs
