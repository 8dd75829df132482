"""The report: tables and figures from the JSON results alone, as Markdown and as one HTML page."""

from benchmarks.glue.report.build import PARTS, REPLICATES, report, write
from benchmarks.glue.report.tables import run_cells

__all__ = ["PARTS", "REPLICATES", "report", "run_cells", "write"]
