"""`PonderForTokenClassification`: a class a token. A text leaves as a whole; its Lambda head reads the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from ponder.errors import ArgumentError
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy

__all__ = ["PonderForTokenClassification", "PonderTokenClassifierOutput"]


@dataclass
class PonderTokenClassifierOutput(ModelOutput):
    """What a call gives.

    Args:
        loss: Scalar, where labels were given.
        logits: Outputs at each text's exit (in training: of the last step), `(batch, length, labels)`.
        exit_step: The step of `logits`, `(batch,)`, 1-based.
        step_logits: Outputs of every step in training, `(batch, steps, length, labels)`.
        hazard_logits: Hazard logits of every step in training, with a Lambda head, `(batch, steps)`.

    Example:
        >>> model = PonderForTokenClassification.from_encoder(encoder, "pabee", num_labels=5).train()
        >>> model(**batch, labels=torch.randint(5, (5, 7))).step_logits.shape
        torch.Size([5, 4, 7, 5])
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderForTokenClassification(PonderPreTrainedModel):
    """An encoder of texts that answers once a token; see `PonderPreTrainedModel`.

    Example:
        >>> model = PonderForTokenClassification.from_encoder(encoder, "pabee", num_labels=5).eval()
        >>> out = model(**batch)
        >>> out.logits.shape, out.exit_step.shape
        (torch.Size([5, 7, 5]), torch.Size([5]))
    """

    pipeline_tag = "token-classification"
    readouts = ("tokens",)

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName:
        """See `PonderPreTrainedModel.task_of`."""
        if config.problem_type is not None or not config.num_labels or config.num_labels < 2:
            raise ArgumentError(
                "num_labels and problem_type",
                expected="at least 2 labels, and no problem_type: each token has one class",
                got=f"{config.num_labels} and {config.problem_type!r}",
                remedy="Pass num_labels=9, say, or id2label.",
            )
        return "token_classification"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderTokenClassifierOutput:
        """Run every step in training, and each text to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_ids: Token ids, `(batch, length)`.
            attention_mask: 1 at tokens and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            labels: A class a token, and −100 where none counts, `(batch, length)`.
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
        return PonderTokenClassifierOutput(logits=out.outputs, **shared)
