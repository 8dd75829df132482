"""What a model notes in its configuration as it is saved: what was assigned to it, and what was measured of it."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ponder.errors import ArgumentError
from ponder.policies.certified import is_certified
from ponder.recipes import Stage

__all__ = ["are_others", "assigned_fields", "leave_out_measurements"]


def assigned_fields(model: Any) -> dict[str, Any]:
    """The fields of the recipe that were assigned to the model, or to `ponder`, the wrapper, since it was made."""
    inside, recipe, changed = model.ponder, model.recipe, dict[str, Any]()
    stages = inside.stages or (Stage(inside.objective),)
    if all(inside.objective != stage.objective for stage in stages):
        if len(stages) == 1:
            stages = (dataclasses.replace(stages[0], objective=inside.objective),)
        else:
            warnings.warn(
                f"objective: {inside.objective!r} is not saved: the {len(stages)} stages have their own. "
                "Assign model.stages, or pass a ponder.recipes.Recipe with it to from_encoder.",
                stacklevel=3,
            )
    assigned: dict[str, tuple[Any, Any]] = {
        "policy": (inside.policy, recipe.policy),
        "prior": (inside.prior, recipe.prior),
        "stages": (stages, recipe.stages),
    }
    for name, (own, of_recipe) in assigned.items():
        if own is None or own == of_recipe:
            continue
        try:
            changed[name] = [stage.to_dict() for stage in own] if name == "stages" else own.to_dict()
        except ArgumentError as error:  # one that is not registered
            warnings.warn(f"{name}: {own!r} is not saved, and {of_recipe!r} is. {error}", stacklevel=3)
    return changed


def are_others(model: Any, state_dict: Mapping[str, Any] | None) -> bool:
    """Whether weights to be saved are known to be others than those that the model has."""
    if state_dict is None or not (is_certified(model.policy) or model.config.evaluations):
        return False
    own = model.state_dict()
    pairs = [(own[name], value) for name, value in state_dict.items() if name in own]
    whole = [(mine, given) for mine, given in pairs if not mine.is_meta and mine.shape == given.shape]
    return any(mine.dtype != given.dtype or not torch.equal(mine.cpu(), given.cpu()) for mine, given in whole)


def leave_out_measurements(model: Any, others: bool) -> None:
    """Forget what was measured on other weights than those that are saved; earlier versions did not note which."""
    noted = model.config.evaluations
    digest = model.ponder.weights_digest() if noted else None
    model.config.evaluations = [
        row for row in noted if not others and (digest is None or row.get("weights") in (None, digest))
    ]
    if gone := len(noted) - len(model.config.evaluations):
        warnings.warn(
            f"{gone} of {len(noted)} noted evaluations are left out of the model card: they were measured on other "
            "weights than those that are saved. Record again, and call note_evaluation.",
            stacklevel=3,
        )
