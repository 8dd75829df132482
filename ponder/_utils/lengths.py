"""To how many tokens texts are cut: the same for a folder of Transformers and for its export."""

from __future__ import annotations

__all__ = ["FALLBACK_LENGTH", "length_limit"]

FALLBACK_LENGTH = 512
"""Where neither a model of Transformers nor its tokenizer has a limit."""
_NO_LIMIT = 10**9  # tokenizers without one say some 10³⁰, and some models say -1


def length_limit(*limits: object) -> int | None:
    """The least of the limits of a model and its tokenizer; None where none of them is one."""
    known = [int(limit) for limit in limits if isinstance(limit, int | float) and 1 <= limit <= _NO_LIMIT]
    return min(known, default=None)
