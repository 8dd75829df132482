"""Would a gate that is fitted afterwards leave better than a certainty does, on the same kept model?

A gate reads what the steps of a frozen model give, their features among it, and is fitted to what hindsight tells
(`ponder.calibration.fit_gate`) on the held-out part of train. Where that is no better than the confidence of the
answer, a Lambda head that reads the same has nothing to know that the answer does not tell. Beside them stand the
averaged answers of all steps so far, left by their confidence (`benchmarks.glue.ensembles`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from benchmarks import metrics, tasks
from benchmarks.checksum import with_checksum
from benchmarks.command_line import check_writable
from benchmarks.environment import environment
from benchmarks.glue.curves import SPEED_UPS, score_at
from benchmarks.glue.ensembles import ensembles
from benchmarks.glue.model import KeptModel, Origin
from benchmarks.glue.run import prepare
from benchmarks.glue.training import differs, digest_of
from benchmarks.metrics import answers
from ponder import Trajectory
from ponder._utils.files import read_json, write_json
from ponder.analysis.frontiers import blind_frontier
from ponder.analysis.policy_grid import PolicyGrid, as_policy_grid, patience_on_numbers
from ponder.calibration import fit_gate
from ponder.errors import ArgumentError
from ponder.policies import Confidence, Energy, Entropy, ExitPolicy, Margin, Quantile
from ponder.policies.gate import default_signals

__all__ = ["FORMAT", "compare", "measure", "rows_of"]

FORMAT = "ponder-glue-gates-1"
_CERTAINTIES: dict[str, ExitPolicy] = {
    "confidence": Confidence(0.9),
    "entropy": Entropy(0.2),
    "margin": Margin(0.5),
    "energy": Energy(0.5),
}
_TARGETS: dict[str, dict[str, Any]] = {
    "agreement": {"target": "agreement"},
    "error": {"target": "error"},
    "gain": {"target": "gain", "delta": 0.1},
}
_MODELS: tuple[Literal["logistic", "boosted"], ...] = ("logistic", "boosted")
_DELTAS = (0.1, 0.3)  # of the squared error


def measure(kept: KeptModel, folder: Path | None, out: Path) -> Path:
    """Compare policies on a kept model's dev, write `<out>/<key>.json`, and return its path.

    Args:
        kept: The model, trained with a part of train held out.
        folder: The folder of its task's data; None for the hub, where the task has one.
        out: Folder of results.
    """
    config, task = kept.config, tasks.get(kept.config.task)
    if config.selection != "held_out":
        expected, got = "a model whose training held out a part of train", f"{config.key} ({config.selection})"
        raise ArgumentError("--model", expected=expected, got=got, remedy="Leave it out.")
    check_writable(out, "--out")
    ready = prepare(config, task.load(folder, ["train", *task.dev_splits]))
    got = differs(kept, config, task, Origin(digest_of(ready["train"]), digest_of(ready["held_out"])))
    if got:
        raise ArgumentError(
            "--model",
            expected=f"the model of {config.key} as it is trained now on this data, of which a part was held out",
            got=got,
            remedy="Train it again, or pass the folder of the data that it was trained on.",
        )
    fitting, dev = (
        kept.model.record(ready[name], batch_size=64, keep_features=True) for name in ("held_out", task.dev_splits[0])
    )

    def score(outputs: Tensor, labels: Tensor) -> float:
        return metrics.score(task, answers(task, outputs.float().numpy()), labels.numpy())["score"]

    data = {
        "format": FORMAT,
        **{name: getattr(config, name) for name in ("key", "task", "recipe", "backbone", "seed")},
        "rows": {"fitted_on": len(fitting), "dev": len(dev)},
        "scores": compare(fitting, dev, score),
        "environment": environment(kept.model.device),
    }
    path = out / f"{config.key}.json"
    write_json(path, with_checksum(data))
    return path


def rows_of(path: Path) -> list[tuple[str, str]]:
    """What `measure` wrote, as names and scores in percent."""
    scores: dict[str, list[float | None]] = read_json(path)["scores"]
    return [
        (name, "  ".join("–" if it is None else f"{100 * it:.1f}" for it in of_name))
        for name, of_name in scores.items()
    ]


def compare(
    fitting: Trajectory, dev: Trajectory, score: Callable[[Tensor, Tensor], float]
) -> dict[str, list[float | None]]:
    """The score of each policy at the speed-ups in steps of `SPEED_UPS`, by name; None where its curve does not reach.

    `blind` is the best step for all rows, or coin between two, by the score shown.

    Args:
        fitting: A full-depth run with labels and features, on which gates are fitted.
        dev: One on other rows, on which all are scored.
        score: A function of outputs at the exits `(batch, classes)` and labels `(batch,)`.
    """
    assert dev.labels is not None
    labels, steps = dev.labels, [dev.num_steps / speed_up for speed_up in SPEED_UPS]
    blind = blind_frontier(score(outputs, labels) for outputs in dev.outputs.unbind(1))
    found: dict[str, list[float | None]] = {"blind": [blind.mixed(step) for step in steps]}
    for name, like, of in _of_numbers(fitting, dev) if dev.meaning.numbers else _of_classes(fitting, dev):
        grid = like if isinstance(like, PolicyGrid) else as_policy_grid(like, None, of, look=True)
        curve = of.sweep(dict(zip(grid.values, grid.policies, strict=True)).__getitem__, grid.values, metric=score)
        found[name] = [score_at(curve, step) for step in steps]
    return {name: [None if it is None else round(it, 6) for it in scores] for name, scores in found.items()}


_Way = tuple[str, ExitPolicy | PolicyGrid, Trajectory]


def _of_classes(fitting: Trajectory, dev: Trajectory) -> Iterator[_Way]:
    for name, policy in _CERTAINTIES.items():
        yield name, policy, dev
    signals = default_signals(True, fitting.hazard_logits is not None)
    for (target, options), model in itertools.product(_TARGETS.items(), _MODELS):
        yield f"gate, {target}, {model}", fit_gate(fitting, **options, model=model, signals=signals), dev
    yield "gate, agreement, logistic, features", fit_gate(fitting, "agreement", signals=(*signals, "hidden")), dev
    for name, averaged in ensembles(fitting, dev):
        yield f"ensemble, {name}", _CERTAINTIES["confidence"], averaged


def _of_numbers(fitting: Trajectory, dev: Trajectory) -> Iterator[_Way]:
    yield "patience, by tolerance", patience_on_numbers(dev), dev
    if dev.hazard_logits is not None:
        yield "q-exit", Quantile(0.5), dev
    signals = default_signals(False, fitting.hazard_logits is not None)
    for delta, model in itertools.product(_DELTAS, _MODELS):
        yield f"gate, gain of {delta:g}, {model}", fit_gate(fitting, delta=delta, model=model, signals=signals), dev
