"""Thresholds from full-depth records: sweeps, calibration, promises, diagnoses and costs.

All but `cost` works on NumPy arrays (rows × steps), without PyTorch.
Names are loaded when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ponder.calibration import cost
    from ponder.calibration.calibrating import Calibration, calibrate
    from ponder.calibration.cascades import certify_cascade
    from ponder.calibration.certifying import certify
    from ponder.calibration.control import RiskControl, control_risk
    from ponder.calibration.diagnosing import Diagnosis, diagnose
    from ponder.calibration.draws import certify_draws
    from ponder.calibration.records import Record
    from ponder.calibration.risks import Missed, Moved, Risk
    from ponder.calibration.stopper import Stopper
    from ponder.calibration.stopping import CertifiedSteps, certify_steps
    from ponder.calibration.sweeps import sweep
    from ponder.running.loop import Answers

_HOMES = {
    "Answers": "records",
    "Calibration": "calibrating",
    "CertifiedSteps": "stopping",
    "Diagnosis": "diagnosing",
    "Missed": "risks",
    "Moved": "risks",
    "Record": "records",
    "Risk": "risks",
    "RiskControl": "control",
    "Stopper": "stopper",
    "calibrate": "calibrating",
    "certify": "certifying",
    "certify_cascade": "cascades",
    "certify_draws": "draws",
    "certify_steps": "stopping",
    "control_risk": "control",
    "diagnose": "diagnosing",
    "sweep": "sweeps",
}

__all__ = [
    "Answers",
    "Calibration",
    "CertifiedSteps",
    "Diagnosis",
    "Missed",
    "Moved",
    "Record",
    "Risk",
    "RiskControl",
    "Stopper",
    "calibrate",
    "certify",
    "certify_cascade",
    "certify_draws",
    "certify_steps",
    "control_risk",
    "cost",
    "diagnose",
    "sweep",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = import_module(f"{__name__}.{_HOMES.get(name, name)}")
        value = globals()[name] = getattr(module, name) if name in _HOMES else module
        return value
