"""`PonderForAudioClassification`: one answer a recording."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.sequence_classification import PonderSequenceClassifierOutput
from ponder.policies import ExitPolicy

__all__ = ["PonderForAudioClassification"]


class PonderForAudioClassification(PonderPreTrainedModel):
    """An encoder of sound that answers once a recording; see `PonderPreTrainedModel`.

    Example:
        >>> from transformers import ASTConfig, ASTModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
        >>> encoder = ASTModel(ASTConfig(max_length=32, num_mel_bins=16, patch_size=8, **sizes))
        >>> model = PonderForAudioClassification.from_encoder(encoder, "palbert", num_labels=4).eval()
        >>> model(input_values=torch.randn(2, 32, 16)).logits.shape
        torch.Size([2, 4])
    """

    pipeline_tag = "audio-classification"
    main_input_name = "input_values"
    inputs = ("input_values", "input_features")
    problems = True

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
