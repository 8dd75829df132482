"""Policies in words, as the rule of a promise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from ponder._utils.rounding import rounded_up, threshold_text
from ponder.errors import ArgumentError
from ponder.policies.base import ExitPolicy, Threshold, registry

__all__ = ["exits_rule", "in_words", "stages_rule"]


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


def _tunable(data: Mapping[str, Any]) -> Threshold | None:
    if data["name"] not in registry.names():
        return None
    return ExitPolicy.from_dict(dict(data)).tunable


def _with_article(name: str) -> str:
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name.replace('-', ' ')}"
