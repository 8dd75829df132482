"""Training of one model on vectors that are drawn afresh for every update."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.parity.config import ExperimentConfig
from benchmarks.parity.learners import Learner
from benchmarks.parity.task import Sample, Scene, draw
from ponder.engine.loop import Exits

__all__ = ["Training", "measure", "train"]

LOOKS = 20  # at the validation set, in a whole training


@dataclass(frozen=True)
class Training:
    """How a training went.

    Args:
        updates: Updates that were made.
        seconds: Wall-clock time, looks at the validation set included.
        history: Updates, and accuracy and mean exit step on the validation set, at each look.
    """

    updates: int
    seconds: float
    history: list[dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as plain JSON."""
        return asdict(self)


def train(
    learner: Learner,
    scene: Scene,
    config: ExperimentConfig,
    validation: Sample,
    *,
    seed: int,
    minutes: float | None = None,
    tell: Callable[[int, float | None], object] = lambda done, accuracy: None,
) -> Training:
    """Train `learner` in place with Adam, at a constant rate.

    Args:
        learner: The model.
        scene: The source of the vectors.
        config: Constants.
        validation: Looked at now and then; nothing depends on what is seen there.
        seed: Seed of the vectors that are drawn.
        minutes: Stop after this long; None makes all updates.
        tell: Told of updates made and, where there was a look, of the accuracy.
    """
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(learner.parameters(), lr=config.learning_rate)
    every, history, start, done = max(config.steps // LOOKS, 1), [], time.monotonic(), 0
    while done < config.steps and (minutes is None or time.monotonic() - start < 60 * minutes):
        learner.train()
        loss = learner.loss(draw(scene.size, scene.train, config.batch_size, generator))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), config.clip)
        optimizer.step()
        done += 1
        accuracy = None
        if done % every == 0:
            first = next(iter(measure(learner, validation).values()))
            accuracy = first["accuracy"]
            history.append({"updates": done, "accuracy": accuracy, "mean_exit_step": first["mean_exit_step"]})
        tell(done, accuracy)
    return Training(done, round(time.monotonic() - start, 1), history)


@torch.no_grad()
def measure(learner: Learner, sample: Sample) -> dict[str, dict[str, Any]]:
    """Accuracy and exit steps by way of halting: overall, for each difficulty, and there for each number of ones."""
    learner.eval()
    return {way: _measured(exits, sample) for way, exits in learner.answers(sample.inputs).items()}


def _measured(exits: Exits, sample: Sample) -> dict[str, Any]:
    right, steps = (exits.outputs.argmax(-1) == sample.labels).double(), exits.exit_step.double()
    ones = (sample.inputs == 1).sum(-1)
    by_difficulty = [
        {
            "difficulty": difficulty,
            "examples": int(rows.sum()),
            "accuracy": float(right[rows].mean()),
            "mean_exit_step": float(steps[rows].mean()),
            "by_ones": [
                {"ones": count, "examples": int(these.sum()), "accuracy": float(right[these].mean())}
                for count in ones[rows].unique().tolist()
                for these in [rows & (ones == count)]
            ],
        }
        for difficulty in sample.difficulty.unique().tolist()
        for rows in [sample.difficulty == difficulty]
    ]
    return {
        "accuracy": float(right.mean()),
        "mean_exit_step": float(steps.mean()),
        "steps_per_element": _slope(sample.difficulty.double(), steps),
        "by_difficulty": by_difficulty,
    }


def _slope(x: torch.Tensor, y: torch.Tensor) -> float:
    """The slope of the least-squares line of y over x; 0 where x does not vary."""
    x = x - x.mean()
    spread = float((x**2).sum())
    return float((x * (y - y.mean())).sum()) / spread if spread else 0.0
