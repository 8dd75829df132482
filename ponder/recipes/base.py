"""What a recipe is: one named combination of heads, prior, objectives and policy, for any number of steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ponder._utils.registry import Registry
from ponder.errors import ArgumentError
from ponder.objectives import Objective
from ponder.parts.heads import LambdaHead, PerStep
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
        activation: Between the layers.
        start: Hazard of a new head: ``"half"``, ``"prior"``, the prior's at step 1, or a number in (0, 1). A small one
            is a deep start: halting begins late, as loops need that have to learn first what more steps are good for.
    """

    layers: int = 1
    history: int = 1
    initial: Literal["stem", "zeros"] = "stem"
    activation: Literal["tanh", "relu", "gelu"] = "tanh"
    start: Literal["half", "prior"] | float = "half"

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
        train: ``"all"`` parameters, or ``"early_heads"``: the heads of all steps but the last, on an encoder and
            last head that are frozen.
    """

    objective: Objective
    train: Literal["all", "early_heads"] = "all"


@dataclass(frozen=True)
class Recipe:
    """A named way to train and to exit.

    Args:
        name: The registered name.
        paper: Where it comes from.
        stages: Training stages, in order; their epochs are the trainer's business.
        policy: The exit policy at inference.
        otherwise: The exit policy where the task is not classification, for a `policy` that reads class probabilities;
            `policy` where None.
        lambda_head: The Lambda head, or None.
        prior: The prior of the halting step, or None.
        per_step_heads: One head a step, or one shared by all.
        own_lambda_lr: Whether the Lambda head has a learning rate of its own.
        tuned_for: The number of steps that prior and policy are meant for; `for_steps` rescales them. None where they
            mean any encoder's own steps.
    """

    name: str
    paper: str
    stages: tuple[Stage, ...]
    policy: ExitPolicy
    otherwise: ExitPolicy | None = None
    lambda_head: LambdaSpec | None = None
    prior: Prior | None = None
    per_step_heads: bool = False
    own_lambda_lr: bool = False
    tuned_for: int | None = 12

    def for_steps(self, num_steps: int) -> Recipe:
        """The recipe for an encoder of `num_steps` steps: what its paper tuned is scaled."""
        tuned_for = num_steps if self.tuned_for is None else self.tuned_for
        otherwise = None if self.otherwise is None else self.otherwise.rescaled(tuned_for, num_steps)
        return dataclasses.replace(
            self,
            policy=self.policy.rescaled(tuned_for, num_steps),
            otherwise=otherwise,
            prior=None if self.prior is None else self.prior.rescaled(tuned_for, num_steps),
            tuned_for=num_steps,
        )

    def for_task(self, task: str) -> Recipe:
        """The recipe with the policy that it has for a task, such as ``"classification"`` or ``"regression"``."""
        if task == "classification" or self.otherwise is None:
            return self
        return dataclasses.replace(self, policy=self.otherwise)

    def make_heads(
        self, width: int, num_outputs: int, num_steps: int, dropout: float = 0.1
    ) -> tuple[nn.Module, LambdaHead | None]:
        """A head (dropout, then linear) and the Lambda head, for features of `width`.

        Args:
            width: Size of the features.
            num_outputs: Classes, or 1 in regression.
            num_steps: N.
            dropout: In front of the linear layer of the head.
        """

        def head() -> nn.Module:
            return nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

        made = PerStep(head() for _ in range(num_steps)) if self.per_step_heads else head()
        spec = self.lambda_head
        if spec is None:
            return made, None
        start = spec.hazard(self.prior, num_steps)
        return made, LambdaHead(width, **{**dataclasses.asdict(spec), "start": start})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)},
            "stages": [{"objective": s.objective.to_dict(), "train": s.train} for s in self.stages],
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
                    "stages": tuple(Stage(Objective.from_dict(s["objective"]), s["train"]) for s in data["stages"]),
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


def freeze_for(stage: Stage, encoder: nn.Module | Sequence[nn.Module], head: nn.Module) -> None:
    """Set `requires_grad` so that training moves what `stage` trains and nothing else.

    What is frozen goes into evaluation mode too: its dropout is off, and its BatchNorm statistics do not move.

    Args:
        stage: The stage.
        encoder: Everything but the heads, as one module or several.
        head: The head; `PerStep` where the stage trains early heads.

    Raises:
        ArgumentError: The stage trains early heads and there is one shared head.
    """
    everything = stage.train == "all"
    if not everything and not isinstance(head, PerStep):
        raise ArgumentError(
            "stage",
            expected="one head a step for train='early_heads'",
            got="a shared head",
            remedy="Use PerStep.",
        )
    head.requires_grad_(True)
    frozen = [encoder] if isinstance(encoder, nn.Module) else list(encoder)
    for module in frozen:
        module.requires_grad_(everything)
    if not everything:
        assert isinstance(head, PerStep)
        head.heads[-1].requires_grad_(False)
        for module in (*frozen, head.heads[-1]):
            module.eval()
