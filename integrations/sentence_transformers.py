"""Sentence Transformers whose rows exit early; needs the extra `sentence-transformers`.

`with_exits(model)` returns a `SentenceTransformer` whose encoder exits per row. `PonderTransformer`
is the module that does it: it replaces the library's `Transformer`, in a `CrossEncoder` too, and
`encode` and `predict` then take `policy=`. The `CrossEncoder` of this module ranks: candidates that
cannot be among the best exit early.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from tempfile import TemporaryDirectory
from typing import Any, Self, TypeAlias

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

from ponder.errors import ArgumentError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderModel
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.integrations.transformers.texts import ids_by_content
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe

__all__ = ["CrossEncoder", "PonderTransformer", "with_exits"]

ExitingModel: TypeAlias = PonderModel | PonderForSequenceClassification
"""A model whose rows exit early, of embeddings or of scores."""
Processor: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin
"""A tokenizer of Transformers, or another of its processors."""
Features: TypeAlias = dict[str, Any]
"""What the modules of a `SentenceTransformer` pass on: tensors by name, and settings."""
_TASKS: dict[type[PreTrainedModel], Any] = {
    PonderModel: "feature-extraction",
    PonderForSequenceClassification: "sequence-classification",
}
_OF_THE_MODULE = ("transformer_task", "modality_config", "module_output_name", "unpad_inputs")
"""Settings of a `Transformer` that describe its model, which is replaced; all others are kept."""


class PonderTransformer(Transformer):
    """The first module of a `SentenceTransformer` or `CrossEncoder`, whose rows exit early.

    A `PonderModel` returns the tokens of each row at its exit (``readout="tokens"``), which the
    modules behind it pool, or, with another readout, the embedding. A
    `PonderForSequenceClassification` returns scores. The features also contain `exit_step`, which
    `encode(texts, output_value=None)` returns.

    In training every step runs, and the answer is that of the last. The tokens of each step are in
    the features as `all_layer_embeddings`, with which the library's `AdaptiveLayerLoss` trains
    every exit. In evaluation mode they are there, too, at full depth, if
    `config.output_hidden_states` is set, as that loss sets it, and no policy is passed.

    Args:
        model_name_or_path: A folder that `save` wrote, or a saved model of this package with its
            tokenizer.
        options: Arguments of `Transformer`.

    Example:
        >>> from ponder.integrations.transformers import PonderModel
        >>> model = PonderModel.from_encoder(encoder, "vanilla", readout="tokens")
        >>> module = PonderTransformer.of(model, tokenizer)
        >>> module.get_embedding_dimension()
        16
    """

    forward_kwargs = {"policy"}  # noqa: RUF012 (the base class's protocol)
    """Arguments that `encode` and `predict` pass on to `forward`."""
    model: Any

    def __init__(self, model_name_or_path: str, **options: Any) -> None:
        super().__init__(model_name_or_path, **options)
        self._limit_length()

    def _limit_length(self) -> None:
        """Limit the length of the tokenizer to the positions of the encoder."""
        longest = getattr(self.model.encoder.config, "max_position_embeddings", None)
        if self.tokenizer is not None and isinstance(longest, int) and longest > 0:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)

    @classmethod
    def of(cls, model: ExitingModel, processor: Processor, **options: Any) -> Self:
        """Make the module around a model in memory; its weights are used, not copied.

        Args:
            model: A `PonderModel`, or a `PonderForSequenceClassification`.
            processor: Its tokenizer, or another processor of Transformers.
            options: Arguments of `Transformer`.
        """
        # The base class reads the configuration and the processor from files only.
        with TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            loading = {**(options.pop("model_kwargs", None) or {}), "model": model}
            task = _TASKS[type(model)]
            module = cls(folder, transformer_task=task, model_kwargs=loading, **options)
        # Files lack some of its settings, such as truncation_side.
        module.processor = copy.deepcopy(processor)
        module._limit_length()
        return module

    def _load_model(
        self, *args: Any, model: ExitingModel | None = None, **options: Any
    ) -> PreTrainedModel:
        """Return the model that `of` was given, or else the one in the folder."""
        if model is not None:
            return model
        loaded: PreTrainedModel = super()._load_model(*args, **options)
        return loaded

    def get_embedding_dimension(self) -> int:
        """Return the size of the features of a token or a row."""
        return int(self.model.config.feature_size)

    def forward(
        self, features: Features, policy: ExitPolicy | None = None, **ignored: Any
    ) -> Features:
        """Run each row to its exit.

        Args:
            features: The output of `preprocess`. `token_embeddings`, `sentence_embedding` or
                `scores`, and `exit_step`, `(batch,)`, are added to it.
            policy: An exit policy instead of the model's.
            ignored: Arguments of other modules.
        """
        model = self.model
        config = self.model.config
        inputs = {name: features[name] for name in model.adapter.inputs if name in features}
        returns_tokens = isinstance(model, PonderModel) and config.readout == "tokens"
        wants_layers = config.output_hidden_states and policy is None and not model.training
        if returns_tokens and wants_layers:
            layers = list(model.unroll(**inputs).outputs.unbind(1))
            last = layers[-1]
            features["all_layer_embeddings"] = layers
            features["token_embeddings"] = last
            features["exit_step"] = torch.full((len(last),), len(layers), device=last.device)
            return features
        out = model(**inputs, policy=policy, row_ids=ids_by_content(inputs))
        if isinstance(model, PonderForSequenceClassification):
            features["scores"] = out.logits
        elif not returns_tokens:
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
    """Return a model whose first module is a `PonderTransformer`; other modules are shared.

    The weights are used, not copied, and the model itself is not changed. Without a policy, every
    row runs to the last step, and the embeddings are those of the model. Early steps of an encoder
    that was never trained to exit are poor embeddings: train them (`AdaptiveLayerLoss`), then
    choose the policy on your data.

    Args:
        model: The model.
        recipe: A recipe or its name: the heads, and the default policy. `vanilla` adds no weights,
            and runs to the end.
        policy: An exit policy instead of the recipe's.

    Raises:
        ArgumentError: The first module is not a `Transformer`, or is a subclass, whose code would
            be lost.

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        >>> encoder.save_pretrained("encoder")
        >>> _ = tokenizer.save_pretrained("encoder")
        >>> plain = SentenceTransformer(modules=[Transformer("encoder"), Pooling(16)], device="cpu")
        >>> with_exits(plain).encode(["a short text"], policy=policies.FixedStep(2)).shape
        (1, 16)
    """
    (name, module), *others = model.named_children()
    is_plain = isinstance(module, Transformer) and not isinstance(module, PonderTransformer)
    if not (is_plain and type(module).__module__.startswith("sentence_transformers.")):
        raise ArgumentError(
            "model",
            expected="a model whose first module is the library's Transformer",
            got=f"{type(module).__name__} of {type(module).__module__}",
            remedy="If it exits already, assign its policy: model[0].model.policy = …; or build "
            "the model from PonderTransformer.of(exiting_model, tokenizer).",
        )
    first: Any = module
    exiting = PonderModel.from_encoder(first.auto_model, recipe, readout="tokens", policy=policy)
    exiting.train(False)
    settings = {
        each: getattr(first, each) for each in first.config_keys if each not in _OF_THE_MODULE
    }
    modules: Any = OrderedDict(
        [(name, PonderTransformer.of(exiting, first.processor, **settings)), *others]
    )
    prompts: Any = model.prompts
    result = SentenceTransformer(
        modules=modules,
        device=str(model.device),
        prompts=prompts,
        default_prompt_name=model.default_prompt_name,
        similarity_fn_name=model.similarity_fn_name,
        truncate_dim=model.truncate_dim,
    )
    # The arguments that `encode` passes on to each module; the new first one has its own.
    passed_on = model.module_kwargs or {}
    result.module_kwargs = {place: names for place, names in passed_on.items() if place != name}
    return result
