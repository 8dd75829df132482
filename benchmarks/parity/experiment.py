"""One seed of the experiment: every model in every scene, on evaluation sets that no seed changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.glue.results import environment
from benchmarks.parity.act import ACT
from benchmarks.parity.learners import Learner, PonderNet
from benchmarks.parity.setting import Setting
from benchmarks.parity.task import Range, Sample, Scene, draw
from benchmarks.parity.training import measure, train
from ponder.errors import DataError
from ponder.files import read_json

__all__ = ["FORMAT", "LEARNERS", "differences", "evaluation_sets", "experiment", "read_result", "read_results"]

FORMAT = "ponder-parity-2"
LEARNERS: dict[str, Callable[[int, Setting], Learner]] = {"PonderNet": PonderNet, "ACT": ACT}
_VALIDATION_SEED, _TEST_SEED = 1_000_003, 2_000_003  # far from those of training

Tell = Callable[[str, int, float | None], object]


def experiment(
    setting: Setting, seed: int, minutes: float | None = None, tell: Tell = lambda *_: None
) -> dict[str, Any]:
    """Train and measure everything for one seed.

    Args:
        setting: The size of the experiment.
        seed: Of first weights and of the vectors in training.
        minutes: Most minutes for each model; None makes all updates.
        tell: Told of the model, its updates, and the validation accuracy where it was just measured.

    Returns:
        The result, as plain JSON.
    """
    runs = list(_runs(setting, seed, minutes, tell))
    return {
        "format": FORMAT,
        "setting": asdict(setting),
        "seed": seed,
        "minutes": minutes,
        "runs": runs,
        "environment": environment(torch.device("cpu")),
    }


def evaluation_sets(scene: Scene, examples: int) -> tuple[Sample, Sample]:
    """The validation set, of the difficulties trained on, and the reported set: the same for every seed and model."""
    return _fixed(scene.size, scene.train, examples, _VALIDATION_SEED), _fixed(
        scene.size, scene.test, examples, _TEST_SEED
    )


def read_results(folder: Path, name: str) -> list[dict[str, Any]]:
    """The results of the setting `name` in a folder, by seed: those of one experiment.

    Raises:
        DataError: There are none, or a file is foreign, or they differ in more than the seed.
    """
    found = [read_result(path) for path in folder.glob(f"{name}-s*.json")]
    results = sorted(found, key=lambda result: int(result["seed"]))
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
    """One result."""
    result = read_json(path)
    if result.get("format") != FORMAT:
        raise DataError(f"{path}: expected a result of the format {FORMAT!r}; got {result.get('format')!r}.")
    return result


def differences(result: dict[str, Any], setting: dict[str, Any], minutes: float | None) -> list[str]:
    """In which fields a result is of another experiment."""
    fields = [name for name, value in setting.items() if result["setting"].get(name) != value]
    return fields + ["minutes"] * (result["minutes"] != minutes)


def _runs(setting: Setting, seed: int, minutes: float | None, tell: Tell) -> Iterator[dict[str, Any]]:
    for scene in setting.scenes:
        validation, test = evaluation_sets(scene, setting.examples)
        for name, build in LEARNERS.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                learner = build(scene.size, setting)
            title = f"{scene.name}, {name}, seed {seed}"
            training = train(
                learner,
                scene,
                setting,
                validation,
                seed=seed,
                minutes=minutes,
                tell=partial(tell, title),
            )
            yield {
                "scene": scene.name,
                "learner": name,
                "training": training.to_dict(),
                "validation": measure(learner, validation),
                "test": measure(learner, test),
            }


def _fixed(size: int, difficulties: Range, examples: int, seed: int) -> Sample:
    return draw(size, difficulties, examples, torch.Generator().manual_seed(seed))
