"""The whole report, from the results alone: its parts by name, the page of a backbone, and what is written to docs/."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.glue.report import figures, tables
from benchmarks.glue.report.comparisons import comparisons
from benchmarks.glue.report.groups import Groups, choose
from benchmarks.glue.report.summary import headline, is_of_suite, summary
from benchmarks.glue.results import Result
from benchmarks.page import Block, Heading, Page, Text
from ponder._utils.files import write_json, write_text
from ponder.errors import ArgumentError, DataError

__all__ = ["PARTS", "REPLICATES", "report", "write"]

REPLICATES = 10_000
_MARKS = ("<!-- headline -->", "<!-- end of the headline -->")
_INTRODUCTION = """\
* Made by `python -m benchmarks.glue report` from JSON results alone (and, for significance, the labels of dev); nothing
  here is written by hand.
* The *score* is GLUE's number on dev, in percent: Matthews correlation for CoLA, the mean of accuracy and F1 for MRPC
  and QQP, the mean of Pearson and Spearman correlation for STS-B, accuracy elsewhere.
* {selection}
  Policies are those of the recipes unless a table says otherwise; *threshold chosen* means on the held-out part.
* *Speed-up* is against running the same model to its last step, and is three numbers: in *steps* (N ÷ mean exit
  step), in *FLOPs* (counted on real calls, one example at a time at its true length) and in *wall-clock* (batches of
  similar length, timed in turn with full depth; the median of the pairs).
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
    "equal-cost": lambda of: tables.equal_cost(of.main),
    "significance": lambda of: comparisons(of.main, of.folders, of.replicates),
    "runs": lambda of: tables.runs(of.results),
    "published": lambda of: [],
}
"""The parts of a section; what papers report stands once, at the end."""

_FIGURES = ("figure-2", "figure-3", "figure-4", "flops")


def report(
    results: Sequence[Result],
    glue_dir: Path | None = None,
    *,
    text_dir: Path | None = None,
    draw: bool = True,
    replicates: int = REPLICATES,
    only: Sequence[str] = (),
) -> Page:
    """Make a page of any results.

    Args:
        results: As `results.read_all` gives them.
        glue_dir: GLUE's data, whose labels significance needs; left out where None.
        text_dir: The data of `benchmarks.text`, likewise.
        draw: Whether to draw figures, which needs matplotlib.
        replicates: Of the bootstrap.
        only: Names of `PARTS`; all where empty.
    """
    for name in only:
        if name not in PARTS:
            expected = f"parts of the report, {', '.join(PARTS)}"
            raise ArgumentError("--only", expected=expected, got=repr(name), remedy="Choose of them.")
    if not results:
        raise DataError("results: expected at least one; make some with `python -m benchmarks.glue run`.")
    wanted = [name for name in PARTS if (name in only or not only) and (draw or name not in _FIGURES)]
    blocks: list[Block] = [Text(_INTRODUCTION.format(selection=_selection(results)))]
    for title, prefix, runs in _sections(results):
        groups, choices = choose(runs)
        main = {key: group for key, group in groups.items() if not tables.is_ablation(group.example)}
        folders = {"--glue-dir": glue_dir, "--text-dir": text_dir}
        source = _Source(prefix, runs, groups, main, folders, replicates)
        blocks.append(Heading(title))
        if choices:
            chosen = "Where several configurations were run, the best on the held-out part of train is shown"
            if any(group.on_dev for group in groups.values()):
                chosen += " (of those that selected on dev, the best there)"
            blocks.append(Text(f"{chosen}: {'; '.join(choices)}."))
        blocks += [block for name in wanted for block in PARTS[name](source)]
    return Page("Results", (*blocks, *(tables.published() if "published" in wanted else [])))


def write(results: Sequence[Result], out: Path, **options: Path | int | None) -> list[Path]:
    """Write a page for each backbone, `<out>/results-<backbone>.md`, with its figures, and the summary of all.

    The summary is `<out>/results-summary.json`. Where `<out>/benchmark.md` has a place for them, the figure and the
    table of the headline are put there.
    """
    written = []
    for name in sorted({_short(result["backbone"]) for result in results}):
        page = report([result for result in results if _short(result["backbone"]) == name], **options)  # type: ignore[arg-type]
        written += page.write(out / f"results-{name}.md", figures=out / "figures")
    write_json(out / "results-summary.json", summary(results))
    written.append(out / "results-summary.json")
    text = (out / "benchmark.md").read_text(encoding="utf-8") if (out / "benchmark.md").is_file() else ""
    if all(mark in text for mark in _MARKS):
        page = Page("", tuple(headline(results)))
        page.write(None, figures=out / "figures")
        before, after = text.split(_MARKS[0])[0], text.split(_MARKS[1])[1]
        shown = "\n\n".join(block.markdown("figures") for block in page.blocks)
        write_text(out / "benchmark.md", f"{before}{_MARKS[0]}\n{shown}\n{_MARKS[1]}{after}")
        written.append(out / "benchmark.md")
    return written


def _short(backbone: str) -> str:
    return backbone.rstrip("/").rsplit("/", 1)[-1]


def _sections(results: Sequence[Result]) -> Iterator[tuple[str, str, list[Result]]]:
    """Title, prefix of figures and runs: those of the suite `pays` apart from all others on a backbone."""
    for backbone in sorted({str(result["backbone"]) for result in results}):
        of_backbone = [result for result in results if result["backbone"] == backbone]
        pays = [result for result in of_backbone if is_of_suite(result)]
        others = [result for result in of_backbone if not is_of_suite(result)]
        steps = " / ".join(map(str, sorted({result["num_steps"] for result in of_backbone})))
        name = f"`{_short(backbone)}`, {steps} steps"
        if pays:
            yield f"{name}: the suite `pays`", f"{_short(backbone)}-pays", pays
        if others:
            yield f"{name}: other runs" if pays else name, _short(backbone), others


def _selection(results: Sequence[Result]) -> str:
    on_dev = sum(result.selects_on_dev for result in results)
    if on_dev == len(results):
        return "Epochs and hyper-parameters were selected on dev, as the paper does: its scores are optimistic."
    if on_dev:
        return (
            "The epoch was selected on a part of train that was held out, except in runs marked †, which selected on "
            "dev, as the paper does, and whose scores are optimistic."
        )
    return "The epoch was selected on a part of train that was held out; dev chose nothing that is compared here."
