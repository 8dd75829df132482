"""Recipes: named combinations, one file a system of the literature.

`recipes.get("palbert")` builds one.
"""

from ponder.recipes import (  # noqa: F401
    act,
    baselines,
    cosee,
    deebert,
    fastbert,
    frozen,
    leebert,
    pabee,
    palbert,
)
from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry

__all__ = ["LambdaSpec", "Recipe", "Stage", "get", "names", "register"]

register = registry.register
get = registry.get
names = registry.names
