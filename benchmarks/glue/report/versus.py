"""Paired comparisons of two recipes, and the rule by which the library's default is chosen.

The rule was written before the runs that decide it. The candidates are `deebert`, `frozen` and
`pabee`. Two candidates are compared by pairs of runs: the same backbone, task and seed, and the
same fine-tuned model if both begin from one. A run counts by its score on held-out rows of train,
left by confidence, as the mean over speed-ups of ×1.5, ×2 and ×3. The default is the candidate
whose mean gap to the present default is positive by more than twice its standard error over the
pairs, on the tasks with classes that are learnt, with five seeds each; else the present default
stays.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.glue.config import DEFAULT
from benchmarks.glue.report.groups import BLIND_FAIR, score_at
from benchmarks.glue.report.summary import COMMON, SUITES
from benchmarks.glue.results import Result
from benchmarks.glue.sweep import suite_named
from benchmarks.markdown import table

__all__ = ["Comparison", "Pair", "compare", "pairs_of", "rule", "versus"]

NOT_LEARNT = {("minilm", "RTE"), ("shared", "RTE"), ("shared", "MRPC")}
"""Backbones and tasks whose full depth is no better than the majority class; in no mean."""
_TIMES = (1.5, 2.0, 3.0)
_RIVALS = {
    "blind, chosen on held-out rows": (BLIND_FAIR, {}),
    "cut and fine-tuned": ("static", {}),
    "cut, taught by the whole": ("static", {"taught": True}),
    "`deebert`": ("deebert", {}),
    "`pabee`, left by confidence": ("pabee", {}),
    "`palbert`, left by confidence": ("palbert", {}),
}
_CANDIDATES = ("deebert", "pabee")


@dataclass(frozen=True)
class Pair:
    """Two runs of one backbone, task and seed."""

    ours: Result
    theirs: Result

    def gap(self, times: float, *, held_out: bool = False) -> float | None:
        """Return the points by which ours is ahead at a speed-up; None if a curve does not reach it."""
        ours = _score(self.ours, times, COMMON, held_out)
        policy = BLIND_FAIR if self.theirs is self.ours else COMMON
        theirs = _score(self.theirs, times, policy, held_out)
        return None if ours is None or theirs is None else 100 * (ours - theirs)


@dataclass(frozen=True)
class Comparison:
    """Gaps of pairs at one speed-up: their mean, standard deviation, and the tasks ahead."""

    mean: float
    deviation: float
    ahead: int
    tasks: int
    pairs: int

    def __str__(self) -> str:
        spread = f" ± {self.deviation:.1f}" if self.pairs > 1 else ""
        return f"{self.mean:+.1f}{spread} ({self.ahead}/{self.tasks})"


def versus(results: Sequence[Result], repeated: Sequence[Result]) -> str:
    """Return the table of the default, with exits by confidence, against each rival."""
    rows = []
    for backbone in ("minilm", "mpnet", "e5", "shared"):
        for name in _RIVALS:
            pairs = pairs_of(results, repeated, backbone, name)
            found = [compare(pairs, times) for times in _TIMES]
            if any(found):
                seeds = len({pair.ours.seed for pair in pairs})
                cells = ["–" if one is None else str(one) for one in found]
                rows.append([backbone, name, *cells, f"{seeds}", f"{len(pairs)}"])
    head = ["encoder", "rival", *(f"×{times:g}" for times in _TIMES), "seeds", "pairs"]
    return table(head, rows)


def rule(results: Sequence[Result], repeated: Sequence[Result]) -> str:
    """Return the table of each candidate against the default on held-out rows and on dev."""
    rows = []
    for candidate in _CANDIDATES:
        for backbone in ("minilm", "mpnet"):
            pairs = pairs_of(results, repeated, backbone, _name_of(candidate))
            cells = [_against(pairs, held_out=held_out) for held_out in (True, False)]
            seeds = len({pair.ours.seed for pair in pairs})
            tasks = len({pair.ours["task"] for pair in pairs})
            rows.append(
                [f"`{candidate}`", backbone, *cells, f"{tasks}", f"{seeds}", f"{len(pairs)}"]
            )
    head = [
        "candidate",
        "encoder",
        "held out: ahead by",
        "dev: ahead by",
        "tasks",
        "seeds",
        "pairs",
    ]
    return table(head, rows)


def _name_of(candidate: str) -> str:
    return next(name for name, (recipe, _) in _RIVALS.items() if recipe == candidate)


def _against(pairs: Sequence[Pair], *, held_out: bool) -> str:
    """Return the mean gap of a candidate to the default, ± its standard error over pairs."""
    gaps = []
    for pair in pairs:
        own = [pair.gap(times, held_out=held_out) for times in _TIMES]
        known = [gap for gap in own if gap is not None]
        if known:
            gaps.append(-statistics.fmean(known))
    if len(gaps) < 2:
        return "–"
    error = statistics.stdev(gaps) / len(gaps) ** 0.5
    return f"{statistics.fmean(gaps):+.2f} ± {error:.2f}"


def compare(pairs: Iterable[Pair], times: float) -> Comparison | None:
    """Compare pairs on the reported rows at a speed-up in steps; None without any."""
    by_task: dict[str, list[float]] = {}
    for pair in pairs:
        gap = pair.gap(times)
        if gap is not None:
            by_task.setdefault(pair.ours["task"], []).append(gap)
    if not by_task:
        return None
    gaps = [gap for of_task in by_task.values() for gap in of_task]
    means = [statistics.fmean(of_task) for of_task in by_task.values()]
    return Comparison(
        mean=statistics.fmean(means),
        deviation=statistics.stdev(gaps) if len(gaps) > 1 else 0.0,
        ahead=sum(mean > 0 for mean in means),
        tasks=len(means),
        pairs=len(gaps),
    )


def pairs_of(
    results: Sequence[Result], repeated: Sequence[Result], backbone: str, rival: str
) -> list[Pair]:
    """Return the pairs of the default and a rival on the classification tasks that are learnt."""
    pairs: list[Pair] = []
    for run in results:
        is_ours = run["recipe"] == DEFAULT and run["backbone"] == backbone
        is_learnt = (backbone, run["task"]) not in NOT_LEARNT
        if is_ours and is_learnt and run["task"] != "STS-B":
            pairs += [Pair(run, other) for other in _rivals_of(run, rival, results, repeated)]
    return pairs


def _rivals_of(
    own: Result, rival: str, results: Sequence[Result], repeated: Sequence[Result]
) -> list[Result]:
    """Return the runs of a rival that are paired with a run of the default."""
    recipe, options = _RIVALS[rival]
    if recipe == BLIND_FAIR:
        return [own]
    # `deebert` of the same fine-tuned model is among the repeated runs.
    candidates = repeated if recipe == "deebert" else results
    alike = [run for run in candidates if _is_rival(run, own, recipe, options)]
    # A cut was trained for each speed-up; of other recipes there is one run.
    return alike if recipe == "static" else alike[:1]


def _is_rival(run: Result, own: Result, recipe: str, options: dict[str, bool]) -> bool:
    """Return whether a run is of a recipe and otherwise of the same setting as `own`."""
    same = (run["backbone"], run["task"], run.seed) == (own["backbone"], own["task"], own.seed)
    if run["recipe"] != recipe or not same:
        return False
    if recipe == "deebert":  # equal seconds of the first stage: one fine-tuned model
        return bool(run["training"][0]["seconds"] == own["training"][0]["seconds"])
    if own["backbone"] in SUITES and not suite_named(SUITES[own["backbone"]]).has(run):
        return False
    return bool(run.config["recipe_options"].get("taught", False) == options.get("taught", False))


def _score(run: Result, times: float, policy: str, held_out: bool) -> float | None:
    if run["recipe"] == "static":
        reached = abs(float(run["speed_up"]["steps"]) - times) < 1e-6
        rows = run.held_out if held_out else run
        return rows.score("exits") if reached else None
    rows = run.held_out if held_out else run
    return score_at(rows, policy, run["num_steps"] / times)
