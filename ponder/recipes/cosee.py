"""COSEE: a head a step, each trained most on the examples that exit there, and energy."""

from ponder.objectives import SignalCalibration, SimulatedExits
from ponder.policies import Energy
from ponder.recipes.base import Recipe, Stage


def cosee(
    thresholds: int = 5, sharpness: float = 10.0, calibration: float = 0.1, threshold: float = 0.9
) -> Recipe:
    """The recipe COSEE: training with simulated exits, and exits by the energy of the logits.

    Args:
        thresholds: How many exit thresholds are simulated for each example.
        sharpness: How much, at the end of training, a step learns from the examples that leave
            there alone.
        calibration: Weight of the signal calibration: right answers are to be surer than wrong
            ones.
        threshold: Energy score, in [0, 1], above which a row exits.

    Example:
        >>> recipes.get("cosee", threshold=0.95).policy
        Energy(threshold=0.95)
    """
    simulated = SimulatedExits(thresholds, sharpness, signal="energy")
    return Recipe(
        name="cosee",
        paper="He et al. 2025, arXiv 2412.13236",
        stages=(Stage(simulated + calibration * SignalCalibration(signal="energy")),),
        policy=Energy(threshold),
        per_step_heads=True,
    )
