"""`fit_exits`: early heads, a policy and its certificate for a fine-tuned model, from inputs without labels.

The inputs are rows of the traffic, split at random in three: the heads learn on the first part to
answer as full depth does, the second chooses a policy (and, for a speed-up, its threshold), and the
third certifies how often answers differ from full depth. An input that comes again is another row,
as in the traffic to come (`ponder.calibration.repeats`); the frozen model runs over it once in each
part. If anything is refused or interrupted, the model is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ponder._utils.checks import check_int
from ponder._utils.rows import row_keys, split
from ponder._utils.seeds import uniform
from ponder.calibration import RiskControl, certify
from ponder.calibration.repeats import check_rows
from ponder.calibration.statement import CONFIDENCE, LEVEL, Promise, exits_rule
from ponder.errors import ArgumentError, NonFiniteError
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.texts import encodings_of, record_rows, row_ids
from ponder.policies import LastStep
from ponder.trajectory import Trajectory

__all__ = [
    "ExitReport",
    "Sides",
    "as_before_if_refused",
    "counter",
    "distinct",
    "fit_exits",
    "may_have_taught",
    "teach_heads",
]

_SHARES = (0.4, 0.2, 0.4)  # to learn, to choose, to certify
_FEWEST = 50
_MEMORY = 2**30  # bytes of the features that the heads learn on

Encoding = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ExitReport:
    """Result of fitting exits.

    Args:
        statement: The promise in a sentence, or why there is none.
        met: Whether a promise could be given for exits; where not, every row runs to the last step.
        policy: The policy, as text.
        threshold: Its value; NaN where nothing is promised.
        rows: Inputs that were given.
        duplicates: Inputs that repeat another one; these are rows too.
        fitted: Distinct inputs that the heads learned on.
        chosen_on: Inputs that chose the policy.
        certified_on: Inputs that certify.
        disagreement: Share of the certifying inputs whose answer is not that of full depth.
        mean_exit_step: Mean exit step of the certifying inputs.
        exit_shares: The share of the certifying inputs that exits at each step, `(steps,)`.
        num_steps: N.
        level: Upper bound of the disagreement that is promised; NaN where nothing is.
        confidence: Probability with which the promise holds, in (0, 1).
        best_level: The lowest level that so many rows could certify, were there no disagreement at
            all.
        plain_accuracy: Accuracy of full depth on the certifying inputs that have a label; NaN where
            none has.
        exit_accuracy: Accuracy of the exits on the same.
        certifying: The full-depth run over the certifying inputs; neither it nor what follows is in
            `to_dict`.
        places: Where these stand among the inputs that were given, `(rows,)`.
        taught_places: Where those stand that the heads learned on.

    Example:
        >>> model = PonderForSequenceClassification.from_finetuned(BertForSequenceClassification(config))
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        plain = {each.name: getattr(self, each.name) for each in fields(self) if each.repr}
        plain["exit_shares"] = list(self.exit_shares)
        return {
            name: None if isinstance(v, float) and math.isnan(v) else v for name, v in plain.items()
        }


def fit_exits(
    model: PonderPreTrainedModel,
    rows: Iterable[Any],
    *,
    disagreement: float = LEVEL,
    confidence: float = CONFIDENCE,
    speed_up: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[str, int, int], object] | None = None,
) -> ExitReport:
    """Train early heads to agree with full depth, choose a policy, and certify it; the model gets both.

    The promise is about inputs like these, drawn as these were, and about the answers at full
    depth.

    Args:
        model: A model with exits beside a fine-tuned head (`from_finetuned`).
        rows: Texts, where the model has a tokenizer, or encodings: a dict each with the main input,
            without padding. Where they have labels (`labels` or `label`), these tell the accuracy;
            nothing learns from them.
        disagreement: Upper bound of the share of answers that differ from full depth, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Aim at this many times fewer steps instead, > 1; the promise is then about the
            cost of that.
        epochs: Passes over the features at most; training stops early by the loss on a held-out
            tenth.
        seed: Seed of the split and of the order of training.
        batch_size: Rows of a batch at most, while the model runs.
        progress: Called with a phase, what is done of it, and how much it is in all.

    Raises:
        ArgumentError: Too few distinct inputs to split, or a model without early heads or classes.
        NonFiniteError: A loss that is NaN or infinite.

    Example:
        >>> model = PonderForSequenceClassification.from_finetuned(BertForSequenceClassification(config))
        >>> encodings = [{"input_ids": torch.randint(2, 40, (6,)).tolist()} for _ in range(400)]
        >>> report = fit_exits(model, encodings, disagreement=0.2, epochs=2)
        >>> report.rows, report.num_steps, model.policy.risk
        (400, 4, 'disagreement')
    """
    with as_before_if_refused(model):
        sides = teach_heads(
            model, rows, epochs=epochs, seed=seed, batch_size=batch_size, progress=progress
        )
        found = certify(
            sides.choosing,
            sides.certifying,
            level=disagreement,
            confidence=confidence,
            speed_up=speed_up,
        )
    model.policy = found.policy
    return _report(found, sides)


@contextmanager
def as_before_if_refused(model: PonderPreTrainedModel) -> Iterator[None]:
    """Give a model its early heads, policy and settings back if the block raises."""
    wrapper: Any = model.ponder
    early: list[Any] = list(getattr(wrapper.head, "heads", ()))[:-1]
    states = [deepcopy(head.state_dict()) for head in early]
    policy = model.policy
    exits = model.config.exits
    try:
        yield
    except BaseException:
        for head, state in zip(early, states, strict=True):
            head.load_state_dict(state)
        model.policy = policy
        model.config.exits = exits
        raise


@dataclass(frozen=True, eq=False)
class Sides:
    """Full-depth runs over the three parts of the inputs, by early heads that have learned from the first."""

    taught: Trajectory  # distinct inputs, before the heads learned on them, without features
    choosing: Trajectory
    certifying: Trajectory  # on which nothing was chosen
    places: tuple[Any, Any, Any]  # where the inputs of each part stand among those given
    rows: int  # that were given
    distinct: int


def teach_heads(
    model: PonderPreTrainedModel,
    rows: Iterable[Any],
    *,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: Callable[[str, int, int], object] | None = None,
) -> Sides:
    """Train early heads to agree with full depth on a part of the inputs, and record the others; see `fit_exits`."""
    check_int("epochs", epochs)
    wrapper: Any = model.ponder
    if not model.config.finetuned or not wrapper.task.classes:
        raise ArgumentError(
            "model",
            expected="a fine-tuned classifier with exits beside its head",
            got=f"a {type(model).__name__} of the recipe {model.recipe.name!r}, task {wrapper.task.name!r}",
            remedy="Make one: PonderForSequenceClassification.from_finetuned(model). Of spans and numbers, choose a "
            "policy yourself, and certify it by ponder.control_risk.",
        )
    given = list(encodings_of(model, rows))
    ids = row_ids(given)
    learn, choose, check = split(ids, _SHARES, seed)
    different = len(np.unique(ids))
    if different < _FEWEST:
        expected = f"at least {_FEWEST} distinct inputs (some 1,000 certify 1%)"
        remedy = (
            "Pass more inputs like those that the model will be asked about; they need no labels."
        )
        raise ArgumentError(
            "rows", expected=expected, got=f"{different} of {len(given)}", remedy=remedy
        )
    check_rows(ids, "rows")
    model.policy = (
        LastStep()
    )  # what earlier parts of another split have taught must not be certified on them
    early: list[Any] = list(wrapper.head.heads)[:-1]
    for head in early:
        head.reset()
    if wrapper.task.per_position:
        longest = max(np.size(row[model.main_input_name]) for row in given)
    else:
        longest = 1
    features = early[0].labels + early[0].states * early[0].width
    most = _MEMORY // (4 * wrapper.num_steps * longest * features)
    learn = learn[: max(most, _FEWEST)]
    below = float(uniform(seed, row_keys(ids)[learn]).max())
    learn = learn[_first_of_each(ids[learn])]

    def record(places: Any, phase: str, **options: Any) -> Trajectory:
        """Run the model once over each distinct input, and return the run over all of them."""
        unique, number = np.unique(ids[places], return_inverse=True)
        once = places[_first_of_each(ids[places])]
        done = counter(progress, phase, len(once))
        asked = {"batch_size": batch_size, "row_ids": ids[once], "progress": done, **options}
        seen = record_rows(model, [given[place] for place in once], asked)
        if len(once) < len(places):
            place_of_id = np.empty(len(unique), dtype=np.int64)
            place_of_id[np.searchsorted(unique, ids[once])] = np.arange(len(once))
            index = torch.from_numpy(place_of_id[number])
            seen = seen.map(lambda values: values[index.to(values.device)])
        return replace(seen, content_ids=True)

    taught = record(learn, "learn", keep_features=True)
    generator = torch.Generator().manual_seed(seed)
    done = counter(progress, "train", len(early))
    for step, head in enumerate(early):
        _train(head, step, taught, epochs, generator)
        done(1)
    model.config.exits = {"seed": seed, "learned_below": below}
    parts = replace(taught, features=None), record(choose, "choose"), record(check, "certify")
    return Sides(*parts, (learn, choose, check), len(given), different)


def distinct(rows: Sequence[Encoding]) -> tuple[Any, Any]:
    """Return where the distinct encodings stand first, in their order, and their ids."""
    ids = row_ids(rows)
    first = _first_of_each(ids)
    return first, ids[first]


def _first_of_each(ids: Any) -> Any:
    """Return the place of the first row of each id, in the order of the rows."""
    return np.sort(np.unique(ids, return_index=True)[1])


def may_have_taught(model: PonderPreTrainedModel, rows: Any) -> Any:
    """Return which rows the early heads may have learned from, `(rows,)` bool: those of that side of the split.

    The rows of the file that taught are recognised, in any order: the first row of a text by its
    content, one that comes again by its number among the rows of that text too. Of another log the
    same share is named.

    Args:
        model: The model.
        rows: Texts or encodings, as for `fit_exits`.
    """
    exits = model.config.exits
    if not exits:
        return np.zeros(len(rows), dtype=bool)
    keys = row_keys(row_ids(encodings_of(model, rows)))
    return uniform(exits["seed"], keys) <= exits["learned_below"]


@torch.enable_grad()
def _train(
    head: nn.Module, step: int, seen: Trajectory, epochs: int, generator: torch.Generator
) -> None:
    """Teach the early head of a step, from 0, the answers of full depth, by the KL divergence from them.

    AdamW until the loss on a held-out tenth has not fallen for four epochs; the best weights are
    kept.
    """
    assert seen.features is not None
    answers = seen.outputs[:, -1].float()
    task = seen.meaning
    weight = next(head.parameters())
    there = torch.as_tensor(task.answered(answers, seen.mask))
    features = seen.features[there, step].to(weight)
    target = answers[there].to(weight.device)
    features = features.clamp(
        min=torch.finfo(features.dtype).min
    )  # the gradient of a scale is NaN where it scales −∞
    mask = seen.mask[there].to(weight.device) if seen.mask is not None and task.per_token else None
    order = torch.randperm(len(target), generator=generator)
    count = max(len(target) // 10, 1)
    held = order[:count]
    taught = order[count:]

    def loss(rows: Tensor) -> Tensor:
        own = None if mask is None else mask[rows]
        each: Tensor = task.distillation_losses(head(features[rows]), target[rows], 1.0, own)
        return each.mean()

    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    best = math.inf
    kept = deepcopy(head.state_dict())
    since = 0
    for _ in range(epochs + 1):
        with torch.no_grad():
            now = float(loss(held))
        if not math.isfinite(now):
            raise NonFiniteError(
                f"early head: a loss of {now}. Look for NaN in the weights of the model."
            )
        if now < best:
            best = now
            kept = deepcopy(head.state_dict())
            since = 0
        elif (since := since + 1) == 4:
            break
        for batch in taught[torch.randperm(len(taught), generator=generator)].split(64):
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()
    head.load_state_dict(kept)


def counter(
    progress: Callable[[str, int, int], object] | None, phase: str, total: int
) -> Callable[[int], None]:
    """Return a callback that counts what is done of a phase."""
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(phase, done, total)

    return count


def _report(found: RiskControl, sides: Sides) -> ExitReport:
    certifying = sides.certifying
    steps = certifying.exit_steps(found.policy)
    confidence = found.policy.confidence or 0.0
    rows = len(certifying)
    differs = ~certifying.agreement()[np.arange(rows), steps - 1]
    inside = found.policy.policy
    threshold = found.policy.threshold_value
    level = found.policy.level
    plain, own = _accuracies(certifying, steps)
    change = "other answers than at full depth"
    promise = Promise(exits_rule(found.policy), change, level, confidence, rows, "input")
    return ExitReport(
        statement=promise.sentence if found.met else f"No exits: {found.statement}.",
        met=found.met,
        policy=repr(inside),
        threshold=math.nan if threshold is None else float(threshold),
        rows=sides.rows,
        duplicates=sides.rows - sides.distinct,
        fitted=len(sides.places[0]),
        chosen_on=len(sides.places[1]),
        certified_on=rows,
        disagreement=float(differs.mean()),
        mean_exit_step=float(steps.mean()),
        exit_shares=tuple(
            float((steps == step).mean()) for step in range(1, certifying.num_steps + 1)
        ),
        num_steps=certifying.num_steps,
        level=float(level) if found.met else math.nan,
        confidence=confidence,
        best_level=1.0 - (1.0 - confidence) ** (1.0 / rows),
        plain_accuracy=plain,
        exit_accuracy=own,
        certifying=certifying,
        places=tuple(sides.places[2].tolist()),
        taught_places=tuple(sides.places[0].tolist()),
    )


def _accuracies(certifying: Trajectory, steps: Any) -> tuple[float, float]:
    """The accuracies of full depth and of the exits over the rows that have a label; NaN where none has."""
    if certifying.labels is None:
        return math.nan, math.nan
    rows = certifying.meaning.labelled(certifying.labels).nonzero().flatten().numpy()
    if not len(rows):
        return math.nan, math.nan
    right = certifying.correct()[rows]
    return float(right[:, -1].mean()), float(right[np.arange(len(rows)), steps[rows] - 1].mean())
