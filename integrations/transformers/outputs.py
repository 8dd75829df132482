"""`PonderModelOutput`, the output of a model with exits, and the labels of spans."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils.generic import ModelOutput

__all__ = ["PonderModelOutput", "span_labels"]


@dataclass
class PonderModelOutput(ModelOutput):
    """Output of a model with exits: of the last step in training, of each row's exit in evaluation.

    Args:
        loss: Scalar; None without labels.
        logits: Logits of a classifier, or numbers, `(batch, [length,] labels)`.
        start_logits: Logits of the first token of an answer, `(batch, length)`.
        end_logits: Logits of the last token of an answer, `(batch, length)`.
        last_hidden_state: Features of all tokens, `(batch, length, width)`.
        pooler_output: Features of each row, `(batch, width)`.
        exit_step: The step of these outputs, `(batch,)`, 1-based.
        step_logits: The outputs of every step in training, `(batch, steps, …)`.
        hazard_logits: Hazard logits of every step in training, `(batch, steps)`; None without a
            Lambda head.

    Example:
        >>> out = model.train()(**batch, labels=torch.tensor([0, 1, 2, 0, 1]))
        >>> out.loss.shape, out.step_logits.shape, out.hazard_logits.shape
        (torch.Size([]), torch.Size([5, 4, 3]), torch.Size([5, 4]))
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


def span_labels(start: Tensor | None, end: Tensor | None) -> Tensor | None:
    """Return the labels of spans, `(batch, 2)`, from first and last tokens, `(batch,)` each."""
    if start is None or end is None:
        return None
    return torch.stack([start.reshape(-1), end.reshape(-1)], dim=1)
