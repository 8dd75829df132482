"""Choosing a policy's threshold from data: to a target, with a certificate, and with calibrated confidences."""

from ponder.calibration.agreement import AgreementControl, AgreementCurve, agreement_curves, control_agreement
from ponder.calibration.bounds import BOUNDS, p_values, rows_needed
from ponder.calibration.calibrate import Calibration, calibrate
from ponder.calibration.control import RiskControl, control_risk
from ponder.calibration.fresh import check_fresh
from ponder.calibration.gate import fit_gate
from ponder.calibration.temperature import fit_temperatures

__all__ = [
    "BOUNDS",
    "AgreementControl",
    "AgreementCurve",
    "Calibration",
    "RiskControl",
    "agreement_curves",
    "calibrate",
    "check_fresh",
    "control_agreement",
    "control_risk",
    "fit_gate",
    "fit_temperatures",
    "p_values",
    "rows_needed",
]
