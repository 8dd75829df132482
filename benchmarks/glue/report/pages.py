"""The whole report: its parts by name, as Markdown, and the files that are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.files import DataError, write_json
from benchmarks.glue.report import tables
from benchmarks.glue.report.groups import Groups, choose
from benchmarks.glue.report.summary import SUITES, headline, summary
from benchmarks.glue.results import Result
from benchmarks.glue.sweep import suite_named

__all__ = ["PARTS", "page", "write"]

PARTS: dict[str, Callable[[Groups], str]] = {
    "scores": tables.scores,
    "ablation": tables.ablation,
    "runs": tables.runs,
}
"""The parts of a backbone's section; ``"headline"`` is that of all."""


def page(results: Sequence[Result], parts: Sequence[str] = (), backbone: str | None = None) -> str:
    """Return the report as Markdown.

    Args:
        results: The results, as `read_all` gives them.
        parts: Names of `PARTS`, or ``"headline"``; all where empty.
        backbone: One backbone alone.
    """
    if not results:
        raise DataError(
            "results: expected at least one; make some with `python -m benchmarks.glue run`."
        )
    blocks = [headline(results)] if backbone is None and ("headline" in parts or not parts) else []
    for title, groups in sections(results, backbone):
        found = [PARTS[name](groups) for name in parts or PARTS if name != "headline"]
        blocks += [f"## {title}", *filter(None, found)] if any(found) else []
    return "\n\n".join(blocks)


def sections(
    results: Sequence[Result], backbone: str | None = None
) -> Iterator[tuple[str, Groups]]:
    """Yield title and groups of each backbone: the runs of its suite, and all others."""
    for name in sorted({str(result["backbone"]) for result in results}):
        if backbone in (None, name):
            yield from _sections_of(name, [run for run in results if run["backbone"] == name])


def _sections_of(backbone: str, results: Sequence[Result]) -> Iterator[tuple[str, Groups]]:
    """Yield title and groups of the runs of one backbone."""
    inside: list[Result] = []
    if backbone in SUITES:
        suite = suite_named(SUITES[backbone])
        inside = [result for result in results if suite.has(result)]
    steps = " / ".join(map(str, sorted({result["num_steps"] for result in results})))
    title = f"`{backbone}`, {steps} steps"
    if inside:
        yield f"{title}: the suite `{SUITES[backbone]}`", choose(inside)
    rest = [result for result in results if result not in inside]
    if rest:
        yield f"{title}: other runs" if inside else title, choose(rest)


def write(results: Sequence[Result], out: Path) -> list[Path]:
    """Write `results-summary.json`."""
    write_json(out / "results-summary.json", summary(results))
    return [out / "results-summary.json"]
