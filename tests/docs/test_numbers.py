"""Numbers in prose are those of the committed results.

`CLAIMS` lists sentences with numbers, page by page, each made from the results: a page has to
contain them word for word. Every other number of a page stands in `NO_RESULTS`, in the order of
size: levels, sizes of an example, versions, goals that were set beforehand, numbers of a paper.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from scipy.stats import binom, binomtest

from benchmarks.gallery.drawing import digest_of_figure
from benchmarks.glue.report import fair_gaps, summary
from benchmarks.glue.report.summary import compared_groups
from benchmarks.glue.report.versus import pairs_of
from benchmarks.glue.results import Result, read_all
from benchmarks.glue.sweep import suite_named
from benchmarks.live import report
from docs.extensions.pages import commits_since, pages, staleness, with_tables, without_tables
from docs.extensions.tables import RESULTS, epochs_of_longer_runs, gains_of_longer_runs
from tests.docs.shown_code import prose

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


@cache
def runs() -> list[Result]:
    return read_all(RESULTS / "glue")


@cache
def scores() -> Any:
    return json.loads((ROOT / "docs" / "results-summary.json").read_text("utf-8"))


def page_text(name: str) -> str:
    """Return the prose of a page on one line."""
    text = without_tables((ROOT / name).read_text("utf-8"))
    return " ".join(prose(text).split())


# ---- Claims ------------------------------------------------------------------------------------------


def speed_up_on_test(race: Any) -> float:
    """Return how many times faster than the model as it is the winner of a race answered test texts."""
    seconds = {row["name"]: row["seconds"] for row in race["test"]["ways"]}
    return float(seconds["as it is"] / seconds[race["winner"]])


def readme_claims() -> Iterator[str]:
    found = advice("minilm")
    certify = 1199
    assert all(whole(way["accuracy"] * certify) for way in found["race"])
    rows = found["test"]["rows"]
    yield (
        f"certified on {certify:,} texts. Answers (95% intervals) are of {rows:,} test texts, "
        "times of 256 of them."
    )
    yield from advice_rows()
    won = [speed_up_on_test(race) for race in real_races()]
    yield (
        f"In {len(won)} such races, one seed each, the winner was "
        f"×{min(won):.2f} to ×{max(won):.2f} faster on test texts"
    )


def real_races() -> list[Any]:
    races = [read(f"advice/{path.name}") for path in (RESULTS / "advice").glob("*-s0.json")]
    return [race for race in races if race["task"] != "generated"]


def whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-6


def advice(backbone: str) -> Any:
    return read(f"advice/banking77-{backbone}-s0.json")


def advice_rows() -> Iterator[str]:
    found = advice("minilm")
    rows = found["test"]["rows"]
    plain = found["test"]["ways"][0]["seconds"]
    for way in found["test"]["ways"]:
        name = way["name"]
        if name not in ("as it is", "exits", "cascade", "int8", "int8 + exits"):
            continue
        others = binomtest(round(way["other_answers"] * rows), rows).proportion_ci()
        shown = f"**{name}**" if name == found["winner"] else name
        interval = f" ({others.low:.1%} to {others.high:.1%})" if way["other_answers"] else ""
        yield (
            f"| {shown} | {plain / way['seconds']:.2f} | {way['promise']:.0%} "
            f"| {way['other_answers']:.2%}{interval} | {way['accuracy']:.1%} |"
        )


def gaps(backbone: str, rival: str, results: Sequence[Result] | None = None) -> list[float]:
    """Return the points by which the default is ahead of a rival at ×1.5, ×2 and ×3, means over tasks."""
    groups = compared_groups(runs() if results is None else results)[backbone]
    found = []
    for times in (1.5, 2.0, 3.0):
        of_task = fair_gaps(groups, times, rival)
        if of_task:
            found.append(sum(of_task.values()) / len(of_task))
    return found


def signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


def pays_claims() -> Iterator[str]:
    blind = [signed(gaps(backbone, "blind_fair")) for backbone in ("minilm", "mpnet")]
    yield f"at ×1.5, ×2 and ×3 | met: {blind[0]} | met: {blind[1]} |"
    yield from cascades_claims()
    yield from claims_of_the_other_run()
    cut = [signed(gaps(backbone, "static")[:2]) for backbone in ("minilm", "mpnet")]
    yield f"at ×1.5 and ×2 | missed: {cut[0]} | missed at ×2: {cut[1]} |"
    yield f"| met: {gaps('minilm', 'static_taught')[1]:+.1f} at ×2 | not run |"
    full = scores()["minilm"]["1"]["macro"]
    verdict = "met" if full["vanilla"] - full["frozen"] <= 0.1 else "missed"
    yield f"{verdict}: {full['frozen']:.1f}, plain {full['vanilla']:.1f}, not the same seeds"
    suite = [run for run in runs() if run["backbone"] == "minilm" and suite_named("pays").has(run)]
    pabee = [run for run in suite if run["recipe"] == "pabee"]
    cuts = [run for run in suite if run["recipe"] == "static"]
    cuts = [run for run in cuts if not run.config["recipe_options"].get("taught")]
    yield (
        f"`pabee` reached that cap in {sum(map(reached_cap, pabee))} of {len(pabee)} runs "
        f"and the cut encoders in {sum(map(reached_cap, cuts))} of {len(cuts)}, `frozen` in "
        f"{at_cap('frozen')} in one of its stages, plain fine-tuning in {at_cap('vanilla')},"
    )
    yield from pairs_with_deebert()
    yield f"the MPNet models of `frozen` are {luck():.1f} points better than the plain runs"


def at_cap(recipe: str) -> str:
    """Return in how many runs of a recipe some stage reached its cap of epochs."""
    suite = [run for run in runs() if run["backbone"] == "minilm" and suite_named("pays").has(run)]
    of_recipe = [run for run in suite if run["recipe"] == recipe]
    reached = [
        any(
            len(stage["held_out_scores"]) >= run.config["epochs"]
            for stage in run["training"]
            if stage.get("held_out_scores")
        )
        for run in of_recipe
    ]
    return f"{sum(reached)} of {len(reached)}"


def pairs_with_deebert() -> Iterator[str]:
    """How often `deebert` is ahead of the default on dev, of the pairs that differ."""
    ahead = []
    for pair in pairs_of(runs(), read_all(RESULTS / "repeated"), "minilm", "`deebert`"):
        known = [gap for times in (1.5, 2.0, 3.0) if (gap := pair.gap(times)) is not None]
        ahead.append(-mean(known))
    unequal = [gap for gap in ahead if abs(gap) > 0.01]
    yield f"in {sum(gap > 0 for gap in unequal)} of the {len(unequal)} pairs that differ by more than 0.01"


def claims_of_the_other_run() -> Iterator[str]:
    """What two goals become with the other run of the default on STS-B."""
    again = {run.path: run for run in read_all(RESULTS / "repeated") if run["task"] == "STS-B"}
    by_name = {path.name: run for path, run in again.items() if path is not None}
    swapped = [by_name.get(run.path.name, run) for run in runs() if run.path is not None]
    ahead = signed(gaps("minilm", "blind_fair", swapped))
    yield f"the lead on MiniLM is {ahead}, and ×3 is missed"
    full = summary(swapped)["minilm"]["1"]["macro"]["frozen"]
    yield f"full depth is {full:.1f}, and misses its goal too"


def is_cut_to(run: Result, steps: int) -> bool:
    return run.config["recipe_options"].get("k") == steps


def luck() -> float:
    """Return by how much MPNet's fine-tuned models of the default are ahead of the plain runs at full depth."""
    groups = compared_groups(runs())["mpnet"]
    ahead = []
    for (name, task), group in groups.items():
        if name == "frozen":
            own = group.by_seed(1.0, "confidence")
            plain = groups["vanilla", task].by_seed(1.0, "confidence")
            ahead.append(median(own[seed] - plain[seed] for seed in own))
    return sum(ahead) / len(ahead)


def best_is_last(run: Result) -> bool:
    by_epoch = run["training"][0]["held_out_scores"]
    return by_epoch[-1] == max(by_epoch)


def reached_cap(run: Result) -> bool:
    return len(run["training"][0]["held_out_scores"]) >= run.config["epochs"]


def score_at_confidence(run: Result, times: float) -> float:
    from benchmarks.glue.report.groups import score_at

    found = score_at(run, "confidence", run["num_steps"] / times)
    assert found is not None
    return found


def palbert_claims() -> Iterator[str]:
    found = {
        run["recipe"]: run
        for run in read_all(RESULTS / "repeated" / "as-the-paper")
        if run["task"] == "CoLA"
    }
    held_out = {name: 100 * run.held_out.score("exits") for name, run in found.items()}
    yield (
        f"on the held-out rows of the same runs ({held_out['palbert']:.1f}, "
        f"{held_out['vanilla']:.1f}; PonderNet {held_out['pondernet']:.1f})"
    )
    shared = [run for run in runs() if run["backbone"] == "shared"]
    learnt = [run for run in shared if run["task"] in ("CoLA", "SST-2")]
    assert all(best_is_last(run) for run in learnt)
    yield "On CoLA and SST-2 it happened to keep the last of"
    plain = {run["config"]["lr"]: run for run in read_all(RESULTS / "plbert")}
    fast, slow = plain[1.5e-4], plain[5e-5]
    scores = {lr: 100 * run.score("full_depth") for lr, run in plain.items()}
    assert max(scores.values()) < 78.0
    yield f"comes to {scores[1.5e-4]:.1f}% on dev with a learning rate of 1.5e-4 ({fast['config']['epochs']} epochs)"
    yield f"and to {scores[5e-5]:.1f}% with 5e-5 ({slow['config']['epochs']} epochs)"
    last = [100 * score for score in slow["training"][0]["held_out_scores"][-3:]]
    yield f"({last[0]:.1f}, {last[1]:.1f} and {last[2]:.1f}% after the last three)"
    yield "We had set 78% beforehand"


def cascade_runs() -> list[Any]:
    paths = sorted((RESULTS / "cascades").glob("*-s?.json"))
    return [json.loads(path.read_text()) for path in paths if not path.name.startswith("curve")]


def worst_out_of_scope() -> float:
    """Return the largest share of CLINC150's out-of-scope texts that change under a promise of 5%."""
    return max(
        way["other_outside"]
        for run in cascade_runs()
        if run["task"] == "CLINC150"
        for name, way in run["promises"]["0.05"].items()
        if name != "blind mix"
    )


def claims_of_longer_runs() -> Iterator[str]:
    gains = gains_of_longer_runs()
    epochs = dict(zip(gains, epochs_of_longer_runs(), strict=True))
    before = [count for count in epochs.values() if count < 16]
    yield (
        f"{len(before)} of {len(epochs)} runs end before it, "
        f"after {min(before)} to {max(before)} epochs"
    )
    at_the_cap = [name for name, count in epochs.items() if count == 16]
    assert at_the_cap == [("CLINC150", "pabee")]
    (run,) = [
        run for run in read_all(RESULTS / "longer") if (run["task"], run["recipe"]) in at_the_cap
    ]
    scores = run["training"][0]["held_out_scores"]
    yield f"that of `pabee` on CLINC150 is best after {scores.index(max(scores)) + 1}"
    held_out, dev = (sum(pair[n] for pair in gains.values()) / len(gains) for n in (0, 1))
    yield f"their mean gain is {held_out:+.1f} points held out and {dev:+.1f} on dev"
    on_dev = {task: gains[task, "pabee"][1] for task in ("MRPC", "CoLA", "SST-2")}
    yield (
        f"`pabee` gains {on_dev['MRPC']:.1f} on MRPC and {on_dev['CoLA']:.1f} on CoLA "
        f"and loses {-on_dev['SST-2']:.1f} on SST-2; no other run gains more than 0.1"
    )
    assert sum(pair[1] > 0.1 for pair in gains.values()) == 2


def cascades_claims() -> Iterator[str]:
    found = cascade_runs()
    sst, clinc = (promises_of(found, task) for task in ("SST-2", "CLINC150"))
    yield (
        f"{sum(sst.values())} of its {len(sst)} promises are refuted, "
        f"and {above(found, 'SST-2')} of {len(sst)} are above their level."
    )
    yield f"{sum(clinc.values())} of {len(clinc)} on CLINC150's texts in scope are refuted."
    for task in ("Banking77", "MRPC"):
        assert not any(promises_of(found, task).values())
    yield f"up to {worst_out_of_scope():.0%} get another answer under a promise of 5%."
    yield from goals_of_cascades(found)
    failed = read("cascades/not-learnt/mrpc-e5-s0.json")["model"]["accuracy"]
    again = read("cascades/mrpc-e5-s0.json")
    learnt = again["model"]["accuracy"]
    yield f"4 epochs at 2e-4 ended with the larger class ({failed:.1%}), 8 at 1e-4 reach {learnt:.1%}"
    assert again["environment"]["cpu_capability"] == "AVX2"
    yield "timed on a processor without VNNI"
    yield from curve_claims()


def goals_of_cascades(found: list[Any]) -> Iterator[str]:
    """The speed-ups of E5, and means over seeds of MiniLM, in batches at a promise of 2%."""

    def speed_ups(backbone: str, way: str) -> list[float]:
        return [
            mean(
                median(run["promises"]["0.02"][way]["batches"]["times"])
                for run in found
                if run["task"] == task and run["backbone"] == backbone
            )
            for task in ("Banking77", "CLINC150")
        ]

    def shown(values: list[float]) -> str:
        return f"×{values[0]:.1f} and ×{values[1]:.1f}"

    plain, small = speed_ups("minilm", "cascade"), speed_ups("minilm", "int8 cascade")
    yield f"×3.5 with a cascade: missed by MiniLM ({shown(plain)})"
    yield f"×8 in int8: missed by MiniLM ({shown(small)})"
    plain, small = speed_ups("e5", "cascade"), speed_ups("e5", "int8 cascade")
    yield f"×6 with a model of twelve layers: missed by E5 ({shown(plain)}; in int8 {shown(small)})"


def batches_claims() -> Iterator[str]:
    found = read("live/batches.json")
    asked = {(one["level"], one["drawn"], one["finite"]): one["asked"] for one in found["ways"]}
    broken = sum(one["broken"] for one in found["ways"] if one["finite"])
    all_draws = found["draws"] * len(found["ways"]) // 2
    pairs = [
        f"{asked[level, 2000, True]:.1%} instead of {asked[level, 2000, False]:.1%}"
        for level in (0.02, 0.05)
    ]
    yield f"Of {found['rows']:,} texts of Banking77, with 2,000 drawn, {pairs[0]} are asked at 2%, {pairs[1]} at 5%"
    saved = [
        100 * (asked[level, drawn, False] - asked[level, drawn, True])
        for level, drawn, finite in asked
        if finite
    ]
    yield f"with 500 to 2,000 drawn {min(saved):.1f} to {max(saved):.1f} points fewer"
    yield f"It was broken in {broken / all_draws:.1%} of {all_draws:,} draws"


def advise_claims() -> Iterator[str]:
    yield from long_text_claims()
    outside = read("advice/clinc150-minilm-s0.json")["test"]["out_of_scope"]
    redrawn = read("advice/redraws.json")
    settings = redrawn["settings"]
    assert redrawn["winner_broken"] == 0
    yield f"In {settings['redraws']} races on simulated models"
    yield f"broken in {redrawn['any_broken']:.1%} of the races"
    promised = f"{settings['level']:.0%} with {settings['confidence']:.0%} confidence"
    yield f"promises of {promised}, {settings['rows']:,} texts"
    yield f"the winner on MiniLM changes {outside['other_answers']:.1%} of their answers"


def long_text_claims() -> Iterator[str]:
    shorter, longer = [read(f"advice/long/{tokens}-banking77-e5-s0.json") for tokens in (256, 512)]
    assert shorter["winner"] == "cascade"
    assert longer["winner"] == "int8 + exits"
    yield f"`advise` took the cascade, which was ×{speed_up_in_race(shorter):.2f} as fast in the race"
    yield f"it took int8 with exits, ×{speed_up_in_race(longer):.2f} in the race"
    (changed,) = [row["disagreement"] for row in shorter["race"] if row["name"] == "int8"]
    assert round(360 * changed, 6) == 2
    yield "int8 changed 2 of the 360 answers that certify"


def speed_up_in_race(race: Any) -> float:
    (ratio,) = [row["speed_up"][0] for row in race["race"] if row["name"] == race["winner"]]
    return float(ratio)


def live_claims() -> Iterator[str]:
    yield f"out-of-scope texts: up to {worst_out_of_scope():.0%} differ under a promise of 5%"
    (sst,) = [kind for kind in report.kinds() if kind.task == "sst-2"]
    shares = [report.asked(sst, 0.05, way) for way in ("fixed ", "Live")]
    yield f"a fixed threshold that keeps its promise asks about {shares[0]:.0%}, `Live` about {shares[1]:.0%}"


def claims_of_live() -> Iterator[str]:
    found = read("live/kills.json")
    assert (found["lost"], found["paid_twice"], found["understated"]) == (0, 0, 0)
    calls = f"{found['under_way']} calls that were under way and {found['unkept']} that had just returned"
    yield f"in {found['kills']} kills of two processes on one file at a time, {calls}"
    yield f"None of the {found['rows']:,} rows was lost"
    yield from live_goals()
    cost = read("live/overhead.json")
    milliseconds = cost["milliseconds"]
    assert max(milliseconds.values()) <= 0.3
    assert (cost["texts"], cost["seconds_of_a_call"], cost["concurrency"]) == (20_000, 0.05, 16)
    yield (
        f"takes {milliseconds['processor']:.2f} ms of the processor for a text, and by the "
        f"clock {milliseconds['wall']:.2f} ms more than the calls alone"
    )
    linear = report.kinds()
    mixed = [kind for kind in linear if kind.setting != "sorted by class"]
    by_class = [kind for kind in linear if kind.setting == "sorted by class"]
    yield (
        f"{milliseconds_of(report.kinds('student'))} ms with a `Student`, {milliseconds_of(mixed)} ms "
        f"with a regression on embeddings that are at hand, {milliseconds_of(by_class)} ms in those"
    )


def milliseconds_of(kinds: Sequence[Any]) -> str:
    """Return the least and the most time of the processor that `Live` took for a text of a stream."""
    found = [
        1e3 * way["processor_seconds"] / stream["rows"]
        for kind in kinds
        for stream in kind.streams
        for way in stream["ways"]
        if way["way"] == "Live" and "processor_seconds" in way
    ]
    return f"{min(found):.1f} to {max(found):.1f}"


def live_goals() -> Iterator[str]:
    """Goals for the calls of `Live`, and how many of them its streams reach."""

    def ratios(kinds: list[Any], start: str) -> list[float]:
        """Return the calls of `Live` over those of a rival, of each kind at each level."""
        return [
            report.asked(kind, level, "Live") / report.asked(kind, level, start)
            for kind in kinds
            for level in report.LEVELS
        ]

    linear = report.kinds()
    steady = [kind for kind in [*linear, *report.kinds("student")] if kind.setting == "no drift"]
    fixed = ratios(steady, "fixed ")
    yield f"on {sum(ratio <= 1.0 for ratio in fixed)} of {len(fixed)} (6 were the goal)"
    ties = [ratio for ratio in fixed if 0.98 < ratio <= 1.0]
    yield f"of which {len(ties)} are ties ({min(ties):.2f} and {max(ties):.2f} of its calls)"
    tuned = [kind for kind in report.kinds(model=True) if kind.setting == "no drift"]
    yield f"which the goal leaves out, the worst is {max(ratios(tuned, 'fixed ')):.2f}"
    of_bpac = ratios(linear, "B-PAC ")
    yield f"in {sum(ratio <= 0.8 for ratio in of_bpac)} of {len(of_bpac)}, at worst {max(of_bpac):.2f}"
    by_class = ratios([kind for kind in linear if kind.setting == "sorted by class"], "B-PAC ")
    missed = sum(ratio > 0.8 for ratio in of_bpac)
    yield f"{sum(ratio > 0.8 for ratio in by_class)} of the {missed} misses are"
    of_bargain = ratios(report.kinds(batch=True), "BARGAIN ")
    reached = sum(ratio <= 0.9 for ratio in of_bargain)
    yield f"in {reached} of {len(of_bargain)}, at worst {max(of_bargain):.2f}"
    found = [*linear, *report.kinds("student"), *report.kinds(model=True)]
    found += report.kinds(batch=True)
    ways = [way for kind in found for stream in kind.streams for way in stream["ways"]]
    agreement = {
        kind.task: kind.streams[0]["agreement_with_gold"] for kind in report.kinds(model=True)
    }
    banking, clinc, sst = (agreement[task] for task in ("banking77", "clinc150", "sst-2"))
    yield f"on {banking:.1%} of Banking77's texts, {clinc:.1%} of CLINC150's, and {sst:.1%} of SST-2's"
    runs = [way for way in ways if way["way"] == "Live"]
    assert not any(way["wrong"] > way["level"] for way in runs)
    at_times = sum(way["worst"] > way["level"] for way in runs)
    yield f"in none of {len(runs)} runs of `Live` did more answers differ in the end than was promised"
    yield f"in {at_times} of them the level was passed at some moment after the first 500 rows"


def curve_claims() -> Iterator[str]:
    rows = read("cascades/curve-banking77-minilm-s0.json")["rows"]
    saved = {(row["texts"], row["way"], row["stand_in"]): row["saved"] for row in rows}
    fewest = min(row["texts"] for row in rows)
    alone = {way: saved[fewest, way, "none"] > 0 for way in ("exits", "student")}
    assert alone == {"exits": True, "student": False}
    yield f"With {fewest} texts only exits can be certified."
    for texts in (1000, 2000):
        taught = saved[texts, "student", "the model's training texts"]
        assert taught > saved[2 * texts, "student", "none"]


def checks_claims() -> Iterator[str]:
    outcomes = read("risk/checks.json")["outcomes"]

    def most(rule: str, *files: str) -> str:
        found = [one for one in outcomes if one["rule"] == rule and one["file"] in files]
        return f"{max(max(one['broken'], one['kept']) for one in found):.1%}"

    yield f"wrong in at most {most('rows', 'new')} of the draws with new rows"
    yield f"in at most {most('rows', 'half')} with"
    yield f"in up to {most('texts', 'new', 'grown', 'half')}"


def promises_of(found: list[Any], task: str) -> dict[tuple[int, str, str], bool]:
    """Return every promise of a task that was given, and whether the test texts refute it."""
    refuted = {}
    for number, run in enumerate(found):
        if run["task"] != task:
            continue
        rows = run["texts"]["test"] - (1000 if task == "CLINC150" else 0)
        for level, ways in run["promises"].items():
            for name, way in ways.items():
                if way.get("met"):
                    others = round(way["other"] * rows)
                    refuted[number, level, name] = binom.sf(others - 1, rows, float(level)) < 0.05
    return refuted


def above(found: list[Any], task: str) -> int:
    promises = [
        way["other"] > float(level)
        for run in found
        if run["task"] == task
        for level, ways in run["promises"].items()
        for way in ways.values()
        if way.get("met")
    ]
    return sum(promises)


def share(values: Iterator[float]) -> str:
    return f"{median(values):.0%}"


def loopbench() -> dict[str, Any]:
    return import_module("benchmarks.loops.report").results()  # type: ignore[no-any-return]


def steps_of(task: str, way: str, key: str = "position_steps") -> str:
    return share(result["ways"][way]["test"][key] for result in loopbench()[task])


def times_over_rows(task: str, key: str) -> float:
    """Return how many times as much confidence takes per row as per position, of the medians over seeds."""
    by_mode = (
        median(result["ways"][f"confidence, {mode}"]["test"][key] for result in loopbench()[task])
        for mode in ("row", "position")
    )
    row, position = by_mode
    return row / position


def puzzles_claims() -> Iterator[str]:
    yield from updates_claims()
    report = import_module("benchmarks.loops.report")
    ranking = report.ranking(loopbench())
    needed = {gate: steps for gate, _, steps, *_ in ranking}
    within = {gate: kept for gate, _, _, kept, _ in ranking}
    yield (
        f"confidence needs {needed['confidence']} of the position-steps, entropy {needed['entropy']}; "
        f"a head for hazards {needed['hazards, head']}, for ACT {needed['act, head']}, "
        f"a Q-head {needed['q-head']}"
    )
    alone = {gate: kept.split()[0] for gate, kept in within.items()}
    yield (
        f"{within['confidence']} runs by confidence, {alone['hazards, head']} by the head for hazards, "
        f"{alone['q-head']} by the Q-head, {alone['act, head']} by the head for ACT"
    )
    small, large = (steps_of(f"sudoku-{size}", "confidence, position") for size in ("4x4", "6x6"))
    yield f"with {small} of the position-steps in sudokus of 4×4 and {large} in those of 6×6"
    row, position = (steps_of("mazes", f"confidence, {mode}") for mode in ("row", "position"))
    yield f"{position} of the position-steps per position, {row} per row"
    tasks = [task for task in loopbench() if task not in ("mazes", "characters")]
    saved = {
        key: [times_over_rows(task, key) for task in tasks] for key in ("position_steps", "seconds")
    }
    yield (
        f"×{min(saved['position_steps']):.1f} to ×{max(saved['position_steps']):.1f} fewer position-steps "
        f"than per row, and ×{min(saved['seconds']):.1f} to ×{max(saved['seconds']):.1f} in seconds"
    )


def updates_claims() -> Iterator[str]:
    tasks = import_module("benchmarks.loops.tasks").TASKS
    training = import_module("benchmarks.loops.training")
    mazes, others = tasks["mazes"].updates, tasks["characters"].updates
    own = {count: count - round(count * training.TRUNK) for count in (mazes, others)}
    yield f"{own[others]} of {others}, {own[mazes]} of {mazes:,} in mazes"
    yield (
        f"had {own[others]} updates of their own, {own[mazes]} in mazes, "
        f"and the heads up to {training.GATE_UPDATES:,}"
    )


def appendix_claims() -> Iterator[str]:
    yield from claims_of_the_whole_task()
    yield from claims_of_longer_runs()
    yield from checks_claims()
    yield from batches_claims()
    yield from advise_claims()
    yield from claims_of_live()
    yield from reranking_claims()
    yield from positions_claims()


def claims_of_the_whole_task() -> Iterator[str]:
    whole = {run["recipe"]: run for run in read_all(RESULTS / "whole") if not is_cut_to(run, 2)}
    ahead = score_at_confidence(whole["frozen"], 2.0) - whole["static"].score("exits")
    rows = 872
    assert whole["frozen"]["task"] == "SST-2"
    yield (
        f"At ×2 exits are {100 * ahead:.1f} points ahead of the cut encoder on dev, "
        f"which one seed on {rows} rows does not show"
    )
    held_out = {name: run.held_out for name, run in whole.items()}
    level = score_at_confidence(held_out["frozen"], 2.0) - held_out["static"].score("exits")
    assert abs(100 * level) < 0.2


def reranking_claims() -> Iterator[str]:
    budgets = read("rerank/clock-banking77-minilm-s0-k10.json")["budgets"]
    queries = read("rerank/clock-banking77-minilm-s0-k10.json")["settings"]["queries"]
    assert all(one["kept"] == 1.0 for one in budgets)
    yield f"all of {queries * len(budgets)} calls kept their limit ({queries} queries"


def positions_claims() -> Iterator[str]:
    timings = read("positions/positions.json")["timings"]
    arrived = [each["arrived"] for each in timings if each["task"] != "mazes"]
    met = sum(each >= 0.8 for each in arrived)
    yield f"at least 0.8 of the position-steps saved in {met} of {len(arrived)} settings"
    fast = {
        name: max(each["seconds_times_over_rows"] for each in timings if each["task"] == name)
        for name in ("sudoku-6x6", "characters")
    }
    yield f"×{fast['sudoku-6x6']:.1f} in sudokus of 6×6 and ×{fast['characters']:.1f} in texts"
    tagger = read("tagger/tagger.json")
    yield f"tags {tagger['words_right']:.1%} of the words rightly, {tagger['entity_words_right']:.1%} of those"
    yield f"{tagger['texts_with_an_entity']:.0%} of the test texts"


CLAIMS: dict[str, Callable[[], Iterator[str]]] = {
    "README.md": readme_claims,
    "docs/pays.md": pays_claims,
    "docs/palbert.md": palbert_claims,
    "docs/live.md": live_claims,
    "docs/puzzles.md": puzzles_claims,
    "docs/appendix.md": appendix_claims,
}


@cache
def claims_of(page: str) -> tuple[str, ...]:
    """Return the claims of a page, longest first, since one may contain another."""
    return tuple(sorted(CLAIMS.get(page, lambda: iter(()))(), key=len, reverse=True))


def check_numbers(page: str, text: str) -> list[str]:
    """Return what is wrong with the numbers of a page: claims that it lacks, numbers that nothing supports."""
    wrong = [f"lacks: {claim}" for claim in claims_of(page) if claim not in text]
    for claim in claims_of(page):
        text = text.replace(claim, " ")
    found = Counter(numbers_of(text))
    expected = Counter(NO_RESULTS.get(page, "").split())
    wrong += [f"no claim: {number}" for number in (found - expected).elements()]
    wrong += [f"gone: {number}" for number in (expected - found).elements()]
    return wrong


def numbers_of(text: str) -> list[str]:
    return [found[0] for found in NUMBER.finditer(SKIPPED.sub(" ", text))]


SKIPPED = re.compile(r"\]\([^)]*\)|`[^`]*`|https?://\S+")
"""Code and the targets of links."""
NUMBER = re.compile(r"(?<!\w)(?<!\w-)[×+−-]?\d+(?:[.,]\d+)*(?:e-\d+)?%?")
PAGES = [
    "README.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_number_follows_from_a_result_or_is_none(page: str) -> None:
    """A number that is no result belongs into `NO_RESULTS`, and better not into the page."""
    wrong = check_numbers(page, page_text(page))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", sorted(PAGES))
def test_a_number_that_changes_by_one_in_its_last_digit_is_noticed(page: str) -> None:
    text = page_text(page)
    blanked = SKIPPED.sub(lambda skipped: " " * len(skipped[0]), text)
    for found in NUMBER.finditer(blanked):
        last = found.end() - found[0].endswith("%") - 1
        changed = f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}"
        assert check_numbers(page, changed), f"{found[0]} in: {text[last - 60 : last + 20]}"


NO_RESULTS: dict[str, str] = {
    "CHANGELOG.md": "0 0 0.2.0 0.2.0 0.1 0.1 0.1 1 1 1 2% 3 95% −100",
    "README.md": "0 3.11",
    "docs/appendix.md": (
        "0 0 0 0 0.1.0 1e-12 1e-3 1e-3 1e-3 1e-3 1e-3 1e-4 1e-4 1e-4 1e-5 1e-5 1e-5 1e-5 2e-3 "
        "2e-3 2e-4 3e-5 3e-5 3e-5 5e-5 5e-5 8e-7 0.005 0.8 0.9 1 1 1 1 1 2 2 2 2 2% 2% ×2 ×2 ×2.2 "
        "3 3 3 ×3 4 5 5% 5% 5% 6 8 8 11 16 16 16 20 20% 26 28 32 32 32 50 52 59 64 77 95% 102 114 "
        "150 172 256 256 267 283 297 299 500 512 512 563 640 667 800 882 885 1,000 1,000 1,000 "
        "1,000 1,000 1182 1,200 2275 2506.10908 2509.02896 3,000 6080 20,000 42410 859632"
    ),
    "docs/architecture.md": (
        "1 1 1 1 1 2 2 3 3 4 4 5 5 6 6 7 7 8 8 9 9 10 10 11 15% 16 18 26 562 1,000 1000"
    ),
    "docs/cascades.md": "0",
    "docs/certificates.md": "−1 0 0 0 1 1 1 1 1 2% 5% 95% 1,000 2021",
    "docs/cheaper.md": "0 1 1% 2 3 20% 40% 40% 60% 95% 299 750 1,300",
    "docs/deploy.md": "2% 5% 5% 8 20% 64 200 413 422 429 504 1,000 1,400 6,000",
    "docs/extend.md": "0 1 1 1 2 3 4",
    "docs/ideas.md": "0 0.5 0.95 1 1 1 1 1 2 12 2015 2016 2022",
    "docs/index.md": "3.11 60",
    "docs/live.md": "2% 2% 2% 2% 5 5% 5% 8 8 21% 95% 750 1,200 2,400 2601.22446 12,000",
    "docs/palbert.md": (
        "0 0.1.0 0.2 0.3 0.3 0.5 0.6 0.9 1 1 1 1 1 1.2 1.4 1.7 1.9 1.9 2 2 2 2 2 2 2 2 2 2 2.1 "
        "2.2 3 3 3 3 3 3.1 3.2 4 26 50.8 52 55.7 57.0 57.4 73.5 77.0 77.3 77.8 91.1 92.2 92.7 "
        "92.9 682 687 692 705 768 768 788 852 852 876 10,000 10,000"
    ),
    "docs/pays.md": "0 0.1 0.2 0.5 0.7 0.7% 1.0 1.5 ×1.5 ×1.5 2% 2% ×2 2.5 3 ×3 5% 7 18% 32 60%",
    "docs/policies.md": "0.9 1 1 2016 2021",
    "docs/puzzles.md": "0.5 2 4 4 5 5 5 5 6 6 6 6 8 9 32 32 64 64 2607.20519",
    "docs/recipes.md": "1 1 5 12 12 12 12",
    "docs/reference.md": "300",
    "docs/rerank.md": "0.2 1 1 1 1 2% 3 5% 10 10 10 10 59",
    "docs/run.md": "0 1 15%",
    "docs/speed.md": "1 32",
    "docs/votes.md": "1 2% 300 600",
}
"""Numbers of each page that are no results, by size; a page that drops one drops it here, too.

Only one pair is measured and has no file: what B-PAC asks with its authors' settings, on live.md.
"""


# ---- Tables, figures, staleness ------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_tables_in_the_pages_are_current(page: Path) -> None:
    text = page.read_text("utf-8")
    assert with_tables(text) == text, "run: python -m docs.extensions.pages"


def test_the_summary_is_that_of_the_results() -> None:
    assert json.loads(json.dumps(summary(runs()))) == scores()


def test_figures_show_the_committed_results() -> None:
    """A figure holds a digest of its data, so that a redraw by another version of matplotlib is not needed."""
    for path in sorted((ROOT / "docs" / "figures").glob("*.svg")):
        found = re.search(r"data: ([0-9a-f]{16})", path.read_text("utf-8"))
        drawn = digest_of_figure(path.stem)
        shown = found[1] if found else None
        assert drawn in (None, shown), f"{path.name}: run python -m benchmarks.gallery"


GONE = "commit not in this history"


def test_every_result_names_a_commit_of_the_history_or_says_that_it_is_gone() -> None:
    """Clones without the whole history cannot know; what is gone names a commit that stands for it."""
    history = git_of(ROOT, "rev-list", "HEAD")
    if not history or git_of(ROOT, "rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("needs the whole history")
    commits = {commit[:8] for commit in history.split()}
    strangers = []
    for path in sorted(RESULTS.rglob("*.json")):
        for made in environments_in(json.loads(path.read_text("utf-8"))):
            named = made["code"] if made["commit"] == GONE else made["commit"]
            if named[:8] not in commits:
                strangers.append(f"{path.relative_to(RESULTS)}: {named}")
    assert not strangers, "\n".join(strangers)


def git_of(root: Path, *words: str) -> str:
    """Return what git prints; nothing if this is no checkout, or without git."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return ""
    done = subprocess.run(["git", *words], cwd=root, check=False, capture_output=True, text=True)
    return done.stdout.strip()


def environments_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield what each measurement of a file says of its process."""
    if isinstance(value, dict) and "commit" in value and "date" in value:
        yield value
    children = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | list):
        for child in children:
            yield from environments_in(child)


def test_staleness_counts_commits_of_the_rooms(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        options = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
        done = subprocess.run(
            ["git", *options, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    git("init", "-q")
    for number, room in enumerate(("model", "model", "docs")):
        (tmp_path / room).mkdir(exist_ok=True)
        (tmp_path / room / "file.py").write_text(str(number))
        git("add", ".")
        git("commit", "-qm", room)
    first = git("rev-list", "--max-parents=0", "HEAD")[:8]
    assert commits_since(first, ["model"], tmp_path) == 1
    assert commits_since("0" * 8, ["model"], tmp_path) is None
    block = f"| … |\n\nVersion 0.2.0, commit `{first}`, 2026-12-01, 1 threads."
    assert "Since then 1 commits have changed model" in staleness(block, ["model"], tmp_path)
    assert staleness(block, ["elsewhere"], tmp_path) == ""
