"""One class of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ponder._utils.numerics import at_least_float32, weighted
from ponder._utils.validation import check_real
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.parts.tasks.base import IGNORED_LABEL, Smoothable
from ponder.parts.tasks.distilling import divergence
from ponder.parts.tasks.labels import (
    check_integer,
    check_labelled,
    check_range,
    check_shape,
    checked_probabilities,
    hard_labels,
    wrong_outputs,
)

__all__ = ["Classification", "Unnamed"]


class Classification(Smoothable):
    """One class out of C: cross-entropy; outputs `(batch, classes)`, labels `(batch,)` long.

    Soft labels are probabilities of the classes, `(batch, classes)` floats that sum to 1.

    Args:
        label_smoothing: Share ε in [0, 1) of the labels' mass that is spread over all classes alike, in the loss of
            every step (Szegedy et al. 2016, "Rethinking the Inception Architecture", Section 7).
        weight: A number > 0 for each class, by which the loss of a row of that class is multiplied, smoothed or not, at
            every step; a soft label is so much of each class. PyTorch's own weighs the smoothing by class instead: all
            rows would then learn the heavy class. The mean over rows is taken as ever, where PyTorch's would be divided
            by the weights of the batch: weights of about 1 keep the rate of learning. Training alone asks for weights
            and smoothing, and neither is saved with a model: give one that was read its task again to train it further.

    Example:
        >>> task = Classification(label_smoothing=0.1)
        >>> task.losses(torch.zeros(1, 4), torch.tensor([2]))
        tensor([1.3863])
    """

    name = "classification"
    each_row_alone = True
    classes = True
    weight: tuple[float, ...] | None = None

    def __init__(self, label_smoothing: float = 0.0, weight: Sequence[float] | None = None) -> None:
        super().__init__(label_smoothing)
        if weight is not None:
            listed: Any = weight.tolist() if hasattr(weight, "tolist") else weight  # of a tensor or an array
            if not isinstance(listed, Sequence) or isinstance(listed, str):
                raise ArgumentTypeError(
                    "weight",
                    expected="a number for each class, in the order of the classes",
                    got=type(weight).__name__,
                    remedy="Pass a tuple, a list or a tensor: weight=(1.0, 3.0), say.",
                )
            for each in listed:
                check_real("weight", each, open_low=True)
            self.weight = tuple(float(each) for each in listed)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        outputs, weights = at_least_float32(outputs), None
        if self.weight is not None:
            of_class = outputs.new_tensor(self.weight)
            if labels.is_floating_point():
                shares = labels * of_class
                weights = shares.sum(-1)
                labels = shares / weights.unsqueeze(-1)
            else:
                weights = of_class[labels.clamp(min=0)]
        if labels.is_floating_point() and not self.label_smoothing:  # a class of logit −inf may have no mass
            losses = -weighted(labels, outputs.log_softmax(-1)).sum(-1)
        else:
            losses = F.cross_entropy(outputs, labels, reduction="none", label_smoothing=self.label_smoothing)
        return losses if weights is None else losses * weights

    def labelled(self, labels: Tensor) -> Tensor | None:
        return None if labels.is_floating_point() else labels != IGNORED_LABEL

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if outputs.dim() != 2 or outputs.shape[-1] < 2:
            raise wrong_outputs("(batch, classes) with at least 2 classes", outputs, "Use task='regression'?")
        if self.weight is not None and len(self.weight) != outputs.shape[-1]:
            raise ArgumentError(
                "weight",
                expected=f"a number for each of the {outputs.shape[-1]} classes",
                got=f"{len(self.weight)} numbers",
                remedy="Name the weights of all classes, in their order.",
            )
        if labels.is_floating_point() and labels.shape == outputs.shape:
            return checked_probabilities(labels.to(at_least_float32(outputs).dtype))
        check_shape(labels, outputs.shape[:1])
        check_integer(labels)
        check_range(labels, outputs.shape[-1])
        return labels.long()

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        check_labelled(self, labels)
        return super().correct(outputs, hard_labels(labels))

    def confidences(self, outputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hard = hard_labels(labels)
        probability, right = super().confidences(outputs, hard)
        return probability[hard != IGNORED_LABEL], right[hard != IGNORED_LABEL]

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        return divergence(student, teacher, temperature, dim=-1)


class Unnamed(Classification):
    """The task of a model that names none: classes, as far as nothing says otherwise (see `infer_task` for losses)."""

    name = "unnamed"

    def predictions(self, outputs: Tensor) -> Tensor:
        if not outputs.dim() or outputs.shape[-1] < 2:
            raise ArgumentError(
                "outputs",
                expected="class logits, the last dimension at least 2",
                got=f"shape {tuple(outputs.shape)} of a model that names no task",
                remedy="Build the model with task='regression' if it answers with one number.",
            )
        return super().predictions(outputs)
