"""Exit policies: a frozen dataclass of hyper-parameters each, with `init` and one pure method `decide`."""

from ponder.policies.around import Around
from ponder.policies.base import Batch, ExitPolicy, Setting, StepView, registry
from ponder.policies.certified import Certified
from ponder.policies.combinators import After, All, Any_, Before
from ponder.policies.converged import Converged
from ponder.policies.expected import Expected
from ponder.policies.fixed import FixedStep, LastStep
from ponder.policies.halting import Bernoulli, Quantile
from ponder.policies.learned import Learned, LinearScorer, scorers
from ponder.policies.outputs import Confidence, Entropy, Margin
from ponder.policies.patience import Patience
from ponder.policies.tempered import Tempered
from ponder.policies.threshold import Knob, ThresholdPolicy
from ponder.policies.voting import Voting

__all__ = [
    "After",
    "All",
    "Any_",
    "Around",
    "Batch",
    "Before",
    "Bernoulli",
    "Certified",
    "Confidence",
    "Converged",
    "Entropy",
    "ExitPolicy",
    "Expected",
    "FixedStep",
    "Knob",
    "LastStep",
    "Learned",
    "LinearScorer",
    "Margin",
    "Patience",
    "Quantile",
    "Setting",
    "StepView",
    "Tempered",
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
