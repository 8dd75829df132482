"""Hazards that a policy reads, and that nothing of a training teaches."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from ponder.objectives import Objective
from ponder.wrapper import PonderWrapper

__all__ = ["tell_of_untrained_hazards"]


def tell_of_untrained_hazards(objectives: Iterable[Objective], wrapper: PonderWrapper) -> None:
    """Warn where the policy reads a Lambda head that can learn, and that no objective teaches.

    Args:
        objectives: Those of all stages of the training.
        wrapper: The model.
    """
    head = wrapper.lambda_head
    if head is None or "hazard" not in wrapper.policy.needs or not any(w.requires_grad for w in head.parameters()):
        return
    if not any("hazard" in objective.needs for objective in objectives):
        warnings.warn(
            f"{wrapper.policy!r} leaves by the Lambda head, and no objective of this training reads its hazards: it "
            "stays as it is. Train with objectives.Ponder(0.5), say, or leave by what the outputs tell: "
            "policies.Confidence(0.9).",
            stacklevel=3,
        )
