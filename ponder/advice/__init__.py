"""Which way makes a fine-tuned classifier cheaper? All of them raced on a user's texts, each with a promise."""

from ponder.advice.advising import Advice, advise
from ponder.advice.ways import Way

__all__ = ["Advice", "Way", "advise"]
