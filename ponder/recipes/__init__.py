"""Recipes: named combinations, one file each (PonderNet is PALBERT with four switches off, and shares its file)."""

from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry
from ponder.recipes.cosee import cosee
from ponder.recipes.deebert import deebert
from ponder.recipes.default import ponder
from ponder.recipes.fastbert import fastbert
from ponder.recipes.leebert import leebert
from ponder.recipes.pabee import pabee
from ponder.recipes.palbert import palbert, pondernet
from ponder.recipes.palbert_deep import palbert_deep
from ponder.recipes.palbert_distill import palbert_distill
from ponder.recipes.palbert_joint import palbert_joint
from ponder.recipes.palbert_prior import palbert_prior
from ponder.recipes.staging import freeze_for, mix_weights, start_heads
from ponder.recipes.static import static
from ponder.recipes.vanilla import vanilla

__all__ = [
    "LambdaSpec",
    "Recipe",
    "Stage",
    "cosee",
    "deebert",
    "fastbert",
    "freeze_for",
    "get",
    "leebert",
    "mix_weights",
    "names",
    "pabee",
    "palbert",
    "palbert_deep",
    "palbert_distill",
    "palbert_joint",
    "palbert_prior",
    "ponder",
    "pondernet",
    "register",
    "start_heads",
    "static",
    "vanilla",
]

register = registry.register
get = registry.get
names = registry.names
