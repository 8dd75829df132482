"""Real numbers."""

from __future__ import annotations

from torch import Tensor

from ponder._utils.numerics import at_least_float32
from ponder.parts.tasks.base import Task
from ponder.parts.tasks.labels import check_finite, check_shape, wrong_label_type

__all__ = ["Regression"]


class Regression(Task):
    """Real numbers: squared error, averaged over the numbers of an example; outputs and labels alike.

    Example:
        >>> Regression().losses(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]))
        tensor([0., 4.])
    """

    name = "regression"
    each_row_alone = True
    numbers = True
    comparable = False
    metric = "negative_squared_error"

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        error = (at_least_float32(outputs).reshape(labels.shape) - labels) ** 2
        return error.flatten(1).mean(1) if error.dim() > 1 else error

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_complex():
            raise wrong_label_type("real numbers", labels)
        single = outputs.dim() == 2 and outputs.shape[-1] == 1
        if labels.shape != outputs.shape and not (single and labels.shape == outputs.shape[:1]):
            check_shape(labels, outputs.shape[:1] if single else outputs.shape)
        labels = labels.to(at_least_float32(outputs).dtype)
        check_finite(labels)
        return labels

    def predictions(self, outputs: Tensor) -> Tensor:
        return at_least_float32(outputs)

    def scores(self, outputs: Tensor, labels: Tensor) -> Tensor:
        given = self.predictions(outputs).double()
        error = (given - labels.reshape(labels.shape[0], 1, *given.shape[2:]).double()) ** 2
        return -(error.flatten(2).mean(2) if error.dim() > 2 else error)

    def distillation_losses(
        self, student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None
    ) -> Tensor:
        return self.losses(student, at_least_float32(teacher))
