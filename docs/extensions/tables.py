"""What MkDocs draws when it builds the site: result tables from committed JSON, and the reference from `__all__`.

A page names a table by `<!-- table: name -->`, and the public names of a module by `<!-- names: module -->`.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from functools import reduce
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
MARKER = re.compile(r"<!-- table: (\w+) -->")
FACE = re.compile(r"<!-- names: ([\w.]+) -->")
RERANKED = (
    *(("cut pool", share) for share in (0.8, 0.25)),
    ("cut encoder", 1.0),
    *(("TopK", margin) for margin in (3.0, 2.0)),
    *(("TopK, first stage", margin) for margin in (3.0, 2.0, 0.5)),
)
NAMES = {
    "static": "cut and fine-tuned",
    "minilm": "MiniLM",
    "mpnet": "MPNet",
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


def made_by(found: dict[str, Any], version: str | None = None) -> str:
    """Return the version and commit that measured a result, marked where the code it speaks of is newer."""
    made, now = found["environment"], version or str(import_module("ponder").__version__)
    own = made["versions"]["ponder-torch"]
    old = (
        ""
        if own == now and not made["uncommitted_changes"]
        else f" **Older than the code, which is {now}.**"
    )
    return f"\n\nVersion {own}, commit `{made['commit'][:8]}`, {made['date']}, {made['threads']} threads.{old}"


def score(value: float | None) -> str:
    """Return a score in percent, or a dash."""
    return "–" if value is None else f"{value:.1f}"


def pays() -> str:
    """Return the macro scores of recipes and rivals, by speed-up in steps, and the gaps between them."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    return str(import_module("benchmarks.glue.report").headline(results))


def held_out() -> str:
    """Return what a default is chosen on: recipes left by confidence, on held-out rows of train."""
    results = import_module("benchmarks.glue.results").read_all(RESULTS / "glue")
    return str(import_module("benchmarks.glue.report").held_out(results))


def one_model() -> str:
    """Return the points by which `frozen` is ahead of `deebert` on held-out rows, from one fine-tuned model each."""
    read_all = import_module("benchmarks.glue.results").read_all
    score_at = import_module("benchmarks.glue.report.groups").score_at
    known = [one for one in read_all(RESULTS / "glue") if one["recipe"] == "frozen"]
    frozen = {(one["backbone"], one["task"], one.seed): one for one in known}
    gaps: dict[tuple[str, str], list[list[float]]] = {}
    for other in (one for one in read_all(RESULTS / "repeated") if one["recipe"] == "deebert"):
        own = frozen.get((other["backbone"], other["task"], other.seed))
        if (
            own is not None and own["training"][0]["seconds"] == other["training"][0]["seconds"]
        ):  # one fine-tuning
            scores = (
                [
                    score_at(one.held_out, "confidence", one["num_steps"] / times)
                    for times in (1.5, 2, 3)
                ]
                for one in (own, other)
            )
            gaps.setdefault((other["backbone"], other["task"]), []).append(
                [100 * (a - b) for a, b in zip(*scores, strict=True)]
            )
    rows = []
    for backbone in ("minilm", "mpnet"):
        medians = {
            task: list(map(median, zip(*of, strict=True)))
            for (on, task), of in gaps.items()
            if on == backbone
        }
        medians["mean"] = list(map(mean, zip(*medians.values(), strict=True)))
        for task, own in medians.items():
            seeds = str(len(gaps.get((backbone, task), "")) or "")
            rows.append([NAMES[backbone], task, seeds, *(f"{value:+.1f}" for value in own)])
    return table(["encoder", "task", "seeds", "×1.5", "×2", "×3"], rows)


def ablation() -> str:
    """Return PALBERT's four changes to PonderNet, one after the other."""
    return reported("ablation", "minilm")


def shared() -> str:
    """Return the scores of every recipe at its exits on the encoder of one layer."""
    return reported("scores", "shared")


def switches() -> str:
    """Return PALBERT's four changes on the encoder of one layer."""
    return reported("ablation", "shared")


def as_the_paper() -> str:
    """Return the scores at the exits of runs at rates of PALBERT's paper."""
    return reported("scores", "minilm", "repeated/as-the-paper")


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
    """Return what `ponder exits` gave on two tasks."""
    folder = RESULTS / "finetuned"
    found = [read(next(folder.glob(f"{task}-minilm-*.json"))) for task in ("sst-2", "banking77")]
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
        ("speed-up in steps", lambda one: f"×{one['exits']['speed_up_in_steps']:.2f}"),
        (
            "speed-up in seconds, batches of 32",
            lambda one: f"×{one['exits']['speed_up_in_seconds']:.2f}",
        ),
    ]
    return table(["", "SST-2", "Banking77"], ([name, *map(cell, found)] for name, cell in lines))


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
    """Return the throughput of exits, int8 and both, over PyTorch in fp32."""
    whole = read(RESULTS / "speed" / "exporting.json")
    found = whole["figures"]
    kinds = ("PyTorch, exits", "fp32", "fp32, exits", "int8 of all", "int8 of all, exits")
    values = {(one["case"], one["figure"]): one["value"] for one in found}
    cases = list(dict.fromkeys(one["case"] for one in found))
    rows = (
        [case, *(f"×{values[case, f'speed-up of {kind} over PyTorch fp32']:.1f}" for kind in kinds)]
        for case in cases
    )
    names = ("exits in PyTorch", "onnxruntime", "with exits", "int8", "int8 with exits")
    return table(["model, rows × tokens", *names], rows) + made_by(whole)


def rerank() -> str:
    """Return what leaving early saves at about the same change of the answer, next to what else is done."""
    found = [
        one
        for path in sorted((RESULTS / "rerank").glob("*-s0-k10.json"))
        if "curves" in (one := read(path))
    ]
    rows = []
    for whole in found:
        full = next(
            one["seconds"]
            for one in whole["seconds"]
            if one["way"] == "cut pool" and one["setting"] == 1.0
        )
        rows += [
            [
                f"{whole['task']}, {NAMES[whole['backbone']]}", one["way"], f"{one['setting']:g}",
                f"×{1 / one['work']:.2f}",
                f"×{full / one['seconds']:.2f}", f"{one['top_k']:.1%}", f"{one['ndcg']:.4f}", f"{one['ndcg_gap']:+.4f}",
            ]
            for one in whole["seconds"]
            if (one["way"], one["setting"]) in RERANKED
        ]  # fmt: skip
    head = ["task, model", "way", "setting", "pair-layers", "seconds", "other top 10"]
    head += ["nDCG@10 lost, full order", "by labels"]
    return table(head, rows) + made_by(found[0])


def cascades() -> str:
    """Return how much sooner each way answers under each promise, and what it changes, means over seeds."""
    found: dict[tuple[str, str], list[Any]] = {}
    for path in sorted((RESULTS / "cascades").glob("*-s?.json")):
        if not path.name.startswith("curve"):
            found.setdefault(((one := read(path))["backbone"], one["task"]), []).append(one)
    ways = (
        "exits",
        "cascade",
        "cascade with exits",
        "int8 exits",
        "int8 cascade",
        "int8 cascade with exits",
    )
    rows = []
    for (backbone, task), ones in found.items():
        for level in ones[0]["promises"]:
            made = [one["promises"][level] for one in ones]
            speed = [
                f"×{mean(each[way]['batches']['times'][1] for each in made):.1f}"
                if all(each[way]["met"] for each in made)
                else "–"
                for way in ways
            ]
            shown = [
                f"{mean(each['cascade'][name] for each in made):.1%}"
                for name in ("other", "accuracy")
            ]
            rivals = [
                mean(one["model"]["accuracy"] for one in ones),
                mean(e["blind mix"]["accuracy"] for e in made),
            ]
            rows.append(
                [
                    f"{NAMES[backbone]}, {task}",
                    f"{float(level):.0%}",
                    *speed,
                    *shown,
                    *(f"{r:.1%}" for r in rivals),
                ]
            )
    head = ["model, task", "promised", *(way.replace("cascade with exits", "both") for way in ways)]
    head += ["cascade: other answers", "accuracy", "model", "blind mix"]
    return table(head, rows) + made_by(next(iter(found.values()))[0])


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


def puzzles() -> str:
    """Return what halting is worth in puzzles of known difficulty, medians over seeds."""
    found: dict[str, Any] = import_module("benchmarks.puzzles.report").results()
    lines: list[tuple[str, str, str | None, str, str]] = [
        ("solved by halting", "looped", None, "accuracy", "{:.2%}"),
        ("solved at the best fixed depth", "looped", "best fixed depth", "accuracy", "{:.2%}"),
        ("mean steps of halting", "looped", None, "mean_steps", "{:.1f}"),
        ("steps of the best fixed depth", "looped", "best fixed depth", "mean_steps", "{:.1f}"),
        ("steps of the oracle", "looped", "oracle", "mean_steps", "{:.1f}"),
        ("rank correlation of steps with difficulty", "looped", None, "rank_correlation", "{:.2f}"),
        (
            "a feed-forward network of the same cost",
            "feed-forward",
            "all layers",
            "accuracy",
            "{:.1%}",
        ),
    ]
    rows = (
        [name, *(form.format(median(one["ways"][way or one["best_rule"]]["test"][key] for one in of[learner]))
                 for of in found.values())]
        for name, learner, way, key, form in lines
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
    found = [read(path) for path in sorted((RESULTS / "advice").glob("*-s*.json"))]
    rows = []
    for one in found:
        (way,) = [row for row in one["race"] if row["wins"]]
        (test,) = [row for row in one["test"]["ways"] if row["name"] == one["winner"]]
        rows.append(
            (
                f"{one['task']}, {NAMES[one['backbone']]}, {one['settings']['texts']:,} texts",
                one["winner"],
                f"{way['speed_up'][0]:.2f}",
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
        "×",
        "slower than the best on test",
        "promised",
        "other answers on test",
        "promise",
        "s",
    )
    return table(head, rows) + made_by(found[0])


TABLES: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        pays,
        pays_by_task,
        held_out,
        one_model,
        repeats,
        ablation,
        shared,
        switches,
        beyond,
        as_the_paper,
        finetuned,
        cosines,
        risk,
        speed,
        streaming,
        exporting,
        puzzles,
        rerank,
        cascades,
        redraws,
        advice,
    )
}


def module_of(face: str) -> Any:
    """Return a module by the name that users give it: `ponder.export` is an attribute of `ponder`."""
    try:
        return import_module(face)
    except ModuleNotFoundError:
        return reduce(getattr, face.split(".")[1:], import_module("ponder"))


def names(faces: Iterable[str]) -> dict[str, list[str]]:
    """Return the classes and functions of each face, each where it stands first."""
    seen: set[int] = set()
    found: dict[str, list[str]] = {}
    for face in faces:
        module = module_of(face)
        found[face] = []
        for name in module.__all__:
            value = getattr(module, name)
            if (inspect.isclass(value) or inspect.isfunction(value)) and id(value) not in seen:
                seen.add(id(value))
                found[face].append(f"{module.__name__}.{name}")
    return found


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables and names in the places of their markers; MkDocs calls this for every page."""
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # where `benchmarks` lies
    listed = names(FACE.findall(markdown))
    markdown = FACE.sub(
        lambda marker: "\n".join(f"::: {name}\n" for name in listed[marker[1]]), markdown
    )
    return MARKER.sub(lambda marker: TABLES[marker[1]](), markdown)
