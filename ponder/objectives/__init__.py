"""Objectives: a frozen dataclass each, one file a family.

An objective is imported when it is first used, by its name here or by its registered one.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names
from ponder.objectives.base import Depth, Objective, Progress, Unrolled, Weighted, registry

if TYPE_CHECKING:
    from ponder.objectives.adaptive import ACT
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

_PLACES = {
    "act": "adaptive:ACT",
    "all-right": "right_answer:AllRight",
    "deep-supervision": "supervised:DeepSupervision",
    "distillation": "distillation:Distillation",
    "final-step": "supervised:FinalStep",
    "mutual-distillation": "distillation:MutualDistillation",
    "one-step": "supervised:OneStep",
    "ponder": "halting:Ponder",
    "random-depth": "supervised:RandomDepth",
    "signal-calibration": "simulated:SignalCalibration",
    "simulated-exits": "simulated:SimulatedExits",
    "weighted": "base:Weighted",
}
"""The place of each objective, by its registered name."""
registry.register_places(__name__, _PLACES)
if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _PLACES.values())

register = registry.register
get = registry.get
names = registry.names


def __dir__() -> list[str]:
    return __all__
