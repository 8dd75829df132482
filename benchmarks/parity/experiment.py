"""One seed of the experiment: every model in every scene, on evaluation sets that no seed changes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.checksum import check_copies, is_intact, own_seed, with_checksum
from benchmarks.environment import environment
from benchmarks.parity.act import ACT
from benchmarks.parity.config import ExperimentConfig
from benchmarks.parity.learners import Learner, PonderNet
from benchmarks.parity.task import Range, Sample, Scene, draw
from benchmarks.parity.training import measure, train
from ponder._utils.files import read_json, write_json
from ponder.errors import DataError

__all__ = ["FORMAT", "LEARNERS", "differences", "evaluation_sets", "experiment", "read_result", "read_results"]

FORMAT = "ponder-parity-2"
LEARNERS: dict[str, Callable[[int, ExperimentConfig], Learner]] = {"PonderNet": PonderNet, "ACT": ACT}
_VALIDATION_SEED, _TEST_SEED = 1_000_003, 2_000_003  # far from those of training

Tell = Callable[[str, int, float | None], object]


def experiment(
    config: ExperimentConfig,
    seed: int,
    minutes: float | None = None,
    tell: Tell = lambda *_: None,
    parts: Path | None = None,
) -> dict[str, Any]:
    """Train and measure everything for one seed.

    Args:
        config: The size of the experiment.
        seed: Seed of the first weights and of the vectors in training.
        minutes: Most minutes for each model; None makes all updates.
        tell: Told of the model, its updates, and the validation accuracy where it was just measured.
        parts: Folder in which every model that is done leaves its numbers, so that an experiment that was cut off goes
            on after them; the caller empties it.

    Returns:
        The result, as plain JSON.
    """
    experiment_of = {"format": FORMAT, "setting": asdict(config), "seed": seed, "minutes": minutes}
    runs = []
    for scene in config.scenes:
        for name in LEARNERS:
            path = None if parts is None else parts / f"{scene.name}-{name}.json"
            done = _part(path, experiment_of)
            run = done or _run(config, scene, name, seed, minutes, tell)
            if path is not None and done is None:
                write_json(path, with_checksum({**experiment_of, "run": run}))
            runs.append(run)
    return with_checksum({**experiment_of, "runs": runs, "environment": environment(torch.device("cpu"))})


def evaluation_sets(scene: Scene, examples: int) -> tuple[Sample, Sample]:
    """The validation set, of the difficulties trained on, and the reported set: the same for every seed and model."""
    return _fixed(scene.size, scene.train, examples, _VALIDATION_SEED), _fixed(
        scene.size, scene.test, examples, _TEST_SEED
    )


def read_results(folder: Path, name: str) -> list[dict[str, Any]]:
    """The results of the configuration `name` in a folder, by seed: those of one experiment.

    Raises:
        DataError: There are none, or a file is foreign, or they differ in more than the seed.
    """
    found = {path: own_seed(path, read_result(path)) for path in sorted(folder.glob(f"{name}-s*.json"))}
    check_copies(found.items())
    results = sorted(found.values(), key=lambda result: int(result["seed"]))
    if not results:
        raise DataError(f"{folder}: no results {name}-s*.json. Run `python -m benchmarks.parity` first.")
    for result in results[1:]:
        differing = differences(results[0], result["setting"], result["minutes"])
        if differing:
            raise DataError(
                f"{folder}: expected seeds of one experiment; seeds {results[0]['seed']} and {result['seed']} differ "
                f"in {', '.join(differing)}. Keep them in folders of their own."
            )
    return results


def read_result(path: Path) -> dict[str, Any]:
    """Read the result of one seed, which must be as the experiment wrote it."""
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise DataError(f"{path}: expected a result of the format {FORMAT!r}; got {result.get('format')!r}.")
    if not is_intact(result):
        raise DataError(
            f"{path}: expected what the experiment wrote; it was edited since. Remove it, and run it again."
        )
    return result


def differences(result: dict[str, Any], config: dict[str, Any], minutes: float | None) -> list[str]:
    """Name the fields in which a result is of another experiment."""
    fields = [name for name, value in config.items() if result["setting"].get(name) != value]
    return fields + ["minutes"] * (result["minutes"] != minutes)


def _part(path: Path | None, experiment_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """The numbers of a model that is done, or None: where there are none, or others than those of this experiment."""
    if path is None or not path.exists():
        return None
    part = read_json(path)
    run: dict[str, Any] | None = part.get("run")
    return run if part == json.loads(json.dumps(with_checksum({**experiment_of, "run": run}))) else None


def _run(
    config: ExperimentConfig, scene: Scene, name: str, seed: int, minutes: float | None, tell: Tell
) -> dict[str, Any]:
    validation, test = evaluation_sets(scene, config.examples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        learner = LEARNERS[name](scene.size, config)
    told = partial(tell, f"{scene.name}, {name}, seed {seed}")
    training = train(learner, scene, config, validation, seed=seed, minutes=minutes, tell=told)
    return {
        "scene": scene.name,
        "learner": name,
        "training": training.to_dict(),
        "validation": measure(learner, validation),
        "test": measure(learner, test),
    }


def _fixed(size: int, difficulties: Range, examples: int, seed: int) -> Sample:
    return draw(size, difficulties, examples, torch.Generator().manual_seed(seed))
