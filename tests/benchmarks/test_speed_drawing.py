"""The pictures of the speed benchmark."""

import re

from benchmarks.speed.drawing import MISSED, REACHED, draw
from benchmarks.speed.figures import figure, not_measured
from ponder.cost import WallClock


def test_every_figure_and_its_goal_are_drawn(tmp_path):
    told = [
        figure("exiting", "batch 1", "wall-clock ÷ steps", WallClock(0.9, 0.8, 1.0), at_least=0.95),
        figure("exiting", "batch 32", "wall-clock ÷ steps", WallClock(1.0, 0.99, 1.02), at_least=0.98),
        not_measured("device", "accelerator", "none here"),
    ]
    assert draw(told, "Section 2", tmp_path / "exiting.svg")
    picture = (tmp_path / "exiting.svg").read_text().lower()
    assert REACHED.lower() in picture
    assert MISSED.lower() in picture
    assert len(re.findall(r"<!-- batch \d+: wall-clock", picture)) == 2
    assert draw(told, "Section 2", tmp_path / "again.svg")


def test_nothing_measured_is_no_picture(tmp_path):
    assert not draw([not_measured("device", "accelerator", "none here")], "Section 8", tmp_path / "device.svg")
    assert not list(tmp_path.iterdir())
