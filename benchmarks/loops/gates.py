"""The gates that are compared: what each reads, on which solver it sits, and its thresholds from late to early.

Learned gates are PonderNet's hazards, ACT and the Q-head. *Trained in*, hazards, ACT and the objective of HRM and TRM,
whether the whole answer is right, train the solver with them; as *heads* they are trained on the states of the
supervised solver, from which confidence is read, too. The others read the answers or the states after the fact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ponder import policies
from ponder.policies import ExitPolicy

__all__ = ["GATES", "gates_of"]


@dataclass(frozen=True)
class Gate:
    """A family of policies with one threshold.

    Args:
        parts: The solver and the gate that it halts by, a name of `measuring.parts_of`.
        rules: The policies that may be chosen, from late to early.
        learned: Whether the gate was trained to halt.
    """

    parts: str
    rules: Sequence[ExitPolicy]
    learned: bool = False


_SURE = (0.9999, 0.999, 0.995, 0.99, 0.98, 0.95, 0.9, 0.8, 0.6)
_LIKELY = (0.999, 0.99, 0.97, 0.9, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
_UNSURE = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8)
_MOVED = (0.003, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3)
GATES: Mapping[str, Gate] = {
    "hazards, trained in": Gate("pondernet", [policies.Quantile(q) for q in _LIKELY], True),
    "act, trained in": Gate("act", [policies.ACT(epsilon) for epsilon in _UNSURE], True),
    "all right, trained in": Gate(
        "all-right", [policies.RightAnswer(threshold) for threshold in (*_SURE, 0.5)], True
    ),
    "hazards, head": Gate("hazards head", [policies.Quantile(q) for q in _LIKELY], True),
    "act, head": Gate("act head", [policies.ACT(epsilon) for epsilon in _UNSURE], True),
    "q-head": Gate("q-head", [policies.RightAnswer(threshold) for threshold in _SURE], True),
    "confidence": Gate("supervised", [policies.Confidence(threshold) for threshold in _SURE]),
    "entropy": Gate("supervised", [policies.Entropy(threshold) for threshold in _UNSURE]),
    "latent difference": Gate(
        "supervised", [policies.Converged(moved, on="features") for moved in _MOVED]
    ),
    "patience": Gate("supervised", [policies.Patience(steps) for steps in (7, 6, 5, 4, 3, 2, 1)]),
}


def gates_of(num_steps: int) -> Mapping[str, Gate]:
    """Return the gates of a model with so many steps; the fixed depths come first."""
    depths = [policies.FixedStep(step) for step in range(num_steps, 0, -1)]
    return {"fixed depth": Gate("supervised", depths), **GATES}
