"""Trained models that are kept for `predict`: a folder a run, with weights, tokenizer and configuration."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks.glue.config import RunConfig, parse_recipe
from benchmarks.glue.model import load_tokenizer
from benchmarks.glue.results import read_all
from ponder._utils.files import make_folder, read_json, write_json
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["KeptModel", "best_kept", "check_kept", "check_there", "find", "keep", "load_kept"]

_FORMAT = "ponder-glue-model-1"
_FILE = "glue.json"


@dataclass(frozen=True)
class KeptModel:
    """A trained model, and how it was made."""

    model: PonderForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    training: list[dict[str, Any]] | None = None


def keep(
    model: PonderForSequenceClassification, config: RunConfig, models: Path, training: Sequence[dict[str, Any]] = ()
) -> Path:
    """Write `<models>/<key>/`, whole or not at all, and return it."""
    folder = models / config.key
    for left in models.glob(f".{config.key}.part-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = make_folder(models / f".{config.key}.part-{os.getpid()}")
    try:
        model.save_pretrained(part)
        load_tokenizer(config.backbone).save_pretrained(part)
        write_json(part / _FILE, {"format": _FORMAT, "config": config.to_dict(), "training": list(training)})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def check_kept(config: RunConfig, models: Path | None) -> None:
    """Refuse to keep the model of a run whose result is there already and whose model is gone."""
    if models is not None:
        check_there("--keep-model", models / config.key / _FILE)


def check_there(option: str, path: Path) -> None:
    """Refuse what `option` asks for of a run whose result is there already, where it was not kept at `path`."""
    if not path.exists():
        raise ArgumentError(
            option,
            expected=f"a run that is still to be made, or {path}",
            got="a result that is there already, and nothing there",
            remedy="Write to another folder of results (--out), so that the run is made again.",
        )


def best_kept(models: Path, results: Path, recipe: str) -> list[Path]:
    """For each task, the folder of the kept model of a recipe whose run has the best held-out score.

    One that selected on dev is taken where there is no other.

    Args:
        models: Folder of kept models.
        results: Folder of their results.
        recipe: As `parse_recipe` reads it; runs with other arguments, or with a policy or threshold that is not the
            recipe's, are of another recipe.
    """
    asked = parse_recipe("--recipe", recipe)
    best: dict[str, tuple[bool, float, Path]] = {}
    for result in read_all(results):
        config = RunConfig.from_dict(result["config"])
        folder = models / config.key
        as_it_is = config.policy is None and config.knob == "recipe"
        if as_it_is and (config.recipe, config.recipe_options) == asked and (folder / _FILE).exists():
            found = (not result.selects_on_dev, result.selection_score, folder)
            best[result["task"]] = max(best.get(result["task"], found), found)
    if not best:
        raise ArgumentError(
            "--recipe",
            expected=f"a recipe with models in {models} and their results in {results}",
            got=f"{recipe!r}, which has none there",
            remedy="Make some with `sweep --keep-model` or `run --keep-model`, or pass --models and --results.",
        )
    return [folder for _, _, folder in best.values()]


def find(config: RunConfig, models: Path) -> KeptModel | None:
    """The kept model of a run, or None."""
    folder = models / config.key
    return load_kept(folder) if (folder / _FILE).exists() else None


def load_kept(folder: Path) -> KeptModel:
    """Read what `keep` wrote."""
    if not (folder / _FILE).exists():
        raise CheckpointError(
            f"{folder}: expected the folder of a kept model; it has no {_FILE}. Make one with `run --keep-model`."
        )
    made = read_json(folder / _FILE)
    if made.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder}: expected a model kept by `run --keep-model`; got the format {made.get('format')!r}."
        )
    model = PonderForSequenceClassification.from_pretrained(folder).eval()
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())
    config = RunConfig.from_dict(made["config"])
    return KeptModel(model, load_tokenizer(str(folder)), config, made.get("training") or None)
