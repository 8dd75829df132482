"""HrmText of Transformers: a high and a low state, and one high cycle as a step.

`HrmTextModel` runs a fixed number of cycles, `config.H_cycles`. At that depth the loop gives its
states; a policy may stop each token before. Every call of the two stacks is made on all tokens.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from ponder._utils.trees import Shared
from ponder.loops.adapters.hrm import State, high_state
from ponder.model.steps import ContextDict

__all__ = ["HighCycle", "high_state", "start"]

HrmTextModel: TypeAlias = Any
"""The model of that name, which only new versions of Transformers have."""


class HighCycle(nn.Module):
    """One high cycle of an `HrmTextModel`: the low stack `config.L_cycles` times, then the high."""

    def __init__(self, model: HrmTextModel) -> None:
        super().__init__()
        self.low_stack = model.L_module
        self.high_stack = model.H_module
        self.low_cycles: int = model.config.L_cycles

    def forward(self, state: State, causal: Tensor | None, angles: tuple[Tensor, Tensor]) -> State:
        """Return both states after a cycle; `start` has the mask and the angles of positions."""
        high, low = state
        options = {"attention_mask": causal, "position_embeddings": angles}
        for _ in range(self.low_cycles):
            low = self.low_stack(low + high, **options)
        return self.high_stack(high + low, **options), low


def start(model: HrmTextModel, input_ids: Tensor) -> tuple[State, ContextDict]:
    """Return the states before the first cycle, and the context of every cycle."""
    high = model.embed_tokens(input_ids) * model.embedding_scale
    low = model.z_L_init.expand_as(high).contiguous()
    places = torch.arange(input_ids.shape[1])[None]
    causal = create_causal_mask(
        model.config, inputs_embeds=high, attention_mask=None, cache=None, position_ids=places
    )
    angles = model.rotary_emb(high, places)
    return (high, low), {"causal": Shared(causal), "angles": Shared(angles)}
