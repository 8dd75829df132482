"""Adaptive computation for PyTorch encoders: learn, per example, when to stop.

Names are loaded when they are first used (PEP 562): importing the package costs nothing, and what needs no PyTorch
(`ponder.export.OnnxModel`, `ponder.monitor.Audit`) runs where there is none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder import calibration, cost, export, monitor, objectives, policies, priors, recipes
    from ponder._utils.trees import Shared
    from ponder.analysis.diagnosing import diagnose
    from ponder.analysis.diagnosis import Diagnosis
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
    from ponder.parts import readouts, tasks
    from ponder.parts.capturing import Captured, capture
    from ponder.parts.heads import LambdaHead, NormPerStep, PerStep
    from ponder.parts.padding import Padding
    from ponder.parts.steps import Steps
    from ponder.serialization import load, save
    from ponder.training import fit
    from ponder.trajectory import Trajectory
    from ponder.wrapper import PonderOutput, PonderWrapper

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "Captured",
    "Curve",
    "Diagnosis",
    "Exits",
    "LambdaHead",
    "NormPerStep",
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
    "export",
    "fit",
    "load",
    "monitor",
    "objectives",
    "parameter_groups",
    "policies",
    "predict",
    "priors",
    "readouts",
    "recipes",
    "save",
    "tasks",
]

_HOMES = {
    "analysis.diagnosing": ("diagnose",),
    "analysis.diagnosis": ("Diagnosis",),
    "analysis.sweeps": ("Curve", "Point"),
    "calibration": ("Calibration", "RiskControl", "calibrate", "control_risk"),
    "distributions": ("StepDistribution",),
    "engine.loop": ("Exits",),
    "errors": ("PonderError",),
    "inference.compiling": ("compile_steps",),
    "inference.prediction": ("Predictions", "predict"),
    "inference.streaming": ("StreamEngine", "StreamOutput"),
    "objectives.progress": ("Progress",),
    "optim": ("parameter_groups",),
    "parts": ("readouts", "tasks"),
    "parts.capturing": ("Captured", "capture"),
    "parts.heads": ("LambdaHead", "NormPerStep", "PerStep"),
    "parts.padding": ("Padding",),
    "parts.steps": ("Steps",),
    "serialization": ("load", "save"),
    "training": ("fit",),
    "trajectory": ("Trajectory",),
    "wrapper": ("PonderOutput", "PonderWrapper"),
    "_utils.trees": ("Shared",),
}
"""Which module each public name comes from; names that stand in none of them are modules themselves."""

_HOME = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = frozenset(__all__) - frozenset(_HOME) | {name.partition(".")[0] for name in _HOMES} - {"_utils"}


if not TYPE_CHECKING:  # which would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _HOME:
            home = import_module(f"ponder.{_HOME[name]}")
            value = getattr(home, name, None) or import_module(f"{home.__name__}.{name}")
        elif name in _MODULES:
            value = import_module(f"ponder.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
