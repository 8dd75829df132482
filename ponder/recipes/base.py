"""Recipes: named combinations of heads, prior, objectives and policy, for any number of steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from ponder._utils.checks import check_choice
from ponder._utils.registry import Registry
from ponder.objectives import Objective
from ponder.policies import ExitPolicy
from ponder.priors import Prior
from ponder.tasks import Task, as_task

__all__ = ["LambdaSpec", "Recipe", "Stage", "registry"]

Settings: TypeAlias = dict[str, Any]
"""Hyper-parameters in plain JSON types, by name."""
registry: Registry[Recipe] = Registry("recipe", "ponder.recipes")


@dataclass(frozen=True)
class LambdaSpec:
    """The shape of a Lambda head; fields as in `ponder.LambdaHead`.

    Args:
        layers: Number of linear layers.
        history: Steps whose features it reads.
        initial: Features of the steps before the first: ``"stem"`` or ``"zeros"``.
        start: Hazard of a new head: ``"half"``, or ``"prior"``, the prior's at step 1.
        dropout: Probability of dropping an input of the head.
        widening: The width of the layers between, in widths of a feature.
        detach: Whether no gradient flows from the hazards into the encoder.

    Example:
        >>> round(recipes.LambdaSpec(start="prior").hazard(priors.Geometric(0.1), num_steps=12), 3)
        0.1
    """

    layers: int = 1
    history: int = 1
    initial: Literal["stem", "zeros"] = "stem"
    start: Literal["half", "prior"] = "half"
    dropout: float = 0.0
    widening: int = 1
    detach: bool = False

    def hazard(self, prior: Prior | None, num_steps: int) -> float:
        """Return the hazard that a new head starts at, for a prior over `num_steps` steps."""
        if self.start == "half" or prior is None:
            return 0.5
        return min(max(float(prior(num_steps).pmf[0]), 1e-4), 1 - 1e-4)


@dataclass(frozen=True)
class Stage:
    """One stage of training; `ponder.fit` runs it.

    Args:
        objective: The training loss.
        train: ``"all"`` parameters; ``"early_heads"``: the heads of all steps but the last, on an
            frozen encoder and last head; or ``"lambda_head"``: the Lambda head and a learned prior,
            while all else is frozen.
        teacher: The frozen teacher of the objective: ``"attached"``, the one that the user has set,
            or ``"previous"``, a frozen copy of the model before this stage.

    Example:
        >>> [stage.train for stage in recipes.get("deebert").stages]
        ['all', 'early_heads']
    """

    objective: Objective
    train: Literal["all", "early_heads", "lambda_head"] = "all"
    teacher: Literal["attached", "previous"] = "attached"

    def __post_init__(self) -> None:
        check_choice("train", self.train, ("all", "early_heads", "lambda_head"))

    def to_dict(self) -> Settings:
        """Return plain JSON types."""
        return {**vars(self), "objective": self.objective.to_dict()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Stage:
        """Invert `to_dict`."""
        return cls(**{**data, "objective": Objective.from_dict(data["objective"])})


@dataclass(frozen=True)
class Recipe:
    """A named way to train and to exit.

    Args:
        name: The registered name.
        paper: The paper that it comes from.
        stages: Training stages, in order; a trainer chooses their epochs.
        policy: The exit policy at inference.
        without_classes: The exit policy if the answer is not one class, for a `policy` that reads
            class probabilities. By default `policy`.
        lambda_head: The Lambda head; None if there are no hazards.
        prior: The prior of the halting step, if any.
        per_step_heads: Whether each step has a head, or all share one.
        own_lambda_lr: Whether the paper trains the Lambda head with another learning rate.
        tuned_for: The number of steps for which prior and policy were tuned; `for_steps` rescales
            them. None if they do not depend on the number of steps.

    Example:
        >>> stages = (recipes.Stage(objectives.FinalStep()),)
        >>> recipe = recipes.Recipe("mine", "nowhere", stages, policies.Patience(6))
        >>> recipe.for_steps(6).policy  # tuned for 12 steps
        Patience(patience=3, tolerance=0.0)
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]
    policy: ExitPolicy
    without_classes: ExitPolicy | None = None
    lambda_head: LambdaSpec | None = None
    prior: Prior | None = None
    per_step_heads: bool = False
    own_lambda_lr: bool = False
    tuned_for: int | None = 12

    def for_steps(self, num_steps: int) -> Recipe:
        """Return the recipe for an encoder of `num_steps` steps, with scaled prior and policy."""
        if self.tuned_for is None:
            # Nothing depends on the number of steps; a learned prior is copied all the same.
            tuned_for = num_steps
        else:
            tuned_for = self.tuned_for
        without_classes = self.without_classes
        if without_classes is not None:
            without_classes = without_classes.rescaled(tuned_for, num_steps)
        prior = self.prior
        if prior is not None:
            # A copy, since a model may train the weights of its prior, but not those of a recipe.
            prior = copy.deepcopy(prior.rescaled(tuned_for, num_steps))
        scaled = replace(
            self,
            policy=self.policy.rescaled(tuned_for, num_steps),
            without_classes=without_classes,
            prior=prior,
        )
        if self.tuned_for is None:
            return scaled
        return replace(scaled, tuned_for=num_steps)

    def for_task(self, task: str | Task) -> Recipe:
        """Return the recipe with its policy for a task, or for the name of a task.

        A Lambda head that neither it nor another stage reads is dropped, and so are the stages that
        train it alone.
        """
        kind = as_task(task)
        policy = self.policy
        if self.without_classes is not None and kind is not None and not kind.one_class:
            policy = self.without_classes
        stages = tuple(stage for stage in self.stages if stage.train != "lambda_head")
        needs = policy.needs.union(*(stage.objective.needs for stage in stages))
        if "hazard" in needs or stages == self.stages:
            return replace(self, policy=policy)
        return replace(self, policy=policy, stages=stages, lambda_head=None, prior=None)

    def to_dict(self) -> Settings:
        """Return plain JSON types."""
        settings: Settings = {**vars(self)}
        for name, value in vars(self).items():
            if isinstance(value, ExitPolicy | Prior):
                settings[name] = value.to_dict()
        settings["stages"] = [stage.to_dict() for stage in self.stages]
        if self.lambda_head is not None:
            settings["lambda_head"] = vars(self.lambda_head).copy()
        return settings

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Invert `to_dict`."""
        fields = dict(data)
        for name, kind in {
            "policy": ExitPolicy,
            "without_classes": ExitPolicy,
            "prior": Prior,
        }.items():
            if data[name] is not None:
                fields[name] = kind.from_dict(data[name])
        fields["stages"] = tuple(Stage.from_dict(stage) for stage in data["stages"])
        if data["lambda_head"] is not None:
            fields["lambda_head"] = LambdaSpec(**data["lambda_head"])
        return cls(**fields)
