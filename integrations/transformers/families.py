"""Families of encoders, and what holds for each: found by running a tiny random encoder of each, never by hand.

``python -m ponder.integrations.transformers.families`` runs them all and writes what `supported` gives and the page
`docs/families.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ponder.errors import ArgumentError
from ponder.integrations.transformers.captured import CapturedAdapter
from ponder.integrations.transformers.encoders import adapter_for, encoder_of

__all__ = ["FAMILIES", "Family", "Holds", "supported", "tiny_encoder", "what_holds"]

_FOUND = Path(__file__).with_name("families.json")

_TINY: Mapping[str, Any] = {
    "vocab_size": 64,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "hidden_size": 16,
    "embedding_size": 16,
    "intermediate_size": 24,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "d_ff": 24,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "encoder_layers": 4,
    "decoder_layers": 1,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 64,
    "max_source_positions": 20,
    "image_size": 32,
    "patch_size": 8,
    "num_mel_bins": 8,
    "input_feat_per_channel": 8,
    "max_length": 64,
}
"""What makes a configuration small, under the names that most families share."""

_WAVES = {"conv_dim": [8, 8, 8, 8, 8, 8, 8], "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
_STAGES = {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 4, "patch_size": 2}


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Args:
        model_type: As in Transformers.
        variant: What makes this configuration another one than the family's usual, or empty.
        config: Fields of the configuration, besides `_TINY`.
    """

    model_type: str
    variant: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model type, and the variant where there is one."""
        return f"{self.model_type} ({self.variant})" if self.variant else self.model_type


@dataclass(frozen=True)
class Holds:
    """What holds for a family, as its tiny random encoder showed it.

    Args:
        name: The family.
        reads: The main input.
        how: How its layers are called: ``"own"`` (an adapter of its own), ``"layers"`` (captured; layers are called
            directly) or ``"between"`` (captured, with code of the encoder's own between the layers, which is slower).
        readouts: Which there are, of ``"pooler"``, ``"mean"`` and ``"tokens"``.
        narrows: Whether batches get narrower when their longest rows have left.
        refused: Why it cannot be wrapped; empty where it can.
    """

    name: str
    reads: str
    how: str = ""
    readouts: tuple[str, ...] = ()
    narrows: bool = False
    refused: str = ""


def supported() -> tuple[Holds, ...]:
    """The families of encoders that were tried with this version, and what holds for each.

    An encoder of another family is captured too, or refused with the reason.
    """
    rows = json.loads(_FOUND.read_text(encoding="utf-8"))
    return tuple(Holds(**{**row, "readouts": tuple(row["readouts"])}) for row in rows)


def tiny_encoder(family: Family, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A tiny random encoder of a family, in evaluation mode, with weights at which no layer stands still.

    Args:
        family: The family.
        attention: The implementation of attention; Transformers' choice where None.
        seed: Of the weights.
    """
    torch.manual_seed(seed)
    chosen = {} if attention is None else {"attn_implementation": attention}
    encoder = encoder_of(AutoModel.from_config(_tiny_config(family), **chosen))
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    return encoder.eval()


def what_holds(family: Family) -> Holds:
    """Build a tiny encoder of the family, and see whether and how it can be read."""
    encoder = tiny_encoder(family)
    reads = str(encoder.main_input_name)
    try:
        adapter = adapter_for(encoder)
    except ArgumentError as error:
        return Holds(family.name, reads, refused=str(error))
    how = "own"
    if isinstance(adapter, CapturedAdapter):
        how = "between" if adapter.learned().between else "layers"
    readouts = tuple(name for name in ("pooler", "mean", "tokens") if adapter.has_readout(name))
    return Holds(family.name, reads, how, readouts, adapter.padding() is not None)


def _tiny_config(family: Family) -> Any:
    kind = type(AutoConfig.for_model(family.model_type))
    names = getattr(kind, "attribute_map", {})
    known = kind().to_dict()
    fields = {}
    for name, value in _TINY.items():
        own = names.get(name, name)
        if own in known and not isinstance(known[own], list | tuple | dict):
            fields[own] = value
    return kind(**{**fields, **{names.get(name, name): value for name, value in family.config.items()}})


_TEXT = (
    "albert bert bert-generation big_bird bros camembert canine convbert data2vec-text deberta deberta-v2 distilbert dpr "
    "electra ernie esm eurobert flaubert fnet funnel gte ibert layoutlm lilt longformer luke markuplm megatron-bert "
    "mobilebert modernbert mpnet mra nomic_bert nystromformer perceiver reformer rembert roberta roberta-prelayernorm "
    "roc_bert roformer splinter squeezebert tapas visual_bert xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso "
    "clip_text_model"
)
_HALVES = (
    "bart bigbird_pegasus blenderbot led longt5 m2m_100 marian mbart mt5 mvp pegasus plbart prophetnet "
    "switch_transformers t5 umt5"
)
_DECODERS = (
    "bloom codegen falcon gemma gemma2 gemma3_text gpt2 gpt_neo gpt_neox gptj llama mamba mistral mixtral mpt olmo2 opt "
    "phi phi3 qwen2 qwen3 stablelm"
)
_IMAGES = (
    "beit clip_vision_model convnext data2vec-vision deit dinov2 dinov2_with_registers dinov3_vit dpt hiera ijepa pvt "
    "resnet siglip_vision_model swin swinv2 timesformer videomae vit vit_mae vit_msn vitdet vivit yolos"
)
_AUDIO = (
    "audio-spectrogram-transformer data2vec-audio hubert moonshine sew sew-d speech_to_text unispeech unispeech-sat "
    "wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper"
)
_FIELDS: Mapping[str, Mapping[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "longformer": {"attention_window": 4},
    "led": {"attention_window": 4},
    "swin": _STAGES,
    "swinv2": _STAGES,
    **dict.fromkeys(
        ("data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wavlm", "wav2vec2-conformer"), _WAVES
    ),
}
FAMILIES: tuple[Family, ...] = tuple(
    Family(model_type, config=_FIELDS.get(model_type, {}))
    for group in (_TEXT, _HALVES, _DECODERS, _IMAGES, _AUDIO)
    for model_type in group.split()
)
