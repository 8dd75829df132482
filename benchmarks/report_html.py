"""One self-contained HTML page: a table of recipes, and how deep examples of each difficulty went.

The page asks for nothing from outside: style and figures are inline, so it can be mailed or archived as it is.
It is written as well-formed XML too, which is what lets the tests parse it strictly.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ponder.errors import ArgumentError

__all__ = ["escape", "html_page", "write_report"]

_LEFT, _PLOT, _RIGHT, _ROW, _TOP, _AXIS = 96, 420, 124, 46, 34, 46  # pixels of a figure's parts
_WIDTH = _LEFT + _PLOT + _RIGHT
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NUMBER = re.compile(r"[×x+\-−±]?\s*[\d.]+(\s*(%|×|x|s|ms|(of|/)\s*\d+))?|–")
_STYLE = """
:root { --page: #f6f7f9; --card: #ffffff; --ink: #1c2430; --soft: #5d6878; --rule: #dde2e9;
  --easy: #9ecae1; --hard: #08519c; --mean: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e8ecf2; --soft: #9aa6b6;
  --rule: #313a47; --easy: #2f6f9f; --hard: #a9d4f5; --mean: #ff9d5c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1400px; margin: 0 auto; padding: 40px 24px 56px; }
h1 { font-size: 28px; line-height: 1.25; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 19px; margin: 36px 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { max-width: 78ch; margin: 0 0 12px; white-space: pre-line; }
.soft, li { color: var(--soft); font-size: 14px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 18px 20px; }
.wide { overflow-x: auto; margin-top: 20px; padding: 6px 12px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 12px; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { font-size: 13px; font-weight: 600; color: var(--soft); }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; }
.figures { display: grid; gap: 20px; margin-top: 14px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); }
figure { margin: 0; } svg { display: block; width: 100%; max-width: 760px; height: auto; margin: 0 auto; }
svg text { fill: var(--ink); font-size: 13px; } svg .tick { fill: var(--soft); font-size: 12px; }
svg .key { fill: var(--mean); font-weight: 600; } svg .base { stroke: var(--rule); stroke-width: 1; }
svg .line { fill: none; stroke: var(--mean); stroke-width: 2; stroke-linejoin: round; }
svg .dot { fill: var(--mean); stroke: var(--card); stroke-width: 1.5; }
"""


def write_report(
    path: Path,
    *,
    title: str,
    intro: str,
    rows: list[dict[str, object]],
    exits: dict[str, dict[int, list[int]]],
    num_steps: int,
    notes: list[str],
) -> None:
    """Write the page.

    Args:
        path: The HTML file; its folder is made where it is missing, and a file that is there is replaced.
        title: Heading of the page.
        intro: A paragraph under the heading.
        rows: The table, a row a recipe; columns are all keys in the order in which they first appear.
        exits: For each early-exit recipe and each difficulty, the exit steps of the examples (1-based).
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
    body = [f"<h1>{escape(title)}</h1>", f"<p>{escape(intro)}</p>" if intro else "", _table(rows)]
    body += [_figures(exits, num_steps), _notes(notes)]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html_page(title, body), encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            "path",
            expected="a file that can be written",
            got=f"{str(path)!r} ({error.strerror or error})",
            remedy="Pass a file in a folder that you may write to.",
        ) from error


def html_page(title: str, body: Iterable[str]) -> str:
    """A page in the style of the reports; `body` is well-formed HTML, `title` is text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><main>\n"
        + "\n".join(filter(None, body))
        + "\n</main></body></html>\n"
    )


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


def escape(value: object) -> str:
    """Escaped, for content and for quoted attributes; what XML cannot hold becomes a replacement mark."""
    return html.escape(_NOT_XML.sub("\ufffd", str(value)), quote=True)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return ""
    cells = {key: [_cell(row.get(key)) for row in rows] for key in columns}
    kind = {key: ' class="number"' if all(map(_NUMBER.fullmatch, cells[key])) else "" for key in columns}
    head = "".join(f'<th scope="col"{kind[key]}>{escape(key)}</th>' for key in columns)
    lines = (
        "<tr>" + "".join(f"<td{kind[key]}>{escape(cells[key][i])}</td>" for key in columns) + "</tr>"
        for i in range(len(rows))
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(lines) + "\n</tbody></table>"
    return f'<div class="card wide">{table}</div>'


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<h2>Notes</h2><ul>{items}</ul>" if items else ""


def _figures(exits: Mapping[str, Mapping[int, Sequence[int]]], num_steps: int) -> str:
    if not exits:
        return ""
    cards = (
        f'<figure class="card"><h3>{escape(recipe)}</h3>{_figure(recipe, by_difficulty, num_steps)}</figure>'
        for recipe, by_difficulty in exits.items()
    )
    return (
        '<h2>Exit steps by difficulty</h2><p class="soft">One row a difficulty: the bars are the share of its '
        "examples that exit at each step, on the same scale in every row; the dots, joined by a line, are its "
        'mean exit step.</p><div class="figures">' + "\n".join(cards) + "</div>"
    )


def _figure(recipe: str, by_difficulty: Mapping[int, Sequence[int]], num_steps: int) -> str:
    """Small histograms, a row a difficulty over one axis of steps, and the line of their means."""
    difficulties = sorted(by_difficulty)
    bottom = _TOP + _ROW * len(difficulties)
    tallest = max((max(_shares(by_difficulty[d], num_steps)) for d in difficulties), default=0.0)
    parts: list[str] = []
    means: list[tuple[float, float]] = []
    for place, difficulty in enumerate(difficulties):
        steps, y = by_difficulty[difficulty], _TOP + _ROW * (place + 1)
        parts.append(_row(difficulty, steps, y, num_steps, tallest, place / max(1, len(difficulties) - 1)))
        if steps:
            means.append((_x(sum(steps) / len(steps), num_steps), y - 5))
    parts.append(_axis(bottom, num_steps))
    parts.append(f'<polyline class="line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in means)}"/>')
    parts += [f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>' for x, y in means]
    label = escape(f"Exit steps of {recipe} by difficulty")
    head = f'<svg viewBox="0 0 {_WIDTH} {bottom + _AXIS}" role="img" aria-label="{label}">'
    return head + "\n".join(parts) + "</svg>"


def _row(difficulty: int, steps: Sequence[int], y: float, num_steps: int, tallest: float, hardness: float) -> str:
    """The histogram of one difficulty, standing on the line at height `y`."""
    width = _PLOT / num_steps * 0.72
    colour = f"color-mix(in oklab, var(--hard) {100 * hardness:.0f}%, var(--easy))"
    bars = []
    for step, share in enumerate(_shares(steps, num_steps), start=1):
        height = (_ROW - 10) * share / (tallest or 1.0)
        if share:
            bars.append(
                f'<rect x="{_x(step, num_steps) - width / 2:.1f}" y="{y - height:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}" rx="1.5" style="fill: {colour}">'
                f"<title>difficulty {difficulty}, step {step}: {100 * share:.1f} %</title></rect>"
            )
    size = f"n = {len(steps)}"
    mean = f"{sum(steps) / len(steps):.2f}" if steps else "–"
    return (
        f'<line class="base" x1="{_LEFT}" x2="{_LEFT + _PLOT}" y1="{y}" y2="{y}"/>{"".join(bars)}'
        f'<text x="{_LEFT - 14}" y="{y - 8}" text-anchor="end">{difficulty}</text>'
        f'<text class="key" x="{_LEFT + _PLOT + 48}" y="{y - 8}" text-anchor="end">{mean}</text>'
        f'<text class="tick" x="{_WIDTH - 6}" y="{y - 8}" text-anchor="end">{size}</text>'
    )


def _axis(bottom: float, num_steps: int) -> str:
    every = -(-num_steps // 16)
    ticks = "".join(
        f'<text class="tick" x="{_x(step, num_steps):.1f}" y="{bottom + 18}" text-anchor="middle">{step}</text>'
        for step in range(1, num_steps + 1)
        if step == num_steps or (step % every == 0 and num_steps - step >= every)
    )
    return (
        f'{ticks}<text x="{_LEFT + _PLOT / 2}" y="{bottom + 38}" text-anchor="middle">exit step</text>'
        f'<text x="{_LEFT - 14}" y="18" text-anchor="end">difficulty</text>'
        f'<text class="key" x="{_LEFT + _PLOT + 48}" y="18" text-anchor="end">mean</text>'
    )


def _shares(steps: Sequence[int], num_steps: int) -> list[float]:
    """Share of the examples that exit at each step, `(num_steps,)`."""
    return [steps.count(step) / max(1, len(steps)) for step in range(1, num_steps + 1)]


def _x(step: float, num_steps: int) -> float:
    """Horizontal place of a step, which may lie between two."""
    return _LEFT + _PLOT * (step - 0.5) / num_steps
