"""Each figure: what it reads of `benchmarks/results`, or computes by a few lines of the library, and its drawing."""

from __future__ import annotations

import json
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.figures import new_figure, save_svg
from ponder import StepDistribution, Trajectory, policies, priors
from ponder import plots as shown
from ponder._utils.numerics import interpolate
from ponder.monitor import Audit

__all__ = ["FIGURES", "draw"]

RESULTS = Path(__file__).parents[1] / "results"
TASK, BACKBONE, MAX_TRAIN = "sst-2", "minilm", 10_000  # as the suite `pays` has it: runs of one budget in one figure
_RECIPES = {"ponder": "#0072B2", "deebert": "#009E73", "palbert": "#D55E00", "pabee": "#CC79A7"}
_GREY = "#666666"
_STYLE: Any = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def _json(pattern: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob(pattern))]


# ---- What exits gain -----------------------------------------------------------------------------------------------


def headline(figure: Any) -> None:
    """Left: score against speed-up on a GLUE task. Right: steps against difficulty, on puzzles."""
    left, right = figure.subplots(1, 2)
    _score_by_speed_up(left)
    _steps_by_difficulty(right)


def score(figure: Any) -> None:
    """Score against speed-up on a GLUE task, with the plain model and smaller models beside it."""
    _score_by_speed_up(figure.subplots())


def _score_by_speed_up(axes: Any) -> None:
    for recipe, color in _RECIPES.items():
        of_seeds = [_curve(result, "confidence") for result in _runs(recipe)]
        if of_seeds and all(of_seeds):
            least, most = max(curve[0][0] for curve in of_seeds), min(curve[-1][0] for curve in of_seeds)
            grid = [at for at in (1 + 0.1 * place for place in range(31)) if least <= at <= most]
            of_grid = [interpolate([at for at, _ in curve], [score for _, score in curve], grid) for curve in of_seeds]
            means = [statistics.fmean(scores) for scores in zip(*of_grid, strict=True)]
            axes.plot(grid, means, color=color, label=recipe, linewidth=2)
    of_steps = [result["splits"]["dev"]["per_step"] for result in _runs("ponder")]
    blind = [statistics.fmean(scores) for scores in zip(*of_steps, strict=True)]
    places = [len(blind) / step for step in range(1, len(blind) + 1)]
    axes.plot(places[1:], blind[1:], ".:", color=_RECIPES["ponder"], label="ponder, one step for all")
    full = [_score(result) for result in _runs("vanilla")]
    axes.axhline(statistics.fmean(full), color=_GREY, linestyle="--", label="plain model, all layers")
    for is_taught, marker, label in ((False, "D", "plain model, fewer layers"), (True, "s", "the same, distilled")):
        smaller: dict[float, list[float]] = {}
        for result in _runs("static"):
            if bool(result["config"]["recipe_options"].get("taught")) == is_taught:
                smaller.setdefault(result["speed_up"]["steps"], []).append(_score(result))
        if smaller:
            means = [statistics.fmean(scores) for scores in smaller.values()]
            axes.plot(list(smaller), means, marker, color=_GREY, fillstyle="none" if is_taught else None, label=label)
    axes.set(
        xlabel="speed-up in steps; all recipes left by confidence", ylabel="accuracy", title="SST-2, MiniLM (6 layers)"
    )
    axes.xaxis.set_major_formatter("×{x:.1f}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1%}")
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.6 * (high - low), high)  # room for the legend
    axes.legend(loc="lower left", ncols=2, fontsize="x-small")


def _runs(recipe: str) -> list[dict[str, Any]]:
    found = _json(f"glue/{TASK}-{BACKBONE}-{recipe}-s*.json")
    return [result for result in found if result["config"]["max_train"] == MAX_TRAIN]


def _score(result: dict[str, Any]) -> float:
    return float(result["splits"]["dev"]["exits"]["score"])


def _curve(result: dict[str, Any], policy: str) -> list[tuple[float, float]]:
    """(speed-up in steps, score) of every threshold, the slowest first."""
    for curve in result["splits"]["dev"]["curves"]:
        if curve["policy"] == policy:
            points = curve["points"]
            pairs = zip(points["mean_exit_step"], points["score"], strict=True)
            return sorted((result["num_steps"] / step, found) for step, found in pairs)
    return []


def _steps_by_difficulty(axes: Any) -> None:
    results = _json("puzzles/prefix-sums-looped-s*.json")
    for way, color in (("converged and confident", "#D55E00"), ("oracle", _GREY)):
        levels: dict[int, list[float]] = {}
        for result in results:
            for level in result["ways"][way]["test"]["by_level"]:
                levels.setdefault(level["level"], []).append(level["mean_steps"])
        label = "steps taken (the answer rests, and is sure)" if way != "oracle" else "fewest that solve it (oracle)"
        style = ":" if way == "oracle" else "-"
        means = [statistics.fmean(steps) for steps in levels.values()]
        axes.plot(list(levels), means, style, marker="o", markersize=4, color=color, label=label)
    axes.axvline(32, color=_GREY, linewidth=0.8, linestyle="--", label="trained up to here")
    axes.set(xlabel="bits of the problem (difficulty)", ylabel="mean exit step", title="Prefix sums, a looped solver")
    axes.legend(loc="upper left")


# ---- What a threshold does, what promises hold, what a step is worth ------------------------------------------------


def threshold(figure: Any) -> None:
    """Score and mean exit step against the threshold of `Confidence`, on a GLUE task."""
    (result,) = _json(f"glue/{TASK}-{BACKBONE}-fastbert-s0-*.json")
    points = next(c["points"] for c in result["splits"]["dev"]["curves"] if c["policy"] == "confidence")
    left, right = figure.subplots(1, 2, sharex=True)
    values = points.get("threshold", points.get("knob"))
    left.plot(values, points["score"], marker=".", color="#0072B2")
    left.set(xlabel="threshold of Confidence", ylabel="accuracy", title="Quality", xlim=(0.5, 1.01))
    left.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    right.plot(values, points["mean_exit_step"], marker=".", color="#D55E00")
    right.set(xlabel="threshold of Confidence", ylabel="mean exit step (of 6)", title="Depth", ylim=(0, 6.2))


def promises(figure: Any) -> None:
    """How often a promise is broken, against how often it may be."""
    axes = figure.subplots()
    (found,) = _json("risk/risk.json")
    rows = [row for row in found["outcomes"] if row["scene"] == "synthetic" and row["bound"] != "conformal"]
    rows = [row for row in rows if row["risk"] in ("disagreement", "error_gap")]
    labels = [f"{row['risk'].replace('_', ' ')}, {row['bound'].replace('_', ' ')}" for row in rows]
    axes.barh(labels, [row["violations"] for row in rows], color="#0072B2")
    axes.axvline(0.05, color="#D55E00", linestyle="--", label="allowed: 5%")
    axes.set(xlabel="share of 1,000 certificates whose risk is above the level", xlim=(0, 0.07))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.invert_yaxis()
    axes.legend(loc="center right")


def speed(figure: Any) -> None:
    """Left: the part of the saved steps that is saved time. Right: exits and int8 together."""
    left, right = figure.subplots(1, 2)
    (told,) = _json("speed/exiting.json")
    for mix, color in (("early-heavy", "#D55E00"), ("uniform", "#0072B2"), ("late-heavy", "#009E73")):
        rows = [each for each in told["figures"] if f", {mix}, " in each["case"]]
        sizes = [each["case"].rpartition(" ")[2] for each in rows]
        left.plot(sizes, [each["value"] for each in rows], marker="o", color=color, label=f"{mix} exits")
    left.axhline(1, color=_GREY, linestyle="--")
    left.set(
        xlabel="rows of a batch", ylabel="speed-up in time ÷ in steps", title="ALBERT-base, 12 steps", ylim=(0.6, 1.1)
    )
    left.legend(loc="lower right")
    (told,) = _json("speed/exporting.json")
    ways = ("PyTorch, exits", "PyTorch, exits, bf16", "fp32", "fp32, exits", "int8 of all", "int8 of all, exits")
    values = {each["figure"]: each["value"] for each in told["figures"] if each["case"] == "MiniLM, 8 × 32"}
    right.barh(ways, [values[f"speed-up of {way} over PyTorch fp32"] for way in ways], color="#0072B2")
    right.axvline(1, color=_GREY, linestyle="--")
    right.set(xlabel="throughput ÷ PyTorch fp32", title="MiniLM, 8 rows of 32 tokens, onnxruntime")
    right.invert_yaxis()


def saved(figure: Any) -> None:
    """The same exits as three speed-ups, on two fine-tuned classifiers that got exits afterwards."""
    axes = figure.subplots()
    kinds = (("steps", "#0072B2"), ("FLOPs", "#009E73"), ("seconds", "#D55E00"))
    found = [_json(f"finetuned/{task}-minilm-*exits-s0.json")[0] for task in ("sst-2", "banking77")]
    for place, (kind, color) in enumerate(kinds):
        values = [each["exits"][f"speed_up_in_{kind.lower()}"] for each in found]
        bars = axes.bar(
            [task + 0.27 * (place - 1) for task in range(len(found))], values, 0.25, color=color, label=kind
        )
        axes.bar_label(bars, [f"×{value:.2f}" for value in values], padding=2)
    axes.axhline(1, color=_GREY, linestyle="--")
    names = [f"{each['task']}, ≤ {each['exits']['level']:.0%} other answers" for each in found]
    axes.set_xticks(range(len(found)), names)
    axes.set(ylabel="speed-up", ylim=(0, 2.8))
    axes.legend(loc="upper right", ncols=3)


def audit(figure: Any) -> None:
    """The capital of the bet against a promise of 1%: while it holds, and where the disagreement triples."""
    axes, audits = figure.subplots(), 2000
    for label, late, color in (
        ("1% of the answers differ", 0.01, "#0072B2"),
        ("3% from audit 1,000 on", 0.03, "#D55E00"),
    ):
        watched, draw = Audit(0.01, 0.95), random.Random(5)
        capital = []
        for number in range(audits):
            ended = watched.record(draw.random() < (late if number >= 1000 else 0.01))
            capital.append(20.0 if ended else watched.wealth)
            if ended:
                break
        axes.plot(range(1, len(capital) + 1), capital, color=color, label=label)
        if len(capital) < audits:
            axes.plot(len(capital), capital[-1], "o", color=color, label=f"told after {len(capital):,} audits")
    axes.axhline(20, color=_GREY, linestyle="--")
    axes.annotate("here the stage ends: 1 ÷ (1 − 0.95) = 20", (20, 21.5), color=_GREY)
    axes.set(xlabel="audits", ylabel="capital of the bet", yscale="log", xlim=(0, audits), ylim=(0.008, 60))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.legend(loc="lower left")


def exits(figure: Any) -> None:
    """Where a policy on answers lets three rows go, and where one on hazards does."""
    left, right = figure.subplots(1, 2)
    confidence, hazards = _three_rows()
    trajectory = Trajectory(
        torch.log(torch.stack([confidence, 1 - confidence], -1)), torch.logit(hazards), torch.arange(3)
    )
    steps = torch.arange(1, confidence.shape[1] + 1)
    below = StepDistribution.from_hazard_logits(torch.logit(hazards)).pmf.cumsum(-1)
    for axes, values, policy, name in (
        (left, confidence, policies.Confidence(0.9), "confidence of the answer"),
        (right, below, policies.Quantile(0.5), "probability of having stopped"),
    ):
        leaves = trajectory.replay(policy).exit_step.tolist()
        rows = zip(values, leaves, ("easy", "middling", "hard"), ("#009E73", "#0072B2", "#D55E00"), strict=True)
        for value, at, row, color in rows:
            axes.plot(steps[:at], value[:at], color=color, label=f"{row}: leaves at {at}")
            axes.plot(steps[at - 1 :], value[at - 1 :], ":", color=color)
            axes.plot(at, value[at - 1], "o", color=color)
        axes.axhline(next(iter(vars(policy).values())), color=_GREY, linestyle="--")
        axes.set(xlabel="step n", ylabel=name, title=repr(policy), ylim=(0, 1.05))
        axes.legend(loc="lower right")


def _three_rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Confidence and hazards of an easy row, a middling one and a hard one, by hand; eight steps."""
    confidence = torch.tensor(
        [
            [0.72, 0.94, 0.97, 0.98, 0.98, 0.99, 0.99, 0.99],
            [0.55, 0.68, 0.79, 0.86, 0.93, 0.95, 0.96, 0.97],
            [0.52, 0.56, 0.54, 0.60, 0.66, 0.72, 0.78, 0.84],
        ]
    )
    hazards = torch.tensor(
        [
            [0.15, 0.45, 0.50, 0.50, 0.50, 0.50, 0.50, 0.50],
            [0.05, 0.08, 0.15, 0.35, 0.45, 0.50, 0.50, 0.50],
            [0.02, 0.03, 0.04, 0.06, 0.10, 0.20, 0.35, 0.50],
        ]
    )
    return confidence, hazards


def lengths(figure: Any) -> None:
    """Real positions and padding of batches, in the order of the data and sorted by length."""
    draw, both = random.Random(0), figure.subplots(1, 2, sharey=True)
    rows = [draw.randint(4, 60) for _ in range(64)]
    for axes, ordered, title in zip(both, (rows, sorted(rows)), ("As the data come", "Sorted by length"), strict=True):
        batches = [ordered[start : start + 8] for start in range(0, len(ordered), 8)]
        real = [sum(batch) for batch in batches]
        padding = [8 * max(batch) - sum(batch) for batch in batches]
        axes.bar(range(1, 9), real, color="#0072B2", label="tokens")
        axes.bar(range(1, 9), padding, bottom=real, color="#CCCCCC", label="padding")
        axes.set(xlabel="batch", title=f"{title}: {sum(padding) / sum(real + padding):.0%} padding", ylim=(0, 520))
    both[0].set(ylabel="positions computed in a step")
    both[1].legend(loc="upper left")


def streaming(figure: Any) -> None:
    """Rows that a step computes: in batches that shrink as rows exit, and in a stream that fills the gaps."""
    left, right = figure.subplots(1, 2, sharey=True)
    generator = torch.Generator().manual_seed(0)
    exits = (
        torch.multinomial(torch.tensor([3.0, 3.0, 2.0, 2.0, 1.0, 1.0]), 48, replacement=True, generator=generator) + 1
    )
    batches = [int((batch >= step).sum()) for batch in exits.split(16) for step in range(1, int(batch.max()) + 1)]
    left.bar(range(1, len(batches) + 1), batches, color="#0072B2")
    left.set(
        xlabel="step of the device", ylabel="rows that it computes", title="Three batches of 16 rows", ylim=(0, 17)
    )
    total = int(exits.sum())
    full = [16] * (total // 16) + [total % 16]
    right.bar(range(1, len(full) + 1), full, color="#009E73")
    right.set(xlabel="step of the device", title="The same rows in a stream", xlim=left.get_xlim())


# ---- Mathematics ---------------------------------------------------------------------------------------------------


def halting(figure: Any) -> None:
    """Hazards, and the distribution that they induce."""
    left, right = figure.subplots(1, 2)
    hazards = torch.tensor([0.05, 0.1, 0.3, 0.6, 0.5, 0.5])
    found = StepDistribution.from_hazard_logits(torch.logit(hazards))
    steps = list(range(1, 7))
    left.bar(steps, hazards.tolist(), color=["#0072B2"] * 5 + ["#CCCCCC"])
    left.set(xlabel="step n", ylabel="hazard λ (the last is ignored)", title="Stop here?", ylim=(0, 1))
    right.bar(steps, found.pmf.tolist(), color="#0072B2", label="p(n): stops at n")
    right.step(steps, found.cdf(torch.tensor(steps)).tolist(), where="mid", color="#D55E00", label="stopped by n")
    right.axhline(0.5, color=_GREY, linestyle="--", linewidth=0.8)
    right.set(xlabel="step n", ylabel="probability", title="Halting distribution", ylim=(0, 1.05))
    right.legend(loc="upper left")


def prior(figure: Any) -> None:
    """Priors over twelve steps."""
    axes = figure.subplots()
    for one in (priors.Geometric(0.1), priors.Uniform(), priors.Poisson(5.0), priors.Normal(6.0, 2.0)):
        axes.plot(range(1, 13), one(12).pmf.tolist(), marker=".", label=repr(one))
    axes.set(xlabel="step", ylabel="p(n)", ylim=(0, None))
    axes.legend(loc="best")


# ---- What ponder.plots draws ---------------------------------------------------------------------------------------


def plots(figure: Any) -> None:
    """Four of the functions of `ponder.plots`, on the made-up runs of their page."""
    axes = figure.subplots(2, 2).flatten()
    runs = [_made_up(seed) for seed in range(3)]
    shown.posterior(runs, ax=axes[0])
    shown.score_by_threshold([run.sweep(policies.Quantile) for run in runs], ax=axes[1])
    exits = [run.replay(policies.Quantile(0.5)).exit_step for run in runs]
    shown.exit_histogram(exits, 8, ax=axes[2])
    shown.overthinking(runs, ax=axes[3])
    for one, title in zip(axes, ("posterior", "score_by_threshold", "exit_histogram", "overthinking"), strict=True):
        one.set_title(title)
    axes[2].get_legend().remove()
    axes[3].legend(loc="lower right", fontsize=8)


def _made_up(seed: int) -> Trajectory:
    torch.manual_seed(seed)
    step, difficulty = torch.arange(1, 9), torch.arange(300) % 3
    labels = torch.randint(2, (300,))
    signal = (2 * labels - 1)[:, None] * step / (2 + difficulty)[:, None]
    margin = signal + torch.randn(300, 8).cumsum(1)
    hazards = 0.6 * step - 3 - difficulty[:, None] + torch.randn(300, 1)
    logits = torch.stack([-margin / 2, margin / 2], dim=-1)
    return Trajectory(logits, hazards, torch.arange(300), labels=labels, task="classification")


FIGURES: dict[str, tuple[Callable[[Any], None], tuple[float, float]]] = {
    "headline": (headline, (9.0, 3.6)),
    "score": (score, (5.5, 3.6)),
    "threshold": (threshold, (8.0, 3.0)),
    "promises": (promises, (7.0, 2.8)),
    "speed": (speed, (9.0, 3.2)),
    "saved": (saved, (6.5, 3.0)),
    "audit": (audit, (7.0, 3.0)),
    "lengths": (lengths, (8.0, 2.8)),
    "exits": (exits, (9.0, 3.2)),
    "streaming": (streaming, (8.0, 2.8)),
    "halting": (halting, (8.0, 3.0)),
    "prior": (prior, (6.0, 3.0)),
    "plots": (plots, (9.5, 6.0)),
}
"""What is drawn, and how large, in inches."""


def draw(folder: Path, names: list[str]) -> Iterator[Path]:
    """Draw figures into a folder, and name the files one by one."""
    import matplotlib as mpl

    for name in names:
        paint, size = FIGURES[name]
        with mpl.rc_context(_STYLE):
            figure, path = new_figure(*size), folder / f"{name}.svg"
            paint(figure)
            save_svg(path, figure)
        path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")
        yield path
