"""Recipes: named combinations, one file a system of the literature.

`recipes.get("palbert")` builds one; its file is imported then.
"""

from ponder.recipes.base import LambdaSpec, Recipe, Stage, registry

__all__ = ["LambdaSpec", "Recipe", "Stage", "get", "names", "register"]

registry.register_places(
    __name__,
    {
        "act": "act:act",
        "cosee": "cosee:cosee",
        "deebert": "deebert:deebert",
        "fastbert": "fastbert:fastbert",
        "frozen": "frozen:frozen",
        "leebert": "leebert:leebert",
        "pabee": "pabee:pabee",
        "palbert": "palbert:palbert",
        "pondernet": "palbert:pondernet",
        "static": "baselines:static",
        "vanilla": "baselines:vanilla",
    },
)

register = registry.register
get = registry.get
names = registry.names
