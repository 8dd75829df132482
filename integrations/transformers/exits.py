"""`fit_exits`: early heads, a policy and its certificate for a fine-tuned classifier, from inputs without labels.

The frozen model runs once over every input; what its early heads read is kept in memory. The inputs are split in three,
each distinct one on one side only: the heads learn on the first part to answer as full depth does, the second chooses a
policy (and, for a speed-up, its threshold), and the third certifies how often the answers differ from full depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ponder._utils.progress import progress_bar
from ponder._utils.validation import check_int, check_real
from ponder.calibration.bounds import p_values
from ponder.calibration.control import RiskControl, control_risk
from ponder.errors import ArgumentError
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.policies import Confidence, Entropy, ExitPolicy, FixedStep, LastStep, Margin
from ponder.trajectory import Trajectory

__all__ = ["ExitReport", "distinct", "fit_exits"]

_FEWEST = 50
_SHARES = (0.4, 0.2, 0.4)  # to learn, to choose, to certify
_BOUND = "exact_binomial"  # the sharpest there is for answers that differ or do not

Family = tuple[Callable[[float], ExitPolicy], list[float]]


@dataclass(frozen=True)
class ExitReport:
    """What fitting came to.

    Args:
        statement: What is promised, or why nothing could be, in a sentence.
        met: Whether a promise could be given for exits; else every row runs to the last step.
        policy: The policy, as text.
        rows: Inputs that were given.
        duplicates: Of them, those that another one repeats; each is counted once.
        fitted: Distinct inputs that the heads learned on.
        chosen_on: Distinct inputs that chose the policy.
        certified_on: Distinct inputs that certify.
        disagreement: On these, the share of answers that are not those of full depth.
        mean_exit_step: On these.
        num_steps: N.
        level: Upper bound of the disagreement that is promised; NaN where nothing is.
        confidence: Of the promise.
        best_level: The lowest level that so many rows could certify, were there no disagreement at all.
    """

    statement: str
    met: bool
    policy: str
    rows: int
    duplicates: int
    fitted: int
    chosen_on: int
    certified_on: int
    disagreement: float
    mean_exit_step: float
    num_steps: int
    level: float
    confidence: float
    best_level: float

    @property
    def speed_up(self) -> float:
        """N ÷ mean exit step: a speed-up in steps, which leaves out embeddings and heads."""
        return self.num_steps / self.mean_exit_step

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(self).items()}


def fit_exits(
    model: FinetunedClassifier,
    encodings: Iterable[Mapping[str, Any]],
    *,
    disagreement: float = 0.01,
    confidence: float = 0.95,
    speed_up: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
) -> ExitReport:
    """Train early heads to agree with full depth, choose a policy, and certify it; the model gets both.

    The classifier itself does not change. The promise is about inputs like these, drawn as these were.

    Args:
        model: The classifier.
        encodings: What a tokenizer gives for each text: a dict with `input_ids`, without padding.
        disagreement: How often answers may differ from full depth, in (0, 1).
        confidence: Of the promise, in (0, 1).
        speed_up: Aim at this many times fewer steps instead, > 1; the promise is then about what that costs.
        epochs: Passes over the features at most; training stops early by the loss on a held-out tenth.
        seed: Of the split and of the order of training.
        batch_size: Rows of a batch at most, while the model runs.
        progress: Show progress bars.

    Raises:
        ArgumentError: Too few distinct inputs to split, or a number out of range.
    """
    check_real("disagreement", disagreement, 0.0, 1.0, open_low=True, open_high=True)
    check_real("confidence", confidence, 0.0, 1.0, open_low=True, open_high=True)
    check_int("epochs", epochs)
    if speed_up is not None:
        check_real("speed_up", speed_up, 1.0, float(model.num_steps), open_low=True)
    given = list(encodings)
    rows = distinct(given)
    if len(rows) < _FEWEST:
        raise ArgumentError(
            "texts",
            expected=f"at least {_FEWEST} distinct inputs (some 1,000 certify 1%)",
            got=f"{len(rows)} of {len(given)}",
            remedy="Pass more texts like those that the model will be asked about; they need no labels.",
        )
    model.eval()
    with torch.no_grad():
        seen = model.record(rows, keep_features=True, batch_size=batch_size, progress=progress)
    assert seen.features is not None
    generator = torch.Generator().manual_seed(seed)
    learn, choose, certify = _split(len(rows), generator)
    _train(model, seen.features[learn], seen.outputs[learn, -1], epochs, generator, progress)
    choosing, certifying = (_with_heads(model, seen, part) for part in (choose, certify))
    done, level = _certified(choosing, certifying, disagreement, confidence, speed_up)
    model.policy = done.policy
    return _report(model, done, certifying, level, confidence, len(given), (len(learn), len(choose), len(rows)))


def distinct(encodings: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The encodings without those that repeat an earlier one, in their order."""
    found: dict[tuple[tuple[int, ...], ...], Mapping[str, Any]] = {}
    for row in encodings:
        names = ("input_ids", "token_type_ids")
        found.setdefault(tuple(tuple(torch.as_tensor(row[n]).tolist()) for n in names if row.get(n) is not None), row)
    return list(found.values())


def _split(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    order = torch.randperm(rows, generator=generator)
    first, second = int(_SHARES[0] * rows), int((_SHARES[0] + _SHARES[1]) * rows)
    return order[:first], order[first:second], order[second:]


def _train(
    model: FinetunedClassifier,
    features: Tensor,
    answers: Tensor,
    epochs: int,
    generator: torch.Generator,
    progress: bool,
) -> None:
    """Teach each early head the answers of full depth, by the KL divergence from them."""
    target = answers.float().log_softmax(1)
    held = max(len(target) // 10, 1)
    weights = next(model.heads.parameters())
    with progress_bar("heads", model.num_steps - 1, shown=progress) as advance, torch.enable_grad():
        for step, head in enumerate(list(model.heads.heads)[:-1]):
            own = features[:, step].to(weights.device, weights.dtype)
            _train_one(head, own, target.to(weights.device), held, epochs, generator)
            advance(1)


def _train_one(
    head: nn.Module, features: Tensor, target: Tensor, held: int, epochs: int, generator: torch.Generator
) -> None:
    """AdamW until the loss on the held-out rows has not fallen for four epochs; the best weights are kept."""
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    best, kept, since = math.inf, deepcopy(head.state_dict()), 0
    for _ in range(epochs + 1):
        with torch.no_grad():
            loss = float(_divergence(head(features[:held]), target[:held]))
        if loss < best:
            best, kept, since = loss, deepcopy(head.state_dict()), 0
        elif (since := since + 1) == 4:
            break
        for batch in (held + torch.randperm(len(target) - held, generator=generator)).split(64):
            optimiser.zero_grad()
            _divergence(head(features[batch]), target[batch]).backward()
            optimiser.step()
    head.load_state_dict(kept)


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    return F.kl_div(logits.float().log_softmax(1), target, reduction="batchmean", log_target=True)


def _with_heads(model: FinetunedClassifier, seen: Trajectory, part: Tensor) -> Trajectory:
    """Some rows of a recording, with what the heads answer now."""
    assert seen.features is not None
    weights = next(model.heads.parameters())
    with torch.no_grad():
        each = [
            model.heads(seen.features[part, step - 1].to(weights.device, weights.dtype), step).cpu()
            for step in range(1, model.num_steps + 1)
        ]
    return replace(seen, outputs=torch.stack(each, 1), features=None, labels=None, row_ids=seen.row_ids[part])


def _families(num_steps: int, classes: int) -> list[Family]:
    """Policies with the values of their threshold, from late exits to early ones; fine where answers are sure."""
    sure = torch.linspace(12.0, -2.0, 141, dtype=torch.float64).sigmoid().tolist()
    unsure = torch.logspace(-6.0, math.log10(math.log(classes)), 141, dtype=torch.float64).tolist()
    return [
        (_fixed, [float(step) for step in range(num_steps, 0, -1)]),
        (Confidence, sure),
        (Margin, sure),
        (Entropy, unsure),
    ]


def _certified(
    choosing: Trajectory, certifying: Trajectory, level: float, confidence: float, speed_up: float | None
) -> tuple[RiskControl, float]:
    """The policy with its certificate, and the level that was asked for, or that the speed-up costs."""
    families = _families(choosing.num_steps, choosing.outputs.shape[-1])
    curves = [[_outcome(choosing, make(v)) for v in values] for make, values in families]
    if speed_up is None:
        cheapest = [min((s for d, s in curve if d <= level), default=math.inf) for curve in curves]
        make, values = families[min(range(len(families)), key=lambda place: cheapest[place])]
        done = control_risk(
            certifying,
            make,
            level=level,
            confidence=confidence,
            bound=_BOUND,
            grid=values,
        )
        return done, level
    allowed = [
        (d, s, family, value)
        for (family, values), curve in zip(families, curves, strict=True)
        for (d, s), value in zip(curve, values, strict=True)
        if s <= choosing.num_steps / speed_up
    ]
    _, _, make, value = min(allowed, key=lambda found: found[:2])
    differs, _ = _losses(certifying, make(value))
    bound = _upper_bound(differs, confidence)
    done = control_risk(
        certifying,
        make,
        level=bound,
        confidence=confidence,
        bound=_BOUND,
        grid=[value],
    )
    return done, bound


def _fixed(step: float) -> ExitPolicy:
    return FixedStep(int(step))


def _losses(trajectory: Trajectory, policy: ExitPolicy) -> tuple[Tensor, Tensor]:
    """Whether each row's answer differs from full depth, and its exit step."""
    steps = trajectory.replay(policy).exit_step
    return ~trajectory.agreement()[torch.arange(len(trajectory)), steps - 1], steps


def _outcome(trajectory: Trajectory, policy: ExitPolicy) -> tuple[float, float]:
    differs, steps = _losses(trajectory, policy)
    return float(differs.double().mean()), float(steps.double().mean())


def _upper_bound(differs: Tensor, confidence: float) -> float:
    """The lowest level that these rows certify, by bisection to 10⁻⁶ from above."""
    losses = differs.double()[:, None]
    low, high = 0.0, 1.0 - 1e-9
    while high - low > 1e-6:
        middle = (low + high) / 2
        passed = float(p_values(losses, middle, _BOUND)) <= 1.0 - confidence
        low, high = (low, middle) if passed else (middle, high)
    return high


def _report(
    model: FinetunedClassifier,
    done: RiskControl,
    certifying: Trajectory,
    level: float,
    confidence: float,
    given: int,
    counts: tuple[int, int, int],
) -> ExitReport:
    fitted, chosen_on, rows = counts
    differs, steps = _losses(certifying, done.policy)
    return ExitReport(
        statement=_statement(done, level, confidence, len(certifying)),
        met=done.met,
        policy=repr(LastStep() if not done.met else done.policy.policy),
        rows=given,
        duplicates=given - rows,
        fitted=fitted,
        chosen_on=chosen_on,
        certified_on=len(certifying),
        disagreement=float(differs.double().mean()),
        mean_exit_step=float(steps.double().mean()),
        num_steps=model.num_steps,
        level=level if done.met else math.nan,
        confidence=confidence,
        best_level=1.0 - (1.0 - confidence) ** (1.0 / len(certifying)),
    )


def _statement(done: RiskControl, level: float, confidence: float, rows: int) -> str:
    if done.met:
        return (
            f"Answers as the plain model does on all but {100 * level:.3g}% of inputs like these, with "
            f"{100 * confidence:g}% confidence (certified on {rows} inputs that chose nothing)."
        )
    return f"No exits: {done.statement}."
