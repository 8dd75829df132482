"""A loss of the user's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ponder._utils.numerics import at_least_float32
from ponder._utils.validation import check_flag
from ponder.errors import ArgumentError
from ponder.parts.callables import warn_of_loss
from ponder.parts.tasks.base import Task
from ponder.parts.tasks.labels import check_shape

__all__ = ["Custom", "LossFunction", "warn_of_own_weights"]

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Custom(Task):
    """A user's own loss, `function(outputs, labels) -> (batch,)`, called once a step.

    Args:
        function: The loss; None where it is not known any more, as in a trajectory that was read from a file.
        classes: Whether outputs are the logits of classes, which policies on probabilities read, or numbers. Where
            None, as for a bare function, they are taken for classes, and such a policy warns.

    Example:
        >>> task = Custom(lambda outputs, labels: (outputs - labels).abs().mean(-1), classes=False)
        >>> task.predictions(torch.tensor([[0.5, 2.0]]))  # numbers, and no class
        tensor([[0.5000, 2.0000]])
    """

    name = "custom"
    classes = True
    comparable = False
    metric = None
    told = True
    """Whether this is how the user's own task answers; False where a file named one whose answers it did not tell."""

    def __init__(self, function: LossFunction | None = None, classes: bool | None = None) -> None:
        self.function = function
        above = type(self).__mro__[: type(self).__mro__.index(Custom)]
        self.supposed = classes is None and not any("classes" in vars(kind) for kind in above)
        if classes is not None:
            check_flag("classes", classes)
            self.classes, self.numbers = classes, not classes  # type: ignore[misc]  # said of this one alone

    def predictions(self, outputs: Tensor) -> Tensor:
        return at_least_float32(outputs) if self.numbers else super().predictions(outputs)

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if self.function is None:
            raise ArgumentError(
                "task",
                expected="the callable (outputs, labels) -> losses (batch,) of the model",
                got="a custom task whose callable is not known here",
                remedy="Ask the model that was trained with it.",
            )
        losses = self.function(outputs, labels)
        if not isinstance(losses, Tensor) or losses.shape != outputs.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ArgumentError(
                "task",
                expected=f"a callable that gives one loss per example, ({outputs.shape[0]},)",
                got=got,
                remedy="Do not reduce over the batch: use reduction='none' and average what belongs to one example.",
            )
        return losses

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.shape[:1] != outputs.shape[:1]:
            check_shape(labels, outputs.shape[:1])
        return labels


def warn_of_own_weights(task: Task | None, model: nn.Module) -> None:
    """Warn of a task whose loss has weights that learn, and that are no part of the model."""
    if isinstance(task, Custom) and task.function is not None:
        warn_of_loss(task.function, model)
