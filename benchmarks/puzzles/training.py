"""Training: new problems for every update, and a state on disk from which a run that was cut off goes on."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.puzzles.config import ExperimentConfig
from benchmarks.puzzles.learners import Learner
from ponder.errors import DataError

__all__ = ["Training", "train"]

_CLIP = 1.0
_RISE = 200  # updates over which the learning rate rises
_FALL = 0.4  # the last part of training, over which it falls
_SAVED_EVERY = 200
_TOLD_EVERY = 100


@dataclass(frozen=True)
class Training:
    """What a training took.

    Args:
        updates: Number of updates of the weights.
        seconds: CPU seconds of the process, all sessions of a training that was cut off together.
        last_loss: The mean loss of the last hundred updates.
    """

    updates: int
    seconds: float
    last_loss: float

    def to_dict(self) -> dict[str, Any]:
        """Give all fields as plain JSON."""
        return asdict(self)


def train(
    learner: Learner,
    config: ExperimentConfig,
    *,
    seed: int,
    path: Path | None = None,
    tell: Callable[[int, float], object] = lambda update, loss: None,
) -> Training:
    """Train `learner` in place. Every update's problems and random numbers follow from the seed and its number alone.

    Args:
        learner: The model.
        config: Constants.
        seed: Seed of the problems and of what is drawn in training.
        path: File of the state, written now and then and read where it exists; None keeps none.
        tell: Told of updates made and of the loss.

    Raises:
        DataError: The file holds no state, or that of another training; it is left as it is.
    """
    optimizer = torch.optim.Adam(learner.parameters(), lr=config.learning_rate)
    made_by = {"setting": asdict(config), "seed": seed}
    done, seconds, losses = _restored(learner, optimizer, path, made_by)
    start = time.process_time() - seconds
    learner.train()
    while done < config.updates:
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(done, config.updates)
        losses.append(_update(learner, config, optimizer, (seed * 10_000_019 + done) % 2**63))
        done, losses = done + 1, losses[-100:]
        if done % _TOLD_EVERY == 0 or done == config.updates:
            tell(done, sum(losses) / len(losses))
        if path is not None and (done % _SAVED_EVERY == 0 or done == config.updates):
            progress = {"done": done, "seconds": time.process_time() - start, "losses": losses}
            _save(path, learner, optimizer, {**made_by, **progress})
    return Training(done, round(time.process_time() - start, 1), sum(losses) / len(losses))


def _update(learner: Learner, config: ExperimentConfig, optimizer: torch.optim.Optimizer, number: int) -> float:
    """One update; `number` is its seed."""
    torch.manual_seed(number)
    puzzle = config.task
    levels = puzzle.trained_levels  # the higher, the more often: what is hard takes longer to learn
    level = levels[int(torch.tensor(levels, dtype=torch.float).multinomial(1))]
    problems = puzzle.practice(level, config.batch_size, seed=number)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        loss = learner.loss(problems)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(learner.parameters(), _CLIP)
    optimizer.step()
    return float(loss.detach())


def _schedule(done: int, updates: int) -> float:
    """The share of the learning rate: up in a line, level, and down in a line."""
    rise = (done + 1) / min(_RISE, updates)
    fall = (updates - done) / (_FALL * updates)
    return min(1.0, rise, fall)


def _save(path: Path, learner: Learner, optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
    """The whole state, written beside the file and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    torch.save({"weights": learner.state_dict(), "optimizer": optimizer.state_dict(), **progress}, beside)
    beside.replace(path)


def _restored(
    learner: Learner, optimizer: torch.optim.Optimizer, path: Path | None, made_by: Mapping[str, Any]
) -> tuple[int, float, list[float]]:
    """Updates, seconds and losses so far; weights and optimiser are put back where there is a state."""
    if path is None or not path.exists():
        return 0, 0.0, []
    state = _read(path)
    other = [name for name, value in made_by.items() if state.get(name) != value]
    if other:
        raise DataError(
            f"{path}: expected a training of this configuration and seed; got one that differs in {', '.join(other)}. "
            f"Remove it, or choose another folder of states."
        )
    try:
        learner.load_state_dict(state["weights"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["done"]), float(state["seconds"]), list(state["losses"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:  # what torch raises for other weights
        raise _damaged(path, error) from error


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()  # torch does not hold the parts against their checksums
        if part is not None:
            raise ValueError(f"{part} is not what was written")
        state = torch.load(path, weights_only=True)
    except Exception as error:  # whatever is found: no archive, no pickle, a folder
        raise _damaged(path, error) from error
    if not isinstance(state, dict):
        raise _damaged(path, TypeError(f"it holds a {type(state).__name__}"))
    return state


def _damaged(path: Path, error: Exception) -> DataError:
    why = f"{type(error).__name__}: {error}".partition("\n")[0][:120]
    return DataError(
        f"{path}: expected the state of a training, as it was written; it cannot be read ({why}). It is left as it is: "
        "put back a copy to go on from, or move it away to train anew."
    )
