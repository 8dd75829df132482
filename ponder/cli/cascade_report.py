"""The results of certifying a cascade, as facts and as rows of the table that is printed."""

from __future__ import annotations

from ponder.calibration.cascades import CascadeReport

__all__ = ["facts_of", "rows_of"]

_FACTS = ("met", "observed", "speed_up", "chosen_on", "certified_on", "shares", "seconds")


def facts_of(report: CascadeReport) -> dict[str, object]:
    """Return the results of certifying a cascade, as plain values."""
    return {name: getattr(report, name) for name in _FACTS}


def rows_of(report: CascadeReport) -> list[tuple[str, str]]:
    """Return the results of certifying a cascade, as rows of the table."""
    observed = f"{100 * report.observed:.2f}% of {report.certified_on} texts that chose nothing"
    return [
        ("policy", report.policy.words()),
        ("student answers", f"{100 * report.shares[0]:.1f}%"),
        ("other answers", observed),
        ("seconds", f"×{report.speed_up:.2f}, as measured while certifying"),
    ]
