"""A policy together with the certificate under which it was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from ponder.policies.base import PolicyWrapper, registry

__all__ = ["Certified"]


@registry.register("certified")
@dataclass(frozen=True)
class Certified(PolicyWrapper):
    """Does what the policy inside does; made by `ponder.control_risk`, saved with the model it was made for.

    Args:
        policy: The policy.
        statement: What is promised, in words.
        risk: Name of the risk.
        level: What it is kept under.
        confidence: Probability, over the draw of the calibration data, that the promise holds; None where the promise
            is about the mean over such draws (conformal risk control).
        bound: Name of the bound, or ``"conformal"``.
        rows: Number n of calibration rows.
        knob_name: Name of the knob.
        knob_value: Its value; None where no knob was certified and the policy is full depth.
        p_value: Of the chosen value; None where there is none.
        path: The values that were tested, in order, with the empirical risk and the p-value of each.
    """

    statement: str
    risk: str
    level: float
    confidence: float | None
    bound: str
    rows: int
    knob_name: str
    knob_value: float | None
    p_value: float | None
    path: tuple[tuple[float, float, float], ...]
