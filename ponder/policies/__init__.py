"""Exit policies: a frozen dataclass of hyper-parameters each, with `init` and one pure method `decide`."""

from ponder.policies.base import Batch, ExitPolicy, Setting, StepView, registry
from ponder.policies.combinators import After, All, Any_, Before
from ponder.policies.fixed import FixedStep, LastStep
from ponder.policies.halting import Bernoulli, Quantile
from ponder.policies.outputs import Confidence, Entropy, Margin
from ponder.policies.patience import Patience
from ponder.policies.threshold import Knob, ThresholdPolicy

__all__ = [
    "After",
    "All",
    "Any_",
    "Batch",
    "Before",
    "Bernoulli",
    "Confidence",
    "Entropy",
    "ExitPolicy",
    "FixedStep",
    "Knob",
    "LastStep",
    "Margin",
    "Patience",
    "Quantile",
    "Setting",
    "StepView",
    "ThresholdPolicy",
    "from_dict",
    "get",
    "names",
    "register",
]

register = registry.register
get = registry.get
names = registry.names
from_dict = ExitPolicy.from_dict
