"""Inference: whole data sets, and streams of examples."""

from ponder.inference.predict import predict, record
from ponder.inference.stream import StreamEngine, StreamOutput, StreamStats

__all__ = ["StreamEngine", "StreamOutput", "StreamStats", "predict", "record"]
