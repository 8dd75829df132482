"""Objectives: a frozen dataclass each, one file a family."""

from ponder.objectives.alignment import Alignment
from ponder.objectives.alternating import Alternating
from ponder.objectives.base import NEEDS, Depth, Objective, Unrolled, Weighted, registry
from ponder.objectives.deep_supervision import DeepSupervision
from ponder.objectives.distillation import Distillation
from ponder.objectives.final_step import FinalStep
from ponder.objectives.mutual import MutualDistillation
from ponder.objectives.one_step import OneStep
from ponder.objectives.ponder_loss import Ponder
from ponder.objectives.progress import Progress
from ponder.objectives.random_depth import RandomDepth
from ponder.objectives.signal_calibration import SignalCalibration
from ponder.objectives.simulated_exits import SimulatedExits

__all__ = [
    "NEEDS",
    "Alignment",
    "Alternating",
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
    "from_dict",
    "get",
    "names",
    "register",
]

register = registry.register
get = registry.get
names = registry.names
from_dict = Objective.from_dict
