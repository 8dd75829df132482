"""Advice: the ways to make a fine-tuned classifier cheaper, timed on a user's texts."""

from ponder.advice.advising import Advice, advise
from ponder.advice.ways import Way

__all__ = ["Advice", "Way", "advise"]
