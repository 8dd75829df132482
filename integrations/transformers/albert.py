"""ALBERT: groups of shared layers, applied again and again."""

from __future__ import annotations

from torch import Tensor

from ponder.integrations.transformers.adapter import EncoderAdapter, LayerStep, registry
from ponder.parts.steps import Steps

__all__ = ["AlbertAdapter"]


@registry.register("albert")
class AlbertAdapter(EncoderAdapter):
    """`AlbertModel`: one step is one application of a layer group, with all its inner layers.

    Example:
        >>> from transformers import AlbertConfig, AlbertModel
        >>> config = AlbertConfig(hidden_size=16, num_hidden_layers=6, num_attention_heads=2, intermediate_size=24)
        >>> adapter_for(AlbertModel(config)).steps().schedule  # one group of layers, applied six times
        (0, 0, 0, 0, 0, 0)
    """

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """Factorised embeddings, projected to the width of the layers."""
        embeddings = self.encoder.embeddings(input_ids, token_type_ids=token_type_ids)
        hidden: Tensor = self.encoder.encoder.embedding_hidden_mapping_in(embeddings)
        return hidden

    def steps(self) -> Steps:
        """N applications, the groups in equal shares, in order."""
        config = self.encoder.config
        groups = [LayerStep(group) for group in self.encoder.encoder.albert_layer_groups]
        per_group = config.num_hidden_layers / config.num_hidden_groups
        return Steps(groups, schedule=[int(step / per_group) for step in range(config.num_hidden_layers)])

    def pool(self, hidden: Tensor) -> Tensor:
        """See `EncoderAdapter.pool`."""
        pooled: Tensor = self.encoder.pooler_activation(self.encoder.pooler(hidden[:, 0]))
        return pooled
