"""The report: tables in Markdown and figures, from the JSON results alone.

A page of the documentation calls `headline(results)`, `page(results, parts, backbone)` or
`repeats(one, other)` when it is built; `summary(results)` is the contents of
`docs/results-summary.json`.
"""

from benchmarks.glue.report.pages import PARTS, page, write
from benchmarks.glue.report.summary import COMPARED, fair_gaps, headline, held_out, summary
from benchmarks.glue.report.tables import repeats, run_rows
from benchmarks.glue.report.versus import rule, versus

__all__ = [
    "COMPARED",
    "PARTS",
    "fair_gaps",
    "headline",
    "held_out",
    "page",
    "repeats",
    "rule",
    "run_rows",
    "summary",
    "versus",
    "write",
]
