"""Objectives: a frozen dataclass each, one file a family."""

from ponder.objectives.base import Depth, Objective, Unrolled, Weighted, registry
from ponder.objectives.deep_supervision import DeepSupervision
from ponder.objectives.distillation import Distillation
from ponder.objectives.final_step import FinalStep
from ponder.objectives.mutual import MutualDistillation
from ponder.objectives.one_step import OneStep
from ponder.objectives.ponder_loss import Ponder
from ponder.objectives.random_depth import RandomDepth

__all__ = [
    "DeepSupervision",
    "Depth",
    "Distillation",
    "FinalStep",
    "MutualDistillation",
    "Objective",
    "OneStep",
    "Ponder",
    "RandomDepth",
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
