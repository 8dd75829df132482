"""The section on sweeps, on a small trajectory."""

from benchmarks.speed import sweeps
from benchmarks.speed.figures import Options
from benchmarks.speed.sweeps import FAMILIES, measure, recorded
from ponder.analysis.policy_grid import as_policy_grid


def test_every_family_has_its_two_figures(monkeypatch):
    monkeypatch.setattr(sweeps, "REPLAYED", 5)
    found = measure(Options(quick=True, pairs=1))
    assert len(found) == 2 * len(FAMILIES)
    assert all(told["value"] > 0 for told in found)
    assert {told["figure"] for told in found} == {"seconds of a sweep", "replays of all values ÷ sweep"}


def test_every_family_is_read_in_one_pass():
    trajectory = recorded(50)
    for family, _ in FAMILIES.values():
        assert as_policy_grid(family, [0.2, 0.4, 0.9], trajectory).places(trajectory) is not None
