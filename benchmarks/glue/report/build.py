"""The whole report, from the results alone: its parts by name, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.glue.report import figures, tables
from benchmarks.glue.report.comparisons import comparisons
from benchmarks.glue.report.groups import Groups, choose, labels_of
from benchmarks.glue.report.notes import NOTES
from benchmarks.glue.results import Result
from ponder.errors import ArgumentError, DataError
from ponder.pages import Block, Figure, Heading, Page, Text

__all__ = ["PARTS", "REPLICATES", "report"]

REPLICATES = 10_000
_PUBLISHED = "published"


@dataclass(frozen=True)
class _Source:
    """What the parts on one backbone are made from."""

    name: str
    results: Sequence[Result]
    groups: Groups
    main: Groups
    folders: Mapping[str, Path | None]
    draw: bool
    replicates: int

    def drawn(self, *made: Callable[[Groups, str], Figure | None]) -> list[Block]:
        """The figures, where there are figures and they have something to show."""
        found = [figure(self.main, self.name) for figure in made] if self.draw else []
        return [figure for figure in found if figure is not None]


PARTS: dict[str, Callable[[_Source], Sequence[Block]]] = {
    "table-1": lambda of: tables.scores(of.main),
    "table-2": lambda of: tables.ablation(of.groups),
    "variants": lambda of: tables.variants(of.groups),
    "figure-2": lambda of: of.drawn(figures.posteriors),
    "figure-3": lambda of: of.drawn(figures.by_threshold),
    "figure-4": lambda of: of.drawn(figures.by_speed_up),
    "equal-cost": lambda of: tables.equal_cost(of.main),
    "costs": lambda of: tables.costs(of.main),
    "flops": lambda of: of.drawn(figures.by_cost),
    "wall-clock": lambda of: of.drawn(figures.by_wall_clock),
    "policies": lambda of: of.drawn(*(figures.by_policy(name) for name in labels_of(of.main))),
    "clock": lambda of: [*tables.timings(of.groups), *of.drawn(figures.by_latency)],
    "gains": lambda of: tables.gains(of.main),
    "optimum": lambda of: tables.optimum(of.main),
    "overthinking": lambda of: [*tables.overthinking(of.main), *of.drawn(figures.overthinking)],
    "significance": lambda of: comparisons(of.main, of.folders, of.replicates),
    "runs": lambda of: tables.runs(of.results),
}


def report(
    results: Sequence[Result],
    glue_dir: Path | None = None,
    *,
    text_dir: Path | None = None,
    draw: bool = True,
    replicates: int = REPLICATES,
    only: Sequence[str] = (),
) -> Page:
    """Make the report.

    Args:
        results: As `results.read_all` gives them.
        glue_dir: GLUE's data, whose labels significance needs; left out where None.
        text_dir: The data of `benchmarks.text`, likewise.
        draw: Whether to draw figures, which needs matplotlib.
        replicates: Of the bootstrap.
        only: Names of parts, of `PARTS` or ``"published"``; all where empty.
    """
    known = [*PARTS, _PUBLISHED]
    for name in only:
        if name not in known:
            expected = f"parts of the report, {', '.join(known)}"
            raise ArgumentError("--only", expected=expected, got=repr(name), remedy="Choose of them.")
    if not results:
        raise DataError("results: expected at least one; make some with `python -m benchmarks.glue run`.")
    wanted = [name for name in PARTS if name in only or not only]
    folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
    blocks: list[Block] = [Text(_introduction(results))]
    for backbone in sorted({str(result["backbone"]) for result in results}) if wanted else ():
        of_backbone = [result for result in results if result["backbone"] == backbone]
        groups, choices = choose(of_backbone)
        main = {
            key: group
            for key, group in groups.items()
            if not tables.is_ablation(group.example) and not tables.is_variant(group.example, groups)
        }
        name = backbone.rstrip("/").rsplit("/", 1)[-1]
        source = _Source(name, of_backbone, groups, main, folders, draw, replicates)
        blocks += _section(source, choices, wanted, bool(only))
    if _PUBLISHED in only or not only:
        blocks += tables.published()
    return Page("Results", tuple(blocks))


def _section(source: _Source, choices: Sequence[str], wanted: Sequence[str], asked: bool) -> list[Block]:
    """What is told of one backbone."""
    steps = sorted({result["num_steps"] for result in source.results})
    blocks: list[Block] = [Heading(f"`{source.name}`, {' / '.join(map(str, steps))} steps")]
    if choices:
        chosen = "Where several configurations were run, the best on the held-out part of train is shown"
        if any(group.on_dev for group in source.groups.values()):
            chosen += " (of those that selected on dev, the best there)"
        blocks.append(Text(f"{chosen}: {'; '.join(choices)}."))
    for part in wanted:
        made = PARTS[part](source)
        blocks += made
        if not made and asked:
            unless = "" if source.draw else ", or it is a figure (give --figures or --html)"
            blocks.append(Text(f"No `{part}`: these results hold nothing for it{unless}."))
    return blocks


def _introduction(results: Sequence[Result]) -> str:
    on_dev = sum(result.selects_on_dev for result in results)
    selection = "The epoch was selected on a part of train that was held out; dev chose nothing that is compared here."
    if on_dev == len(results):
        selection = "Epochs and hyper-parameters were selected on dev, as the paper does: its scores are optimistic."
    elif on_dev:
        selection = (
            "The epoch was selected on a part of train that was held out, except in runs marked †, which selected on "
            "dev, as the paper does, and whose scores are optimistic."
        )
    return NOTES["introduction"].format(selection=selection)
