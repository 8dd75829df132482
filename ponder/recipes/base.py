"""What a recipe is: one named combination of heads, prior, objectives and policy, for any number of steps."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from ponder._utils.registry import Registry
from ponder._utils.validation import check_choice, check_int, check_real, check_share, check_type
from ponder.errors import ArgumentError
from ponder.objectives import Objective
from ponder.parts.gradients import equilibrium
from ponder.parts.heads import ACTIVATIONS, LambdaHead, NormPerStep, PerStep
from ponder.parts.tasks import Custom, Task, TaskName, task_named
from ponder.parts.tasks.classification import Unnamed
from ponder.policies import ExitPolicy
from ponder.priors import Prior

__all__ = ["LambdaSpec", "Recipe", "Stage", "registry"]

registry: Registry[Recipe] = Registry("recipe", "ponder.recipes")


@dataclass(frozen=True)
class LambdaSpec:
    """The shape of a Lambda head; fields as in `ponder.LambdaHead`.

    Args:
        layers: Number of linear layers.
        history: Steps whose features it reads.
        initial: What stands for steps before the first.
        activation: The activation between the layers.
        start: Hazard of a new head: ``"half"``, ``"prior"``, the prior's at step 1, or a number in (0, 1). A small one
            is a deep start: halting begins late, as loops need that have to learn first what more steps are good for.

    Example:
        >>> LambdaSpec(layers=3, history=2).hazard(prior=None, num_steps=12)
        0.5
        >>> round(LambdaSpec(start="prior").hazard(priors.Geometric(0.1), num_steps=12), 3)
        0.1
    """

    layers: int = 1
    history: int = 1
    initial: Literal["stem", "zeros"] = "stem"
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    start: Literal["half", "prior"] | float = "half"

    def __post_init__(self) -> None:
        check_int("layers", self.layers)
        check_int("history", self.history)
        check_choice("initial", self.initial, ("stem", "zeros"))
        check_choice("activation", self.activation, ACTIVATIONS)
        if isinstance(self.start, str):
            check_choice("start", self.start, ("half", "prior"))
        else:
            check_share("start", self.start)

    def hazard(self, prior: Prior | None, num_steps: int) -> float:
        """The hazard that a new head starts at, for a prior over `num_steps` steps."""
        if not isinstance(self.start, str):
            return self.start
        if self.start == "half" or prior is None:
            return 0.5
        return min(max(float(prior(num_steps).pmf[0]), 1e-4), 1 - 1e-4)


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        objective: The training loss.
        train: ``"all"`` parameters; ``"early_heads"``: the heads of all steps but the last, on an encoder and last
            head that are frozen; or ``"lambda_head"``: the Lambda head and a learned prior, on everything else frozen.
        teacher: Whose answers an objective with a frozen teacher learns: those of the one that the user has
            ``"attached"``, or of the ``"previous"`` stage, a frozen copy of the model as this stage finds it.
        early_heads: What the heads of all steps but the last start from: they ``"go_on"``, or become copies of the
            ``"last"`` head, where the stage before has trained that one alone.
        mixing: α in (0, 1]: at its end the weights become α · trained + (1 − α) · those that the stage began with
            (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, Eq. 1), so that less is lost of what the model knew. Below
            1 with ``teacher="previous"`` alone, whose frozen copy holds what it began with. Of LoRA the two factors are
            mixed, which is near to a mixture of their products, and not the same. Early heads that began as
            copies of the last one are left as they were trained.

    Example:
        >>> [stage.train for stage in recipes.get("deebert").stages]
        ['all', 'early_heads']
        >>> Stage(objectives.FinalStep()).to_dict()["train"]
        'all'
    """

    objective: Objective
    train: Literal["all", "early_heads", "lambda_head"] = "all"
    teacher: Literal["attached", "previous"] = "attached"
    early_heads: Literal["go_on", "last"] = "go_on"
    mixing: float = 1.0

    def __post_init__(self) -> None:
        check_type("objective", self.objective, Objective)
        check_choice("train", self.train, ("all", "early_heads", "lambda_head"))
        check_choice("teacher", self.teacher, ("attached", "previous"))
        check_choice("early_heads", self.early_heads, ("go_on", "last"))
        check_real("mixing", self.mixing, 0.0, 1.0, open_low=True, remedy="Pass 1.0 to keep what was trained.")
        if self.mixing < 1 and self.teacher != "previous":
            raise ArgumentError(
                "mixing",
                expected="1.0 where the stage keeps no frozen copy of the model as it began",
                got=self.mixing,
                remedy='Pass teacher="previous".',
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "objective": self.objective.to_dict(),
            "train": self.train,
            "teacher": self.teacher,
            "early_heads": self.early_heads,
            "mixing": self.mixing,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """Inverse of `to_dict`, which had fewer fields before 0.2."""
        return cls(**{**data, "objective": Objective.from_dict(data["objective"])})


@dataclass(frozen=True)
class Recipe:
    """A named way to train and to exit.

    Args:
        name: The registered name.
        paper: The paper that it comes from.
        stages: Training stages, in order; their epochs are the trainer's business.
        policy: The exit policy at inference.
        otherwise: The exit policy where the task is not classification, for a `policy` that reads class probabilities;
            `policy` where None.
        lambda_head: The Lambda head, or None.
        prior: The prior of the halting step, or None.
        per_step_heads: One head a step, or one shared by all; ``"norms"`` for one that is shared behind a layer norm
            that each step but the last has of its own (`ponder.NormPerStep`).
        own_lambda_lr: Whether the paper gives the Lambda head a learning rate of its own. The benchmarks read it; `fit`
            and `parameter_groups` take the `lambda_lr` that they are given.
        early_gradient: How much the heads of early steps teach the steps before them: ``"full"``, or scaled down so
            that a step with more heads behind it hears little more than others (`ponder.parts.gradients.equilibrium`).
        tuned_for: The number of steps that prior and policy are meant for; `for_steps` rescales them. None where they
            mean any encoder's own steps.

    Example:
        >>> recipe = Recipe("mine", "nowhere", stages=(Stage(objectives.FinalStep()),), policy=policies.Patience(6))
        >>> recipe.for_steps(6).policy  # of 12 steps, where the recipe was tuned for them
        Patience(patience=3, tolerance=0.0)
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]
    policy: ExitPolicy
    otherwise: ExitPolicy | None = None
    lambda_head: LambdaSpec | None = None
    prior: Prior | None = None
    per_step_heads: bool | Literal["norms"] = False
    own_lambda_lr: bool = False
    early_gradient: Literal["full", "equilibrium"] = "full"
    tuned_for: int | None = 12

    def __post_init__(self) -> None:
        if not self.stages:
            raise ArgumentError("stages", expected="one stage or more", got="none", remedy="Pass (Stage(objective),).")
        for stage in self.stages:
            check_type("stages", stage, Stage, remedy="Pass (Stage(objective),).")
        for name in ("policy", "otherwise"):
            if getattr(self, name) is not None or name == "policy":
                check_type(
                    name, getattr(self, name), ExitPolicy, remedy="Pass an object: policies.Confidence(0.9), say."
                )
        if not isinstance(self.per_step_heads, bool):
            check_choice("per_step_heads", self.per_step_heads, ("norms",))
        check_choice("early_gradient", self.early_gradient, ("full", "equilibrium"))
        if self.early_gradient != "full" and not self.per_step_heads:
            raise ArgumentError(
                "early_gradient",
                expected="'full' where one head is shared by all steps",
                got=repr(self.early_gradient),
                remedy="Set per_step_heads=True.",
            )

    def for_steps(self, num_steps: int) -> Recipe:
        """The recipe for an encoder of `num_steps` steps: what its paper tuned is scaled."""
        tuned_for = num_steps if self.tuned_for is None else self.tuned_for
        otherwise = None if self.otherwise is None else self.otherwise.rescaled(tuned_for, num_steps)
        return dataclasses.replace(
            self,
            policy=self.policy.rescaled(tuned_for, num_steps),
            otherwise=otherwise,
            # A copy: what a model learns of its prior is its own, and not the recipe's.
            prior=None if self.prior is None else copy.deepcopy(self.prior.rescaled(tuned_for, num_steps)),
            tuned_for=None if self.tuned_for is None else num_steps,
        )

    def for_task(self, task: str | Task) -> Recipe:
        """The recipe with the policy that it has for a task, or for the name of one, such as ``"regression"``.

        A Lambda head that this policy does not read is left out, and so are the stages that train it alone, unless
        another stage needs its hazards.

        Raises:
            ArgumentError: The task is neither a `Task` nor the name of one of this library's.
        """
        chosen = self
        if not isinstance(task, Task):
            check_choice("task", task, (*get_args(TaskName), Custom.name, Unnamed.name))
            task = task_named(task)
        if not task.one_class and self.otherwise is not None:
            chosen = dataclasses.replace(self, policy=self.otherwise)
        stages = tuple(stage for stage in self.stages if stage.train != "lambda_head")
        if "hazard" in chosen.policy.needs.union(*(stage.objective.needs for stage in stages)):
            return chosen
        if len(stages) == len(self.stages):
            return chosen
        return dataclasses.replace(chosen, stages=stages, lambda_head=None, prior=None)

    def make_heads(
        self, width: int, num_outputs: int, num_steps: int, dropout: float = 0.1
    ) -> tuple[nn.Module, LambdaHead | None]:
        """A head (dropout, then linear) and the Lambda head, for features of `width`.

        Args:
            width: Size of the features.
            num_outputs: Classes, or 1 in regression.
            num_steps: N.
            dropout: Dropout in front of the linear layer of the head.
        """

        def head() -> nn.Module:
            return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

        scales = equilibrium(num_steps) if self.early_gradient == "equilibrium" else None
        if self.per_step_heads == "norms":
            made: nn.Module = NormPerStep(head(), width, num_steps, scales)
        else:
            made = PerStep((head() for _ in range(num_steps)), scales) if self.per_step_heads else head()
        spec = self.lambda_head
        if spec is None:
            return made, None
        start = spec.hazard(self.prior, num_steps)
        return made, LambdaHead(width, **{**dataclasses.asdict(spec), "start": start})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "stages": [stage.to_dict() for stage in self.stages],
            "policy": self.policy.to_dict(),
            "otherwise": None if self.otherwise is None else self.otherwise.to_dict(),
            "lambda_head": None if self.lambda_head is None else dataclasses.asdict(self.lambda_head),
            "prior": None if self.prior is None else self.prior.to_dict(),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Inverse of `to_dict`."""
        try:
            spec, prior, otherwise = data["lambda_head"], data["prior"], data.get("otherwise")
            return cls(
                **{
                    **data,
                    "stages": tuple(Stage.from_dict(stage) for stage in data["stages"]),
                    "policy": ExitPolicy.from_dict(data["policy"]),
                    "otherwise": None if otherwise is None else ExitPolicy.from_dict(otherwise),
                    "lambda_head": None if spec is None else LambdaSpec(**spec),
                    "prior": None if prior is None else Prior.from_dict(prior),
                }
            )
        except (KeyError, TypeError) as error:
            raise ArgumentError(
                "data", expected="what Recipe.to_dict() returned", got=repr(data), remedy=f"({error})"
            ) from error


registry.base = Recipe
