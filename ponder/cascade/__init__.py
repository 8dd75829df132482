"""Cascades: a cheap model answers if it is certain, else the next one, with a promise.

Nothing here imports PyTorch, unless a stage is a model of PyTorch.
"""

from ponder.calibration.cascades import CascadeReport
from ponder.cascade.cascade import Cascade, CascadeAnswers
from ponder.cascade.live import Live
from ponder.cascade.student import Embeddings, Student

__all__ = ["Cascade", "CascadeAnswers", "CascadeReport", "Embeddings", "Live", "Student"]
