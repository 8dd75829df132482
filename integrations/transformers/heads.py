"""The models: one class a kind of answer, and the Auto classes that find them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForImageClassification,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from ponder.integrations.transformers.adapter import Adapter
from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.families import encoder_of
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.outputs import PonderModelOutput, span_labels
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe
from ponder.tasks import Regression, Task, TaskName

__all__ = [
    "PonderForAudioClassification",
    "PonderForImageClassification",
    "PonderForQuestionAnswering",
    "PonderForSequenceClassification",
    "PonderForTokenClassification",
    "PonderModel",
]


class PonderForSequenceClassification(PonderPreTrainedModel):
    """An encoder of texts that answers once a text: a class, several labels, or numbers.

    Example:
        >>> model = PonderForSequenceClassification.from_encoder(encoder, "palbert", num_labels=3)
        >>> out = model.eval()(**batch, policy=policies.FixedStep(2))
        >>> out.logits.shape, out.exit_step
        (torch.Size([5, 3]), tensor([2, 2, 2, 2, 2]))
    """

    auto_class = AutoModelForSequenceClassification
    pipeline_tag = "text-classification"


class PonderForTokenClassification(PonderPreTrainedModel):
    """An encoder of texts that answers once a token.

    A text exits as a whole; its Lambda head reads the mean.

    Example:
        >>> model = PonderForTokenClassification.from_encoder(encoder, "pabee", num_labels=5).eval()
        >>> model(**batch).logits.shape
        torch.Size([5, 7, 5])
    """

    auto_class = AutoModelForTokenClassification
    pipeline_tag = "token-classification"
    task_name = "token_classification"
    readouts = ("tokens",)
    per_position = True


class PonderForQuestionAnswering(PonderPreTrainedModel):
    """An encoder of texts that answers with a span of the text.

    Example:
        >>> model = PonderForQuestionAnswering.from_encoder(encoder, "vanilla").eval()
        >>> out = model(**batch)
        >>> out.start_logits.shape, out.exit_step
        (torch.Size([5, 7]), tensor([4, 4, 4, 4, 4]))
    """

    auto_class = AutoModelForQuestionAnswering
    pipeline_tag = "question-answering"
    heads_name = "qa_outputs"
    task_name = "span"
    readouts = ("tokens",)
    per_position = True

    @staticmethod
    def answer(output: Mapping[str, Tensor]) -> Tensor:
        """Return the logits of both positions, side by side."""
        return torch.stack((output["start_logits"], output["end_logits"]), -1)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **inputs: Any,
    ) -> PonderModelOutput | tuple[Tensor, ...]:
        """See `PonderPreTrainedModel.forward`; labels are first and last tokens, `(batch,)`."""
        inputs |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        return self.run(inputs, span_labels(start_positions, end_positions), policy, row_ids)

    def named_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """See `PonderPreTrainedModel.named_outputs`."""
        start, end = outputs.unbind(-1)
        return {"start_logits": start, "end_logits": end}


class PonderForImageClassification(PonderPreTrainedModel):
    """An encoder of images that answers once an image.

    Example:
        >>> from transformers import ViTConfig, ViTModel
        >>> sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
        >>> config = ViTConfig(image_size=32, patch_size=8, num_hidden_layers=4, **sizes)
        >>> vit = ViTModel(config)
        >>> model = PonderForImageClassification.from_encoder(vit, "palbert", num_labels=10).eval()
        >>> model(pixel_values=torch.randn(2, 3, 32, 32)).logits.shape
        torch.Size([2, 10])
    """

    auto_class = AutoModelForImageClassification
    pipeline_tag = "image-classification"
    main_input_name = "pixel_values"


class PonderForAudioClassification(PonderPreTrainedModel):
    """An encoder of sound that answers once a recording."""

    auto_class = AutoModelForAudioClassification
    pipeline_tag = "audio-classification"
    main_input_name = "input_values"


class PonderModel(PonderPreTrainedModel):
    """An encoder that answers with its features at the exit: embeddings, or all tokens.

    With ``readout="tokens"`` the answer is all tokens. Labels are the features that a row should
    have, such as its embedding by a larger model: the loss of a step is the mean squared error.
    From the folder of a classifier, the encoder is read.

    Example:
        >>> model = PonderModel.from_encoder(encoder, "vanilla", readout="mean").eval()
        >>> model(**batch, policy=policies.Converged(tolerance=0.3)).pooler_output.shape
        torch.Size([5, 16])
    """

    auto_class = AutoModel
    readouts = ("pooler", "mean", "first_token", "last_token", "tokens")
    task_name = "regression"

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName | Task:
        """See `PonderPreTrainedModel.task_of`."""
        if config.readout == "tokens":
            return TokenFeatures()
        return super().task_of(config)

    @classmethod
    def adapt(cls, whole: PreTrainedModel, config: PonderConfig) -> Adapter:
        """See `PonderPreTrainedModel.adapt`; of a fine-tuned model, the encoder is read."""
        if not config.finetuned:
            return super().adapt(whole, config)
        base: Any = whole.base_model
        adapter = Adapter(encoder_of(base), config.num_steps, config.example)
        config.readout = "mean"
        if whole.main_input_name == "input_ids":
            config.readout = "tokens"
        config.recipe = {**config.recipe, "policy": LastStep().to_dict()}
        return adapter

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """See `PonderPreTrainedModel.make_heads`; the features are the answer."""
        if self.config.finetuned:
            return nn.Identity(), None
        _, lambda_head = super().make_heads(recipe, num_steps)
        return nn.Identity(), lambda_head

    def named_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """See `PonderPreTrainedModel.named_outputs`."""
        if self.config.readout == "tokens":
            return {"last_hidden_state": outputs}
        return {"pooler_output": outputs}


class TokenFeatures(Regression):
    """All tokens of a row as its answer: numbers at each position that is not padding."""

    per_token = per_position = True


AutoConfig.register(PonderConfig.model_type, PonderConfig, exist_ok=True)
for _kind in (
    PonderModel,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderForImageClassification,
    PonderForAudioClassification,
    PonderForQuestionAnswering,
):
    _kind.auto_class.register(PonderConfig, _kind, exist_ok=True)
