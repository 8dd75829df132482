"""Rows that were used: what a check leaves out, which files it refuses, and that what it judges by is not biased."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ponder.errors import ArgumentError, CheckpointError
from ponder.statistics.bounds import binomial_cdf
from ponder.statistics.repeats import fresh_rows
from ponder.statistics.used import USED, Used

LOG = [*(f"used {n}" for n in range(100)), *["hello"] * 20]
FRESH = [f"fresh {n}" for n in range(150)]


def test_an_edited_list_of_used_rows_is_refused(tmp_path: Path) -> None:
    Used.of(LOG).write(tmp_path)
    assert len(Used.read(tmp_path)) == len(LOG)
    file = tmp_path / USED
    card = json.loads(file.read_text())
    file.write_text(json.dumps({**card, "rows": Used.of(FRESH).to_dict()["rows"]}))
    with pytest.raises(CheckpointError, match="changed after it was written"):
        Used.read(tmp_path)


@pytest.mark.parametrize(
    ("texts", "counted"),
    [
        (FRESH, 150),
        ([*FRESH, *FRESH], 300),  # rows, not distinct texts
        ([*FRESH, "used 1", "used 2"], 152),  # traffic repeats itself
        (["hello"] * 10, 10),
        ([*LOG, *FRESH, "hello"], 151),  # a log that has grown
        ([*LOG[::2], *FRESH, *["hello"] * 5], 155),  # half of a log, and new rows
    ],
)
def test_rows_that_judge(texts: list[str], counted: int) -> None:
    assert Used.of(LOG).fresh(texts).sum() == counted


@pytest.mark.parametrize("texts", [LOG, LOG[:60], [*LOG, *FRESH[:50]]])
def test_a_file_of_used_rows_is_refused(texts: list[str]) -> None:
    with pytest.raises(ArgumentError, match="that taught, chose or certified"):
        Used.of(LOG).fresh(texts)


def test_digests_are_kept_and_joined(tmp_path: Path) -> None:
    used = Used.of(LOG, taught=LOG[10:50])
    used.write(tmp_path)
    again = Used.read(tmp_path)
    for name, digests in vars(used).items():
        assert np.array_equal(getattr(again, name), digests)
    assert np.flatnonzero(again.have_taught(LOG)).tolist() == list(range(10, 50))
    assert not again.have_taught([*FRESH, "used 20"]).any()
    assert len(Used.read(tmp_path / "none")) == 0
    # The same file for two commands is one use, and another log another.
    assert len(used | Used.of(LOG)) == len(LOG)
    both = used | Used.of([*FRESH, "hello"])
    assert (len(both), both.fresh([*LOG, *FRESH, *["hello"] * 2, *map(str, range(300))]).sum()) == (
        len(LOG) + len(FRESH) + 1,
        301,
    )


@pytest.mark.parametrize(
    ("held", "bias", "most"), [(0.0, 0.001, 0.065), (0.5, 0.004, 0.1), (1.0, 0.001, 0.065)]
)
def test_a_check_calls_a_promise_of_just_the_true_risk_broken_as_rarely_as_it_says(
    held: float, bias: float, most: float
) -> None:
    """One text is a tenth of the traffic and is lost, so a rule that looks at texts sees another risk.

    The log of each draw is that of three on which the fewest rows were lost: what was chosen on it
    does worse on new rows. If a file holds a part of the log, that part is estimated: with noise, and
    a little too high where many texts come again, as here.
    """
    texts, rows, draws = 2000, 500, 1000
    draw = np.random.default_rng(0)
    lost = (np.arange(texts) == 0) | (draw.uniform(size=texts) < 0.02)
    shares = np.where(np.arange(texts) == 0, 0.1, 0.9 / (texts - 1))
    risk = float(lost @ shares)
    differences, broken, kept = [], 0, 0
    for _ in range(draws):
        logs = draw.choice(texts, size=(3, rows), p=shares)
        log = logs[lost[logs].sum(1).argmin()]
        given = np.concatenate([log[: int(held * rows)], draw.choice(texts, size=rows, p=shares)])
        judging = lost[given[fresh_rows(given, log)]]
        differences.append(judging.mean() - risk)
        as_few = binomial_cdf(len(judging), risk)
        broken += 1.0 - as_few[max(judging.sum() - 1, 0)] <= 0.05
        kept += as_few[judging.sum()] <= 0.05
    assert abs(np.mean(differences)) < bias
    assert broken <= most * draws
    assert kept <= most * draws
