"""Looped models that halt per position: a shared step, applied until positions have answers."""

from ponder.loops.blocks import Block, Stack
from ponder.loops.carry import Problem
from ponder.loops.control import control_risk
from ponder.loops.loop import Loop
from ponder.loops.places import Places, PositionStep

__all__ = [
    "Block",
    "Loop",
    "Places",
    "PositionStep",
    "Problem",
    "Stack",
    "control_risk",
]
