"""The page of the demo: a table of recipes, and how deep examples of each difficulty went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ponder.errors import ArgumentError
from ponder.pages import Block, Drawing, Heading, Page, Table, Text, templates

__all__ = ["write_report"]

_BOX = {"left": 96, "plot": 420, "width": 640}  # pixels of a figure's parts
_ROW, _TOP = 46, 34
_EXPLAINED = (
    "One row a difficulty: the bars are the share of its examples that exit at each step, on the same scale in every "
    "row; the dots, joined by a line, are its mean exit step."
)


def write_report(
    path: Path,
    *,
    title: str,
    intro: str,
    rows: Sequence[Mapping[str, object]],
    exits: Mapping[str, Mapping[int, Sequence[int]]],
    num_steps: int,
    notes: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: The HTML file; its folder is made where it is missing, and a file that is there is replaced.
        title: Heading of the page.
        intro: A paragraph under the heading.
        rows: The table, a row a recipe; columns are all keys in the order in which they first appear.
        exits: Exit steps of the examples (1-based), for each early-exit recipe and each difficulty.
        num_steps: Number of steps of the model, the end of the figures' axis.
        notes: What a reader has to know about the numbers, one line each.

    Raises:
        ArgumentError: An exit step lies outside 1..num_steps, or the file cannot be written.

    Example:
        >>> rows = [{"recipe": "palbert", "score": 0.93, "mean exit step": 3.1}]
        >>> exits = {"palbert": {0: [1, 2, 2], 1: [3, 4, 4]}}
        >>> write_report(Path("report.html"), title="Demo", intro="", rows=rows, exits=exits, num_steps=6, notes=[])
    """
    _check(exits, num_steps)
    blocks: list[Block] = [Text(intro)] if intro else []
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if columns:
        blocks.append(Table(columns, [[_cell(row.get(key)) for key in columns] for row in rows]))
    if exits:
        blocks += [Heading("Exit steps by difficulty"), Text(_EXPLAINED)]
        blocks += [Drawing(name, _figure(name, steps, num_steps)) for name, steps in exits.items()]
    if notes:
        blocks += [Heading("Notes"), Text("* " + "\n* ".join(notes))]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(Page(title, tuple(blocks), marked=False).html(), encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            "path",
            expected="a file that can be written",
            got=f"{str(path)!r} ({error.strerror or error})",
            remedy="Pass a file in a folder that you may write to.",
        ) from error


def _check(exits: Mapping[str, Mapping[int, Sequence[int]]], num_steps: int) -> None:
    if num_steps < 1:
        raise ArgumentError("num_steps", expected="a number >= 1", got=num_steps, remedy="Pass the model's steps.")
    for recipe, by_difficulty in exits.items():
        for difficulty, steps in by_difficulty.items():
            wrong = [step for step in steps if not 1 <= step <= num_steps]
            if wrong:
                raise ArgumentError(
                    f"exits[{recipe!r}][{difficulty}]",
                    expected=f"exit steps in 1..{num_steps}",
                    got=wrong[0],
                    remedy="Steps are counted from 1; pass the num_steps of the model that exited.",
                )


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _figure(name: str, by_difficulty: Mapping[int, Sequence[int]], num_steps: int) -> Markup:
    """Small histograms, a row a difficulty over one axis of steps, and the line of their means."""

    def place(step: float) -> float:
        return _BOX["left"] + _BOX["plot"] * (step - 0.5) / num_steps

    shares = {
        difficulty: [steps.count(step) / max(1, len(steps)) for step in range(1, num_steps + 1)]
        for difficulty, steps in sorted(by_difficulty.items())
    }
    tallest = max((max(each) for each in shares.values()), default=0.0) or 1.0
    width, rows, means = _BOX["plot"] / num_steps * 0.72, [], []
    for number, (difficulty, of_step) in enumerate(shares.items()):
        steps, y = by_difficulty[difficulty], _TOP + _ROW * (number + 1)
        hardness = 100 * number / max(1, len(shares) - 1)
        mean = sum(steps) / len(steps) if steps else None
        if mean is not None:
            means.append((place(mean), y - 5))
        bars = [
            {
                "x": place(step) - width / 2,
                "width": width,
                "height": (_ROW - 10) * share / tallest,
                "title": f"difficulty {difficulty}, step {step}: {100 * share:.1f} %",
            }
            for step, share in enumerate(of_step, start=1)
            if share
        ]
        row: dict[str, Any] = {"y": y, "bars": bars, "difficulty": difficulty, "count": len(steps)}
        row["colour"] = f"color-mix(in oklab, var(--hard) {hardness:.0f}%, var(--easy))"
        rows.append({**row, "mean": "–" if mean is None else f"{mean:.2f}"})
    every = -(-num_steps // 16)
    shown = [n for n in range(1, num_steps) if n % every == 0 and num_steps - n >= every]
    ticks = [(step, place(step)) for step in [*shown, num_steps]]
    box = {**_BOX, "bottom": _TOP + _ROW * len(shares)}
    template = templates(Path(__file__).parent).get_template("exits.svg.jinja")
    return Markup(template.render(name=name, rows=rows, means=means, ticks=ticks, box=box))
