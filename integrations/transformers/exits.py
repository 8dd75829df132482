"""`fit_exits`: early heads, a policy and its certificate for a fine-tuned classifier, from inputs without labels.

The inputs are split in three, by what they are, so that a repeated one is never on two sides: the heads learn on the
first part to answer as full depth of the plain model does, the second chooses a policy (and, for a speed-up, its
threshold), and the third certifies how often answers differ from full depth. The frozen model runs once over every
input; what its early heads read is kept in memory, or in a file that is mapped into it.
"""

from __future__ import annotations

import hashlib
import math
import operator
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ponder._utils.progress import progress_bar
from ponder._utils.rounding import rounded_up
from ponder._utils.validation import check_int, check_real, check_share, check_type
from ponder.calibration.agreement import (
    AgreementControl,
    AgreementCurve,
    agreement_curves,
    control_agreement,
)
from ponder.calibration.reference import differences, reference_labels
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers.deep_exits import answers_of, check_finite, train_encoder
from ponder.integrations.transformers.finetuned import SPLIT, FinetunedClassifier
from ponder.parts.tasks.distilling import divergence
from ponder.policies import ExitPolicy, LastStep
from ponder.trajectory import Trajectory

__all__ = ["ExitReport", "Split", "distinct", "fit_exits", "split_rows"]

_FEWEST = 50
_SHARES = (0.4, 0.2)  # to learn and to choose; the rest certifies
_CHUNK = 512  # rows that are recorded at once
_INPUTS = ("input_ids", "token_type_ids", "pixel_values", "input_values", "input_features")
_DATASET = re.compile(r"dataset\[(\d+)\]")
_MEMORY = 2.0**30  # bytes of features that are kept in memory

Encoding = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class ExitReport:
    """What fitting came to.

    Args:
        statement: What is promised, or why nothing could be, in a sentence.
        met: Whether a promise could be given for exits; else every row runs to the last step.
        policy: The policy, as text.
        kind: Name of the kind of policy that was chosen, as in `curves`.
        threshold: Its value; NaN where nothing is promised.
        rows: Inputs that were given.
        duplicates: Inputs that repeat another one; each is counted once.
        fitted: Distinct inputs that the heads learned on.
        chosen_on: Distinct inputs that chose the policy.
        certified_on: Distinct inputs that certify.
        disagreement: Share of the certifying inputs whose answer is not that of the plain model.
        disagreement_as_given: The same where each counts as often as it was given.
        mean_exit_step: Mean exit step of the certifying inputs.
        exit_shares: The share of the certifying inputs that leaves at each step, `(steps,)`.
        num_steps: N.
        level: Upper bound of the disagreement that is promised; NaN where nothing is.
        confidence: Probability with which the promise holds, in (0, 1).
        best_level: The lowest level that so many rows could certify, were there no disagreement at all.
        moved: Share of the certifying inputs whose answer at full depth is not that of the plain model: 0 where only
            early heads learned.
        plain_accuracy: Accuracy of the plain model on the certifying inputs that have a label; NaN where none has.
        exit_accuracy: Accuracy of the exits on the same.
        curves: What other kinds and thresholds give on the certifying inputs; not in `to_dict`.

    Example:
        >>> model = FinetunedClassifier.from_finetuned(BertForSequenceClassification(config))
        >>> encodings = [{"input_ids": [2 + n % 38, 2 + n // 38]} for n in range(300)]
        >>> report = fit_exits(model, encodings, speed_up=2.0, epochs=1)
        >>> report.speed_up >= 2.0, report.certified_on, report.moved
        (True, 130, 0.0)
    """

    statement: str
    met: bool
    policy: str
    kind: str
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
    moved: float
    plain_accuracy: float
    exit_accuracy: float
    curves: tuple[AgreementCurve, ...] = field(repr=False)
    disagreement_as_given: float = math.nan

    @property
    def speed_up(self) -> float:
        """N ÷ mean exit step: a speed-up in steps, which leaves out embeddings and heads."""
        return self.num_steps / self.mean_exit_step

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; NaN becomes None."""
        told = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "curves"}
        told["exit_shares"] = list(self.exit_shares)
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in told.items()}


@dataclass(frozen=True, eq=False)
class Split:
    """The places of rows on each side, `(rows,)` long each.

    Args:
        learn: Those that the heads learn on.
        choose: Those that choose the policy.
        certify: Those that certify.
    """

    learn: Tensor
    choose: Tensor
    certify: Tensor


def fit_exits(
    model: FinetunedClassifier,
    encodings: Iterable[Encoding],
    *,
    disagreement: float = 0.01,
    confidence: float = 0.95,
    speed_up: float | None = None,
    epochs: int = 40,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = False,
    encoder_epochs: int = 3,
    encoder_lr: float = 5e-5,
    memory: float = _MEMORY,
) -> ExitReport:
    """Train early heads to agree with full depth, choose a policy, and certify it; the model gets both.

    The classifier itself changes only where it was made with ``recipe="exits-deep"``. The promise is about inputs like
    these, drawn as these were, and about the answers of the plain model at full depth.

    Args:
        model: The classifier.
        encodings: What a tokenizer or a processor gives for each input: a dict with the main input, without padding.
            Where they have labels (`labels` or `label`), these tell the accuracy, and teach an encoder that learns.
        disagreement: How often answers may differ from full depth, in (0, 1).
        confidence: Probability with which the promise holds, in (0, 1).
        speed_up: Aim at this many times fewer steps instead, > 1; the promise is then about what that costs.
        epochs: Passes over the features at most; training stops early by the loss on a held-out tenth.
        seed: Seed of the split and of the order of training.
        batch_size: Rows of a batch at most, while the model runs.
        progress: Show progress bars.
        encoder_epochs: Passes of an encoder that learns too.
        encoder_lr: Its learning rate at the start.
        memory: Bytes of features that are kept in memory; beyond, they are in a temporary file.

    Raises:
        ArgumentError: Too few distinct inputs to split, a number out of range, a model that answers with spans, or one
            that answers NaN to all that would teach.
        NonFiniteError: A loss or gradient that is NaN or infinite.

    Example:
        >>> model = FinetunedClassifier.from_finetuned(BertForSequenceClassification(config))
        >>> encodings = [{"input_ids": torch.randint(2, 40, (6,)).tolist()} for _ in range(400)]
        >>> report = fit_exits(model, encodings, disagreement=0.2, epochs=2)
        >>> report.rows, report.num_steps, model.policy.risk
        (400, 4, 'disagreement')
    """
    check_share("disagreement", disagreement)
    check_share("confidence", confidence)
    check_int("epochs", epochs)
    check_int("encoder_epochs", encoder_epochs)
    if speed_up is not None:
        check_real("speed_up", speed_up, 1.0, float(model.num_steps), open_low=True)
    seed = operator.index(seed) if hasattr(seed, "__index__") else seed
    check_int("seed", seed, None)
    check_type("model", model, FinetunedClassifier, remedy="Make one: FinetunedClassifier.from_finetuned(classifier).")
    if model.learned_by is not None and not model.deep and (seed, SPLIT) != (model.learned_by, model.split):
        raise ArgumentError(
            "seed",
            expected=f"{model.learned_by}: it tells from which inputs the encoder of this model has learned",
            got=seed,
            remedy="Pass that seed, or start from the classifier as it was before: from_finetuned(…).",
        )
    given = _encodings(model, encodings)
    rows, split = _checked(model, given, seed)
    _start_again(model)
    model.eval()
    first = {id(row): place for place, row in reversed(list(enumerate(given)))}
    numbers = [first[id(row)] for row in rows]
    answers: Tensor | None = None
    if model.deep:
        answers, mask = answers_of(model, rows, batch_size)
        split = _with_answers(model, split, answers, mask, numbers)
        taught = [rows[place] for place in split.learn.tolist()]
        model.seed, model.split, model.learned_by = seed, SPLIT, seed  # of what is broken off too
        train_encoder(model, taught, answers[split.learn], encoder_epochs, encoder_lr, seed, batch_size, progress)
    with tempfile.TemporaryDirectory(prefix="ponder-") as folder, torch.no_grad():
        seen = _recorded(model, rows, numbers, batch_size, progress, memory, Path(folder))
        if answers is None:
            answers = seen.outputs[:, -1]
            split = _with_answers(model, split, answers, seen.mask, numbers)
        model.seed, model.split = seed, SPLIT
        if model.learned_by is None:
            model.learned = _as_tensor(_numbers([rows[place] for place in split.learn.tolist()], seed, SPLIT))
        _train(model, seen, answers, split.learn, epochs, torch.Generator().manual_seed(seed), progress)
        parts = [_with_heads(model, seen, answers, part) for part in (split.choose, split.certify)]
    choosing, certifying = parts
    done = control_agreement(
        choosing,
        certifying,
        level=disagreement,
        confidence=confidence,
        speed_up=speed_up,
        own_full_depth=not model.deep,
    )
    model.policy = done.found.policy
    report = _report(model, done, certifying, seen.labels, split, confidence, _counts(given))
    if report.met and report.disagreement_as_given > report.level:
        warnings.warn(
            f"{100 * report.disagreement_as_given:.3g}% of the certifying inputs are answered otherwise where each "
            f"counts as often as it was given: some that repeat often are. The promise, "
            f"{rounded_up(100 * report.level, 3)}%, is about distinct inputs.",
            stacklevel=2,
        )
    return report


def _encodings(model: FinetunedClassifier, encodings: Iterable[Encoding]) -> list[Encoding]:
    """The encodings as a list, each a dict of one input; a batch in the place of the list is refused."""
    name, given = model.main_input_name, [] if isinstance(encodings, Mapping) else list(encodings)
    wrong = next((row for row in given if not isinstance(row, Mapping) or row.get(name) is None), None)
    if isinstance(encodings, Mapping) or wrong is not None:
        kind = type(encodings if isinstance(encodings, Mapping) else wrong).__name__
        raise ArgumentTypeError(
            "encodings",
            expected=f"a sequence of dicts, each with {name!r} of one input",
            got=f"a {kind}" if isinstance(encodings, Mapping) else f"a {kind} in it",
            remedy="Pass [tokenizer(text) for text in texts], or a data set with such rows.",
        )
    if name == "input_ids" and given and torch.as_tensor(given[0][name]).dim() != 1:
        raise ArgumentError(
            "encodings",
            expected="one input in each, its ids (length,)",
            got=f"ids of shape {tuple(torch.as_tensor(given[0][name]).shape)}",
            remedy="Leave out return_tensors, or pass {name: tensor[0] for name, tensor in encoding.items()}.",
        )
    return given


def _start_again(model: FinetunedClassifier) -> None:
    """Forget what was fitted before: what earlier parts of another split have taught must not be certified on them."""
    model.policy, model.seed, model.columns, model.learned = LastStep(), None, (), None
    if model.deep:
        model.classifier.load_state_dict(model.plain.state_dict())
    for head in list(model.heads.heads)[:-1]:
        head.reset()  # type: ignore[operator]


def distinct(encodings: Sequence[Encoding], version: int = SPLIT) -> list[Encoding]:
    """The encodings without those that repeat an earlier one, in their order.

    Args:
        encodings: Encodings of inputs.
        version: What makes two the same: that of `FinetunedClassifier.split`.
    """
    found: dict[bytes, Encoding] = {}
    for row in encodings:
        found.setdefault(_content(row, version), row)
    return list(found.values())


def _counts(encodings: Sequence[Encoding]) -> Tensor:
    """How often each of the distinct encodings was given, in the order of `distinct`."""
    return torch.tensor(list(Counter(_content(row, SPLIT) for row in encodings).values()))


def split_rows(rows: Sequence[Encoding], seed: int, version: int = SPLIT) -> Split:
    """Which side each row is on: a matter of the row and the seed alone, so the same in whatever file it stands.

    Args:
        rows: Distinct encodings.
        seed: Another one splits otherwise.
        version: What of a row tells; that of `FinetunedClassifier.split`.
    """
    sides: tuple[list[int], list[int], list[int]] = ([], [], [])
    for place, number in enumerate(_numbers(rows, seed, version)):
        share = number / 2.0**64
        sides[0 if share < _SHARES[0] else 1 if share < sum(_SHARES) else 2].append(place)
    return Split(*(torch.tensor(side, dtype=torch.long) for side in sides))


def are_known(model: FinetunedClassifier, rows: Sequence[Encoding]) -> Tensor:
    """Which of the rows the heads learned from, `(rows,)` bool.

    They are known by the numbers that the model keeps of them. Where it keeps none, since its encoder learned too or it
    was saved by an earlier version, all rows count that the split would let it learn from, whether it saw them or not.

    Args:
        model: A classifier with exits.
        rows: Distinct encodings.
    """
    if model.seed is None:
        return torch.zeros(len(rows), dtype=torch.bool)
    if model.learned is not None:
        return torch.isin(_as_tensor(_numbers(rows, model.seed, model.split)), model.learned)
    known = torch.zeros(len(rows), dtype=torch.bool)
    known[split_rows(rows, model.seed, model.split).learn] = True
    return known


def _numbers(rows: Sequence[Encoding], seed: int, version: int) -> list[int]:
    """A number below 2^64 for each row, by which it is split, and known again."""
    salt = b"%d:" % seed
    return [int.from_bytes(hashlib.sha256(salt + _content(row, version)).digest()[:8], "big") for row in rows]


def _as_tensor(numbers: Sequence[int]) -> Tensor:
    """Numbers below 2^64 as the signed ones that tensors have, `(rows,)`."""
    return torch.tensor([number - 2**63 for number in numbers], dtype=torch.long)


def _content(row: Encoding, version: int) -> bytes:
    """What makes two inputs the same: what the model is given, and no padding, whatever the tokenizer wrote of it.

    Version 1 (0.1 and earlier commits of 0.2) took padding and token types of zeros for a part of the input.
    """
    names = sorted(name for name in row if name in _INPUTS and row[name] is not None)
    if version == 1:
        return b"|".join(name.encode() + torch.as_tensor(row[name]).numpy().tobytes() for name in names)
    mask = row.get("attention_mask")
    real = None if mask is None else torch.as_tensor(mask).bool()
    told = []
    for name in names:
        values = torch.as_tensor(row[name])
        if real is not None and real.dim() == 1 and values.dim() == 1 and len(values) == len(real):
            values = values[real]
        if name != "token_type_ids" or bool(values.any()):
            values = values.float() if values.is_floating_point() else values.long()
            told.append(name.encode() + values.contiguous().numpy().tobytes())
    return b"|".join(told)


def _checked(model: FinetunedClassifier, given: list[Encoding], seed: int) -> tuple[list[Encoding], Split]:
    if not model.kind.task.classes:
        raise ArgumentError(
            "model",
            expected="a classifier of texts, tokens, images or audio",
            got=f"{type(model.classifier).__name__}, whose answers are positions",
            remedy="Give it a policy of your own, policies.FixedStep(…) or policies.Patience(…), and measure it.",
        )
    rows = distinct(given)
    split = split_rows(rows, seed)
    if len(rows) < _FEWEST or min(map(len, (split.learn, split.choose, split.certify))) < 2:
        raise ArgumentError(
            "encodings",
            expected=f"at least {_FEWEST} distinct inputs (some 1,000 certify 1%)",
            got=f"{len(rows)} of {len(given)}",
            remedy="Pass more texts like those that the model will be asked about; they need no labels.",
        )
    return rows, split


def _with_answers(
    model: FinetunedClassifier, split: Split, answers: Tensor, mask: Tensor | None, numbers: Sequence[int]
) -> Split:
    """The split without the rows that would teach and have no answer, NaN, of the plain model; how many is told."""
    there = model.kind.task.answered(answers[split.learn], None if mask is None else mask[split.learn])
    left_out = split.learn[~there].tolist()
    if not left_out:
        return split
    told = f"{len(left_out)} of {len(there)} inputs that would teach have no answer of the plain model (NaN)"
    remedy = "Look for NaN in the weights of the model, and for what these inputs have in common."
    if int(there.sum()) < 2:
        raise ArgumentError("encodings", expected="inputs to which the model has an answer", got=told, remedy=remedy)
    shown = ", ".join(f"encodings[{numbers[place]}]" for place in left_out[:3])
    warnings.warn(
        f"{told}, and are left out: {shown}{', …' if len(left_out) > 3 else ''}. {remedy}",
        stacklevel=3,
    )
    return replace(split, learn=split.learn[there])


def _recorded(
    model: FinetunedClassifier,
    rows: list[Encoding],
    numbers: Sequence[int],
    batch_size: int,
    progress: bool,
    memory: float,
    folder: Path,
) -> Trajectory:
    """Every step of every row, with what the early heads read; in a file in `folder` where that is more than `memory`.

    Rows are run by length, a chunk at a time; `numbers` says which of the caller's encodings each is.
    """
    name = model.main_input_name
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place][name]))
    store: dict[str, Tensor] = {}
    first: Trajectory | None = None
    with progress_bar("run the model", len(rows), shown=progress) as advance:
        for start in range(0, len(order), _CHUNK):
            places = order[start : start + _CHUNK]
            try:
                seen = model.record([rows[place] for place in places], keep_features=True, batch_size=batch_size)
            except ArgumentError as error:
                named = _DATASET.fullmatch(error.argument)
                if named is None:
                    raise
                number = numbers[places[int(named[1])]]
                raise ArgumentError(
                    f"encodings[{number}]", expected=error.expected, got=error.got, remedy=error.remedy
                ) from error
            first = first or seen
            if (seen.labels is None) != (first.labels is None):
                raise ArgumentError(
                    "encodings",
                    expected="labels with all encodings, or with none: they are counted, and not needed",
                    got="some with a label and some without",
                    remedy="Leave the labels out.",
                )
            for key, part in seen.tensors().items():
                if key == "row_ids":
                    continue
                if key not in store:  # the longest rows come first, so none is longer than these
                    store[key] = _room(part, len(rows), memory if key == "features" else math.inf, folder / key)
                index = torch.tensor(places)
                if part.dim() > 1 and part.shape[1:] != store[key].shape[1:]:
                    wide = store[key].new_zeros(len(part), *store[key].shape[1:])
                    wide[tuple(slice(size) for size in part.shape)] = part
                    part = wide
                store[key][index] = part
            advance(len(places))
    assert first is not None
    return replace(first, **store, row_ids=torch.arange(len(rows)))  # type: ignore[arg-type]


def _room(like: Tensor, rows: int, memory: float, path: Path) -> Tensor:
    """Zeros for so many rows, in memory or in a file that is mapped into it."""
    shape = (rows, *like.shape[1:])
    size = math.prod(shape)
    if size * like.element_size() <= memory:
        return like.new_zeros(shape)
    return torch.from_file(str(path), shared=True, size=size, dtype=like.dtype).view(shape)


def _train(
    model: FinetunedClassifier,
    seen: Trajectory,
    answers: Tensor,
    learn: Tensor,
    epochs: int,
    generator: torch.Generator,
    progress: bool,
) -> None:
    """Teach each early head the answers of full depth, by the KL divergence from them."""
    assert seen.features is not None
    target = answers[learn].float()
    mask = None if seen.mask is None or not seen.meaning.per_token else seen.mask[learn]
    weights = next(model.heads.parameters())
    with progress_bar("train the heads", model.num_steps - 1, shown=progress) as advance, torch.enable_grad():
        for step, head in enumerate(list(model.heads.heads)[:-1]):
            own = seen.features[learn, step].to(weights.device, weights.dtype)
            own = own.clamp_(min=torch.finfo(own.dtype).min)  # the gradient of a scale is NaN where it scales −∞
            _train_one(head, own, target.to(weights.device), mask, epochs, generator)
            advance(1)


def _train_one(
    head: nn.Module, features: Tensor, target: Tensor, mask: Tensor | None, epochs: int, generator: torch.Generator
) -> None:
    """AdamW until the loss on the held-out rows has not fallen for four epochs; the best weights are kept.

    The held-out tenth is drawn: in a file that is sorted by class, the first one would be of a few classes, which the
    head would never be taught.
    """
    order, count = torch.randperm(len(target), generator=generator), max(len(target) // 10, 1)
    held, taught = order[:count], order[count:]

    def loss(rows: Tensor) -> Tensor:
        return _divergence(head(features[rows]), target[rows], None if mask is None else mask[rows])

    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3, weight_decay=0.05)
    best, kept, since = math.inf, deepcopy(head.state_dict()), 0
    for _ in range(epochs + 1):
        with torch.no_grad():
            of_held = loss(held)
        check_finite("early head", of_held, torch.zeros(()))
        now = float(of_held)
        if now < best:
            best, kept, since = now, deepcopy(head.state_dict()), 0
        elif (since := since + 1) == 4:
            break
        for batch in taught[torch.randperm(len(taught), generator=generator)].split(64):
            optimiser.zero_grad()
            of_batch = loss(batch)
            of_batch.backward()
            check_finite("early head", of_batch.detach(), nn.utils.clip_grad_norm_(head.parameters(), math.inf))
            optimiser.step()
    head.load_state_dict(kept)


def _divergence(logits: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """KL(target ‖ logits), both logits, a mean over rows, or over the positions of `mask`."""
    each = divergence(logits, target, 1.0, -1)
    return each.mean() if mask is None else each[mask.to(each.device)].mean()


def _with_heads(model: FinetunedClassifier, seen: Trajectory, answers: Tensor, part: Tensor) -> Trajectory:
    """Some rows of a recording with what the heads answer now; their labels are what the plain model predicts."""
    assert seen.features is not None
    weights = next(model.heads.parameters())
    outputs, mask = seen.outputs[part].clone(), None if seen.mask is None else seen.mask[part]
    for step in range(1, model.num_steps):
        for places, rows in zip(torch.arange(len(part)).split(_CHUNK), part.split(_CHUNK), strict=True):
            features = seen.features[rows, step - 1].to(weights.device, weights.dtype)
            outputs[places, step - 1] = model.heads(features, step).cpu().to(outputs.dtype)
    return replace(
        seen,
        outputs=outputs,
        features=None,
        labels=reference_labels(seen.meaning, answers[part], mask),
        row_ids=seen.row_ids[part],
        mask=mask,
        weights=model.ponder.weights_digest(),  # the heads have learned since
    )


def _report(
    model: FinetunedClassifier,
    done: AgreementControl,
    certifying: Trajectory,
    labels: Tensor | None,
    split: Split,
    confidence: float,
    counts: Tensor,
) -> ExitReport:
    given, duplicates = int(counts.sum()), int(counts.sum()) - len(counts)
    often = counts[split.certify].double()
    exit_step, own_full_depth = certifying.replay(done.found.policy).exit_step.cpu(), not model.deep
    differs = differences(certifying, own_full_depth)[torch.arange(done.rows), exit_step - 1]
    found, plain, own = done.found, math.nan, math.nan
    if labels is not None:
        plain, own = _accuracies(certifying, labels[split.certify], found.policy)
    threshold = found.policy.threshold_value
    return ExitReport(
        statement=done.statement("the plain model does", f"{'distinct ' if duplicates else ''}inputs like these"),
        met=found.met,
        policy=repr(found.policy.policy),
        kind=done.kind,
        threshold=math.nan if threshold is None else threshold,
        rows=given,
        duplicates=duplicates,
        fitted=len(split.learn),
        chosen_on=len(split.choose),
        certified_on=done.rows,
        disagreement=done.disagreement,
        mean_exit_step=done.mean_exit_step,
        exit_shares=done.exit_shares,
        num_steps=model.num_steps,
        level=done.level if found.met else math.nan,
        confidence=confidence,
        best_level=done.best_level,
        moved=done.moved,
        plain_accuracy=plain,
        exit_accuracy=own,
        curves=agreement_curves(certifying, confidence, done.kind, own_full_depth=own_full_depth),
        disagreement_as_given=float((differs.double() * often).sum() / often.sum()),
    )


def _accuracies(certifying: Trajectory, labels: Tensor, policy: ExitPolicy) -> tuple[float, float]:
    """The accuracies of the plain model and of the exits over the rows that have a label; NaN where none has."""
    told = replace(certifying, labels=labels)
    labelled = certifying.meaning.labelled(told.counted_labels())
    rows = torch.arange(len(labels)) if labelled is None else labelled.nonzero().flatten()
    if not len(rows):
        return math.nan, math.nan
    right, steps = told.map(lambda tensor: tensor[rows]).correct(), certifying.replay(policy).exit_step[rows]
    own = right[torch.arange(len(rows)), steps - 1]
    return float(_right_answers(certifying, labels)[rows].double().mean()), float(own.double().mean())


def _right_answers(certifying: Trajectory, labels: Tensor) -> Tensor:
    """Whether the plain model's predictions, the labels of `certifying`, are right, `(batch,)` bool."""
    assert certifying.labels is not None
    right = (certifying.labels == labels) | (labels == -100)
    return right if right.dim() == 1 else right.flatten(1).all(1)
