"""Savings by the number of unlabelled texts, for exits and a student, with additional texts too.

Of n texts 60% train the student and 40% choose and certify; exits split theirs as `fit_exits` does.
All are evaluated on the same test texts. Additional texts (augmented ones, or the model's own
training texts) are labelled by the model and train only the student: they do not certify.
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
from ponder.integrations.transformers import fit_exits
from ponder.statistics.bounds import rows_needed

__all__ = ["run"]

COUNTS = (500, 1000, 2000, 4000)
LEVEL = 0.02
DROPPED = 0.2
_LEARNED = "the model's training texts"


def run(setting: Setting, settings: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """Measure the curve, and write `<out>/curve-<task>-<backbone>-s<seed>.json`."""
    rows = []
    known = dict[str, Floats]()
    for count in (
        *(count for count in COUNTS if count < 0.9 * len(setting.texts)),
        len(setting.texts),
    ):
        rows.append({"texts": count, "way": "exits", "stand_in": "none", **_exits(setting, count)})
        for name in ("none", *_MADE, _LEARNED, "all three"):
            rows.append(
                {
                    "texts": count,
                    "way": "student",
                    "stand_in": name,
                    **_student(setting, count, name, known),
                }
            )
    facts = {"level": LEVEL, "dropped": DROPPED, "learned": len(setting.learned)}
    made = {
        "settings": {**settings, **facts},
        "rows": rows,
        "environment": environment(torch.device("cpu")),
    }
    name = (
        f"curve-{setting.task.name.lower()}-{Path(settings['backbone']).name}-s{setting.seed}.json"
    )
    write_json(out / name, {"task": setting.task.name, **made})
    return made


def _exits(setting: Setting, count: int) -> dict[str, Any]:
    """Fit exits on the first texts, and return the share of steps that they save."""
    report = fit_exits(setting.model, setting.texts[:count], disagreement=LEVEL, seed=setting.seed)
    policy = setting.model.policy
    tested = setting.record(setting.test)
    steps, answers = at_exits(tested, policy)
    other = float((answers != tested[:, -1].argmax(-1)).mean())
    return {"met": report.met, "saved": 1.0 - float(steps.mean()) / tested.shape[1], "other": other}


def _student(
    setting: Setting, count: int, stand_in: str, known: dict[str, Floats]
) -> dict[str, Any]:
    """Train a student on the first texts and on additional ones; it saves the texts it answers."""

    def answers(texts: Sequence[str]) -> Floats:
        unknown = [text for text in dict.fromkeys(texts) if text not in known]
        if unknown:
            known.update(
                zip(unknown, setting.plain.predict(unknown).outputs.double().numpy(), strict=True)
            )
        return np.array([known[text] for text in texts])

    def both(texts: Sequence[str]) -> Floats:
        return np.concatenate([setting.logs(student, texts), answers(texts)[:, None]], axis=1)

    texts = setting.texts[:count]
    draw = np.random.default_rng(setting.seed)
    taught, rest = ([texts[n] for n in side] for side in split(texts, (0.6, 0.4), setting.seed))
    more = [
        text
        for name, make in _MADE.items()
        if stand_in in (name, "all three")
        for text in make(taught, draw)
    ]
    more += setting.learned if stand_in in (_LEARNED, "all three") else []
    if 2 / 3 * len(rest) < rows_needed(LEVEL, 0.95):
        return {"met": False, "saved": 0.0, "other": 0.0}
    student = setting.student([*taught, *more], answers([*taught, *more]).argmax(-1))
    report = certified(both(rest), LEVEL, seed=setting.seed)
    tested = both(setting.test)
    steps, found = at_exits(tested, report.policy)
    other = float((found != tested[:, -1].argmax(-1)).mean())
    return {"met": report.met, "saved": float((steps == 1).mean()), "other": other}


def _dropped(texts: Sequence[str], draw: np.random.Generator) -> list[str]:
    """Return a copy of every text, without each word with probability `DROPPED`."""
    made = [[word for word in text.split() if draw.uniform() > DROPPED] for text in texts]
    return [" ".join(words) for words in made if words]


def _crossed(texts: Sequence[str], draw: np.random.Generator) -> list[str]:
    """Return texts of the first half of each text and the second half of another."""
    halves = [
        (words[: len(words) // 2], words[len(words) // 2 :]) for words in map(str.split, texts)
    ]
    others = draw.permutation(len(halves))
    return [" ".join([*halves[one][0], *halves[other][1]]) for one, other in enumerate(others)]


_MADE: dict[str, Callable[[Sequence[str], np.random.Generator], list[str]]] = {
    "words dropped": _dropped,
    "halves crossed": _crossed,
}
