"""Where an answer starts and ends."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.parts.tasks.base import IGNORED_LABEL, Task, fits_positions
from ponder.parts.tasks.distilling import divergence
from ponder.parts.tasks.labels import check_integer, check_shape, right_where_known, wrong_outputs

__all__ = ["Span"]


class Span(Task):
    """Where an answer starts and ends in a sequence: the mean of two cross-entropies over its positions.

    Outputs `(batch, length, 2)`, labels `(batch, 2)` long: the first and the last position. A position of −100, or
    beyond the sequence (the answer was cut off), counts for nothing. In the losses of a batch its longest row ends it,
    as in Transformers; what is right or wrong in a recording goes by each row's own end.

    Example:
        >>> Span().predictions(torch.tensor([[[0.0, 0.0], [3.0, 0.0], [0.0, 3.0]]]))  # it starts at 1 and ends at 2
        tensor([[1, 2]])
    """

    name = "span"
    each_row_alone = True
    per_position = True
    blank = -1e4  # no answer starts or ends there

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        each = F.cross_entropy(at_least_float32(outputs), labels, reduction="none", ignore_index=IGNORED_LABEL)
        return each.mean(1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 3 or outputs.shape[-1] != 2:
            raise wrong_outputs("(batch, length, 2)", outputs, "Use a readout that keeps positions, and two outputs.")
        check_shape(labels, torch.Size((outputs.shape[0], 2)))
        check_integer(labels)
        return self.within(labels, outputs.shape[1])

    @staticmethod
    def within(labels: Tensor, length: int) -> Tensor:
        """Labels whose positions beyond a sequence of that length are none."""
        return torch.where((labels >= 0) & (labels < length), labels.long(), IGNORED_LABEL)

    def inside(self, labels: Tensor, mask: Tensor | None) -> Tensor:
        """In a batch the end of a row is that of its own tokens: an answer behind it was cut off."""
        if mask is None:
            return labels
        known = (labels >= 0) & (labels < mask.shape[1])
        return labels.masked_fill(known & ~mask.gather(1, torch.where(known, labels, 0)), IGNORED_LABEL)

    def without_padding(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        if mask is None or not fits_positions(mask, outputs, dim=outputs.dim() - 2):
            return outputs
        beyond = ~mask.view(mask.shape[0], *[1] * (outputs.dim() - 3), mask.shape[1], 1)
        return outputs.masked_fill(beyond, self.blank)

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(-2)

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return right_where_known(self, outputs, labels)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        probability = at_least_float32(outputs).softmax(-2).amax(-2)
        right, known = self.predictions(outputs) == labels.unsqueeze(1), labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        student, teacher = (self.without_padding(outputs, mask) for outputs in (student, teacher))
        return divergence(student, teacher, temperature, dim=-2).mean(-1)
