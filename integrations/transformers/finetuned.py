"""Fine-tuned models as stem, steps and readout; all that follows their last layer is the readout.

The head of an early step is the model's head on that step's hidden state, times a number, plus a
linear map of the state: it starts as the model's head, and learns on inputs without labels to
answer as full depth does (`exits.fit_exits`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from ponder._utils.trees import Tree
from ponder.errors import ArgumentError
from ponder.integrations.transformers.adapter import Adapter, Select, as_long, states_of
from ponder.integrations.transformers.families import PackedExample, frames_mask
from ponder.model import readouts
from ponder.model.capture import Captured
from ponder.model.steps import Context

__all__ = ["EarlyHead", "FinetunedAdapter", "OwnAnswer"]


class EarlyHead(nn.Module):
    r"""The answer of an early step: z = s · own(h) + W [norm(first token) ‖ norm(mean)] + b.

    With an answer at each position, it is z_t = s · own(h)_t + W norm(h_t) + b. It starts
    with s = 1, W = 0 and b = 0: the model's own head on this step's state. `states` are 2, or 1 at
    each position.
    """

    def __init__(self, labels: int, width: int, states: int = 2) -> None:
        super().__init__()
        self.labels = labels
        self.width = width
        self.states = states
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(states * width, labels)
        self.reset()

    def reset(self) -> None:
        """Start again from the model's own head."""
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, `(…, labels)`, from features, `(…, labels + states · width)`."""
        logits: Tensor = self.linear(self.states_of(features))
        return self.scale * features[..., : self.labels] + logits

    def states_of(self, features: Tensor) -> Tensor:
        """Return the normalised states that the features hold, `(batch, …, states · width)`."""
        states = features[..., self.labels :].unflatten(-1, (self.states, self.width))
        return F.layer_norm(states, (self.width,)).flatten(-2)


class OwnAnswer(nn.Module):
    """The model's own logits, untouched: the first `labels` of what the readout gives."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, features: Tensor) -> Tensor:
        """Return logits, `(batch, …, labels)`."""
        return features[..., : self.labels]


class FinetunedAdapter(Adapter):
    """A fine-tuned model, captured with its head; its one readout is ``"answer"``.

    Its features are the model's answer, as if the model had ended here, and the states of the first
    token and of the mean of the tokens, without the padding on either side; if there is an answer
    at each position, the state of the position. `select` is a function from the model's output to
    its answer; the other arguments are as for `Adapter`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        select: Select,
        per_position: bool,
        num_steps: int | None = None,
        example: PackedExample | None = None,
    ) -> None:
        self.selects = {"answer": select}
        self.per_position = per_position
        super().__init__(model, num_steps, example)

    def learn(self) -> Captured:
        """See `Adapter.learn`; states that early heads cannot read are refused."""
        parts = super().learn()
        first = self.shapes["hidden"]
        last = self.shapes["last"]
        positions = self.shapes[self.encoder.main_input_name][1:2]
        has_positions = first[1:2] == positions
        same_width = first[-1:] == last[-1:]
        # (batch, width, length), as of convolutions
        is_transposed = not has_positions and first[-1:] == positions
        fits = len(first) == 3 and same_width and not is_transposed
        if not fits or (self.per_position and not has_positions):
            raise ArgumentError(
                "model",
                expected="layers with a hidden state (batch, length, width) at the input's "
                "positions",
                got=f"states of shape {first} before them and {last} behind",
                remedy="Capture it with ponder.capture, and build heads for it.",
            )
        return parts

    def width(self, name: str) -> int:
        """Return the size of the hidden state."""
        return self.shapes["hidden"][-1]

    def features(self, name: str, hidden: Tree, context: Context) -> Tensor:
        """Return the features of early heads, `(batch, …, labels + states · width)`."""
        logits = self.output("answer", hidden, context)
        states = states_of(hidden)
        if self.per_position:
            return torch.cat([logits, states.to(logits)], dim=-1)
        mask = self._mask(states, context.get("token_mask"))
        mean = readouts.mean(states, attention_mask=mask)
        first = _first_real(states, mask)
        return torch.cat([logits, first.to(logits), mean.to(logits)], dim=1)

    def _mask(self, states: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask of the states; None if it is not known which positions they have."""
        length = states.shape[1]
        if mask is None or mask.shape[1] == length:
            return mask
        if mask.shape[1] < length:
            # A model that pads, as Longformer does to a multiple of its window.
            return F.pad(mask, (0, length - mask.shape[1]))
        frames = frames_mask(self.encoder, mask, length)
        if frames is mask:  # the model has no frames
            return None
        return as_long(frames, length)


def _first_real(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the state of the first token that is not padding, which may be on either side."""
    if mask is None:
        return readouts.first_token(states)
    place = (mask != 0).long().argmax(1)  # of several ones, the first
    return states[torch.arange(states.shape[0], device=states.device), place]
