"""The configuration of the models of this package: their encoder's, and the recipe, as plain JSON."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig

from ponder.errors import CheckpointError
from ponder.integrations.transformers.loading import check_attention
from ponder.integrations.transformers.saving import DIGESTS
from ponder.recipes import Recipe

__all__ = ["PonderConfig"]


class PonderConfig(PretrainedConfig):
    """Configuration.

    Args:
        encoder: The encoder's own configuration, as a dict with its `model_type`.
        recipe: `Recipe.to_dict()`, scaled to the encoder's steps.
        readout: What is read of the encoder: ``"pooler"``, the first token through its own pooler, ``"mean"`` over the
            tokens, or ``"tokens"``, all of them.
        head_dropout: Dropout in front of the head.
        num_steps: The encoder's layers, for an encoder that is captured; else None.
        feature_size: The size of what the readout gives; the encoder's `hidden_size` where None.
        kwargs: Fields of `PretrainedConfig`, such as `num_labels` and `problem_type`.
    """

    model_type = "ponder"
    keys_to_ignore_at_inference = ["exit_step", "step_logits", "hazard_logits"]  # noqa: RUF012 (Trainer adds lists)
    """What `Trainer` leaves out of the predictions that `compute_metrics` sees."""

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        readout: str = "pooler",
        head_dropout: float = 0.1,
        num_steps: int | None = None,
        feature_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop(DIGESTS, None)  # of the files that were read, and not of what this object will be saved with
        check_attention({"encoder": encoder, **kwargs})
        self.encoder = encoder or {}
        self.recipe = recipe or {}
        self.readout = readout
        self.head_dropout = head_dropout
        self.num_steps = num_steps
        self.feature_size = feature_size
        super().__init__(**kwargs)

    def encoder_config(self) -> PretrainedConfig:
        """The encoder's configuration as an object.

        Raises:
            CheckpointError: This is the configuration of something else.
        """
        fields = dict(self.encoder)
        if "model_type" not in fields:
            raise CheckpointError(
                "config: expected an 'encoder' with its 'model_type', as save_pretrained writes it; "
                "got none. A plain encoder is for from_encoder."
            )
        return AutoConfig.for_model(fields.pop("model_type"), **fields)

    def make_recipe(self) -> Recipe:
        """The recipe as an object."""
        return Recipe.from_dict(self.recipe)
