"""Families of encoders, and what holds for each: found by running a tiny random encoder of each, never by hand.

``python -m ponder.integrations.transformers.families`` runs them all and writes what `supported` gives and the page
`docs/families.md`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

from ponder._utils.markdown import markdown_table
from ponder.errors import ArgumentError
from ponder.integrations.transformers.captured import CapturedAdapter
from ponder.integrations.transformers.encoders import adapter_for, encoder_of
from ponder.integrations.transformers.examples import further_inputs

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


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Args:
        model_type: Name of the family, as in Transformers.
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
        joins: Whether rows of several lengths share a batch of a stream (`ponder.StreamEngine`).
        refused: Why it cannot be wrapped; empty where it can.
        further: What it reads besides: `adapter_for` takes it, and `from_encoder`, whose models do not hand that on,
            refuses it.

    Example:
        >>> bert = next(family for family in supported() if family.name == "bert")
        >>> bert.reads, bert.narrows, bert.joins, bert.refused
        ('input_ids', True, True, '')
    """

    name: str
    reads: str
    how: str = ""
    readouts: tuple[str, ...] = ()
    narrows: bool = False
    joins: bool = False
    refused: str = ""
    further: tuple[str, ...] = ()


def supported() -> tuple[Holds, ...]:
    """The families of encoders that were tried with this version, and what holds for each.

    An encoder of another family is captured too, or refused with the reason.

    Example:
        >>> found = {family.name: family for family in supported()}
        >>> found["bert"].how, found["bert"].readouts
        ('own', ('pooler', 'mean', 'tokens'))
    """
    rows = json.loads(_FOUND.read_text(encoding="utf-8"))
    return tuple(Holds(**{**row, "readouts": tuple(row["readouts"]), "further": tuple(row["further"])}) for row in rows)


def tiny_encoder(family: Family, attention: str | None = None, seed: int = 0) -> PreTrainedModel:
    """A tiny random encoder of a family, in evaluation mode, with weights at which no layer stands still.

    Args:
        family: The family.
        attention: The implementation of attention; Transformers' choice where None.
        seed: Seed of the weights.
    """
    torch.manual_seed(seed)
    chosen = {} if attention is None else {"attn_implementation": attention}
    encoder: PreTrainedModel = encoder_of(AutoModel.from_config(_tiny_config(family), **chosen))
    with torch.no_grad():
        for weight in encoder.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
    encoder.eval()
    return encoder


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
    padding = adapter.padding()
    joins = padding is not None and padding.mixed and padding.stem is not None
    further = tuple(further_inputs(encoder))
    return Holds(family.name, reads, how, readouts, padding is not None, joins, further=further)


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


_TEXT = """
albert bert bert-generation big_bird bros camembert canine convbert data2vec-text deberta deberta-v2 distilbert dpr
electra ernie esm eurobert flaubert fnet funnel gte ibert layoutlm lilt longformer luke markuplm megatron-bert
mobilebert modernbert mpnet mra nomic_bert nystromformer rembert roberta roberta-prelayernorm roc_bert roformer splinter
squeezebert tapas visual_bert xlm xlm-roberta xlm-roberta-xl xlnet xmod yoso clip_text_model
"""
_HALVES = """
bart bigbird_pegasus blenderbot led longt5 m2m_100 marian mbart mt5 mvp pegasus plbart prophetnet switch_transformers
t5 umt5
"""
_DECODERS = """
bloom codegen falcon gemma gemma2 gemma3_text gpt2 gpt_neo gpt_neox gptj llama mamba mistral mixtral mpt olmo2 opt phi
phi3 qwen2 qwen3 stablelm
"""
_IMAGES = """
beit clip_vision_model convnext data2vec-vision deit dinov2 dinov2_with_registers dinov3_vit dpt hiera ijepa pvt resnet
siglip_vision_model swin swinv2 timesformer videomae vit vit_mae vit_msn vitdet vivit yolos
"""
_AUDIO = """
audio-spectrogram-transformer data2vec-audio hubert moonshine sew sew-d speech_to_text unispeech unispeech-sat wav2vec2
wav2vec2-bert wav2vec2-conformer wavlm whisper
"""
_WAVES = {"conv_dim": [8] * 7, "num_conv_pos_embedding_groups": 2, "num_conv_pos_embeddings": 4}
_STAGES = {"embed_dim": 8, "depths": [1, 1, 2], "num_heads": [1, 2, 2], "window_size": 4, "patch_size": 2}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "bros": {"hidden_size": 64},
    "codegen": {"rotary_dim": 4},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE,
    "funnel": {
        "architectures": ["FunnelBaseModel"],
        "block_sizes": [2, 2],
        "block_repeats": [1, 1],
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 4},
    "hiera": {"image_size": [64, 64], "embed_dim": 8},
    "led": {"attention_window": 4},
    "lilt": {"hidden_size": 24},
    "longformer": {"attention_window": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 8},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "pvt": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2]},
    "roc_bert": {"pronunciation_vocab_size": 12, "shape_vocab_size": 12},
    "swin": _STAGES,
    "swinv2": _STAGES,
    "tapas": {"type_vocab_sizes": [3, 8, 8, 2, 8, 8, 4]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "yolos": {"image_size": [32, 32], "num_detection_tokens": 3},
    "data2vec-audio": {**_WAVES, "num_conv_pos_embeddings": 2},
    "hubert": _WAVES,
    "unispeech": _WAVES,
    "unispeech-sat": _WAVES,
    "wav2vec2": _WAVES,
    "wav2vec2-conformer": _WAVES,
    "wavlm": _WAVES,
}
_VARIANTS = (
    Family("deberta-v2", "with a convolution", {**_RELATIVE, "conv_kernel_size": 3}),
    Family("squeezebert", "with groups", {"q_groups": 2, "k_groups": 2, "v_groups": 2}),
)
FAMILIES: tuple[Family, ...] = (
    *(
        Family(model_type, config=_CONFIGS.get(model_type, {}))
        for group in (_TEXT, _HALVES, _DECODERS, _IMAGES, _AUDIO)
        for model_type in group.split()
    ),
    *_VARIANTS,
)
"""The families that are tried with every version: of text, encoder halves, decoders, images and audio."""


def _page(rows: Sequence[Holds]) -> str:
    """The text of `docs/families.md`."""
    wrapped = [row for row in rows if not row.refused]
    more = [row for row in wrapped if row.further]
    names = ", ".join(f"`{row.name}`" for row in more)
    inputs = " and ".join(dict.fromkeys(f"`{name}`" for row in more for name in row.further))
    lines = [
        "# Families of encoders",
        "",
        "<!-- Written by `python -m ponder.integrations.transformers.families`; a test holds it against the code. -->",
        "",
        f"`adapter_for` takes {len(wrapped)} of the {len(rows)} configurations below, and `from_encoder` "
        f"{len(wrapped) - len(more)}. Every other",
        "family of Transformers is tried in the same way when you pass it: it is [captured](capture.md), proved with",
        "its own weights, or refused with the reason. Each row was found by running a tiny random encoder of the",
        "family; `supported()` gives the rows as objects.",
        "",
        f"Of these, {names} read {inputs} too, which the models of `from_encoder` do not hand on: it refuses them.",
        "Build a `ponder.PonderWrapper` of what `ponder.capture` or `adapter_for` gives.",
        "",
        "- **Layers**: *own*, an adapter of its own; *called*, captured, its layers are called directly;",
        "  *between*, captured, and code of the encoder's own runs between the layers, which costs a pass of its",
        "  Python code a step.",
        "- **Readouts** there are: `p`, the pooler's output; `m`, the mean of `last_hidden_state`; `t`, the tokens.",
        "- **Narrows**: batches get narrower when their longest rows have left.",
        "- **Joins**: rows of several lengths share the batches of a [stream](streaming.md); of the others, each waits",
        "  for rows of its own length.",
        "",
    ]
    columns = ("Layers", "Readouts", "Narrows", "Joins", "Families")
    for reads in dict.fromkeys(row.reads for row in wrapped):
        alike: dict[tuple[str, ...], list[str]] = {}
        for row in wrapped:
            if row.reads == reads:
                alike.setdefault(_cells(row), []).append(f"`{row.name}`")
        table = [(*cells, ", ".join(names)) for cells, names in alike.items()]
        lines += [f"## Reading `{reads}`", "", *markdown_table(columns, table), ""]
    refused = [(f"`{row.name}`", _why(row.refused)) for row in rows if row.refused]
    lines += ["## Refused", "", *markdown_table(("Family", "Why"), refused)]
    return "\n".join(lines) + "\n"


def _cells(row: Holds) -> tuple[str, ...]:
    named = {"own": "own", "layers": "called", "between": "between"}
    return (
        named[row.how],
        "".join(name[0] for name in row.readouts),
        *("yes" if y else "no" for y in (row.narrows, row.joins)),
    )


def _why(refused: str) -> str:
    """The reason, without the name of the argument and the remedy."""
    return refused.split(". ")[0].removeprefix("module: ").replace("|", "/")


def _write(page: Path) -> None:
    rows = [what_holds(family) for family in FAMILIES]
    _FOUND.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")
    page.write_text(_page(rows), encoding="utf-8")


if __name__ == "__main__":
    logging.set_verbosity_error()  # tiny configurations are unusual, and are told so
    _write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/families.md"))
