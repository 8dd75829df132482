"""Recipes: named combinations, one file a system of the literature."""

from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry
from ponder.recipes.cosee import cosee
from ponder.recipes.deebert import deebert
from ponder.recipes.default import ponder
from ponder.recipes.fastbert import fastbert
from ponder.recipes.leebert import leebert
from ponder.recipes.pabee import pabee
from ponder.recipes.palbert import palbert, pondernet
from ponder.recipes.static import static
from ponder.recipes.vanilla import vanilla

__all__ = [
    "LambdaSpec",
    "Recipe",
    "Stage",
    "cosee",
    "deebert",
    "fastbert",
    "get",
    "leebert",
    "names",
    "pabee",
    "palbert",
    "ponder",
    "pondernet",
    "register",
    "static",
    "vanilla",
]

register = registry.register
get = registry.get
names = registry.names
