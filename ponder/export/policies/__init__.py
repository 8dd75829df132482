"""Exit policies of exports: the twins, in numpy, of those in `ponder.policies`, by the same names and fields.

A new one is a file beside these, called as its twin is; one of your own is registered from where you like.
"""

from ponder.export.policies import (  # noqa: F401 (each registers its own)
    certified,
    converged,
    expected,
    fixed,
    gate,
    halting,
    joining,
    outputs,
    patience,
    tempered,
    voting,
)
from ponder.export.policies.base import (
    ModelSpec,
    NumpyPolicy,
    StepView,
    TaskSpec,
    read_policy,
    registry,
)

__all__ = ["ModelSpec", "NumpyPolicy", "StepView", "TaskSpec", "read_policy", "register"]

register = registry.register
