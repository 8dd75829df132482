"""Depth-mixed streaming: rows at different depths share one batch, so that every step runs full."""

from ponder.streaming.engine import StreamEngine
from ponder.streaming.stats import StreamStats
from ponder.streaming.ticket import StreamOutput

__all__ = ["StreamEngine", "StreamOutput", "StreamStats"]
