"""The sentence of a promise: what to do, what may differ, how often, and with what confidence.

Exits, cascades, the winner of a race, rerankers, loops and certified thresholds all state their
promise by one `Promise`, in functions and in commands, so that it has one form. Limits are rounded
up and confidences down: the sentence never states more than was certified.

    Take answers with a confidence above 0.93, and ask the reference for the others: other answers
    on at most 2% of texts like these, with 95% confidence (certified on 800 texts that chose
    nothing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ponder._utils.rounding import rounded_down, rounded_up
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, Threshold, registry

__all__ = [
    "CONFIDENCE",
    "LEVEL",
    "Promise",
    "count",
    "exits_rule",
    "in_words",
    "percent",
    "stages_rule",
    "threshold_text",
]

LEVEL = 0.02
"""Default share of answers that may differ; the same in all functions and commands."""
CONFIDENCE = 0.95
"""Default probability with which a promise holds."""


@dataclass(frozen=True)
class Promise:
    """A promise, in the parts of its sentence.

    Args:
        rule: What to do, as an imperative: ``"Take answers with …, and ask the reference for the
            others"``.
        change: What may differ: ``"other answers"``.
        level: Upper limit of the share of rows that differ, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1); None if it is about the
            mean over draws of the rows that certify (conformal risk control).
        rows: Number of rows that certified it.
        unit: Noun of a row: ``"text"``, ``"query"``.
        given: Number of all rows, of which `rows` count; None if all count.
        is_mean: Whether the level limits the mean of a loss, and not a share of rows.

    Example:
        >>> Promise("Stop every text at step 3", "other answers", 0.0101, 0.95, 800).limit
        'at most 1.01% other answers, with 95% confidence'
    """

    rule: str
    change: str
    level: float
    confidence: float | None
    rows: int
    unit: str = "text"
    given: int | None = None
    is_mean: bool = False

    @property
    def sentence(self) -> str:
        """The promise in words."""
        certified = f"{count(self.rows, self.unit)} that chose nothing"
        if self.given not in (None, self.rows):
            certified = f"the {self.rows} of {self.given} rows that count, which chose nothing"
        return f"{self.rule}: {self.claim} (certified on {certified})."

    @property
    def claim(self) -> str:
        """What is promised, without what to do and without what certified it."""
        rows = f"{_plural(self.unit)} like these"
        level = f"at most {percent(self.level)}"
        if self.is_mean:
            return f"a mean {self.change} of {level} on {rows}, {self._certainty}"
        return f"{self.change} on {level} of {rows}, {self._certainty}"

    @property
    def limit(self) -> str:
        """The limit alone: ``"at most 1% other answers, with 95% confidence"``."""
        return f"at most {percent(self.level)} {self.change}, {self._certainty}"

    @property
    def _certainty(self) -> str:
        if self.confidence is None:
            return "in the mean over draws of the rows that certify"
        return f"with {rounded_down(100 * self.confidence)}% confidence"


def percent(share: float, digits: int = 3) -> str:
    """Return an upper limit as a percentage that is not below it.

    Example:
        >>> percent(0.01), percent(0.01761)
        ('1%', '1.77%')
    """
    return f"{rounded_up(100 * share, digits)}%"


def count(number: int, noun: str) -> str:
    """Return a number with its noun: ``"1 text"``, ``"2 texts"``, ``"2 queries"``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {_plural(noun)}"


def exits_rule(policy: ExitPolicy, unit: str = "text") -> str:
    """Return an exit policy as the rule of a promise.

    Args:
        policy: The policy.
        unit: Noun of a row.

    Example:
        >>> exits_rule(policies.Confidence(0.9))
        'Stop at the first step with a confidence above 0.9, and run the others to the last step'
    """
    data = _plain(policy)
    name = data["name"]
    if name == "certified":
        return exits_rule(policy.parts()[0], unit)
    if name == "last-step":
        return f"Run every {unit} to the last step"
    if name == "fixed-step":
        return f"Stop every {unit} at {in_words(policy)}"
    if name == "top-k":
        return (
            f"Drop candidates that lie more than {rounded_up(data['margin'], 6)} deviations below "
            f"the best {data['k']}, and score the others to the last step"
        )
    return f"Stop at the first step with {in_words(policy)}, and run the others to the last step"


def stages_rule(
    policy: ExitPolicy, num_stages: int, first: str = "first stage", last: str = "last stage"
) -> str:
    """Return the thresholds of a cascade as the rule of a promise.

    Args:
        policy: The policy of its stages.
        num_stages: Number of steps of its record: the stages, those of a last stage with exits too.
        first: What the first of two stages is called.
        last: What the last stage is called.

    Example:
        >>> stages_rule(policies.Confidence(0.9), 2, "student", "model")
        "Take the student's answers with a confidence above 0.9, and ask the model for the others"
    """
    words = in_words(policy)
    if num_stages == 2:
        return f"Take the {first}'s answers with {words}, and ask the {last} for the others"
    return f"Take the first answer with {words}, and run the others to the last stage"


def in_words(policy: ExitPolicy) -> str:
    """Return a policy in words, with thresholds rounded to the side on which rows exit later.

    Example:
        >>> in_words(policies.Confidence(0.912345678).after(2))
        'a confidence above 0.912346, from step 2 on'
        >>> in_words(policies.Entropy(0.2) | policies.Patience(3))
        'an entropy below 0.2, or a patience at least 3'
    """
    return _words(_plain(policy))


def _plain(policy: ExitPolicy) -> dict[str, Any]:
    """Return a policy in plain JSON; of one whose class was not registered, the name alone."""
    try:
        return policy.to_dict()
    except ArgumentError:
        return {"name": type(policy).__name__}


def _words(data: Mapping[str, Any]) -> str:
    """Return the words of a policy in plain JSON, as `to_dict` gives it.

    The name there says the kind, also of policies of rooms above.
    """
    kind = str(data["name"])
    if kind == "certified":
        return _words(data["policy"])
    if kind == "last-step":
        return "the last step"
    if kind == "fixed-step":
        return f"step {data['step']}"
    if kind == "from-step":
        return f"from step {data['step']} on"
    if kind == "top-k":
        return (
            f"candidates more than {rounded_up(data['margin'], 6)} deviations below the best "
            f"{data['k']} leave"
        )
    if kind == "stage-thresholds":
        return _stages_in_words(data)
    if kind == "any":
        return ", or ".join(_words(part) for part in data["policies"])
    if kind == "all":
        return _all_in_words(data["policies"])
    return _threshold_in_words(data)


def _all_in_words(parts: Sequence[Mapping[str, Any]]) -> str:
    """Join the words of policies that must all agree; bounds on the step come last."""
    conditions = [_words(part) for part in parts if part["name"] != "from-step"]
    bounds = [_words(part) for part in parts if part["name"] == "from-step"]
    if not conditions:
        return ", ".join(bounds)
    return ", ".join([" and ".join(conditions), *bounds])


def _stages_in_words(data: Mapping[str, Any]) -> str:
    """Return thresholds by stage; neighbouring stages with the same threshold are joined."""
    kind = dict(data["policy"])
    numbered = list(enumerate(data["thresholds"], 1))
    if len(numbered) == 1:
        return _threshold_in_words({**kind, "threshold": data["thresholds"][0]})
    clauses = []
    for value, group in groupby(numbered, key=lambda pair: pair[1]):
        stages = [number for number, _ in group]
        span = f"stage {stages[0]}"
        if len(stages) > 1:
            span = f"stages {stages[0]} to {stages[-1]}"
        clauses.append(f"{_comparison(kind, value)} at {span}")
    return f"{_with_article(kind['name'])} {' and '.join(clauses)}"


def _threshold_in_words(data: Mapping[str, Any]) -> str:
    tunable = _tunable(data)
    if tunable is None:
        return f"the policy {data['name']}"
    return f"{_with_article(data['name'])} {_comparison(data, data[tunable.field])}"


def _comparison(data: Mapping[str, Any], value: float) -> str:
    """Return ``"above 0.9"``; the value is rounded to the side on which rows exit later."""
    tunable = _tunable(data)
    if tunable is None:
        return f"{value:.6g}"
    relation = tunable.leaves.replace("_", " ")
    return f"{relation} {threshold_text(value, up=tunable.higher_exits_later)}"


def threshold_text(value: float, *, up: bool = True) -> str:
    """Return a threshold with six digits; with twelve if six would round a share up to 1."""
    rounded = rounded_up if up else rounded_down
    short = rounded(value)
    if value < 1.0 <= float(short):
        return rounded(value, 12)
    return short


def _tunable(data: Mapping[str, Any]) -> Threshold | None:
    if data["name"] not in registry.names():
        return None
    return ExitPolicy.from_dict(dict(data)).tunable


def _with_article(name: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name.replace('-', ' ')}"


def _plural(noun: str) -> str:
    if noun.endswith("y"):
        return f"{noun[:-1]}ies"
    return f"{noun}s"
