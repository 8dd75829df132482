"""The contract suites, for plug-ins and backbones of your own: each check returns None or says which rule broke.

No test runner is needed. `import ponder` does not import this package.
"""

from ponder.testing.backbone import check_backbone
from ponder.testing.contract import ContractError
from ponder.testing.objective import check_objective
from ponder.testing.policy import check_policy
from ponder.testing.prior import check_prior

__all__ = ["ContractError", "check_backbone", "check_objective", "check_policy", "check_prior"]
