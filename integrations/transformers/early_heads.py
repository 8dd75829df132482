"""What the exits of a fine-tuned classifier are made of: its stem, what an early step reads, and how it answers.

The head of an early step is the model's own head on that step's hidden state, times a number, plus a linear map of the
state, see `EarlyHead`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.integrations.transformers.captured import as_long, mask_of_frames
from ponder.integrations.transformers.head_kinds import HeadKind
from ponder.parts import readouts
from ponder.parts.capturing.captured import CapturedStem

__all__ = ["AnswerAndStates", "ClassifierStem", "EarlyHead", "OwnAnswer", "check_states"]


class EarlyHead(nn.Module):
    r"""The answer of an early step: z = s · own(h) + W [norm(first token) ‖ norm(mean)] + b.

    Where there is an answer at each position, it is z_t = s · own(h)_t + W norm(h_t) + b. It starts with s = 1, W = 0
    and b = 0: the model's own head on this step's state.

    Args:
        labels: Number of classes.
        width: Size of the hidden state.
        states: How many states are read beside the own answer: 2, or 1 at each position.
    """

    def __init__(self, labels: int, width: int, states: int = 2) -> None:
        super().__init__()
        self.labels, self.width, self.states = labels, width, states
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(states * width, labels)
        self.reset()

    def reset(self) -> None:
        """Start again from the model's own head."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, …, labels)` from what the readout gives, `(batch, …, labels + states · width)`."""
        states = features[..., self.labels :].unflatten(-1, (self.states, self.width))
        logits: Tensor = self.linear(F.layer_norm(states, (self.width,)).flatten(-2))
        return self.scale * features[..., : self.labels] + logits


class OwnAnswer(nn.Module):
    """The classifier's own logits, untouched."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, …, labels)` from what the readout gives."""
        return features[..., : self.labels]


class ClassifierStem(nn.Module):
    """The captured stem, which registers the classifier; token types are left out where it has none."""

    takes_shared = True

    def __init__(self, captured: CapturedStem) -> None:
        super().__init__()
        self.captured = captured
        self.takes = self.argument_names = captured.argument_names

    def forward(
        self, inputs: Tree, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **named: Any
    ) -> tuple[Tree, dict[str, Any]]:
        """The hidden state before the first layer, and what the layers need, with the mask."""
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden, context = self.captured(inputs, **{k: v for k, v in given.items() if k in self.takes}, **named)
        context.pop("attention_mask", None)
        if attention_mask is None and _padded_within(hidden, inputs):
            attention_mask = torch.ones_like(inputs)
        return hidden, {**context, "attention_mask": attention_mask}


class AnswerAndStates:
    """What an early head reads: the model's own answer if it had ended here, and its states, side by side.

    The states are the first token and the mean of the tokens, without the padding on either side; where there is an
    answer at each position, that of the position.
    """

    borrows_modules = True

    def __init__(self, own: Callable[..., Tensor], per_position: bool, classifier: PreTrainedModel) -> None:
        self.own, self.per_position, self.classifier = own, per_position, classifier
        takes = inspect.signature(own).parameters.values()
        self.reads_context = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes)
        self.__signature__ = Signature(
            [Parameter("hidden", Parameter.POSITIONAL_OR_KEYWORD), Parameter("context", Parameter.VAR_KEYWORD)]
        )

    def __call__(self, hidden: Tree, **context: Any) -> Tensor:
        """Features `(batch, …, labels + states · width)`."""
        states = _states(hidden)
        logits = self.own(hidden, **context) if self.reads_context else self.own(hidden)
        if self.per_position:
            return torch.cat([logits, states.to(logits)], dim=-1)
        mask = _mask_of(states, context.get("attention_mask"), self.classifier)
        mean = readouts.mean(states, attention_mask=mask)
        return torch.cat([logits, _first_real(states, mask).to(logits), mean.to(logits)], dim=1)


def check_states(
    stem: CapturedStem, example: dict[str, Any], kind: HeadKind, classifier: PreTrainedModel
) -> tuple[int, bool]:
    """The width of the hidden state, and whether early heads read its mask otherwise than before version 0.2.

    What is not `(batch, length, width)` is refused. So are more states than tokens, but for padding on the right: they
    are then those of tokens padded by the caller.
    """
    given = {name: value for name, value in example.items() if isinstance(value, Tensor)}
    inputs = given.pop(next(iter(given)))
    with torch.no_grad():
        hidden, _ = stem(inputs, **given)
    states = _states(hidden)
    turned = inputs.dim() == 2 and states.dim() == 3 and (states.shape[1] != inputs.shape[1] == states.shape[2])
    if states.dim() != 3 or turned or (kind.task.per_position and states.shape[1] != inputs.shape[1]):
        raise ArgumentError(
            "model",
            expected="layers with a hidden state (batch, length, width)"
            + (", as long as the input" if kind.task.per_position else ""),
            got=f"one of shape {tuple(states.shape)}",
            remedy="Capture it with ponder.capture, and give it heads of your own.",
        )
    if _padded_within(hidden, inputs) and not _as_padded_outside(stem, inputs, given, states):
        raise ArgumentError(
            "model",
            expected="layers with a state for each token, and padding on the right at most, which is left out",
            got=f"{states.shape[1]} states for {inputs.shape[1]} tokens",
            remedy="Capture it with ponder.capture, and give it heads of your own.",
        )
    counted = hasattr(classifier, "_get_feature_vector_attention_mask")
    return states.shape[-1], not kind.task.per_position and (_padded_within(hidden, inputs) or counted)


@torch.no_grad()
def _as_padded_outside(stem: CapturedStem, inputs: Tensor, given: dict[str, Tensor], states: Tensor) -> bool:
    """Whether a model that pads within has the states of tokens that were padded on the right to as many."""
    more = states.shape[1] - inputs.shape[1]
    wide = {name: F.pad(value, (0, 0) * (value.dim() - 2) + (0, more)) for name, value in given.items()}
    padded = _states(stem(F.pad(inputs, (0, more)), **wide)[0])
    real = wide.get("attention_mask", F.pad(torch.ones_like(inputs), (0, more))) != 0
    near = 1e-3 * float(states.abs().max())
    return padded.shape == states.shape and torch.allclose(padded[real], states[real], rtol=0.0, atol=near)


def _mask_of(states: Tensor, mask: Tensor | None, classifier: PreTrainedModel) -> Tensor | None:
    """The mask of the states by that of a call; None where there is none, or nobody knows what a state is made of."""
    length = states.shape[1]
    if mask is None or mask.shape[1] == length:
        return mask
    if mask.dim() == 2 and mask.shape[1] < length:  # padded within: on the right, see `check_states`
        return F.pad(mask, (0, length - mask.shape[1]))
    frames = mask_of_frames(classifier, mask, length) if mask.dim() == 2 else mask
    return None if frames is mask else as_long(frames, length)


def _first_real(states: Tensor, mask: Tensor | None) -> Tensor:
    """The state of the first token that is no padding, on whichever side that is; of the first where no mask tells."""
    if mask is None:
        return readouts.first_token(states)
    place = (mask != 0).long().argmax(1)  # of several ones, the first
    return states[torch.arange(states.shape[0], device=states.device), place]


def _padded_within(hidden: Tree, inputs: Tree) -> bool:
    """Whether a model of tokens has more states than tokens, as Longformer, which pads to a multiple of its window."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 2 or inputs.is_floating_point():
        return False
    return _states(hidden).shape[1] > inputs.shape[1]


def _states(hidden: Tree) -> Tensor:
    states: Tensor = hidden["hidden"] if isinstance(hidden, dict) else hidden
    return states
