"""The contract suites, for plug-ins and backbones of your own: each check returns None or says which rule broke.

No test runner is needed. `import ponder` does not import this package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ponder.testing.backbone import check_backbone
from ponder.testing.contract import ContractError
from ponder.testing.objective import check_objective
from ponder.testing.policy import check_policy
from ponder.testing.prior import check_prior

if TYPE_CHECKING:
    from ponder.testing.twin import check_twin

__all__ = ["ContractError", "check_backbone", "check_objective", "check_policy", "check_prior", "check_twin"]


def __getattr__(name: str) -> Any:
    if name != "check_twin":  # which alone needs numpy
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.twin").check_twin
