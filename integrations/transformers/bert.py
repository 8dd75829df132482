"""BERT: a stack of layers, and a pooler on the first token."""

from __future__ import annotations

from torch import Tensor
from transformers import PreTrainedModel

from ponder.errors import ArgumentError
from ponder.integrations.transformers.adapter import StackAdapter, registry

__all__ = ["BertAdapter"]


@registry.register("bert")
class BertAdapter(StackAdapter):
    """`BertModel` as an encoder (not as a decoder).

    Example:
        >>> type(adapter_for(encoder)).__name__, adapters.names()
        ('BertAdapter', ['albert', 'bert', 'mpnet'])
    """

    def __init__(self, encoder: PreTrainedModel) -> None:
        super().__init__(encoder)
        if encoder.config.is_decoder:
            raise ArgumentError(
                "encoder", expected="an encoder", got="is_decoder=True", remedy="Load it with is_decoder=False."
            )

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None) -> Tensor:
        """See `EncoderAdapter.embed`."""
        embeddings: Tensor = self.encoder.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        return embeddings
