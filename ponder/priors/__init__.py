"""Priors over the halting step: a frozen dataclass each, one file a family."""

from ponder.priors.base import Prior, registry
from ponder.priors.categorical import Categorical
from ponder.priors.discretised import Normal, Poisson
from ponder.priors.geometric import Geometric
from ponder.priors.uniform import Uniform

__all__ = [
    "Categorical",
    "Geometric",
    "Normal",
    "Poisson",
    "Prior",
    "Uniform",
    "from_dict",
    "get",
    "names",
    "register",
]

register = registry.register
get = registry.get
names = registry.names
from_dict = Prior.from_dict
