"""The whole report, from the results alone: its parts by name, a page of any results, and what is written to docs/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.glue.report import figures, tables
from benchmarks.glue.report.groups import Groups, choose
from benchmarks.glue.report.significance import comparisons
from benchmarks.glue.report.summary import headline, is_of_suite, summary
from benchmarks.glue.results import Result
from benchmarks.tables import check_marks, write_between_marks
from ponder._utils.files import write_json
from ponder.errors import ArgumentError, DataError
from ponder.pages import Block, Heading, Page, Text

__all__ = ["PARTS", "REPLICATES", "report", "write"]

REPLICATES = 10_000
_INTRODUCTION = """\
* Made by `python -m benchmarks.glue report` from JSON results alone (and, for significance, the labels of dev); nothing
  here is written by hand.
* The *score* is GLUE's number on dev, in percent: Matthews correlation for CoLA, the mean of accuracy and F1 for MRPC
  and QQP, the mean of Pearson and Spearman correlation for STS-B, accuracy elsewhere.
* The epoch was selected on a part of train that was held out, and dev chose nothing that is compared here; except in
  runs marked †, which selected on dev, as PALBERT's paper does, and whose scores are optimistic.
* *Speed-up* is against running the same model to its last step, and is three numbers: in *steps* (N ÷ mean exit
  step), in *FLOPs* (counted on real calls, one example at a time at its true length) and in *wall-clock* (batches of
  similar length, timed in turn with full depth; the median of the pairs). Where a curve is drawn against FLOPs, every
  example costs at its exit what one does on average: long texts that leave later than short ones cost more than that.
* Curves over a policy's threshold are drawn on dev to be looked at; no threshold was chosen from them.
* A dash is a run that is not there. Entropy policies are not defined for the regression task STS-B."""


@dataclass(frozen=True)
class _Source:
    """What the parts of one section are made from; `main` leaves out what has a table of its own."""

    name: str
    results: Sequence[Result]
    groups: Groups
    main: Groups
    folders: Mapping[str, Path | None]
    replicates: int


PARTS: dict[str, Callable[[_Source], Sequence[Block]]] = {
    "table-1": lambda of: tables.scores(of.main),
    "table-2": lambda of: tables.ablation(of.groups),
    "figure-2": lambda of: figures.posteriors(of.main, of.name),
    "figure-3": lambda of: figures.by_threshold(of.main, of.name),
    "figure-4": lambda of: figures.by_speed_up(of.main, of.name),
    "flops": lambda of: figures.by_speed_up(of.main, of.name, by="cost"),
    "out-of-scope": lambda of: tables.out_of_scope(of.main),
    "equal-cost": lambda of: tables.equal_cost(of.main),
    "significance": lambda of: comparisons(of.main, of.folders, of.replicates),
    "runs": lambda of: tables.runs(of.results),
    "published": lambda of: [],
}
"""The parts of a section; what papers report stands once, at the end."""


def report(
    results: Sequence[Result],
    folders: Mapping[str, Path | None] | None = None,
    *,
    draw: bool = True,
    replicates: int = REPLICATES,
    only: Sequence[str] = (),
) -> Page:
    """Make a page of any results.

    Args:
        results: The results, as `results.read_all` gives them.
        folders: Folders of the labels that significance needs, by `Task.folder_option`.
        draw: Whether to draw figures, which needs matplotlib.
        replicates: Number of samples of the bootstrap.
        only: Names of `PARTS`; all where empty.
    """
    for name in only:
        if name not in PARTS:
            expected = f"parts of the report, {', '.join(PARTS)}"
            raise ArgumentError("--only", expected=expected, got=repr(name), remedy="Choose of them.")
    if not results:
        raise DataError("results: expected at least one; make some with `python -m benchmarks.glue run`.")
    left_out = () if draw else ("figure-2", "figure-3", "figure-4", "flops")
    wanted = [name for name in PARTS if (name in only or not only) and name not in left_out]
    blocks: list[Block] = [Text(_INTRODUCTION)]
    for title, prefix, runs in _sections(results):
        groups, choices = choose(runs)
        main = {key: group for key, group in groups.items() if not tables.is_ablation(group.runs[0])}
        source = _Source(prefix, runs, groups, main, folders or {}, replicates)
        blocks.append(Heading(title))
        if choices:
            chosen = "Where several configurations were run, the best on the held-out part of train is shown"
            blocks.append(Text(f"{chosen}: {'; '.join(choices)}."))
        blocks += [block for name in wanted for block in PARTS[name](source)]
    return Page("Results", (*blocks, *(tables.published() if "published" in wanted else [])))


def write(
    results: Sequence[Result], out: Path, folders: Mapping[str, Path | None] | None = None, replicates: int = REPLICATES
) -> list[Path]:
    """Write a page for each backbone, `<out>/results-<backbone>.md`, with its figures, and the summary of all.

    The summary is `<out>/results-summary.json`. Where there is a page `<out>/benchmark.md`, the figure and the table of
    the headline are put between its marks.
    """
    marked = out / "benchmark.md" if (out / "benchmark.md").is_file() else None
    check_marks(marked)
    written = [out / "results-summary.json"]
    write_json(written[0], summary(results))
    for name, of_backbone in _by_backbone(results):
        page = report(of_backbone, folders, replicates=replicates)
        written += page.write(out / f"results-{name}.md", figures=out / "figures")
    if marked is not None:
        shown = Page("", tuple(headline(results)))
        written += [*shown.write(None, figures=out / "figures"), marked]
        write_between_marks(marked, "\n\n".join(block.markdown("figures") for block in shown.blocks))
    return written


def _by_backbone(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """The runs of each backbone under its name, the last part of its path, and more of it where two end alike."""
    paths = sorted({str(result["backbone"]).rstrip("/") for result in results})
    names = dict(zip(paths, _endings(paths), strict=True))
    groups = [(names[path], [r for r in results if str(r["backbone"]).rstrip("/") == path]) for path in paths]
    return sorted(groups, key=lambda group: group[0])


def _endings(paths: Sequence[str]) -> list[str]:
    """As many last parts of each path, joined by hyphens, as tell it from all others."""
    parts = [path.split("/") for path in paths]
    made = []
    for own in parts:
        others = [other for other in parts if other is not own]
        count = next(n for n in range(1, len(own) + 2) if n > len(own) or all(own[-n:] != o[-n:] for o in others))
        made.append("-".join(own[-count:]).strip("-"))
    return made


def _sections(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """Title, prefix of figures and runs: those of the suite `pays` apart from all others on a backbone."""
    for backbone, of_backbone in _by_backbone(results):
        steps = " / ".join(map(str, sorted({result["num_steps"] for result in of_backbone})))
        for is_pays, words, prefix in ((True, ": the suite `pays`", f"{backbone}-pays"), (False, "", backbone)):
            runs = [result for result in of_backbone if is_of_suite(result) == is_pays]
            if runs:
                other = ": other runs" if not is_pays and len(runs) < len(of_backbone) else words
                yield f"`{backbone}`, {steps} steps{other}", prefix, runs
