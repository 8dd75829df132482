"""Exit policies: a frozen dataclass of hyper-parameters each, with `init` and one pure method `decide`."""

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
from ponder.policies.combine import After, All, Any_, Before, Certified
from ponder.policies.counting import Converged, Patience, Voting
from ponder.policies.gate import Gate
from ponder.policies.halting import Bernoulli, Quantile
from ponder.policies.topk import TopK

__all__ = [
    "After",
    "All",
    "Any_",
    "Before",
    "Bernoulli",
    "Certified",
    "Confidence",
    "Converged",
    "Energy",
    "Entropy",
    "ExitPolicy",
    "FixedStep",
    "Gate",
    "LastStep",
    "Margin",
    "ModelSpec",
    "Patience",
    "PolicyBatch",
    "PolicyWrapper",
    "Quantile",
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
