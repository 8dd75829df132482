"""Trained models that are kept for `predict`: a folder a run, with weights, tokenizer and configuration."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from benchmarks.glue.config import RunConfig
from benchmarks.glue.model import load_tokenizer
from ponder.errors import ArgumentError, CheckpointError
from ponder.files import make_folder, read_json, write_json
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["KeptModel", "check_kept", "keep", "load_kept"]

_FORMAT = "ponder-glue-model-1"
_FILE = "glue.json"


@dataclass(frozen=True)
class KeptModel:
    """A trained model, and how it was made.

    Args:
        model: In evaluation mode, with the policy of its run.
        tokenizer: Its tokenizer.
        config: Its run.
    """

    model: PonderForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig


def keep(model: PonderForSequenceClassification, config: RunConfig, models: Path) -> Path:
    """Write `<models>/<key>/`, whole or not at all, and return it."""
    folder = models / config.key
    part = make_folder(models / f".{config.key}.part-{os.getpid()}")
    try:
        model.save_pretrained(part)
        load_tokenizer(config.backbone).save_pretrained(part)
        write_json(part / _FILE, {"format": _FORMAT, "config": config.to_dict()})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def check_kept(config: RunConfig, models: Path | None) -> None:
    """Refuse to keep the model of a run whose result is there already and whose model is gone."""
    if models is not None and not (models / config.key / _FILE).exists():
        raise ArgumentError(
            "--keep-model",
            expected=f"a run that is still to be made, or its model at {models / config.key}",
            got="a result that is there already, whose model was not kept",
            remedy="Write to another folder of results (--out), so that the run is made again.",
        )


def load_kept(folder: Path) -> KeptModel:
    """Read what `keep` wrote.

    Raises:
        CheckpointError: It is no such folder.
    """
    made = read_json(folder / _FILE)
    if made.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder}: expected a model kept by `run --keep-model`; got the format {made.get('format')!r}."
        )
    model = PonderForSequenceClassification.from_pretrained(folder)
    return KeptModel(model.eval(), load_tokenizer(str(folder)), RunConfig.from_dict(made["config"]))
