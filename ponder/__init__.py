"""Adaptive computation for PyTorch encoders: learn, per example, when to stop."""

from ponder import calibration, cost, objectives, policies, priors, readouts, recipes
from ponder.calibration import Calibration, RiskControl, calibrate, control_risk
from ponder.compilation import compile_steps
from ponder.distributions import StepDistribution
from ponder.errors import PonderError
from ponder.heads import LambdaHead, PerStep
from ponder.loop import Exits
from ponder.optim import parameter_groups
from ponder.padding import Padding
from ponder.prediction import Predictions, predict
from ponder.rows import Shared
from ponder.serialization import load, save
from ponder.steps import Steps
from ponder.streaming import StreamEngine, StreamOutput
from ponder.sweep import Curve, Point
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderOutput, PonderWrapper

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Curve",
    "Exits",
    "LambdaHead",
    "Padding",
    "PerStep",
    "Point",
    "PonderError",
    "PonderOutput",
    "PonderWrapper",
    "Predictions",
    "RiskControl",
    "Shared",
    "StepDistribution",
    "Steps",
    "StreamEngine",
    "StreamOutput",
    "Trajectory",
    "calibrate",
    "calibration",
    "compile_steps",
    "control_risk",
    "cost",
    "load",
    "objectives",
    "parameter_groups",
    "policies",
    "predict",
    "priors",
    "readouts",
    "recipes",
    "save",
]
