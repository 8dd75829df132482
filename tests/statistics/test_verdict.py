"""Verdicts on promises, and their words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ponder import policies
from ponder._utils.rounding import threshold_text
from ponder.calibration.cascades import certify_cascade
from ponder.calibration.control import control_risk
from ponder.calibration.records import Record
from ponder.statistics.answers import certify_answers
from ponder.statistics.bounds import upper_bound
from ponder.statistics.certificate import Certificate
from ponder.statistics.verdict import judge, judge_losses, rows_that_would_do

CASES = [
    (0, 299, 0.01, "kept"),
    (0, 298, 0.01, "not refuted"),
    (3, 300, 0.01, "not refuted"),
    (3, 440, 0.01, "not refuted"),  # at most 1.76%, which is not within 1%
    (3, 800, 0.01, "kept"),
    (4, 300, 0.01, "not refuted"),
    (7, 300, 0.01, "broken"),
    (1, 1, 0.01, "broken"),
    (2, 4, 0.3, "not refuted"),
]


@pytest.mark.parametrize(("differ", "rows", "level", "name"), CASES)
def test_a_verdict_is_the_exact_binomial_test(
    differ: int, rows: int, level: float, name: str
) -> None:
    def tail(first: int, last: int, p: float) -> float:
        return sum(
            math.comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(first, last + 1)
        )

    verdict = judge(differ, rows, level, 0.95)
    assert verdict.name == name
    assert (tail(0, differ, level) <= 0.05) == (name == "kept")
    assert (tail(differ, rows, level) <= 0.05 and differ > 0) == (name == "broken")
    assert verdict.code == {"kept": 0, "broken": 1, "not refuted": 3}[name]
    assert ("1 fresh text " in verdict.sentence) == (rows == 1)


@pytest.mark.parametrize("share", [0.0, 0.004, 0.0068, 0.009])
def test_the_rows_that_would_do_are_the_fewest(share: float) -> None:
    enough = rows_that_would_do(share, 0.01, 0.95)
    assert enough is not None
    limits = [upper_bound(math.ceil(share * n), n, 0.95) for n in (enough - 1, enough)]
    assert limits[1] <= 0.01 < limits[0]


def test_no_number_of_rows_shows_a_promise_kept_that_is_not() -> None:
    assert rows_that_would_do(0.01, 0.01, 0.95) is None
    assert "pass more" in judge(4, 300, 0.01, 0.95).sentence


@pytest.mark.parametrize(
    ("mean", "level", "name"),
    [(0.05, 0.2, "kept"), (0.2, 0.2, "not refuted"), (0.35, 0.2, "broken")],
)
def test_losses_between_0_and_1_are_judged_from_both_sides(
    mean: float, level: float, name: str
) -> None:
    losses = np.random.default_rng(0).beta(mean * 5, (1 - mean) * 5, size=400)
    assert judge_losses(losses, level, 0.95).name == name


def test_a_sentence_never_promises_more_than_was_certified() -> None:
    sentence = Certificate("Do it", "other answers", 0.0101234, 0.9499999, 800).sentence
    assert "at most 1.02% of rows like these, with 94.9999% confidence" in sentence


class Unnamed(policies.ExitPolicy):
    """A policy that was not registered."""

    def decide(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        return False, state


@dataclass(frozen=True)
class Norm(policies.ThresholdPolicy):
    """A policy of a user, which says how it is named by its threshold."""

    length: float
    tunable = policies.Threshold("length", "below")

    def statistic(self, step: policies.StepView, state: Any) -> tuple[Any, Any]:
        return step.output.norm(dim=-1), state


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (policies.Confidence(0.9123456789), "a confidence above 0.912346"),
        (policies.Entropy(0.2123456789), "an entropy below 0.212345"),
        (policies.Margin(0.5).after(2), "a margin above 0.5, from step 2 on"),
        (policies.Patience(3) | policies.FixedStep(4), "a patience at least 3, or step 4"),
        (policies.LastStep(), "the last step"),
        (policies.Bernoulli(), "the policy bernoulli"),
        (Unnamed(), "the policy Unnamed"),
        (Norm(0.5).after(2), "a Norm below 0.5, from step 2 on"),
    ],
)
def test_policies_in_words(policy: policies.ExitPolicy, words: str) -> None:
    assert policy.words() == words
    assert policy.rule()[0].isupper()


def test_a_threshold_just_below_1_is_not_written_as_1() -> None:
    assert threshold_text(0.99999988) == "0.99999988"


SENTENCE = re.compile(
    r"[A-Z][^:]+: other answers[^:]* on at most 5% of \w+ like these, with 95% confidence "
    r"\(certified on \d+ \w+ that chose nothing\)\."
)


def test_functions_state_their_promises_in_one_form() -> None:
    draw = np.random.default_rng(0)
    right = draw.random(900) < 0.97
    sure = np.where(draw.random(900) < 0.5, 0.99, 0.6)
    other = np.where(right, 0, 1)
    first = np.log(np.where(np.eye(2)[other] > 0, sure[:, None], 1 - sure[:, None]))
    last = np.log(np.tile([0.9, 0.1], (900, 1)))
    outputs = np.stack([first, last], axis=1)
    record = Record(outputs, None, np.arange(900), task="classification")
    answers = certify_answers(other.tolist(), sure.tolist(), [0] * 900, level=0.05)
    found = {
        "exits": control_risk(record, policies.Confidence, level=0.05).statement,
        "stages": certify_cascade(record, [1, 20], level=0.05).statement,
        "answers": answers.statement,
    }
    wrong = {name: said for name, said in found.items() if not SENTENCE.fullmatch(said)}
    assert not wrong, wrong
    assert found["stages"].startswith("Take the first stage's answers with a")
