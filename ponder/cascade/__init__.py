"""Cascades: a cheap model answers where it is sure, the next one where it is not, and a promise says how often.

Nothing here imports PyTorch, unless a stage is a model of PyTorch.
"""

from ponder.calibration.cascades import CascadeReport
from ponder.cascade.cascade import Cascade, CascadeAnswers
from ponder.cascade.live import Live
from ponder.cascade.student import Embeddings, Student

__all__ = ["Cascade", "CascadeAnswers", "CascadeReport", "Embeddings", "Live", "Student"]
