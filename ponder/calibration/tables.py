"""Tables of intermediate answers, such as reasoning traces, as the outputs of steps.

Each line of a table has an item, the number of a step, the answer if one stopped there, and, if
known, a confidence in it and the cost of the step. Outputs say which answer stands, and the
confidence is the reading of `policies.RightAnswer`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder.calibration.votes import log_shares
from ponder.errors import ArgumentError

__all__ = ["StepsTable", "read_steps"]

Floats: TypeAlias = NDArray[Any]
Line: TypeAlias = Mapping[str, Any]
_MOST_CERTAIN = 1.0 - 1e-12
"""The confidence that stands for 1, whose logit is not finite."""


@dataclass(frozen=True, eq=False)
class StepsTable:
    """Items by steps. An item whose lines end early has its last answer from there on, for sure.

    Args:
        outputs: Logarithms of 1 for the answer that stands, `(items, steps, answers)`; answers are
            numbered within an item, in the order in which they come.
        hazard_logits: Logits of the confidences, `(items, steps)`; None without a column.
        costs: Mean cost of an item that stops after each step, `(steps,)`; None without a column.
        items: The items, in the order of their first lines.
    """

    outputs: Floats
    hazard_logits: Floats | None
    costs: tuple[float, ...] | None
    items: tuple[Hashable, ...]


def read_steps(
    table: Any,
    *,
    item: str = "item",
    step: str = "step",
    answer: str = "answer",
    confidence: str = "confidence",
    cost: str = "cost",
) -> StepsTable:
    """Read a table of intermediate answers.

    Args:
        table: Mappings from names of columns to values, a line each; or a DataFrame.
        item: The column of the items.
        step: The column of the steps of an item, 1, 2, 3 …, in any order of lines.
        answer: The column of the answers, of any type that compares equal.
        confidence: The column of the confidences in [0, 1]; the table need not have one.
        cost: The column of the cost of each step alone; the table need not have one.

    Raises:
        ArgumentError: A missing step, two answers of one step, or a confidence outside [0, 1]; the
            error names the line, from 1.

    Example:
        >>> from ponder.calibration.tables import read_steps
        >>> lines = [{"item": 1, "step": n, "answer": a} for n, a in ((1, "8"), (2, "9"), (3, "9"))]
        >>> read_steps(lines).outputs.argmax(axis=-1)
        array([[0, 1, 1]])
    """
    lines: Sequence[Line] = table
    if hasattr(table, "to_dict"):
        lines = table.to_dict("records")
    needed = (item, step, answer)
    if not len(lines) or any(name not in lines[0] for name in needed):
        got = sorted(lines[0]) if len(lines) else "no lines"
        raise _wrong(f"lines with the columns {', '.join(needed)}", got)
    places = _places(lines, item, step)
    num_steps = max(len(steps) for steps in places.values())
    numbers = np.zeros((len(places), num_steps), dtype=int)
    certainty = np.ones((len(places), num_steps))
    spent = np.zeros((len(places), num_steps))
    for row, steps in enumerate(places.values()):
        known: dict[Hashable, int] = {}
        for place, line in enumerate(steps):
            numbers[row, place:] = known.setdefault(lines[line][answer], len(known))
            certainty[row, place] = _confidence(lines[line], confidence, line)
            spent[row, place] = float(lines[line].get(cost, 0.0))
    shares = np.eye(max(int(numbers.max()) + 1, 2))[numbers]
    hazard_logits = None
    if confidence in lines[0]:
        bounded = np.clip(certainty, 1.0 - _MOST_CERTAIN, _MOST_CERTAIN)
        hazard_logits = np.log(bounded) - np.log1p(-bounded)
    costs = None
    if cost in lines[0]:
        costs = tuple(spent.cumsum(axis=1).mean(axis=0).tolist())
    return StepsTable(log_shares(shares), hazard_logits, costs, tuple(places))


def _places(lines: Sequence[Line], item: str, step: str) -> dict[Hashable, list[int]]:
    """Return the lines of each item, in the order of its steps."""
    by_step: dict[Hashable, dict[int, int]] = {}
    for line, values in enumerate(lines):
        of_item = by_step.setdefault(values[item], {})
        number = int(values[step])
        if number in of_item:
            first = of_item[number] + 1
            raise _wrong("one answer for each step", f"step {number} also in line {first}", line)
        of_item[number] = line
    places = dict[Hashable, list[int]]()
    for name, of_item in by_step.items():
        ordered = sorted(of_item)
        for expected, number in enumerate(ordered, 1):
            if number != expected:
                raise _wrong(f"step {expected} of item {name!r}", f"step {number}", of_item[number])
        places[name] = [of_item[number] for number in ordered]
    return places


def _confidence(values: Line, column: str, line: int) -> float:
    value = float(values.get(column, 1.0))
    if not 0.0 <= value <= 1.0:
        raise _wrong("a confidence in [0, 1]", f"{value:g}", line)
    return value


def _wrong(expected: str, got: object, line: int | None = None) -> ArgumentError:
    argument = "table"
    if line is not None:
        argument = f"table, line {line + 1}"
    return ArgumentError(argument, expected=expected, got=str(got), remedy="Mend the table.")
