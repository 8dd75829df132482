"""Exits, a cascade, and a cascade with exits, also in int8, under the same promises."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from benchmarks.cascades.setting import Floats, Setting, at_exits, certified
from benchmarks.environment import environment
from benchmarks.files import write_json
from ponder.calibration import certify
from ponder.calibration.records import Record
from ponder.calibration.risks import OtherAnswers
from ponder.cascade import Cascade, Student
from ponder.deploy.export import OnnxModel, onnx, quantized
from ponder.policies import Confidence, LastStep

__all__ = ["LEVELS", "run"]

LEVELS = (0.01, 0.02, 0.05)
_COSTS = {"": 30.0, "int8 ": 10.0}
"""Cost of the model in multiples of the student's, by which thresholds are chosen."""
_ROUNDS = 3
_TIMED = 1024
_ALONE = 64
_MOVED = 0.005
"""Largest share of the choosing texts whose answer may change if all products are in int8."""


def run(setting: Setting, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measure a setting, and write `<out>/<task>-<backbone>-s<seed>.json`."""
    setting.fit()
    outputs = setting.record(setting.texts)
    tested = setting.record(setting.test)
    student = _student(setting, outputs)
    race = _Race(setting, student, outputs, tested)
    race.add("", outputs, tested, setting.model)
    with TemporaryDirectory() as scratch:
        small, products = _int8(setting, outputs, Path(scratch))
        race.add(
            "int8 ", small.record(setting.texts).outputs, small.record(setting.test).outputs, small
        )
        setting.model.policy = small.policy = LastStep()
        race.time(min(_TIMED, int(setting.inside.sum())))
    full = tested[:, -1].argmax(-1)
    sides = [len(side) for side in setting.sides]
    texts = {"learned": len(setting.learned), "teach": sides[0] + sides[1], "certify": sides[2]}
    result = {
        "task": setting.task.name,
        **settings,
        "texts": {**texts, "test": len(setting.test)},
        "int8_products": products,
        "model": {**setting.scores(full, full), **race.seconds["model"]},
        "student": {
            **setting.scores(race.sure_test[:, 0].argmax(-1), full),
            **race.seconds["student"],
        },
        "int8 model": {**setting.scores(race.int8_answers, full), **race.seconds["int8 model"]},
        "promises": {f"{level:g}": race.level(level) for level in LEVELS},
        "environment": environment(torch.device("cpu")),
    }
    name = f"{setting.task.name.lower()}-{Path(settings['backbone']).name}-s{setting.seed}.json"
    write_json(out / name, result)
    return result


def _student(setting: Setting, outputs: Floats) -> Student:
    """Train a student on texts that do not certify, and on the training texts of the model."""
    teach = np.concatenate(setting.sides[:2])
    learned = setting.plain.predict(setting.learned).outputs.numpy().argmax(-1)
    answers = np.concatenate([outputs[teach, -1].argmax(-1), learned])
    return setting.student([*(setting.texts[n] for n in teach), *setting.learned], answers)


def _int8(setting: Setting, outputs: Floats, scratch: Path) -> tuple[OnnxModel, str]:
    """Export in int8: all products if this changes few answers, else all but the narrowing ones."""
    # The export needs a policy with exits; thresholds are given with every call.
    setting.model.policy = Confidence(0.9)
    full, (teach, choose, _) = onnx(setting.model, scratch / "fp32"), setting.sides
    options: Any = {"calibration": [setting.texts[n] for n in teach[:256]]}
    small = OnnxModel(quantized(full, scratch / "all", "all", **options), threads=1)
    moved = small.record([setting.texts[n] for n in choose]).outputs[:, -1].argmax(-1) != outputs[
        choose, -1
    ].argmax(-1)
    if moved.mean() <= _MOVED:
        return small, "all"
    return OnnxModel(
        quantized(full, scratch / "some", True, **options), threads=1
    ), "but for those that narrow"


class _Race:
    """The ways to answer under each promise: their results on the test texts, and their functions."""

    def __init__(self, setting: Setting, student: Student, outputs: Floats, tested: Floats) -> None:
        self.setting = setting
        self.student = student
        self.full = outputs[:, -1]
        self.full_test = tested[:, -1]
        self.sure = setting.logs(student, [setting.texts[n] for n in setting.sides[2]])
        self.sure_test = setting.logs(student, setting.test)
        self.found: dict[tuple[float, str], dict[str, Any]] = {}
        self.ways: dict[Any, Callable[[Sequence[str]], object]] = {
            "model": setting.plain.predict,
            "student": student.predict_proba,
        }
        self.seconds: dict[Any, dict[str, Any]] = {}

    def add(self, kind: str, outputs: Floats, tested: Floats, model: Any) -> None:
        """Choose, certify and evaluate exits, a cascade, and a cascade with exits, on records."""
        if kind:
            self.int8_answers = tested[:, -1].argmax(-1)
            self.ways["int8 model"] = lambda texts: model.predict(texts, policy=LastStep())
        for level in LEVELS:
            self._exits(kind, level, outputs, tested, model)
            for name, steps in (("cascade", slice(-1, None)), ("cascade with exits", slice(None))):
                self._cascade(kind, name, level, outputs[:, steps], tested[:, steps], model)

    def _exits(self, kind: str, level: float, outputs: Floats, tested: Floats, model: Any) -> None:
        _, choose, check = self.setting.sides
        labels = self.full.argmax(-1)
        choosing, certifying = (
            Record(outputs[side], None, side, labels=labels[side]) for side in (choose, check)
        )
        found = certify(
            choosing, certifying, risk=OtherAnswers() if kind else "disagreement", level=level
        )
        steps, answers = at_exits(tested, found.policy)
        facts = {
            "met": found.met,
            "observed": found.observed,
            "mean_exit_step": float(steps[self.setting.inside].mean()),
        }
        self._note(kind + "exits", level, answers, facts)
        self.ways[level, kind + "exits"] = lambda texts: model.predict(texts, policy=found.policy)

    def _cascade(
        self, kind: str, name: str, level: float, outputs: Floats, tested: Floats, model: Any
    ) -> None:
        """Certify and evaluate a cascade; in int8 it is compared with the answers in float32."""
        check = self.setting.sides[2]
        reference = self.full[check].argmax(-1) if kind else None
        options: dict[str, Any] = {
            "cost": _COSTS[kind],
            "reference": reference,
            "seed": self.setting.seed,
        }
        report = certified(np.concatenate([self.sure, outputs[check]], axis=1), level, **options)
        policy = report.policy.policy
        steps, answers = at_exits(np.concatenate([self.sure_test, tested], axis=1), policy)
        facts = {
            "met": report.met,
            "observed": report.observed,
            "student_answers": float((steps[self.setting.inside] == 1).mean()),
        }
        if name == "cascade with exits":
            facts["steps_of_the_model"] = float((steps - 1)[self.setting.inside].mean())
        self._note(kind + name, level, answers, facts)
        last = self.setting.plain if name == "cascade" and not kind else model
        real = Cascade(
            [self.student, last], (1.0, _COSTS[kind]), policy=policy, classes=self.setting.names
        )
        self.ways[level, kind + name] = real.predict

    def _note(self, name: str, level: float, answers: Any, facts: dict[str, Any]) -> None:
        self.found[level, name] = {
            **facts,
            **self.setting.scores(answers, self.full_test.argmax(-1)),
        }

    def level(self, level: float) -> dict[str, Any]:
        """Return all ways under a promise, and a blind mix with as many texts for the student."""
        made = {
            name: {**found, **self.seconds[at, name]}
            for (at, name), found in self.found.items()
            if at == level
        }
        full = self.full_test.argmax(-1)
        share = made["cascade"]["student_answers"]
        model, alone = (
            self.setting.scores(each, full) for each in (full, self.sure_test[:, 0].argmax(-1))
        )
        made["blind mix"] = {key: share * alone[key] + (1 - share) * model[key] for key in model}
        return made

    def time(self, many: int) -> None:
        """Time all ways in turn: processor seconds a text, in batches of 32 and one by one."""
        shuffled = np.random.default_rng(self.setting.seed).permutation(
            np.flatnonzero(self.setting.inside)
        )
        texts = [self.setting.test[n] for n in shuffled[:many]]
        took: dict[Any, list[list[float]]] = {name: [[], []] for name in self.ways}
        for way in self.ways.values():
            way(texts[:32])
        for _ in range(_ROUNDS):
            for name, way in self.ways.items():
                start = time.process_time()
                way(texts)
                middle = time.process_time()
                for text in texts[:_ALONE]:
                    way([text])
                took[name][0].append((middle - start) / many)
                took[name][1].append((time.process_time() - middle) / min(_ALONE, many))
        plain = np.array(took["model"])
        for name, seconds in took.items():
            ratios = plain / np.array(seconds)
            self.seconds[name] = {
                key: {
                    "milliseconds": 1e3 * float(np.median(own)),
                    "times": np.quantile(ratio, (0, 0.5, 1)).tolist(),
                }
                for key, own, ratio in zip(("batches", "alone"), seconds, ratios, strict=True)
            }
