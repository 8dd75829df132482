"""PonderNet on the parity task: is the number of ones among the elements of a vector odd?

Graves 2016, Section 3.1; Banino et al. 2021, Section 3.1. Of the elements of a vector k, drawn
uniformly from a range, are 1 or −1 and the others 0, in random places. The answer is 1 where the
number of ones is odd; elements that are −1 only hide them. The difficulty of a vector is k, and the
vectors of the reported set may be harder than any trained on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ponder
from benchmarks.environment import environment
from benchmarks.files import with_digest
from ponder import objectives, policies, priors

__all__ = ["FORMAT", "PAPER", "SMALL", "Experiment", "Range", "Scene", "draw", "pondernet", "run"]

FORMAT = "ponder-parity-2"
_VALIDATION_SEED, _TEST_SEED = 1_000_003, 2_000_003  # far from those of training


@dataclass(frozen=True)
class Range:
    """Difficulties from `low` to `high`, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class Scene:
    """Vectors of one size, with difficulties for training and validation, and for the reported set."""

    name: str
    size: int
    train: Range
    test: Range


@dataclass(frozen=True)
class Experiment:
    """Everything but the seed.

    Args:
        name: Stands in the names of result files.
        scenes: The vectors.
        hidden: Width of the recurrent cell.
        num_steps: N, the most steps that an answer may take.
        beta: Weight of the divergence.
        rate: Hazard of the geometric prior.
        learning_rate: Learning rate of Adam, constant.
        batch_size: Vectors of an update.
        steps: Updates.
        examples: Vectors of the validation set, and of the reported set.
    """

    name: str
    scenes: tuple[Scene, ...]
    hidden: int
    num_steps: int
    beta: float
    rate: float
    learning_rate: float
    batch_size: int
    steps: int
    examples: int


SMALL = Experiment(
    "small",
    (Scene("interpolation", 8, Range(1, 8), Range(1, 8)), Scene("extrapolation", 12, Range(1, 6), Range(7, 12))),
    hidden=64, num_steps=10, beta=0.05, rate=0.2, learning_rate=3e-3, batch_size=128, steps=5000, examples=4000,
)  # fmt: skip
PAPER = Experiment(
    "paper",
    (Scene("interpolation", 64, Range(1, 64), Range(1, 64)), Scene("extrapolation", 96, Range(1, 48), Range(49, 96))),
    hidden=128, num_steps=20, beta=0.01, rate=0.2, learning_rate=3e-4, batch_size=128, steps=1_000_000, examples=10_000,
)  # fmt: skip


def draw(
    size: int, levels: Range, count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw vectors with replacement: elements `(count, size)`, labels and difficulties `(count,)`.

    Example:
        >>> inputs, labels, difficulty = draw(6, Range(2, 2), 4, torch.Generator().manual_seed(0))
        >>> difficulty, bool(((inputs == 1).sum(-1) % 2 == labels).all())
        (tensor([2, 2, 2, 2]), True)
    """
    difficulty = torch.randint(levels.low, levels.high + 1, (count,), generator=generator)
    order = torch.rand(count, size, generator=generator).argsort(
        -1
    )  # a random permutation of the places
    signs = torch.randint(0, 2, (count, size), generator=generator) * 2 - 1
    inputs = torch.where(order < difficulty.unsqueeze(-1), signs, 0)
    return inputs.float(), (inputs == 1).sum(-1) % 2, difficulty


class Cell(nn.Module):
    """One step, h_n = GRU(x, h_{n−1}): the whole vector is read again at every step."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gru = nn.GRUCell(size, hidden)

    def forward(self, hidden: Tensor, vector: Tensor) -> Tensor:
        """Return h_n, `(batch, hidden)`, from h_{n−1} and x, `(batch, size)`."""
        state: Tensor = self.gru(vector, hidden)
        return state


class Start(nn.Module):
    """h_0 = 0, and x as the context of every step."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, vector: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return h_0, `(batch, hidden)`, and the context."""
        return vector.new_zeros(vector.shape[0], self.hidden), {"vector": vector}


def pondernet(size: int, setting: Experiment) -> ponder.PonderWrapper:
    """Return the recurrent cell with PonderNet's Lambda head, objective and prior."""
    return ponder.PonderWrapper(
        Cell(size, setting.hidden),
        num_steps=setting.num_steps,
        head=nn.Linear(setting.hidden, 2),
        lambda_head=ponder.LambdaHead(setting.hidden, start=setting.rate),
        prior=priors.Geometric(setting.rate),
        objective=objectives.Ponder(beta=setting.beta),
        policy=policies.Bernoulli(seed=0),
        stem=Start(setting.hidden),
        task="classification",
    )


def run(
    setting: Experiment, seed: int, advance: Callable[[], object] = lambda: None
) -> dict[str, Any]:
    """Train and measure every scene for one seed; plain JSON."""
    runs = []
    for scene in setting.scenes:
        torch.manual_seed(seed)
        model = pondernet(scene.size, setting)
        started = time.monotonic()
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=setting.learning_rate)
        for _ in range(setting.steps):
            inputs, labels, _ = draw(scene.size, scene.train, setting.batch_size, generator)
            loss = model(inputs, labels=labels).loss
            assert loss is not None  # there are labels
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            advance()
        training = {"updates": setting.steps, "seconds": round(time.monotonic() - started, 1)}
        sets = {"validation": (scene.train, _VALIDATION_SEED), "test": (scene.test, _TEST_SEED)}
        measured = {
            name: _measured(model.eval(), scene, *of, setting.examples) for name, of in sets.items()
        }
        runs.append({"scene": scene.name, "learner": "PonderNet", "training": training, **measured})
    made_by = {"format": FORMAT, "setting": asdict(setting), "seed": seed}
    return with_digest({**made_by, "runs": runs, "environment": environment()})


@torch.no_grad()
def _measured(
    model: ponder.PonderWrapper, scene: Scene, levels: Range, seed: int, examples: int
) -> dict[str, Any]:
    """Return accuracy and exit steps by way of halting, overall and for each difficulty."""
    inputs, labels, difficulty = draw(
        scene.size, levels, examples, torch.Generator().manual_seed(seed)
    )
    trajectory = model.unroll(inputs)
    ways = {
        "sampled": model.policy,
        "Q-exit 0.5": policies.Quantile(0.5),
        "last step": policies.LastStep(),
    }
    found = {}
    for name, policy in ways.items():
        exits = trajectory.replay(policy)
        right = (exits.outputs.argmax(-1) == labels).double()
        steps = exits.exit_step.double()
        by_level = [(level, difficulty == level) for level in difficulty.unique().tolist()]
        slope = 0.0
        if len(by_level) > 1 and float(steps.std()) > 0:
            slope = float(np.polyfit(difficulty.numpy(), steps.numpy(), 1)[0])
        found[name] = {
            "accuracy": float(right.mean()),
            "mean_exit_step": float(steps.mean()),
            "steps_per_element": slope,
            "by_difficulty": [
                {
                    "difficulty": level,
                    "accuracy": float(right[rows].mean()),
                    "mean_exit_step": float(steps[rows].mean()),
                }
                for level, rows in by_level
            ],
        }
    return found
