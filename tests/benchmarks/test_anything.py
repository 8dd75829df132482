"""`benchmarks.anything`: rules of the literature beside plain loops, and a small problem from end to end."""

from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
from scipy.special import beta

from benchmarks.anything.measuring import measured, redrawn, timed
from benchmarks.anything.problems import Problem
from benchmarks.anything.report import FORMAT, RIVALS, rivals, saved
from benchmarks.anything.rivals import AdaptiveConsistency, InstancePruning
from ponder import Ensemble
from ponder.calibration import Record

MEMBERS = 20


def simulated(rows: int) -> np.ndarray:
    draw = np.random.default_rng(0)
    return draw.binomial(1, draw.beta(0.2, 0.2, (rows, 1)), (rows, MEMBERS))


def test_the_beta_rule_and_the_pruning_of_ensembles_are_those_of_their_papers() -> None:
    votes = np.array([[0, 0, 1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 0, 1]])
    views = list(Record.from_votes(votes, block=2).views(frozenset({"output"})))
    for view in views:
        taken = 2 * int(view.index[0])
        beta_rule, _ = AdaptiveConsistency(0.05, 2).statistic(view, None)
        pruning, _ = InstancePruning(0.01, 2).statistic(view, None)
        for row in range(2):
            second, first = sorted(np.bincount(votes[row, :taken], minlength=2).tolist())
            total = first + second + 1
            below = sum(comb(total, k) for k in range(first + 1, total + 1)) / 2**total
            assert abs(beta_rule[row] - below) < 1e-9
            left = 8 - taken
            changes = 0.0
            for got in range(left + 1):
                if first + got <= second + left - got:
                    chance = beta(first + got + 1, second + left - got + 1)
                    changes += comb(left, got) * chance / beta(first + 1, second + 1)
            assert abs(pruning[row] - changes) < 1e-9


def test_a_problem_from_its_votes_to_its_tables() -> None:
    votes = simulated(1500)

    def ensemble(block: int) -> Ensemble:
        def sample(rows: Any, start: int, stop: int) -> Any:
            return votes[rows, start:stop]

        return Ensemble(sample, block=block, members=MEMBERS, classes=[0, 1])

    rows = np.arange(len(votes))
    problem = Problem(ensemble(2), rows, None, 750, by_member=ensemble(1))
    ways = measured(problem)
    asked = {(each["way"], each["level"]): each for each in ways}
    assert asked["ours", 0.02]["fewer"] > asked["same number for all", 0.02]["fewer"]
    assert asked["ours", 0.02]["other"] < 0.04
    assert asked["pruning, 0.99", None]["other"] < 0.02
    assert timed(problem) is None
    levels = redrawn(problem, 20)
    assert [each["draws"] for each in levels] == [20, 20]
    assert max(each["broken"] for each in levels) <= 4
    result = {
        "format": FORMAT,
        "problem": "votes",
        "members": MEMBERS,
        "ways": ways,
        "timed": None,
        "redraws": {"levels": levels},
    }
    (line,) = saved([result])
    assert line[:2] == ("votes", "20")
    assert [cells[1] for cells in rivals([result])] == ["1%", "2%", "as published"]
    assert all(len(cells) == len(RIVALS) for cells in rivals([result]))
