"""Adaptive computation for PyTorch encoders: learn, per example, when to stop."""

from ponder import calibration, cost, objectives, policies, priors, recipes
from ponder._utils.trees import Shared
from ponder.analysis.diagnosis import Diagnosis, diagnose
from ponder.analysis.sweeps import Curve, Point
from ponder.calibration import Calibration, RiskControl, calibrate, control_risk
from ponder.distributions import StepDistribution
from ponder.engine.loop import Exits
from ponder.errors import PonderError
from ponder.inference.compiling import compile_steps
from ponder.inference.prediction import Predictions, predict
from ponder.inference.streaming import StreamEngine, StreamOutput
from ponder.objectives.progress import Progress
from ponder.optim import parameter_groups
from ponder.parts import readouts
from ponder.parts.capture import Captured, capture
from ponder.parts.heads import LambdaHead, PerStep
from ponder.parts.padding import Padding
from ponder.parts.steps import Steps
from ponder.serialization import load, save
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderOutput, PonderWrapper

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "Captured",
    "Curve",
    "Diagnosis",
    "Exits",
    "LambdaHead",
    "Padding",
    "PerStep",
    "Point",
    "PonderError",
    "PonderOutput",
    "PonderWrapper",
    "Predictions",
    "Progress",
    "RiskControl",
    "Shared",
    "StepDistribution",
    "Steps",
    "StreamEngine",
    "StreamOutput",
    "Trajectory",
    "calibrate",
    "calibration",
    "capture",
    "compile_steps",
    "control_risk",
    "cost",
    "diagnose",
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
