"""Exit policies: a frozen dataclass of hyper-parameters each, with `init` and one pure method `decide`."""

from ponder._utils.renaming import renamed
from ponder.policies.base import (
    After,
    All,
    Any_,
    Before,
    ExitPolicy,
    ModelSpec,
    PolicyBatch,
    PolicyWrapper,
    StepView,
    ThresholdPolicy,
    registry,
)
from ponder.policies.certified import Certified
from ponder.policies.converged import Converged
from ponder.policies.expected import Expected
from ponder.policies.fixed import FixedStep, LastStep
from ponder.policies.gate import Gate
from ponder.policies.halting import Bernoulli, Quantile
from ponder.policies.learned import Learned, LinearScorer, scorers
from ponder.policies.outputs import Confidence, Energy, Entropy, Margin
from ponder.policies.patience import Patience
from ponder.policies.tempered import Tempered
from ponder.policies.threshold import Threshold
from ponder.policies.voting import Voting

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
    "Expected",
    "FixedStep",
    "Gate",
    "LastStep",
    "Learned",
    "LinearScorer",
    "Margin",
    "ModelSpec",
    "Patience",
    "PolicyBatch",
    "PolicyWrapper",
    "Quantile",
    "StepView",
    "Tempered",
    "Threshold",
    "ThresholdPolicy",
    "Voting",
    "from_dict",
    "get",
    "names",
    "register",
    "scorers",
]

register = registry.register
get = registry.get
names = registry.names
from_dict = ExitPolicy.from_dict

__getattr__ = renamed(
    __name__,
    {"Knob": Threshold, "Setting": ModelSpec, "Batch": PolicyBatch, "Around": PolicyWrapper},
)
