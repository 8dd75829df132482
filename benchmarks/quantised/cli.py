"""The command line, `python -m benchmarks.quantised`: cosine similarity of int8 and fp32."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from transformers import AutoModel

from benchmarks import backbones, graded
from benchmarks.command_line import hide_bars, print_table, run_app
from benchmarks.environment import environment
from benchmarks.examples import load_tokenizer
from benchmarks.files import write_json
from ponder import export
from ponder.deploy.manifest import Manifest
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers import PonderForSequenceClassification

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def run(
    backbone: Annotated[
        list[str] | None,
        typer.Option(help="An embedded backbone, a folder, or a hub name; repeatable."),
    ] = None,
    texts: Annotated[int, typer.Option(min=1, help="Number of texts that are compared.")] = 200,
    calibrating: Annotated[int, typer.Option(min=1, help="Number of calibration texts.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = Path("runs/quantised"),
) -> None:
    """Measure the cosine similarity of the last mean hidden states in int8 and in fp32."""
    hide_bars()
    cosines = {name: measure(name, texts, calibrating) for name in backbone or ("minilm", "mpnet")}
    settings = {"texts": texts, "calibrating": calibrating}
    write_json(
        out / "quantised.json",
        {"settings": settings, "cosines": cosines, "environment": environment()},
    )
    print_table(("median, worst cosine", *cosines), rows(cosines))


def rows(cosines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[list[str]]:
    """Return a row for each kind, with the median and the worst cosine of each backbone."""
    kinds = next(iter(cosines.values()))
    return [
        [kind, *(f"{of[kind]['median']:.3f}, {of[kind]['worst']:.3f}" for of in cosines.values())]
        for kind in kinds
    ]


def measure(backbone: str, texts: int, calibrating: int) -> dict[str, dict[str, float]]:
    """Return the median and the worst cosine with fp32, by kind of quantisation.

    Args:
        backbone: A name of `benchmarks.backbones`, a folder, or a hub name.
        texts: Number of texts that are compared.
        calibrating: Number of calibration texts, which fix the ranges of activations.
    """
    data = graded.load("agreement", train=calibrating, dev=1, test=texts)
    others = list(data["train"]["sentence1"])
    compared = list(data["test"]["sentence1"])
    with tempfile.TemporaryDirectory() as folder:
        fp32 = Path(folder) / "fp32"
        export.onnx(_headless(backbone), fp32)
        expected = _last(fp32, compared)
        found = {}
        for place, (name, write) in enumerate(KINDS.items()):
            write(fp32, Path(folder) / str(place), others)
            cosines = _cosines(_last(Path(folder) / str(place), compared), expected)
            found[name] = {"median": float(np.median(cosines)), "worst": float(cosines.min())}
    return found


def _headless(backbone: str) -> PonderForSequenceClassification:
    """Return an encoder whose outputs at each step are the mean hidden state."""
    encoder = AutoModel.from_pretrained(backbones.resolve(backbone))
    width = encoder.config.hidden_size
    model: PonderForSequenceClassification = PonderForSequenceClassification.from_encoder(
        encoder, "vanilla", width, readout="mean"
    )
    head = next(part for part in model.ponder.head.modules() if isinstance(part, torch.nn.Linear))
    with torch.no_grad():
        head.weight.copy_(torch.eye(width))
        head.bias.zero_()
    model.tokenizer = load_tokenizer(backbone)
    model.train(False)
    return model


def _last(folder: Path, texts: Sequence[str]) -> NDArray[Any]:
    """Return the answers of the last step, `(texts, width)`."""
    model = OnnxModel(folder, threads=torch.get_num_threads())
    outputs: NDArray[Any] = np.asarray(model.record(list(texts)).outputs)[:, -1]
    return outputs


def _cosines(found: NDArray[Any], expected: NDArray[Any]) -> NDArray[Any]:
    lengths = np.linalg.norm(found, axis=-1) * np.linalg.norm(expected, axis=-1)
    return np.asarray((found * expected).sum(-1) / lengths)


def _by_default(fp32: Path, folder: Path, others: Sequence[str]) -> None:
    """Quantise as onnxruntime does by default: one scale for each matrix of weights."""
    from onnxruntime.quantization import quantize_dynamic

    shutil.copytree(fp32, folder)
    logging.disable(logging.WARNING)  # it recommends options for every graph
    try:
        for name in Manifest.read(fp32).steps:
            path = fp32 / f"{name}.onnx"
            made = folder / f"{name}.onnx"
            quantize_dynamic(str(path), str(made), op_types_to_quantize=["MatMul", "Gemm"])
    finally:
        logging.disable(logging.NOTSET)


def _ours(
    int8: Literal[True, "all"], calibrated: bool
) -> Callable[[Path, Path, Sequence[str]], object]:
    return lambda fp32, folder, others: export.quantized(
        fp32, folder, int8, calibration=list(others) if calibrated else None
    )


KINDS: Mapping[str, Callable[[Path, Path, Sequence[str]], object]] = {
    "onnxruntime's default": _by_default,
    "all products": _ours("all", calibrated=False),
    "all products, calibrated": _ours("all", calibrated=True),
    "but for those that narrow": _ours(True, calibrated=False),
    "but for those that narrow, calibrated": _ours(True, calibrated=True),
}
"""By kind, a function (fp32, folder, calibration texts) that writes an export in int8."""


def main() -> None:
    """Run the command line."""
    run_app(app)
