"""What adaptive computation costs and saves: FLOPs of every part, break-even, and speed-ups that say of what."""

from ponder.cost.breakdown import Cost, break_even
from ponder.cost.measuring import measure, measure_each
from ponder.cost.speed import SpeedUp, WallClock, speed_up, wall_clock

__all__ = [
    "Cost",
    "SpeedUp",
    "WallClock",
    "break_even",
    "measure",
    "measure_each",
    "speed_up",
    "wall_clock",
]
