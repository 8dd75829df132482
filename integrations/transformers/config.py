"""Configuration of a model with exits: that of its encoder, and the recipe, as plain JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils.hub import cached_file

from ponder._utils.plain import from_plain
from ponder._utils.seals import changed_parts, seal
from ponder.errors import CheckpointError
from ponder.integrations.transformers.families import PackedExample
from ponder.recipes.base import Settings

if TYPE_CHECKING:
    from ponder.integrations.transformers.card import Evaluation

__all__ = ["PonderConfig", "changed_files"]

_MIRRORED = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "pad_token_id",
)
"""Sizes of the encoder that other libraries look for in any configuration."""


@dataclass(frozen=True)
class _SavedFields:
    """The fields of `config.json` that are ours, as they are in JSON; see `PonderConfig`."""

    encoder: dict[str, Any] | None = None
    architecture: str | None = None
    architectures: list[str] | None = None
    finetuned: bool = False
    recipe: dict[str, Any] | None = None
    readout: Literal["pooler", "mean", "first_token", "last_token", "tokens", "answer"] = "pooler"
    head_dropout: float = 0.1
    num_steps: int | None = None
    feature_size: int | None = None
    example: dict[str, dict[str, Any]] | None = None
    exits: dict[str, Any] | None = None
    evaluations: list[dict[str, Any]] | None = None
    digests: dict[str, str] | None = None


class PonderConfig(PretrainedConfig):
    """Configuration of a model with exits: that of its encoder, its recipe, and its readout.

    Args:
        encoder: The encoder's configuration, or a dict of it with its `model_type`.
        architecture: Name of the Transformers class that runs: a bare encoder, or a fine-tuned
            model with its head.
        finetuned: Whether the answers are those of a fine-tuned model's head (`from_finetuned`).
        recipe: `Recipe.to_dict()`, scaled to the encoder's steps.
        readout: Name of the readout: ``"pooler"``, ``"mean"``, ``"first_token"``,
            ``"last_token"`` or ``"tokens"``.
        head_dropout: Dropout in front of the head.
        num_steps: N, the encoder's layers.
        feature_size: Size of the features.
        example: Example inputs, if they cannot be made up from the configuration; see
            `families.pack`.
        exits: Seed and split of the inputs with which `fit_exits` fitted and certified the exits.
        evaluations: Measurements for the model card; see `PonderPreTrainedModel.note_evaluation`.
        digests: Digests of the tokenizer's files; a promise is dropped if they change.
        kwargs: Fields of `PretrainedConfig`, such as `num_labels` and `problem_type`.

    Example:
        >>> model.config.readout, model.config.recipe["policy"]["name"]
        ('pooler', 'quantile')
        >>> model.config.encoder.model_type
        'bert'
    """

    model_type = "ponder"
    # A list, since Trainer adds lists to it.
    keys_to_ignore_at_inference = ["exit_step", "step_logits", "hazard_logits"]  # noqa: RUF012

    def __init__(
        self,
        encoder: PretrainedConfig | Settings | None = None,
        architecture: str | None = None,
        finetuned: bool = False,
        recipe: Settings | None = None,
        readout: str = "pooler",
        head_dropout: float = 0.1,
        num_steps: int | None = None,
        feature_size: int | None = None,
        example: PackedExample | None = None,
        exits: Settings | None = None,
        evaluations: list[Evaluation] | None = None,
        digests: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        # None only in the empty configuration with which Transformers compares others.
        self.encoder: Any = _as_config(encoder)
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

    @classmethod
    def from_dict(cls, config_dict: Settings, **kwargs: Any) -> Self:
        """Read a configuration, as in Transformers.

        Raises:
            ValueError: A field is of another type.
        """
        names = {each.name for each in fields(_SavedFields)}
        saved = {name: value for name, value in config_dict.items() if name in names}
        from_plain(_SavedFields, saved)  # a check; the base class reads the fields
        config: Self = super().from_dict(config_dict, **kwargs)
        return config

    def to_json_file(self, json_file_path: str | PathLike[str], use_diff: bool = True) -> None:
        """Write the configuration with its own digest in it; see `changed_files`."""
        data = json.loads(self.to_json_string(use_diff))
        files = data.pop("digests", {})
        files.pop("settings", None)
        text = json.dumps(seal(data, files), indent=2, sort_keys=True)
        Path(json_file_path).write_text(text + "\n", encoding="utf-8")

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The configuration whose vocabulary the tokens are of: the encoder's."""
        if self.encoder is None:
            return self
        text_config: PretrainedConfig = self.encoder.get_text_config(*args, **kwargs)
        return text_config

    @property
    def remote_code(self) -> dict[str, str]:
        """The classes of an encoder that brings code, by their Auto class; empty for others."""
        return getattr(self.encoder, "auto_map", None) or {}

    def trust(self, source: str, trust_remote_code: bool | None, **hub: Any) -> None:
        """Read the configuration class of the encoder from files, if they are trusted to run."""
        if not trust_remote_code:
            modules = {name.rpartition("--")[2] for name in self.remote_code.values()}
            files = sorted({f"{module.split('.')[0]}.py" for module in modules})
            raise CheckpointError(
                f"{source}: its encoder brings code ({', '.join(files)}). Look at these files, and "
                "pass trust_remote_code=True to let them run."
            )
        reference = self.remote_code.get("AutoConfig")
        if reference:
            fields = self.encoder.to_dict()
            fields.pop("model_type", None)
            self.encoder = get_class_from_dynamic_module(reference, source, **hub)(**fields)
        self.encoder.name_or_path = source


def changed_files(source: str, **hub: Any) -> list[str]:
    """Return the parts of a saved model that changed since it was saved."""

    def locate(name: str) -> Path | None:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False, **hub)
        if found is None:
            return None
        return Path(found)

    path = locate("config.json")
    if path is None:
        return ["config.json"]
    return changed_parts(json.loads(path.read_text(encoding="utf-8")), locate)


def _as_config(encoder: PretrainedConfig | Settings | None) -> PretrainedConfig | None:
    """Return the configuration of an encoder; a plain one if its class is in untrusted files."""
    if not isinstance(encoder, dict):
        return encoder
    fields = dict(encoder)
    model_type = fields.pop("model_type", "")
    if model_type in CONFIG_MAPPING:
        config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
        return config
    return PretrainedConfig(**fields)
