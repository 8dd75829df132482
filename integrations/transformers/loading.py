"""Weights from files: from safetensors only, all of them there, and each of the shape that the model has."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedModel

from ponder.errors import CheckpointError, PonderError
from ponder.integrations.transformers.encoders import encoder_of

__all__ = ["load_encoder", "load_whole"]

Source = str | PathLike[str]


def load_encoder(source: Source) -> PreTrainedModel:
    """A bare encoder in float32, from a folder or the hub (of an encoder-decoder, its encoder); never remote code."""
    model: PreTrainedModel = load_whole(
        AutoModel.from_pretrained,
        str(source),
        "encoder",
        "Pass a folder that holds both, or, with a network, a hub name such as 'albert-base-v2' "
        "(a saved PonderForSequenceClassification is read by its from_pretrained).",
        trust_remote_code=False,
        dtype=torch.float32,
    )[0]
    return encoder_of(model)


def load_whole(
    load: Callable[..., Any], source: Source | None, what: str, remedy: str, **arguments: Any
) -> tuple[Any, dict[str, Any]]:
    """Call `load`, a `from_pretrained` of Transformers, and refuse what it would fill up with random weights.

    Args:
        load: Called with `source` and `arguments`.
        source: A folder, or a name on the hub.
        what: What is loaded, for messages.
        remedy: What to do, a full sentence.
        arguments: For `load`; with `ignore_mismatched_sizes`, other shapes are the caller's wish.

    Returns:
        The model, and Transformers' loading information.

    Raises:
        CheckpointError: Nothing is there, it is damaged, or it lacks weights. Only a pooler may be missing:
            checkpoints of masked language models have none, and fine-tuning trains it.
    """
    allowed = bool(arguments.get("ignore_mismatched_sizes", False))
    always = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        model, info = load(source, **{**arguments, **always})
    except PonderError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise _refusal(what, source, str(error), remedy) from error
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key.split("."))
    other = [] if allowed else sorted(key for key, *_ in info["mismatched_keys"])
    for fault, keys in (("it lacks", missing), ("of another shape are", other)):
        if keys:
            raise _refusal(what, source, f"{fault} {len(keys)} weights, {', '.join(keys[:3])} …", remedy)
    return model, info


def _refusal(what: str, source: Source | None, fault: str, remedy: str) -> CheckpointError:
    where = "folder" if source is not None and Path(source).exists() else "hub name or folder"
    return CheckpointError(
        f"{what}: expected a {where} with config.json and model.safetensors; got {str(source)!r} ({fault}). {remedy}"
    )
