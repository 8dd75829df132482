"""The configuration of the models of this package: their encoder's, and the recipe, as plain JSON."""

from __future__ import annotations

import warnings
from typing import Any

from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from ponder import recipes
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers.loading import check_attention
from ponder.integrations.transformers.saving import DIGESTS
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe

__all__ = ["AUTO_FILE", "DTYPES", "PonderConfig", "fields_of"]

AUTO_FILE = "ponder_classes.py"
"""The file beside saved weights by which Auto classes find this package, where the user trusts it."""


DTYPES = ("dtype", "torch_dtype")
"""Names of the type of weights in the configuration of an encoder, which would win over what a caller asks for."""


class PonderConfig(PretrainedConfig):
    """The configuration of a model with exits: that of its encoder, its recipe, and its readout.

    Args:
        encoder: The encoder's own configuration, as a dict with its `model_type`.
        recipe: `Recipe.to_dict()`, scaled to the encoder's steps.
        readout: What is read of the encoder: ``"pooler"``, the first token through its own pooler, ``"mean"`` over the
            tokens, or ``"tokens"``, all of them.
        head_dropout: Dropout in front of the head.
        num_steps: The encoder's layers, for an encoder that is captured; else None.
        feature_size: The size of what the readout gives; the encoder's `hidden_size` where None.
        evaluations: What was measured, for the model card; see `PonderPreTrainedModel.note_evaluation`.
        kwargs: Fields of `PretrainedConfig`, such as `num_labels` and `problem_type`.

    Example:
        >>> model.config.readout, model.config.make_recipe().policy
        ('pooler', Quantile(q=0.5))
        >>> model.config.encoder["model_type"]
        'bert'
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
        evaluations: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.pop(DIGESTS, None)  # of the files that were read, and not of what this object will be saved with
        kwargs["auto_map"] = {"AutoConfig": f"{AUTO_FILE.removesuffix('.py')}.{type(self).__name__}"}  # and no other
        check_attention({"encoder": encoder, **kwargs})
        self.encoder = encoder or {}
        self.recipe = recipe or {}
        self.readout = readout
        self.head_dropout = head_dropout
        self.num_steps = num_steps
        self.feature_size = feature_size
        self.evaluations = list(evaluations or [])
        super().__init__(**kwargs)

    def encoder_config(self) -> PretrainedConfig:
        """The encoder's configuration as an object, without the type of its weights: that of the whole model counts.

        Raises:
            CheckpointError: This is the configuration of something else.
        """
        fields = {name: value for name, value in self.encoder.items() if name not in DTYPES}
        if "model_type" not in fields:
            raise CheckpointError(
                "config: expected an 'encoder' with its 'model_type', as save_pretrained writes it; "
                "got none. A plain encoder is for from_encoder."
            )
        return AutoConfig.for_model(fields.pop("model_type"), **fields)

    def make_recipe(self) -> Recipe:
        """The recipe as an object.

        Warns where its policy has a name that nothing here is registered under: the recipe's own default takes its
        place, or full depth where the recipe is not known either.
        """
        try:
            return Recipe.from_dict(self.recipe)
        except ArgumentError as error:
            if error.argument != "policy" or "policy" not in self.recipe:
                raise
            policy = self._default_policy()
            warnings.warn(
                f"policy: no policy {error.got} is registered here, and {policy!r} takes its place. Import the package "
                "that registers it before you load the model, or assign model.policy.",
                stacklevel=2,
            )
            return Recipe.from_dict({**self.recipe, "policy": policy.to_dict()})

    def _default_policy(self) -> ExitPolicy:
        """The policy that a recipe of this name brings, as far as it suits the model; else full depth."""
        name = self.recipe.get("name")
        if name not in recipes.names():
            return LastStep()
        known = recipes.get(name)
        if self.recipe["tuned_for"] is not None:  # else it means any encoder's own steps
            known = known.for_steps(int(self.recipe["tuned_for"]))
        policy = known.policy
        if self.problem_type != "single_label_classification" and known.otherwise is not None:
            policy = known.otherwise
        return LastStep() if "hazard" in policy.needs and self.recipe.get("lambda_head") is None else policy

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: Transformers would copy the source of this class beside the weights, which `AUTO_FILE` replaces."""


def fields_of(encoder: PreTrainedModel) -> dict[str, Any]:
    """The configuration of an encoder, as JSON."""
    fields = {name: value for name, value in encoder.config.to_diff_dict().items() if name not in DTYPES}
    return {**fields, "model_type": encoder.config.model_type}
