"""Broken promises over many draws of the texts that choose and certify, and of some students.

The population is recorded: all texts that taught neither early heads nor the student, with the answers of student and
model, and of the model's steps. Each draw chooses the kind of policy and its thresholds anew, and its true risk is that
on the whole population. A student of a draw is taught on a draw of the texts that teach.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cascades.setting import Floats, Setting, Steps
from benchmarks.command_line import bar
from benchmarks.environment import environment
from benchmarks.files import write_json
from ponder.cascade import Cascade
from ponder.policies import Confidence

__all__ = ["run"]

LEVELS, ROWS, TAUGHT, CONFIDENCE = (0.02, 0.05), 1000, 800, 0.95


def run(setting: Setting, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Count, and write `<out>/redraws-<task>.json`."""
    setting.fit(LEVELS[0])
    teach, check = np.concatenate(setting.sides[:2]), setting.sides[2]
    texts = [*(setting.texts[n] for n in check), *setting.test]
    answers = setting.record([setting.texts[n] for n in teach])[:, -1].argmax(-1)
    outputs, draw = setting.record(texts), np.random.default_rng(setting.seed)

    def taught(rows: Any) -> Floats:
        student = setting.student([setting.texts[teach[n]] for n in rows], answers[rows])
        return setting.probabilities(student, texts)

    sure = taught(np.arange(len(teach)))
    whole = settings["draws"], settings["taught"]
    kinds = (("one student", whole[0], 1), ("one student, exits", whole[1], outputs.shape[1]))
    outcomes = [
        _count(kind, level, [sure] * draws, outputs[:, -steps:], draw)
        for level in LEVELS
        for kind, draws, steps in kinds
    ]
    with bar("students", whole[1]) as advance:
        students = []
        for _ in range(whole[1]):
            students.append(taught(draw.permutation(len(teach))[:TAUGHT]).astype(np.float32))
            advance()
    outcomes += [_count("a student a draw", level, students, outputs[:, -1:], draw) for level in LEVELS]
    facts = {"rows": ROWS, "taught_on": TAUGHT, "confidence": CONFIDENCE, "population": len(texts)}
    made = {"settings": {**settings, **facts}, "outcomes": outcomes, "environment": environment(torch.device("cpu"))}
    write_json(out / f"redraws-{setting.task.name.lower()}.json", {"task": setting.task.name, **made})
    return made


def _count(kind: str, level: float, students: list[Floats], outputs: Floats, draw: np.random.Generator) -> Any:
    """Certify on draws with replacement, and count those whose risk on the population is above the level."""
    names = [str(n) for n in range(outputs.shape[-1])]
    risks, shares, met = [], [], 0
    with bar(kind, len(students)) as advance:
        for sure in students:
            rows = draw.integers(len(outputs), size=ROWS)
            fresh = [str(n) for n in range(ROWS)]  # a text that is drawn twice counts twice
            policy = Confidence(0.9) if outputs.shape[1] > 1 else None

            def cascade(texts: list[str], rows: Any, sure: Floats = sure, policy: Any = policy) -> Cascade:
                stages = [
                    Steps(texts, np.log(np.maximum(sure[rows], 1e-12))[:, None]),
                    Steps(texts, outputs[rows], policy),
                ]
                return Cascade(stages, (1.0, 30.0), classes=names)

            drawn = cascade(fresh, rows)
            met += drawn.certify(fresh, level=level, confidence=CONFIDENCE, seed=int(draw.integers(2**31))).met
            everything = [str(n) for n in range(len(outputs))]
            population = cascade(everything, np.arange(len(outputs)))
            population.policy = drawn.policy
            record = population.record(everything)
            steps = record.exit_steps(drawn.policy)
            risks.append(float((~record.agreement()[np.arange(len(steps)), steps - 1]).mean()))
            shares.append(float((steps == 1).mean()))
            advance()
    broken = float(np.mean(np.array(risks) > level))
    facts = {"broken": broken, "mean_risk": float(np.mean(risks)), "student_answers": float(np.mean(shares))}
    return {"kind": kind, "level": level, "draws": len(students), "met": met / len(students), **facts}
