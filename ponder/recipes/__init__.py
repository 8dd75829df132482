"""Recipes: named combinations, one file a system of the literature; `recipes.get("palbert")` builds one."""

from ponder.recipes import baselines, cosee, deebert, fastbert, frozen, leebert, pabee, palbert  # noqa: F401
from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry

__all__ = ["LambdaSpec", "Recipe", "Stage", "get", "names", "register"]

register = registry.register
get = registry.get
names = registry.names
