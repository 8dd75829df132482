"""The sentence of a promise: what to do, what may differ, how often, and with what confidence.

Exits, cascades, the winner of a race, rerankers and certified thresholds all state their promise by
one `Promise`, so that it has one shape. Limits are rounded up and confidences down: a reader never
sees more than was certified.

    Take answers with a confidence above 0.93, and ask the reference for the others: other answers
    on at most 2% of texts like these, with 95% confidence (certified on 800 texts that chose
    nothing).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ponder._utils.rounding import rounded_down, rounded_up
from ponder.policies.base import ExitPolicy

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "Promise",
    "count",
    "exits_rule",
    "in_words",
    "percent",
    "threshold_text",
]

LEVEL = 0.02
"""The share of answers that may differ by default, in all commands and functions."""
CONFIDENCE = 0.95
"""The probability with which a promise holds, unless another is asked for."""


@dataclass(frozen=True)
class Promise:
    """A promise, in the parts of its sentence.

    Args:
        rule: What to do, as an imperative: ``"Take answers with …, and ask the reference for the
            others"``.
        change: What may differ: ``"other answers"``.
        level: Upper limit of the share of rows on which it does, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        rows: Number of rows that certified it.
        unit: Noun of a row: ``"text"``, ``"query"``.

    Example:
        >>> Promise("Stop every text at step 3", "other answers", 0.0101, 0.95, 800).limit
        'at most 1.01% other answers, with 95% confidence'
    """

    rule: str
    change: str
    level: float
    confidence: float
    rows: int
    unit: str = "text"

    @property
    def sentence(self) -> str:
        """The promise in words."""
        rows = count(self.rows, self.unit)
        return (
            f"{self.rule}: {self.change} on at most {percent(self.level)} of {_plural(self.unit)} "
            f"like these, with {rounded_down(100 * self.confidence)}% confidence (certified on "
            f"{rows} that chose nothing)."
        )

    @property
    def limit(self) -> str:
        """The limit alone: ``"at most 1% other answers, with 95% confidence"``."""
        confidence = rounded_down(100 * self.confidence)
        return f"at most {percent(self.level)} {self.change}, with {confidence}% confidence"


def percent(share: float, digits: int = 3) -> str:
    """Return an upper limit as a percentage that is not below it.

    Example:
        >>> percent(0.01), percent(0.01761)
        ('1%', '1.77%')
    """
    return f"{rounded_up(100 * share, digits)}%"


def count(number: int, noun: str) -> str:
    """Return a number with its noun in the singular or plural: ``"1 text"``, ``"2 queries"``."""
    return f"{number} {noun if number == 1 else _plural(noun)}"


def exits_rule(policy: ExitPolicy) -> str:
    """Return what an exit policy does, as the rule of a promise.

    Example:
        >>> exits_rule(policies.Confidence(0.9))
        'Stop at the first step with a confidence above 0.9, and run the others to the last step'
    """
    name = policy.to_dict()["name"]
    if name == "certified":
        return exits_rule(policy.parts()[0])
    if name == "last-step":
        return "Run every text to the last step"
    if name == "fixed-step":
        return f"Stop every text at {in_words(policy)}"
    return f"Stop at the first step with {in_words(policy)}, and run the others to the last step"


def in_words(policy: ExitPolicy) -> str:
    """Return a policy in words, its thresholds rounded to the side on which rows exit later.

    Example:
        >>> in_words(policies.Confidence(0.912345678).after(2))
        'a confidence above 0.912346, from step 2 on'
        >>> in_words(policies.Entropy(0.2) | policies.Patience(3))
        'an entropy below 0.2, or a patience at least 3'
    """
    return _words(policy.to_dict())


def _words(data: Mapping[str, Any]) -> str:
    """Return the words of a policy in plain JSON, in which every policy has a name."""
    kind = str(data["name"])
    if kind == "certified":
        return _words(data["policy"])
    if kind == "last-step":
        return "the last step"
    if kind == "fixed-step":
        return f"step {data['step']}"
    if kind == "from-step":
        return f"from step {data['step']} on"
    if kind == "stage-thresholds":
        return _of_stages(data)
    if kind in ("all", "any"):
        parts = [_words(part) for part in data["policies"]]
        return _joined(parts, data["policies"], either=kind == "any")
    return _of_threshold(data)


def _joined(words: list[str], parts: list[Mapping[str, Any]], *, either: bool) -> str:
    """Join the words of a composite policy; a bound on its steps comes last."""
    if not either:
        bounds = [part["name"] == "from-step" for part in parts]
        inner = [word for word, bound in zip(words, bounds, strict=True) if not bound]
        outer = [word for word, bound in zip(words, bounds, strict=True) if bound]
        return ", ".join([" and ".join(inner), *outer] if inner else outer)
    return ", or ".join(words)


def _of_stages(data: Mapping[str, Any]) -> str:
    """Return thresholds by stage; neighbours with the same one are named once."""
    kind = dict(data["policy"])
    numbered = list(enumerate(data["thresholds"], 1))
    if len(numbered) == 1:
        return _of_threshold({**kind, "threshold": data["thresholds"][0]})
    said = []
    for value, group in groupby(numbered, key=lambda pair: pair[1]):
        stages = [number for number, _ in group]
        span = f"stage {stages[0]}"
        if len(stages) > 1:
            span = f"stages {stages[0]} to {stages[-1]}"
        said.append(f"{_threshold(kind, value)} at {span}")
    return f"{_article(kind['name'])} {' and '.join(said)}"


def _of_threshold(data: Mapping[str, Any]) -> str:
    tunable = _tunable(data)
    if tunable is None:
        return f"the policy {data['name']}"
    return f"{_article(data['name'])} {_threshold(data, data[tunable.field])}"


def _threshold(data: Mapping[str, Any], value: float) -> str:
    """Return ``"above 0.9"``; the value is rounded to the side on which rows exit later."""
    tunable = _tunable(data)
    if tunable is None:
        return f"{value:.6g}"
    return (
        f"{tunable.leaves.replace('_', ' ')} {threshold_text(value, up=tunable.higher_exits_later)}"
    )


def threshold_text(value: float, *, up: bool = True) -> str:
    """Return a threshold with six digits; with twelve if six would make a share a whole one."""
    rounded = rounded_up if up else rounded_down
    short = rounded(value)
    return rounded(value, 12) if value < 1.0 <= float(short) else short


def _tunable(data: Mapping[str, Any]) -> Any:
    return ExitPolicy.from_dict(dict(data)).tunable


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name.replace('-', ' ')}"


def _plural(noun: str) -> str:
    return f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
