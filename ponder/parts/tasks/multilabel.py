"""Several labels, each of which applies or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.errors import ArgumentError
from ponder.parts.tasks.base import IGNORED_LABEL, Smoothable, all_parts
from ponder.parts.tasks.labels import check_labelled, check_shape, wrong_outputs

__all__ = ["Multilabel"]


class Multilabel(Smoothable):
    """Any subset of C labels: binary cross-entropy, averaged over labels; outputs and labels `(batch, labels)`.

    Labels are 1 or 0, probabilities in between, or −100 where it is not known whether one applies.

    Args:
        label_smoothing: Share ε in [0, 1): 1 becomes 1 − ε / 2, and 0 becomes ε / 2.

    Example:
        >>> Multilabel().predictions(torch.tensor([[2.0, -1.0, 0.5]]))
        tensor([[ True, False,  True]])
    """

    name = "multilabel"
    each_row_alone = True
    several_answers = True

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        known = labels != IGNORED_LABEL
        target = torch.where(known, labels * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0, 0.0)
        each = F.binary_cross_entropy_with_logits(at_least_float32(outputs), target, reduction="none")
        return torch.where(known, each, 0.0).sum(-1) / known.sum(-1).clamp(min=1)

    def labelled(self, labels: Tensor) -> Tensor | None:
        return (labels != IGNORED_LABEL).any(-1)

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2:
            raise wrong_outputs("(batch, labels)", outputs, "Give the head one output per label.")
        check_shape(labels, outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        if labels.numel() and not bool((((labels >= 0) & (labels <= 1)) | (labels == IGNORED_LABEL)).all()):
            raise ArgumentError(
                "labels",
                expected=f"0 or 1 (or in between; {IGNORED_LABEL} where it is not known)",
                got=labels,
                remedy="Encode them so.",
            )
        return labels

    def predictions(self, outputs: Tensor) -> Tensor:
        return outputs > 0

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        check_labelled(self, labels)
        right = self.predictions(outputs) == (labels.unsqueeze(1) > 0.5)
        return all_parts(right | (labels.unsqueeze(1) == IGNORED_LABEL), 2)

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        right = self.predictions(outputs) == (labels.unsqueeze(1) > 0.5)
        probability, known = at_least_float32(outputs).abs().sigmoid(), labels != IGNORED_LABEL
        return probability.movedim(1, -1)[known], right.movedim(1, -1)[known]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        target = torch.sigmoid(at_least_float32(teacher) / temperature)
        each = F.binary_cross_entropy_with_logits(at_least_float32(student) / temperature, target, reduction="none")
        return temperature**2 * each.mean(-1)
