"""`with_exits`: a `SentenceTransformer` as it is, but that its encoder exits per row."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Transformer
from torch import nn

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.sentence_transformers.transformer import PonderTransformer
from ponder.integrations.transformers import PonderModel
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe

__all__ = ["with_exits"]

_OF_THE_MODULE = ("transformer_task", "modality_config", "module_output_name", "unpad_inputs")
"""Settings of a `Transformer` that say what its model is, which is another one now; all others are kept."""


def with_exits(
    model: SentenceTransformer, recipe: str | Recipe = "vanilla", *, policy: ExitPolicy | None = None
) -> SentenceTransformer:
    """The model with a `PonderTransformer` in the place of its first module; all other modules are its own.

    The weights are used, not copied. Until a policy is named, every row runs to the last step, and the embeddings are
    those of the model as it is. Early steps of an encoder that was never trained to exit are poor embeddings: train
    them (`AdaptiveLayerLoss`), then choose the policy on data of your own.

    Args:
        model: The model.
        recipe: A recipe or its name: what heads the model gets, and the policy of calls that name none. `vanilla` adds
            no weights, and runs to the end.
        policy: An exit policy instead of the recipe's.

    Raises:
        ArgumentTypeError: It is no `SentenceTransformer`.
        ArgumentError: Its first module is no `Transformer`, it or that module has code of its own, or the encoder
            cannot be captured (says why).

    Example:
        >>> from sentence_transformers import SentenceTransformer
        >>> from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        >>> encoder.save_pretrained("encoder")
        >>> _ = tokenizer.save_pretrained("encoder")
        >>> plain = SentenceTransformer(modules=[Transformer("encoder"), Pooling(16)], device="cpu")
        >>> with_exits(plain).encode(["a short text"], policy=policies.FixedStep(2)).shape
        (1, 16)
    """
    if not isinstance(model, SentenceTransformer):
        raise ArgumentTypeError(
            "model",
            expected="a SentenceTransformer",
            got=type(model).__name__,
            remedy="Build a CrossEncoder: CrossEncoder(modules=[PonderTransformer.of(classifier, tokenizer)]).",
        )
    first, *others = model.named_children()
    name, own = first
    if not isinstance(own, Transformer) or isinstance(own, PonderTransformer):
        raise ArgumentError(
            "model",
            expected="one whose first module is a Transformer",
            got=type(own).__name__,
            remedy="Assign the policy of one that exits already: model[0].model.policy = ….",
        )
    if lost := _code_of_its_own(model, SentenceTransformer):
        raise ArgumentError(
            "model",
            expected="one that runs as a SentenceTransformer does",
            got=f"a {type(model).__name__} with {lost} of its own, which would be lost",
            remedy="Build it from its other modules and PonderTransformer.of(exiting_model, tokenizer).",
        )
    if lost := _code_of_its_own(own, Transformer):
        raise ArgumentError(
            "model",
            expected="one whose first module runs as a Transformer does",
            got=f"a {type(own).__name__} with {lost} of its own, which would be lost",
            remedy="Put what that does before encode or into a module behind the first, or build the model from "
            "PonderTransformer.of(exiting_model, tokenizer).",
        )
    exiting = PonderModel.from_encoder(own.auto_model, recipe, readout="tokens", policy=policy)
    exiting.train(False)
    settings = {name: getattr(own, name) for name in own.config_keys if name not in _OF_THE_MODULE}
    module = PonderTransformer.of(exiting, own.processor, **settings)
    modules: Any = OrderedDict([(name, module), *others])
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


def _code_of_its_own(module: nn.Module, base: type[nn.Module]) -> str | None:
    """What a module does otherwise than the library's `base`: a method by name, or hooks; None for nothing."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "hooks"
    kinds = type(module).__mro__[: type(module).__mro__.index(base)]
    users = [vars(kind) for kind in kinds if not kind.__module__.startswith("sentence_transformers.")]
    methods = {name for name in dir(base) if not name.startswith("_") and callable(getattr(base, name))}
    return next((name for own in (vars(module), *users) for name in own if name in methods), None)
