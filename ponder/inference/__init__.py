"""Inference: whole data sets, and streams of examples."""

from ponder.inference.predict import predict, record
from ponder.inference.stream import StreamEngine, StreamStats

__all__ = ["StreamEngine", "StreamStats", "predict", "record"]
