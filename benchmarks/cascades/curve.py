"""How many texts teach: exits and a student from 500 texts to all, and what stands in for texts that are not there.

Of n texts 60% teach the student and 40% choose and certify; exits split theirs as they do. All are asked about the same
test texts. What stands in is answered by the model, and teaches the student alone: it certifies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.cascades.setting import Floats, Setting, at_exits, certified
from benchmarks.environment import environment
from benchmarks.files import write_json
from ponder import split
from ponder.calibration.bounds import rows_needed
from ponder.integrations.transformers import fit_exits

__all__ = ["STAND_INS", "run"]

COUNTS, LEVEL, DROPPED = (500, 1000, 2000, 4000), 0.02, 0.2


def run(setting: Setting, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measure the curve, and write `<out>/curve-<task>-<backbone>-s<seed>.json`."""
    points, curve = [], _Curve(setting)
    for count in (*(count for count in COUNTS if count < 0.9 * len(setting.texts)), len(setting.texts)):
        points.append({"texts": count, "way": "exits", "stand_in": "none", **curve.exits(count)})
        for name in STAND_INS:
            points.append({"texts": count, "way": "student", "stand_in": name, **curve.student(count, name)})
    facts = {"level": LEVEL, "dropped": DROPPED, "learned": len(setting.learned)}
    made = {"settings": {**settings, **facts}, "rows": points, "environment": environment(torch.device("cpu"))}
    name = f"curve-{setting.task.name.lower()}-{Path(settings['backbone']).name}-s{setting.seed}.json"
    write_json(out / name, {"task": setting.task.name, **made})
    return made


class _Curve:
    def __init__(self, setting: Setting) -> None:
        self.setting, self.known = setting, dict[str, Floats]()
        self.full = self._answers(setting.test)

    def exits(self, count: int) -> dict[str, Any]:
        """Give the model exits by the first texts."""
        setting, model = self.setting, self.setting.model
        report = fit_exits(model, setting.texts[:count], disagreement=LEVEL, seed=setting.seed)
        policy, tested = model.policy, setting.record(setting.test)
        steps, answers = at_exits(tested, policy)
        other = float((answers != self.full.argmax(-1)).mean())
        return {"met": report.met, "saved": 1.0 - float(steps.mean()) / tested.shape[1], "other": other}

    def student(self, count: int, stand_in: str) -> dict[str, Any]:
        """Teach a student by a part of the first texts, and by what stands in for more."""
        setting, texts = self.setting, self.setting.texts[:count]
        teach, rest = ([texts[n] for n in side] for side in split(texts, (0.6, 0.4), setting.seed))
        more = STAND_INS[stand_in](teach, setting.learned, np.random.default_rng(setting.seed))
        student = setting.student([*teach, *more], self._answers([*teach, *more]).argmax(-1))
        if 2 / 3 * len(rest) < rows_needed(LEVEL, 0.95):
            return {"met": False, "saved": 0.0, "other": 0.0}
        outputs = np.concatenate([setting.logs(student, rest), self._answers(rest)[:, None]], axis=1)
        report = certified(outputs, LEVEL, seed=setting.seed)
        tested = np.concatenate([setting.logs(student, setting.test), self.full[:, None]], axis=1)
        steps, answers = at_exits(tested, report.policy)
        other = float((answers != self.full.argmax(-1)).mean())
        return {"met": report.met, "saved": float((steps == 1).mean()), "other": other}

    def _answers(self, texts: Sequence[str]) -> Floats:
        """Outputs of the model at full depth; a text is asked about once."""
        unknown = [text for text in dict.fromkeys(texts) if text not in self.known]
        if unknown:
            answers = self.setting.plain.predict(unknown).outputs.double().numpy()
            self.known |= dict(zip(unknown, answers, strict=True))
        return np.array([self.known[text] for text in texts])


def _dropped(teach: Sequence[str], _: Any, draw: np.random.Generator) -> list[str]:
    """Every text once more, each word gone with a probability of a fifth."""
    made = [[word for word in text.split() if draw.uniform() > DROPPED] for text in teach]
    return [" ".join(words) for words in made if words]


def _crossed(teach: Sequence[str], _: Any, draw: np.random.Generator) -> list[str]:
    """The first half of each text and the second half of another."""
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, teach)]
    others = draw.permutation(len(halves))
    return [" ".join([*halves[one][0], *halves[other][1]]) for one, other in enumerate(others)]


STAND_INS: dict[str, Callable[[Sequence[str], Sequence[str], np.random.Generator], list[str]]] = {
    "none": lambda teach, learned, draw: [],
    "words dropped": _dropped,
    "halves crossed": _crossed,
    "the model's training texts": lambda teach, learned, draw: list(learned),
    "all three": lambda teach, learned, draw: [
        *_dropped(teach, learned, draw),
        *_crossed(teach, learned, draw),
        *learned,
    ],
}
"""By name, the texts that are added to those that teach: these, the model's training texts, and numbers at random."""
