"""Families of encoders: the encoder in a Transformers model, and example inputs for it.

An encoder is captured by running it, so it needs an example: three rows of its main input, made up
from its configuration alone, or an example of the user's (`from_encoder(example=…)`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, PreTrainedModel

from ponder.errors import ArgumentError

__all__ = ["constants_of", "encoder_of", "example_for", "frames_mask", "pack", "unpack"]

_ROWS = 3
# The longest row comes first, since proofs let the first row exit. No two dimensions have one size.
_LENGTHS = (9, 6, 4)
# Samples of raw audio, enough for the seven convolutions of wav2vec 2.0.
_SAMPLES = 5000


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the bare encoder in a model: the model, or the encoder of an encoder-decoder.

    Raises:
        ArgumentError: It has heads.
    """
    bare: Any = MODEL_MAPPING.get(type(model.config), ())
    if not isinstance(bare, list | tuple):  # most configurations have one class
        bare = (bare,)
    is_bare = type(model) in bare
    has_base = isinstance(model.base_model, PreTrainedModel) and model.base_model is not model
    if model.config.model_type == "ponder" or (has_base and not is_bare):
        raise ArgumentError(
            "encoder",
            expected="a bare encoder",
            got=f"{type(model).__name__}, which has heads",
            remedy="Pass its base_model; from_finetuned keeps the head.",
        )
    if not getattr(type(model.config), "is_encoder_decoder", False):
        return model
    half: PreTrainedModel = model.get_encoder()
    return half


def example_for(model: PreTrainedModel) -> dict[str, Any]:
    """Return arguments of a model: three rows of its main input, and a mask if it takes one.

    Raises:
        ArgumentError: The model reads neither text nor images nor audio.
    """
    name = model.main_input_name
    config = model.config
    make = _MAKERS.get(name) if isinstance(name, str) else None
    if make is None:
        expected = f"an encoder whose main input is one of {', '.join(_MAKERS)}"
        remedy = "Pass example={…}, the arguments of its forward for two rows or more."
        raise ArgumentError("encoder", expected=expected, got=repr(name), remedy=remedy)
    takes = inspect.signature(model.forward).parameters
    example: dict[str, Any] = {name: make(config, torch.Generator().manual_seed(0))}
    if name == "input_ids":
        if "attention_mask" in takes:
            example["attention_mask"] = (
                torch.arange(_LENGTHS[0]) < torch.tensor(_LENGTHS)[:, None]
            ).long()
        if _reads_the_end(model):
            example[name][torch.arange(_ROWS), torch.tensor(_LENGTHS) - 1] = config.eos_token_id
        if "bbox" in takes:
            example["bbox"] = torch.zeros(*example[name].shape, 4, dtype=torch.long)
    return _like_weights(example, model)


def constants_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return arguments of every call: no cache, and a `ModelOutput` without states."""
    takes = inspect.signature(model.forward).parameters
    constants: dict[str, Any] = {name: False for name in ("use_cache", "use_mems") if name in takes}
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    for name, value in {
        "return_dict": True,
        "output_hidden_states": False,
        "output_attentions": False,
    }.items():
        if getattr(model.config, name, value) != value and (name in takes or open_ended):
            constants[name] = value
    return constants


def pack(example: Mapping[str, Any]) -> dict[str, Any]:
    """Return an example as plain JSON: integers by value, other tensors by shape."""
    packed: dict[str, Any] = {}
    for name, value in example.items():
        if not isinstance(value, Tensor):
            packed[name] = {"value": value}
        elif value.is_floating_point():
            packed[name] = {"shape": list(value.shape)}
        else:
            packed[name] = {
                "value": value.tolist(),
                "dtype": str(value.dtype).removeprefix("torch."),
            }
    return packed


def unpack(packed: Mapping[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Return a packed example, with random numbers for tensors that were packed by shape."""
    generator = torch.Generator().manual_seed(0)
    example = {}
    for name, kept in packed.items():
        if "shape" in kept:
            example[name] = torch.randn(kept["shape"], generator=generator)
        elif "dtype" in kept:
            example[name] = torch.tensor(kept["value"], dtype=getattr(torch, kept["dtype"]))
        else:
            example[name] = kept["value"]
    return _like_weights(example, model)


def frames_mask(model: PreTrainedModel, mask: Tensor, length: int) -> Tensor:
    """Return the mask of the frames of an audio model; that of another model, unchanged."""
    shorten = getattr(model, "_get_feature_vector_attention_mask", None)
    if shorten is None or mask.shape[1] == length:
        return mask
    lengths = getattr(model, "_get_feat_extract_output_lengths", None)
    frames = 0
    if lengths is not None:
        frames = int(lengths(torch.tensor(mask.shape[1])))
    shortened: Tensor = shorten(max(frames, length), mask)
    return shortened


def _like_weights(example: dict[str, Any], model: PreTrainedModel) -> dict[str, Any]:
    """Return an example on the model's device, and in its dtype of floating-point numbers."""
    weights = next(model.parameters())
    moved = dict(example)
    for name, value in example.items():
        if isinstance(value, Tensor):
            dtype = value.dtype
            if value.is_floating_point():
                dtype = weights.dtype
            moved[name] = value.to(weights.device, dtype)
    return moved


def _reads_the_end(model: PreTrainedModel) -> bool:
    """Whether the head of an encoder-decoder finds the end of a text by its id, as in BART."""
    config: Any = model.config
    ends = isinstance(getattr(config, "eos_token_id", None), int) and getattr(
        config, "is_encoder_decoder", False
    )
    return bool(ends) and type(model).__name__.endswith("ForSequenceClassification")


def _token_ids(config: Any, generator: torch.Generator) -> Tensor:
    """Return ids of tokens that are not special, with the padding of the configuration."""
    named = [
        getattr(config, f"{name}_token_id", None)
        for name in ("pad", "bos", "eos", "cls", "sep", "mask")
    ]
    special: set[Any] = set()
    for token in named:
        if isinstance(token, list | tuple):
            special |= set(token)
        else:
            special.add(token)
    vocabulary = int(getattr(config, "vocab_size", None) or 256)
    usable = torch.tensor([token for token in range(min(vocabulary, 1000)) if token not in special])
    ids = usable[torch.randint(len(usable), (_ROWS, _LENGTHS[0]), generator=generator)]
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < vocabulary:
        ids[torch.arange(_LENGTHS[0]) >= torch.tensor(_LENGTHS)[:, None]] = pad
    return ids


def _images(config: Any, generator: torch.Generator) -> Tensor:
    """Return images, or videos if the configuration has a number of frames."""
    if not getattr(config, "image_size", None):  # a model of images and texts, such as CLIP
        config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    if not isinstance(size, list | tuple):
        size = (size, size)
    height, width = size
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    frames: tuple[int, ...] = ()
    if getattr(config, "num_frames", None):
        frames = (int(config.num_frames),)
    return torch.randn(_ROWS, *frames, int(channels), int(height), int(width), generator=generator)


def _waves(config: Any, generator: torch.Generator) -> Tensor:
    """Return raw audio; spectrograms for encoders that name the length of these."""
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return torch.randn(
            _ROWS, int(config.max_length), int(config.num_mel_bins), generator=generator
        )
    return torch.randn(_ROWS, _SAMPLES, generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor:
    """Return spectrograms, frames first; for Whisper bins first, and an even number of frames."""
    if getattr(config, "max_source_positions", None) and getattr(config, "num_mel_bins", None):
        return torch.randn(
            _ROWS,
            int(config.num_mel_bins),
            2 * int(config.max_source_positions),
            generator=generator,
        )
    names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins")
    bins = next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 80)
    return torch.randn(_ROWS, 40, bins, generator=generator)


_MAKERS = {
    "input_ids": _token_ids,
    "pixel_values": _images,
    "input_values": _waves,
    "input_features": _features,
}
