"""A class at each position."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.parts.tasks.base import IGNORED_LABEL, Smoothable
from ponder.parts.tasks.distilling import divergence
from ponder.parts.tasks.labels import check_integer, check_range, check_shape, right_where_known, wrong_outputs

__all__ = ["TokenClassification"]


class TokenClassification(Smoothable):
    """A class per position: mean cross-entropy over the positions whose label is not −100.

    Outputs `(batch, length, classes)`, labels `(batch, length)` long.

    Args:
        label_smoothing: Share of the labels' mass that is spread over all classes alike, as for `Classification`.

    Example:
        >>> TokenClassification().losses(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))  # the last is padding
        tensor([0.6931])
    """

    name = "token_classification"
    each_row_alone = True
    classes = True
    per_token = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        per_token = F.cross_entropy(
            at_least_float32(outputs).transpose(1, 2),
            labels,
            reduction="none",
            ignore_index=IGNORED_LABEL,
            label_smoothing=self.label_smoothing,
        )
        return per_token.sum(1) / (labels != IGNORED_LABEL).sum(1).clamp(min=1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 3 or outputs.shape[-1] < 2:
            raise wrong_outputs("(batch, length, classes)", outputs, "Use a readout that keeps positions.")
        check_shape(labels, outputs.shape[:2])
        check_integer(labels)
        check_range(labels, outputs.shape[-1])
        return labels.long()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return right_where_known(self, outputs, labels)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        probability, right = super().confidences(outputs, labels)
        known = labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        taught = self._counted(mask, student)
        if taught is None:
            return divergence(student, teacher, temperature, dim=-1).mean(1)
        student, teacher = (outputs.masked_fill(~taught, 0.0) for outputs in (student, teacher))
        per_token = divergence(student, teacher, temperature, dim=-1)  # 0 where both are 0, whatever stood there
        return per_token.sum(1) / taught.flatten(1).sum(1).clamp(min=1)
