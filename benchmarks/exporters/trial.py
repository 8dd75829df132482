"""Convert one step, and a whole model with exits, by `transformers.exporters`, and compare with PyTorch.

It needs Transformers 5.24 or newer, and `pip install openvino executorch`. The model is a small BERT
with random weights: what counts is whether its parts can be converted, and how near they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from benchmarks.environment import environment
from benchmarks.files import write_json
from ponder._utils.trees import unwrap
from ponder.integrations.transformers import PonderForSequenceClassification
from ponder.policies import Confidence

__all__ = ["OneStep", "main", "trial"]

RUNTIMES = {
    "openvino": ("exporter_openvino", "OpenVINOExporter", "OpenVINOConfig"),
    "executorch": ("exporter_executorch", "ExecutorchExporter", "ExecutorchConfig"),
}
SIZES = ((3, 12), (7, 5), (2, 40))
"""Rows and lengths; the first is the example of the conversion."""
_WORDS = 200


class OneStep(nn.Module):
    """One step of a model, a function of the hidden state and of the mask of attention."""

    def __init__(self, step: nn.Module, context: dict[str, Any], mask: str) -> None:
        super().__init__()
        self.step = step
        self.fixed = {name: value for name, value in context.items() if name == "captured"}
        self.mask = mask

    def forward(self, hidden: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Return the next hidden state, `(rows, length, width)`."""
        return {"hidden": self.step(hidden, **self.fixed, **{self.mask: mask})}


def trial() -> dict[str, Any]:
    """Return the results by runtime: the largest difference at each size, and the refusal."""
    torch.manual_seed(0)
    config: Any = BertConfig(
        vocab_size=_WORDS,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
    )
    config.num_labels = 3
    plain: Any = BertForSequenceClassification(config)
    model: Any = PonderForSequenceClassification.from_finetuned(plain)
    model.eval().policy = Confidence(0.5)
    runtimes = {name: _tried(name, model) for name in RUNTIMES}
    return {
        "model": "BERT of 3 layers, width 64, random weights",
        "transformers": version("transformers"),
        "runtimes": runtimes,
        "environment": environment(),
    }


def _tried(name: str, model: Any) -> dict[str, Any]:
    """Convert the first step and the whole model for one runtime."""
    home, exporter_name, config_name = RUNTIMES[name]
    module: Any = import_module(f"transformers.exporters.{home}")
    exporter = getattr(module, exporter_name)()
    config = getattr(module, config_name)(dynamic=True)
    states = _states(model)
    hidden, context, mask = next(states)
    step = OneStep(model.ponder.steps.fns[0], context, mask)
    example = {"hidden": hidden, "mask": context[mask]}
    converted = exporter.export(step, example, config=config)
    differences = []
    for hidden, context, mask in _states(model):
        with torch.no_grad():
            expected = step(hidden, context[mask])["hidden"]
        found = converted(hidden=hidden, mask=context[mask])["hidden"]
        differences.append(float((found - expected).abs().max()))
    ids, real = _texts(*SIZES[0])
    refusal = ""
    try:
        exporter.export(model, {"input_ids": ids, "attention_mask": real}, config=config)
    except Exception as error:  # each runtime has its own
        refusal = f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.200}"
    return {
        "version": version(name),
        "largest_difference": dict(zip(map(str, SIZES), differences, strict=True)),
        "model_with_exits": refusal,
    }


def _states(model: Any) -> Iterator[tuple[Tensor, dict[str, Any], str]]:
    """Yield the hidden state and the context before the first step, and the name of the mask."""
    for rows, length in SIZES:
        ids, real = _texts(rows, length)
        source = model.ponder.start(ids, (), None, attention_mask=real).source
        context = unwrap(source.context)
        mask = next(name for name, value in context.items() if getattr(value, "ndim", 0) == 4)
        yield source.hidden, context, mask


def _texts(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Return tokens, and a mask that hides the second half of the first row."""
    ids = torch.randint(5, _WORDS, (rows, length))
    real = torch.ones_like(ids)
    real[0, length // 2 :] = 0
    return ids, real


def main() -> None:
    """Run the command line."""
    typer.run(_run)


def _run(
    out: Annotated[Path, typer.Option(help="The file of results.")] = Path(
        "benchmarks/results/exporters.json"
    ),
) -> None:
    """Convert one step and a whole model, and write what came of it."""
    write_json(out, trial())
