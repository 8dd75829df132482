"""The whole report, from the results alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.glue.report.groups import Groups, choose
from benchmarks.glue.report.page import Block, Figure, Heading, Text, to_html, to_markdown
from benchmarks.glue.report.parts import PARTS, Source
from benchmarks.glue.report.published import published
from benchmarks.glue.report.scores import is_ablation
from benchmarks.glue.report.variants import is_variant
from benchmarks.glue.results import Result
from ponder._utils.files import write_text
from ponder.errors import ArgumentError, DataError

__all__ = ["REPLICATES", "Report", "report"]

REPLICATES = 10_000
_PUBLISHED = "published"


@dataclass(frozen=True)
class Report:
    """A page that can be written as Markdown and as HTML.

    Args:
        title: Its heading.
        blocks: Its parts.
    """

    title: str
    blocks: tuple[Block, ...]

    def markdown(self, figures: str | None = None) -> str:
        """The page for the documentation; `figures` is the folder of figures, as the page links to it."""
        return to_markdown(self.title, self.blocks, figures)

    def html(self) -> str:
        """One file that asks for nothing from outside."""
        return to_html(self.title, self.blocks)

    def write(self, out: Path | None, html: Path | None = None, figures: Path | None = None) -> list[Path]:
        """Write what is asked for.

        Args:
            out: Markdown file.
            html: HTML file.
            figures: Folder of SVG files, to which the Markdown links.

        Returns:
            The files.
        """
        written: list[Path] = []
        if figures is not None:
            for block in self.blocks:
                if isinstance(block, Figure):
                    write_text(figures / f"{block.name}.svg", block.svg)
                    written.append(figures / f"{block.name}.svg")
        if out is not None:
            link = None if figures is None else Path(os.path.relpath(figures, out.parent)).as_posix()
            write_text(out, self.markdown(link))
            written.append(out)
        if html is not None:
            write_text(html, self.html())
            written.append(html)
        return written


def report(
    results: Sequence[Result],
    glue_dir: Path | None = None,
    *,
    draw: bool = True,
    replicates: int = REPLICATES,
    only: Sequence[str] = (),
) -> Report:
    """Make the report.

    Args:
        results: As `results.read_all` gives them.
        glue_dir: GLUE's data, whose labels significance needs; left out where None.
        draw: Whether to draw figures, which needs matplotlib.
        replicates: Of the bootstrap.
        only: Names of parts, of `parts.PARTS` or ``"published"``; all where empty.

    Raises:
        ArgumentError: There is no such part.
        DataError: There are no results, or the data are not those of the runs.
    """
    known = [*PARTS, _PUBLISHED]
    for name in only:
        if name not in known:
            raise ArgumentError(
                "--only", expected=f"parts of the report, {', '.join(known)}", got=repr(name), remedy="Choose of them."
            )
    if not results:
        raise DataError("results: expected at least one; make some with `python -m benchmarks.glue run`.")
    wanted = [name for name in PARTS if name in only or not only]
    blocks: list[Block] = [Text(_introduction(results))]
    for backbone in sorted({str(result["backbone"]) for result in results}) if wanted else ():
        of_backbone = [result for result in results if result["backbone"] == backbone]
        blocks += _section(backbone, of_backbone, wanted, bool(only), glue_dir, draw, replicates)
    if _PUBLISHED in only or not only:
        blocks += published()
    return Report("Results", tuple(blocks))


def _section(
    backbone: str,
    results: Sequence[Result],
    wanted: Sequence[str],
    asked: bool,
    glue_dir: Path | None,
    draw: bool,
    replicates: int,
) -> list[Block]:
    name = backbone.rstrip("/").rsplit("/", 1)[-1]
    steps = sorted({result["num_steps"] for result in results})
    groups, choices = choose(results)
    main: Groups = {
        key: group
        for key, group in groups.items()
        if not is_ablation(group.example) and not is_variant(group.example, groups)
    }
    source = Source(name, results, groups, main, glue_dir, draw, replicates)
    blocks: list[Block] = [Heading(f"`{name}`, {' / '.join(map(str, steps))} steps")]
    if choices:
        chosen = "Where several configurations were run, the best on the held-out part of train is shown"
        if any(group.on_dev for group in groups.values()):
            chosen += " (of those that selected on dev, the best there)"
        blocks.append(Text(f"{chosen}: {'; '.join(choices)}."))
    for part in wanted:
        made = PARTS[part](source)
        blocks += made
        if not made and asked:
            unless = "" if draw else ", or it is a figure (give --figures or --html)"
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
    return _INTRODUCTION.format(selection=selection)


_INTRODUCTION = """\
* Made by `python -m benchmarks.glue report` from JSON results alone (and, for significance, the labels of dev); nothing
  here is written by hand.
* The *score* is GLUE's number on dev, in percent: Matthews correlation for CoLA, the mean of accuracy and F1 for MRPC
  and QQP, the mean of Pearson and Spearman correlation for STS-B, accuracy elsewhere.
* {selection}
  Policies are those of the recipes unless a table says otherwise; *knob chosen* means on the held-out part.
* *Speed-up* is against running the same model to its last step, and is three numbers: in *steps* (N ÷ mean exit
  step), in *FLOPs* (counted on real calls, one example at a time at its true length) and in *wall-clock* (batches of
  similar length, timed in turn with full depth; the median of the pairs).
* Curves over a policy's knob are drawn on dev to be looked at; no knob was chosen from them.
* A dash is a run that is not there. Entropy policies are not defined for the regression task STS-B."""
