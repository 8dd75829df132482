"""Calibration of the signal while training: right answers are to be surer than wrong ones, by a margin (COSEE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from ponder._utils.validation import check_choice, check_real
from ponder.objectives.base import Objective, Unrolled, registry
from ponder.objectives.signals import certainty, check_one_class
from ponder.parts.signals import SIGNALS
from ponder.parts.tasks import Task, hard_labels

__all__ = ["SignalCalibration"]

_REMEDY = "Leave SignalCalibration out: it compares how sure right and wrong classes are."


@registry.register("signal-calibration")
@dataclass(frozen=True)
class SignalCalibration(Objective):
    r"""Mean over the early steps of max(0, s̄_n(wrong) − s̄_n(right) + ε).

    s̄_n(right) and s̄_n(wrong) are the mean signals of the examples of the batch that step n answers rightly and wrongly;
    steps at which there are only right or only wrong ones are left out (He et al. 2025, COSEE, arXiv 2412.13236, Eq. 9:
    the online signal calibration that is added to the loss of `SimulatedExits` with a small weight). It is one number
    for the batch, which every example gets.

    Args:
        margin: ε ≥ 0.
        signal: The certainty of a class that the policy will read; ``"energy"`` is the paper's.

    Example:
        >>> model.objective = objectives.SimulatedExits() + 0.1 * objectives.SignalCalibration()
        >>> model.progress = ponder.Progress(step=10, total=100)
        >>> model.train()(inputs, labels=labels).loss.shape
        torch.Size([])
    """

    margin: float = 0.3
    signal: Literal["confidence", "energy", "margin", "negative_entropy"] = "confidence"
    needs = frozenset({"labels"})
    reads_whole_batch = True

    def __post_init__(self) -> None:
        check_real("margin", self.margin)
        check_choice("signal", self.signal, SIGNALS)

    def check_task(self, task: Task) -> None:
        check_one_class(self.signal, task, _REMEDY)

    def per_example(self, unrolled: Unrolled) -> Tensor:
        labels = unrolled.labels
        assert labels is not None  # `check_batch` saw to it
        sure = certainty(self.signal, unrolled, gradient=True, remedy=_REMEDY)[:, :-1]
        right = (unrolled.outputs[:, :-1].argmax(-1) == hard_labels(labels).unsqueeze(1)).to(sure.dtype)
        many_right, many_wrong = right.sum(0), (1.0 - right).sum(0)
        of_right = (sure * right).sum(0) / many_right.clamp(min=1.0)
        of_wrong = (sure * (1.0 - right)).sum(0) / many_wrong.clamp(min=1.0)
        both = ((many_right > 0) & (many_wrong > 0)).to(sure.dtype)
        gap = F.relu(of_wrong - of_right + self.margin) * both
        mean = gap.sum() / both.sum().clamp(min=1.0)
        return mean.to(unrolled.losses.dtype).expand(len(labels))
