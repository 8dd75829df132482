"""Broken promises over many draws of the texts that choose and certify, and of some students.

The population is recorded: all texts that trained neither early heads nor the student, with the
answers of the student and of every step of the model. Each draw chooses the kind of policy and its
thresholds anew; its true risk is that on the whole population. If the student is drawn too, it is
trained on a draw of the training texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cascades.setting import Floats, Setting, certified, record_of
from benchmarks.environment import environment
from benchmarks.files import write_json

__all__ = ["run"]

LEVELS = (0.02, 0.05)
ROWS = 1000
TAUGHT = 800
CONFIDENCE = 0.95
DRAWS = 1000
FEWER = 120
"""Draws of thresholds alone, and of those that also choose exits or train a student."""


def run(setting: Setting, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Count, and write `<out>/redraws-<task>.json`."""
    setting.fit()
    teach = np.concatenate(setting.sides[:2])
    check = setting.sides[2]
    texts = [*(setting.texts[n] for n in check), *setting.test]
    answers = setting.record([setting.texts[n] for n in teach])[:, -1].argmax(-1)
    outputs = setting.record(texts)
    draw = np.random.default_rng(setting.seed)

    def taught(rows: Any) -> Floats:
        student = setting.student([setting.texts[teach[n]] for n in rows], answers[rows])
        return setting.logs(student, texts)

    sure = taught(np.arange(len(teach)))
    kinds = (("thresholds", 1, DRAWS), ("thresholds, and those of exits", outputs.shape[1], FEWER))
    outcomes = [
        _count(kind, level, [sure] * draws, outputs[:, -steps:], draw)
        for level in LEVELS
        for kind, steps, draws in kinds
    ]
    students = [taught(draw.permutation(len(teach))[:TAUGHT]) for _ in range(FEWER)]
    outcomes += [
        _count("thresholds, and the student", level, students, outputs[:, -1:], draw)
        for level in LEVELS
    ]
    facts = {"rows": ROWS, "taught_on": TAUGHT, "confidence": CONFIDENCE, "population": len(texts)}
    made = {
        "settings": {**settings, **facts},
        "rows": outcomes,
        "environment": environment(torch.device("cpu")),
    }
    write_json(
        out / f"redraws-{setting.task.name.lower()}.json", {"task": setting.task.name, **made}
    )
    return made


def _count(
    kind: str, level: float, students: list[Floats], outputs: Floats, draw: np.random.Generator
) -> Any:
    """Certify on draws with replacement, and count those whose true risk is above the level."""
    risks = []
    shares = []
    met = 0
    for sure in students:
        whole = record_of(np.concatenate([sure, outputs], axis=1))
        rows = draw.integers(len(outputs), size=ROWS)  # a text that is drawn twice counts twice
        report = certified(whole.outputs[rows], level, seed=int(draw.integers(2**31)))
        steps = whole.exit_steps(report.policy)
        risks.append(float((~whole.agreement()[np.arange(len(steps)), steps - 1]).mean()))
        shares.append(float((steps == 1).mean()))
        met += report.met
    broken = float(np.mean(np.array(risks) > level))
    facts = {
        "broken": broken,
        "mean_risk": float(np.mean(risks)),
        "student_answers": float(np.mean(shares)),
    }
    return {
        "kind": kind,
        "level": level,
        "draws": len(students),
        "met": met / len(students),
        **facts,
    }
