"""Models that the tests of exports share, each written once: exporting takes seconds."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import policies, readouts
from ponder.export import OnnxModel
from tests.toys import LENGTH, NUM_STEPS, WIDTH, Toy, make_toy, wrap

__all__ = ["AT_POSITIONS", "Exported", "exported", "folder_of"]

AT_POSITIONS = ("token_classification", "span")
_FOLDERS = tempfile.TemporaryDirectory()


class Words(Toy):
    """Token ids of any length, PyTorch's own layer shared by all steps, declared lengths, a masked mean.

    Args:
        readout: In place of the mean.
    """

    num_steps = NUM_STEPS

    def __init__(self, readout: Any = readouts.mean) -> None:
        toy, self.readout = make_toy("transformer"), readout
        self.steps, self.stem = toy.steps, WordStem()

    def batch(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(1, 11, (size, 2 * LENGTH), generator=generator)
        lengths = torch.randint(1, 2 * LENGTH + 1, (size, 1), generator=generator)
        hidden = torch.arange(2 * LENGTH) >= lengths
        return ids.masked_fill(hidden, 0), {"src_key_padding_mask": hidden}

    def plain(self, inputs: Any, **context: Any) -> Tensor:
        raise NotImplementedError


class WordStem(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH)

    def forward(self, inputs: Tensor, src_key_padding_mask: Tensor) -> Tensor:
        return self.embedding(inputs)


def _per_step() -> ponder.PerStep:
    heads = [nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS)]
    for head in heads:
        nn.init.normal_(head.weight, std=1.0)
    return ponder.PerStep(heads)


def _mean_of_half(hidden: Tensor) -> Tensor:
    return hidden[:, : WIDTH // 2]


def _make(name: str) -> tuple[Toy, Any]:
    if name == "words":
        toy: Toy = Words()
        return toy, wrap(toy, padding=ponder.Padding(mask="src_key_padding_mask", real=False))
    if name == "scheduled":  # a head for each step, and a Lambda head that reads other features
        toy = make_toy("scheduled")
        hazards = ponder.LambdaHead(WIDTH // 2, history=3, initial="zeros")
        torch.nn.init.normal_(hazards.layers[-1].weight, std=0.7)
        return toy, wrap(toy, head=_per_step(), lambda_head=hazards, halting_readout=_mean_of_half)
    if name in AT_POSITIONS:
        toy, hazards = Words(readouts.identity), ponder.LambdaHead(WIDTH, layers=1)
        head = nn.Linear(WIDTH, 2 if name == "span" else 3)
        for weights in (head.weight, hazards.layers[-1].weight):
            nn.init.normal_(weights, std=0.7)
        made = {"head": head, "lambda_head": hazards, "halting_readout": readouts.mean, "task": name}
        return toy, wrap(toy, **made, padding=ponder.Padding(mask="src_key_padding_mask", real=False))
    if name in ("regression", "multilabel"):
        toy = make_toy("shared")
        return toy, wrap(toy, task=name, lambda_head=None, policy=policies.LastStep())
    toy = make_toy(name)
    return toy, wrap(toy, policy=policies.Patience(1) | policies.Quantile(0.9))


@dataclass(frozen=True, eq=False)
class Exported:
    """A model, the toy it is made of, and its export."""

    toy: Toy
    model: Any
    folder: Path
    onnx: OnnxModel

    def call(self, size: int, seed: int = 0) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Inputs and context for PyTorch, and the same as named arrays."""
        inputs, context = self.toy.batch(size, seed)
        parts = {"inputs": inputs} if isinstance(inputs, Tensor) else {f"inputs.{n}": x for n, x in enumerate(inputs)}
        return inputs, context, {name: value.numpy() for name, value in {**parts, **context}.items()}


@cache
def exported(name: str) -> Exported:
    """The export of a toy by name, made once a process."""
    torch.manual_seed(0)
    toy, model = _make(name)
    folder = Path(_FOLDERS.name) / name
    ponder.export.onnx(model.eval(), folder, example=toy.batch(3))
    return Exported(toy, model, folder, OnnxModel(folder, threads=1))


def folder_of(name: str) -> Path:
    """The folder of an export."""
    return exported(name).folder
