"""Frontiers against brute force in plain Python."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ponder.analysis.frontiers import blind_frontier, blind_mix, frontier_of, oracle_frontier


def test_points_that_cost_more_for_no_better_score_are_left_out() -> None:
    made = frontier_of([(3.0, 0.7, "c"), (1.0, 0.5, "a"), (2.0, 0.5, "b"), (2.5, 0.9, "d"), (3.0, 0.9, "e")])
    assert (made.steps, made.scores, made.names) == ((1.0, 2.5), (0.5, 0.9), ("a", "d"))
    assert made.best_within(0.9) is None
    assert [made.best_within(step) for step in (1.0, 2.4, 2.5, 9.0)] == [0, 0, 1, 1]
    assert made.mixed(1.75) == pytest.approx(0.7)
    assert (made.mixed(0.5), made.mixed(9.0)) == (0.5, 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_blind_is_the_best_of_all_coins_between_two_steps(seed: int) -> None:
    scores = torch.rand(6, generator=torch.Generator().manual_seed(seed)).tolist()
    made = blind_frontier(scores)
    for mean in (1.0, 1.3, 2.0, 2.7, 3.0, 4.5, 6.0):
        best = -math.inf
        for low, high in itertools.combinations_with_replacement(range(1, 7), 2):
            if low <= mean <= high:
                share = 0.0 if low == high else (mean - low) / (high - low)
                best = max(best, (1 - share) * scores[low - 1] + share * scores[high - 1])
        cheaper = max(scores[: int(mean)])  # a coin may also cost less
        assert made.mixed(mean) >= best - 1e-12
        assert made.mixed(mean) <= max(best, cheaper) + 1e-12 or made.mixed(mean) == pytest.approx(
            max(_coin(scores, at) for at in torch.linspace(1.0, mean, 400).tolist()), abs=1e-3
        )


def _coin(scores: list[float], mean: float) -> float:
    pairs = [(a, b) for a, b in itertools.combinations(range(1, 7), 2) if a <= mean <= b]
    return max((1 - (mean - a) / (b - a)) * scores[a - 1] + (mean - a) / (b - a) * scores[b - 1] for a, b in pairs)


def test_a_blind_choice_is_made_by_one_set_of_scores_and_judged_by_another() -> None:
    chosen_by = torch.tensor([[0.1, 0.9, 0.2, 0.3], [0.1, 0.2, 0.3, 0.9]], dtype=torch.float64)
    scores = torch.tensor([[0.0, 0.4, 0.6, 1.0]] * 2, dtype=torch.float64)
    mixed = blind_mix(chosen_by, scores, torch.tensor([2.0, 2.5], dtype=torch.float64))
    assert mixed[0].item() == pytest.approx(0.4)  # step 2 itself
    assert mixed[1].item() == pytest.approx(0.5)  # half of step 1 and half of step 4
    assert blind_mix(chosen_by[:1], scores[:1], torch.tensor([3.0])).item() == pytest.approx(0.4)  # step 2 costs less


def test_a_blind_choice_judged_by_what_chose_it_lies_on_the_blind_frontier() -> None:
    scores = torch.rand(20, 6, generator=torch.Generator().manual_seed(0)).double()
    for mean in (1.0, 1.3, 2.0, 2.0 - 1e-12, 2.7, 3.0, 4.5, 6.0, 6.0 + 1e-12):
        made = blind_mix(scores, scores, torch.full((20,), mean, dtype=torch.float64))
        assert made.tolist() == pytest.approx([blind_frontier(each.tolist()).mixed(mean) for each in scores])


def test_the_oracle_is_the_upper_hull_of_all_ways_to_leave() -> None:
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(5, 3, generator=generator) > 0.5).double()
    ways = []
    for exits in itertools.product(range(3), repeat=5):
        score = sum(values[row, step].item() for row, step in enumerate(exits)) / 5
        ways.append((sum(exits) / 5 + 1, score, ""))
    brute, made = frontier_of(ways, hull=True), oracle_frontier(values)
    assert (made.steps[0], made.steps[-1]) == pytest.approx((brute.steps[0], brute.steps[-1]))
    for at in torch.linspace(1.0, 3.0, 41).tolist():
        assert made.mixed(at) == pytest.approx(brute.mixed(at))


def test_the_oracle_ends_at_the_first_right_step() -> None:
    values = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [0, 0, 1]]).double()
    made = oracle_frontier(values)
    assert made.scores[-1] == 0.75
    assert made.steps[-1] == (2 + 1 + 1 + 3) / 4
    assert made.scores[0] == 0.25
    assert made.steps[0] == 1.0


def test_no_numbers_of_a_regression_lie_above_the_oracle() -> None:
    generator = torch.Generator().manual_seed(1)
    values = -torch.rand(40, 5, generator=generator).double()
    made = oracle_frontier(values)
    assert made.scores[-1] == pytest.approx(values.amax(1).mean().item())
    for _ in range(200):
        exits = torch.randint(5, (40, 1), generator=generator)
        assert values.gather(1, exits).mean().item() <= made.mixed(exits.double().mean().item() + 1) + 1e-9


def test_one_value_far_off_hides_nothing_from_the_oracle() -> None:
    values = -torch.rand(1000, 4, generator=torch.Generator().manual_seed(0)).double()
    values[0, 0] = -1e7
    made = oracle_frontier(values)
    assert len(made.steps) <= 1001
    for limit in torch.linspace(-1.0, 0.0, 21).tolist():
        enough = values > limit
        enough[:, -1] = True
        left = enough.long().argmax(1)
        score = values.gather(1, left.unsqueeze(1)).mean().item()
        assert score <= made.mixed(left.double().mean().item() + 1) + 1e-9


def test_rows_that_gain_much_do_not_round_what_the_oracle_scores_without_them() -> None:
    """The trap: in a sum that begins with the greatest gains, 1e12 hides all that are less than 0.0001 for good."""
    losses = torch.logspace(12.0, -12.0, 201, dtype=torch.float64)
    made = oracle_frontier(torch.stack([-losses, torch.zeros(201).double()], dim=1))
    assert made.steps == pytest.approx([1.0 + rows / 201 for rows in range(202)])
    for rows, score in enumerate(made.scores):  # those with the greatest gains go on to step 2
        assert score == pytest.approx(-math.fsum(losses[rows:].tolist()) / 201, rel=1e-9)


def test_an_oracle_with_nothing_to_gain_leaves_at_once() -> None:
    assert oracle_frontier(torch.tensor([[1.0, 1.0], [0.5, 0.0]])).steps == (1.0,)
    assert oracle_frontier(torch.tensor([[0.5]])).scores == (0.5,)
