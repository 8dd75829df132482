"""Tables that are written by hand say what the results say; the message of a failure is the row to write."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

from benchmarks.glue.report.groups import Groups, choose, task_order
from benchmarks.glue.report.summary import is_of_suite
from benchmarks.glue.results import read_all

ROOT = Path(__file__).resolve().parents[2]
WHAT = "| a model with fewer layers, fine-tuned |"
DISTILLED = "| a smaller model, distilled from yours |"


def shown(what: str = WHAT) -> str:
    (row,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(what)]
    return row


def expected_distilled(groups: Groups) -> str:
    """The row: encoders that were cut and taught by the whole one, beside `ponder` with the same seeds."""
    pairs = []
    for task in task_order(task for _, task in groups):
        taught = next((group for (_, of), group in groups.items() if of == task and group.is_distilled), None)
        if taught is None or ("ponder", task) not in groups:
            continue
        theirs, ours = taught.by_seed(2.0, ""), groups["ponder", task].by_seed(2.0, groups["ponder", task].own_policy)
        seeds = sorted(theirs.keys() & ours.keys())
        medians = [statistics.median(scores[seed] for seed in seeds) for scores in (theirs, ours)]
        pairs.append("{} {:.1f} against {:.1f}".format(task, *medians))
    return (
        f"{DISTILLED} MiniLM cut to half its layers and taught by the whole, as above, the same seed: "
        f"{', '.join(pairs)} |"
    )


def expected(summary: dict[str, Any], tables: str) -> str:
    """The row: from the suite `pays` as soon as it has runs of both, else from the tables of the earlier suites."""
    tasks = summary["minilm"]["2"]["tasks"]
    known = {task: scores for task, scores in tasks.items() if scores["static"] and scores["ponder"]}
    if known:
        pairs = [f"{task} {scores['static']:.1f} against {scores['ponder']:.1f}" for task, scores in known.items()]
        return f"{WHAT} it depends on the task: MiniLM at ×2 in steps, against exits of `ponder`: {', '.join(pairs)} |"
    sst_2, macro = earlier(tables, "SST-2"), earlier(tables, "macro")
    return (
        f"{WHAT} it depends on the task: MiniLM at ×1.5 in steps, SST-2: {sst_2[0]} against {sst_2[1]} with exits; "
        f"mean of five GLUE tasks: {macro[0]} against {macro[1]} |"
    )


def earlier(tables: str, column: str) -> tuple[float, float]:
    """The score of the encoder that was cut, and the best of any policy that looks at the examples, at ×1.5."""
    lines = tables.partition("*×1.5 in steps;")[2].partition("*×2 in steps;")[0].splitlines()
    rows = [[re.sub(r"\*|</?u>", "", cell).strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    place = rows[0].index(column)
    scores = {(row[0], row[1]): float(row[place]) for row in rows[2:] if row[place] != "–"}
    cut = scores.pop(("static", "cut"))
    return cut, max(score for (_, policy), score in scores.items() if policy != "blind")


def test_the_row_on_smaller_models_is_what_the_results_say() -> None:
    summary = json.loads((ROOT / "docs" / "results-summary.json").read_text())
    assert shown() == expected(summary, (ROOT / "docs" / "results-minilm.md").read_text())


def test_the_row_on_distilled_models_is_what_the_results_say() -> None:
    runs = read_all(ROOT / "benchmarks" / "results" / "glue")
    pays = choose(run for run in runs if run["backbone"] == "minilm" and is_of_suite(run))[0]
    assert shown(DISTILLED) == expected_distilled(pays)


def test_how_often_a_cut_model_is_ahead_is_what_the_results_say() -> None:
    tasks = json.loads((ROOT / "docs" / "results-summary.json").read_text())["minilm"]["1.5"]["tasks"]
    gaps = [round(scores["static"] - scores["ponder"], 1) for scores in tasks.values()]
    ahead = [gap for gap in gaps if gap > 0]
    counts = {3: "three", 4: "four", 5: "five", 7: "seven"}
    sentence = (
        f"At ×1.5, MiniLM cut to four of its six layers is ahead of the exits of `ponder` on {counts[len(ahead)]} of "
        f"{counts[len(gaps)]} tasks, by {min(ahead)} to {max(ahead)} points."
    )
    assert sentence in " ".join((ROOT / "README.md").read_text().split()), sentence


def test_the_row_is_read_from_the_suite_pays_once_it_has_runs() -> None:
    runs = {"RTE": {"static": 60.04, "ponder": 61.26}, "CoLA": {"static": None, "ponder": 20.0}}
    assert "`ponder`: RTE 60.0 against 61.3 |" in expected({"minilm": {"2": {"tasks": runs}}}, "")


def test_the_table_of_fine_tuned_models_is_what_the_results_say() -> None:
    folder = ROOT / "benchmarks" / "results" / "finetuned"
    found = [json.loads(next(folder.glob(f"{task}-minilm-*.json")).read_text()) for task in ("sst-2", "banking77")]
    rows = {
        "unlabelled texts that made the exits": [f"{one['exits']['rows']:,}" for one in found],
        "other answers, promised at most": [f"{one['exits']['level']:.0%}" for one in found],
        "other answers on the certifying texts": [f"{one['exits']['disagreement']:.2%}" for one in found],
        "other answers on test texts, which chose nothing": [f"{one['test']['disagreement']:.2%}" for one in found],
        "accuracy there, without and with exits": [
            f"{one['test']['plain_accuracy']:.1%}, {one['test']['exit_accuracy']:.1%}" for one in found
        ],
        "int8 at full depth: other answers, speed-up in seconds": [
            f"{one['int8']['moved']:.2%}, ×{one['int8']['speed_up_in_seconds']:.2f}" for one in found
        ],
    }
    shown = (ROOT / "docs" / "finetuned.md").read_text().splitlines()
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in shown
    assert not any(one["int8"]["met"] for one in found), "the page says that nothing could be promised"


def test_the_table_of_the_server_says_how_deep_its_rows_go() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "serving" / "load.json").read_text())
    (step,) = {round(each["mean_exit_step"], 1) for each in measured["figures"] if "mean_exit_step" in each}
    assert f"(mean step {step} of 6, at most ×{6 / step:.1f})" in (ROOT / "docs" / "serving.md").read_text()


def test_the_rows_on_exits_and_int8_are_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "speed" / "exporting.json").read_text())
    assert measured["environment"]["threads"] == 1, "as the pages say"
    of = {(each["case"], each["figure"]): each for each in measured["figures"]}

    def times(kind: str, case: str = "MiniLM, 8 × 32") -> tuple[str, str]:
        found = of[case, f"speed-up of {kind} over PyTorch fp32"]
        return f"{found['value']:.1f}", f"{found['mean_exit_step']:.1f}"

    (exits, step), (alone, _), (both, _) = times("PyTorch, exits"), times("int8 of all"), times("int8 of all, exits")
    large, late = times("int8 of all, exits", "MPNet-base, 8 × 32")
    page, readme = ((ROOT / name).read_text() for name in ("docs/speed.md", "README.md"))
    assert f"| exits in PyTorch, 8 rows of 32 tokens, mean exit {step} of 6 | {exits} times the throughput |" in page
    assert f"| int8 alone (all products), in onnxruntime | {alone} times |" in page
    large_too = f"{both} times; MPNet-base, mean exit {late} of 12: {large} times |"
    assert f"| exits and int8 (all products), in onnxruntime | {large_too}" in page
    (default, _), (with_exits, _) = times("int8"), times("int8, exits")
    row = f'`int8="all"`: {alone} times the throughput of PyTorch fp32, with exits {both} times'
    assert f"{row}; the default `int8=True`: {default} and {with_exits} (MiniLM, 8 rows)" in readme


def test_what_is_left_of_the_saved_steps_is_what_was_measured() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "speed" / "exiting.json").read_text())
    of = {
        each["case"].removeprefix("ALBERT-base, "): each["value"]
        for each in measured["figures"]
        if each["figure"] == "speed-up in wall-clock ÷ in steps"
    }
    early, uniform = 100 * of["early-heavy, batch 8"], 100 * of["uniform, batch 8"]
    alone = [100 * value for case, value in of.items() if case.endswith("batch 1")]
    many = [value for case, value in of.items() if case.endswith(("batch 32", "batch 128"))]
    assert len(many) > len(alone) > 1
    assert min(many) > 0.995, "32 rows and more keep all"
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"{early:.0f} to {uniform:.0f}% of the speed-up in steps is left where exits are early or uniform." in text
    assert f"One row at a time keeps {min(alone):.0f} to {max(alone):.0f}%, and 32 rows and more keep all." in text
