"""Configurations of 128 encoders of Transformers, each as a tiny random encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

from ponder.integrations.transformers.families import constants_of, encoder_of, example_for

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


@dataclass(frozen=True)
class Family:
    """A row of the table: the name of the family, and the fields of its configuration besides `_TINY`."""

    model_type: str
    variant: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model_type} ({self.variant})" if self.variant else self.model_type

    def encoder(self, layers: int = 4) -> PreTrainedModel:
        """A tiny random encoder in evaluation mode, with weights at which no layer stands still."""
        torch.manual_seed(0)
        return _moved(encoder_of(AutoModel.from_config(self.configuration(layers))))

    def finetuned(self, auto: Any, layers: int = 4) -> PreTrainedModel:
        """A tiny random model with the head of an Auto class, likewise."""
        torch.manual_seed(0)
        config = self.configuration(layers)
        config.decoder_start_token_id = _TINY["pad_token_id"]
        return _moved(auto.from_config(config))

    def configuration(self, layers: int) -> Any:
        """The configuration of a tiny model."""
        kind = type(AutoConfig.for_model(self.model_type))
        names = getattr(kind, "attribute_map", {})
        known = kind().to_dict()
        tiny = {
            **_TINY,
            **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers"), layers),
        }
        small = {names.get(name, name): value for name, value in tiny.items()}
        fields = {
            n: v
            for n, v in small.items()
            if n in known and not isinstance(known[n], list | tuple | dict)
        }
        return kind(
            **{**fields, **{names.get(name, name): value for name, value in self.config.items()}}
        )


def _moved(model: Any) -> PreTrainedModel:
    """Return a model in evaluation mode whose layers all do something."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2)
        for part in model.modules():  # a vector of padding that training would leave at zero
            if isinstance(part, torch.nn.Embedding) and part.padding_idx is not None:
                part.weight[part.padding_idx] = 0.0
    model.eval()
    moved: PreTrainedModel = model
    return moved


def example_of(encoder: PreTrainedModel) -> dict[str, Any]:
    """What an encoder is called with: three rows, with a mask where it takes one, and no cache."""
    return {**example_for(encoder), **constants_of(encoder)}


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
_STAGES = {
    "embed_dim": 8,
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 2],
    "window_size": 4,
    "patch_size": 2,
}
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
    "pvt": {
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
    },
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
