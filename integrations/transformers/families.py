"""Families of encoders: the encoder in a Transformers model, and example inputs for it.

An encoder is captured by running it, so it needs an example: three rows of its main input, made up
from its configuration alone (`example_for`), or an example of the user's
(`from_encoder(example=…)`), which the configuration of the model keeps in plain JSON (`pack`,
`unpack`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TypeAlias, TypedDict

import torch
from torch import Tensor
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from ponder.errors import ArgumentError

__all__ = [
    "Arguments",
    "PackedExample",
    "constants_of",
    "encoder_of",
    "example_for",
    "frames_mask",
    "pack",
    "unpack",
]

Arguments: TypeAlias = dict[str, object]
"""Arguments of a model by name: tensors, batch first, and settings."""


class PackedValue(TypedDict, total=False):
    """An argument in plain JSON.

    A tensor of integers has `value` and `dtype`, another tensor has `shape`, and any other argument
    has `value` alone.
    """

    value: object
    dtype: str
    shape: list[int]


PackedExample: TypeAlias = dict[str, PackedValue]
"""An example in plain JSON, by the names of its arguments."""
_ROWS = 3
# The longest row comes first, since proofs let the first row exit. No two dimensions have one size.
_LENGTHS = (9, 6, 4)
# Samples of raw audio, enough for the seven convolutions of wav2vec 2.0.
_SAMPLES = 5000
_USED_TOKENS = 1000
"""Ids of tokens are drawn from the first of the vocabulary."""
_SPECIAL_TOKENS = ("pad", "bos", "eos", "cls", "sep", "mask")


def encoder_of(model: PreTrainedModel) -> PreTrainedModel:
    """Return the bare encoder in a model: the model, or the encoder of an encoder-decoder.

    Raises:
        ArgumentError: It has heads.
    """
    bare_classes: object = MODEL_MAPPING.get(type(model.config), ())
    if not isinstance(bare_classes, list | tuple):  # most configurations have one class
        bare_classes = (bare_classes,)
    is_bare = type(model) in bare_classes
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


def example_for(model: PreTrainedModel) -> Arguments:
    """Return arguments of a model: three rows of its main input, and a mask if it takes one.

    Raises:
        ArgumentError: The model reads neither text nor images nor audio.
    """
    name = model.main_input_name
    make = _MAKERS.get(name) if isinstance(name, str) else None
    if make is None:
        raise ArgumentError(
            "encoder",
            expected=f"an encoder whose main input is one of {', '.join(_MAKERS)}",
            got=repr(name),
            remedy="Pass example={…}, the arguments of its forward for two rows or more.",
        )
    main = make(model.config, torch.Generator().manual_seed(0))
    example: Arguments = {name: main}
    if name == "input_ids":
        example |= _beside_tokens(model, main)
    return _like_weights(example, model)


def _beside_tokens(model: PreTrainedModel, token_ids: Tensor) -> Arguments:
    """Return the mask and the boxes of token ids, if the model takes them; end texts if it must."""
    taken = inspect.signature(model.forward).parameters
    lengths = torch.tensor(_LENGTHS)
    arguments: Arguments = {}
    if "attention_mask" in taken:
        arguments["attention_mask"] = (torch.arange(_LENGTHS[0]) < lengths[:, None]).long()
    if _reads_the_end(model):
        token_ids[torch.arange(_ROWS), lengths - 1] = model.config.eos_token_id
    if "bbox" in taken:
        arguments["bbox"] = torch.zeros(*token_ids.shape, 4, dtype=torch.long)
    return arguments


def constants_of(model: PreTrainedModel) -> dict[str, bool]:
    """Return arguments of every call: no cache, and a `ModelOutput` without states."""
    taken = inspect.signature(model.forward).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    constants = {name: False for name in ("use_cache", "use_mems") if name in taken}
    wanted = {"return_dict": True, "output_hidden_states": False, "output_attentions": False}
    for name, value in wanted.items():
        differs = getattr(model.config, name, value) != value
        if differs and (takes_any or name in taken):
            constants[name] = value
    return constants


def pack(example: Mapping[str, object]) -> PackedExample:
    """Return an example as plain JSON: integers by value, other tensors by shape."""
    packed: PackedExample = {}
    for name, value in example.items():
        if not isinstance(value, Tensor):
            packed[name] = {"value": value}
        elif value.is_floating_point():
            packed[name] = {"shape": list(value.shape)}
        else:
            dtype = str(value.dtype).removeprefix("torch.")
            packed[name] = {"value": value.tolist(), "dtype": dtype}
    return packed


def unpack(packed: Mapping[str, PackedValue], model: PreTrainedModel) -> Arguments:
    """Return a packed example, with random numbers for tensors that were packed by shape."""
    generator = torch.Generator().manual_seed(0)
    example: Arguments = {}
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


def _like_weights(example: Arguments, model: PreTrainedModel) -> Arguments:
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
    has_end = isinstance(getattr(model.config, "eos_token_id", None), int)
    has_decoder = bool(getattr(model.config, "is_encoder_decoder", False))
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    return has_end and has_decoder and classifies


def _number(config: PretrainedConfig, *names: str) -> int | None:
    """Return the first of some fields that a configuration has, and that is not 0."""
    for name in names:
        value = getattr(config, name, None)
        if value:
            return int(value)
    return None


def _token_ids(config: PretrainedConfig, generator: torch.Generator) -> Tensor:
    """Return ids of tokens that are not special, with the padding of the configuration."""
    special: set[int | None] = set()
    for name in _SPECIAL_TOKENS:
        token = getattr(config, f"{name}_token_id", None)
        # Some models have several ends of a text.
        special.update(token if isinstance(token, list | tuple) else [token])
    vocabulary = _number(config, "vocab_size") or 256
    tokens = range(min(vocabulary, _USED_TOKENS))
    usable = torch.tensor([token for token in tokens if token not in special])
    drawn = torch.randint(len(usable), (_ROWS, _LENGTHS[0]), generator=generator)
    ids = usable[drawn]
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < vocabulary:
        lengths = torch.tensor(_LENGTHS)
        ids[torch.arange(_LENGTHS[0]) >= lengths[:, None]] = pad
    return ids


def _images(config: PretrainedConfig, generator: torch.Generator) -> Tensor:
    """Return images, or videos if the configuration has a number of frames."""
    if not getattr(config, "image_size", None):  # a model of images and texts, such as CLIP
        config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    if not isinstance(size, list | tuple):
        size = (size, size)
    height, width = size
    channels = _number(config, "num_channels", "in_channels") or 3
    frames = _number(config, "num_frames")
    shape = [_ROWS, channels, int(height), int(width)]
    if frames is not None:
        shape.insert(1, frames)
    return torch.randn(shape, generator=generator)


def _waves(config: PretrainedConfig, generator: torch.Generator) -> Tensor:
    """Return raw audio; spectrograms for encoders that name the length of these."""
    bins = _number(config, "num_mel_bins")
    length = _number(config, "max_length")
    if bins is not None and length is not None:
        return torch.randn(_ROWS, length, bins, generator=generator)
    return torch.randn(_ROWS, _SAMPLES, generator=generator)


def _features(config: PretrainedConfig, generator: torch.Generator) -> Tensor:
    """Return spectrograms, frames first; for Whisper bins first, and an even number of frames."""
    bins = _number(config, "num_mel_bins")
    positions = _number(config, "max_source_positions")
    if bins is not None and positions is not None:
        return torch.randn(_ROWS, bins, 2 * positions, generator=generator)
    width = _number(
        config, "input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins"
    )
    return torch.randn(_ROWS, 40, width or 80, generator=generator)


_MAKERS: Mapping[str, Callable[[PretrainedConfig, torch.Generator], Tensor]] = {
    "input_ids": _token_ids,
    "pixel_values": _images,
    "input_values": _waves,
    "input_features": _features,
}
"""By the name of the main input, a function that makes three rows of it."""
