"""`PonderForAudioClassification`: one answer a recording."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.modeling import PonderPreTrainedModel, by_problem
from ponder.integrations.transformers.sequence_classification import PonderSequenceClassifierOutput
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy

__all__ = ["PonderForAudioClassification"]


class PonderForAudioClassification(PonderPreTrainedModel):
    """An encoder of sound that answers once a recording; see `PonderPreTrainedModel`."""

    pipeline_tag = "audio-classification"
    main_input_name = "input_values"
    inputs = ("input_values", "input_features")
    problems = True

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName:
        """See `PonderPreTrainedModel.task_of`."""
        return by_problem(config)

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        input_features: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderSequenceClassifierOutput:
        """Run every step in training, and each row to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_values: Samples `(batch, length)`, or a spectrogram for the encoders that call it so.
            attention_mask: 1 at samples or frames and 0 at padding, `(batch, length)`, where the encoder takes one.
            labels: Labels, `(batch,)` (multilabel: `(batch, labels)`).
            input_features: A spectrogram, for the encoders that call it so.
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
            ignored: What callers pass to any model as None, such as `output_attentions`.
        """
        mask = {} if attention_mask is None else {"attention_mask": attention_mask}
        inputs = {"input_values": input_values, "input_features": input_features}
        out, shared = self.run(inputs, ignored, labels=labels, policy=policy, row_ids=row_ids, **mask)
        return PonderSequenceClassifierOutput(logits=out.outputs, **shared)
