"""Depth-mixed streaming: rows at different depths share one batch, so that every step runs full."""

from ponder.inference.streaming.engine import StreamEngine
from ponder.inference.streaming.requests import StreamOutput
from ponder.inference.streaming.stats import StreamStats

__all__ = ["StreamEngine", "StreamOutput", "StreamStats"]
