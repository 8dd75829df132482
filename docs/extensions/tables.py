"""The result tables of the pages, drawn from committed JSON.

Each function draws one table as Markdown; `TABLES` lists them by name, and `ROOMS` says which code a table measures.
`docs.extensions.pages` writes the tables into the pages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

from scipy.stats import binom

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RERANKED = (
    *(("cut pool", share) for share in (0.8, 0.25)),
    ("cut encoder", 1.0),
    *(("TopK", margin) for margin in (3.0, 2.0)),
    *(("TopK, first stage", margin) for margin in (3.0, 2.0, 0.5)),
)
ONE_MODEL_SPEED_UPS = (1.5, 2.0, 3.0)
WHOLE_SPEED_UPS = (1.0, 1.5, 2.0, 3.0)
_LINES = 14
"""Lines of an output that a page shows."""
BROKEN = " ✗"
"""Mark of a speed-up whose promise is broken on test rows, by an exact binomial test at 5%."""
NAMES = {
    "static": "cut and fine-tuned",
    "minilm": "MiniLM",
    "mpnet": "MPNet",
    "e5": "E5",
    "shared": "one shared layer",
}


def read(path: Path) -> Any:
    """Return the content of a JSON file."""
    return json.loads(path.read_text("utf-8"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table as Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def made_by(results: dict[str, Any] | Sequence[dict[str, Any]]) -> str:
    """Return the line under a table: version, commits, date and threads of its measurements.

    It names the instructions of the processors if they differ, since gains of int8 depend on them.
    A result whose commit is not in the history has `code`, a commit that stands for it.
    """
    found = [results] if isinstance(results, dict) else list(results)
    environments = sorted((one["environment"] for one in found), key=lambda made: made["date"])
    first = environments[0]
    last = environments[-1]
    commits = list(dict.fromkeys(made.get("code", made["commit"])[:8] for made in environments))
    measured = f"Version {last['versions']['ponder-torch']}, commit `{commits[0]}`, {first['date']}"
    if len(commits) > 1:
        measured = (
            f"Version {last['versions']['ponder-torch']}, {len(commits)} commits from "
            f"`{commits[0]}` ({first['date']}) to `{commits[-1]}` ({last['date']})"
        )
    line = f"{measured}, {last['threads']} threads."
    gone = [made for made in environments if "code" in made]
    if gone:
        line += (
            f" Of {len(gone)} of {len(environments)} measurements the commit is not in this history:"
            " the commit here stored them, or gives the same rows."
        )
    recorded = [made for made in environments if "cpu_capability" in made]
    instructions = sorted({made["cpu_capability"] for made in recorded})
    if len(instructions) > 1:
        line += f" Instructions of the processors: {', '.join(instructions)}."
    return f"\n\n{line}"


def score(value: float | None) -> str:
    """Return a score in percent, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def signed(value: float) -> str:
    """Return a gap in points with its sign."""
    return f"{value:+.1f}"


def pays() -> str:
    """Return the macro scores of recipes and rivals, by speed-up in steps, and the gaps between them."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    return str(import_module("benchmarks.glue.report").headline(results))


def versus() -> str:
    """Return the default against each rival, in pairs of runs of one seed."""
    return str(import_module("benchmarks.glue.report").versus(*_runs()))


def rule() -> str:
    """Return what the rule for the default says today."""
    return str(import_module("benchmarks.glue.report").rule(*_runs()))


def _runs() -> tuple[Any, Any]:
    read_all = import_module("benchmarks.glue.results").read_all
    return read_all(RESULTS / "glue"), read_all(RESULTS / "repeated")


def held_out() -> str:
    """Return what a default is chosen on: recipes left by confidence, on held-out rows of train."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    return str(import_module("benchmarks.glue.report").held_out(results))


def one_model() -> str:
    """Return the points by which `frozen` is ahead of `deebert`, from one fine-tuned model each, on both splits.

    Rows are left by confidence. Held-out rows choose a default; the rows of dev are reported.
    """
    pairs = list(_pairs_of_one_model())
    not_learnt = import_module("benchmarks.glue.report.versus").NOT_LEARNT
    rows = []
    for backbone in ("minilm", "mpnet", "e5"):
        by_task: dict[str, list[tuple[Any, Any]]] = {}
        for frozen, deebert in pairs:
            if frozen["backbone"] == backbone:
                by_task.setdefault(frozen["task"], []).append((frozen, deebert))
        medians = {task: _median_gaps(of_task) for task, of_task in by_task.items()}
        for task, gaps in medians.items():
            rows.append([NAMES[backbone], task, str(len(by_task[task])), *map(signed, gaps)])
        learnt = [gaps for task, gaps in medians.items() if (backbone, task) not in not_learnt]
        means = [mean(column) for column in zip(*learnt, strict=True)]
        rows.append([NAMES[backbone], "mean of the learnt", "", *map(signed, means)])
    head = [
        f"{split}, ×{times:g}" for split in ("held out", "dev") for times in ONE_MODEL_SPEED_UPS
    ]
    return table(["encoder", "task", "seeds", *head], rows)


def bootstrap() -> str:
    """Return the gaps of `frozen` to `deebert` on dev with their intervals over the rows, and where these are kept."""
    found = read(RESULTS / "bootstrap" / "frozen-deebert.json")
    rows = []
    for row in found["rows"]:
        interval = f"{signed(row['low'])} to {signed(row['high'])}"
        seeds = str(len(row["seeds"]))
        rows.append([NAMES[row["backbone"]], row["task"], seeds, signed(row["gap"]), interval])
    head = ["encoder", "task", "seeds", "gap on dev", "95% interval over rows"]
    return table(head, rows) + made_by(found)


def _pairs_of_one_model() -> Iterator[tuple[Any, Any]]:
    """Yield runs of `frozen` and `deebert` that share task, backbone, seed and the fine-tuned model."""
    read_all = import_module("benchmarks.glue.results").read_all
    frozen = {}
    for run in read_all(RESULTS / "glue"):
        if run["recipe"] == "frozen":
            frozen[run["backbone"], run["task"], run.seed] = run
    for run in read_all(RESULTS / "repeated"):
        if run["recipe"] != "deebert":
            continue
        partner = frozen.get((run["backbone"], run["task"], run.seed))
        # Equal seconds of the first stage are how the files show that the fine-tuned model was reused.
        if partner and partner["training"][0]["seconds"] == run["training"][0]["seconds"]:
            yield partner, run


def _median_gaps(pairs: Sequence[tuple[Any, Any]]) -> list[float]:
    """Return the medians over seeds of `frozen` − `deebert`, in points: held out, then dev."""
    score_at = import_module("benchmarks.glue.report.groups").score_at

    def score(run: Any, held_out: bool, times: float) -> float:
        rows = run.held_out if held_out else run
        return float(score_at(rows, "confidence", run["num_steps"] / times))

    return [
        median(
            100 * (score(frozen, held_out, times) - score(deebert, held_out, times))
            for frozen, deebert in pairs
        )
        for held_out in (True, False)
        for times in ONE_MODEL_SPEED_UPS
    ]


def ablation() -> str:
    """Return PALBERT's four changes to PonderNet, one after the other."""
    return reported("ablation", "minilm")


def whole() -> str:
    """Return the accuracy on SST-2 of models that were trained on all its examples, on both splits."""
    groups = import_module("benchmarks.glue.report.groups")
    found = import_module("benchmarks.glue.results").read_all(RESULTS / "whole")
    splits = {"dev": found, "held out": [run.held_out for run in found]}
    rows = []
    for split, runs in splits.items():
        chosen = {name: group for (name, _), group in groups.choose(runs).items()}
        for name, group in chosen.items():
            rows.append([split, f"`{name}`", *(_whole_cell(group, at) for at in WHOLE_SPEED_UPS)])
        blind = [chosen["frozen"].at(at, groups.BLIND_FAIR) for at in WHOLE_SPEED_UPS[1:]]
        rows.append([split, "blind, chosen on held-out rows", "–", *map(points, blind)])
    return table(["rows", "recipe", *(f"×{at:g}" for at in WHOLE_SPEED_UPS)], rows)


def _whole_cell(group: Any, speed_up: float) -> str:
    """Return the score of a recipe left by confidence; of a cut encoder, that at its own speed-up."""
    if group.is_cut and round(group.speed_up, 2) != speed_up:
        return "–"
    return points(group.at(speed_up, "confidence"))


def points(score: float | None) -> str:
    """Return a score in percent; a dash where there is none."""
    return "–" if score is None else f"{score:.1f}"


def longer() -> str:
    """Return runs with twice as many epochs, beside the same runs of the suite, at ×2."""
    label = import_module("benchmarks.glue.config").recipe_label
    rows = []
    for shorter, run in _pairs_of_longer_runs():
        name = label(run["recipe"], run.config["recipe_options"])
        for each in (shorter, run):
            epochs = f"{len(each['training'][0]['held_out_scores'])} of {each.config['epochs']}"
            scores = (_at_two(each.held_out), _at_two(each))
            rows.append([run["task"], f"`{name}`", epochs, *map(points, scores)])
    return table(["task", "recipe", "epochs", "held out", "dev"], rows)


def gains_of_longer_runs() -> dict[tuple[str, str], tuple[float, float]]:
    """Return by how many points runs with twice as many epochs are better, by task and recipe.

    Each has two: on the held-out rows and on dev.
    """
    return {
        (run["task"], run["recipe"]): (
            _at_two(run.held_out) - _at_two(shorter.held_out),
            _at_two(run) - _at_two(shorter),
        )
        for shorter, run in _pairs_of_longer_runs()
    }


def epochs_of_longer_runs() -> list[int]:
    """Return the numbers of epochs after which runs with twice as many ended."""
    return [len(run["training"][0]["held_out_scores"]) for _, run in _pairs_of_longer_runs()]


def _pairs_of_longer_runs() -> Iterator[tuple[Any, Any]]:
    """Yield each run of the suite `pays` that has a longer one, and this."""
    read_all = import_module("benchmarks.glue.results").read_all
    suite = import_module("benchmarks.glue.sweep").suite_named("pays")
    of_suite = [run for run in read_all(RESULTS / "glue") if suite.has(run)]
    for run in read_all(RESULTS / "longer"):
        yield next(each for each in of_suite if _same_but_epochs(each, run)), run


def _same_but_epochs(one: Any, other: Any) -> bool:
    """Return whether two runs differ in nothing but the number of epochs."""
    fields = ("task", "recipe", "recipe_options", "backbone", "seed", "lr")
    return all(one.config[name] == other.config[name] for name in fields)


def _at_two(run: Any) -> float:
    """Return the score at ×2 in steps by confidence; of a cut encoder, its own.

    A regression has no confidence: of it, the score of the step in the middle.
    """
    if run["recipe"] == "static":
        return 100 * float(run.score("exits"))
    half = run["num_steps"] // 2
    if import_module("benchmarks.tasks").get(run["task"]).kind == "regression":
        return 100 * float(run.per_step[half - 1])
    score_at = import_module("benchmarks.glue.report.groups").score_at
    return 100 * float(score_at(run, "confidence", half))


def earlier() -> str:
    """Return the scores of runs by version 0.1.0, which no other table shows: recipes, seeds and tasks as they came."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    suite_named = import_module("benchmarks.glue.sweep").suite_named
    shown = [suite_named(name) for name in ("pays", "pays-mpnet", "shared", "ablation")]
    left = [run for run in results if not any(suite.has(run) for suite in shown)]
    label = import_module("benchmarks.glue.config").recipe_label
    cells: dict[tuple[str, str], dict[str, list[Any]]] = {}
    for run in left:
        recipe = label(run["recipe"], run.config["recipe_options"])
        cells.setdefault((run["backbone"], recipe), {}).setdefault(run["task"], []).append(run)
    tasks = ("CoLA", "MRPC", "RTE", "SST-2", "STS-B")
    rows = []
    for (backbone, recipe), of_task in sorted(cells.items()):
        shown_tasks = [_earlier_cell(of_task.get(task, [])) for task in tasks]
        rows.append([NAMES[backbone], f"`{recipe}`", *shown_tasks])
    return table(["encoder", "recipe", *tasks], rows)


def _earlier_cell(runs: Sequence[Any]) -> str:
    """Return the median score at the exits, with the number of seeds where there are several."""
    if not runs:
        return "–"
    scores = median(100 * run.score("exits") for run in runs)
    return f"{scores:.1f}" + (f" ({len(runs)})" if len(runs) > 1 else "")


def shared() -> str:
    """Return the scores of every recipe at its exits on the encoder of one layer."""
    return reported("scores", "shared")


def switches() -> str:
    """Return PALBERT's four changes on the encoder of one layer."""
    return reported("ablation", "shared")


def as_the_paper() -> str:
    """Return the scores at the exits of runs at rates of PALBERT's paper."""
    return reported("scores", "minilm", "repeated/as-the-paper")


def likelihood() -> str:
    """Return PALBERT with the mean of log-likelihoods and with that of likelihoods (the paper's Eq. 2)."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "repeated" / "likelihood")
    rows = []
    for run in results:
        name = run.config["recipe_options"].get("likelihood", "expected_log")
        rows.append(
            [
                f'`likelihood="{name}"`',
                run["task"],
                f"×{run['speed_up']['steps']:.2f}",
                f"{100 * run.score('exits'):.1f}",
                f"{100 * run.score('full_depth'):.1f}",
                f"{100 * run.held_out.score('exits'):.1f}",
                f"{100 * run.held_out.score('full_depth'):.1f}",
            ]
        )
    head = ["objective", "task", "×steps", "dev, exits", "dev, full depth"]
    head += ["held out, exits", "held out, full depth"]
    return table(head, rows)


def reported(part: str, backbone: str, folder: str = "glue") -> str:
    """Return the table of a part of the benchmark's report."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / folder)
    drawn = str(import_module("benchmarks.glue.report").page(results, [part], backbone=backbone))
    return "\n".join(line for line in drawn.splitlines() if line.startswith("|"))


def beyond() -> str:
    """Return what steps beyond the trained ones bring on that encoder."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    rows = []
    for one in (one for one in results if one["backbone"] == "shared"):
        dev = one["splits"]["dev"]
        if (
            "beyond" in dev
            and one["recipe"] in ("vanilla", "palbert")
            and not one["config"]["recipe_options"]
        ):
            steps = [*dev["per_step"], *dev["beyond"]]
            shown = (steps[one["num_steps"] + more - 1] for more in (-1, 0, 1, 2, 4, 6))
            rows.append(
                [one["task"], f"`{one['recipe']}`", *(f"{100 * value:.1f}" for value in shown)]
            )
    return table(["task", "recipe", *(f"step {step}" for step in (5, 6, 7, 8, 10, 12))], rows)


def pays_by_task() -> str:
    """Return scores at ×2 by task."""
    summary = read(ROOT / "docs" / "results-summary.json")
    recipes = (summary.pop("default"), "deebert", "palbert", "pabee", "static")
    rows = [
        [
            NAMES.get(backbone, backbone),
            task,
            score(by_speed["1"]["tasks"][task]["vanilla"]),
            *map(score, own),
        ]
        for backbone, by_speed in summary.items()
        for task, scores in by_speed["2"]["tasks"].items()
        for own in [[scores[recipe] for recipe in recipes]]
    ]
    names = [NAMES.get(recipe, f"`{recipe}`") for recipe in recipes]
    return table(
        ["backbone", "task", "plain, full depth", *(f"{name}, ×2" for name in names)], rows
    )


def finetuned() -> str:
    """Return what `ponder exits` gave on two tasks, speed-ups and accuracies on the same test texts."""
    folder = RESULTS / "finetuned"
    columns = {
        "Banking77, MiniLM": read(folder / "banking77-minilm-exits-s0.json"),
        "SST-2, MiniLM": read(folder / "sst-2-minilm-exits-s0.json"),
        "SST-2, MPNet": read(folder / "sst-2-mpnet-exits-s0.json"),
    }

    def steps(one: Any) -> str:
        return f"×{one['exits']['num_steps'] / one['test']['mean_exit_step']:.2f}"

    lines: list[tuple[str, Callable[[Any], str]]] = [
        ("unlabelled texts", lambda one: f"{one['exits']['rows']:,}"),
        ("other answers, promised at most", lambda one: f"{one['exits']['level']:.0%}"),
        (
            "other answers on the certifying texts",
            lambda one: f"{one['exits']['disagreement']:.2%}",
        ),
        ("other answers on test texts", lambda one: f"{one['test']['disagreement']:.2%}"),
        ("accuracy there, without exits", lambda one: f"{one['test']['plain_accuracy']:.1%}"),
        ("accuracy there, with exits", lambda one: f"{one['test']['exit_accuracy']:.1%}"),
        ("speed-up there in steps", steps),
        (
            "speed-up in seconds, batches of 32",
            lambda one: f"×{one['exits']['speed_up_in_seconds']:.2f}",
        ),
        ("measured", lambda one: f"{one['environment']['date']}"),
    ]
    rows = ([name, *(cell(one) for one in columns.values())] for name, cell in lines)
    return table(["", *columns], rows) + made_by(list(columns.values()))


def cosines() -> str:
    """Return how near int8 stays to fp32."""
    whole = read(RESULTS / "quantised" / "quantised.json")
    found = whole["cosines"]
    rows = (
        [name, *(f"{found[b][name]['median']:.3f}, {found[b][name]['worst']:.3f}" for b in found)]
        for name in found["minilm"]
    )
    return table(["quantised", *(NAMES[backbone] for backbone in found)], rows) + made_by(whole)


def risk() -> str:
    """Return how often promises were broken in 1,000 draws."""
    whole = read(RESULTS / "risk" / "risk.json")
    found = [one for one in whole["outcomes"] if one["bound"] != "conformal"]
    rows = (
        [
            one["scene"], one["risk"].replace("_", " "), one["bound"].replace("_", " "), f"{one['level']:g}",
            f"{one['violations']:.1%}", f"{one['mean_risk']:.4f}", f"{one['mean_exit_step']:.2f}",
        ]
        for one in found
        if "halves" not in one["scene"]
    )  # fmt: skip
    return table(
        ["scene", "risk", "bound", "level", "broken", "mean risk", "mean exit step"], rows
    ) + made_by(whole)


def speed() -> str:
    """Return how much of the saved steps arrives in seconds, by the size of the batch."""
    whole = read(RESULTS / "speed" / "exiting.json")
    found = {one["case"]: one for one in whole["figures"]}
    kinds = {case.split(", ")[1]: None for case in found}
    sizes = {case.rpartition(" ")[2]: None for case in found}
    rows = (
        [kind, *(f"{found[f'ALBERT-base, {kind}, batch {size}']['value']:.2f}" for size in sizes)]
        for kind in kinds
    )
    return table(["exits", *(f"batch of {size}" for size in sizes)], rows) + made_by(whole)


def streaming() -> str:
    """Return the throughput of a stream of shared steps over that of stacked ones."""
    whole = read(RESULTS / "speed" / "streaming.json")
    rows = (
        [one["case"], f"×{one['value']:.2f}", f"{one['low']:.2f}–{one['high']:.2f}"]
        for one in whole["figures"]
    )
    return table(["stream", "shared ÷ stacked", "of five rounds"], rows) + made_by(whole)


def exporting() -> str:
    """Return the throughput of onnxruntime and int8 without exits, over PyTorch in fp32."""
    whole = read(RESULTS / "speed" / "exporting.json")
    kinds = {
        "fp32": "onnxruntime, fp32",
        "int8": "int8, narrowing products in fp32",
        "int8 of all": "int8",
    }
    values = {}
    for one in whole["figures"]:
        values[one["case"], one["figure"]] = one["value"]
    cases = list(dict.fromkeys(one["case"] for one in whole["figures"]))
    rows = [
        [case, *(f"×{values[case, f'speed-up of {kind} over PyTorch fp32']:.1f}" for kind in kinds)]
        for case in cases
    ]
    return table(["model, rows × tokens", *kinds.values()], rows) + made_by(whole)


def promised() -> str:
    """Return what exits, int8 and both give under a promise, in seconds and answers on test texts."""
    found = _advice()
    ways = ("exits", "int8", "int8 + exits")
    rows = []
    for one in found:
        by_name = {way["name"]: way for way in one["test"]["ways"]}
        plain = by_name["as it is"]["seconds"]
        cells = []
        for name in ways:
            way = by_name.get(name)
            if way is None or way["promise"] is None:
                cells.append("–")
            else:
                cells.append(f"×{plain / way['seconds']:.2f}, {way['other_answers']:.2%}")
        level = f"{one['settings']['disagreement']:.0%}"
        rows.append([f"{one['task']}, {NAMES[one['backbone']]}", level, *cells])
    return table(["task, model", "promised", *ways], rows) + made_by(found)


def _advice() -> list[dict[str, Any]]:
    return [read(path) for path in sorted((RESULTS / "advice").glob("*-s*.json"))]


def positions() -> str:
    """Return how much of the position-steps that halting saves arrives in seconds."""
    result = read(RESULTS / "positions" / "positions.json")
    names = {"block": "reference block", "albert": "`AlbertLayer`"}
    rows = [
        (
            names[timing["step"]],
            timing["task"],
            f"{timing['rows']} × {timing['length']} × {timing['width']}",
            f"{timing['mean_step']:.1f} of {timing['max_steps']}",
            f"{timing['steps_saved']:.0%}",
            f"{timing['seconds_saved']:.0%} (×{timing['seconds_times']:.1f})",
            f"{timing['arrived']:.2f}",
            f"×{timing['seconds_times_over_rows']:.2f}",
        )
        for timing in result["timings"]
    ]
    head = (
        "step",
        "exits of",
        "rows × positions × width",
        "mean exit step",
        "position-steps saved",
    )
    drawn = table((*head, "seconds saved", "arrived", "over rows"), rows)
    return f"{drawn}{made_by(result)}"


def tagger() -> str:
    """Return what exits per token and a gate per text save and change in a tagger of WNUT-17."""
    result = read(RESULTS / "tagger" / "tagger.json")
    rows = [
        (
            f"each token, confidence above {each['confidence']:g}",
            f"×{each['token_layers_times']:.2f}",
            "–",
            f"{each['words_changed']:.1%}",
            f"{each['entity_words_changed']:.1%}",
        )
        for each in result["per_token"]
    ]
    rows += [
        (
            f"`NoEntity`, at most {each['level']:.0%} of the texts with an entity missed",
            f"×{each['layers_times']:.2f}",
            f"×{each['seconds_times']:.2f}",
            "–",
            f"{each['entity_words_missed']:.1%}",
        )
        for each in result["gates"]
        if each["certified"]
    ]
    head = (
        "exits of",
        "token-layers",
        "seconds",
        "words with another tag",
        "entity words changed or missed",
    )
    return f"{table(head, rows)}{made_by(result)}"


def loops() -> str:
    """Return what each gate of LoopBench gives, per row and per position, medians over seeds."""
    report: Any = import_module("benchmarks.loops.report")
    found = report.results()
    made = [result for results in found.values() for result in results]
    return table(report.BOTH, report.both_modes(found)) + made_by(made)


def loops_ranking() -> str:
    """Return the gates of LoopBench by the position-steps that they need, means over tasks and seeds."""
    report: Any = import_module("benchmarks.loops.report")
    found = report.results()
    made = [result for results in found.values() for result in results]
    return table(report.RANKING, report.ranking(found)) + made_by(made)


def loops_promises() -> str:
    """Return the thresholds of confidence that certificates of LoopBench chose, and what test rows did."""
    report: Any = import_module("benchmarks.loops.report")
    made = [result for results in report.results().values() for result in results]
    return table(report.PROMISES, map(report.promise, made)) + made_by(made)


def rerank() -> str:
    """Return what leaving early saves at about the same change of the answer, next to what else is done."""
    found = [read(path) for path in sorted((RESULTS / "rerank").glob("*-s0-k10.json"))]
    raced = [one for one in found if "curves" in one]
    rows = []
    for whole in raced:
        model = f"{whole['task']}, {NAMES[whole['backbone']]}"
        full = next(one["seconds"] for one in whole["seconds"] if one["work"] == 1.0)
        for one in whole["seconds"]:
            if (one["way"], one["setting"]) not in RERANKED:
                continue
            # A cut encoder that loses half of the full order's nDCG has not learnt the task.
            failed = (
                " (failed training)" if one["way"] == "cut encoder" and one["ndcg"] > 0.5 else ""
            )
            rows.append(
                [
                    model,
                    one["way"] + failed,
                    f"{one['setting']:g}",
                    f"×{1 / one['work']:.2f}",
                    f"×{full / one['seconds']:.2f}",
                    f"{one['top_k']:.1%}",
                    f"{one['ndcg']:.4f}",
                    f"{one['ndcg_gap']:+.4f}",
                ]
            )
    head = ["task, model", "way", "setting", "pair-layers", "seconds", "other top 10"]
    head += ["nDCG@10 lost, full order", "by labels"]
    return table(head, rows) + made_by(raced)


def rerank_promises() -> str:
    """Return what promises of rankers save, and how often they were broken, over redraws of the queries."""
    found = [read(path) for path in sorted((RESULTS / "rerank").glob("*-s0-k10.json"))]
    raced = [one for one in found if "curves" in one]
    rows = []
    for whole in raced:
        for one in whole["promises"]:
            rows.append(
                [
                    f"{whole['task']}, {NAMES[whole['backbone']]}",
                    f"`{one['risk']}`, k = {one['k']}",
                    f"{one['level']:g}",
                    f"{one['queries']}",
                    f"×{1 / one['work']:.2f}",
                    f"{one['broken']:.1%}",
                ]
            )
    head = ["task, model", "promise", "level", "queries that certify", "pair-layers", "broken"]
    return table(head, rows) + made_by(raced)


def rerank_seconds() -> str:
    """Return the seconds of a query for each runtime, with and without certified exits."""
    whole = read(RESULTS / "rerank" / "clock-banking77-minilm-s0-k10.json")
    names = {
        "sentence-transformers": "Sentence Transformers",
        "PyTorch, full": "`rank`, PyTorch, no exits",
        "PyTorch, certified": "`rank`, PyTorch, certified exits",
        "onnx, full": "ONNX export, no exits",
        "onnx, certified": "ONNX export, certified exits",
        "int8, full": "int8 export, no exits",
    }
    plain = whole["ways"]["sentence-transformers"]["seconds"]
    rows = []
    for key, name in names.items():
        way = whole["ways"][key]
        cells = [f"{way['seconds']:.3f}", f"×{plain / way['seconds']:.2f}", f"{way['changed']:.0%}"]
        rows.append([name, *cells])
    return table(["way", "seconds a query", "×", "other top 10"], rows) + made_by(whole)


CASCADE_WAYS = {
    "exits": "exits",
    "cascade": "cascade",
    "cascade with exits": "both",
    "int8 exits": "int8 exits",
    "int8 cascade": "int8 cascade",
    "int8 cascade with exits": "int8 both",
}


def cascades() -> str:
    """Return how much sooner each way answers under each promise, means over seeds, broken promises marked."""
    rows = []
    for (backbone, task), runs in _cascade_runs().items():
        for level in runs[0]["promises"]:
            cells = []
            for way in CASCADE_WAYS:
                made = [run["promises"][level][way] for run in runs]
                if not all(one["met"] for one in made):
                    cells.append("–")
                    continue
                speed = mean(one["batches"]["times"][1] for one in made)
                inside = [_test_rows(run) for run in runs]
                broken = any(map(_is_broken, made, inside, [float(level)] * len(made)))
                cells.append(f"×{speed:.1f}{BROKEN if broken else ''}")
            name = f"{NAMES[backbone]}, {task}"
            rows.append([name, str(len(runs)), f"{float(level):.0%}", *cells])
    head = ["model, task", "seeds", "promised", *CASCADE_WAYS.values()]
    return table(head, rows) + made_by(_all_cascade_runs())


def cascade_answers() -> str:
    """Return the other answers of each way on test texts, and of texts out of scope, the worst seed's."""
    rows = []
    for (backbone, task), runs in _cascade_runs().items():
        for level in runs[0]["promises"]:
            name = f"{NAMES[backbone]}, {task}"
            rows.append([name, f"{float(level):.0%}", *_other_cells(runs, level, "other")])
            if "other_outside" in runs[0]["promises"][level]["cascade"]:
                cells = _other_cells(runs, level, "other_outside")
                rows.append([f"{name}, out of scope", f"{float(level):.0%}", *cells])
    head = ["model, task", "promised", *CASCADE_WAYS.values()]
    return table(head, rows) + made_by(_all_cascade_runs())


def _other_cells(runs: Sequence[Any], level: str, key: str) -> list[str]:
    made = [[run["promises"][level][way] for run in runs] for way in CASCADE_WAYS]
    return [f"{max(one[key] for one in ones):.1%}" for ones in made]


def students() -> str:
    """Return what stands in the model's place without any promise: the student alone, and labels on words."""
    words = {
        (one["task"], one["seed"]): one for one in read(RESULTS / "cascades" / "words.json")["rows"]
    }
    rows = []
    for (backbone, task), runs in _cascade_runs().items():
        by_labels = [words[task, run["seed"]] for run in runs if (task, run["seed"]) in words]
        accuracy = f"{mean(one['accuracy'] for one in by_labels):.1%}" if by_labels else "–"
        seconds = f"{mean(one['seconds'] for one in by_labels):.0f} s" if by_labels else "–"
        student = [run["student"] for run in runs]
        blind = [run["promises"]["0.02"]["blind mix"]["accuracy"] for run in runs]
        rows.append(
            [
                f"{NAMES[backbone]}, {task}",
                f"{mean(run['model']['accuracy'] for run in runs):.1%}",
                f"{mean(one['accuracy'] for one in student):.1%}",
                f"×{mean(one['batches']['times'][1] for one in student):.0f}",
                f"{mean(one['other'] for one in student):.1%}",
                f"{mean(blind):.1%}",
                accuracy,
                seconds,
            ]
        )
    head = ["model, task", "model's accuracy", "student alone", "×", "other answers"]
    head += ["blind mix at 2%", "TF-IDF and logistic regression, by labels", "its training"]
    return table(head, rows) + made_by(_all_cascade_runs())


def _cascade_runs() -> dict[tuple[str, str], list[Any]]:
    runs: dict[tuple[str, str], list[Any]] = {}
    for run in _all_cascade_runs():
        runs.setdefault((run["backbone"], run["task"]), []).append(run)
    return runs


def _all_cascade_runs() -> list[Any]:
    paths = sorted((RESULTS / "cascades").glob("*-s?.json"))
    return [read(path) for path in paths if not path.name.startswith("curve")]


def _test_rows(run: Any) -> int:
    """Return the number of test texts in scope: 1,000 of CLINC150's are out of scope."""
    return int(run["texts"]["test"]) - (1000 if run["task"] == "CLINC150" else 0)


def _is_broken(way: Any, rows: int, level: float) -> bool:
    """Return whether the other answers on test refute the level, by an exact binomial test at 5%."""
    others = round(way["other"] * rows)
    return float(binom.sf(others - 1, rows, level)) < 0.05


def redraws() -> str:
    """Return how often promises of cascades were broken."""
    whole = read(RESULTS / "cascades" / "redraws-banking77.json")
    rows = (
        [
            one["kind"],
            f"{one['level']:.0%}",
            f"{one['draws']:,}",
            f"{one['broken']:.1%}",
            f"{one['mean_risk']:.2%}",
        ]
        for one in whole["rows"]
    )
    return table(
        ["chosen on each draw", "promised", "draws", "broken", "mean other answers"], rows
    ) + made_by(whole)


def traffic() -> str:
    """Return how often promises are broken if texts come again, with rows as rows, and with each text once."""
    whole = read(RESULTS / "risk" / "repeats.json")
    ways = ("cascade", "exits", "control_risk", "once")
    names = list(dict.fromkeys(one["frequent"] for one in whole["outcomes"]))
    broken = {(one["frequent"], one["way"]): one["broken"] for one in whole["outcomes"]}
    rows = [[name, *(f"{broken[name, way]:.1%}" for way in ways)] for name in names]
    head = ["texts that come again", "`certify_cascade`", "`fit_exits`", "`control_risk`", "once"]
    return table(head, rows) + made_by(whole)


def puzzles() -> str:
    """Return what halting is worth in puzzles of known difficulty, medians over seeds."""
    found: dict[str, Any] = import_module("benchmarks.loops.levels.report").results()
    lines: list[tuple[str, str | None, str, str]] = [
        ("solved by halting", None, "accuracy", "{:.2%}"),
        ("solved at the best fixed depth", "best fixed depth", "accuracy", "{:.2%}"),
        ("mean steps of halting", None, "mean_steps", "{:.1f}"),
        ("steps of the best fixed depth", "best fixed depth", "mean_steps", "{:.1f}"),
        ("steps of the oracle", "oracle", "mean_steps", "{:.1f}"),
        ("rank correlation of steps with difficulty", None, "rank_correlation", "{:.2f}"),
    ]
    rows = (
        [name, *(form.format(median(one["ways"][way or one["best_rule"]]["test"][key] for one in of))
                 for of in found.values())]
        for name, way, key, form in lines
    )  # fmt: skip
    return table(["", *found], rows)


def repeats() -> str:
    """Return runs that were done twice with one seed, on other machines or versions."""
    results, report = (
        import_module("benchmarks.glue.results"),
        import_module("benchmarks.glue.report"),
    )
    return str(
        report.repeats(results.read_all(RESULTS / "glue"), results.read_all(RESULTS / "repeated"))
    )


def advice() -> str:
    """Return what `ponder advise` took for each model, and how choice and promise held on test texts."""
    found = _advice()
    rows = []
    for one in found:
        (way,) = [row for row in one["race"] if row["wins"]]
        of_test = {row["name"]: row for row in one["test"]["ways"]}
        test = of_test[one["winner"]]
        speed_up = of_test["as it is"]["seconds"] / test["seconds"]
        rows.append(
            (
                f"{one['task']}, {NAMES[one['backbone']]}, {one['settings']['texts']:,} texts",
                one["winner"],
                f"{way['speed_up'][0]:.2f}",
                f"{speed_up:.2f}",
                f"{100 * (one['test']['slower_than_best'] - 1):.0f}%",
                f"{one['settings']['disagreement']:.0%}",
                f"{test['other_answers']:.2%}",
                one["test"]["promise"],
                f"{one['race_processor_seconds']:.0f}",
            )
        )
    head = (
        "model",
        "taken",
        "× in the race",
        "× on test",
        "slower than the best on test",
        "promised",
        "other answers on test",
        "promise",
        "s",
    )
    return table(head, rows) + made_by(found)


def long_texts() -> str:
    """Return what the ways of `ponder advise` give on long texts, all on test texts."""
    found = [read(path) for path in sorted((RESULTS / "advice" / "long").glob("*-s*.json"))]
    rows = []
    for one in found:
        ways = one["test"]["ways"]
        plain = ways[0]["seconds"]
        name = f"{one['task']}, {NAMES[one['backbone']]}"
        tokens = f"{one['settings']['mean_tokens'][1]:.0f}"
        for way in ways:
            promise = "–" if way["promise"] is None else f"{way['promise']:.0%}"
            rows.append(
                (
                    name,
                    tokens,
                    way["name"],
                    f"{1e3 * way['seconds']:.0f}",
                    f"{plain / way['seconds']:.2f}",
                    promise,
                    f"{way['other_answers']:.2%}",
                    f"{way['accuracy']:.1%}",
                )
            )
    head = ("model", "tokens", "way", "ms", "×", "promised", "other answers", "right")
    return table(head, rows) + made_by(found)


def live() -> str:
    """Return calls and other answers of `Live` and its rivals on streams, means over seeds."""
    report = import_module("benchmarks.live.report")
    rows = list[list[str]]()
    streams = list[dict[str, Any]]()
    for kind in report.kinds():
        streams += kind.streams
        rows += _live_rows(kind, report.STREAM_WAYS)
    head = ["stream", *_LIVE_HEAD, *report.STREAM_WAYS]
    return table(head, rows) + made_by(streams)


def live_others() -> str:
    """Return the same for another cheap model, and for another reference."""
    report = import_module("benchmarks.live.report")
    rows = list[list[str]]()
    streams = list[dict[str, Any]]()
    for cheap, reference, found in (
        ("Student", "gold labels", report.kinds("student")),
        ("regression", "fine-tuned MiniLM", report.kinds(model=True)),
    ):
        for kind in found:
            streams += kind.streams
            rows += [[cheap, reference, *row] for row in _live_rows(kind, report.STREAM_WAYS)]
    head = ["cheap", "reference", "stream", *_LIVE_HEAD, *report.STREAM_WAYS]
    return table(head, rows) + made_by(streams)


def live_batches() -> str:
    """Return calls and other answers of `Live` and its rivals on batches, means over seeds."""
    report = import_module("benchmarks.live.report")
    rows = list[list[str]]()
    streams = list[dict[str, Any]]()
    for kind in report.kinds(batch=True):
        streams += kind.streams
        rows += _live_rows(kind, report.BATCH_WAYS)
    head = ["texts of", *_LIVE_HEAD, *report.BATCH_WAYS]
    return table(head, rows) + made_by(streams)


_LIVE_HEAD = ("task", "seeds", "promised")


def _live_rows(kind: Any, ways: Mapping[str, str]) -> list[list[str]]:
    """Return a row of a table for each level of a kind of streams."""
    report = import_module("benchmarks.live.report")
    rows = list[list[str]]()
    for level in report.LEVELS:
        cells = [_live_cell(kind.streams, level, start) for start in ways.values()]
        seeds = str(len(kind.streams))
        rows.append([kind.setting, report.TASKS[kind.task], seeds, f"{level:.0%}", *cells])
    return rows


def _live_cell(streams: Sequence[dict[str, Any]], level: float, start: str) -> str:
    """Return calls and other answers in percent of the best way of a family."""
    best = import_module("benchmarks.live.report").best_way(streams, level, start)
    rows = [stream["rows"] for stream in streams]
    broken = [
        binom.sf(round(way["wrong"] * count) - 1, count, level) < 0.05
        for way, count in zip(best, rows, strict=True)
    ]
    asked = 100 * mean(way["asked"] for way in best)
    wrong = 100 * mean(way["wrong"] for way in best)
    return f"{asked:.0f}% ({wrong:.1f}){BROKEN if any(broken) else ''}"


def live_faults() -> str:
    """Return in how many synthetic streams a promise was broken at any time."""
    found = read(RESULTS / "live" / "redraws.json")
    rows = [
        [
            one["setting"],
            f"{one['streams']:,}",
            f"{one['ledgers_broken'] / one['streams']:.1%}",
            f"{one['promises_broken'] / one['streams']:.1%}",
            f"{one['asked']:.0%}",
            f"{one['wrong']:.1%}",
        ]
        for one in found["settings"]
    ]
    head = ["stream", "streams", "bound broken", "promise broken", "asked", "other answers"]
    return table(head, rows) + made_by(found)


def samples(*names: str) -> str:
    """Return what some commands printed once (`benchmarks/samples`)."""
    commands = read(RESULTS / "samples.json")["commands"]
    block = "\n\n".join(_session(commands[name]) for name in names)
    return f"```text\n{block}\n```{made_by([commands[name] for name in names])}"


def _session(sample: dict[str, Any]) -> str:
    """Return a command and the first lines that it printed."""
    lines = sample["output"].splitlines()
    if len(lines) > _LINES:
        lines = [*lines[:_LINES], "…"]
    return "\n".join([f"$ {sample['command']}", *lines])


def exporters() -> str:
    """Return how near one step is after `transformers.exporters`, and what becomes of a whole model."""
    found = read(RESULTS / "exporters.json")
    rows = []
    for name, one in found["runtimes"].items():
        largest = max(one["largest_difference"].values())
        refused = one["model_with_exits"].partition(":")[0]
        rows.append((f"{name} {one['version']}", f"{largest:.0e}", f"refused: `{refused}`"))
    head = ("runtime", "one step: largest difference from PyTorch", "a model with exits")
    return table(head, rows) + made_by(found)


SAMPLES = {
    "samples": ("exits", "check"),
    "samples_advise": ("advise",),
    "samples_first": ("advise",),
    "samples_cascade": ("cascade",),
    "samples_certify": ("certify",),
    "samples_label": ("label",),
    "samples_predict": ("predict", "answers"),
    "samples_export": ("export",),
    "samples_rerank": ("rerank", "check_ranker"),
    "samples_serve": ("serve", "request"),
}
"""Names of the samples that a page shows together."""
TABLES: dict[str, Callable[[], str]] = {
    draw.__name__: draw
    for draw in (
        pays,
        pays_by_task,
        versus,
        rule,
        held_out,
        one_model,
        bootstrap,
        repeats,
        ablation,
        whole,
        longer,
        earlier,
        shared,
        switches,
        beyond,
        as_the_paper,
        likelihood,
        finetuned,
        exporters,
        cosines,
        risk,
        speed,
        streaming,
        exporting,
        promised,
        puzzles,
        positions,
        tagger,
        loops,
        loops_ranking,
        loops_promises,
        rerank,
        rerank_promises,
        rerank_seconds,
        cascades,
        cascade_answers,
        students,
        redraws,
        traffic,
        live,
        live_others,
        live_batches,
        live_faults,
        advice,
        long_texts,
    )
}
TABLES |= {name: partial(samples, *commands) for name, commands in SAMPLES.items()}
_MODEL = ("ponder/model", "ponder/running", "ponder/inference", "ponder/wrapper.py")
ROOMS: dict[str, tuple[str, ...]] = {
    "finetuned": ("ponder/calibration", "ponder/statistics", "integrations/transformers"),
    "cosines": ("ponder/deploy",),
    "risk": (
        "ponder/calibration",
        "ponder/statistics",
    ),
    "speed": _MODEL,
    "streaming": _MODEL,
    "exporting": ("ponder/deploy",),
    "promised": ("ponder/advice", "ponder/deploy", *_MODEL),
    "positions": ("ponder/loops",),
    "tagger": ("ponder/calibration", "ponder/statistics", *_MODEL),
    "loops": ("ponder/loops",),
    "loops_ranking": ("ponder/loops",),
    "loops_promises": ("ponder/loops", "ponder/calibration", "ponder/statistics"),
    "rerank": ("ponder/deploy", *_MODEL),
    "rerank_promises": (
        "ponder/calibration",
        "ponder/statistics",
    ),
    "rerank_seconds": ("ponder/deploy", *_MODEL),
    "cascades": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "live": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "live_others": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "live_batches": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "live_faults": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "cascade_answers": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "students": ("ponder/cascade",),
    "redraws": ("ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "traffic": (
        "ponder/calibration",
        "ponder/statistics",
    ),
    "advice": ("ponder/advice", "ponder/cascade", "ponder/calibration", "ponder/statistics"),
    "long_texts": ("ponder/advice", "ponder/cascade", "ponder/calibration", "ponder/statistics"),
}
"""The code that a table measures; the site says how many commits have changed it since."""
