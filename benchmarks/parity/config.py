"""The two sizes of the experiment: one for a laptop, and the paper's."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.parity.task import Range, Scene

__all__ = ["PAPER", "SMALL", "ExperimentConfig"]


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything but the seed.

    Args:
        name: Stands in the names of result files.
        scenes: What is trained on and asked.
        hidden: Width of the recurrent cell.
        num_steps: N, the most steps that an answer may take.
        beta: Weight of PonderNet's divergence.
        rate: λ_p, the hazard of its geometric prior.
        tau: ACT's time penalty: the weight of its ponder cost.
        learning_rate: Learning rate of Adam, constant.
        batch_size: Vectors of an update.
        steps: Updates of each model.
        examples: Vectors of the validation set, and of the reported set.
        clip: Greatest norm of the gradient.
    """

    name: str
    scenes: tuple[Scene, ...]
    hidden: int
    num_steps: int
    beta: float
    rate: float
    tau: float
    learning_rate: float
    batch_size: int
    steps: int
    examples: int
    clip: float = 1.0


SMALL = ExperimentConfig(
    name="small",
    scenes=(
        Scene("interpolation", 8, Range(1, 8), Range(1, 8)),
        Scene("extrapolation", 12, Range(1, 6), Range(7, 12)),
    ),
    hidden=64,
    num_steps=10,
    beta=0.05,
    rate=0.2,
    tau=1e-3,
    learning_rate=3e-3,
    batch_size=128,
    steps=5000,
    examples=4000,
)

PAPER = ExperimentConfig(
    name="paper",
    scenes=(
        Scene("interpolation", 64, Range(1, 64), Range(1, 64)),
        Scene("extrapolation", 96, Range(1, 48), Range(49, 96)),
    ),
    hidden=128,
    num_steps=20,
    beta=0.01,
    rate=0.2,
    tau=1e-3,
    learning_rate=3e-4,
    batch_size=128,
    steps=1_000_000,
    examples=10_000,
)
