"""Sentence Transformers whose rows exit early; needs the extra `sentence-transformers`.

`with_exits(model)` gives a `SentenceTransformer` whose encoder exits per row; `PonderTransformer`
is the module that does it, in the place of the library's own `Transformer`, in a `CrossEncoder`
too. `encode` and `predict` then take `policy=`. `CrossEncoder`, here, ranks: candidates that cannot
be among the best leave early.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer

from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderModel
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.integrations.transformers.texts import ids_by_content
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe

__all__ = ["CrossEncoder", "PonderTransformer", "with_exits"]

_TASKS: dict[type[Any], Any] = {
    PonderModel: "feature-extraction",
    PonderForSequenceClassification: "sequence-classification",
}
_OF_THE_MODULE = ("transformer_task", "modality_config", "module_output_name", "unpad_inputs")
"""Settings of a `Transformer` that say what its model is, which is another one here; all others are kept."""


class PonderTransformer(Transformer):
    """The first module of a `SentenceTransformer` or `CrossEncoder`, whose rows exit at steps of their own.

    A `PonderModel` gives the tokens of each row as they were at its exit (``readout="tokens"``),
    and the modules behind pool them; or, with another readout, the embedding itself. A
    `PonderForSequenceClassification` gives scores. The features also hold `exit_step`:
    `encode(texts, output_value=None)` shows it.

    In training every step runs, and the answer is that of the last; the tokens of each step are in
    the features as `all_layer_embeddings`, by which the library's `AdaptiveLayerLoss` trains every
    exit; they are so in evaluation mode too, at full depth, while `config.output_hidden_states` is
    set, as that loss sets it, and no policy is named.

    Args:
        model_name_or_path: A folder that `save` wrote, or a saved model of this package with its
            tokenizer.
        options: Arguments of `Transformer`.

    Example:
        >>> from ponder.integrations.transformers import PonderModel
        >>> module = PonderTransformer.of(PonderModel.from_encoder(encoder, "vanilla", readout="tokens"), tokenizer)
        >>> module.get_embedding_dimension()
        16
    """

    forward_kwargs = {"policy"}  # noqa: RUF012 (the base class's protocol)
    """Arguments that `encode` and `predict` hand on to `forward`."""
    model: Any

    def __init__(self, model_name_or_path: str, **options: Any) -> None:
        super().__init__(model_name_or_path, **options)
        self._limit_length()

    def _limit_length(self) -> None:
        longest = getattr(self.model.encoder.config, "max_position_embeddings", None)
        if self.tokenizer is not None and isinstance(longest, int) and longest > 0:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)

    @classmethod
    def of(
        cls, model: PonderModel | PonderForSequenceClassification, processor: Any, **options: Any
    ) -> Self:
        """Make the module around a model that is in memory; its weights are used, not copied.

        Args:
            model: A `PonderModel`, or a `PonderForSequenceClassification`.
            processor: Its tokenizer, or another processor of Transformers.
            options: Arguments of `Transformer`.
        """
        with (
            TemporaryDirectory() as folder
        ):  # the base class reads configuration and processor from files only
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            given = {**(options.pop("model_kwargs", None) or {}), "model": model}
            made = cls(folder, transformer_task=_TASKS[type(model)], model_kwargs=given, **options)
        made.processor = copy.deepcopy(
            processor
        )  # files do not know all that was set on it, such as truncation_side
        made._limit_length()
        return made

    def _load_model(self, *args: Any, model: Any = None, **options: Any) -> Any:
        """Return the model that `of` was given, or else the one in the folder."""
        return super()._load_model(*args, **options) if model is None else model

    def get_embedding_dimension(self) -> int:
        """Return the size of the features of a token or a row."""
        return int(self.model.config.feature_size)

    def forward(
        self, features: dict[str, Any], policy: ExitPolicy | None = None, **ignored: Any
    ) -> dict[str, Any]:
        """Run each row to its exit.

        Args:
            features: What `preprocess` gave; `token_embeddings`, `sentence_embedding` or `scores`,
                and `exit_step`, `(batch,)`, are added.
            policy: An exit policy instead of the model's own.
            ignored: What other modules read.
        """
        model = self.model
        config = self.model.config
        given = {name: features[name] for name in model.adapter.inputs if name in features}
        tokens = isinstance(model, PonderModel) and config.readout == "tokens"
        if (
            tokens and config.output_hidden_states and policy is None and not model.training
        ):  # as a loss asks for
            layers = features["all_layer_embeddings"] = list(
                model.unroll(**given).outputs.unbind(1)
            )
            features["token_embeddings"] = last = layers[-1]
            features["exit_step"] = torch.full((len(last),), len(layers), device=last.device)
            return features
        out = model(**given, policy=policy, row_ids=ids_by_content(given))
        if isinstance(model, PonderForSequenceClassification):
            features["scores"] = out.logits
        elif not tokens:
            features["sentence_embedding"] = out.pooler_output
        else:
            features["token_embeddings"] = out.last_hidden_state
            if out.step_logits is not None:
                features["all_layer_embeddings"] = list(out.step_logits.unbind(1))
        features["exit_step"] = out.exit_step
        return features


def with_exits(
    model: SentenceTransformer,
    recipe: str | Recipe = "vanilla",
    *,
    policy: ExitPolicy | None = None,
) -> SentenceTransformer:
    """Return the model with a `PonderTransformer` in the place of its first module; all other modules are its own.

    The weights are used, not copied, and the model itself stays as it is. Until a policy is named,
    every row runs to the last step, and the embeddings are those of the model. Early steps of an
    encoder that was never trained to exit are poor embeddings: train them (`AdaptiveLayerLoss`),
    then choose the policy on data of your own.

    Args:
        model: The model.
        recipe: A recipe or its name: what heads the model gets, and the policy of calls that name
            none. `vanilla` adds no weights, and runs to the end.
        policy: An exit policy instead of the recipe's.

    Raises:
        ArgumentError: Its first module is no `Transformer`, or a subclass with code of its own,
            which would be lost.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        >>> encoder.save_pretrained("encoder")
        >>> _ = tokenizer.save_pretrained("encoder")
        >>> plain = SentenceTransformer(modules=[Transformer("encoder"), Pooling(16)], device="cpu")
        >>> with_exits(plain).encode(["a short text"], policy=policies.FixedStep(2)).shape
        (1, 16)
    """
    (name, own), *others = model.named_children()
    plain = isinstance(own, Transformer) and not isinstance(own, PonderTransformer)
    if not (plain and type(own).__module__.startswith("sentence_transformers.")):
        raise ArgumentError(
            "model",
            expected="one whose first module is the library's own Transformer",
            got=f"{type(own).__name__} of {type(own).__module__}",
            remedy="Assign the policy of one that exits already: model[0].model.policy = …; or build the model from "
            "PonderTransformer.of(exiting_model, tokenizer).",
        )
    first: Any = own
    exiting = PonderModel.from_encoder(first.auto_model, recipe, readout="tokens", policy=policy)
    exiting.train(False)
    settings = {
        each: getattr(first, each) for each in first.config_keys if each not in _OF_THE_MODULE
    }
    modules: Any = OrderedDict(
        [(name, PonderTransformer.of(exiting, first.processor, **settings)), *others]
    )
    prompts: Any = model.prompts
    made = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )
    handed_on = model.module_kwargs or {}  # by `encode`; the first module would not read it
    made.module_kwargs = {place: names for place, names in handed_on.items() if place != name}
    return made
