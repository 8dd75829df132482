"""`fit_exits`: early heads and a certified policy for a fine-tuned model, without labels.

The inputs are rows of the traffic, split at random into three parts. On the first, the heads learn
to answer as full depth does; the second chooses a policy (and, for a speed-up, its threshold); the
third certifies how often answers differ from full depth. An input that repeats is another row, as
in the traffic to come (`ponder.statistics.repeats`), but the frozen model runs over it once in
each part. If an error or an interruption ends the fit, the model is restored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int
from ponder._utils.rows import Ints, split
from ponder.calibration import RiskControl, certify
from ponder.errors import ArgumentError, NonFiniteError
from ponder.inference.examples import examples_in
from ponder.integrations.transformers.finetuned import EarlyHead
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.texts import (
    Encoding,
    Rows,
    encodings_of,
    record_rows,
    row_ids,
)
from ponder.policies import LastStep
from ponder.statistics.certificate import CONFIDENCE, LEVEL
from ponder.statistics.repeats import check_rows
from ponder.trajectory import Trajectory

__all__ = [
    "Distinct",
    "ExitReport",
    "Progress",
    "Sides",
    "as_before_if_refused",
    "counter",
    "distinct",
    "fit_exits",
    "teach_heads",
]

Progress: TypeAlias = Callable[[str, int, int], object]
"""Called with a phase, the number of its parts that are done, and the number of all."""
_SHARES = (0.4, 0.2, 0.4)
"""Shares of the inputs that teach the heads, choose the policy, and certify it."""
_FEWEST = 50
"""The least number of distinct inputs."""
_MEMORY = 2**30
"""Bytes of the features that the heads learn on."""
_BATCH = 64
"""Rows of a batch of training."""
_PATIENCE = 4
"""Epochs without a lower loss after which training stops."""


@dataclass(frozen=True, eq=False)
class ExitReport:
    """Result of fitting exits.

    Args:
        statement: The promise in a sentence, or why nothing is promised.
        met: Whether there is a promise for exits; if not, every row runs to the last step.
        policy: The policy, as text.
        threshold: Its value; NaN without a promise.
        rows: Number of inputs.
        duplicates: Number of inputs that repeat another one; these are rows too.
        fitted: Number of distinct inputs that the heads learned on.
        chosen_on: Number of inputs that chose the policy.
        certified_on: Number of inputs that certify.
        disagreement: Share of the certifying inputs whose answer differs from that of full depth.
        mean_exit_step: Mean exit step of the certifying inputs.
        exit_shares: The share of the certifying inputs that exits at each step, `(steps,)`.
        num_steps: N.
        level: Promised upper bound of the disagreement; NaN without a promise.
        confidence: Probability with which the promise holds, in (0, 1).
        best_level: The lowest level that so many rows can certify, without any disagreement.
        plain_accuracy: Accuracy of full depth on the certifying inputs that have a label; NaN
            without labels.
        exit_accuracy: Accuracy of the exits on the same inputs.
        certifying: The full-depth run over the certifying inputs; it and the fields that follow are
            not in `to_dict`.
        places: The places of the certifying inputs among all, `(rows,)`.
        taught_places: The places of the inputs that the heads learned on, repeats included.

    Example:
        >>> whole = BertForSequenceClassification(config)
        >>> model = PonderForSequenceClassification.from_finetuned(whole)
        >>> encodings = [{"input_ids": [2 + n % 38, 2 + n // 38]} for n in range(300)]
        >>> report = fit_exits(model, encodings, speed_up=2.0, epochs=1)
        >>> report.speed_up >= 2.0, report.certified_on
        (True, 120)
    """

    statement: str
    met: bool
    policy: str
    threshold: float
    rows: int
    duplicates: int
    fitted: int
    chosen_on: int
    certified_on: int
    disagreement: float
    mean_exit_step: float
    exit_shares: tuple[float, ...]
    num_steps: int
    level: float
    confidence: float
    best_level: float
    plain_accuracy: float
    exit_accuracy: float
    certifying: Trajectory = field(repr=False)
    places: tuple[int, ...] = field(repr=False)
    taught_places: tuple[int, ...] = field(repr=False, default=())

    @property
    def speed_up(self) -> float:
        """N ÷ mean exit step: a speed-up in steps, which leaves out embeddings and heads."""
        return self.num_steps / self.mean_exit_step

    def to_dict(self) -> dict[str, object]:
        """Return the report in plain JSON types; NaN becomes None."""
        plain: dict[str, object] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, float) and math.isnan(value):
                value = None
            if each.repr:
                plain[each.name] = value
        plain["exit_shares"] = list(self.exit_shares)
        return plain


def fit_exits(
    model: PonderPreTrainedModel,
    rows: Rows,
    *,
    disagreement: float = LEVEL,
    confidence: float = CONFIDENCE,
    speed_up: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> ExitReport:
    """Train early heads to agree with full depth, choose a policy for the model, and certify it.

    The promise holds for inputs that are drawn as these were. It compares answers with those at
    full depth.

    Args:
        model: A fine-tuned model with exits (`from_finetuned`).
        rows: Texts, if the model has a tokenizer, or encodings without padding, each a dict with
            the main input. If they have labels (`labels` or `label`), accuracies are reported;
            nothing learns from them.
        disagreement: Upper bound of the share of answers that differ from full depth, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: A factor > 1 of fewer steps, as the aim in the place of `disagreement`; the
            promise is then about the disagreement that it costs.
        epochs: Passes over the features at most; training stops early by the loss on a held-out
            tenth.
        seed: Seed of the split and of the order of training.
        batch_size: Rows of a batch at most, while the model runs.
        progress: A function `progress(phase, done, total)`.

    Raises:
        ArgumentError: There are too few distinct inputs, or the model has no early heads or no
            classes.
        NonFiniteError: A loss is NaN or infinite.

    Example:
        >>> whole = BertForSequenceClassification(config)
        >>> model = PonderForSequenceClassification.from_finetuned(whole)
        >>> encodings = [{"input_ids": torch.randint(2, 40, (6,)).tolist()} for _ in range(400)]
        >>> report = fit_exits(model, encodings, disagreement=0.2, epochs=2)
        >>> report.rows, report.num_steps, model.policy.certificate.risk
        (400, 4, 'disagreement')
    """
    with as_before_if_refused(model):
        sides = teach_heads(
            model, rows, epochs=epochs, seed=seed, batch_size=batch_size, progress=progress
        )
        control = certify(
            sides.choosing,
            sides.certifying,
            level=disagreement,
            confidence=confidence,
            speed_up=speed_up,
        )
    model.policy = control.policy
    return _report(control, sides)


@contextmanager
def as_before_if_refused(model: PonderPreTrainedModel) -> Iterator[None]:
    """Restore the early heads, the policy and the settings of a model if the block raises."""
    heads = _early_heads(model)
    states = [deepcopy(head.state_dict()) for head in heads]
    policy = model.policy
    exits = model.config.exits
    try:
        yield
    except BaseException:
        for head, state in zip(heads, states, strict=True):
            head.load_state_dict(state)
        model.policy = policy
        model.config.exits = exits
        raise


def _early_heads(model: PonderPreTrainedModel) -> list[EarlyHead]:
    """Return the heads of all steps but the last; none of a model with one head."""
    heads = getattr(model.ponder.head, "heads", ())
    return [head for head in heads if isinstance(head, EarlyHead)]


@dataclass(frozen=True, eq=False)
class Sides:
    """Full-depth runs over the three parts of the inputs.

    Args:
        taught: The distinct inputs that taught the heads, recorded before, without features.
        choosing: The inputs that choose a policy.
        certifying: The inputs that certify it.
        places: The places of the inputs of each part among all.
        taught_rows: The places of the inputs that taught the heads, repeats included.
        rows: Number of inputs.
        distinct: Number of distinct inputs.
    """

    taught: Trajectory
    choosing: Trajectory
    certifying: Trajectory
    places: tuple[Ints, Ints, Ints]
    taught_rows: Ints
    rows: int
    distinct: int


def teach_heads(
    model: PonderPreTrainedModel,
    rows: Rows,
    *,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Sides:
    """Train early heads to agree with full depth on a part of the inputs, and record the others.

    Arguments as for `fit_exits`.
    """
    check_int("epochs", epochs)
    _check_can_learn(model)
    encodings: list[Encoding] = list(examples_in(encodings_of(model, rows)))
    ids = row_ids(encodings)
    count = len(np.unique(ids))
    if count < _FEWEST:
        raise ArgumentError(
            "rows",
            expected=f"at least {_FEWEST} distinct inputs (some 1,000 certify 1%)",
            got=f"{count} of {len(encodings)}",
            remedy="Pass more inputs like those that the model will answer; they need no labels.",
        )
    check_rows(ids, "rows")
    learn, choose, check = split(ids, _SHARES, seed)
    # Heads that learned from another split may have seen the rows that certify: they start anew.
    model.policy = LastStep()
    heads = _early_heads(model)
    for head in heads:
        head.reset()
    taught_rows = learn[: _rows_in_memory(model, encodings)]
    learn = taught_rows[_first_of_each(ids[taught_rows])]
    recorder = _Recorder(model, encodings, ids, batch_size, progress)
    taught = recorder.record(learn, "learn", keep_features=True)
    generator = torch.Generator().manual_seed(seed)
    count_head = counter(progress, "train", len(heads))
    for step, head in enumerate(heads):
        _train(head, step, taught, epochs, generator)
        count_head(1)
    model.config.exits = {"seed": seed}
    return Sides(
        taught=replace(taught, features=None),
        choosing=recorder.record(choose, "choose"),
        certifying=recorder.record(check, "certify"),
        places=(learn, choose, check),
        taught_rows=taught_rows,
        rows=len(encodings),
        distinct=count,
    )


@dataclass(frozen=True, eq=False)
class _Recorder:
    """Full-depth runs of a model over some of its inputs.

    Args:
        model: The model.
        encodings: All inputs.
        ids: Their ids, `(rows,)`.
        batch_size: Rows of a batch at most.
        progress: Called with a phase and the numbers of its inputs, or None.
    """

    model: PonderPreTrainedModel
    encodings: Sequence[Encoding]
    ids: Ints
    batch_size: int
    progress: Progress | None

    def record(self, places: Ints, phase: str, *, keep_features: bool = False) -> Trajectory:
        """Run the model over each distinct input once, and return the run over all inputs."""
        ids = self.ids
        once = places[_first_of_each(ids[places])]
        trajectory = record_rows(
            self.model,
            [self.encodings[place] for place in once],
            batch_size=self.batch_size,
            row_ids=ids[once],
            keep_features=keep_features,
            progress=counter(self.progress, phase, len(once)),
        )
        if len(once) < len(places):
            order = np.argsort(ids[once])
            run_of_row = order[np.searchsorted(ids[once], ids[places], sorter=order)]
            index = torch.from_numpy(run_of_row)
            trajectory = trajectory.map(lambda values: values[index.to(values.device)])
        return replace(trajectory, content_ids=True)


def _check_can_learn(model: PonderPreTrainedModel) -> None:
    """Refuse a model without early heads or without classes."""
    task = model.ponder.task
    if model.config.finetuned and task is not None and task.classes:
        return
    kind = type(model).__name__
    name = None if task is None else task.name
    raise ArgumentError(
        "model",
        expected="a fine-tuned classifier with exits beside its head",
        got=f"a {kind} of the recipe {model.recipe.name!r}, task {name!r}",
        remedy="Make one: PonderForSequenceClassification.from_finetuned(model). For spans and "
        "numbers, choose a policy yourself, and certify it with ponder.control_risk.",
    )


def _rows_in_memory(model: PonderPreTrainedModel, encodings: Sequence[Encoding]) -> int:
    """Return the number of inputs whose features of all steps fit into the memory for them."""
    wrapper = model.ponder
    positions = 1
    if wrapper.task is not None and wrapper.task.per_position:
        positions = max(np.size(encoding[model.main_input_name]) for encoding in encodings)
    head = _early_heads(model)[0]
    width = head.labels + head.states * head.width
    most = _MEMORY // (4 * wrapper.num_steps * positions * width)
    return max(most, _FEWEST)


class Distinct(NamedTuple):
    """The first places of distinct inputs, in order, and their ids, `(rows,)` each."""

    places: Ints
    ids: Ints


def distinct(rows: Sequence[Encoding]) -> Distinct:
    """Return the first places of the distinct encodings, in order, and their ids."""
    ids = row_ids(rows)
    first = _first_of_each(ids)
    return Distinct(first, ids[first])


def _first_of_each(ids: Ints) -> Ints:
    """Return the place of the first row of each id, in the order of the rows."""
    _, first = np.unique(ids, return_index=True)
    return np.sort(first)


@torch.enable_grad()
def _train(
    head: nn.Module, step: int, seen: Trajectory, epochs: int, generator: torch.Generator
) -> None:
    """Train the early head of a step, counted from 0, on the KL divergence from full depth.

    AdamW runs until the loss on a held-out tenth has not fallen for some epochs; the best weights
    are kept.
    """
    assert seen.features is not None
    answers = seen.outputs[:, -1].float()
    task = seen.meaning
    weight = next(head.parameters())
    answered = torch.as_tensor(task.answered(answers, seen.mask))
    target = answers[answered].to(weight.device)
    features = seen.features[answered, step].to(weight)
    # The gradient of a factor of −∞ is NaN.
    features = features.clamp(min=torch.finfo(features.dtype).min)
    mask: Tensor | None = None
    if seen.mask is not None and task.per_token:
        mask = seen.mask[answered].to(weight.device)
    order = torch.randperm(len(target), generator=generator)
    count = max(len(target) // 10, 1)
    held_out = order[:count]
    training = order[count:]

    def loss(rows: Tensor) -> Tensor:
        """Return the mean loss of some of the rows."""
        mask_of_rows = None if mask is None else mask[rows]
        losses: Tensor = task.distillation_losses(
            head(features[rows]), target[rows], 1.0, mask_of_rows
        )
        return losses.mean()

    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    lowest = math.inf
    best = deepcopy(head.state_dict())
    epochs_since = 0
    for _ in range(epochs + 1):
        with torch.no_grad():
            loss_now = float(loss(held_out))
        if not math.isfinite(loss_now):
            raise NonFiniteError(
                f"early head: a loss of {loss_now}. Look for NaN in the weights of the model."
            )
        if loss_now < lowest:
            lowest = loss_now
            best = deepcopy(head.state_dict())
            epochs_since = 0
        else:
            epochs_since += 1
            if epochs_since == _PATIENCE:
                break
        shuffled = training[torch.randperm(len(training), generator=generator)]
        for batch in shuffled.split(_BATCH):
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()
    head.load_state_dict(best)


def counter(progress: Progress | None, phase: str, total: int) -> Callable[[int], None]:
    """Return a callback that counts the parts of a phase that are done."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(phase, done, total)

    return count


def _report(control: RiskControl, sides: Sides) -> ExitReport:
    """Return the report of a certificate, and of what the certifying rows measure."""
    certifying = sides.certifying
    certified = control.policy.certificate
    steps = certifying.exit_steps(control.policy)
    confidence = certified.confidence or 0.0
    rows = len(certifying)
    differs = ~certifying.agreement()[np.arange(rows), steps - 1]
    threshold = certified.threshold_value
    level = certified.level
    shares = [float((steps == step).mean()) for step in range(1, certifying.num_steps + 1)]
    plain_accuracy, exit_accuracy = _accuracies(certifying, steps)
    rule = control.policy.rule("input")
    statement = replace(certified, rule=rule, unit="input").sentence
    if not control.met:
        statement = control.statement
        level = math.nan
    return ExitReport(
        statement=statement,
        met=control.met,
        policy=repr(control.policy.policy),
        threshold=math.nan if threshold is None else float(threshold),
        rows=sides.rows,
        duplicates=sides.rows - sides.distinct,
        fitted=len(sides.places[0]),
        chosen_on=len(sides.places[1]),
        certified_on=rows,
        disagreement=float(differs.mean()),
        mean_exit_step=float(steps.mean()),
        exit_shares=tuple(shares),
        num_steps=certifying.num_steps,
        level=float(level),
        confidence=confidence,
        best_level=1.0 - (1.0 - confidence) ** (1.0 / rows),
        plain_accuracy=plain_accuracy,
        exit_accuracy=exit_accuracy,
        certifying=certifying,
        places=tuple(sides.places[2].tolist()),
        taught_places=tuple(sides.taught_rows.tolist()),
    )


def _accuracies(certifying: Trajectory, steps: Ints) -> tuple[float, float]:
    """Return the accuracies of full depth and of the exits on labelled rows; NaN without labels."""
    if certifying.labels is None:
        return math.nan, math.nan
    rows = certifying.meaning.labelled(certifying.labels).nonzero().flatten().numpy()
    if not len(rows):
        return math.nan, math.nan
    right = certifying.correct()[rows]
    at_exits = right[np.arange(len(rows)), steps[rows] - 1]
    return float(right[:, -1].mean()), float(at_exits.mean())
