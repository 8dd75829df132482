"""Priors over the halting step: a frozen dataclass each, one file a family."""

from ponder.priors.at_depth import AtDepth
from ponder.priors.base import MeanParameter, Prior, PriorWeights, registry
from ponder.priors.categorical import Categorical
from ponder.priors.discretised import Normal, Poisson
from ponder.priors.empirical import Empirical
from ponder.priors.geometric import Geometric
from ponder.priors.learned import Learned
from ponder.priors.mean import for_mean
from ponder.priors.uniform import Uniform

__all__ = [
    "AtDepth",
    "Categorical",
    "Empirical",
    "Geometric",
    "Learned",
    "MeanParameter",
    "Normal",
    "Poisson",
    "Prior",
    "PriorWeights",
    "Uniform",
    "for_mean",
    "from_dict",
    "get",
    "names",
    "register",
]

register = registry.register
get = registry.get
names = registry.names
from_dict = Prior.from_dict
