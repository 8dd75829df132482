"""`predict`: scores of a `CrossEncoder`, and the step at which each pair left, for which its own has no place."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers import CrossEncoder
from torch import Tensor, nn

from ponder.errors import ArgumentTypeError
from ponder.integrations.sentence_transformers.transformer import PonderTransformer
from ponder.policies import ExitPolicy

__all__ = ["predict"]


def predict(
    model: CrossEncoder, pairs: Any, *, policy: ExitPolicy | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    """Scores and exit steps, in the order of the pairs.

    Args:
        model: A `CrossEncoder` whose first module is a `PonderTransformer`.
        pairs: A list of pairs, or one pair, as for `CrossEncoder.predict`.
        policy: Decides instead of the model's own policy.
        options: Arguments of `CrossEncoder.predict`: `batch_size`, `activation_fn`, `apply_softmax`, ….

    Returns:
        Scores, `(pairs,)` or `(pairs, labels)`, and exit steps, `(pairs,)` long, 1-based; of one pair, without `pairs`.

    Raises:
        ArgumentTypeError: A model whose rows do not exit.

    Example:
        >>> from sentence_transformers import CrossEncoder
        >>> scorer = PonderForSequenceClassification.from_encoder(encoder, "palbert", num_labels=1)
        >>> ranker = CrossEncoder(modules=[PonderTransformer.of(scorer, tokenizer)], device="cpu")
        >>> scores, exit_step = predict(ranker, [("a text", "short"), ("a text", "a")])
        >>> scores.shape, exit_step.shape
        (torch.Size([2]), torch.Size([2]))
    """
    if not isinstance(model, CrossEncoder) or not isinstance(model[0], PonderTransformer):
        raise ArgumentTypeError(
            "model",
            expected="a CrossEncoder whose first module is a PonderTransformer",
            got=type(model).__name__,
            remedy="Build it: CrossEncoder(modules=[PonderTransformer.of(classifier, tokenizer)]).",
        )
    given = list(pairs)
    if len(given) == 2 and all(isinstance(text, str) for text in given):
        scores, exit_step = predict(model, [tuple(given)], policy=policy, **options)
        return scores[0], exit_step[0]
    activation = _BesideExits(
        options.pop("activation_fn", None) or model.activation_fn, options.pop("apply_softmax", False)
    )
    found = model.predict(
        given, policy=policy, exit_column=True, activation_fn=activation, convert_to_tensor=True, **options
    )
    if not len(found):
        return found, found.long()
    scores, exit_step = found[:, :-1], found[:, -1].round().long()
    return scores.squeeze(1) if scores.shape[1] == 1 else scores, exit_step


class _BesideExits(nn.Module):
    """An activation of the scores that leaves the last column, the exits, as it is."""

    def __init__(self, activation: Any, softmax: bool) -> None:
        super().__init__()
        self.activation, self.softmax = activation, softmax

    def forward(self, scores: Tensor) -> Tensor:
        active = self.activation(scores[:, :-1])
        if self.softmax and active.shape[1] > 1:
            active = active.softmax(1)
        return torch.cat([active, scores[:, -1:].to(active)], 1)
