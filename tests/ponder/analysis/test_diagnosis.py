"""Diagnoses of trajectories whose truth is known, because they were made."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder.analysis import sweeps
from ponder.analysis.fixed_step import step_for_all
from ponder.analysis.frontiers import blind_mix
from ponder.analysis.metrics import as_metric
from ponder.analysis.policy_grid import as_policy_grid
from tests.ponder.checks import refused


def make(rows: int = 2000, num_steps: int = 6, *, knows: float = 1.0, seed: int = 0, hazards: bool = False):
    """Rows are right from a step on that differs; `knows` is how much surer a right answer is than a wrong one."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (rows,), generator=g)
    hard = torch.randint(1, num_steps + 2, (rows, 1), generator=g)
    right = torch.arange(1, num_steps + 1) >= hard
    given = torch.where(right, labels[:, None], (labels[:, None] + 1) % 3)
    sure = 1.0 + knows * right + 0.3 * torch.rand(rows, num_steps, generator=g)
    outputs = torch.nn.functional.one_hot(given, 3) * sure.unsqueeze(-1)
    logits = torch.randn(rows, num_steps, generator=g) if hazards else None
    return ponder.Trajectory(outputs.float(), logits, torch.arange(rows), labels=labels, task="classification")


def test_where_the_signal_knows_exits_pay() -> None:
    found = ponder.diagnose(make(), speedups=(1.5,), samples=200)
    assert found.outcome == "exits pay"
    assert "(accuracy; " in found.verdict
    assert "(agreement; " in dataclasses.replace(found, metric="agreement").verdict, "words follow the data"
    assert found.verdict.startswith("Early exits pay on this model: at ×1.5 ")
    (gain,) = found.gains
    assert gain.low > 0.05
    assert gain.low <= gain.gain <= gain.high
    assert gain.oracle >= gain.score > gain.blind


def test_where_the_signal_knows_nothing_one_step_is_as_good() -> None:
    found = ponder.diagnose(make(knows=0.0), [policies.Confidence], samples=200)
    assert found.verdict.startswith("On this model one fixed step is as good as any policy tried (the largest gain")
    assert "): use FixedStep(6), full depth, which scores " in found.verdict
    assert (found.outcome, found.step_for_all.step) == ("one step is as good", 6)
    assert (found.step_for_all.change, found.step_for_all.at_least) == (0.0, 0.0)
    assert all(gain.low <= 0.0 for gain in found.gains)
    assert all(abs(gain.gain) < 0.05 for gain in found.gains)


def test_every_field_of_a_gain_by_hand() -> None:
    """20 rows of four kinds, which `Confidence` lets go at step 1 or at step 4."""
    kinds = [  # how many rows, the step from which they are right, and the one from which they are sure
        (8, 1, 1),
        (6, 4, 4),
        (3, 4, 1),  # sure too early
        (3, 2, 4),  # sure too late
    ]
    right_from, sure_from = (
        torch.tensor([kind[place] for kind in kinds for _ in range(kind[0])]).unsqueeze(1) for place in (1, 2)
    )
    steps = torch.arange(1, 5)
    wrong, sure = steps < right_from, steps >= sure_from
    outputs = torch.nn.functional.one_hot(wrong.long(), 2) * torch.where(sure, 4.0, 1.0).unsqueeze(-1)
    trajectory = ponder.Trajectory(
        outputs, None, torch.arange(20), labels=torch.zeros(20).long(), task="classification"
    )
    found = ponder.diagnose(trajectory, [policies.Confidence], speedups=(1.5,), samples=50)
    (gain,) = found.gains
    mean_step = 4 / 1.5  # more than the (11 * 1 + 9 * 4) / 20 that the policy costs
    assert gain.speedup == 1.5
    assert gain.score == pytest.approx(17 / 20)
    assert gain.blind == pytest.approx(0.4 + 0.6 * (mean_step - 1) / 3)  # a coin between steps 1 and 4
    assert gain.blind_step == 2
    assert gain.oracle == 1.0  # three rows at step 2, nine at step 4, the others at step 1: 2.5 steps
    assert gain.headroom == pytest.approx(1.0 - 11 / 15)
    assert gain.share_of_headroom == gain.gain / gain.headroom
    assert 0.2 < gain.share_of_headroom < 0.8
    assert f"1.0000   0.2667 ({100 * gain.share_of_headroom:.0f}% gained)" in str(found)
    written = found.to_dict()["gains"][0]
    assert (written["headroom"], written["share_of_headroom"]) == (gain.headroom, gain.share_of_headroom)
    nothing = dataclasses.replace(gain, oracle=gain.blind)
    assert nothing.headroom == 0.0
    assert math.isnan(nothing.share_of_headroom)


@pytest.mark.parametrize("seed", range(3))
def test_the_gain_and_its_interval_against_plain_python(seed: int) -> None:
    """Chosen on the rows that were drawn, judged on the others: policy and blind alike."""
    rows, num_steps, samples, budget = 30, 5, 40, 3.0
    g = torch.Generator().manual_seed(seed)
    outputs = torch.randint(-16, 17, (rows, num_steps, 1), generator=g) / 8  # whose squares add up exactly
    trajectory = ponder.Trajectory(
        outputs,
        torch.randn(rows, num_steps, generator=g),
        torch.arange(rows),
        labels=torch.zeros(rows),
        task="regression",
    )
    (gain,) = ponder.diagnose(
        trajectory, [policies.Quantile], speedups=(num_steps / budget,), samples=samples, seed=seed
    ).gains
    exits = as_policy_grid(policies.Quantile, None, trajectory, look=True).exit_steps(trajectory).tolist()
    values = (-(outputs.double().squeeze(-1) ** 2)).tolist()

    def mean(of: Iterable[float]) -> float:
        return statistics.fmean(of)

    def gain_on(judged: list[int], inside: list[int], chosen: list[int]) -> float:
        at = max(budget, mean(chosen[row] for row in judged))
        scores = {
            name: [mean(values[row][step] for row in of) for step in range(num_steps)]
            for name, of in (("inside", inside), ("judged", judged))
        }
        choices = [{step: 1.0} for step in range(1, num_steps + 1) if step <= at]
        choices += [
            {low: (high - at) / (high - low), high: (at - low) / (high - low)}
            for low, high in itertools.combinations(range(1, num_steps + 1), 2)
            if low <= at <= high
        ]
        of = {
            name: [sum(share * each[step - 1] for step, share in choice.items()) for choice in choices]
            for name, each in scores.items()
        }
        costs = [sum(step * share for step, share in choice.items()) for choice in choices]
        best = max(range(len(choices)), key=lambda place: (round(of["inside"][place], 9), costs[place]))
        blind = of["judged"][best]
        return mean(values[row][chosen[row] - 1] for row in judged) - blind

    drawn = torch.randint(rows, (samples, rows), generator=torch.Generator().manual_seed(seed)).tolist()
    gains, drawn_in = [], []
    for inside in drawn:
        left_out = [row for row in range(rows) if row not in inside]
        cheap = [each for each in exits if mean(each[row] for row in inside) <= budget]
        chosen = max(
            cheap,
            key=lambda each: (
                round(mean(values[row][each[row] - 1] for row in inside), 9),
                mean(each[row] for row in inside),
            ),
        )
        gains.append(gain_on(left_out, inside, chosen))
        of_all = gain_on(list(range(rows)), inside, chosen)
        drawn_in.append(of_all + (gains[-1] - of_all) / math.sqrt(math.e - 1))
    assert gain.gain == pytest.approx(mean(gains))
    low, high = np.quantile(drawn_in, [0.025, 0.975]).tolist()
    middle, apart = (low + high) / 2, (high - low) / 2
    unseen = 1.96**2 * max(max(row) - min(row) for row in values) / (rows + 1.96**2)
    wide = math.hypot(apart, unseen)
    assert [gain.low, gain.high] == pytest.approx([middle - wide, middle + wide])


def _decided_by(few: int) -> ponder.Trajectory:
    """300 rows that are right at all steps, but for a few, which are unsure and wrong at the first two."""
    g = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (300,), generator=g)
    size = 3.0 + 2.0 * torch.rand(300, 4, generator=g)
    answers = labels[:, None].repeat(1, 4)
    answers[:few, :2] = (labels[:few, None] + 1) % 3
    size[:few, :2] = 0.5
    outputs = torch.nn.functional.one_hot(answers, 3).float() * size.unsqueeze(-1)
    return ponder.Trajectory(outputs, None, torch.arange(300), labels=labels, task="classification")


@pytest.mark.parametrize("few", [1, 3])
@pytest.mark.parametrize("kind", [policies.Entropy, policies.Confidence])
def test_few_rows_that_decide_do_not_say_that_exits_pay(few: int, kind: type[policies.ExitPolicy]) -> None:
    """The trap: samples that have none of these rows chose the earliest of equal steps, the worst for the others."""
    found = ponder.diagnose(_decided_by(few), kind, speedups=(1.5, 2.0), samples=100)
    assert found.outcome == "one step is as good"
    assert all(gain.low < 0.0 < gain.high for gain in found.gains)
    assert all(gain.gain <= gain.headroom + 1e-9 for gain in found.gains if gain.speedup == 1.5)


def test_samples_that_all_agree_do_not_make_twenty_rows_certain() -> None:
    """All rows are wrong until the last step: every sample says the same, and knows no other row."""
    labels = torch.arange(20) % 2
    answers = torch.stack([1 - labels] * 3 + [labels], dim=1)
    outputs = torch.nn.functional.one_hot(answers, 2).float()
    record = ponder.Trajectory(outputs, None, torch.arange(20), labels=labels, task="classification")
    for gain in ponder.diagnose(record, policies.Confidence, samples=40).gains:
        assert gain.high - gain.low >= 2 * 1.96**2 / (20 + 1.96**2) - 1e-9


def test_many_rows_that_decide_say_that_exits_pay() -> None:
    found = ponder.diagnose(_decided_by(60), policies.Entropy, speedups=(1.5, 2.0), samples=100)
    assert found.outcome == "exits pay"


def test_policies_whose_exits_are_the_same_have_the_same_gain() -> None:
    """Whatever the order of their thresholds, by which ties were broken."""
    gains = [
        ponder.diagnose(_decided_by(3), kind, speedups=(1.5,), samples=100).gains[0]
        for kind in (policies.Entropy, policies.Confidence)
    ]
    assert gains[0].gain == pytest.approx(gains[1].gain, abs=5e-4)


def test_a_policy_that_is_behind_a_cheaper_step_does_not_pay() -> None:
    """Scores are best at step 2; `Patience` leaves a little later, where no coin of just that cost is as good."""
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(2, (1500,), generator=g)
    right = torch.rand(1500, 6, generator=g) < torch.tensor([0.55, 0.90, 0.70, 0.68, 0.66, 0.65])
    outputs = torch.nn.functional.one_hot(torch.where(right, labels[:, None], 1 - labels[:, None]), 2) * 2.0
    trajectory = ponder.Trajectory(outputs, None, torch.arange(1500), labels=labels, task="classification")
    found = ponder.diagnose(trajectory, [policies.Patience], speedups=(1.5,), samples=100)
    (gain,) = found.gains
    assert gain.score < gain.blind == found.scores[1]
    assert gain.gain == pytest.approx(gain.score - gain.blind, abs=0.005)
    assert found.verdict.startswith("On this model one fixed step is as good as any policy tried (the largest gain")
    assert f"): use FixedStep(2), which scores {found.scores[1]:.4f} where full depth scores " in found.verdict


def test_a_policy_that_costs_less_than_the_speed_up_allows_is_held_against_blind_that_does_not() -> None:
    """`Patience` costs 3.85 steps, where a coin has 0.88; at the 4 that were asked for one step for all has 0.95."""
    g = torch.Generator().manual_seed(0)
    share = torch.tensor([0.30, 0.40, 0.50, 0.95, 0.95, 0.95])
    right = torch.rand(3000, 1, generator=g) < share
    stubborn = torch.rand(3000, 1, generator=g) < 0.05
    wrong = torch.where(stubborn, 1, 1 + torch.arange(6) % 2)  # the others are wrong in another way at each step
    outputs = torch.nn.functional.one_hot(torch.where(right, 0, wrong), 3) * 3.0
    labels = torch.zeros(3000, dtype=torch.long)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(3000), labels=labels, task="classification")
    found = ponder.diagnose(trajectory, [policies.Patience], speedups=(1.5,), samples=50)
    (gain,) = found.gains
    place = found.frontiers["Patience"].best_within(4.0)
    assert place is not None
    cost = found.frontiers["Patience"].steps[place]
    assert gain.score > found.frontiers["blind"].mixed(cost) + 0.02
    assert gain.blind == found.scores[3] > gain.score
    assert found.outcome == "one step is as good"
    assert found.step_for_all.step == 4
    assert ponder.calibrate(trajectory, [policies.Patience], at_most_steps=4.0).policy == policies.FixedStep(4)


def test_the_interval_covers_no_gain_about_as_often_as_it_says() -> None:
    """Confidence that knows nothing has no gain: 95% intervals miss 0 from above rarely."""
    false_alarms = sum(
        ponder.diagnose(make(rows=300, knows=0.0, seed=seed), [policies.Confidence], speedups=(2.0,), samples=100)
        .gains[0]
        .low
        > 0.0
        for seed in range(30)
    )
    assert false_alarms <= 3  # of 30 at 2.5% each, more are there once in 150 times


@pytest.mark.parametrize("rows", [40, 200])
def test_a_policy_that_is_one_step_for_all_rows_does_not_pay(rows: int) -> None:
    """A collapsed head leaves at step 2, as blind does where it does not choose step 1 by chance, which loses.

    The trap: most samples gain exactly 0 and few gain much, and an interval drawn towards their mean lies above 0.
    """
    for seed in range(15):
        g = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (rows,), generator=g)
        right = torch.rand(rows, 6, generator=g) < torch.tensor([0.80, 0.84, 0.85, 0.90, 0.90, 0.90])
        outputs = 2.0 * torch.nn.functional.one_hot(torch.where(right, labels[:, None], 1 - labels[:, None]), 2)
        hazards = torch.tensor([-9.0, 9.0, -9.0, -9.0, -9.0, -9.0]).expand(rows, 6)
        trajectory = ponder.Trajectory(outputs, hazards, torch.arange(rows), labels=labels, task="classification")
        found = ponder.diagnose(trajectory, policies.Quantile, speedups=(3.0,), samples=100)
        assert found.gains[0].low <= 0.0
        assert not found.verdict.startswith("Early exits pay")


@pytest.mark.slow
def test_the_interval_covers_the_gain_on_all_rows_to_come_about_as_often_as_it_says() -> None:
    """The rows that samples leave out are fewer than all: intervals of what they spread cover 99.5%."""
    kinds: dict[str, tuple[Callable[[int, int], ponder.Trajectory], Any]] = {
        "surer where right": (lambda rows, seed: make(rows, knows=0.1, seed=seed), policies.Confidence),
        "answers that settle": (lambda rows, seed: make(rows, seed=seed), policies.Patience),
        "hazards of chance": (lambda rows, seed: make(rows, seed=seed, hazards=True), policies.Quantile),
        "numbers": (lambda rows, seed: numbers(rows, 6, seed), None),
    }
    covered: dict[str, list[bool]] = {name: [] for name in kinds}
    for name, (of, family) in kinds.items():
        to_come = of(10_000, 1000)
        values = as_metric(None, to_come).per_row
        for seed in range(30):
            found = ponder.diagnose(of(200, seed), family, speedups=(1.5,), samples=100)
            (gain,) = found.gains
            left = to_come.replay(eval(gain.policy, vars(policies))).exit_step
            at = left.double().mean().clamp(min=6 / 1.5)[None]
            blind = blind_mix(torch.tensor(found.scores).double()[None], values.mean(0)[None], at).item()
            truth = values.gather(1, left[:, None] - 1).mean().item() - blind
            covered[name].append(gain.low <= truth <= gain.high)
    shares = {name: statistics.fmean(each) for name, each in covered.items()}
    assert min(shares.values()) >= 0.92, shares
    assert 0.92 <= statistics.fmean(shares.values()) <= 0.99, shares


@pytest.mark.parametrize("rows", [60, 150])
def test_no_step_is_named_that_may_be_worse_than_full_depth(rows: int) -> None:
    """Step n is right for a share of the rows that rises; few rows do not tell that the steps before are worse."""
    named = []
    for seed in range(25):
        g = torch.Generator().manual_seed(seed)
        right = torch.rand(rows, 1, generator=g) < torch.tensor([0.70, 0.80, 0.84, 0.87, 0.90, 0.94])
        sure = 1.0 + torch.rand(rows, 6, generator=g)
        outputs = torch.nn.functional.one_hot((~right).long(), 2) * sure.unsqueeze(-1)
        labels = torch.zeros(rows).long()
        trajectory = ponder.Trajectory(outputs, None, torch.arange(rows), labels=labels, task="classification")
        verdict = ponder.diagnose(trajectory, policies.Confidence, speedups=(1.5,), samples=40).verdict
        named += re.findall(r"use (FixedStep\(\d\))", verdict)
    assert named
    assert set(named) == {"FixedStep(6)"}


def test_what_is_known_of_the_step_that_is_named() -> None:
    """Step 3 loses 2 rows of 400 that step 4 has, and has none that step 4 has not."""
    rows = torch.arange(400)
    right = torch.stack([rows < count for count in (200, 300, 338, 340)], dim=1)
    outputs = torch.stack([right * 2.0, ~right * 2.0], dim=-1)
    trajectory = ponder.Trajectory(outputs, None, rows, labels=torch.zeros(400).long(), task="classification")
    z = statistics.NormalDist().inv_cdf(1 - 0.025 / 3)
    size = 400 + z**2
    at_least = -2 / size - z * math.sqrt(((2 + z**2) / size - (2 / size) ** 2) / size)
    assert -0.0214 < at_least < -0.0213  # the words are on the side on which the promise holds
    verdict = ponder.diagnose(trajectory, policies.Patience(1), speedups=(4.0,), samples=40).verdict
    assert verdict == (
        "No policy that was tried is cheap enough for any of the speed-ups: use FixedStep(3), which scores 0.8450 "
        "where full depth scores 0.8500 (-0.0050, with 97.5% confidence -0.0214 or more)."
    )
    few = dataclasses.replace(
        trajectory, outputs=outputs[200:], labels=torch.zeros(200).long(), row_ids=torch.arange(200)
    )
    verdict = ponder.diagnose(few, policies.Patience(1), speedups=(4.0,), samples=40).verdict
    assert verdict.endswith(
        "use FixedStep(4), full depth, which scores 0.7000 (each earlier step is clearly worse, or may be worse by "
        "more than 0.03)."
    )


@pytest.mark.parametrize("rows", [20, 60, 150])
def test_no_step_is_named_for_numbers_that_few_rows_show_to_be_settled(rows: int) -> None:
    """Half of the rows that are not settled yet settle at each step; those to come lose more than the few tell.

    The trap: the greatest loss of the rows at a step is small where those that lose much there are not among them.
    """
    for seed in range(25):
        g = torch.Generator().manual_seed(seed)
        settled = 1 + (torch.rand(rows, 1, generator=g).log() / math.log(0.5)).floor()
        outputs = 2.0 * torch.randn(rows, 1, generator=g) * (torch.arange(1, 7) < settled.clamp(max=6))
        values = -(outputs.double() ** 2)
        margin = 0.1 * float(values.mean(0).max() - values.mean(0).min())
        assert step_for_all(values, margin, shares=False).step == 6
    settled = torch.arange(2000) % 3 + 1
    values = -(torch.arange(1, 7) < settled[:, None]).double()
    assert step_for_all(values, 0.05, shares=False).step == 3


def test_a_step_that_is_as_good_as_the_last_is_named() -> None:
    trajectory = make(knows=0.0)
    outputs = trajectory.outputs.clone()
    outputs[:, 3:] = outputs[:, 3:4]
    found = ponder.diagnose(dataclasses.replace(trajectory, outputs=outputs), [policies.Confidence], samples=100)
    assert "use FixedStep(4)" in found.verdict


def test_scores_frontiers_and_difficulty_by_hand() -> None:
    trajectory = make(rows=700)
    found = ponder.diagnose(trajectory, [policies.Confidence, policies.Margin], static={3: 0.99, 2: 0.1}, samples=50)
    right = trajectory.outputs.argmax(-1) == trajectory.labels[:, None]
    assert found.scores == pytest.approx(right.double().mean(0).tolist())
    assert set(found.frontiers) == {"Confidence", "Margin", "blind", "oracle", "static"}
    assert found.frontiers["static"].steps == (2.0, 3.0)
    assert found.gains[1].static == 0.99
    assert "cut and trained so scores 0.9900" in found.verdict
    shares = {each.step: each.share for each in found.difficulty}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares[None] == pytest.approx(1 - right[:, -1].double().mean().item())
    assert shares[1] == pytest.approx(right[:, 0].double().mean().item())
    exits = [each.mean_exit_step for each in found.difficulty if each.step is not None]
    assert exits[0] < exits[-1]
    assert {each.speedup for each in found.difficulty} == {2.0}
    assert "and where the best policy at ×2 lets go:" in str(found)


def test_difficulty_is_told_of_the_speed_up_next_to_the_middle_that_is_reached() -> None:
    found = ponder.diagnose(make(400), [policies.Patience], speedups=(1.2, 5.5, 6.0), samples=40)
    assert [math.isnan(gain.gain) for gain in found.gains] == [False, True, True]
    assert {each.speedup for each in found.difficulty} == {1.2}


def test_a_posterior_that_is_the_same_for_all_rows_has_collapsed() -> None:
    trajectory = make(hazards=True)
    same = dataclasses.replace(
        trajectory, hazard_logits=torch.tensor([-9.0, -9.0, 9.0, 0, 0, 0]).expand(2000, 6).clone()
    )
    page = ponder.diagnose(same, samples=40)
    told = page.collapse
    assert told.collapsed
    assert "The halting distribution has collapsed onto one step: 100% of the rows would leave at step 3" in str(page)
    assert (told.step, told.share) == (3, 1.0)
    assert told.information == pytest.approx(0.0, abs=1e-6)
    rows = torch.full((2000, 6), -9.0)
    rows[torch.arange(2000), torch.arange(2000) % 6] = 9.0
    page = ponder.diagnose(dataclasses.replace(trajectory, hazard_logits=rows), samples=40)
    apart = page.collapse
    assert not apart.collapsed
    assert "The halting distribution has not collapsed onto one step: " in str(page)
    assert apart.information == pytest.approx(1.0, abs=0.01)
    assert ponder.diagnose(make(), samples=40).collapse is None


def test_it_is_a_page_of_text_json_and_a_plot() -> None:
    found = ponder.diagnose(make(hazards=True), static={3: 0.5}, samples=40)
    page = str(found)
    assert page.startswith(found.verdict)
    for words in ("accuracy of each of 6 steps", "in steps", "halting distribution", "right from step 1 on"):
        assert words in page
    data = json.loads(json.dumps(found.to_dict()))
    assert (data["verdict"], data["outcome"]) == (found.verdict, found.outcome)
    assert data["step_for_all"] == dataclasses.asdict(found.step_for_all)
    assert data["gains"][0]["low"] == found.gains[0].low
    assert len(data["frontiers"]["blind"]["steps"]) == len(found.frontiers["blind"].steps)
    pytest.importorskip("matplotlib")
    axes = found.plot()
    assert {line.get_label() for line in axes.lines} >= {"blind", "oracle", "Confidence", "cut and trained so"}


def test_numbers_are_judged_by_their_squared_error() -> None:
    trajectory = make(hazards=True)
    numbers = dataclasses.replace(
        trajectory, outputs=trajectory.outputs[..., :1], labels=trajectory.labels.float(), task="regression"
    )
    found = ponder.diagnose(numbers, samples=40)
    assert found.metric == "negative_squared_error"
    assert "Quantile" in found.frontiers
    assert found.difficulty == ()


def test_the_same_seed_gives_the_same_page() -> None:
    assert str(ponder.diagnose(make(rows=200), samples=40)) == str(ponder.diagnose(make(rows=200), samples=40))


def test_speed_ups_above_the_number_of_steps_are_left_out() -> None:
    trajectory = make(200)
    found = ponder.diagnose(trajectory, [policies.Confidence], speedups=(2.0, 6.0, 10.0), samples=40)
    assert [gain.speedup for gain in found.gains] == [2.0, 6.0]
    with refused("speedups", "at most 6"):
        ponder.diagnose(trajectory, [policies.Confidence], speedups=(10.0,), samples=40)


def test_the_verdict_does_not_depend_on_the_unit() -> None:
    of = numbers(400, 6, 0)
    small = dataclasses.replace(of, outputs=of.outputs.double() * 1e-7, labels=of.labels.double() * 1e-7)
    of = dataclasses.replace(of, outputs=of.outputs.double(), labels=of.labels.double())
    found = [ponder.diagnose(each, speedups=(1.5, 2.0), samples=60) for each in (of, small)]
    assert found[0].outcome == found[1].outcome == "exits pay"
    gains = [each.gains[0] for each in found]
    assert gains[1].share_of_headroom == pytest.approx(gains[0].share_of_headroom)
    assert not math.isnan(gains[1].share_of_headroom)


def test_speed_ups_that_no_policy_reaches() -> None:
    found = ponder.diagnose(make(), [policies.Patience], speedups=(3.0,), samples=40)
    assert "cheap enough" in found.verdict
    page = str(found)
    assert "nan" not in page
    (row,) = (line for line in page.splitlines() if line.startswith("×3"))
    assert row.split()[1:8] == ["none", "within", "2.00", "steps", f"{found.gains[0].blind:.4f}", "not", "reached"]
    (gain,) = json.loads(json.dumps(found.to_dict(), allow_nan=False))["gains"]
    assert (gain["score"], gain["gain"], gain["low"], gain["high"], gain["share_of_headroom"]) == (None,) * 5
    assert gain["headroom"] == gain["oracle"] - gain["blind"]
    assert gain["oracle"] == found.frontiers["oracle"].mixed(2.0)


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"metric": "f1"}, "metric"),
        ({"metric": lambda outputs, labels: 0.0}, "metric"),
        ({"compare": []}, "compare"),
        ({"compare": policies.LastStep}, "compare"),
        ({"static": {7: 0.5}}, "static"),
        ({"speedups": (0.5,)}, "speedups"),
    ],
)
def test_bad_arguments_are_refused(changes, argument: str) -> None:
    with refused(argument):
        ponder.diagnose(make(rows=50), **changes)


def test_what_cannot_be_compared_is_refused_by_its_name_with_what_can() -> None:
    """The trap: `diagnose` was told to pass a grid, which it does not take."""
    trajectory = make(rows=50)
    for compare, got in (
        (lambda threshold: policies.Confidence(threshold), "<lambda>"),
        ([policies.Confidence, lambda threshold: policies.Confidence(threshold)], "<lambda>"),
        (policies.Confidence(0.5) | policies.Patience(2), "Any_"),
    ):
        with refused("compare", got, "sweep and calibrate try a callable by itself"):
            ponder.diagnose(trajectory, compare, samples=40)
    for compare, got in (({policies.Confidence}, "set"), ("confidence", "'confidence'")):
        with refused("compare", got, "a list of such", type_error=True):
            ponder.diagnose(trajectory, compare, samples=40)


def test_families_are_numbered_within_their_name() -> None:
    gates = [ponder.calibration.fit_gate(make(60, seed=1), target="error", trees=5, floor=floor) for floor in (1, 2, 3)]
    found = ponder.diagnose(make(60), [policies.Confidence, *gates, policies.Confidence], samples=40)
    assert list(found.frontiers) == [
        "Confidence",
        "Gate",
        "Gate (2)",
        "Gate (3)",
        "Confidence (2)",
        "blind",
        "oracle",
    ]


def test_trajectories_that_tell_nothing_are_refused() -> None:
    with refused("trajectory", "none"):
        ponder.diagnose(dataclasses.replace(make(rows=50), labels=None))
    with refused("trajectory", "5 rows"):
        ponder.diagnose(make(rows=5))
    with refused("trajectory", "1 steps"):
        ponder.diagnose(make(rows=50, num_steps=1))


def test_one_nan_is_refused_where_it_would_make_a_mean_nan() -> None:
    numbers = torch.randn(50, 4, 1)
    labels = numbers[:, -1, 0].clone()
    numbers[0, 0] = torch.nan
    with refused("trajectory", "none for 1 of 50 rows"):
        ponder.diagnose(ponder.Trajectory(numbers, None, torch.arange(50), labels=labels, task="regression"))


def test_an_answer_that_is_nan_is_not_the_best_of_scores_below_zero() -> None:
    """Trap: it counted 0, which is the worst of shares that are right, and the best of costs."""

    class Costly(ponder.tasks.Classification):
        name, metric = "costly", "negative_cost"

        def scores(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return -1.0 - (~self.correct(outputs, labels)).double()

    labels = torch.arange(60) % 3
    outputs = torch.nn.functional.one_hot(labels, 3).float()[:, None].repeat(1, 4, 1)
    outputs[:, 0] = torch.nan
    made = ponder.Trajectory(outputs, None, torch.arange(60), labels=labels, task="costly", task_object=Costly())
    scores = [made.sweep(policies.FixedStep, [step]).points[0].score for step in (1, 2)]
    assert math.isnan(scores[0])
    assert scores[1] == -1.0
    with refused("trajectory", "none for 60 of 60 rows"):
        ponder.diagnose(made)


def test_the_best_single_step_is_found_under_a_coin_between_two_others_too() -> None:
    rows = torch.arange(200)
    right = torch.stack([rows < share * 200 for share in (0.5, 0.6, 0.9, 0.9)], dim=1)
    outputs = torch.stack([right * 2.0, ~right * 2.0], dim=-1)
    made = ponder.Trajectory(outputs, None, rows, labels=torch.zeros(200).long(), task="classification")
    assert ponder.diagnose(made, speedups=(2.0,), samples=40).gains[0].blind_step == 2


def very_sure(rows: int = 2000) -> ponder.Trajectory:
    """Right answers are surer than wrong ones, and all confidences lie above those that `Confidence` declares."""
    g = torch.Generator().manual_seed(0)
    labels, hard = torch.randint(2, (rows,), generator=g), torch.randint(1, 7, (rows, 1), generator=g)
    right = torch.arange(1, 7) >= hard
    given = torch.where(right, labels[:, None], 1 - labels[:, None])
    margins = torch.where(right, 13.0, 11.5) + 0.3 * torch.randn(rows, 6, generator=g)
    outputs = torch.nn.functional.one_hot(given, 2) * margins.unsqueeze(-1)
    return ponder.Trajectory(outputs, None, torch.arange(rows), labels=labels, task="classification")


def test_thresholds_are_tried_where_a_sure_model_tells_rows_apart() -> None:
    trajectory = very_sure()
    assert max(policies.Confidence.tunable.values(6, 2)[:-1]) < trajectory.outputs.softmax(-1).amax(-1).min()
    found = ponder.diagnose(trajectory, policies.Confidence, speedups=(1.5,), samples=50)
    assert found.verdict.startswith("Early exits pay")
    assert found.gains[0].score > 0.99
    named = eval(found.gains[0].policy, vars(policies))  # what it names does what it says
    right = trajectory.replay(named).outputs.argmax(-1) == trajectory.labels
    assert right.double().mean().item() == pytest.approx(found.gains[0].score)
    assert repr(named) in found.verdict
    for families in (policies.Confidence, [policies.Confidence]):
        calibration = ponder.calibrate(trajectory, families, at_most_steps=3.6)
        assert calibration.point.score > 0.99
        assert isinstance(calibration.policy, policies.Confidence)
    certified = ponder.control_risk(trajectory, policies.Confidence, risk="error", level=0.05)
    assert certified.policy.policy.threshold in policies.Confidence.tunable.values(6, 2)  # no data chose its values


def numbers(rows: int = 600, steps: int = 12, seed: int = 0) -> ponder.Trajectory:
    """Answers that are noise until a step that differs, and right from there on."""
    g = torch.Generator().manual_seed(seed)
    labels, good = torch.randn(rows, generator=g), torch.randint(1, 8, (rows, 1), generator=g)
    noise = 2.0 * torch.randn(rows, steps, generator=g) * (torch.arange(1, steps + 1) < good)
    outputs = labels[:, None] + noise + 0.01 * torch.randn(rows, steps, generator=g)
    return ponder.Trajectory(outputs.unsqueeze(-1), None, torch.arange(rows), labels=labels, task="regression")


def test_numbers_without_hazards_are_tried_with_tolerances() -> None:
    found = ponder.diagnose(numbers(), samples=100)
    assert set(found.frontiers) == {"Patience", "blind", "oracle"}
    assert found.verdict.startswith("Early exits pay")
    assert "Patience(patience=1, tolerance=" in found.gains[1].policy
    by_hand = ponder.diagnose(numbers(), policies.Patience(1, tolerance=0.2), samples=100)
    assert found.gains[1].score >= by_hand.gains[1].score - 1e-9


def test_of_numbers_calibrate_tries_what_diagnose_tries() -> None:
    """The trap: only the number of agreements was moved, of numbers that never agree or of a tolerance by guess."""
    trajectory = numbers()
    found = ponder.diagnose(trajectory, samples=40)
    assert ponder.diagnose(trajectory, policies.Patience, samples=40).gains == found.gains
    for families in (policies.Patience, [policies.Patience]):
        chosen = ponder.calibrate(trajectory, families, at_most_steps=6.0)
        assert repr(chosen.policy) == found.gains[1].policy
        assert chosen.point.score == pytest.approx(found.gains[1].score)
        assert (chosen.curve.threshold, chosen.point.threshold) == ("tolerance", chosen.policy.tolerance)
    with refused("policies", "1 steps"):
        ponder.calibrate(
            trajectory.map(lambda each: each[:, :1] if each.dim() > 1 else each), policies.Patience, at_most_steps=1
        )


def test_numbers_of_which_none_is_finite_are_refused_as_such() -> None:
    broken = numbers()
    broken.outputs.fill_(torch.nan)
    with refused("metric", "NaN"):
        ponder.calibrate(broken, policies.Patience, at_most_steps=6.0)


def test_a_squared_error_is_no_score() -> None:
    with refused("static[2]", "≤ 0", "30.0", "minus the mean squared error"):
        ponder.diagnose(numbers(rows=60), static={2: 30.0}, samples=40)
    found = ponder.diagnose(numbers(rows=60), static={2: 0.0, 3: -30.0}, samples=40)
    assert found.frontiers["static"].scores[0] == 0.0


def test_numbers_without_a_dimension_of_their_own() -> None:
    flat = dataclasses.replace(numbers(), outputs=numbers().outputs.squeeze(-1))
    assert ponder.diagnose(flat, samples=50).gains[1].score == ponder.diagnose(numbers(), samples=50).gains[1].score


def test_where_no_policy_is_cheap_enough_the_cut_encoder_is_told_of() -> None:
    trajectory = make(rows=200, num_steps=3)
    found = ponder.diagnose(trajectory, policies.Patience(1), speedups=(3.0,), static={1: 0.99}, samples=40)
    assert found.outcome == "no policy is cheap enough"
    assert found.verdict.startswith("No policy that was tried is cheap enough")
    assert found.verdict.endswith("; at ×3 the encoder cut and trained so scores 0.9900.")


def test_the_cut_encoder_is_told_of_where_no_policy_pays() -> None:
    trajectory = make(knows=0.0)
    found = ponder.diagnose(trajectory, [policies.Confidence], static={2: 0.45, 3: 0.90}, samples=50)
    assert found.verdict.startswith("On this model one fixed step is as good")
    assert found.verdict.endswith("; at ×2 the encoder cut and trained so scores 0.9000.")
    worse = ponder.diagnose(trajectory, [policies.Confidence], static={3: 0.1}, samples=50)
    assert "cut and trained" not in worse.verdict


def test_what_is_no_number_is_refused() -> None:
    with refused("static[2]", "[0, 1]"):
        ponder.diagnose(make(), static={1: 0.9, 2: float("nan")}, samples=40)
    with refused("speedups", "at least one"):
        ponder.diagnose(make(), speedups=(), samples=40)
    broken = make(hazards=True)
    broken.hazard_logits[7, 2] = float("nan")
    with refused("trajectory", "hazards that are numbers", "NaN in 1 of 2000 rows"):
        ponder.diagnose(broken, samples=40)
    for wrong in (float("inf"), float("nan")):
        with refused("speedups"):
            ponder.diagnose(make(), speedups=(wrong, 2.0), samples=40)


def test_the_largest_tolerance_is_above_every_change() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randn(60, generator=g)
    noise = torch.randn(60, 6, generator=g) * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.25, 0.1])
    outputs = (labels[:, None] + noise).unsqueeze(-1)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(60), labels=labels, task="regression")
    found = ponder.diagnose(trajectory, samples=40)
    assert found.frontiers["Patience"].steps[0] == 2.0
    assert found.gains[-1].score > float("-inf")


def test_labels_of_another_shape_or_class_are_refused() -> None:
    made = make(rows=60)
    numbers_ = dataclasses.replace(numbers(rows=60), labels=torch.zeros(1))
    for trajectory in (
        dataclasses.replace(made, labels=made.labels[:1]),
        dataclasses.replace(made, labels=made.labels + 70),
        dataclasses.replace(made, labels=made.labels.unsqueeze(1).repeat(1, 3)),
        numbers_,
    ):
        with refused("labels"):
            ponder.diagnose(trajectory, samples=40)
    with refused("labels"):
        dataclasses.replace(made, labels=made.labels[:1]).overthinking()


def test_nothing_and_infinity_are_not_counted() -> None:
    made = make(rows=60)
    empty = dataclasses.replace(
        made, outputs=made.outputs[:0], labels=made.labels[:0], row_ids=made.row_ids[:0], hazard_logits=None
    )
    for ask in (empty.overthinking, empty.reliability, lambda: sweeps.measure(empty, policies.Confidence(0.5))):
        with refused("trajectory", "at least one row"):
            ask()
    made.outputs[3, 1, 0] = float("-inf")  # a class that cannot be
    made.reliability()
    made.outputs[3, 1, 0] = float("inf")
    with refused("trajectories", "infinite"):
        made.reliability()


def test_few_rows_cannot_tell() -> None:
    found = ponder.diagnose(make(rows=25, knows=0.0), [policies.Confidence], speedups=(1.5,), samples=100)
    assert found.gains[0].low <= 0 < 0.03 < found.gains[0].high
    assert found.outcome == "too few rows"
    assert found.verdict.startswith("These 25 rows cannot tell whether early exits pay on this model")
    assert "FixedStep" not in found.verdict


def test_speed_ups_may_be_an_array() -> None:
    for array in (torch.tensor([1.5, 2.0]), np.arange(2, 4)):
        assert len(ponder.diagnose(make(rows=60), [policies.Confidence], speedups=array, samples=40).gains) == 2


def test_a_percentage_is_no_accuracy() -> None:
    with refused("static[2]", "81.5"):
        ponder.diagnose(make(rows=60), static={2: 81.5}, samples=40)


def test_rows_that_are_there_twice_are_refused() -> None:
    once = make(60)
    twice = ponder.Trajectory.cat([once, once])
    for estimate in (
        lambda trajectory: ponder.diagnose(trajectory, samples=40),
        lambda trajectory: ponder.calibrate(trajectory, policies.Confidence, at_most_steps=3.0),
        ponder.calibration.fit_gate,
    ):
        with refused("trajectory", "each row once", "60 of 120 rows a second time"):
            estimate(twice)


def test_rows_of_other_labels_are_other_rows() -> None:
    """Ids that start anew in every batch, and answers that are near to one another beside their size."""
    values = 2000 + 5 * torch.randn(300, generator=torch.Generator().manual_seed(0))
    outputs = (values[:, None] + torch.linspace(0.5, 0.0, 4)).unsqueeze(2)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(300) % 10, labels=values, task="regression")
    assert ponder.diagnose(trajectory, samples=40).rows == 300


def test_difficulty_is_told_of_the_policy_that_won_where_another_is_called_the_same() -> None:
    trajectory = make(400)
    good = ponder.calibration.fit_gate(make(400, seed=1), target="error", trees=5)
    bad = ponder.calibration.fit_gate(make(400, knows=0.0, seed=2), target="error", trees=5)
    alone = ponder.diagnose(trajectory, good, samples=40)
    for compared in ([good, bad], [bad, good]):
        beside = ponder.diagnose(trajectory, compared, samples=40)
        assert [gain.score for gain in beside.gains] == [gain.score for gain in alone.gains]
        assert beside.difficulty == alone.difficulty
    names = {name for frontier in beside.frontiers.values() for name in frontier.names}
    assert any(name.endswith(" (2)") for name in names)


def test_the_page_says_which_numbers_are_of_the_rows_that_chose() -> None:
    assert "on which the best policy was chosen; gain is of rows" in str(ponder.diagnose(make(100), samples=40))


def test_few_samples_and_a_bare_number_are_refused() -> None:
    """The trap: of one sample every interval has no width, and noise pays."""
    with refused("samples", "40"):
        ponder.diagnose(make(), samples=39)
    with refused("speedups", "several numbers", "float", type_error=True):
        ponder.diagnose(make(), speedups=2.0)


def test_of_numbers_it_is_said_what_is_supposed_of_rows_to_come() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.randn(400, generator=g)
    outputs = labels[:, None] + torch.tensor([0.3, 0.01, 0.01, 0.01]) * torch.randn(400, 4, generator=g).sign()
    trajectory = ponder.Trajectory(outputs[..., None], None, torch.arange(400), labels=labels, task="regression")
    found = ponder.diagnose(trajectory, samples=40)
    fixed = found.step_for_all
    assert fixed.step == 2
    losses = (outputs - labels[:, None]) ** 2
    assert fixed.greatest_loss == pytest.approx(float((losses - losses[:, -1:]).abs().max()), rel=1e-4)
    assert f"as long as no row to come loses more than {fixed.greatest_loss:.4g}, the most that" in found.verdict
    assert ponder.diagnose(make(), samples=40).step_for_all.greatest_loss is None
