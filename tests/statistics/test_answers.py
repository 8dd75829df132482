"""`certify_answers` about the rows of a batch alone: the promise over draws, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from ponder.errors import ArgumentError
from ponder.statistics.answers import CertifiedAnswers, certify_answers

ROWS = 800
LEVEL = 0.05


def batch() -> tuple[Any, Any]:
    """Confidences and answers of a batch; the reference says "yes" to all."""
    draw = np.random.default_rng(0)
    sure = draw.random(ROWS) ** 0.5
    return sure, np.where(draw.random(ROWS) < 0.4 + 0.6 * sure, "yes", "no")


def certified(sure: Any, answers: Any, drawn: Any, *, finite: bool) -> CertifiedAnswers:
    references = np.full(len(sure), "", dtype=object)
    references[drawn] = "yes"
    return certify_answers(
        answers.tolist(), sure.tolist(), references.tolist(), level=LEVEL, finite=finite
    )


@pytest.mark.parametrize("drawn", [120, 400])
def test_the_promise_about_a_batch_is_kept_and_asks_less(drawn: int) -> None:
    sure, answers = batch()
    draw = np.random.default_rng(drawn)
    draws = 200
    broken = 0
    for number in range(draws):
        chosen = draw.choice(ROWS, drawn, replace=False)
        others = np.ones(ROWS, dtype=bool)
        others[chosen] = False
        found = certified(sure, answers, chosen, finite=True)
        taken = found.takes(sure) & others
        assert found.to_ask == (others & ~taken).sum()
        broken += int((taken & (answers == "no")).sum()) > LEVEL * ROWS
        if number % 20 == 0:  # the promise about rows to come is a stronger one
            stricter = certified(sure, answers, chosen, finite=False)
            assert (others & ~stricter.takes(sure)).sum() > found.to_ask
    assert 0 < broken / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


def test_statements_say_which_rows_are_meant() -> None:
    sure, answers = batch()
    found = certified(sure, answers, np.arange(0, ROWS, 2), finite=True)
    assert found.statement.startswith("Take answers with a confidence above 0.")
    assert found.statement.endswith(
        f"ask the reference for the other {found.to_ask}: other answers in at most 5% of these "
        "800 rows, with 95% confidence (certified on 400 rows drawn from them)."
    )
    wrong = certified(np.ones(ROWS), np.full(ROWS, "no"), np.arange(400), finite=True)
    assert (wrong.threshold, wrong.to_ask) == (None, 400)
    assert wrong.statement.startswith("No promise of 5%: of 400 rows 400 differ")
    with pytest.raises(ArgumentError, match="a promise about rows to come"):
        found.check(["yes"], [0.9], ["yes"])


@pytest.mark.parametrize(
    ("rows", "drawn", "needed"), [(800, 40, 59), (20, 15, 19), (20, 19, None), (10, 0, 10)]
)
def test_too_few_rows_of_a_batch_are_refused(rows: int, drawn: int, needed: int | None) -> None:
    sure = np.full(rows, 0.9)
    answers = np.full(rows, "yes")
    if needed is None:
        assert certified(sure, answers, np.arange(drawn), finite=True).to_ask == 0
        return
    with pytest.raises(ArgumentError, match=f"{needed} rows or more with a reference"):
        certified(sure, answers, np.arange(drawn), finite=True)
