"""Depth-mixed streaming: rows at different depths share one batch, so that every step runs full."""

from ponder.inference.streaming.engine import StreamEngine
from ponder.inference.streaming.stats import StreamStats
from ponder.inference.streaming.ticket import StreamOutput

__all__ = ["StreamEngine", "StreamOutput", "StreamStats"]
