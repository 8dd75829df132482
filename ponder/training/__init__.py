"""Training: a loop on `accelerate` that runs all stages of a recipe (extra `train`), and what training measures."""

from ponder.training.fitting import fit
from ponder.training.measured import Means, measured
from ponder.training.report import EpochReport, FitReport, StageReport

__all__ = ["EpochReport", "FitReport", "Means", "StageReport", "fit", "measured"]
