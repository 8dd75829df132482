"""Exports of an encoder in 8 bits, each held against fp32: the cosine of the last mean hidden states of texts."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

import ponder
from benchmarks import backbones
from benchmarks.examples import load_tokenizer
from benchmarks.graded.loading import load
from ponder.export import OnnxModel
from ponder.export.sessions import Graph
from ponder.integrations.transformers import PonderForSequenceClassification

__all__ = ["KINDS", "measure"]

_TASK = "agreement"


def measure(backbone: str, texts: int, calibrating: int) -> dict[str, dict[str, float]]:
    """The median and the worst cosine with fp32, by kind of quantisation.

    Args:
        backbone: A name of `benchmarks.backbones`, a folder, or a hub name.
        texts: How many are compared.
        calibrating: How many others fix the ranges of activations, where a kind has fixed ones.
    """
    data = load(_TASK, train=calibrating, dev=1, test=texts)
    others, compared = list(data["train"]["sentence1"]), list(data["test"]["sentence1"])
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32"
        ponder.export.onnx(_headless(backbone), fp32, tokenizer=load_tokenizer(backbone), max_length=64)
        expected = _last(_opened(fp32), compared)
        told = {}
        for place, (name, write) in enumerate(KINDS.items()):
            cosines = _cosines(_last(write(fp32, Path(folder) / str(place), others), compared), expected)
            told[name] = {"median": float(np.median(cosines)), "worst": float(cosines.min())}
    return told


def _headless(backbone: str) -> PonderForSequenceClassification:
    """An encoder whose answer at each step is the mean hidden state itself."""
    encoder = AutoModel.from_pretrained(backbones.resolve(backbone))
    width = encoder.config.hidden_size
    model = PonderForSequenceClassification.from_encoder(encoder, "vanilla", width, readout="mean")
    head = next(part for part in model.ponder.head.modules() if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        head.weight.copy_(torch.eye(width))
        head.bias.zero_()
    model.eval()  # type: ignore[no-untyped-call]
    return model


def _last(model: OnnxModel, texts: Sequence[str]) -> NDArray[Any]:
    """The answers of the last step, `(texts, width)`."""
    outputs: NDArray[Any] = model.record(texts).outputs[:, -1]
    return outputs


def _cosines(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return np.asarray((found * expected).sum(-1) / lengths)


def _by_default(fp32: Path, folder: Path, others: Sequence[str]) -> OnnxModel:
    """Quantise as onnxruntime does where nothing is said: one scale for each matrix of weights."""
    from onnxruntime.quantization import quantize_dynamic

    folder.mkdir()
    model = _opened(fp32)
    logging.disable(logging.WARNING)  # it gives advice for every graph
    try:
        for name in model.manifest.steps:
            quantize_dynamic(str(fp32 / name), str(folder / name), op_types_to_quantize=["MatMul", "Gemm"])
    finally:
        logging.disable(logging.NOTSET)
    model._graphs = replace(model._graphs, steps=tuple(Graph(folder / name) for name in model.manifest.steps))
    return model


def _ours(int8: Literal[True, "all"], calibrated: bool) -> Callable[[Path, Path, Sequence[str]], OnnxModel]:
    def write(fp32: Path, folder: Path, others: Sequence[str]) -> OnnxModel:
        return _opened(ponder.export.quantized(fp32, folder, int8, calibration=others if calibrated else None))

    return write


def _opened(folder: Path) -> OnnxModel:
    return OnnxModel(folder, threads=torch.get_num_threads())


KINDS: Mapping[str, Callable[[Path, Path, Sequence[str]], OnnxModel]] = {
    "onnxruntime's default": _by_default,
    "all products": _ours("all", calibrated=False),
    "all products, calibrated": _ours("all", calibrated=True),
    "but for those that narrow": _ours(True, calibrated=False),
    "but for those that narrow, calibrated": _ours(True, calibrated=True),
}
"""By name, what writes an export in 8 bits: from one in fp32, into a new folder, by other texts."""
