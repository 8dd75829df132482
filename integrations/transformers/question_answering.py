"""`PonderForQuestionAnswering`: where in a text the answer to a question starts and ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.utils.generic import ModelOutput

from ponder.errors import ArgumentError
from ponder.integrations.transformers.arguments import span_labels
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy

__all__ = ["PonderForQuestionAnswering", "PonderQuestionAnsweringOutput"]


@dataclass
class PonderQuestionAnsweringOutput(ModelOutput):
    """What a call gives.

    Args:
        loss: Scalar, where both positions were given.
        start_logits: Logits of the first token of the answer, at each text's exit (in training: of the last step),
            `(batch, length)`.
        end_logits: Logits of its last token, likewise.
        exit_step: The step of these, `(batch,)`, 1-based.
        step_logits: Logits of both at every step in training, `(batch, steps, length, 2)`.
        hazard_logits: Hazard logits of every step in training, with a Lambda head, `(batch, steps)`.

    Example:
        >>> model = PonderForQuestionAnswering.from_encoder(encoder, "pabee").train()
        >>> first, last = torch.randint(7, (2, 5))
        >>> out = model(**batch, start_positions=first, end_positions=last)
        >>> out.loss.shape, out.step_logits.shape
        (torch.Size([]), torch.Size([5, 4, 7, 2]))
    """

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderForQuestionAnswering(PonderPreTrainedModel):
    """An encoder of texts that answers with a span of the text; see `PonderPreTrainedModel`.

    Example:
        >>> model = PonderForQuestionAnswering.from_encoder(encoder, "vanilla").eval()
        >>> out = model(**batch)
        >>> out.start_logits.shape, out.exit_step
        (torch.Size([5, 7]), tensor([4, 4, 4, 4, 4]))
    """

    heads_name = "qa_outputs"
    pipeline_tag = "question-answering"
    readouts = ("tokens",)

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName:
        """See `PonderPreTrainedModel.task_of`."""
        if config.problem_type is not None or config.num_labels != 2:
            raise ArgumentError(
                "num_labels and problem_type",
                expected="2, for start and end, and no problem_type",
                got=f"{config.num_labels} and {config.problem_type!r}",
                remedy="Leave them out.",
            )
        return "span"

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderQuestionAnsweringOutput:
        """Run every step in training, and each text to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_ids: Token ids of question and text, `(batch, length)`.
            attention_mask: 1 at tokens and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            start_positions: The place of the answer's first token, `(batch,)`; the length of the batch or more where it
                was cut off, which counts for nothing.
            end_positions: The place of its last token, likewise.
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
            ignored: What callers pass to any model as None, such as `inputs_embeds`.
        """
        labels = span_labels(start_positions, end_positions)
        out, shared = self.run(
            {"input_ids": input_ids},
            ignored,
            labels=labels,
            policy=policy,
            row_ids=row_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        start, end = out.outputs.unbind(-1)
        return PonderQuestionAnsweringOutput(start_logits=start, end_logits=end, **shared)
