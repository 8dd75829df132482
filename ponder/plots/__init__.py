"""Figures (matplotlib, the extra `plots`): each takes one run or several seeds, and returns the axes."""

from ponder._utils.renaming import renamed
from ponder.plots.correctness import overthinking, reliability
from ponder.plots.curves import score_by_speed_up, score_by_threshold
from ponder.plots.frontiers import frontiers
from ponder.plots.halting import exit_histogram, posterior

__all__ = [
    "exit_histogram",
    "frontiers",
    "overthinking",
    "posterior",
    "reliability",
    "score_by_speed_up",
    "score_by_threshold",
]

__getattr__ = renamed(__name__, {"score_by_knob": score_by_threshold})
