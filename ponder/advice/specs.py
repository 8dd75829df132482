"""`WaySpec`: what a way consists of; and the ways that a race certifies.

A way is a model, in PyTorch or in int8, that runs to a depth, perhaps behind a student.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["AS_IT_IS", "BEST_STEP", "BLIND_MIX", "EXITS", "INT8", "WAYS", "Depth", "WaySpec"]


class Depth(Enum):
    """The depth to which the model of a way computes the texts."""

    FULL = "full"
    FIXED = "fixed"
    """All texts to one step."""
    EXITS = "exits"
    """Each text to its exit."""


@dataclass(frozen=True)
class WaySpec:
    """A way to answer.

    Args:
        name: Its name in tables.
        depth: The depth to which the model computes.
        int8: Whether the model is an export in int8, else it is in PyTorch.
        student: Whether a student answers some texts in its place.
        blind: Whether these texts are drawn, else the student answers those of which it is certain.
    """

    name: str
    depth: Depth = Depth.FULL
    int8: bool = False
    student: bool = False
    blind: bool = False


AS_IT_IS = WaySpec("as it is")
BLIND_MIX = WaySpec("blind mix", student=True, blind=True)
BEST_STEP = WaySpec("best fixed step", Depth.FIXED)
EXITS = WaySpec("exits", Depth.EXITS)
INT8 = WaySpec("int8", int8=True)
WAYS = (
    BEST_STEP,
    EXITS,
    WaySpec("cascade", student=True),
    WaySpec("cascade + exits", Depth.EXITS, student=True),
    INT8,
    WaySpec("int8 + exits", Depth.EXITS, int8=True),
    WaySpec("int8 cascade", int8=True, student=True),
    WaySpec("int8 cascade + exits", Depth.EXITS, int8=True, student=True),
)
"""The ways that are certified."""
