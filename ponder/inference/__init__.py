"""Inference: whole data sets, and streams of examples.

Names are loaded when they are first used, so that a model is made and trained without them.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names

if TYPE_CHECKING:
    from ponder.inference.datasets import predict, record
    from ponder.inference.stream import StreamEngine, StreamStats

__all__ = ["StreamEngine", "StreamStats", "predict", "record"]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(
        __name__,
        ("datasets:predict", "datasets:record", "stream:StreamEngine", "stream:StreamStats"),
    )
