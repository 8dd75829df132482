"""One result: a learner of one configuration, trained from a seed and measured; one JSON file each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.checksum import check_copies, is_intact, own_seed, with_checksum
from benchmarks.command_line import check_free
from benchmarks.environment import environment
from benchmarks.puzzles.config import ExperimentConfig
from benchmarks.puzzles.learners import LEARNERS, Looped, learner_of
from benchmarks.puzzles.measuring import measure
from benchmarks.puzzles.streaming import MAX_BATCH, stream
from benchmarks.puzzles.training import train
from ponder._utils.files import read_json, write_json
from ponder.errors import DataError
from ponder.policies import ExitPolicy

__all__ = ["FORMAT", "check_together", "read_result", "read_results", "result_path", "run", "run_stream"]

FORMAT = "ponder-puzzles-1"
_LATER = {"bf16": False, "latent_updates": 2}  # fields that older results do not name


def run(
    config: ExperimentConfig,
    learner: str,
    seed: int,
    *,
    out: Path,
    states: Path,
    tell: Callable[[int, float], object] = lambda update, loss: None,
) -> dict[str, Any]:
    """Train and measure one learner; a result that is there is read, and a training that was cut off goes on.

    Args:
        config: Sizes and constants.
        learner: Its name.
        seed: Seed of the first weights and of all that is drawn in training.
        out: Folder of the results.
        states: Folder of the states of trainings.
        tell: Told of updates made and of the loss.

    Raises:
        DataError: The folder holds a result of another configuration, or the depth of the feed-forward network is
            not known since the looped solver has not been measured.
    """
    path = result_path(out, config, learner, seed)
    made_by = {"format": FORMAT, "setting": asdict(config), "learner": learner, "seed": seed}
    if path.exists():
        return _same(read_result(path), made_by, path)
    depth = equal_depth(config, seed, out) if learner == "feed-forward" else None
    torch.manual_seed(seed)
    model = learner_of(learner, config, depth)
    training = train(model, config, seed=seed, path=states / f"{path.stem}.pt", tell=tell)
    result = {**made_by, "depth": depth, "training": training.to_dict(), **measure(model, config)}
    write_json(path, with_checksum({**result, "environment": environment(torch.device("cpu"))}))
    return read_result(path)


def run_stream(
    config: ExperimentConfig,
    seed: int,
    *,
    out: Path,
    states: Path,
    repeats: int = 3,
    examples: int | None = None,
    max_batch: int = MAX_BATCH,
) -> dict[str, Any]:
    """Time the trained solver on a stream of mixed difficulty; measured anew every time.

    Args:
        config: Sizes and constants.
        seed: Seed of the training.
        out: Folder of the results; that of the looped solver says which rule and which fixed depth are compared.
        states: Folder of the states of trainings.
        repeats: How often each way is timed.
        examples: Problems of every level; as many as are reported where None.
        max_batch: Problems of a step.

    Raises:
        DataError: There is no result of the looped solver, or it is of another configuration, or its weights are gone.
        ArgumentError: The folder holds a stream of other problems, or of other batches.
    """
    looped_path = result_path(out, config, "looped", seed)
    if not looped_path.exists():
        raise DataError(f"{looped_path}: expected the looped solver's result, which names the rule. Run it first.")
    made_by = {"format": FORMAT, "setting": asdict(config), "learner": "looped", "seed": seed}
    looped = _same(read_result(looped_path), made_by, looped_path)
    state = states / f"{looped_path.stem}.pt"
    if not state.exists():
        raise DataError(
            f"{state}: expected the weights of the solver that {looped_path} is about; one that is trained anew is "
            f"another solver. Train and measure it here: run it with another folder of results."
        )
    problems = config if examples is None else replace(config, examples=examples)
    path = result_path(out, config, "stream", seed)
    check_free(path, {"problems": problems.examples * len(problems.task.levels), "max_batch": max_batch})
    torch.manual_seed(seed)
    learner = Looped(config)
    train(learner, config, seed=seed, path=state)
    learner.eval()
    policy = ExitPolicy.from_dict(looped["ways"][looped["best_rule"]]["policy"])
    depth = looped["ways"]["best fixed depth"]["policy"]["step"]
    measured = stream(learner.model, problems, policy, depth, repeats, max_batch)
    made_by = {"format": FORMAT, "setting": asdict(config), "learner": "stream", "seed": seed}
    write_json(path, with_checksum({**made_by, **measured, "environment": environment(torch.device("cpu"))}))
    return read_result(path)


def equal_depth(config: ExperimentConfig, seed: int, out: Path) -> int:
    """The layers of a feed-forward network that costs what the looped solver's best rule does, rounded up."""
    path = result_path(out, config, "looped", seed)
    if not path.exists():
        raise DataError(f"{path}: expected the looped solver's result, whose cost sets the depth. Run it first.")
    looped = read_result(path)
    _check_together(out, {"setting": asdict(config), "learner": "feed-forward", "seed": seed}, looped["setting"])
    steps: float = looped["ways"][looped["best_rule"]]["validation"]["mean_steps"]
    return -int(-steps // 1)


def result_path(out: Path, config: ExperimentConfig, learner: str, seed: int) -> Path:
    """The file of a result."""
    return out / f"{config.puzzle}-{learner}-s{seed}.json"


def read_result(path: Path) -> dict[str, Any]:
    """Read the result of one learner and seed.

    Raises:
        DataError: The file is foreign, or was edited.
    """
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise DataError(f"{path}: expected a result of the format {FORMAT!r}; got {result.get('format')!r}.")
    if not is_intact(result):
        raise DataError(f"{path}: expected what the benchmark wrote; it was edited since. Remove it, and run it again.")
    return {**result, "setting": {**_LATER, **result["setting"]}}


def read_results(out: Path, puzzle: str, *, whole: bool = True) -> dict[str, list[dict[str, Any]]]:
    """The results of a puzzle by learner, each by seed. Baselines may have been trained for fewer updates.

    Args:
        out: Their folder.
        puzzle: Name of the puzzle.
        whole: Whether the looped solver must be among them.

    Raises:
        DataError: There are none of the looped solver, or they are of different configurations, or one is a copy of
            another.
    """
    found = {learner: _by_seed(out, f"{puzzle}-{learner}-s*.json") for learner in (*LEARNERS, "stream")}
    if whole and not found["looped"]:
        raise DataError(f"{out}: no results {puzzle}-looped-s*.json. Run `python -m benchmarks.puzzles run {puzzle}`.")
    for result in (result for of_learner in found.values() for result in of_learner if found["looped"]):
        _check_together(out, result, found["looped"][0]["setting"])
    return {learner: results for learner, results in found.items() if results}


def _by_seed(out: Path, pattern: str) -> list[dict[str, Any]]:
    found = {path: own_seed(path, read_result(path)) for path in sorted(out.glob(pattern))}
    check_copies(found.items())
    return sorted(found.values(), key=_seed)


def check_together(out: Path, config: ExperimentConfig, learners: Iterable[str]) -> None:
    """Refuse, before anything is trained, a folder with results that could not stand in one table with the new ones.

    Raises:
        DataError: It holds a result of another configuration; baselines may be trained for fewer updates.
    """
    new = {"setting": asdict(config)}
    for path in sorted(out.glob(f"{config.puzzle}-*-s*.json")):
        found = read_result(path)
        if found["learner"] in ("looped", "stream"):
            for learner in learners:
                _check_together(out, {**new, "learner": learner, "seed": "any"}, found["setting"])
        elif "looped" in learners:
            _check_together(out, found, new["setting"])


def _check_together(out: Path, result: dict[str, Any], config: dict[str, Any]) -> None:
    may_differ = {} if result["learner"] in ("looped", "stream") else {"updates": config["updates"]}
    if {**result["setting"], **may_differ} != config:
        raise DataError(
            f"{out}: expected results of one configuration of {config['puzzle']}; those of {result['learner']}, seed "
            f"{result['seed']}, differ. Keep them in folders of their own."
        )


def _seed(result: dict[str, Any]) -> int:
    return int(result["seed"])


def _same(result: dict[str, Any], made_by: dict[str, Any], path: Path) -> dict[str, Any]:
    other = [name for name, value in made_by.items() if result.get(name) != value]
    if other:
        raise DataError(
            f"{path}: expected a result of this configuration; got one that differs in {', '.join(other)}. "
            f"Choose another folder, or the same options."
        )
    return result
