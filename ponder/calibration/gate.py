"""Gates: an exit head that is fitted on a frozen model's trajectory, with what hindsight tells as labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ponder._utils.trees import Tree
from ponder._utils.validation import check_choice, check_flag, check_int, check_real
from ponder.engine.losses import step_losses
from ponder.engine.replay import check_replay, replay
from ponder.errors import ArgumentError, PonderError
from ponder.parts.recording import check_sample
from ponder.parts.tasks.labels import check_labelled
from ponder.policies.base import StepView
from ponder.policies.fitted import some_rows
from ponder.policies.gate import GATE_SIGNALS, Gate, LinearTable, TreeTable, default_signals
from ponder.trajectory import Trajectory

__all__ = ["fit_gate", "staying_pays"]

Target = Literal["gain", "error", "agreement", "unsettled"]
_NOISE = 1e-6
_TARGETS = ("gain", "error", "agreement", "unsettled")


def fit_gate(
    trajectory: Trajectory,
    target: Target = "gain",
    delta: float = 0.0,
    floor: int = 1,
    *,
    model: Literal["logistic", "boosted"] = "logistic",
    shared: bool = False,
    trees: int = 50,
    signals: Sequence[str] | None = None,
    threshold: float = 0.5,
) -> Gate:
    r"""Fit an exit policy to a frozen model: at each step, will any later step do better?

    For each step n < N, a small model of scikit-learn learns the probability of an event that hindsight tells, and the
    gate lets a row go where it is below `threshold`, which `ponder.calibrate` then chooses on *other* rows:

    * ``"gain"``: min_{m>n} ℓ_m < ℓ_n − δ, some later step has a loss that is lower by more than δ. Losses of classes
      mostly fall a little from step to step, so that δ = 0 says yes nearly everywhere: ask for 0.1 or more;
    * ``"error"``: this step is wrong and some later step right;
    * ``"agreement"``: the answer is not that of full depth, which needs no labels. A trajectory without labels takes
      this in place of ``"gain"``, with a warning;
    * ``"unsettled"``: the answer is not right yet, or will not stay so. A row that is never right runs to the end.

    The features are what every step gives: how sure it is, how long its answer has stayed, how far it moved, and the
    Lambda head's hazards where there is one; ``"hidden"`` adds the features themselves. The idea is that of Ouro's
    second stage (Zhu et al. 2025, arXiv 2510.25741), where the gate learns from the loss that a further step saves.
    Where a row has an answer at each of its positions, it is right when all of them are.

    Args:
        trajectory: A full-depth run on held-out rows.
        target: The event.
        delta: δ ≥ 0, for ``"gain"`` alone.
        floor: No row leaves before this step.
        model: ``"logistic"``, a logistic regression; ``"boosted"``, gradient boosting of trees of three levels.
        shared: One small model for all steps instead of one for each: for a shared step, which may then run for more
            steps than the trajectory has.
        trees: Their number, for ``"boosted"``.
        signals: Names from `policies.gate.GATE_SIGNALS`; what the trajectory has where None.
        threshold: Probability below which a row leaves.

    Returns:
        A policy of plain numbers, for models of the same number of steps, or of any number where `shared`.

    Raises:
        ArgumentError: No rows, or none that are finite, rows without a label where the target reads labels, a run of
            training mode, one step only, an unknown name, a task without answers to compare, or labels that are no
            classes where the model names no task.
        PonderError: scikit-learn is not installed.

    Example:
        >>> gate = fit_gate(trajectory, target="error")  # in earnest: on rows that train nothing else
        >>> trajectory.replay(gate).exit_step[:3]
        tensor([1, 2, 3])
    """
    check_sample(trajectory)
    check_real("delta", delta)
    check_int("floor", floor, 1, trajectory.num_steps)
    check_int("trees", trees, remedy="Pass trees=50, say.")
    if trajectory.num_steps == 1:
        raise ArgumentError(
            "trajectory", expected="at least two steps", got="one", remedy="There is no early exit to decide on."
        )
    check_choice("model", model, ("logistic", "boosted"))
    check_flag("shared", shared)
    if target == "gain" and trajectory.labels is None and trajectory.meaning.comparable:
        warnings.warn(
            "fit_gate: the trajectory has no labels, so the gate is fitted to agreement with full depth instead of "
            "gain. Record labels, or pass target='agreement'.",
            stacklevel=2,
        )
        target, delta = "agreement", 0.0
    reading = _reading(trajectory, _default_signals(trajectory) if signals is None else signals)
    read = reading.seen
    finite = torch.stack([values.isfinite().all(1) for values in read]).all(0) & trajectory.answered().all(1).cpu()
    if not finite.any():
        raise ArgumentError(
            "trajectory", expected="rows whose outputs are finite", got="none", remedy="See what the model computes."
        )
    pays = staying_pays(trajectory, target, delta).cpu()[finite]  # others never leave, so they teach nothing
    of_steps = [(values[finite], stays) for values, stays in zip(read, pays[:, :-1].unbind(1), strict=True)]
    if shared:
        of_steps = [(torch.cat([values for values, _ in of_steps]), torch.cat([stays for _, stays in of_steps]))]
    tables: list[LinearTable | TreeTable] = [
        _boosted(values, stays, trees) if model == "boosted" else _logistic(values, stays) for values, stays in of_steps
    ]
    return Gate(
        num_steps=None if shared else trajectory.num_steps,
        signals=reading.signals,
        kind=model,
        tables=tuple(tables),
        threshold=threshold,
        floor=floor,
        target=target,
        delta=float(delta),
        fitted_on=some_rows(trajectory),
        classes=trajectory.outputs.shape[-1] if reading.reader.reads_classes else None,
    )


def staying_pays(trajectory: Trajectory, target: Target, delta: float = 0.0) -> Tensor:
    """What hindsight says of each row and step, `(batch, steps)` bool; False at the last step.

    Args:
        trajectory: A full-depth run.
        target: The event, as for `fit_gate`.
        delta: The amount by which a later step has to lower the loss, as for `fit_gate`.
    """
    check_choice("target", target, _TARGETS)
    if delta and target != "gain":
        raise ArgumentError(
            "delta",
            expected=f"0 with target={target!r}, which has no amount",
            got=delta,
            remedy="Leave it out, or pass target='gain'.",
        )
    task = trajectory.meaning
    if target == "agreement":
        if not task.comparable:
            raise _no_target(target, trajectory, "Record labels, and pass target='gain' with a delta.")
        trajectory.check_unnamed()
        return ~task.agreement(trajectory.read_outputs(), trajectory.mask)
    if trajectory.labels is None:
        raise ArgumentError(
            "trajectory",
            expected=f"labels, from which target={target!r} is read",
            got="none",
            remedy="Record them: model.unroll(inputs, labels=labels)"
            + ("; or pass target='agreement'." if task.comparable else "."),
        )
    if target in ("error", "unsettled"):
        if not task.comparable:
            raise _no_target(target, trajectory, "Pass target='gain' with a delta in the unit of the loss.")
        right = trajectory.correct()
        if target == "unsettled":
            settled = right.flip(1).int().cummin(1).values.flip(1).bool()  # right here and at all later steps
            settled[:, -1] = True
            return ~settled
        losses = (~right).double()
    else:
        losses = _losses(trajectory)
    later = losses.flip(1).cummin(1).values.flip(1)  # the least from each step on
    pays = torch.zeros_like(losses, dtype=torch.bool)
    pays[:, :-1] = later[:, 1:] < losses[:, :-1] - delta
    return pays


def _losses(trajectory: Trajectory) -> Tensor:
    assert trajectory.labels is not None
    task = trajectory.unweighted()  # what training weighs says nothing of leaving
    checked = trajectory.inside(task.check(trajectory.outputs[:, -1], trajectory.labels))
    check_labelled(task, checked)
    return step_losses(task, trajectory.read_outputs(), checked).double()


def _no_target(target: str, trajectory: Trajectory, remedy: str) -> ArgumentError:
    return ArgumentError(
        "target",
        expected="an event that this task's answers and losses tell",
        got=f"{target!r} with the task {trajectory.task!r}",
        remedy=remedy,
    )


def _default_signals(trajectory: Trajectory) -> tuple[str, ...]:
    task = trajectory.meaning
    classes = task.classes and task.fits(trajectory.outputs[:, -1])
    return default_signals(classes, trajectory.hazard_logits is not None)


@dataclass(frozen=True)
class _Reading(Gate):
    """A gate that lets nobody go, and writes down the signals of every step but the last."""

    seen: list[Tensor] = field(default_factory=list)

    def decide(self, step: StepView, state: Tree) -> tuple[Tensor | bool, Tree]:
        values, state = self.reader.read(step, state)
        self.seen.append(values.detach().cpu())
        return False, state


def _reading(trajectory: Trajectory, signals: Sequence[str]) -> _Reading:
    """The signals at each step but the last, `(batch, signals)` each, as `seen`."""
    reading = _Reading(None, signals, "logistic", (0.0,))  # type: ignore[arg-type]  # a gate makes a tuple of them
    there = {
        *_default_signals(trajectory),
        "movement",
        *(() if trajectory.features is None else ("hidden",)),
    }
    missing = [name for name in reading.signals if name not in there]
    if missing:
        known = ", ".join(name for name in GATE_SIGNALS if name in there)
        raise ArgumentError(
            "signals",
            expected=f"some of those that this trajectory, of the task {trajectory.task!r}, has: {known}",
            got=repr(missing),
            remedy="Leave them out, or record what they are read from: hazards of a model with a Lambda head, and "
            "features with model.unroll(…, keep_features=True).",
        )
    check_replay(trajectory, reading)
    replay(trajectory, reading)
    return reading


def _logistic(values: Tensor, stays: Tensor) -> LinearTable:
    """Weights and bias on the raw signals: the scaling to unit variance is folded into them."""
    stays = stays.cpu()
    constant = _constant(stays)
    if constant is not None:
        return (*(0.0,) * values.shape[1], constant)
    fitted = _sklearn("linear_model").LogisticRegression(max_iter=1000)
    x = values.double()
    centre, scale = x.mean(0), x.std(0, correction=0)
    tells = scale > _NOISE * centre.abs()  # what differs by less is rounding, which other rows do not share
    scale = torch.where(tells, scale, 1.0)
    fitted.fit(torch.where(tells, (x - centre) / scale, 0.0).numpy(), stays.numpy())
    weights = torch.where(tells, torch.as_tensor(fitted.coef_[0]) / scale, 0.0)
    bias = float(fitted.intercept_[0]) - float((weights * centre).sum())
    return (*weights.tolist(), bias)


def _boosted(values: Tensor, stays: Tensor, trees: int) -> TreeTable:
    """The bias and the trees of gradient boosting, each leaf times the learning rate."""
    stays = stays.cpu()
    constant = _constant(stays)
    if constant is not None:
        return (constant, ())
    boosting = _sklearn("ensemble").GradientBoostingClassifier(n_estimators=trees, max_depth=3, random_state=0)
    boosting.fit(values.numpy(), stays.numpy())
    share = float(stays.double().mean())
    made = []
    for (estimator,) in boosting.estimators_:
        tree = estimator.tree_
        leaf = tree.children_left < 0
        columns: list[Any] = [
            [-1.0 if end else float(signal) for end, signal in zip(leaf, tree.feature, strict=True)],
            tree.threshold.tolist(),
            [max(float(child), 0.0) for child in tree.children_left],
            [max(float(child), 0.0) for child in tree.children_right],
            (boosting.learning_rate * tree.value[:, 0, 0]).tolist(),
        ]
        made.append(tuple(zip(*columns, strict=True)))
    return (float(torch.logit(torch.tensor(share, dtype=torch.float64))), tuple(made))


def _constant(stays: Tensor) -> float | None:
    """The log-odds where all rows agree and there is nothing to fit, with half a row on either side; else None."""
    many, total = int(stays.sum()), len(stays)
    if 0 < many < total:
        return None
    return float(torch.log(torch.tensor((many + 0.5) / (total - many + 0.5), dtype=torch.float64)))


def _sklearn(part: str) -> Any:
    try:
        import sklearn.ensemble
        import sklearn.linear_model
    except ImportError as error:
        raise PonderError(
            "fit_gate needs scikit-learn, which is not installed. Run: pip install 'ponder-torch[gate]'. "
            "A fitted gate needs nothing of it."
        ) from error
    return {"ensemble": sklearn.ensemble, "linear_model": sklearn.linear_model}[part]
