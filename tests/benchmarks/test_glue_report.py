"""The report, from a fixture of results that are made up here, and from one real run on a tiny backbone."""

import dataclasses
import itertools
import json
import math
import re
import statistics
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Drawing
from test_glue_run import config, invoke

from benchmarks import tasks
from benchmarks.glue.config import RunConfig
from benchmarks.glue.curves import read_curve, record_curves
from benchmarks.glue.data import GlueTask
from benchmarks.glue.report import PARTS, figures, report, write
from benchmarks.glue.report.goals import Goal, gap, gaps_by_seed, goals_table
from benchmarks.glue.report.groups import BLIND, choose
from benchmarks.glue.report.summary import COMPARED, headline, is_of_suite, summary
from benchmarks.glue.report.tables import out_of_scope
from benchmarks.glue.results import FORMAT, Result, read_all
from benchmarks.glue.run import run
from benchmarks.glue.sweeping import suite as suites
from benchmarks.metrics import pack
from benchmarks.tables import mark
from ponder import Trajectory, policies
from ponder.analysis.sweeps import Curve, Point
from ponder.cost import Cost
from ponder.errors import ArgumentError, DataError, PonderError
from ponder.pages import Figure, Heading, Page, Table

STEPS = 4
DEV = 20  # examples of RTE's dev in `glue_dir`
POLICIES = {
    "vanilla": {"name": "last-step"},
    "palbert": {"name": "quantile", "q": 0.5},
    "pondernet": {"name": "bernoulli", "seed": 0},
    "pabee": {"name": "patience", "patience": 2, "tolerance": 0.1},
    "static": {"name": "fixed-step", "step": 2},
}
CURVES = {"palbert": ("quantile", "q", [0.2, 0.5, 0.8]), "pabee": ("patience", "patience", [1.0, 2.0, 3.0])}


def made(recipe="palbert", task="RTE", seed=0, score=0.7, held_out=0.6, step=2.0, new=True, **changes):
    """A result as a run would write it; without the fields that were added later where `new` is off."""
    settings = RunConfig(task=task, recipe=recipe, backbone="tiny", seed=seed, **changes)
    metric = tasks.get(task).metrics[0]

    def split(value):
        return {
            "examples": DEV,
            "full_depth": {metric: value + 0.01, "score": value + 0.01},
            "exits": {metric: value, "score": value},
            "per_step": [value] * STEPS,
            "mean_exit_step": step,
            "exit_histogram": [0, DEV, 0, 0],
            "halting": [0.1, 0.2, 0.3, 0.4] if recipe in ("palbert", "pondernet") else None,
        }

    whole = split(score)
    if new:
        right = round(score * DEV)
        gold = dev_labels()
        answers = [gold[n] if n < right else 1 - gold[n] for n in range(DEV)]
        whole["predictions"] = pack(tasks.get(task), np.array(answers))
        whole["curves"] = [curve(*CURVES[recipe], score)] if recipe in CURVES else []
    fields = settings.to_dict()
    if not new:
        fields = {key: value for key, value in fields.items() if key != "schedule"}
        fields.pop("selection") if fields["selection"] == "held_out" else None
    return Result(
        {
            "format": FORMAT,
            "task": task,
            "recipe": recipe,
            "backbone": "tiny",
            "num_steps": STEPS,
            "policy": POLICIES[recipe],
            "splits": {"dev": whole, "held_out": split(held_out)},
            "speed_up": {
                **dict.fromkeys(("steps", "flops", "wall_clock"), STEPS / step),
                "wall_clock_range": [STEPS / step - 0.1, STEPS / step + 0.1],
            },
            "training": [{"epochs": 3}],
            "config": fields,
            "environment": {},
        }
    )


def dev_labels():
    """As `glue_dir` has them for RTE: 0 is entailment."""
    return [int(n % 3 == 0) for n in range(DEV)]


def curve(policy, threshold, values, score):
    steps = [1.5, 2.0, 3.0]
    points = {"knob": values, "score": [score - 0.1, score, score], "mean_exit_step": steps}
    points |= {"cost": [step / STEPS for step in steps], "agreement": [0.8, 0.9, 1.0]}
    return {"policy": policy, "knob": threshold, "cost_unit": "flops", "points": points}


def table(page, heading):
    """The first table below a heading, as lists of cells, the head first."""
    lines = page.split(f"# {heading}\n", 1)[1].splitlines()
    rows = list(
        itertools.takewhile(lambda line: line.startswith("|"), itertools.dropwhile(lambda x: x[:1] != "|", lines))
    )
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if "---" not in row]


@pytest.fixture
def results():
    rows = [("vanilla", 0.70, 4.0), ("pabee", 0.65, 2.5), ("pondernet", 0.5, 2.0), ("palbert", 0.75, 2.0)]
    return [
        made(recipe, task, seed, score=score + shift, step=step)
        for recipe, score, step in rows
        for task in ("RTE", "QNLI")
        for seed, shift in ((0, 0.0), (1, 0.05), (2, -0.1))
    ]


def test_scores_are_medians_marked_by_place_with_a_macro_over_the_tasks_of_most_recipes(results):
    results = [*results, made("palbert", "MRPC", score=0.8, step=4.0)]
    head, *rows = table(report(results, draw=False).markdown(), "Scores")
    assert head == ["recipe", "×steps", "MRPC", "QNLI", "RTE", "macro", "seeds"]
    assert rows == [
        ["vanilla", "×1.00", "–", "<u>70.0</u>", "<u>70.0</u>", "<u>70.0</u>", "3"],
        ["pabee", "×1.60", "–", "65.0", "65.0", "65.0", "3"],
        ["pondernet", "×2.00", "–", "50.0", "50.0", "50.0", "3"],
        ["palbert", "×2.00", "80.0", "**75.0**", "**75.0**", "**75.0**", "1–3"],
    ]
    results += [made("vanilla", "MRPC", score=0.9), made("pabee", "MRPC", score=0.6, step=2.5)]  # three of four have it
    results += [made(recipe, "WNLI", score=0.1, step=4.0) for recipe in ("vanilla", "pabee", "pondernet", "palbert")]
    rows = table(report(results, draw=False).markdown(), "Scores")[1:]
    assert [row[-2] for row in rows] == ["**76.7**", "<u>63.3</u>", "–", "**76.7**"]
    assert [row[1] for row in rows] == ["×1.33", "×1.60", "–", "×1.67"]


def test_at_the_same_cost_scores_are_read_off_the_curves_between_thresholds(results):
    results += [made("static", seed=n, score=0.6, step=2.0, recipe_options={"k": 2}) for n in range(3)]
    results += [made("static", seed=n, score=0.62, step=2.0, recipe_options={"k": 2, "taught": True}) for n in range(3)]
    results += [made("palbert", "WNLI", score=0.2)]
    page = report(results, draw=False).markdown()
    (head, *rows) = table(page, "At the same cost")
    assert head == ["recipe", "policy", "QNLI", "RTE", "WNLI", "macro"]
    assert "×1.5 in steps; macro over QNLI, RTE" in page
    # STEPS / 1.5 = 2.67 steps: two thirds of the way between those with 2 and 3 steps, where both score the same
    shown = {(recipe, policy): cells for recipe, policy, *cells in rows}
    assert shown["palbert", "its own"] == ["**75.0**", "**75.0**", "20.0", "**75.0**"]
    assert shown["pabee", "its own"] == ["<u>65.0</u>", "<u>65.0</u>", "–", "<u>65.0</u>"]
    assert ("vanilla", "blind") not in shown  # has no policy to compare with
    assert ("static", "cut") not in shown  # that was cut after two steps, which is ×2
    twice = page.split("×2 in steps")[1]
    assert "| palbert | its own | **75.0**" in twice  # 2.0 steps are a threshold of the curve
    assert "| static | cut | – | 60.0" in twice
    assert "| static | cut and distilled | – | 62.0" in twice


@pytest.mark.parametrize(
    ("per_step", "at_267"),
    [
        ([0.1, 0.2, 0.5, 0.6], "43.3"),  # five sixths of the way from step 1 to step 3
        ([0.1, 0.2, 0.3, 0.6], "37.8"),  # five ninths of the way from step 1 to step 4
        ([0.4, 0.4, 0.1, 0.1], "40.0"),  # step 1, which costs less
    ],
)
def test_at_the_same_cost_the_best_without_a_look_at_the_example_is_a_row(results, per_step, at_267):
    for result in results:
        result["splits"]["dev"]["per_step"] = per_step
    rows = table(report(results, draw=False).markdown(), "At the same cost")[1:]
    shown = {(recipe, policy): cells for recipe, policy, *cells in rows}
    assert shown["pabee", "blind"] == shown["palbert", "blind"] == [at_267] * 3


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], ["1.0"]),
        ([1.0, 1.01], ["1.0", "1.0"]),
        ([2.0, 1.0, 2.0, 0.5], ["**2.0**", "<u>1.0</u>", "**2.0**", "0.5"]),
        ([-0.5, 0.0], ["<u>-0.5</u>", "**0.0**"]),
        ([None, 3.0], ["–", "3.0"]),
        ([-0.04, 0.04, 0.2], ["<u>0.0</u>", "<u>0.0</u>", "**0.2**"]),
    ],
)
def test_marks(values, expected):
    assert mark(values) == expected


def test_what_is_out_of_competition_has_no_mark_and_takes_none():
    assert mark([3.0, 2.0, 3.0, 1.0], [False, True, True, True]) == ["3.0", "<u>2.0</u>", "**3.0**", "1.0"]
    assert mark([3.0, 1.0], [False, True]) == ["3.0", "1.0"]


def test_the_ablation_is_mean_and_deviation_of_its_rows():
    scores = [0.5, 0.6, 0.7]
    off = {"q_exit": True, "own_lambda_lr": True, "deep_lambda": False, "hidden_concat": False}
    runs = [made("palbert", seed=n, score=score, recipe_options=off) for n, score in enumerate(scores)]
    page = report([*runs, made("pondernet", score=0.4), made("palbert", score=0.9)], draw=False).markdown()
    rows = {row[0]: row[1] for row in table(page, "Ablation")}
    spread = statistics.stdev(100 * score for score in scores)
    assert rows["+ Q-exit, Lambda LR"] == f"60.0 ± {spread:.1f}"
    assert rows["PonderNet"] == "40.0"
    assert rows["+ all four (PALBERT)"] == "90.0"
    assert rows["vanilla"] == rows["+ Q-exit"] == "–"
    assert [row[0] for row in table(page, "Scores")[1:]] == ["pondernet", "palbert"]


def test_of_several_configurations_the_best_held_out_one_is_shown():
    better = made(lr=1e-4, score=0.5, held_out=0.9)
    groups, choices = choose([made(lr=1e-5, score=0.99, held_out=0.1), better])
    assert groups["palbert", "RTE"].runs == (better,)
    assert choices == ["palbert on RTE (2 configurations; shown: lr=0.0001)"]
    page = report([made(lr=1e-5, score=0.99, held_out=0.1), better], draw=False).markdown()
    assert "palbert on RTE (2 configurations; shown: lr=0.0001)" in page


def test_a_run_on_a_part_of_the_data_takes_no_place_of_one_on_all():
    whole = [made(seed=seed, score=0.7, held_out=0.6) for seed in range(3)]
    tiny = [made(score=0.4, held_out=0.9, max_train=64, lr=1e-3)]
    groups, choices = choose([*tiny, *whole])
    assert [run.data for run in groups["palbert", "RTE"].runs] == [run.data for run in whole]
    assert choices == ["palbert on RTE (2 configurations; shown: lr=5e-05, max_train=None)"]
    assert choose(tiny)[0]["palbert", "RTE"].scores == pytest.approx([40.0])


def test_old_and_new_results_of_one_configuration_are_seeds_of_one_group():
    groups, _ = choose([made(seed=0, new=False), made(seed=1)])
    assert len(groups["palbert", "RTE"].runs) == 2


def test_selection_on_dev_is_said():
    page = report([made(selection="dev", score=0.8), made("vanilla")], draw=False).markdown()
    assert "except in runs marked †" in " ".join(page.split())
    assert [row[0] for row in table(page, "Scores")] == ["recipe", "vanilla", "palbert †"]


def test_a_run_that_selected_on_dev_is_shown_where_there_is_no_other():
    honest, flattered = made(score=0.6, held_out=0.6), made(selection="dev", score=0.8)
    groups, choices = choose([flattered, honest])
    assert groups["palbert", "RTE"].runs == (honest,)
    assert choices == ["palbert on RTE (2 configurations; shown: selection=held_out)"]
    both = [flattered, made(selection="dev", score=0.7, lr=1e-5)]
    assert choose(both)[0]["palbert", "RTE"].runs == (flattered,)
    del honest.data["splits"]["held_out"]
    assert choose([honest])[0]["palbert", "RTE"].runs == (honest,)  # nothing to choose
    with pytest.raises(DataError, match="expected a held-out score"):
        choose([honest, flattered])


def test_published_numbers_are_marked(results):
    page = report(results, draw=False).markdown()
    assert "| PALBERT *(published)* | ×1.29 | 58.1 | 93.1 | 89.3 | 89.9 | 88.9 | 84.7 | 91.0 | 78.3 | 84.2 |" in page
    assert "| PALBERT *(published)* | ×1.26 | 48.6 | 93.0 | 87.1 | 86.5 | 84.4 | 79.8 | 91.7 | 73.5 | 80.6 |" in page
    assert "| + Q-exit *(published)* | 55.7 ± 0.9 | 92.2 ± 0.3 | 77.3 ± 1.4 |" in page


def test_results_without_the_new_fields_are_still_reported():
    page = report([made(new=False), made("vanilla", new=False)]).markdown("figures")
    assert "predictions, which old runs lack" in page
    assert "tiny-posterior.svg" in page
    assert "tiny-score-by-q.svg" not in page


def test_every_figure_is_drawn_where_its_numbers_are(results, tmp_path):
    written = report(results).write(tmp_path / "docs" / "page.md", tmp_path / "page.html", tmp_path / "figures")
    names = {path.stem for path in written if path.suffix == ".svg"}
    assert names == {f"tiny-{name}" for name in (*("posterior", "score-by-q", "score-by-steps", "score-by-flops"),)}
    page = (tmp_path / "docs" / "page.md").read_text()
    assert all(f"](../figures/{name}.svg)" in page for name in names)
    html = (tmp_path / "page.html").read_text()
    ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    assert html.count("data:image/svg+xml;base64,") == len(names)
    assert 'src="http' not in html
    assert "<strong>75.0</strong>" in html
    assert "<u>70.0</u>" in html


def test_figures_show_the_numbers_of_the_results(results, monkeypatch):
    of_one_seed = [result for result in results if result["config"]["seed"] == 0]
    for result in of_one_seed:
        if result["recipe"] == "palbert":  # another policy on the same models
            result["splits"]["dev"]["curves"].append(curve(*CURVES["pabee"], 0.5))
    groups, _ = choose(of_one_seed)
    monkeypatch.setattr(figures, "panels_as_figure", lambda name, caption, panels: panels)

    def shown(panels):
        ax = Drawing().subplots()
        for draw in panels["RTE"]:
            draw(ax=ax)
        return {line.get_label(): {tuple(point) for point in line.get_xydata().round(6)} for line in ax.lines}

    by_threshold = shown(figures.by_threshold(groups, ""))
    assert by_threshold["palbert"] == {(0.2, 0.65), (0.5, 0.75), (0.8, 0.75)}
    assert "pabee" not in by_threshold
    speed_ups = [round(STEPS / steps, 6) for steps in (1.5, 2.0, 3.0)]
    by_speed_up = shown(figures.by_speed_up(groups, ""))
    assert by_speed_up["palbert"] >= set(zip(speed_ups, (0.65, 0.75, 0.75), strict=True))
    assert by_speed_up["pabee"] >= set(zip(speed_ups, (0.55, 0.65, 0.65), strict=True))


def test_the_same_results_give_the_same_files():
    assert report([made()]).html() == report([made()]).html()


def test_significance_is_paired_and_needs_labels(results, glue_dir):
    clear = [r for r in results if r["task"] == "RTE"]
    assert "Not made: it needs the labels" in report(clear, draw=False).markdown()
    page = report(clear, {"--glue-dir": glue_dir}, draw=False, replicates=400).markdown()
    rows = {row[0]: row for row in table(page, "Significance")}
    assert rows["row − column"] == ["row − column", "vanilla", "pabee", "pondernet"]
    assert rows["palbert"][1].startswith("+5.0 [")
    # palbert is right wherever pondernet is, and on a quarter of dev besides
    assert rows["palbert"][3].startswith("+25.0 [")
    two = [run for run in clear if run["recipe"] in ("palbert", "pondernet")]
    page = report(two, {"--glue-dir": glue_dir}, draw=False, replicates=400).markdown()
    assert table(page, "Significance")[1][1].startswith("**+25.0**")


def test_significance_says_which_cells_rest_on_one_seed_how_many_replicates_there_are_and_who_is_left_out(glue_dir):
    two_seeds = [made(recipe, seed=seed) for recipe in ("vanilla", "palbert") for seed in (0, 1)]
    page = report(
        [*two_seeds, made("pabee", score=0.6)], {"--glue-dir": glue_dir}, draw=False, only=["significance"]
    ).markdown()
    assert "10,000 replicates" in page
    assert "Left out" not in page
    rows = {row[0]: row[1:] for row in table(page, "Significance")}
    assert rows["pabee"][0].endswith(" ¹")
    assert "¹" not in rows["palbert"][0]
    assert rows["palbert"][1].endswith(" ¹")  # one in common with pabee
    page = report(
        [*two_seeds, made("pabee", new=False)], {"--glue-dir": glue_dir}, draw=False, replicates=100
    ).markdown()
    assert "Left out: pabee on RTE (no predictions were kept)." in page


def given(monkeypatch, labels):
    """Whatever is loaded has these labels."""
    monkeypatch.setattr(GlueTask, "load", lambda task, folder, only=(): {split: {"label": labels} for split in only})


def test_significance_of_the_macro_is_over_its_tasks_and_the_recipes_that_have_them(glue_dir, monkeypatch):
    given(monkeypatch, dev_labels())
    everywhere = [("vanilla", 0.5), ("palbert", 0.75), ("pabee", 0.7)]
    runs = [made(recipe, task, score=score) for recipe, score in everywhere for task in ("RTE", "QNLI", "WNLI")]
    page = report(
        [*runs, made("pondernet", score=0.5)], {"--glue-dir": glue_dir}, draw=False, replicates=400
    ).markdown()
    matrix = page.split("*macro over QNLI, RTE*\n", 1)[1].splitlines()[1:5]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in matrix if "---" not in row]
    assert rows[0] == ["row − column", "vanilla", "pabee"]
    assert rows[1][:1] == ["pabee"]
    assert rows[2][0] == "palbert"
    assert rows[2][1].startswith("+25.0 [+")
    assert rows[2][2].startswith("+5.0 [")


def test_data_that_are_not_those_of_the_run_are_refused(glue_dir):
    broken = made()
    broken.data["splits"]["dev"]["predictions"] = "0 1 1"
    with pytest.raises(DataError, match=r"RTE, palbert: .*another number of examples"):
        report([broken, made("vanilla")], {"--glue-dir": glue_dir}, draw=False, replicates=100)


def test_labels_that_are_not_those_of_the_run_are_refused(glue_dir, monkeypatch):
    given(monkeypatch, dev_labels()[::-1])
    with pytest.raises(DataError, match=r"RTE, palbert: expected the dev split on which the runs scored \[0.7"):
        report([made(), made("vanilla")], {"--glue-dir": glue_dir}, draw=False, replicates=100)


def test_a_pipe_in_a_cell_does_not_end_it():
    page = Table(["p(n|x)", "b"], [["a|b", "c"]])
    assert page.markdown(None).splitlines() == [r"| p(n\|x) | b |", "| --- | --- |", r"| a\|b | c |"]
    assert "<td>a|b</td>" in Page("", (page,)).html()


def test_a_figure_that_was_not_written_is_its_caption():
    page = Page("Scores", (Figure("one", "A figure.", "<svg/>"),))
    assert page.markdown() == "# Scores\n\n*A figure.*\n"
    assert page.markdown("shown") == "# Scores\n\n![A figure.](shown/one.svg)\n\n*A figure.*\n"


def test_no_results_are_refused():
    with pytest.raises(DataError, match="at least one"):
        report([])


@pytest.mark.parametrize("recipe", ["palbert", "pabee"])
def test_a_run_records_what_the_report_reads(recipe, backbone, glue_dir, tmp_path):
    done = run(config(backbone, recipe=recipe), glue_dir, tmp_path, tmp_path / "work", progress=False)
    dev = done["splits"]["dev"]
    right = [int(answer) == gold for answer, gold in zip(dev["predictions"].split(), dev_labels(), strict=True)]
    assert dev["exits"]["accuracy"] == pytest.approx(statistics.fmean(right))
    own = "quantile" if recipe == "palbert" else "patience"
    assert dev["curves"][0]["policy"] == own
    assert {entry["cost_unit"] for entry in dev["curves"]} == {"flops"}
    read = read_curve(done, own)
    assert len(read) <= 43 if own == "quantile" else len(read) == 3
    places = ("--results", tmp_path, "--glue-dir", glue_dir, "--out", tmp_path / "docs")
    ran = invoke("report", *places, "--replicates", 100)
    assert ran.exit_code == 0, ran.output
    page = (tmp_path / "docs" / "results-tiny.md").read_text()
    made_here = report(read_all(tmp_path), {"--glue-dir": glue_dir}, replicates=100)
    assert page == made_here.markdown("figures")


def test_backbones_that_end_alike_have_sections_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "panels_as_figure", lambda name, caption, panels: [])
    others = [Result({**made().data, "backbone": place}) for place in ("/models/a/bert", "/models/b/bert/", "c/minilm")]
    headings = [block.text for block in report(others, draw=False).blocks if isinstance(block, Heading)]
    assert [text.split(",")[0] for text in headings if "steps" in text] == ["`a-bert`", "`b-bert`", "`minilm`"]
    pages = {path.name for path in write(others, tmp_path)}
    assert {"results-a-bert.md", "results-b-bert.md", "results-minilm.md"} <= pages


def test_a_copy_of_one_seed_does_not_count_as_another(tmp_path):
    (path, *_) = sorted(COMMITTED.glob("rte-minilm-ponder-s0-*.json"))
    one = Result.of_run(path)
    other = RunConfig.from_dict({**one["config"], "seed": 7})
    one.save(tmp_path / path.name)
    assert len(read_all(tmp_path)) == 1
    copy = Result({**one.data, "config": {**one["config"], "seed": 7}, "environment": {}})
    copy.save(tmp_path / f"{other.key}.json")  # with a name and a digest that fit
    with pytest.raises(DataError, match=r"-s7-.*: expected a run of its own; it is .*-s0-.* but for the seed"):
        read_all(tmp_path)


def test_seeds_beyond_those_of_the_suite_are_of_it():
    (path, *_) = sorted(COMMITTED.glob("rte-minilm-ponder-s0-*.json"))
    result = Result.of_run(path)
    assert is_of_suite(result)
    config = dataclasses.replace(RunConfig.from_dict(result["config"]), seed=17)
    more = Result({**result.data, "config": config.to_dict()}, Path(f"{config.key}.json"))
    assert is_of_suite(more)


def test_one_command_makes_one_part(results, tmp_path):
    results = [result for result in results if result["task"] == "RTE"]
    whole = report(results)
    for part in PARTS:
        shown = report(results, only=[part]).blocks
        assert [block for block in whole.blocks if block in shown] == list(shown)  # as in the whole page
    for result in results:
        result.save(tmp_path / "results" / f"{RunConfig.from_dict(result['config']).key}.json")
    ran = invoke("report", "--results", tmp_path / "results", "--only", "table-1")
    assert ran.exit_code == 0, ran.output
    assert "### Scores" in ran.output
    assert "At the same cost" not in ran.output
    ran = invoke("report", "--results", tmp_path / "results", "--only", "figure-3", "--html", tmp_path / "page.html")
    assert "data:image/svg+xml" in (tmp_path / "page.html").read_text()
    with pytest.raises(ArgumentError, match="--only: expected parts of the report, table-1, table-2"):
        report(results, only=["table-9"])


COMMITTED, DOCS = Path("benchmarks/results/glue"), Path("docs")


def test_the_pages_and_the_summary_are_those_of_the_committed_files(monkeypatch):
    """All but the significance, which needs labels, and the figures: `python -m benchmarks.glue report` makes them."""
    monkeypatch.setattr("benchmarks.glue.report.summary._draw", lambda groups, ax: None)  # half of the time
    results = read_all(COMMITTED)
    told = json.loads((DOCS / "results-summary.json").read_text())
    assert told == summary(results)
    for of_backbone in told.values():
        assert list(of_backbone) == ["1", "1.5", "2", "3"]
        for cell in of_backbone.values():
            for scores in (cell["macro"], *cell["tasks"].values()):
                assert set(scores) == {"vanilla", "ponder", "palbert", "pabee", "blind", "static"}
                assert all(score is None or 0.0 <= score <= 100.0 for score in scores.values())
    shown = (DOCS / "benchmark.md").read_text(encoding="utf-8")
    assert [block.markdown("figures") for block in headline(results) if block.markdown("figures") not in shown] == []
    for backbone in ("minilm", "mpnet"):
        runs = [result for result in results if result["backbone"] == backbone]
        page = (DOCS / f"results-{backbone}.md").read_text(encoding="utf-8")
        shown, made_now = (_tables(text) for text in (page, report(runs, draw=False).markdown()))
        assert len(made_now) > 80
        assert shown == made_now


def _tables(page):
    page = re.sub(r"### Significance\n.*?(?=\n### |\n## |\Z)", "", page, flags=re.DOTALL)
    return [line for line in page.splitlines() if line[:1] in ("|", "#")]


def of_pays(recipe, task, seed, score, per_step, curve=None, options=None):
    """A run of the suite `pays`, as far as the summary looks at it: its steps score `per_step`."""
    (cell,) = (
        cell
        for cell in suites.get("pays").cells("minilm")
        if (cell.task, cell.spec.recipe, dict(cell.spec.options)) == (task, recipe, options or {})
    )
    settings = cell.finals(cell.points[0])[seed]
    result = made("vanilla", task, new=False).data
    dev = {**result["splits"]["dev"], "exits": {"score": score}, "per_step": per_step, "curves": curve or []}
    dev["full_depth"] = {"score": per_step[-1]}
    splits = {"dev": dev, "held_out": {**dev, "exits": {"score": score}}}
    named = {"recipe": recipe, "config": settings.to_dict(), "backbone": "minilm", "num_steps": 6}
    policies_of = {"static": {"name": "fixed-step"}, "ponder": {"name": "confidence", "threshold": 0.9}}
    named["policy"] = policies_of.get(recipe, {"name": "last-step"})
    speed = {**result["speed_up"], "steps": 6 / (options or {}).get("k", 6)}
    return Result({**result, **named, "speed_up": speed, "splits": splits}, Path(f"{settings.key}.json"))


def test_the_summary_is_what_plain_loops_give_on_runs_of_the_suite_alone():
    steps = [[0.2, 0.4, 0.5, 0.6, 0.6, 0.7], [0.1, 0.3, 0.5, 0.5, 0.7, 0.8], [0.2, 0.2, 0.2, 0.4, 0.9, 0.9]]
    points = {"knob": [0.5, 0.9], "score": [0.3, 0.7], "mean_exit_step": [2.0, 4.0], "cost": [0.3, 0.6]}
    curves = [{"policy": "confidence", "knob": "threshold", "points": points}]
    runs = [of_pays("ponder", "RTE", seed, 0.6, each, curves) for seed, each in enumerate(steps)]
    runs += [of_pays("vanilla", "RTE", seed, score, [0.0] * 5 + [score]) for seed, score in enumerate((0.9, 0.7, 0.8))]
    runs += [of_pays("vanilla", "MRPC", 0, 0.5, [0.5] * 6)]
    runs += [of_pays("static", "RTE", 0, 0.55, [0.55] * 6, options={"k": 3})]
    runs += [of_pays("static", "RTE", 0, 0.57, [0.57] * 6, options={"k": 3, "taught": True})]
    runs += [of_pays("pabee", "MRPC", 0, 0.5, [0.5] * 6)]  # lacks RTE, and shrinks no average
    others = [made("palbert", "MRPC"), made("vanilla", "RTE", score=0.1)]
    assert all(map(is_of_suite, runs))
    assert not any(map(is_of_suite, others))
    found = summary([*runs, *others])
    nothing = dict.fromkeys(COMPARED)
    assert list(found) == ["minilm", "mpnet"]
    assert list(found["minilm"]) == ["1", "1.5", "2", "3"]
    at_full, fast, twice, thrice = found["minilm"].values()
    assert at_full["tasks"]["RTE"] == {**nothing, "vanilla": 80.0, "ponder": 80.0}
    assert at_full["tasks"]["MRPC"] == {**nothing, "vanilla": 50.0, "pabee": 50.0}
    assert at_full["macro"] == at_full["tasks"]["RTE"]  # the one task that vanilla, ponder and static have
    assert fast["tasks"]["RTE"] == {**nothing, "ponder": 70.0, BLIND: 60.0}  # 0.6, 0.6 and 0.725 by coins
    assert twice["tasks"]["RTE"] == {**nothing, "ponder": 50.0, BLIND: 50.0, "static": 55.0}
    assert thrice["macro"] == {**nothing, "ponder": 30.0, BLIND: 37.5}  # 0.4, 0.3, and a quarter from 0.2 to 0.9
    assert found["mpnet"]["2"]["tasks"]["SST-2"] == nothing
    assert "CLINC150" not in found["mpnet"]["2"]["tasks"]


def test_the_headline_is_put_into_its_place(tmp_path):
    page = tmp_path / "benchmark.md"
    page.write_text("# B\n\n<!-- results: written by the benchmark -->\nold\n<!-- end of results -->\n\nRest.\n")
    runs = [of_pays("vanilla", "RTE", 0, 0.8, [0.8] * 6), of_pays("pabee", "RTE", 0, 0.7, [0.7] * 6)]
    for _ in range(2):
        write(runs, tmp_path)
        text = page.read_text()
        assert "old" not in text
        assert "](figures/pays.svg)" in text
        assert "| minilm | vanilla | 80.0 | – | – | – |" in text
        assert "`minilm`: RTE (seeds: 1)" in text
        assert text.endswith("<!-- end of results -->\n\nRest.\n")
    assert (tmp_path / "figures" / "pays.svg").exists()
    assert "the suite `pays`" in (tmp_path / "results-minilm.md").read_text()


def test_the_headline_says_who_has_fewer_seeds(tmp_path):
    vanilla, palbert = (
        [of_pays(name, "RTE", seed, 0.8, [0.8] * 6) for seed in range(3)] for name in ("vanilla", "palbert")
    )
    pabee, deebert = (
        [of_pays(name, "RTE", 0, 0.7, [0.7] * 6)] for name in ("pabee", "deebert")
    )  # the latter is not shown
    told = [block.markdown("figures") for block in headline([*vanilla, *palbert[:1], *pabee, *deebert])]
    assert any("`minilm`: RTE (seeds: 3, but 1 of palbert and pabee on RTE)." in text for text in told)


def test_a_page_without_marks_is_refused_before_others_are_written(tmp_path):
    (tmp_path / "benchmark.md").write_text("# No marks\n")
    with pytest.raises(PonderError, match="expected the lines"):
        write([of_pays("vanilla", "RTE", 0, 0.8, [0.8] * 6)], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.md"]


def test_goals_are_met_missed_or_not_known():
    """Gaps are between runs of one seed, and not between medians of different seeds."""

    def curve(fast, twice):
        points = {"knob": [0.1, 0.5, 0.9], "score": [fast, twice, twice], "mean_exit_step": [2.0, 3.0, 4.0]}
        return [{"policy": "confidence", "knob": "threshold", "points": {**points, "cost": [0.3, 0.6, 0.7]}}]

    steps = [[0.1, 0.2, 0.5, 0.6, 0.6, 0.7], [0.1, 0.3, 0.6, 0.6, 0.7, 0.8], [0.2, 0.2, 0.7, 0.7, 0.7, 0.9]]
    runs = [of_pays("ponder", "RTE", 0, 0.6, steps[0], curve(0.20, 0.51))]
    runs += [of_pays("ponder", "RTE", 1, 0.6, steps[1], curve(0.35, 0.62))]
    runs += [of_pays("ponder", "RTE", 2, 0.6, steps[2], curve(0.60, 0.69))]
    runs += [of_pays("vanilla", "RTE", seed, score, [0.0] * 5 + [score]) for seed, score in enumerate((0.75, 0.7))]
    runs += [of_pays("static", "RTE", 1, 0.6, [0.6] * 6, options={"k": 3})]
    groups = choose(runs)[0]
    table = goals_table({"minilm": (groups, ["RTE"]), "mpnet": ({}, [])})
    assert table.head == ["`ponder` at", "against", "goal", "minilm", "mpnet"]
    assert [tuple(row) for row in table.rows] == [
        ("×1.5", "blind", "+0.5", "-7.7 / -7.1, missed", "–"),  # -9, -4.7 and -7.7
        ("×2", "blind", "+1.0", "+1.0 / +0.7, met by one of them", "–"),  # +1, +2 and -1
        ("×3", "blind", "+2.0", "+0.0 / +1.7, missed", "–"),  # -10, 0 and +15
        ("×1.5", "cut there and fine-tuned", "+0.5", "–", "–"),
        ("×2", "cut there and fine-tuned", "+1.0", "+2.0, met", "–"),  # of seed 1 alone
        ("×1.5", "cut there or earlier, the better on held-out parts", "+0.5", "–", "–"),
        ("×2", "cut there or earlier, the better on held-out parts", "+1.0", "+2.0, met", "–"),
        ("×1", "vanilla at full depth", "-0.3", "+2.5, met", "–"),  # -5 and +10
        ("×2", "vanilla at full depth", "-0.7", "-16.0, no goal", "–"),  # -24 and -8
    ]
    assert gap(groups, "MRPC", BLIND, 2.0) is None
    assert gap(groups, "RTE", "distilled", 2.0) is None


@pytest.mark.parametrize(
    ("found", "told"),
    [(-0.69, "-0.7, met"), (-0.71, "-0.71, missed"), (-0.704, "-0.704, missed"), (-0.8, "-0.8, missed")],
)
def test_a_goal_that_was_just_missed_does_not_look_met(found, told, monkeypatch):
    monkeypatch.setattr(Goal, "gap_in", lambda *_: found)
    assert Goal("vanilla", 2.0, -0.7).told({}, []) == told


def test_the_rival_may_be_an_encoder_that_was_cut_earlier():
    """Of the cuts that cost no more the one with the best held-out score, for each seed, whatever dev says."""
    points = {"knob": [0.1, 0.9], "score": [0.6, 0.6], "mean_exit_step": [2.0, 4.0], "cost": [0.3, 0.7]}
    curves = [{"policy": "confidence", "knob": "threshold", "points": points}]
    runs = [of_pays("ponder", "RTE", seed, 0.6, [0.6] * 6, curves) for seed in (0, 1)]
    dev_and_held_out = {(2, 0): (0.50, 0.9), (3, 0): (0.58, 0.8), (2, 1): (0.70, 0.7), (3, 1): (0.55, 0.8)}
    for (k, seed), (score, held_out) in dev_and_held_out.items():
        runs.append(of_pays("static", "RTE", seed, score, [score] * 6, options={"k": k}))
        runs[-1].data["splits"]["held_out"]["exits"]["score"] = held_out
    groups = choose(runs)[0]
    assert gaps_by_seed(groups, "RTE", "static", 2.0) == pytest.approx([2.0, 5.0])
    assert gaps_by_seed(groups, "RTE", "cheaper", 2.0) == pytest.approx([10.0, 5.0])
    assert gaps_by_seed(groups, "RTE", "cheaper", 3.0) == pytest.approx([10.0, -10.0])
    assert gaps_by_seed(groups, "RTE", "cheaper", 1.5) == []  # none was cut there


def test_what_is_out_of_scope_has_a_table_of_its_own():
    runs = [of_pays("vanilla", "CLINC150", seed, 0.9, [0.9] * 6) for seed in (0, 1, 2)]
    runs.append(of_pays("static", "CLINC150", 0, 0.9, [0.9] * 6, options={"k": 3}))
    for made_so, (full, exits) in zip(runs, [(0.3, 0.2), (0.5, 0.4), (0.4, 0.1), (0.1, 0.3)], strict=True):
        (dev,) = made_so.reported
        dev["full_depth"]["out_of_scope_recall"], dev["exits"]["out_of_scope_recall"] = full, exits
    runs.append(of_pays("vanilla", "RTE", 0, 0.8, [0.8] * 6))
    _, _, table = out_of_scope(choose(runs)[0])
    told = [["CLINC150", "vanilla", "40.0", "20.0", "3"], ["CLINC150", "static (k=3)", "–", "30.0", "1"]]
    assert [list(row) for row in table.rows] == told
    assert out_of_scope(choose(runs[-1:])[0]) == []


def test_the_parts_are_documented():
    page = (DOCS / "benchmark-report.md").read_text()
    for part in PARTS:
        assert f"| `{part}` |" in page


@pytest.mark.usefixtures("all_thresholds")
def test_curves_are_what_replaying_each_policy_gives():
    generator = torch.Generator().manual_seed(0)
    outputs, hazards = torch.randn(30, STEPS, 2, generator=generator), torch.randn(30, STEPS, generator=generator)
    labels = torch.randint(2, (30,), generator=generator)
    trajectory = Trajectory(outputs, hazards, torch.arange(30), labels=labels, task="classification")
    cost = Cost(stem=5.0, steps=(10.0,) * STEPS, readouts=(0.0,) * STEPS, heads=(1.0,) * STEPS, lambda_head=2.0)

    def accuracy(outputs, labels):
        return (outputs.argmax(1) == labels).double().mean().item()

    entries = {e["policy"]: e for e in record_curves(trajectory, policies.Quantile(0.5), accuracy, cost)}
    assert list(entries) == ["quantile", "patience", "entropy", "confidence"]
    for q, score, step, paid in zip(
        *(entries["quantile"]["points"][name] for name in ("knob", "score", "mean_exit_step", "cost")), strict=True
    ):
        exits = trajectory.replay(policies.Quantile(q))
        assert score == pytest.approx(accuracy(exits.outputs, labels), abs=1e-6)
        assert step == pytest.approx(exits.exit_step.double().mean().item(), abs=1e-6)
        expected = cost.of({"hazard"}, exits.exit_step).mean().item() / cost.plain
        assert paid == pytest.approx(expected, abs=1e-6)
    assert record_curves(trajectory, policies.LastStep(), accuracy, cost) == []


@pytest.mark.usefixtures("all_thresholds")
def test_thresholds_of_curves_lie_where_rows_leave():
    """All rows of a model that is sure leave between two values of an even grid."""
    generator = torch.Generator().manual_seed(0)
    hazards = torch.randn(400, STEPS, generator=generator) / 4 - 9.0
    outputs = 15 + 4 * torch.rand(400, STEPS, 1, generator=generator) * torch.arange(1, STEPS + 1).view(1, -1, 1)
    outputs = torch.cat([outputs, -outputs], dim=2).half().float()
    labels = torch.randint(2, (400,), generator=generator)
    trajectory = Trajectory(outputs / 3, hazards, torch.arange(400), labels=labels, task="classification")
    for entry in record_curves(trajectory, policies.Quantile(0.5), lambda *_: 0.5):
        if entry["policy"] != "patience":
            steps = sorted([*entry["points"]["mean_exit_step"], 1.0, float(STEPS)])
            assert max(after - before for before, after in itertools.pairwise(steps)) < 1.0, entry["policy"]


def test_a_run_is_made_once_more_for_a_model_that_is_gone(backbone, glue_dir, tmp_path):
    settings = config(backbone, recipe="vanilla")
    (tmp_path / "models" / f".{settings.key}.part-1").mkdir(parents=True)  # of a process that was killed
    run(settings, glue_dir, tmp_path / "out", tmp_path / "work", models=tmp_path / "models", progress=False)
    assert (tmp_path / "models" / settings.key / "glue.json").exists()
    assert [path.name for path in (tmp_path / "models").iterdir()] == [settings.key]
    run(settings, glue_dir, tmp_path / "out", tmp_path / "work", models=tmp_path / "models", progress=False)
    run(settings, glue_dir, tmp_path / "out", tmp_path / "work", models=tmp_path / "other", progress=False)
    assert (tmp_path / "other" / settings.key / "glue.json").exists()


def test_seeds_whose_runs_tried_other_thresholds_are_drawn_on_one_grid():
    def curve(points):
        made = tuple(Point(t, s, 2.0 * s, s / 2, 1.0) for t, s in points)
        return Curve("q", "score", made, (), Point(math.nan, 1.0, 6.0, 1.0, 1.0))

    coarse, fine = curve([(0.0, 0.1), (0.5, 0.6), (1.0, 0.8)]), curve([(0.0, 0.2), (0.25, 0.3), (1.0, 0.9)])
    assert figures.on_one_grid([coarse, coarse]) == [coarse, coarse]
    one, other = figures.on_one_grid([coarse, fine])
    assert [p.threshold for p in one.points] == [p.threshold for p in other.points] == [0.0, 0.25, 0.5, 1.0]
    assert [p.score for p in one.points] == pytest.approx([0.1, 0.35, 0.6, 0.8])
    assert [p.score for p in other.points] == pytest.approx([0.2, 0.3, 0.5, 0.9])
    assert [p.mean_exit_step for p in one.points] == pytest.approx([0.2, 0.7, 1.2, 1.6])


class TwoSplits(dict):
    """As much of a result of MNLI as a curve is read from: thresholds are chosen on each of its splits."""

    def __init__(self, *points: dict[str, list[float]]) -> None:
        super().__init__(num_steps=4)
        curves = ({"policy": "confidence", "knob": "threshold", "points": each} for each in points)
        self.reported = [{"curves": [curve]} for curve in curves]

    def score(self, name: str) -> float:
        return 0.8


def test_splits_with_thresholds_of_their_own_are_read_at_equal_steps() -> None:
    first = {"knob": [0.1, 0.5, 0.9], "score": [0.5, 0.6, 0.8], "mean_exit_step": [1.0, 2.0, 4.0]}
    second = {"knob": [0.2, 0.7, 0.8, 0.95], "score": [0.7, 0.8, 0.8, 0.8], "mean_exit_step": [1.0, 2.0, 3.0, 4.0]}
    curve = read_curve(TwoSplits(first, second), "confidence")
    assert [point.mean_exit_step for point in curve.points] == [1.0, 2.0, 3.0, 4.0]
    assert [point.score for point in curve.points] == pytest.approx([0.6, 0.7, 0.75, 0.8])


def test_a_report_is_not_written_among_the_results(results, tmp_path):
    for result in results:
        result.save(tmp_path / f"{RunConfig.from_dict(result['config']).key}.json")
    ran = invoke("report", "--results", tmp_path, "--out", tmp_path)
    assert ran.exit_code != 0
    assert not (tmp_path / "results-summary.json").exists()
