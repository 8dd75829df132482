"""What the pages say was learnt is what the results say; the message of a failure is what to write."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.checksum import is_intact
from benchmarks.glue.gates import FORMAT
from benchmarks.glue.report import tables
from benchmarks.glue.report.goals import GOALS, Middle, gap, gaps_by_seed
from benchmarks.glue.report.groups import BLIND, Group, Groups, choose
from benchmarks.glue.report.summary import is_of_suite
from benchmarks.glue.results import Result, read_all
from ponder._utils.files import read_json
from ponder.pages import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CLASSES = ("Banking77", "CLINC150", "CoLA", "MRPC", "RTE", "SST-2")
SPEED_UPS = (1.5, 2.0, 3.0)
MIDDLES: tuple[Middle, Middle] = (statistics.median, statistics.fmean)


def one_line(text: str) -> str:
    return " ".join(text.split())


PAGE, IN_SHORT, OF_PALBERT = (
    one_line((ROOT / "docs" / name).read_text()) for name in ("findings.md", "benchmark.md", "palbert.md")
)


def says(words: str) -> None:
    assert words in PAGE


def says_in_short(words: str) -> None:
    assert words in IN_SHORT


def says_of_palbert(words: str) -> None:
    assert words in OF_PALBERT


def listed(numbers: Iterable[float]) -> str:
    *first, last = [f"{number:.1f}" for number in numbers]
    return f"{', '.join(first)} and {last}"


def repeated(folder: str) -> dict[str, Result]:
    """Runs by task that an earlier version of their recipe made, which are kept beside those of now."""
    paths = sorted((RESULTS / "repeated" / folder).glob("*-minilm-*-s0-*.json"))
    return {result["task"]: result for result in (Result(read_json(path), path) for path in paths)}


def of_one(result: Result) -> Group:
    return Group(result["recipe"], result["task"], (result,))


def known(number: float | None) -> float:
    assert number is not None
    return number


def at(group: Group, speed_up: float, policy: str | None = None) -> float:
    return known(group.at(speed_up, policy or group.own_policy))


@pytest.fixture(scope="module")
def results() -> list[Result]:
    return read_all(RESULTS / "glue")


def chosen(results: list[Result], backbone: str, *, of_suite: bool) -> Groups:
    """The groups that the report shows in one of its sections."""
    return choose(run for run in results if run["backbone"] == backbone and is_of_suite(run) == of_suite)[0]


@pytest.fixture(scope="module")
def pays(results: list[Result]) -> Groups:
    return chosen(results, "minilm", of_suite=True)


@pytest.fixture(scope="module")
def pays_on_mpnet(results: list[Result]) -> Groups:
    return chosen(results, "mpnet", of_suite=True)


@pytest.fixture(scope="module")
def before(results: list[Result]) -> Groups:
    return chosen(results, "minilm", of_suite=False)


@pytest.fixture(scope="module")
def before_on_mpnet(results: list[Result]) -> Groups:
    return chosen(results, "mpnet", of_suite=False)


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    return dict(read_json(ROOT / "docs" / "results-summary.json"))


def test_where_exits_pay(summary: dict[str, Any], pays: Groups, pays_on_mpnet: Groups) -> None:
    twice, thrice = (summary["minilm"][key]["tasks"] for key in "23")
    ahead = {task: f"{gap(pays, task, BLIND, 2.0):.1f}" for task, it in twice.items() if it["ponder"]}
    has = {task: f"{it['ponder']:.1f}" for task, it in twice.items() if it["ponder"]}
    where = ("SST-2", "MRPC", "Banking77", "CLINC150")
    of_cut = sorted(known(gap(pays, task, "static", 2.0)) for task in where)
    says(
        f"at ×2 `ponder` is {ahead['SST-2']} points ahead of a blind choice on the same model on SST-2 "
        f"({has['SST-2']}), {ahead['MRPC']} on MRPC ({has['MRPC']}), {ahead['Banking77']} on Banking77 "
        f"({has['Banking77']}) and {ahead['CLINC150']} on CLINC150 ({has['CLINC150']}), and {of_cut[0]:.1f} to "
        f"{of_cut[-1]:.1f} ahead of the encoder cut after three steps."
    )
    where_blind = sorted(known(gap(pays, task, BLIND, 2.0)) for task in where)
    says_in_short(
        f"at ×2 `ponder` is {where_blind[0]:.1f} to {where_blind[-1]:.1f} points ahead of a blind choice on its own "
        f"models, and {of_cut[0]:.1f} to {of_cut[-1]:.1f} ahead of the encoder that was cut."
    )
    sst_2, clinc = thrice["SST-2"], thrice["CLINC150"]
    says(
        f"And at ×3 it has {sst_2['ponder']:.1f} on SST-2, where the encoder cut after two has {sst_2['static']:.1f}, "
        f"and on CLINC150 {clinc['ponder']:.1f} and {clinc['static']:.1f}."
    )
    once, twice = (summary["mpnet"][key]["tasks"]["SST-2"] for key in "12")
    full, slow = (summary["mpnet"][key]["tasks"]["Banking77"] for key in "13")
    says(
        f"On `mpnet`, SST-2 has {twice['ponder']:.1f} at ×2, {once['vanilla'] - twice['ponder']:.1f} below plain "
        f"fine-tuning, and at ×3 it is {gap(pays_on_mpnet, 'SST-2', BLIND, 3.0):.1f} above blind; Banking77 has "
        f"{slow['ponder']:.1f} at ×3, {slow['ponder'] - full['vanilla']:.1f} above plain fine-tuning."
    )


def test_where_exits_do_not_pay(summary: dict[str, Any], pays: Groups, pays_on_mpnet: Groups) -> None:
    twice = summary["minilm"]["2"]["tasks"]
    sts_b, cola, rte = (twice[task] for task in ("STS-B", "CoLA", "RTE"))
    assert sts_b["ponder"] - sts_b["blind"] < 0.05
    says(f"({sts_b['ponder']:.1f} at ×2), and the encoder cut after three steps has {sts_b['static']:.1f}.")
    says(
        f"On CoLA blind and the cut encoder have {cola['blind']:.1f} and {cola['static']:.1f} at ×2, and `ponder` "
        f"{cola['ponder']:.1f};"
    )
    steps = [100 * score for run in pays["ponder", "RTE"].runs for score in run.per_step]
    says(
        f"on RTE they have {rte['blind']:.1f}, {rte['static']:.1f} and {rte['ponder']:.1f}, and runs "
        f"differ by more than recipes do: the steps of `ponder` score between {min(steps):.1f} and {max(steps):.1f}."
    )
    full, fast, twice = (summary["mpnet"][key]["tasks"]["RTE"] for key in ("1", "1.5", "2"))
    says(
        f"On `mpnet` RTE is learnt ({full['vanilla']:.1f}): `ponder` has "
        f"{full['ponder']:.1f} at full depth, {fast['ponder']:.1f} at ×1.5 and {twice['ponder']:.1f} at ×2, where the "
        f"encoder cut after six has {twice['static']:.1f}."
    )
    full, twice = (summary["mpnet"][key]["tasks"]["MRPC"] for key in ("1", "2"))
    says(
        f"On MRPC there, that has {twice['static']:.1f}, more than all twelve steps ({full['vanilla']:.1f}), from "
        f"which `ponder` ({twice['ponder']:.1f}) was taught; a blind choice on the model of `ponder` has "
        f"{twice['blind']:.1f}."
    )
    assert twice["static"] > full["vanilla"]
    full, twice_there = (summary["mpnet"][key]["tasks"]["STS-B"] for key in ("1", "2"))
    says(
        f"On `mpnet` `ponder` has {twice_there['ponder']:.1f} there at ×2, more than plain fine-tuning "
        f"({full['vanilla']:.1f}), and a blind choice {twice_there['blind']:.1f}."
    )
    assert twice_there["ponder"] > full["vanilla"]
    of_mpnet = [known(gap(pays_on_mpnet, task, BLIND, 2.0)) for task in ("SST-2", "Banking77", "MRPC")]
    assert of_mpnet[0] > 0.5 > of_mpnet[1] > 0 > of_mpnet[2]
    for task in ("STS-B", "CoLA", "RTE"):  # "one fixed step is as good"
        assert known(gap(pays, task, BLIND, 2.0)) < 0.05
    behind = -of_mpnet[2]
    at_thrice = {task: known(gap(pays_on_mpnet, task, BLIND, 3.0)) for task in ("SST-2", "Banking77", "MRPC")}
    says_in_short(
        "On `mpnet` it pays on SST-2, little on Banking77, and on MRPC not at ×2, where a blind choice is "
        f"{behind:.1f} ahead; at ×3 these have {at_thrice['SST-2']:+.1f}, {at_thrice['Banking77']:+.1f} and "
        f"{at_thrice['MRPC']:+.1f}."
    )


def test_the_order_of_the_averages(summary: dict[str, Any], pays: Groups) -> None:
    once, *faster = (summary["minilm"][key]["macro"] for key in ("1", "1.5", "2", "3"))
    tasks = sorted(task for task, it in summary["minilm"]["2"]["tasks"].items() if it["ponder"])
    assert len(tasks) == 7
    gaps = {(goal.rival, goal.speed_up): (known(goal.gap_in(pays, tasks)), goal.gap) for goal in GOALS[:5]}
    by_seed = {task: gaps_by_seed(pays, task, "static", 1.5) for task in tasks}
    means = statistics.fmean(statistics.fmean(gaps_of_task) for gaps_of_task in by_seed.values())
    assert abs(means) < 0.05 < gaps["static", 1.5][0] < gaps["static", 2.0][0]
    for task in ("CoLA", "RTE"):
        assert sorted(by_seed[task])[0] < -5 < 0 < sorted(by_seed[task])[1]
    says(
        "`ponder` is level with blind at ×1.5, ahead at ×2 and ×3, and ahead of the encoder that was cut by "
        f"{gaps['static', 2.0][0]:.1f} at ×2. At ×1.5 that is {gaps['static', 1.5][0]:.1f} by medians over seeds and "
        f"{abs(means):.1f} by means: one seed of CoLA and one of RTE are far behind."
    )
    assert abs(gaps[BLIND, 1.5][0]) < 0.15
    assert all(0 < found < asked for (_, speed_up), (found, asked) in gaps.items() if speed_up > 1.5)
    for macro in faster:
        assert macro["palbert"] < macro["blind"]
    assert once["ponder"] is not None
    assert summary["minilm"]["3"]["macro"]["pabee"] is None
    assert summary["minilm"]["1.5"]["tasks"]["STS-B"]["pabee"] is None  # "and on STS-B not to ×1.5"


def test_fewer_requests_out_of_scope_are_told(pays: Groups) -> None:
    (table,) = [block for block in tables.out_of_scope(pays) if isinstance(block, Table)]
    told = {recipe: cells for task, recipe, *cells in table.rows if task == "CLINC150"}
    full, exits = told["ponder"][:2]
    assert float(told["vanilla"][0]) > float(exits) > float(full) > float(told["static (k=3)"][1])
    says_in_short(
        f"of the requests of CLINC150 that are out of scope, plain fine-tuning recognises {told['vanilla'][0]}%, "
        f"`ponder` {full}% at full depth and {exits}% at its exits, and the encoder cut after three steps "
        f"{told['static (k=3)'][1]}%, after two {told['static (k=2)'][1]}% (medians over seeds)."
    )


def test_what_distilling_the_cut_encoder_brings(pays: Groups) -> None:
    distilled = {task: group for (_, task), group in pays.items() if group.is_distilled}
    assert sorted(distilled) == ["CoLA", "MRPC", "SST-2", "STS-B"]
    assert sum(len(group.runs) for group in distilled.values()) == 5
    beside: dict[str, list[float]] = {"static": [], "ponder": []}
    for task, group in distilled.items():
        (cut,) = (
            other
            for (_, of), other in pays.items()
            if of == task and other.is_cut and not other.is_distilled and other.speed_up == group.speed_up == 2.0
        )
        ours = pays["ponder", task]
        taught = group.by_seed(2.0, BLIND)
        beside["static"].append(mean_gap(taught, cut.by_seed(2.0, BLIND)))
        beside["ponder"].append(mean_gap(taught, ours.by_seed(2.0, ours.own_policy)))
    says(
        "The cut encoder, distilled (CoLA, MRPC, SST-2 and STS-B, five runs), has "
        f"{statistics.fmean(beside['static']):+.1f} beside the same fine-tuned, and "
        f"{statistics.fmean(beside['ponder']):+.1f} beside `ponder`."
    )


def held_out(group: Group) -> Group:
    """The same runs, scored on the part of train that selected their epochs."""
    runs = [Result({**run.data, "splits": {"dev": run["splits"]["held_out"]}}, run.path) for run in group.runs]
    return Group(group.label, group.task, tuple(runs))


def ahead(group: Group, other: Group, speed_up: float) -> float:
    """Points more than another recipe on one task by confidence, the mean over the seeds that both have."""
    return mean_gap(group.by_seed(speed_up, "confidence"), other.by_seed(speed_up, "confidence"))


def mean_gap(ours: Mapping[int, float], theirs: Mapping[int, float], middle: Middle = statistics.fmean) -> float:
    return middle([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


COMMON_ON_MPNET = ("Banking77", "MRPC", "RTE", "SST-2")
"""Of which there are both `ponder` and `pabee` there, and which have classes."""

APART, NEARLY_LEVEL = ("CoLA", "MRPC", "RTE"), ("Banking77", "CLINC150", "SST-2")
COMPARED = {"minilm": [("pabee", APART), ("pabee", NEARLY_LEVEL), ("deebert", CLASSES)]}
COMPARED["mpnet"] = [("pabee", ("MRPC", "RTE")), ("pabee", ("Banking77", "SST-2")), ("deebert", COMMON_ON_MPNET)]


def rows_beside_ponder(named: str, backbone: str, pairs: Sequence[tuple[Group, Group]]) -> list[list[float]]:
    """Two rows of the table, on dev and on the held-out parts: means over tasks of what a recipe has more."""
    rows = []
    for where in ("", " (held out)"):
        of_split = [(held_out(a), held_out(b)) for a, b in pairs] if where else pairs
        rows.append([statistics.fmean(ahead(*pair, times) for pair in of_split) for times in (1.0, *SPEED_UPS)])
        cells = [named, f"`{backbone}`", ", ".join(group.task for group, _ in pairs) + where]
        says(f"| {' | '.join([*cells, *(f'{mean:+.1f}' for mean in rows[-1])])} |")
    return rows


def test_which_recipe(pays: Groups, pays_on_mpnet: Groups) -> None:
    beside: dict[tuple[str, str], float] = {}
    for backbone, groups in {"minilm": pays, "mpnet": pays_on_mpnet}.items():
        compared = {(recipe, task) for recipe, tasks in COMPARED[backbone] for task in tasks}
        assert compared == {(name, task) for name, task in groups if name in ("pabee", "deebert") and task in CLASSES}
        for recipe, tasks in COMPARED[backbone]:
            pairs = [(groups[recipe, task], groups["ponder", task]) for task in tasks]
            at_twice = [row[2] for row in rows_beside_ponder(f"`{recipe}`", backbone, pairs)]
            beside[recipe, backbone] = at_twice[0]
            if tasks == NEARLY_LEVEL:
                assert -1 < min(at_twice) <= max(at_twice) < 0
                says(
                    "elsewhere on `minilm` `ponder` has {:.1f} more (held out {:.1f}).".format(
                        *(-ahead for ahead in at_twice)
                    )
                )
    apart = {
        task: [ahead(of(pays["pabee", task]), of(pays["ponder", task]), 2.0) for of in (lambda it: it, held_out)]
        for task in APART
    }
    assert min(apart["CoLA"]) > 1
    assert all(min(apart[task]) < 0 < max(apart[task]) for task in ("MRPC", "RTE"))
    signed = {task: "{:+.1f} (held out {:+.1f})".format(*found) for task, found in apart.items()}
    says(
        "So at ×2 one stage of training on the labels is better on CoLA, where PABEE has "
        f"{signed['CoLA']}; RTE and MRPC do not tell: {signed['RTE']} and {signed['MRPC']};"
    )
    of_two = statistics.fmean(
        ahead(pays_on_mpnet["pabee", task], pays_on_mpnet["ponder", task], 2.0) for task in ("MRPC", "RTE")
    )
    says_in_short(
        f"left by confidence, is {apart['CoLA'][0]:.1f} ahead of `ponder` at ×2 on CoLA, and {of_two:.1f} on MRPC and "
        "RTE of `mpnet`;"
    )
    of_cola = ahead(pays["deebert", "CoLA"], pays["ponder", "CoLA"], 2.0)
    assert of_cola / 6 > beside["deebert", "minilm"] / 2  # "most of it CoLA's", one of the six
    says_in_short(
        f"by confidence, at ×2, DeeBERT has {beside['deebert', 'minilm']:+.1f} beside `ponder` on the six tasks of "
        f"`minilm` with classes, most of it CoLA's, and {beside['deebert', 'mpnet']:+.1f} on the four of `mpnet`."
    )


def beside_rivals(groups: Groups, recipe: str) -> list[float]:
    """Points of a recipe, by confidence, on the six tasks with classes: medians over seeds, the mean over tasks.

    Beside blind at ×1.5, ×2 and ×3, beside the encoder cut at ×1.5 and ×2, and at full depth beside plain fine-tuning.
    """
    rivals = (
        [(BLIND, times) for times in SPEED_UPS] + [("static", times) for times in SPEED_UPS[:2]] + [("vanilla", 1.0)]
    )
    found = []
    for rival, times in rivals:
        of_tasks = []
        for task in CLASSES:
            own = groups[recipe, task]
            other = own if rival == BLIND else cut_at(groups, task, times) if rival == "static" else groups[rival, task]
            ours, theirs = own.by_seed(times, "confidence"), other.by_seed(times, BLIND)
            of_tasks.append(statistics.median(known(ours[seed]) - known(theirs[seed]) for seed in ours))
        found.append(statistics.fmean(of_tasks))
    return found


def cut_at(groups: Groups, task: str, speed_up: float) -> Group:
    return next(
        group
        for (_, of), group in groups.items()
        if of == task and group.is_cut and not group.is_distilled and abs(group.speed_up - speed_up) < 1e-6
    )


def test_three_recipes_beside_the_rivals(pays: Groups) -> None:
    goals, met, scores = [0.5, 1.0, 2.0, 0.5, 1.0, -0.3], dict[str, int](), dict[str, float]()
    for recipe in ("deebert", "pabee", "ponder"):
        groups = [held_out(pays[recipe, task]) for task in CLASSES]
        scores[recipe] = statistics.fmean(
            known(group.at(times, "confidence")) for group in groups for times in (1.0, *SPEED_UPS)
        )
        found = [f"{points:+.1f}" for points in beside_rivals(pays, recipe)]
        met[recipe] = sum(float(points) >= goal for points, goal in zip(found, goals, strict=True))
        cells = [f"`{recipe}`", ", ".join(found[:3]), ", ".join(found[3:5]), found[5], f"{scores[recipe]:.1f}"]
        says(f"| {' | '.join(cells)} |")
    assert (met["deebert"], met["ponder"]) == (5, 2)
    assert max(scores.values()) - min(scores.values()) < 0.2
    says("meets five of the six goals that were set for `ponder`, which meets two of them there.")
    says("Held out, where the default was to be chosen, the three are level.")


def kept_of_two(groups: Groups, task: str) -> dict[int, Group]:
    """By seed of both, `ponder` or `pabee`: the one with the better mean score, by confidence, on the held-out part."""
    kept: dict[int, Group] = {}
    for group in (groups["ponder", task], groups["pabee", task]):
        for run in group.runs:
            seed, one = run["config"]["seed"], of_one(run)
            before = kept.get(seed, one)
            kept[seed] = max(before, one, key=lambda it: merit_held_out(it, seed))
    both = [set(groups[recipe, task].by_seed(1.0, BLIND)) for recipe in ("ponder", "pabee")]
    return {seed: kept[seed] for seed in sorted(set.intersection(*both))}


def merit_held_out(group: Group, seed: int) -> float:
    scores = [held_out(group).by_seed(times, "confidence").get(seed) for times in SPEED_UPS]
    return statistics.fmean(score for score in scores if score is not None) if None not in scores else -math.inf


def gaps_of_the_kept(groups: Groups, tasks: Sequence[str], rival: str, speed_up: float) -> float:
    """Points ahead of a rival, as `gap` tells them of `ponder`: medians over seeds, the mean over tasks."""
    of_tasks = []
    for task in tasks:
        kept = kept_of_two(groups, task)
        policies = {seed: "confidence" if group.label == "pabee" else group.own_policy for seed, group in kept.items()}
        ours = {seed: group.by_seed(speed_up, policies[seed])[seed] for seed, group in kept.items()}
        if rival == BLIND:
            theirs = {seed: group.by_seed(speed_up, BLIND)[seed] for seed, group in kept.items()}
        else:
            cut = cut_at(groups, task, speed_up)
            theirs = cut.by_seed(speed_up, BLIND)
        of_tasks.append(statistics.median(ours[seed] - theirs[seed] for seed in ours if seed in theirs))
    return statistics.fmean(of_tasks)


def test_what_training_both_brings(pays: Groups, pays_on_mpnet: Groups) -> None:
    for groups, tasks in ((pays, (*CLASSES, "STS-B")), (pays_on_mpnet, COMMON_ON_MPNET)):
        beside_cut = [gaps_of_the_kept(groups, tasks, "static", times) for times in SPEED_UPS[:2]]
        beside_blind = [gaps_of_the_kept(groups, tasks, BLIND, times) for times in SPEED_UPS]
        says(
            "{:+.1f} and {:+.1f} (×1.5, ×2) beside the encoder cut there, and {:+.1f}, {:+.1f} and {:+.1f} (×3) beside "
            "blind".format(*beside_cut, *beside_blind)
        )


def test_what_else_the_default_might_have_been(pays: Groups) -> None:
    """Runs of other objectives, of one seed, beside `ponder` of that seed."""
    runs = [Result.of_run(path) for path in sorted((RESULTS / "repeated" / "questions").glob("*.json"))]
    assert {run["config"]["seed"] for run in runs} == {1}
    groups, found = choose(runs)[0], {}
    for label in ("ponder (joint=True)", "ponder (alignment=0.1)", "cosee"):
        tasks = sorted(task for name, task in groups if name == label)
        assert tasks == ["MRPC", "SST-2"]
        pairs = [(groups[label, task], pays["ponder", task]) for task in tasks]
        found[label] = rows_beside_ponder(f"`{label}`", "minilm", pairs)[1][2]  # held out, at ×2
    of_weights = statistics.fmean(
        ahead(held_out(groups["cosee", task]), held_out(pays["pabee", task]), 2.0) for task in tasks
    )
    says(
        f"one stage that distils the last step is {-found['ponder (joint=True)']:.1f} behind the two stages of "
        f"`ponder`; COSEE's weights are {-found['cosee']:.1f} behind them, and {-of_weights:.1f} behind PABEE's "
        f"linear ones; alignment brings {found['ponder (alignment=0.1)']:.1f}, too little to tell."
    )


def test_what_one_fine_tuned_model_becomes(pays: Groups) -> None:
    """Runs that go on from the same fine-tuned model of a task, so that only the second stage differs."""
    runs = [Result.of_run(path) for path in sorted((RESULTS / "repeated" / "from-one-model").glob("*.json"))]
    assert {run["config"]["seed"] for run in runs} == {1}
    for task in ("MRPC", "SST-2"):
        first = [run["training"][0] for run in runs if run["task"] == task]
        assert first.count(first[0]) == len(first) > 2
    groups, found = choose(runs)[0], list[float]()
    trained_again = [
        statistics.fmean(ahead(of(groups["ponder", task]), of(pays["ponder", task]), 2.0) for task in ("MRPC", "SST-2"))
        for of in (lambda group: group, held_out)
    ]
    says("`ponder` itself, trained again with that seed, has {:+.1f} (held out {:+.1f}) there".format(*trained_again))
    for option in ("heads=norms", "early_gradient=equilibrium", "alternating=True"):
        pairs = [(groups[key], groups["ponder", key[1]]) for key in sorted(groups) if key[0] == f"ponder ({option})"]
        found.append(rows_beside_ponder(f"`ponder ({option})`", "minilm", pairs)[1][2])  # held out, at ×2
    assert max(found) < 0.05
    says("None of the last three rows of the table helps")
    options = re.findall(r"\| `ponder \((\S+)\)` \|", PAGE)
    assert list(dict.fromkeys(options))[-3:] == ["heads=norms", "early_gradient=equilibrium", "alternating=True"]


def test_what_longer_training_brings(pays: Groups, before: Groups) -> None:
    """The suites of before trained two epochs of CoLA and three of MRPC and RTE; `pays` trains up to eight."""

    def full_depth(group: Group, split: str) -> float:
        assert len(group.runs) == 3
        return statistics.fmean(100 * run["splits"][split]["full_depth"]["score"] for run in group.runs)

    gained = {}
    for task in ("CoLA", "MRPC", "RTE"):
        short, longer = before["vanilla", task], pays["vanilla", task]
        assert {run["training"][0]["epochs"] for run in short.runs} == {2 if task == "CoLA" else 3}
        assert {run["config"]["epochs"] for run in longer.runs} == {8}
        gained[task] = [full_depth(longer, of) - full_depth(short, of) for of in ("held_out", "dev")]
    short, longer = before["vanilla", "CoLA"], pays["vanilla", "CoLA"]
    says(
        f"Plain fine-tuning of CoLA with up to eight epochs has {full_depth(longer, 'held_out'):.1f} held out "
        f"({full_depth(longer, 'dev'):.1f} on *dev*), and with two {full_depth(short, 'held_out'):.1f} "
        f"({full_depth(short, 'dev'):.1f}); on MRPC and RTE, where it had three, {gained['MRPC'][0]:+.1f} and "
        f"{gained['RTE'][0]:+.1f} held out."
    )
    after_two = statistics.fmean(100 * run["training"][0]["held_out_scores"][1] for run in longer.runs)
    says(f"the longer runs have {after_two:.1f} held out after the second of their epochs")
    runs = [run for (name, _), group in pays.items() if name in ("vanilla", "ponder", "pabee") for run in group.runs]
    stages = [stage for run in runs for stage in run["training"]]
    all_eight = sum(stage["epochs"] == 8 for stage in stages)
    says(f"{all_eight} of the {len(stages)} stages of plain fine-tuning, `ponder` and PABEE used all eight.")


def test_what_mixing_the_weights_gives_back(pays: Groups) -> None:
    without = {task: of_one(run) for task, run in repeated("unmixed").items()}
    mixed, vanilla = ([of_one(pays[name, task].runs[0]) for task in without] for name in ("ponder", "vanilla"))

    def full(groups: Iterable[Group]) -> float:
        return statistics.fmean(100 * group.runs[0].score("full_depth") for group in groups)

    def mean(groups: Iterable[Group], speed_up: float, policy: str | None = None) -> float:
        return statistics.fmean(at(group, speed_up, policy) for group in groups)

    seeds = {group.runs[0]["config"]["seed"] for group in [*mixed, *vanilla, *without.values()]}
    assert seeds == {0}, "the runs without mixing have one seed"
    assert sorted(without) == ["Banking77", "MRPC", "SST-2", "STS-B"]
    lost = {
        group.task: [full([plain]) - full([group]), full([plain]) - full([without[group.task]])]
        for group, plain in zip(mixed, vanilla, strict=True)
    }
    assert max(lost.pop("SST-2")) < 0 < min(map(min, lost.values()))  # "on SST-2 both gain"
    with_it, without_it = (statistics.fmean(of_task[place] for of_task in lost.values()) for place in (0, 1))
    says(
        f"`ponder` is {with_it:.1f} below plain fine-tuning at full depth on Banking77, MRPC and STS-B, and without it "
        f"{without_it:.1f} (on SST-2 both gain); at ×2 it has {mean(mixed, 2):.1f} over the four tasks, and without it "
        f"{mean(without.values(), 2):.1f} (seed 0)."
    )
    assert 0.4 < with_it / without_it < 0.6  # "half of that"


def test_which_epoch_is_selected() -> None:
    by_mean, at_exits = (
        {task: at(of_one(run), 3) for task, run in repeated(folder).items()}
        for folder in ("unmixed", "selected-at-exits")
    )
    assert repeated("selected-at-exits")["SST-2"]["training"][1]["epochs"] == 3
    says(
        f"selection by the score at the exits stopped SST-2 after three epochs, with {at_exits['SST-2']:.1f} at ×3, "
        f"and by the mean of the steps' scores it had {by_mean['SST-2']:.1f}"
    )
    mean_held_out, exits_held_out = (
        {task: at(held_out(of_one(run)), 3) for task, run in repeated(folder).items()}
        for folder in ("unmixed", "selected-at-exits")
    )
    says(
        f"({by_mean['Banking77']:.1f} and {at_exits['Banking77']:.1f} at ×3), but held out both gave more: "
        f"{mean_held_out['Banking77']:.1f} and {exits_held_out['Banking77']:.1f} there, and "
        f"{mean_held_out['SST-2']:.1f} and {exits_held_out['SST-2']:.1f} on SST-2"
    )


def test_what_gates_add_to_confidence() -> None:
    every = [read_json(path) for path in sorted((RESULTS / "gates").glob("*.json"))]
    assert all(is_intact(result) and result["format"] == FORMAT for result in every)
    (of_numbers,), found = ([r for r in every if ("confidence" in r["scores"]) is known] for known in (False, True))
    assert (len(found), {result["task"] for result in found}) == (7, {"SST-2", "MRPC", "CLINC150"})

    def apart(name: str, place: int) -> float:
        """Points more than confidence, the mean over the models, at ×2 or ×3."""
        pairs = [(result["scores"][name][place], result["scores"]["confidence"][place]) for result in found]
        return statistics.fmean(100 * (own - other) for own, other in pairs)

    with_features = "gate, agreement, logistic, features"
    gates = [name for name in found[0]["scores"] if name.startswith("gate") and name != with_features]
    (low, high), (lower, higher) = (
        (min(apart(name, place) for name in gates), max(apart(name, place) for name in gates)) for place in (1, 2)
    )
    signed = [f"{number:+.1f}".replace("-", "−") for number in (low, high, lower, higher)]
    says(f"differ from confidence by {signed[0]} to {signed[1]} points at ×2 and {signed[2]} to {signed[3]} at ×3")
    says_in_short(
        f"beats plain confidence by more than {max(high, higher):.1f} points, on average over {len(found)} models,"
    )
    assert {max(gates, key=lambda name: apart(name, place)) for place in (1, 2)} == {"gate, agreement, logistic"}
    says(f"costs {-apart(with_features, 1):.1f} and {-apart(with_features, 2):.1f} points.")
    says(f"A blind choice is {-apart(BLIND, 1):.1f} and {-apart(BLIND, 2):.1f} behind")
    averaged = [-apart(f"ensemble, {weights}", 1) for weights in ("fitted", "linear", "uniform")]
    assert averaged == sorted(averaged)
    says(f"the averaged answers of the steps so far {averaged[0]:.1f} to {averaged[-1]:.1f} at ×2")
    ensembles = [name for name in found[0]["scores"] if name.startswith("ensemble")]
    assert max(apart(name, place) for name in ensembles for place in range(3)) < 0
    more = [result["scores"][name][1] - result["scores"]["confidence"][1] for result in found for name in ensembles]
    assert max(more) > 0
    page = one_line((ROOT / "docs" / "pay.md").read_text())
    assert (
        "on average over seven kept models it is behind the answer of the step itself, whatever the weights, though "
        "ahead on some ([What was learnt](findings.md#when-to-leave))."
    ) in page
    assert of_numbers["task"] == "STS-B"
    ahead = max(100 * (of_numbers["scores"][name][1] - of_numbers["scores"][BLIND][1]) for name in of_numbers["scores"])
    assert ahead < 0.05
    says("neither patience nor a fitted gate is better")


def test_the_four_changes_of_palbert(before: Groups) -> None:
    (table,) = [block for block in tables.ablation(before) if isinstance(block, Table)]
    place = list(table.head).index("CoLA")
    plain, q_exit, rate, layers, _, both = (row[place].partition(" ")[0] for row in table.rows if row[0] != "vanilla")
    says_of_palbert(
        f"on CoLA of `minilm`, by means over three seeds, {plain} → {q_exit} with Q-exit → {rate} with a rate of its "
        f"own for the Lambda head → {layers} with three layers → {both} with the hidden state of the step before."
    )
    alone, whole = (before[name, "CoLA"] for name in ("palbert (hidden_concat=False)", "palbert"))
    assert len(alone.runs) == len(whole.runs) == 3
    medians = [statistics.median(group.scores) for group in (alone, whole)]
    assert medians[0] > medians[1]
    says_of_palbert(f"By medians the last change brings nothing ({medians[0]:.1f} → {medians[1]:.1f}).")
    place = list(table.head).index("MRPC")
    of_mrpc = [row[place].partition(" ")[0] for row in table.rows if row[0] != "vanilla"]
    steps = [
        statistics.fmean(run["num_steps"] / run["speed_up"]["steps"] for run in before[name, "MRPC"].runs)
        for name in ("pondernet", "palbert")
    ]
    says_of_palbert(
        f"On MRPC the same chain is {' → '.join(of_mrpc[:4])} → {of_mrpc[5]}, but PonderNet leaves at step "
        f"{steps[0]:.1f} and PALBERT at {steps[1]:.1f}."
    )
    rte = repeated("as-the-paper")["RTE"]
    assert rte["training"][0]["epochs"] == 7
    assert rte["selection"] == "held_out"
    says_of_palbert("its epoch was selected on a held-out tenth of *train*, and in the paper on *dev*.")
    says_of_palbert(f"until five epochs bring nothing (seven in all), it has {100 * rte.score('exits'):.1f}")


def test_the_order_of_the_paper_on_mpnet(
    before_on_mpnet: Groups, pays_on_mpnet: Groups, summary: dict[str, Any]
) -> None:
    common = ("CoLA", "MRPC", "STS-B", "RTE")

    def groups_of(recipe: str) -> list[Group]:
        return [before_on_mpnet[recipe, task] for task in common]

    def macro(recipe: str) -> float:
        return statistics.fmean(statistics.median(group.scores) for group in groups_of(recipe))

    def full_depth(recipe: str) -> float:
        scores = [[100 * run.score("full_depth") for run in group.runs] for group in groups_of(recipe)]
        return statistics.fmean(map(statistics.median, scores))

    def at_cost(recipe: str, speed_up: float) -> float:
        return statistics.fmean(at(group, speed_up) for group in groups_of(recipe))

    order = [macro(recipe) for recipe in ("palbert", "pabee", "pondernet")]
    assert order == sorted(order, reverse=True)
    several = {
        (recipe, task): listed(sorted(group.scores))
        for (recipe, task), group in before_on_mpnet.items()
        if recipe in ("palbert", "pabee", "pondernet") and task in common and len(group.runs) > 1
    }
    assert list(several) == [("pondernet", "CoLA")]
    says_of_palbert(
        f"PALBERT before PABEE before PonderNet ({listed(order)} over CoLA, MRPC, STS-B and RTE, with one seed, but "
        f"for PonderNet on CoLA, whose two have {several['pondernet', 'CoLA']})"
    )
    mrpc = [statistics.median(before_on_mpnet[recipe, "MRPC"].scores) for recipe in ("palbert", "pabee")]
    assert mrpc[0] < mrpc[1]  # "with PABEE ahead on MRPC"
    says_of_palbert(f"Plain fine-tuning has {macro('vanilla'):.1f}.")
    says_of_palbert(
        f"PABEE has {full_depth('pabee'):.1f} at full depth and PALBERT {full_depth('palbert'):.1f}; at ×1.5 they have "
        f"{at_cost('pabee', 1.5):.1f} and {at_cost('palbert', 1.5):.1f}, and at ×2 {at_cost('pabee', 2):.1f} and "
        f"{at_cost('palbert', 2):.1f}. PonderNet has {full_depth('pondernet'):.1f} at full depth."
    )
    tasks = ("Banking77", "MRPC", "SST-2", "RTE", "STS-B")
    assert sorted(tasks) == sorted(summary["mpnet"]["2"]["tasks"])
    palbert, pabee = (
        [summary["mpnet"]["2"]["tasks"][task][recipe] for task in tasks] for recipe in ("palbert", "pabee")
    )
    says_of_palbert(
        f"PALBERT has {listed(palbert)} at ×2 on Banking77, MRPC, SST-2, RTE and STS-B of `mpnet`, and PABEE "
        f"{listed(pabee)}."
    )
    means = [[summary["mpnet"][at]["macro"][recipe] for at in ("1", "1.5", "2")] for recipe in ("palbert", "pabee")]
    says_of_palbert(f"Over all five these are {listed(means[0])} at full depth, ×1.5 and ×2, and {listed(means[1])}")
    of_both = [[pays_on_mpnet[recipe, task] for task in tasks] for recipe in ("palbert", "pabee")]
    seeds = [[len(group.runs) for group in groups] for groups in of_both]
    assert seeds == [[3, 3, 1, 1, 1]] * 2  # "with one seed, but three on Banking77 and MRPC"
    gaps = {  # each by its own policy
        task: [mean_gap(*(each.by_seed(times, each.own_policy) for each in pair)) for times in (1.0, 1.5, 2.0)]
        for task, *pair in zip(tasks, *of_both, strict=True)
    }
    without = [of_task for task, of_task in gaps.items() if task != "RTE"]
    behind_by = [-statistics.fmean(at_cost) for at_cost in zip(*gaps.values(), strict=True)]
    ahead_by = [statistics.fmean(at_cost) for at_cost in zip(*without, strict=True)]
    assert min(behind_by) > 0
    assert min(ahead_by) > 0
    says_of_palbert(
        f"PABEE is {listed(behind_by)} ahead, by the one seed of RTE: over the other four tasks PALBERT is "
        f"{listed(ahead_by)} ahead."
    )


def test_q_exit_hardly_tells_examples_apart(pays: Groups) -> None:
    cola, mrpc = pays["palbert", "CoLA"], pays["palbert", "MRPC"]
    exits = [run.reported[0]["exit_histogram"] for run in cola.runs]
    shares = [f"{100 * max(counts) / sum(counts):.0f}%" for counts in exits]
    says(f"it sends {', '.join(shares[:-1])} and {shares[-1]} of the rows out at one step.")
    pairs = [(at(group, 2, "confidence"), at(group, 2)) for group in (cola, mrpc)]
    says("it has {:.1f} and not {:.1f} on CoLA, and {:.1f} and not {:.1f} on MRPC.".format(*pairs[0], *pairs[1]))


def behind(groups: Iterable[Group], policy: str, rival: str) -> tuple[int, int]:
    """In how many pairs of recipe and task a policy is behind another at ×2, and in how many both get there."""
    pairs = [
        (group.at(2, policy), group.at(2, rival)) for group in groups if {policy, rival} <= {*group.policies, BLIND}
    ]
    reached = [(own, other) for own, other in pairs if own is not None and other is not None]
    return sum(own < other for own, other in reached), len(reached)


def test_patience_and_q_exit_are_behind(pays: Groups, pays_on_mpnet: Groups) -> None:
    groups = [*pays.values(), *pays_on_mpnet.values()]
    fewer, pairs = behind(groups, "patience", BLIND)
    of_confidence, of_classes = behind(groups, "patience", "confidence")
    says(
        f"at ×2 it is behind a blind choice on the same models in {fewer} of the {pairs} pairs of recipe and task "
        f"where it gets so far, and behind confidence in {of_confidence} of the {of_classes} with classes."
    )
    of_q_exit, where = behind(groups, "quantile", "confidence")
    says_in_short(
        f"at ×2 Q-exit, of PALBERT, is behind it on {of_q_exit} of {where} tasks, and patience in {of_confidence} of "
        f"{of_classes} pairs of recipe and task."
    )


def test_a_shorter_cut_is_better_on_mpnet(pays_on_mpnet: Groups) -> None:
    cuts = {(task, group.speed_up): group for (_, task), group in pays_on_mpnet.items() if group.is_cut}
    tasks = {task for task, _ in cuts}
    assert len(tasks) == 5
    assert all(at(cuts[task, 2.0], 2.0, BLIND) > at(cuts[task, 1.5], 1.5, BLIND) for task in tasks)
    page = one_line((ROOT / "docs" / "benchmark-details.md").read_text())
    assert "on `mpnet` the one of six steps is better than the one of eight on all five tasks." in page


def test_saved_steps_become_seconds(pays: Groups) -> None:
    kept = sorted((RESULTS / "glue" / "clock").glob("*.json"))
    measured: list[tuple[float, float]] = []
    for path in kept:
        result = Result(read_json(path.parents[1] / path.name))
        curves = {curve["policy"]: curve["points"] for curve in result.reported[0]["curves"]}
        for row in read_json(path)["rows"]:
            points = curves[row["policy"]]
            step = points["mean_exit_step"][points["knob"].index(row["knob"])]
            measured.append((result["num_steps"] / step, row["wall_clock"]))
    steps = [in_steps for in_steps, _ in measured]
    assert len(kept) == 3
    says(f"{len(measured)} policies and thresholds on three kept models")
    says(f"between ×{min(steps):.2f} and ×{max(steps):.1f} in steps")
    assert max(abs(seconds / in_steps - 1) for in_steps, seconds in measured) < 1 / 12
    told = [run["speed_up"] for (name, _), group in pays.items() if name == "ponder" for run in group.runs]
    shares = [speed_up["wall_clock"] / speed_up["steps"] for speed_up in told if speed_up["steps"] > 1.1]
    says(
        f"The {len(shares)} runs of `ponder` on `minilm` that save steps, timed beside other work, have "
        f"{min(shares):.2f} to {max(shares):.2f} of that, in the median {statistics.median(shares):.2f}."
    )
    says_in_short(f"less beside other work (in the median {statistics.median(shares):.2f} of what the steps say)")


def test_how_many_epochs_the_recipes_took(pays: Groups) -> None:
    tasks = sorted({task for name, task in pays if name == "ponder"})

    def epochs(name: str) -> int:
        return sum(stage["epochs"] for task in tasks for stage in pays[name, task].runs[0]["training"])

    (cut,) = {name for name, _ in pays if "k=3" in name and "taught" not in name}
    page = one_line((ROOT / "docs" / "benchmark-details.md").read_text())
    assert (
        f"`ponder` took {epochs('ponder')} epochs over the seven tasks of `minilm` (seed 0), plain fine-tuning "
        f"{epochs('vanilla')}, PABEE {epochs('pabee')} and the encoder cut after three steps {epochs(cut)}."
    ) in page
