"""The model of a run: before training, and as it is kept after it, a folder a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, set_seed

from benchmarks import backbones
from benchmarks.examples import load_tokenizer
from benchmarks.glue.config import RunConfig
from ponder import recipes
from ponder._utils.files import make_folder, read_json, write_json
from ponder.errors import CheckpointError, DataError
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import ExitPolicy

__all__ = ["KeptModel", "Origin", "build", "keep", "load_kept", "start_at", "to_accelerator", "weights_kept"]

_FORMAT = "ponder-glue-model-1"
_FILE = "glue.json"


def build(config: RunConfig, num_labels: int) -> PonderForSequenceClassification:
    """The untrained model of a run."""
    set_seed(config.seed)
    return PonderForSequenceClassification.from_encoder(
        backbones.resolve(config.backbone),
        recipes.get(config.recipe, **config.recipe_options),
        num_labels,
        readout=config.readout,
        policy=None if config.policy is None else ExitPolicy.from_dict(config.policy),
    )


@torch.no_grad()
def start_at(model: PonderForSequenceClassification, value: float) -> None:
    """Let every head of a new regression model answer about `value` (the mean of the training labels).

    A head that starts at 0 far from the labels sends one large common gradient through every step that is trained; it
    is answered by shifting the features of the encoder, which then never learns to tell examples apart.
    """
    for module in model.ponder.head.modules():
        if isinstance(module, torch.nn.Linear):
            module.bias.fill_(value)


@dataclass(frozen=True)
class Origin:
    """What a model was made from, as digests; one is empty where an earlier version kept the model without it."""

    data: str = ""
    """Digest of the examples that it was trained on."""
    selected_on: str = ""
    """Digest of the examples that selected the epoch."""
    encoder: str = ""
    """Digest of the weights that training began from."""


@dataclass(frozen=True)
class KeptModel:
    """A trained model, how it was made, and what was measured in each stage."""

    model: PonderForSequenceClassification
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    training: list[dict[str, Any]]
    origin: Origin = Origin()


def keep(
    model: PonderForSequenceClassification,
    config: RunConfig,
    models: Path,
    training: Sequence[dict[str, Any]] = (),
    origin: Origin | None = None,
) -> None:
    """Write `<models>/<key>/`, whole or not at all: weights, tokenizer, configuration, and what it was trained on."""
    folder = models / config.key
    for left in models.glob(f".{config.key}.part-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    part = make_folder(models / f".{config.key}.part-{os.getpid()}")
    try:
        model.save_pretrained(part)
        load_tokenizer(config.backbone).save_pretrained(part)
        made = {"config": config.to_dict(), "training": list(training), **asdict(origin or Origin())}
        write_json(part / _FILE, {"format": _FORMAT, **made, "weights": model.ponder.weights_digest()})
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def weights_kept(folder: Path) -> str | None:
    """Digest of the weights of a kept model; None where an earlier version kept it."""
    made = read_json(folder / _FILE) if (folder / _FILE).exists() else {}
    return made.get("weights")


def to_accelerator(model: torch.nn.Module) -> None:
    """Move a model to the accelerator, where there is one."""
    if torch.accelerator.is_available():
        model.to(torch.accelerator.current_accelerator())


def load_kept(folder: Path) -> KeptModel:
    """Read what `keep` wrote, here or in an earlier version.

    Raises:
        CheckpointError: The folder does not hold a kept model, or one of a configuration that there is no more.
    """
    made = read_json(folder / _FILE) if (folder / _FILE).exists() else {}
    if made.get("format") != _FORMAT:
        raise CheckpointError(
            f"{folder}: expected the folder of a kept model, which `run --keep-model` makes; it has no {_FILE} of the "
            f"format {_FORMAT!r}."
        )
    try:
        config = RunConfig.from_dict(made["config"])
    except (AttributeError, KeyError, TypeError, DataError) as error:
        raise CheckpointError(
            f"{folder / _FILE}: expected the configuration of a run of this version; got another ({error}). "
            "Train the model again."
        ) from error
    model = PonderForSequenceClassification.from_pretrained(folder).eval()
    to_accelerator(model)
    origin = Origin(**{of.name: made.get(of.name, "") for of in fields(Origin)})
    return KeptModel(model, load_tokenizer(str(folder)), config, made.get("training", []), origin)
