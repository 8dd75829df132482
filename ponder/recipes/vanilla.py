"""Plain fine-tuning, the baseline."""

from ponder.objectives import FinalStep
from ponder.policies import LastStep
from ponder.recipes.base import Recipe, Stage, registry


@registry.register("vanilla")
def vanilla() -> Recipe:
    """The recipe of a plain model: the loss of the last step, and no early exit.

    Example:
        >>> recipes.get("vanilla").policy
        LastStep()
    """
    return Recipe("vanilla", "Devlin et al. 2019", (Stage(FinalStep()),), LastStep())
