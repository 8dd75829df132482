"""`SavedModel`: the part of a model with exits that reads it from files and writes it there.

A folder holds what Transformers writes (the configuration and the weights), and beside these the
tokenizer of `predict`, the code of an encoder that is not one of Transformers, and a model card. A
certified policy is dropped, with a warning, if weights or tokenizer have changed since it was
certified.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.dynamic_module_utils import custom_object_save

from ponder._utils.files import ABOUT, reading, replaced_folder
from ponder._utils.seals import digest_of_path
from ponder.errors import CheckpointError
from ponder.integrations.transformers.adapter import Adapter
from ponder.integrations.transformers.card import model_card, write_card
from ponder.integrations.transformers.config import PonderConfig, changed_files
from ponder.integrations.transformers.loading import check_has_weights, reading_from
from ponder.integrations.transformers.texts import load_tokenizer
from ponder.model.readouts import ReadoutCall
from ponder.policies import ExitPolicy
from ponder.policies.combine import promise_about
from ponder.recipes import Recipe
from ponder.wrapper import PonderWrapper

__all__ = ["FILES_OF_A_MODEL", "SavedModel"]

_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
FILES_OF_A_MODEL = ("config.json", *_WEIGHTS, *ABOUT)
"""Patterns of the files that are replaced when a model is saved over an older one."""
_ENCODER = "ponder.stem.encoder"  # the path of the encoder in the model
_HUB_OPTIONS = ("cache_dir", "revision", "token", "local_files_only")
"""Arguments of `from_pretrained` with which further files of the model are found."""


class SavedModel(PreTrainedModel):
    """The parts of a model with exits, and their files.

    Attributes:
        ponder: The wrapper that runs.
    """

    config_class = PonderConfig
    config: PonderConfig
    ponder: PonderWrapper
    _tokenizer: PreTrainedTokenizerBase | None
    pipeline_tag: ClassVar[str] = "feature-extraction"
    """The name of the task on the hub."""

    @property
    def encoder(self) -> PreTrainedModel:
        """The encoder, or the fine-tuned model with its head."""
        stem: Any = self.ponder.stem
        encoder: PreTrainedModel = stem.encoder
        return encoder

    @property
    def adapter(self) -> Adapter:
        """The adapter, which reads the encoder as stem, steps and readouts."""
        stem: Any = self.ponder.stem
        adapter: Adapter = stem.adapter
        return adapter

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of `predict`, saved with the model; it is loaded at its first use."""
        if self._tokenizer is None and self.main_input_name == "input_ids":
            with contextlib.suppress(CheckpointError):
                self._tokenizer = load_tokenizer(str(self.config.name_or_path or ""))
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase | None) -> None:
        self._tokenizer = tokenizer

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy, saved with the model; one that is assigned is checked first."""
        return self.ponder.policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self.ponder.policy = policy

    @property
    def recipe(self) -> Recipe:
        """The recipe that the model was built with, scaled to this encoder."""
        return Recipe.from_dict(self.config.recipe)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> Self:
        """Load a saved model, as in Transformers.

        An encoder that brings code needs ``trust_remote_code=True``, which runs the files beside
        the weights.

        Raises:
            CheckpointError: The folder holds weights of another class, or code that is not trusted.
        """
        hub: dict[str, Any] = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        source = str(pretrained_model_name_or_path)
        trusts_code = kwargs.pop("trust_remote_code", None)
        with_info = kwargs.pop("output_loading_info", False)
        base: Any = super()
        with reading_from(source, trusts_code, hub), reading(source, "model with exits"):
            model, info = base.from_pretrained(source, *args, **kwargs, output_loading_info=True)
            [saved_class, *_] = model.config.architectures or [cls.__name__]
            _check_class(source, saved_class, cls.__name__)
            check_has_weights(source, model, info["missing_keys"])
            model._capture_encoder()
        changed = partial(changed_files, source, subfolder=kwargs.get("subfolder", ""), **hub)
        model.policy = promise_about(model.ponder.weights_digest, model.policy, changed)
        loaded: Self = model
        if with_info:  # as in Transformers, whose annotation leaves out this pair
            return loaded, info  # type: ignore[return-value]
        return loaded

    def _capture_encoder(self) -> None:
        """Capture the encoder now that it has its weights."""
        adapter = self.adapter
        if adapter.parts is None:
            wrapper = self.ponder
            wrapper.steps = adapter.learn().steps
            wrapper.padding = adapter.padding()
            wrapper.readout = ReadoutCall(adapter.readout(self.config.readout), wrapper.padding)

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the tied weights, with those of the encoder, which the base class overlooks."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        if not all_submodels:
            inner = self.encoder.all_tied_weights_keys
            tied |= {f"{_ENCODER}.{name}": f"{_ENCODER}.{source}" for name, source in inner.items()}
        return tied

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save the model as in Transformers, with its tokenizer, card, and the encoder's code.

        The folder is replaced as a whole. Other files in it stay, such as those of a checkpoint.
        """
        self.policy = promise_about(self.ponder.weights_digest, self.policy)
        wrapper = self.ponder
        recipe = dataclasses.replace(
            self.recipe, policy=wrapper.policy, prior=wrapper.prior, stages=wrapper.stages
        )
        self.config.recipe = recipe.to_dict()
        # Under the names that weights have here, since Trainer reads its checkpoints as they are.
        options = {"save_original_format": False, **kwargs}
        writes_adapters = getattr(self, "_hf_peft_config_loaded", False)
        if writes_adapters or not _writes_alone(options):
            super().save_pretrained(save_directory, *args, **options)
            return
        owned = set(FILES_OF_A_MODEL)
        if options.get("variant"):  # of the weights, which stands beside others
            owned -= set(_WEIGHTS)
        if self.tokenizer is not None:
            owned |= set(_VOCABULARIES)
        with replaced_folder(Path(save_directory), owned) as new:
            self._write_beside_weights(new)
            super().save_pretrained(new, *args, **options)

    def _write_beside_weights(self, folder: Path) -> None:
        """Write code, tokenizer and model card into a folder."""
        for part in (self.encoder, self.encoder.config):
            if part._auto_class is not None:
                config: Any = self.encoder.config  # its annotation there is that of a dict
                custom_object_save(part, folder, config=config)
        files: list[Path] = []
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            files = [folder / name for name in _VOCABULARIES]
        self.config.digests = {path.name: digest_of_path(path) for path in files if path.is_file()}
        write_card(self, folder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:  # type: ignore[override]
        """Upload the model as in Transformers, with its model card, and return its address."""
        base: Any = super()
        address: str = base.push_to_hub(repo_id, **kwargs)
        model_card(self, repo_id.rpartition("/")[2]).push_to_hub(repo_id, token=kwargs.get("token"))
        return address


def _check_class(source: str, saved: str, loading: str) -> None:
    """Refuse to load the heads of one class into another."""
    if saved != loading and saved.startswith("PonderFor") and loading.startswith("PonderFor"):
        raise CheckpointError(
            f"{source}: expected a model that {loading} saved; got one of {saved}, whose heads "
            f"answer something else. Load it with {saved}.from_pretrained."
        )


def _writes_alone(options: Mapping[str, object]) -> bool:
    """Return whether this process writes all of a saved model.

    If processes write shards, none of them does.
    """
    if not options.get("is_main_process", True) or options.get("distributed_checkpoint"):
        return False
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not several or torch.distributed.get_rank() == 0
