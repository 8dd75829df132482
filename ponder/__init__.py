"""Adaptive computation for PyTorch encoders: learn, per example, when to stop.

Names are loaded when they are first used (PEP 562): importing the package costs nothing, and what needs no PyTorch
(`ponder.calibration`, `ponder.export.OnnxModel`, `ponder.monitor.Audit`) runs where there is none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder import objectives, policies, priors, recipes, tasks
    from ponder._utils.rows import split
    from ponder._utils.trees import Shared
    from ponder.calibration import calibrate, control_risk, diagnose
    from ponder.deploy import export, monitor
    from ponder.distributions import StepDistribution
    from ponder.inference import StreamEngine, predict
    from ponder.model import readouts
    from ponder.model.capture import capture
    from ponder.model.heads import LambdaHead, PerStep
    from ponder.model.padding import Padding
    from ponder.model.steps import Steps
    from ponder.saving import load, save
    from ponder.training import fit, parameter_groups
    from ponder.trajectory import Trajectory
    from ponder.wrapper import PonderWrapper

__version__ = "0.2.0"

_HOMES = {
    "LambdaHead": "model.heads",
    "Padding": "model.padding",
    "PerStep": "model.heads",
    "PonderWrapper": "wrapper",
    "Shared": "_utils.trees",
    "StepDistribution": "distributions",
    "Steps": "model.steps",
    "StreamEngine": "inference",
    "Trajectory": "trajectory",
    "calibrate": "calibration",
    "capture": "model.capture",
    "control_risk": "calibration",
    "diagnose": "calibration",
    "export": "deploy",
    "fit": "training",
    "load": "saving",
    "monitor": "deploy",
    "parameter_groups": "training",
    "predict": "inference",
    "readouts": "model",
    "save": "saving",
    "split": "_utils.rows",
}
"""The module that each public name comes from; those that are modules themselves are loaded by their name."""

__all__ = [
    "LambdaHead",
    "Padding",
    "PerStep",
    "PonderWrapper",
    "Shared",
    "StepDistribution",
    "Steps",
    "StreamEngine",
    "Trajectory",
    "calibrate",
    "capture",
    "control_risk",
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
    "split",
    "tasks",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home = import_module(f"ponder.{_HOMES.get(name, name)}")
        if name in _HOMES:
            value = getattr(home, name, None) or import_module(f"{home.__name__}.{name}")
        else:
            value = home
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
