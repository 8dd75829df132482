"""MPNet: a stack of layers with a relative position bias that they share."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from torch import Tensor

from ponder._utils.trees import Shared
from ponder.integrations.transformers.adapter import StackAdapter, registry
from ponder.parts.padding import Along

__all__ = ["MPNetAdapter"]


@registry.register("mpnet")
class MPNetAdapter(StackAdapter):
    """`MPNetModel`; it has no token types.

    Example:
        >>> from transformers import MPNetConfig, MPNetModel
        >>> sizes = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24}
        >>> adapter_for(MPNetModel(MPNetConfig(vocab_size=40, **sizes))).steps().num_steps
        4
    """

    extra_lengths = MappingProxyType({"position_bias": Along((-2, -1))})

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """See `EncoderAdapter.embed`."""
        embeddings: Tensor = self.encoder.embeddings(input_ids=input_ids)
        return embeddings

    def extra_context(self, hidden: Tensor) -> dict[str, Any]:
        """The position bias, `(1, heads, length, length)`: once a call, for all steps and rows."""
        return {"position_bias": Shared(self.encoder.encoder.compute_position_bias(hidden[:1]))}
