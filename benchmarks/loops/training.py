"""Training: a common trunk, from which each learner goes on with a loss of its own for as many updates.

* ``supervised``: deep supervision over a few steps that follow a warm-up of random length without gradient, so that
  a step improves any state that it has made itself; in half of the updates positions that are sure are frozen, as at
  inference. The Q-head learns, on detached states, whether the answer is right.
* ``pondernet``: Σ_n p_n ℓ_n + β KL(p ‖ geometric), for each position.
* ``act``: the loss of the mean answer and the ponder cost, for each position.
* ``all-right``: the objective of HRM and TRM for whole problems, by `ponder.fit`.

The trunk is trained as ``supervised``. All have the same number of updates and the same problems, unless
`Task.own_updates` gives the learners whose gate is trained in more of their own.

Then the learned gates get a budget of their own, on the states of the supervised solver, which stays as it is: a head
of two layers each, a record of `GATE_PROBLEMS` problems, and up to `GATE_UPDATES` updates, of which validation problems
choose (`train_gates`). So a learned gate and confidence after the fact judge the very same states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.loops.solver import RowSolver, Solver
from benchmarks.loops.tasks import Problems, Task
from ponder import LambdaHead, fit, objectives, priors
from ponder.tasks import task_named

__all__ = ["HEADS", "LEARNERS", "train", "train_gates"]

LEARNERS = ("supervised", "pondernet", "act", "all-right")
TRUNK = 5 / 6
"""Share of the updates that all learners have in common."""
LEARNING_RATE = 2e-3
BETA = 0.01
COST = 0.01
HEADS = ("hazards", "act", "q-head")
"""The gates that are trained on the states of the supervised solver."""
GATE_PROBLEMS = 512
GATE_BATCH = 16
GATE_UPDATES = 1000
GATE_CHECK = 100
"""Updates of a gate at most, and after how many each its loss on validation problems is looked at."""
_RISE = 50
_SAVE_EVERY = 50
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
        thoughts = model(problems.inputs, 0, model.task.num_steps).transpose(1, 2).flatten(0, 1)
        logits = model.gate(thoughts).squeeze(-1)
        return _loss_of_gate(objective, model.head(thoughts), logits, problems.labels.flatten())

    return loss


def _loss_of_gate(
    objective: objectives.Objective, outputs: Tensor, logits: Tensor, labels: Tensor
) -> Tensor:
    """Return the mean loss of positions as rows, from outputs `(rows, steps, classes)` and hazard logits."""
    num_steps = logits.shape[1]
    unrolled = objectives.Unrolled(
        outputs,
        _CLASSIFICATION.step_losses(outputs, labels),
        _CLASSIFICATION,
        hazard_logits=logits,
        prior=priors.Geometric(min(0.5, 3 / num_steps))(num_steps),
        labels=labels,
    )
    return objective.per_example(unrolled).mean()


_PONDER = objectives.Ponder(BETA)
_ACT = objectives.ACT(COST)
LOSSES: dict[str, Callable[[Solver, Problems], Tensor]] = {
    "supervised": _supervised,
    "pondernet": _objective(_PONDER),
    "act": _objective(_ACT),
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
    last = task.updates
    if learner != "supervised" and task.own_updates is not None:
        last = trunk_updates + task.own_updates
    if learner == "all-right":
        more = _fit_all_right(model, seed, (trunk_updates, last), own)
    else:
        more = _stage(model, learner, seed, (trunk_updates, last), own)
    facts |= {"updates": last, "trunk_seconds": round(seconds, 1)}
    return model.eval(), {**facts, "seconds": round(more, 1)}


def _stage(model: Solver, learner: str, seed: int, span: tuple[int, int], file: Path) -> float:
    """Train from one update to another, and return the seconds of the processor; saved every 50 updates."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    start, stop = span
    done = start
    spent = 0.0
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        done = saved["done"]
        spent = saved["seconds"]
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


class _Updates:
    """The problems of the updates from one to another, anew at each iteration, as `ponder.fit` reads them."""

    def __init__(self, task: Task, seed: int, span: tuple[int, int]) -> None:
        self.task = task
        self.numbers = [seed * 10_000_019 + update for update in range(*span)]

    def __len__(self) -> int:
        return len(self.numbers)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for number in self.numbers:
            problems = self.task.draw("train", self.task.batch_size, number)
            yield problems.inputs, problems.labels


def _fit_all_right(model: Solver, seed: int, span: tuple[int, int], file: Path) -> float:
    """Train with the objective of HRM and TRM, and return the seconds of the processor; saved at the end."""
    if file.exists():
        saved = torch.load(file, weights_only=True)
        model.load_state_dict(saved["model"])
        return float(saved["seconds"])
    clock = time.process_time()
    updates = _Updates(model.task, seed, span)
    fit(
        RowSolver(model),
        updates,
        epochs=1,
        lr=LEARNING_RATE,
        head_lr=None,
        warmup=min(0.5, _RISE / len(updates)),
        seed=seed,
    )
    spent = time.process_time() - clock
    torch.save({"model": model.state_dict(), "seconds": spent}, file)
    return spent


@dataclass(frozen=True, eq=False)
class _States:
    """States of the supervised solver: thoughts and outputs `(rows, steps, …)` of positions, and their labels.

    `rows` is the number of positions of a problem times that of problems, problem by problem.
    """

    thoughts: Tensor
    outputs: Tensor
    labels: Tensor

    def take(self, rows: Tensor) -> _States:
        """Return some of the rows."""
        return _States(self.thoughts[rows], self.outputs[rows], self.labels[rows])


def _loss_of_head(name: str, head: nn.Module, states: _States) -> Tensor:
    """Return the loss of one gate on states that do not change."""
    logits = head(states.thoughts)
    if name == "q-head":
        right = (states.outputs.argmax(-1) == states.labels[:, None]).float()
        return F.binary_cross_entropy_with_logits(logits, right)
    objective = _PONDER if name == "hazards" else _ACT
    return _loss_of_gate(objective, states.outputs, logits, states.labels)


@torch.no_grad()
def _states_of(solver: Solver, problems: Problems) -> _States:
    """Return the states of all steps of problems; batches take turns at the bars of training, frozen as there."""
    thoughts = []
    for number, inputs in enumerate(problems.inputs.split(64)):
        bar = _BARS[number % len(_BARS)]
        thoughts.append(solver(inputs, 0, solver.task.num_steps, bar).transpose(1, 2).flatten(0, 1))
    every = torch.cat(thoughts)
    return _States(every, solver.head(every), problems.labels.flatten())


def train_gates(
    solver: Solver, seed: int, file: Path
) -> tuple[Mapping[str, nn.Module], dict[str, Any]]:
    """Return the heads of `HEADS` on a supervised solver, trained on its states, and the facts of their training.

    Each head keeps the weights with the least loss on validation problems, among those of every
    `GATE_CHECK` updates. Heads that are in the file are read from there.
    """
    task = solver.task
    torch.manual_seed(seed)
    heads = {name: LambdaHead(task.width, layers=2, start=0.1) for name in HEADS}
    if file.exists():
        saved = torch.load(file, weights_only=True)
        for name, head in heads.items():
            head.load_state_dict(saved["heads"][name])
        return heads, saved["facts"]
    clock = time.process_time()
    number = seed * 10_000_019 + task.updates
    states = _states_of(solver, task.draw("train", GATE_PROBLEMS, number))
    held_out = _states_of(solver, task.draw("validation", GATE_PROBLEMS // 4, 0))
    facts: dict[str, Any] = {"updates": GATE_UPDATES, "problems": GATE_PROBLEMS}
    for name, head in heads.items():
        best, kept = _train_head(name, head, states, held_out, task.length)
        facts[name] = {"kept": kept, "held_out": round(best, 5)}
    facts["seconds"] = round(time.process_time() - clock, 1)
    saved = {name: head.state_dict() for name, head in heads.items()}
    torch.save({"heads": saved, "facts": facts}, file)
    return heads, facts


def _train_head(
    name: str, head: nn.Module, states: _States, held_out: _States, length: int
) -> tuple[float, int]:
    """Train one head in place, and return its least loss on held-out states, and after how many updates it was."""
    optimizer = torch.optim.Adam(head.parameters(), lr=LEARNING_RATE)
    best = float("inf")
    kept = 0
    weights = head.state_dict()
    for done in range(1, GATE_UPDATES + 1):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - (done - 1) / GATE_UPDATES)
        problems = torch.randint(len(states.labels) // length, (GATE_BATCH, 1))
        loss = _loss_of_head(
            name, head, states.take((problems * length + torch.arange(length)).flatten())
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if done % GATE_CHECK:
            continue
        with torch.no_grad():
            now = float(_loss_of_head(name, head, held_out))
        if now < best:
            best = now
            kept = done
            weights = {key: value.clone() for key, value in head.state_dict().items()}
    head.load_state_dict(weights)
    return best, kept
