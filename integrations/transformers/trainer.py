"""A `Trainer` whose heads learn at their own rates, and that tells the model how far training has come."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Trainer

from ponder.objectives import Progress
from ponder.optim import parameter_groups
from ponder.wrapper import PonderWrapper

__all__ = ["PonderTrainer"]


class PonderTrainer(Trainer):
    """`transformers.Trainer` with its optimiser (`args.optim`; fused AdamW by default) over `ponder.parameter_groups`.

    It tells the model how far training has come (`PonderWrapper.progress`), for objectives that change on the way.

    Args:
        args: As for `Trainer`.
        lambda_lr: Learning rate of the Lambda head; that of the model where None.
        head_lr: Learning rate of the heads; that of the model where None.
        kwargs: As for `Trainer`.
    """

    def __init__(self, *args: Any, lambda_lr: float | None = None, head_lr: float | None = None, **kwargs: Any) -> None:
        self.lambda_lr = lambda_lr
        self.head_lr = head_lr
        super().__init__(*args, **kwargs)

    def training_step(self, model: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One step of training, after the model was told which."""
        progress = Progress(min(self.state.global_step, self.state.max_steps), max(self.state.max_steps, 1))
        for module in model.modules():
            if isinstance(module, PonderWrapper):
                module.progress = progress
        return super().training_step(model, *args, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The optimiser of `args.optim` on the trainable parameters.

        Weight decay (`args.weight_decay`) spares biases and normalisation layers, as in `Trainer`.
        """
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            groups = parameter_groups(trained, self.args.learning_rate, self.lambda_lr, self.head_lr)
            if self.args.weight_decay:
                groups = self._split(groups, trained)
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, trained)
            self.optimizer = optimizer_class(groups, **{"weight_decay": 0.0, **options})
        return self.optimizer

    def _split(self, groups: list[dict[str, Any]], model: torch.nn.Module) -> list[dict[str, Any]]:
        """Each group in two: what decays, and what does not."""
        decayed = set(self.get_decay_parameter_names(model))
        decays = {id(parameter) for name, parameter in model.named_parameters() if name in decayed}
        parts = [
            {
                **group,
                "params": [p for p in group["params"] if (id(p) in decays) == decay],
                "weight_decay": self.args.weight_decay if decay else 0.0,
            }
            for group in groups
            for decay in (True, False)
        ]
        return [part for part in parts if part["params"]]
