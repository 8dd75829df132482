"""`PonderForImageClassification`: one answer an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.sequence_classification import PonderSequenceClassifierOutput
from ponder.policies import ExitPolicy

__all__ = ["PonderForImageClassification"]


class PonderForImageClassification(PonderPreTrainedModel):
    """An encoder of images that answers once an image; see `PonderPreTrainedModel`.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
        >>> vit = ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes))
        >>> model = PonderForImageClassification.from_encoder(vit, "palbert", num_labels=10).eval()
        >>> model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape
        torch.Size([2, 10])
    """

    pipeline_tag = "image-classification"
    main_input_name = "pixel_values"
    inputs = ("pixel_values",)
    problems = True

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
