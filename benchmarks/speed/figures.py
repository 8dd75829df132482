"""What a section gives: rows of a table as plain JSON, each one figure of one case."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ponder.cost import WallClock

__all__ = ["Options", "figure", "not_measured"]


@dataclass(frozen=True)
class Options:
    """What the caller of a section may choose.

    Args:
        quick: Small models and few rows, to see that it runs; the figures mean little.
        pairs: Interleaved pairs of each ratio.
        glue_dir: Folder of GLUE's files, for real lengths.
        device: The device that models run on.
    """

    quick: bool = False
    pairs: int = 3
    glue_dir: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


def figure(
    section: str,
    case: str,
    name: str,
    value: float | WallClock,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A figure, as it is kept: what was measured and its goal.

    Args:
        section: Which section gives it.
        case: The case that was measured: model, mix of exits, batch.
        name: What it is, with its unit; a ratio says of what.
        value: A number, or the median and the range of interleaved pairs.
        at_least: The goal, where more is better.
        at_most: The goal, where less is better.
        more: Whatever else is worth keeping.

    Example:
        >>> figure("scale", "1,000 rows", "memory ÷ memory before", 1.01, at_most=1.05)["kept"]
        True
    """
    spread = value if isinstance(value, WallClock) else WallClock(value, value, value)
    kept = None
    if at_least is not None or at_most is not None:
        kept = (at_least is None or spread.median >= at_least) and (at_most is None or spread.median <= at_most)
    told = {"section": section, "case": case, "figure": name, "value": spread.median}
    limits = {"at_least": at_least, "at_most": at_most, "kept": kept}
    return {**told, "low": spread.low, "high": spread.high, **limits, **more}


def not_measured(section: str, case: str, why: str) -> dict[str, Any]:
    """A row in the place of figures that could not be had."""
    return {"section": section, "case": case, "figure": "not measured", "value": None, "kept": None, "why": why}
