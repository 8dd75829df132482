"""Names of the wrapper inside a model: assigned to the model itself, nothing would read them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ponder.errors import ArgumentError

__all__ = ["check_assigned"]


def check_assigned(model: nn.Module, name: str) -> None:
    """Refuse to assign what is the wrapper's to the model around it; a subclass of a user's may have such names.

    Args:
        model: A model with a `PonderWrapper` as its `ponder`, perhaps not built yet.
        name: What is being assigned.

    Raises:
        ArgumentError: The wrapper has an attribute of this name, and the model has none.
    """
    if not type(model).__module__.startswith("ponder."):
        return
    inside: Any = vars(model).get("_modules", {}).get("ponder")
    if inside is not None and not name.startswith("_") and not hasattr(model, name) and hasattr(inside, name):
        raise ArgumentError(
            name,
            expected=f"an attribute of {type(model).__name__}",
            got=f"{name!r}, which is the wrapper's inside it: nothing would read it here",
            remedy=f"Assign model.ponder.{name}.",
        )
