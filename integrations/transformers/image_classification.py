"""`PonderForImageClassification`: one answer an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.modeling import PonderPreTrainedModel, by_problem
from ponder.integrations.transformers.sequence_classification import PonderSequenceClassifierOutput
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy

__all__ = ["PonderForImageClassification"]


class PonderForImageClassification(PonderPreTrainedModel):
    """An encoder of images that answers once an image; see `PonderPreTrainedModel`."""

    pipeline_tag = "image-classification"
    main_input_name = "pixel_values"
    inputs = ("pixel_values",)
    problems = True

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName:
        """See `PonderPreTrainedModel.task_of`."""
        return by_problem(config)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderSequenceClassifierOutput:
        """Run every step in training, and each row to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            pixel_values: Images as the encoder's image processor gives them, `(batch, channels, height, width)`.
            labels: Labels, `(batch,)` (multilabel: `(batch, labels)`).
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
            ignored: What callers pass to any model as None, such as `output_attentions`.
        """
        out, shared = self.run({"pixel_values": pixel_values}, ignored, labels=labels, policy=policy, row_ids=row_ids)
        return PonderSequenceClassifierOutput(logits=out.outputs, **shared)
