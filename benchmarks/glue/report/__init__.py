"""The report: tables and figures from the JSON results alone, as Markdown and as one HTML page."""

from benchmarks.glue.report.build import REPLICATES, Report, report
from benchmarks.glue.report.runs import run_line, run_table

__all__ = ["REPLICATES", "Report", "report", "run_line", "run_table"]
