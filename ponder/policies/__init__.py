"""Exit policies: frozen dataclasses of hyper-parameters, with `init` and a pure `decide`."""

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

register = registry.register
get = registry.get
names = registry.names
from_dict = ExitPolicy.from_dict
