"""Adaptive computation for PyTorch encoders: learn, per example, when to stop.

Names are loaded at their first use (PEP 562), so importing the package costs nothing. The parts
that need no PyTorch (`ponder.calibration`, `ponder.export.OnnxModel`, `ponder.Live`) run without
it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder import loops as loops
    from ponder import objectives as objectives
    from ponder import policies as policies
    from ponder import priors as priors
    from ponder import recipes as recipes
    from ponder import tasks as tasks
    from ponder._utils.rows import split
    from ponder._utils.trees import Shared
    from ponder.advice import advise
    from ponder.calibration import calibrate, control_risk, diagnose
    from ponder.cascade import Cascade, Live
    from ponder.deploy import export as export
    from ponder.deploy.folders import open
    from ponder.distributions import StepDistribution
    from ponder.ensembles import Ensemble
    from ponder.inference import StreamEngine, predict
    from ponder.model import readouts as readouts
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
    "Cascade": "cascade",
    "Ensemble": "ensembles",
    "LambdaHead": "model.heads",
    "Live": "cascade",
    "Padding": "model.padding",
    "PerStep": "model.heads",
    "PonderWrapper": "wrapper",
    "Shared": "_utils.trees",
    "StepDistribution": "distributions",
    "Steps": "model.steps",
    "StreamEngine": "inference",
    "Trajectory": "trajectory",
    "advise": "advice",
    "calibrate": "calibration",
    "capture": "model.capture",
    "control_risk": "calibration",
    "diagnose": "calibration",
    "fit": "training",
    "load": "saving",
    "open": "deploy.folders",
    "parameter_groups": "training",
    "predict": "inference",
    "save": "saving",
    "split": "_utils.rows",
}
_MODULES = {"export": "deploy.export", "readouts": "model.readouts"}
"""Modules that are known by a shorter name."""

__all__ = [
    "Cascade",
    "Ensemble",
    "LambdaHead",
    "Live",
    "Padding",
    "PerStep",
    "PonderWrapper",
    "Shared",
    "StepDistribution",
    "Steps",
    "StreamEngine",
    "Trajectory",
    "advise",
    "calibrate",
    "capture",
    "control_risk",
    "diagnose",
    "fit",
    "load",
    "open",
    "parameter_groups",
    "predict",
    "save",
    "split",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of the package

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(f"ponder.{_HOMES[name]}"), name)
        elif name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        else:
            try:
                value = import_module(f"ponder.{_MODULES.get(name, name)}")
            except ModuleNotFoundError as error:
                if not str(error.name).startswith("ponder"):
                    raise
                raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
