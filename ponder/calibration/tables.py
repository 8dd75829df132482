"""Tables of intermediate answers, such as votes or reasoning traces.

Each line of a table has an item, the number of a step, an answer, and, if known, a confidence in it
and the cost of the step. `combine` says how the answers so far become the answer to an item: the
last one stands, the most frequent one wins, or numbers are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ponder._utils.checks import check_choice
from ponder.errors import ArgumentError

__all__ = ["COMBINE", "Combine", "StepsTable", "read_steps"]

Floats: TypeAlias = NDArray[Any]
Line: TypeAlias = Mapping[str, Any]
Combine: TypeAlias = Literal["last", "votes", "mean"]
"""How the answers so far become the answer to an item."""
COMBINE = ("last", "votes", "mean")
_MOST_CERTAIN = 1.0 - 1e-12
"""The confidence that stands for 1, whose logit is not finite."""


@dataclass(frozen=True, eq=False)
class StepsTable:
    """Items by steps.

    Args:
        answers: The answers, `(items, steps)`: numbers to average, or the numbers of answers within
            an item, in the order in which they come.
        hazard_logits: Logits of the confidences, `(items, steps)`; None without a column.
        costs: Mean cost of an item that stops after each step, `(steps,)`; None without a column.
        items: The items, in the order of their first lines.
        keys: A text for each item that holds its answers, and so identifies it among other tables.
    """

    answers: NDArray[Any]
    hazard_logits: Floats | None
    costs: tuple[float, ...] | None
    items: tuple[Hashable, ...]
    keys: tuple[str, ...]


def read_steps(
    table: Any,
    *,
    combine: Combine = "last",
    budget: int | None = None,
    item: str = "item",
    step: str = "step",
    answer: str = "answer",
    confidence: str = "confidence",
    cost: str = "cost",
) -> StepsTable:
    """Read a table of intermediate answers.

    Args:
        table: Mappings from names of columns to values, a line each; or a DataFrame.
        combine: ``"last"``: each answer is that of a stop there, and an item whose lines end early
            has its last answer from there on, for sure. ``"votes"``: the most frequent answer, and
            ``"mean"``: the mean of numbers; all items then have the same number of steps.
        budget: Number of steps; by default the largest number in the table.
        item: The column of the items.
        step: The column of the steps of an item, 1, 2, 3 …, in any order of lines.
        answer: The column of the answers, of any type that compares equal.
        confidence: The column of the confidences in [0, 1]; the table need not have one.
        cost: The column of the cost of each step alone; the table need not have one.

    Raises:
        ArgumentError: A missing step, two answers of one step, a value that is no number, or a
            confidence outside [0, 1]; the error names the line, from 1.

    Example:
        >>> from ponder.calibration.tables import read_steps
        >>> lines = [{"item": 1, "step": n, "answer": a} for n, a in ((1, "8"), (2, "9"), (3, "9"))]
        >>> read_steps(lines).answers
        array([[0, 1, 1]])
    """
    check_choice("combine", combine, list(COMBINE))
    lines: Sequence[Line] = table
    if hasattr(table, "to_dict"):
        lines = table.to_dict("records")
    needed = (item, step, answer)
    if not len(lines) or any(name not in lines[0] for name in needed):
        got = sorted(lines[0]) if len(lines) else "no lines"
        raise _wrong(f"lines with the columns {', '.join(needed)}", got)
    places = _places(lines, item, step)
    if budget is None:
        budget = max(len(steps) for steps in places.values())
    _check_budget(places, budget, may_end_early=combine == "last")
    shape = (len(places), budget)
    answers = np.zeros(shape, dtype=float if combine == "mean" else int)
    certainty = np.ones(shape)
    spent = np.zeros(shape)
    keys = list[str]()
    for row, (name, steps) in enumerate(places.items()):
        known: dict[Hashable, int] = {}
        key = [str(name)]
        for place, line in enumerate(steps):
            values = lines[line]
            if combine == "mean":
                answers[row, place:] = _number(values, answer, line)
            else:
                answers[row, place:] = known.setdefault(_answer(values[answer]), len(known))
            if confidence in values:
                certainty[row, place] = _confidence(values, confidence, line)
            if cost in values:
                spent[row, place] = _number(values, cost, line)
            key.append(str(values[answer]))
        keys.append("\x1f".join(key))
    hazard_logits = None
    if confidence in lines[0]:
        bounded = np.clip(certainty, 1.0 - _MOST_CERTAIN, _MOST_CERTAIN)
        hazard_logits = np.log(bounded) - np.log1p(-bounded)
    costs = None
    if cost in lines[0]:
        costs = tuple(spent.cumsum(axis=1).mean(axis=0).tolist())
    return StepsTable(answers, hazard_logits, costs, tuple(places), tuple(keys))


def _places(lines: Sequence[Line], item: str, step: str) -> dict[Hashable, list[int]]:
    """Return the lines of each item, in the order of its steps."""
    by_step: dict[Hashable, dict[int, int]] = {}
    for line, values in enumerate(lines):
        of_item = by_step.setdefault(_answer(values.get(item)), {})
        number = _number(values, step, line)
        if number != int(number):
            raise _wrong("whole numbers of steps", f"{number:g}", line)
        if number in of_item:
            first = of_item[int(number)] + 1
            raise _wrong("one answer for each step", f"step {number:g} also in line {first}", line)
        of_item[int(number)] = line
    places = dict[Hashable, list[int]]()
    for name, of_item in by_step.items():
        ordered = sorted(of_item)
        for expected, number in enumerate(ordered, 1):
            if number != expected:
                raise _wrong(f"step {expected} of item {name!r}", f"step {number}", of_item[number])
        places[name] = [of_item[number] for number in ordered]
    return places


def _check_budget(
    places: Mapping[Hashable, Sequence[int]], budget: int, *, may_end_early: bool
) -> None:
    """Refuse an item with more steps than the budget, or, of votes and means, with fewer."""
    for name, lines in places.items():
        if len(lines) > budget:
            expected = f"at most {budget} steps of item {name!r}"
            raise _wrong(expected, f"step {budget + 1}", lines[budget])
        if len(lines) < budget and not may_end_early:
            expected = f"step {len(lines) + 1} of item {name!r}, as of other items"
            raise _wrong(expected, f"step {len(lines)} is its last", lines[-1])


def _answer(value: Any) -> Hashable:
    """Return an answer that compares equal: None for NaN, and text for lists and mappings."""
    if value != value:
        return None
    if isinstance(value, list | dict):
        return repr(value)
    answer: Hashable = value
    return answer


def _number(values: Line, column: str, line: int) -> float:
    try:
        number = float(values[column])
    except (KeyError, TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise _wrong(f"a number in {column!r}", repr(values.get(column)), line)
    return number


def _confidence(values: Line, column: str, line: int) -> float:
    value = _number(values, column, line)
    if not 0.0 <= value <= 1.0:
        raise _wrong("a confidence in [0, 1]", f"{value:g}", line)
    return value


def _wrong(expected: str, got: object, line: int | None = None) -> ArgumentError:
    argument = "table"
    if line is not None:
        argument = f"table, line {line + 1}"
    return ArgumentError(argument, expected=expected, got=str(got), remedy="Mend the table.")
