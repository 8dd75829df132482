"""Objectives: a frozen dataclass each, one file a family."""

from ponder.objectives.adaptive import ACT
from ponder.objectives.base import Depth, Objective, Progress, Unrolled, Weighted, registry
from ponder.objectives.distillation import Distillation, MutualDistillation
from ponder.objectives.halting import Ponder
from ponder.objectives.right_answer import AllRight
from ponder.objectives.simulated import SignalCalibration, SimulatedExits
from ponder.objectives.supervised import DeepSupervision, FinalStep, OneStep, RandomDepth

__all__ = [
    "ACT",
    "AllRight",
    "DeepSupervision",
    "Depth",
    "Distillation",
    "FinalStep",
    "MutualDistillation",
    "Objective",
    "OneStep",
    "Ponder",
    "Progress",
    "RandomDepth",
    "SignalCalibration",
    "SimulatedExits",
    "Unrolled",
    "Weighted",
    "get",
    "names",
    "register",
]

register = registry.register
get = registry.get
names = registry.names
