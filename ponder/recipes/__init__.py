"""Recipes: named combinations, one file a family."""

from ponder.recipes.base import LambdaSpec, Recipe, Stage, freeze_for, registry
from ponder.recipes.pabee import pabee
from ponder.recipes.pondering import palbert, pondernet
from ponder.recipes.two_stage import deebert, fastbert
from ponder.recipes.vanilla import vanilla

__all__ = [
    "LambdaSpec",
    "Recipe",
    "Stage",
    "deebert",
    "fastbert",
    "freeze_for",
    "get",
    "names",
    "pabee",
    "palbert",
    "pondernet",
    "register",
    "vanilla",
]

register = registry.register
get = registry.get
names = registry.names
