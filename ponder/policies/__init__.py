"""Exit policies: frozen dataclasses of hyper-parameters, with `init` and a pure `decide`.

A policy is imported when it is first used, by its name here or by its registered one.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names
from ponder.policies.base import (
    ExitPolicy,
    FixedStep,
    LastStep,
    ModelSpec,
    PolicyBatch,
    PolicyWrapper,
    StepView,
    Threshold,
    ThresholdPolicy,
    registry,
)

if TYPE_CHECKING:
    from ponder.policies.certainty import Confidence, Energy, Entropy, Margin
    from ponder.policies.combine import All, Any_, Certified, FromStep
    from ponder.policies.counting import Converged, Patience, Voting
    from ponder.policies.halting import ACT, Bernoulli, Quantile, RightAnswer
    from ponder.policies.lead import Lead, StandardError
    from ponder.policies.topk import TopK

__all__ = [
    "ACT",
    "All",
    "Any_",
    "Bernoulli",
    "Certified",
    "Confidence",
    "Converged",
    "Energy",
    "Entropy",
    "ExitPolicy",
    "FixedStep",
    "FromStep",
    "LastStep",
    "Lead",
    "Margin",
    "ModelSpec",
    "Patience",
    "PolicyBatch",
    "PolicyWrapper",
    "Quantile",
    "RightAnswer",
    "StandardError",
    "StepView",
    "Threshold",
    "ThresholdPolicy",
    "TopK",
    "Voting",
    "from_dict",
    "get",
    "names",
    "register",
]

_PLACES = {
    "act": "halting:ACT",
    "all": "combine:All",
    "any": "combine:Any_",
    "bernoulli": "halting:Bernoulli",
    "certified": "combine:Certified",
    "confidence": "certainty:Confidence",
    "converged": "counting:Converged",
    "energy": "certainty:Energy",
    "entropy": "certainty:Entropy",
    "fixed-step": "base:FixedStep",
    "from-step": "combine:FromStep",
    "last-step": "base:LastStep",
    "lead": "lead:Lead",
    "margin": "certainty:Margin",
    "patience": "counting:Patience",
    "quantile": "halting:Quantile",
    "right-answer": "halting:RightAnswer",
    "stage-thresholds": "stages:StageThresholds",
    "standard-error": "lead:StandardError",
    "top-k": "topk:TopK",
    "voting": "counting:Voting",
}
"""The place of each policy, by its registered name."""
registry.register_places(__name__, _PLACES)
if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, _PLACES.values())

register = registry.register
get = registry.get
names = registry.names
from_dict = ExitPolicy.from_dict


def __dir__() -> list[str]:
    return __all__
