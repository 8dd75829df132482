"""Loading of Transformers models: whole ones only, whose every weight is in their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import transformers
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers.families import encoder_of

if TYPE_CHECKING:
    from ponder.integrations.transformers.config import PonderConfig

__all__ = [
    "AutoClass",
    "check_has_weights",
    "check_saveable",
    "load_whole",
    "new_encoder",
    "reading_from",
]


HubOptions: TypeAlias = Mapping[str, Any]
"""Arguments of `from_pretrained` by which files on the hub are found, such as `revision`."""


AutoClass: TypeAlias = type[_BaseAutoModelClass]
"""An Auto class of Transformers, such as `AutoModelForTokenClassification`."""


@dataclass(frozen=True)
class _ReadingFrom:
    """The arguments of `from_pretrained`: a folder or name, trust in its code, and hub options."""

    source: str
    trusts_code: bool | None
    hub: HubOptions


# A configuration that names code has to know where it is read from, and Transformers does not pass
# that on to the model's constructor.
_SOURCE: ContextVar[_ReadingFrom | None] = ContextVar("_SOURCE", default=None)


@contextmanager
def reading_from(source: str, trusts_code: bool | None, hub: HubOptions) -> Iterator[None]:
    """Run a block in which models are read from a folder or a hub name."""
    token = _SOURCE.set(_ReadingFrom(source, trusts_code, hub))
    try:
        yield
    finally:
        _SOURCE.reset(token)


def load_whole(
    auto: AutoClass,
    source: str | PathLike[str] | PreTrainedModel,
    loading: Mapping[str, object],
) -> PreTrainedModel:
    """Return a model of Transformers, loaded from a folder or a name; no weight may be random."""
    if isinstance(source, PreTrainedModel):
        if loading:
            names = ", ".join(loading)
            raise TypeError(f"unexpected keyword arguments for a model that is loaded: {names}")
        return source
    arguments: dict[str, Any] = {"dtype": torch.float32, **loading, "output_loading_info": True}
    model: PreTrainedModel
    model, info = auto.from_pretrained(str(source), **arguments)
    missing = info["missing_keys"]
    if auto is AutoModel:
        # Checkpoints of language models have no pooler, and many encoders do without.
        missing = [key for key in missing if "pooler" not in key.split(".")]
    check_has_weights(str(source), model, missing)
    return model


def check_has_weights(source: str, model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a folder that lacks weights: Transformers draws them at random, and only logs it."""
    lacking = sorted(missing)
    if lacking:
        raise CheckpointError(
            f"{source}: expected all weights of a {type(model).__name__}; it lacks "
            f"{', '.join(lacking[:3])}, which would be random. Pass the folder of a fine-tuned "
            "model, or its encoder to from_encoder."
        )


def check_saveable(model: PreTrainedModel) -> None:
    """Refuse, before any training, a model that its configuration and files would not make again.

    Raises:
        ArgumentError: Its class belongs neither to Transformers nor to an Auto class, or it holds
            adapters of peft.
    """
    kind: Any = type(model)
    is_known = (
        kind.__module__.startswith("transformers.")
        or kind._auto_class is not None
        or kind is MODEL_MAPPING.get(type(model.config), None)
    )
    packages = {type(part).__module__.partition(".")[0] for part in model.modules()}
    if is_known and "peft" not in packages:
        return
    if is_known:
        got = f"a {kind.__name__} with adapters of peft"
        remedy = "Pass what model.merge_and_unload() returns."
    else:
        got = f"a {kind.__name__} of {kind.__module__}"
        remedy = (
            "Call its register_for_auto_class('AutoModel'), so that its code is saved with it; or "
            "use ponder.PonderWrapper with the parts that ponder.capture returns."
        )
    expected = "a model that can be read again from its files"
    raise ArgumentError("encoder", expected=expected, got=got, remedy=remedy)


def new_encoder(config: PonderConfig, attention: str | None) -> PreTrainedModel:
    """Return a new encoder, or model with a head, made from the configuration.

    Args:
        config: The configuration of a model with exits.
        attention: The implementation of attention that was requested.
    """
    options = {"attn_implementation": attention, "dtype": config.dtype}
    has_code = bool(config.remote_code)
    if has_code:
        source = _SOURCE.get() or _ReadingFrom(str(config.name_or_path), None, {})
        config.trust(source.source, source.trusts_code, **source.hub)
    if not config.finetuned:
        return _new_bare_encoder(config, options)
    if not has_code:
        kind = getattr(transformers, str(config.architecture))
        return kind._from_config(config.encoder, **options)  # type: ignore[no-any-return]
    name = next(
        auto
        for auto, path in config.remote_code.items()
        if path.endswith(f".{config.architecture}")
    )
    auto = getattr(transformers, name)
    whole: PreTrainedModel = auto.from_config(config.encoder, trust_remote_code=True, **options)
    return whole


def _new_bare_encoder(config: PonderConfig, options: Mapping[str, object]) -> PreTrainedModel:
    """Return a new bare encoder, by its configuration, or by its name if that is not enough.

    Transformers has two models for one configuration of Funnel, and none for that of the half of
    T5Gemma.
    """
    own: Any = config.encoder
    has_code = bool(config.remote_code)
    known = MODEL_MAPPING.get(type(own), ())
    if has_code or not isinstance(known, list | tuple):
        whole: PreTrainedModel = AutoModel.from_config(own, trust_remote_code=has_code, **options)
        return encoder_of(whole)
    models = import_module(type(own).__module__.replace(".configuration_", ".modeling_"))
    kind: Any = getattr(models, str(config.architecture))
    half: PreTrainedModel = kind._from_config(own, **options)
    return half
