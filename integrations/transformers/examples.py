"""An example that a configuration alone gives: what an encoder is called with, in a small batch, to be learned from."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ponder.errors import ArgumentError

__all__ = ["example_for", "further_inputs"]

_ROWS = 3
_LENGTHS = (9, 6, 4)  # the longest first, so that it is seen to leave first; no two dimensions of one size
_SAMPLES = 3000  # of raw audio, enough for the seven convolutions of wav2vec 2.0


def example_for(encoder: PreTrainedModel) -> dict[str, Any]:
    """What `encoder` is called with: three rows of its main input, with a mask where it takes one.

    Raises:
        ArgumentError: It reads something else than text, images or audio.
    """
    name = encoder.main_input_name
    make = _MAKERS.get(name) if isinstance(name, str) else None
    if make is None:
        raise ArgumentError(
            "encoder",
            expected=f"an encoder whose main input is one of {', '.join(_MAKERS)}",
            got=f"{name!r}",
            remedy="Capture it with an example of your own: ponder.capture(encoder, example).",
        )
    generator = torch.Generator().manual_seed(0)
    example: dict[str, Any] = {name: make(encoder.config, generator)}
    takes = set(inspect.signature(encoder.forward).parameters)
    if name == "input_ids" and "attention_mask" in takes:
        example["attention_mask"] = (torch.arange(_LENGTHS[0]) < torch.tensor(_LENGTHS)[:, None]).long()
    if name == "input_ids" and _reads_the_end(encoder):
        example[name][torch.arange(_ROWS), torch.tensor(_LENGTHS) - 1] = encoder.config.eos_token_id
    if name == "input_ids" and "bbox" in takes:
        example["bbox"] = torch.zeros(*example[name].shape, 4, dtype=torch.long)
    weights = next(encoder.parameters())
    return {
        key: value.to(weights.device, weights.dtype if value.is_floating_point() else value.dtype)
        for key, value in example.items()
    }


def further_inputs(encoder: PreTrainedModel) -> list[str]:
    """What an encoder reads besides its main input, mask and token types, in its example: boxes of words, say."""
    if encoder.main_input_name not in _MAKERS:  # whoever wrote an adapter for it knows
        return []
    return sorted(example_for(encoder).keys() - {encoder.main_input_name, "attention_mask", "token_type_ids"})


def _reads_the_end(model: PreTrainedModel) -> bool:
    """Whether the head of an encoder-decoder reads the end of each text, which BART's, say, looks for by its id."""
    config: Any = model.config
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    ends = isinstance(getattr(config, "eos_token_id", None), int)
    return classifies and ends and bool(getattr(config, "is_encoder_decoder", False))


def _token_ids(config: Any, generator: torch.Generator) -> Tensor:
    """Ids that are not special; the first token of a row and padding are what the configuration names."""
    named = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep", "mask")]
    special = {one for each in named for one in (each if isinstance(each, list | tuple) else [each])}  # several ends
    vocabulary = int(getattr(config, "vocab_size", None) or 256)
    usable = [token for token in range(min(vocabulary, 1000)) if token not in special]
    picked = torch.randint(len(usable), (_ROWS, _LENGTHS[0]), generator=generator)
    ids = torch.tensor(usable)[picked]
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and 0 <= pad < vocabulary:
        ids[torch.arange(_LENGTHS[0]) >= torch.tensor(_LENGTHS)[:, None]] = pad
    return ids


def _images(config: Any, generator: torch.Generator) -> Tensor:
    if not getattr(config, "image_size", None):  # of images and texts, as CLIP's
        config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = getattr(config, "num_channels", None) or getattr(config, "in_channels", None) or 3
    frames = (int(config.num_frames),) if getattr(config, "num_frames", None) else ()
    return torch.randn(_ROWS, *frames, int(channels), int(height), int(width), generator=generator)


def _waves(config: Any, generator: torch.Generator) -> Tensor:
    """Raw audio; spectrograms for the encoders that name their length."""
    if getattr(config, "num_mel_bins", None) and getattr(config, "max_length", None):
        return torch.randn(_ROWS, int(config.max_length), int(config.num_mel_bins), generator=generator)
    return torch.randn(_ROWS, _SAMPLES, generator=generator)


def _features(config: Any, generator: torch.Generator) -> Tensor:
    """Spectrograms, frames first, but for the family of Whisper, which has the bins first and frames in pairs."""
    if getattr(config, "max_source_positions", None) and getattr(config, "num_mel_bins", None):
        return torch.randn(_ROWS, int(config.num_mel_bins), 2 * int(config.max_source_positions), generator=generator)
    names = ("input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins")
    bins = next((int(getattr(config, name)) for name in names if getattr(config, name, None)), 80)
    return torch.randn(_ROWS, 40, bins, generator=generator)


_MAKERS = {"input_ids": _token_ids, "pixel_values": _images, "input_values": _waves, "input_features": _features}
