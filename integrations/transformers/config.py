"""Configuration of a model with exits: its encoder's own, and the recipe, as plain JSON."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file

from ponder._utils.seals import changed_parts, sealed
from ponder.errors import CheckpointError

__all__ = ["PonderConfig", "changed_files"]

_MIRRORED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "pad_token_id",
)
"""Sizes of the encoder that other libraries look for in any configuration."""


class PonderConfig(PretrainedConfig):
    """Configuration of a model with exits: that of its encoder, its recipe, and its readout.

    Args:
        encoder: The encoder's own configuration, or that as a dict with its `model_type`.
        architecture: Name of the class of Transformers that runs: a bare encoder, or a fine-tuned
            model, head included.
        finetuned: Whether the answers are those of a fine-tuned model's own head
            (`from_finetuned`).
        recipe: `Recipe.to_dict()`, scaled to the encoder's steps.
        readout: What heads read: ``"pooler"``, ``"mean"``, ``"first_token"``, ``"last_token"`` or
            ``"tokens"``.
        head_dropout: Dropout in front of the head.
        num_steps: N, the encoder's layers.
        feature_size: Size of what the readout gives.
        example: Example inputs of an encoder that reads more than its configuration says; see
            `families.pack`.
        exits: Seed and split of the inputs by which `fit_exits` fitted and certified the exits.
        evaluations: What was measured, for the model card; see
            `PonderPreTrainedModel.note_evaluation`.
        digests: Digests of the tokenizer's files, by which a promise is dropped if they change.
        kwargs: Fields of `PretrainedConfig`, such as `num_labels` and `problem_type`.

    Example:
        >>> model.config.readout, model.config.recipe["policy"]["name"]
        ('pooler', 'quantile')
        >>> model.config.encoder.model_type
        'bert'
    """

    model_type = "ponder"
    keys_to_ignore_at_inference = ["exit_step", "step_logits", "hazard_logits"]  # noqa: RUF012 (Trainer adds lists)

    def __init__(
        self,
        encoder: PretrainedConfig | dict[str, Any] | None = None,
        architecture: str | None = None,
        finetuned: bool = False,
        recipe: dict[str, Any] | None = None,
        readout: str = "pooler",
        head_dropout: float = 0.1,
        num_steps: int | None = None,
        feature_size: int | None = None,
        example: dict[str, Any] | None = None,
        exits: dict[str, Any] | None = None,
        evaluations: list[dict[str, Any]] | None = None,
        digests: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.encoder = _as_config(encoder)
        self.architecture = architecture
        self.finetuned = finetuned
        self.recipe = recipe or {}
        self.readout = readout
        self.head_dropout = head_dropout
        self.num_steps = num_steps
        self.feature_size = feature_size
        self.example = example
        self.exits = exits or {}
        self.evaluations = list(evaluations or [])
        self.digests = digests or {}
        for name in _MIRRORED:
            setattr(self, name, getattr(self.encoder, name, None))
            kwargs.pop(name, None)
        super().__init__(**kwargs)

    def to_json_file(self, json_file_path: str | PathLike[str], use_diff: bool = True) -> None:
        """Write the configuration with its own digest in it; see `changed_files`."""
        data = json.loads(self.to_json_string(use_diff))
        files = data.pop("digests", {})
        files.pop("settings", None)
        text = json.dumps(sealed(data, files), indent=2, sort_keys=True)
        Path(json_file_path).write_text(text + "\n", encoding="utf-8")

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The configuration whose vocabulary the tokens are of: the encoder's."""
        return self if self.encoder is None else self.encoder.get_text_config(*args, **kwargs)

    @property
    def remote_code(self) -> dict[str, str]:
        """The classes of an encoder with code of its own, by the Auto class that finds each; empty for others."""
        return getattr(self.encoder, "auto_map", None) or {}

    def trust(self, source: str, trust_remote_code: bool | None, **hub: Any) -> None:
        """Read the encoder's own configuration class from the files beside the weights, if the reader lets them run."""
        if not trust_remote_code:
            files = sorted(
                {
                    f"{name.rpartition('--')[2].split('.')[0]}.py"
                    for name in self.remote_code.values()
                }
            )
            raise CheckpointError(
                f"{source}: its encoder runs code of its own ({', '.join(files)}). Look at these files, and pass "
                "trust_remote_code=True to let them run."
            )
        if reference := self.remote_code.get("AutoConfig"):
            fields = {
                name: value
                for name, value in self.encoder.to_dict().items()
                if name != "model_type"
            }
            self.encoder = get_class_from_dynamic_module(reference, source, **hub)(**fields)
        self.encoder.name_or_path = source


def changed_files(source: str, **hub: Any) -> list[str]:
    """Return which parts of a saved model, in a folder or on the hub, are not those that were saved."""

    def locate(name: str) -> Path | None:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        return None if found is None else Path(found)

    path = locate("config.json")
    if path is None:
        return ["config.json"]
    return changed_parts(json.loads(path.read_text(encoding="utf-8")), locate)


def _as_config(encoder: PretrainedConfig | dict[str, Any] | None) -> Any:
    """The configuration object of an encoder; a plain one where its class is in files that are yet to be trusted."""
    if not isinstance(encoder, dict):
        return encoder
    fields = dict(encoder)
    model_type = fields.pop("model_type", "")
    if model_type in CONFIG_MAPPING:
        return AutoConfig.for_model(model_type, **fields)
    return PretrainedConfig(**fields)
