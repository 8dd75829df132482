"""MPNet: a stack of layers with a relative position bias that they share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ponder.integrations.transformers.adapter import EncoderAdapter, LayerStep, registry
from ponder.rows import Shared
from ponder.steps import Steps

__all__ = ["MPNetAdapter"]


@registry.register("mpnet")
class MPNetAdapter(EncoderAdapter):
    """`MPNetModel`; it has no token types."""

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """See `EncoderAdapter.embed`."""
        embeddings: Tensor = self.encoder.embeddings(input_ids=input_ids)
        return embeddings

    def extra_context(self, hidden: Tensor) -> dict[str, Any]:
        """The position bias, `(1, heads, length, length)`: once a call, for all steps and rows."""
        return {"position_bias": Shared(self.encoder.encoder.compute_position_bias(hidden[:1]))}

    def steps(self) -> Steps:
        """One step a layer."""
        return Steps([LayerStep(layer) for layer in self.encoder.encoder.layer])

    @property
    def has_pooler(self) -> bool:
        """See `EncoderAdapter.has_pooler`."""
        return self.encoder.pooler is not None

    def pool(self, hidden: Tensor) -> Tensor:
        """See `EncoderAdapter.pool`."""
        pooled: Tensor = self.encoder.pooler(hidden)
        return pooled
