"""The parts of the report on one backbone, by name, in the order in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.glue.report import figures
from benchmarks.glue.report.clock import clock_table
from benchmarks.glue.report.comparisons import comparisons
from benchmarks.glue.report.costs import costs, overthinking_table
from benchmarks.glue.report.equal_cost import equal_cost
from benchmarks.glue.report.examples import gains_table, optimum_table
from benchmarks.glue.report.groups import Groups, ordered
from benchmarks.glue.report.page import Block, Figure, Heading
from benchmarks.glue.report.runs import every_run
from benchmarks.glue.report.scores import ablation, scores
from benchmarks.glue.report.variants import variants
from benchmarks.glue.results import Result

__all__ = ["PARTS", "Source"]


@dataclass(frozen=True)
class Source:
    """What the parts are made from.

    Args:
        name: Of the backbone; begins the names of figures.
        results: All runs.
        groups: The runs of each recipe and task.
        main: Those that are no ablation and no variant of another recipe.
        glue_dir: GLUE's data, whose labels significance needs.
        draw: Whether there are figures.
        replicates: Of the bootstrap.
    """

    name: str
    results: Sequence[Result]
    groups: Groups
    main: Groups
    glue_dir: Path | None
    draw: bool
    replicates: int

    def drawn(self, figure: Callable[[Groups, str], Figure | None]) -> list[Block]:
        """The figure, where there are figures and it has something to show."""
        made = figure(self.main, self.name) if self.draw else None
        return [] if made is None else [made]

    def policies(self) -> list[Block]:
        """A figure for each recipe, with every policy on its models."""
        found: list[Block] = []
        for label in ordered(label for label, _ in self.main):
            found += self.drawn(partial(figures.by_policy, label=label))
        return found


PARTS: dict[str, Callable[[Source], Sequence[Block]]] = {
    "table-1": lambda of: scores(of.main),
    "table-2": lambda of: ablation(of.groups),
    "variants": lambda of: variants(of.groups),
    "figure-2": lambda of: of.drawn(figures.posteriors),
    "figure-3": lambda of: of.drawn(figures.by_knob),
    "figure-4": lambda of: of.drawn(figures.by_speed_up),
    "equal-cost": lambda of: equal_cost(of.main),
    "costs": lambda of: costs(of.main),
    "flops": lambda of: of.drawn(figures.by_cost),
    "wall-clock": lambda of: of.drawn(figures.by_wall_clock),
    "policies": Source.policies,
    "clock": lambda of: [*clock_table(of.groups), *of.drawn(figures.by_clock)],
    "gains": lambda of: gains_table(of.main),
    "optimum": lambda of: optimum_table(of.main),
    "overthinking": lambda of: [*overthinking_table(of.main), *of.drawn(figures.overthinking)],
    "significance": lambda of: comparisons(of.main, of.glue_dir, of.replicates),
    "runs": lambda of: [Heading("Every run", 3), every_run(of.results)],
}
