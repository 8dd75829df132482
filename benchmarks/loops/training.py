"""Training: a common trunk, from which each learner goes on with a loss of its own for as many updates.

* ``supervised``: deep supervision over a few steps that follow a warm-up of random length without gradient, so that
  a step improves any state that it has made itself; in half of the updates positions that are sure are frozen, as at
  inference. The Q-head learns, on detached states, whether the answer is right.
* ``pondernet``: Σ_n p_n ℓ_n + β KL(p ‖ geometric), for each position.
* ``act``: the loss of the mean answer and the ponder cost, for each position.

The trunk is trained as ``supervised``. All three have the same number of updates and the same problems.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.loops.solver import Solver
from benchmarks.loops.tasks import Problems, Task
from ponder import StepDistribution, objectives, priors
from ponder.tasks import task_named

__all__ = ["LEARNERS", "train"]

LEARNERS = ("supervised", "pondernet", "act")
TRUNK = 5 / 6
"""Share of the updates that all learners have in common."""
LEARNING_RATE = 2e-3
BETA, COST = 0.01, 0.01
_RISE, _SAVE_EVERY = 50, 50
_BARS = (None, None, None, 0.9, 0.99, 0.999)  # drawn for each update
_CLASSIFICATION = task_named("classification")


def _supervised(model: Solver, problems: Problems) -> Tensor:
    """Return the mean loss of the steps after a random warm-up, and that of the Q-head."""
    num_steps = model.task.num_steps
    steps = max(2, num_steps // 3)
    warm_up = int(torch.randint(num_steps - steps + 1, ()))
    bar = _BARS[int(torch.randint(len(_BARS), ()))]
    thoughts = model(problems.inputs, warm_up, steps, bar)
    outputs = model.head(thoughts)
    labels = problems.labels.unsqueeze(1).expand(outputs.shape[:-1])
    loss = F.cross_entropy(outputs.flatten(0, 2), labels.flatten())
    right = (outputs.detach().argmax(-1) == labels).float()
    quality = model.quality(thoughts.detach()).squeeze(-1)
    return loss + F.binary_cross_entropy_with_logits(quality, right)


def _objective(objective: objectives.Objective) -> Callable[[Solver, Problems], Tensor]:
    """Return the loss of an objective that sees each position as a row, over all steps."""

    def loss(model: Solver, problems: Problems) -> Tensor:
        num_steps = model.task.num_steps
        thoughts = model(problems.inputs, 0, num_steps).transpose(1, 2).flatten(0, 1)
        outputs, labels = model.head(thoughts), problems.labels.flatten()
        unrolled = objectives.Unrolled(
            outputs,
            _CLASSIFICATION.step_losses(outputs, labels),
            _CLASSIFICATION,
            halting=StepDistribution.from_hazard_logits(model.gate(thoughts).squeeze(-1)),
            prior=priors.Geometric(min(0.5, 3 / num_steps))(num_steps),
            labels=labels,
        )
        return objective.per_example(unrolled).mean()

    return loss


LOSSES: dict[str, Callable[[Solver, Problems], Tensor]] = {
    "supervised": _supervised,
    "pondernet": _objective(objectives.Ponder(BETA)),
    "act": _objective(objectives.ACT(COST)),
}


def train(task: Task, learner: str, seed: int, folder: Path) -> tuple[Solver, dict[str, Any]]:
    """Return a trained solver and the facts of its training; what was begun in the folder goes on.

    Every update's problems and random numbers follow from the seed and its number alone.
    """
    trunk_updates = round(task.updates * TRUNK)
    torch.manual_seed(seed)
    model = Solver(task)
    facts: dict[str, Any] = {"parameters": sum(each.numel() for each in model.parameters())}
    trunk = folder / f"{task.name}-trunk-s{seed}.pt"
    seconds = _stage(model, "supervised", seed, (0, trunk_updates), trunk)
    own = folder / f"{task.name}-{learner}-s{seed}.pt"
    more = _stage(model, learner, seed, (trunk_updates, task.updates), own)
    facts |= {"updates": task.updates, "trunk_seconds": round(seconds, 1)}
    return model.eval(), {**facts, "seconds": round(more, 1)}


def _stage(model: Solver, learner: str, seed: int, span: tuple[int, int], file: Path) -> float:
    """Train from one update to another, and return the seconds of the processor; saved every 50 updates."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    start, stop = span
    done, spent = start, 0.0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done, spent = saved["done"], saved["seconds"]
    task = model.task
    while done < stop:
        clock = time.process_time()
        number = seed * 10_000_019 + done
        torch.manual_seed(number)
        problems = task.draw("train", task.batch_size, number)
        falling = (stop - done) / (stop - start) if start else 1.0
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(falling, (done - start + 1) / _RISE)
        loss = LOSSES[learner](model, problems)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        done += 1
        spent += time.process_time() - clock
        if done % _SAVE_EVERY == 0 or done == stop:
            file.parent.mkdir(parents=True, exist_ok=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "done": done, "seconds": spent}, file)
            print(f"{file.stem}: {done} of {stop}, loss {float(loss.detach()):.3f}", flush=True)
    return spent
