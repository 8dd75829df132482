"""Sentence Transformers whose rows leave early; needs the extra `sentence-transformers`.

`with_exits(model)` gives a `SentenceTransformer` whose encoder exits per row; `PonderTransformer` is the module that
does it, in the place of the library's own `Transformer`, in a `CrossEncoder` too. `encode` and `predict` then take
`policy=`.
"""

from ponder.integrations.sentence_transformers.prediction import predict
from ponder.integrations.sentence_transformers.transformer import PonderTransformer
from ponder.integrations.sentence_transformers.wrapping import with_exits

__all__ = ["PonderTransformer", "predict", "with_exits"]
