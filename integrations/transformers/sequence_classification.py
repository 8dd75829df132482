"""`PonderForSequenceClassification`: one answer a text (a class, several labels, or a number)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.policies import ExitPolicy

__all__ = ["PonderForSequenceClassification", "PonderSequenceClassifierOutput"]


@dataclass
class PonderSequenceClassifierOutput(ModelOutput):
    """What a call gives.

    Args:
        loss: Scalar, where labels were given.
        logits: Outputs at each row's exit (in training: of the last step), `(batch, labels)`.
        exit_step: The step of `logits`, `(batch,)`, 1-based.
        step_logits: Outputs of every step in training, `(batch, steps, labels)`.
        hazard_logits: Hazard logits of every step in training, with a Lambda head, `(batch, steps)`.

    Example:
        >>> out = model.train()(**batch, labels=torch.tensor([0, 1, 2, 0, 1]))
        >>> out.loss.shape, out.step_logits.shape, out.hazard_logits.shape
        (torch.Size([]), torch.Size([5, 4, 3]), torch.Size([5, 4]))
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderForSequenceClassification(PonderPreTrainedModel):
    """An encoder of texts that answers once a text; see `PonderPreTrainedModel`.

    Example:
        >>> model = PonderForSequenceClassification.from_encoder(encoder, "palbert", num_labels=3).eval()
        >>> out = model(**batch, policy=policies.FixedStep(2))
        >>> out.logits.shape, out.exit_step
        (torch.Size([5, 3]), tensor([2, 2, 2, 2, 2]))
    """

    pipeline_tag = "text-classification"
    problems = True

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderSequenceClassifierOutput:
        """Run every step in training, and each row to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_ids: Token ids, `(batch, length)`.
            attention_mask: 1 at tokens and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            labels: Labels, `(batch,)` (multilabel: `(batch, labels)`).
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
            ignored: What callers pass to any model as None, such as `inputs_embeds`.
        """
        out, shared = self.run(
            {"input_ids": input_ids},
            ignored,
            labels=labels,
            policy=policy,
            row_ids=row_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        return PonderSequenceClassifierOutput(logits=out.outputs, **shared)
