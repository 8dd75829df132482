"""Looped models that halt per position: one shared step, applied until each position has its answer."""

from ponder.loops.blocks import AlbertStep, Block, EncoderLayerStep
from ponder.loops.carry import Carried, Problem
from ponder.loops.causal import Generated, greedy
from ponder.loops.control import LoopControl, control_risk
from ponder.loops.loop import Loop, LoopOutput
from ponder.loops.places import Places, PositionStep

__all__ = [
    "AlbertStep",
    "Block",
    "Carried",
    "EncoderLayerStep",
    "Generated",
    "Loop",
    "LoopControl",
    "LoopOutput",
    "Places",
    "PositionStep",
    "Problem",
    "control_risk",
    "greedy",
]
