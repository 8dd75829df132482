"""`PonderModel`: no head at all. The features of each row at its exit: embeddings of sentences, images, recordings.

With ``readout="tokens"`` these are all tokens, as a plain encoder gives them: `last_hidden_state`.
"""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ponder.errors import ArgumentError
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.parts.tasks import Regression, Task, TaskName
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe

__all__ = ["PonderModel", "PonderModelOutput"]


@dataclass
class PonderModelOutput(ModelOutput):
    """What a call gives.

    Args:
        loss: Scalar, where labels were given.
        last_hidden_state: Tokens at each row's exit, `(batch, length, width)`, of a model that reads tokens.
        pooler_output: Features at each row's exit (in training: of the last step), `(batch, width)`, of any other.
        exit_step: The step of either, `(batch,)`, 1-based.
        step_logits: Tokens or features of every step, in training, `(batch, steps, …)`.
        hazard_logits: Hazard logits of every step in training, with a Lambda head, `(batch, steps)`.

    Example:
        >>> out = PonderModel.from_encoder(encoder, "vanilla", readout="tokens").eval()(**batch)
        >>> out.last_hidden_state.shape, out.exit_step
        (torch.Size([5, 7, 16]), tensor([4, 4, 4, 4, 4]))
    """

    loss: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderModel(PonderPreTrainedModel):
    """An encoder that answers with its features; see `PonderPreTrainedModel`.

    Labels are the features that a row should have, such as the embedding that a larger model gives the same text: the
    loss of a step is the mean squared error.

    Example:
        >>> model = PonderModel.from_encoder(encoder, "vanilla", readout="mean").eval()
        >>> model(**batch, policy=policies.Converged(tolerance=0.3)).pooler_output.shape
        torch.Size([5, 16])
    """

    inputs = ("input_ids", "pixel_values", "input_values", "input_features")
    readouts = ("pooler", "mean", "tokens")

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName | Task:
        """See `PonderPreTrainedModel.task_of`."""
        return _Tokens() if config.readout == "tokens" else "regression"

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """See `PonderPreTrainedModel.make_heads`; the features are the answer."""
        return nn.Identity(), super().make_heads(recipe, num_steps)[1]

    @classmethod
    def from_encoder(  # type: ignore[override]
        cls,
        encoder: str | PathLike[str] | PreTrainedModel,
        recipe: str | Recipe = "palbert",
        *,
        readout: Literal["pooler", "mean", "tokens"] | None = None,
        policy: ExitPolicy | None = None,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        **config: Any,
    ) -> Self:
        """Let a pretrained encoder exit early; arguments as for `PonderPreTrainedModel.from_encoder`.

        Raises:
            ArgumentError: An argument of heads, which this model has none of, or as there.
        """
        for name in ("num_labels", "problem_type", "head_dropout"):
            if name in config:
                raise ArgumentError(
                    name,
                    expected="no argument of a head: this model answers with features",
                    got=repr(config[name]),
                    remedy="Leave it out, or use the model of your task.",
                )
        return super().from_encoder(
            encoder,
            recipe,
            readout=readout,
            policy=policy,
            dtype=dtype,
            attn_implementation=attn_implementation,
            **config,
        )

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **ignored: Any,
    ) -> PonderModelOutput:
        """Run every step in training, and each row to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_ids: Token ids, `(batch, length)`, of an encoder of texts.
            attention_mask: 1 at real positions and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            labels: The features that rows should have, `(batch, width)`.
            pixel_values: Images, of an encoder of images.
            input_values: Samples or a spectrogram, of an encoder of sound.
            input_features: A spectrogram, of an encoder of sound.
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
            ignored: What callers pass to any model as None, such as `inputs_embeds`.
        """
        inputs = {
            "input_ids": input_ids,
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }
        context = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        given = {name: value for name, value in context.items() if value is not None or input_ids is not None}
        out, shared = self.run(inputs, ignored, labels=labels, policy=policy, row_ids=row_ids, **given)
        name = "last_hidden_state" if self.config.readout == "tokens" else "pooler_output"
        return PonderModelOutput(**{name: out.outputs}, **shared)


class _Tokens(Regression):
    """All tokens of a row as its answer: numbers at each position, of which padding does not count."""

    per_token = True

    def check(self, outputs: Tensor, labels: Tensor) -> Tensor:
        raise ArgumentError(
            "labels",
            expected="None, of a model that gives all tokens",
            got=f"a tensor of shape {tuple(labels.shape)}",
            remedy="Teach features of a whole row: readout='mean' or 'pooler'.",
        )
