"""What is trained: the looped solver and the baselines, all of the same step, each with its own loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from benchmarks.parity.act import Weights, act_weights
from benchmarks.puzzles.config import ExperimentConfig
from benchmarks.puzzles.puzzle import Problems
from benchmarks.puzzles.solvers import (
    ConvHead,
    ConvStem,
    ConvStep,
    PooledLambda,
    RecursiveStem,
    RecursiveStep,
    answer_state,
)
from ponder import objectives, policies, priors
from ponder.errors import ArgumentError

__all__ = [
    "ACT",
    "LEARNERS",
    "FeedForward",
    "Learner",
    "Looped",
    "PonderNet",
    "check_learner",
    "lambda_head",
    "learner_of",
]

_CHANNELS = {"prefix-sums": (1, 1), "mazes": (6, 2)}  # channels of the inputs, spatial dimensions
_SIDES = {"sudoku-4x4": 4, "sudoku-9x9": 9}
LEARNERS = ("looped", "pondernet", "act", "feed-forward")


class Learner(nn.Module):
    """A model of the benchmark."""

    model: ponder.PonderWrapper

    def loss(self, problems: Problems) -> Tensor:
        """What training minimises, a scalar."""
        loss: Tensor | None = self.model(problems.inputs, labels=problems.labels).loss
        assert loss is not None  # there are labels
        return loss


class Looped(Learner):
    """The solver, trained to go on from any depth (progressive loss, Bansal et al. 2022).

    Args:
        config: Sizes and constants.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        objective = objectives.RandomDepth(1, config.gradient_steps, warm_up=config.num_steps - 1)
        self.model = _wrapped(config, objective=objective)


class PonderNet(Learner):
    """The solver with a Lambda head and PonderNet's objective (Banino et al. 2021).

    Args:
        config: Sizes and constants.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.model = _wrapped(
            config,
            objective=objectives.Ponder(beta=config.beta),
            lambda_head=lambda_head(config),
            prior=priors.Geometric(config.rate),
            policy=policies.Bernoulli(seed=0),
        )


class ACT(Learner):
    """The solver under Adaptive Computation Time (Graves 2016): answers are mixed, and steps cost.

    Args:
        config: Sizes and constants; `tau` weighs the ponder cost.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.tau = config.tau
        self.model = _wrapped(config, objective=objectives.FinalStep(), lambda_head=lambda_head(config, start=0.1))

    def mixed(self, inputs: Tensor, num_steps: int | None = None) -> tuple[Tensor, Weights]:
        """Mixed outputs, and how they were mixed, in runs of `num_steps` at most (as in training, where None)."""
        in_training = self.model(inputs).trajectory if self.training else None
        trajectory = self.model.unroll(inputs, num_steps=num_steps) if in_training is None else in_training
        assert trajectory.hazard_logits is not None  # there is a Lambda head
        weights = act_weights(trajectory.hazard_logits.sigmoid())
        return torch.einsum("bs,bspc->bpc", weights.weights, trajectory.outputs), weights

    def loss(self, problems: Problems) -> Tensor:
        """The loss of the mixed answer, and the ponder cost."""
        outputs, mixed = self.mixed(problems.inputs)
        assert self.model.task is not None  # it was named
        return self.model.task.losses(outputs, problems.labels).mean() + self.tau * mixed.ponder_cost.mean()


class FeedForward(Learner):
    """A network of steps that have the same form, each with weights of its own.

    Args:
        config: Sizes and constants.
        depth: Number of steps.
    """

    def __init__(self, config: ExperimentConfig, depth: int) -> None:
        super().__init__()
        self.model = _wrapped(config, objective=objectives.FinalStep(), depth=depth)


def learner_of(name: str, config: ExperimentConfig, depth: int | None = None) -> Learner:
    """A new learner by its name; `depth` is that of the feed-forward network, N where None."""
    if check_learner(name) == "feed-forward":
        return FeedForward(config, config.num_steps if depth is None else depth)
    made: dict[str, Callable[[ExperimentConfig], Learner]] = {"looped": Looped, "pondernet": PonderNet, "act": ACT}
    return made[name](config)


def check_learner(name: str) -> str:
    """Refuse names of no learner."""
    if name not in LEARNERS:
        raise ArgumentError("learner", expected=f"one of {', '.join(LEARNERS)}", got=repr(name), remedy="Choose one.")
    return name


def _wrapped(config: ExperimentConfig, depth: int | None = None, **options: Any) -> ponder.PonderWrapper:
    """The stem, the step (shared, or `depth` of their own) and the head of a configuration's puzzle."""
    if config.puzzle in _CHANNELS:
        channels, dims = _CHANNELS[config.puzzle]
        stem: nn.Module = ConvStem(channels, config.width, dims)
        steps: list[nn.Module] = [ConvStep(channels, config.width, dims) for _ in range(depth or 1)]
        head: nn.Module = ConvHead(config.width, classes=2)
    else:
        side = _SIDES[config.puzzle]
        stem = RecursiveStem(side, config.width)
        steps = [RecursiveStep(config.width, latent_updates=config.latent_updates) for _ in range(depth or 1)]
        head = nn.Linear(config.width, side)
    return ponder.PonderWrapper(
        steps[0] if depth is None else steps,
        num_steps=config.num_steps if depth is None else None,
        stem=stem,
        readout=_readout(config),
        head=head,
        task="token_classification",
        **options,
    )


def _readout(config: ExperimentConfig) -> Callable[..., Tensor]:
    return ponder.readouts.identity if config.puzzle in _CHANNELS else answer_state


def lambda_head(config: ExperimentConfig, start: float = 0.05) -> PooledLambda:
    """A Lambda head for the features of a configuration's solver; halting starts late."""
    return PooledLambda(config.width, channels_first=config.puzzle in _CHANNELS, start=start)
