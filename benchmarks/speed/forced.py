"""Exits as they are wanted: a policy that looks them up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder.policies import ExitPolicy, PolicyBatch, StepView

__all__ = ["Forced"]


@dataclass(frozen=True)
class Forced(ExitPolicy):
    """Row i leaves at step `table[i mod length of the table]`.

    Args:
        table: Exit steps, 1-based.
    """

    table: tuple[int, ...]

    def init(self, batch: PolicyBatch) -> Tree:  # noqa: D102
        return _tensor(self.table, batch.device)[batch.row_ids % len(self.table)]

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:  # noqa: D102
        return step.index >= state, state


@lru_cache(maxsize=16)
def _tensor(table: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(table, device=device)
