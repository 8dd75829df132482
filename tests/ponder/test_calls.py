"""Data goes straight: how many of the library's own functions a call enters, and how often what is checked.

The bounds are a little above what is needed today. Where one is passed, `Walk` tells which functions are called how
often; a call for every row or step that says nothing new is the usual reason.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from tests.ponder.streaming.driving import Drive, examples_of

LIBRARY = f"{Path(ponder.__file__).parent}/"
EXITS = [1, 2, 2, 6]
"""Where the four rows leave: alone, together, and at the end."""


class Walk:
    """The library's functions that a call enters, in order; comprehensions are none (later Pythons inline them)."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.entered: list[tuple[str, str]] = []
        sys.setprofile(self._profile)
        try:
            call()
        finally:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(LIBRARY) and not code.co_name.endswith("comp>"):
            self.entered.append((code.co_filename.removeprefix(LIBRARY), code.co_qualname))

    def __len__(self) -> int:
        return len(self.entered)

    def times(self, name: str) -> int:
        """How often functions of a name were entered."""
        return sum(name in (qualified, qualified.rpartition(".")[2]) for _, qualified in self.entered)

    @property
    def files(self) -> list[str]:
        """The files, in the order in which the data meets them."""
        return list(dict.fromkeys(file for file, _ in self.entered))

    def __repr__(self) -> str:
        counts = Counter(f"{file}: {name}" for file, name in self.entered).most_common()
        return "\n".join(f"{count:4d} {place}" for place, count in [*counts, ("in all", len(self))])


class Add(nn.Module):
    """A layer that adds one to what is no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        return hidden + self.one * attention_mask.unsqueeze(-1)


class Height(nn.Module):
    """A head that is sure of the first class once the features are above nine."""

    def forward(self, features: Tensor) -> Tensor:
        height = 10.0 * (features[:, 0] - 9.5).clamp(min=0)
        return torch.stack([height, torch.zeros_like(height)], dim=1)


@pytest.fixture
def model() -> ponder.PonderWrapper:
    return ponder.PonderWrapper(
        [Add() for _ in EXITS + EXITS[:2]],
        head=Height(),
        lambda_head=ponder.LambdaHead(2),
        readout=ponder.readouts.mean,
        padding=ponder.Padding(),
        task="classification",
        policy=policies.Confidence(0.99),
    )


@pytest.fixture
def batch() -> tuple[Tensor, dict[str, Tensor]]:
    mask = torch.ones(len(EXITS), 5, dtype=torch.long)
    mask[1:, 4] = 0  # the first is the longest: the batch gets narrower when it leaves
    inputs = (10.0 - torch.tensor(EXITS)).view(-1, 1, 1).expand(-1, 5, 2) * mask.unsqueeze(-1)
    return inputs, {"attention_mask": mask}


def test_training(model: ponder.PonderWrapper, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    inputs, context = batch
    labels = torch.arange(len(inputs)) % 2
    model.train()
    walk = Walk(lambda: model(inputs, labels=labels, **context))
    assert len(walk) <= 113, walk
    assert len(walk.files) <= 22, walk.files
    assert walk.times("check_masks") == walk.times("checked_labels") == walk.times("EarlyExitModel.start") == 1


def test_evaluation(model: ponder.PonderWrapper, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    inputs, context = batch
    model.eval()
    assert model(inputs, **context).exit_step.tolist() == EXITS
    walk = Walk(lambda: model(inputs, **context))
    assert len(walk) <= 160, walk
    assert len(walk.files) <= 15, walk.files
    assert walk.times("check_masks") == walk.times("EarlyExitModel.checked") == walk.times("EarlyExitModel.start") == 1
    once = Walk(lambda: model(inputs, policy=policies.FixedStep(2), **context))
    assert len(once) <= 53, once


def test_a_data_set(model: ponder.PonderWrapper, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    rows = examples_of(*batch)
    assert ponder.predict(model, rows, batch_size=2).exit_step.tolist() == EXITS
    walk = Walk(lambda: ponder.predict(model, rows, batch_size=2))
    assert len(walk) <= 345, walk
    assert len(walk.files) <= 21, walk.files
    assert walk.times("depth") == walk.times("EarlyExitModel.checked") == 1, (
        "at the door of the data set, not of each batch"
    )
    assert walk.times("read") == len(rows)
    assert walk.times("check_masks") == walk.times("EarlyExitModel.start") == 2, "once a batch"


def test_a_stream(model: ponder.PonderWrapper, batch: tuple[Tensor, dict[str, Tensor]]) -> None:
    drive, rows = Drive(model.eval(), max_batch=2), examples_of(*batch)

    def run() -> None:
        for row in rows:
            drive.add(row)
        drive.turns()

    walk = Walk(run)
    assert [drive.step_of(request) for request in drive.requests] == EXITS
    assert len(walk) <= 530, walk
    assert walk.times("read") == walk.times("check_masks") == len(rows), "once a row"
    assert walk.times("EarlyExitModel.checked") == 0, "policies are checked where a row is handed in"
