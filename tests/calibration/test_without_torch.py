"""Everything but `cost` runs where PyTorch and matplotlib are not installed."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import sys
sys.modules.update(torch=None, matplotlib=None, scipy=None, sklearn=None)  # importing them fails
import numpy as np
import ponder
from ponder import calibration as c, policies
from tests.calibration.records import record
seen = record(10_000, steps=2)
for like in (policies.Confidence, policies.Margin, policies.Entropy, policies.Energy, policies.Patience):
    assert ponder.control_risk(seen, like, level=0.4, costs=[1.0, 30.0]).certificate.rows == 10_000
assert c.control_risk(seen, policies.Margin, risk=c.Missed([1]), level=0.4).met
assert ponder.calibrate(seen, [policies.Confidence, policies.Margin], at_least=0.9).met
assert ponder.diagnose(seen, policies.Confidence, costs=[1.0, 30.0]).outcome
assert c.certify(record(500, seed=1), record(500, seed=2), level=0.2).met
print("done")
"""


def test_certificates_run_without_torch() -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False
    )
    assert run.stdout == "done\n", run.stderr


def test_the_face_loads_names_when_they_are_used() -> None:
    code = "import sys, ponder.calibration as c; print([m for m in sys.modules if m in ('numpy', 'torch')]); c.sweep"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        == "[]\n"
    )
