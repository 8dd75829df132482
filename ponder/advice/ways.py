"""The ways to answer: objects that answer texts, with their promises, made by `Race`.

The texts are split in three: `Race` teaches heads and a student on the first part, and `promises`
chooses and certifies on the other two, from the recorded answers alone. `timing` times the ways
that are ready.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ponder._utils.rows import class_numbers, content_ids
from ponder._utils.seeds import uniform
from ponder.advice import timing
from ponder.advice.promises import COSTS, WAYS, Promise, Recorded, promise
from ponder.cascade.cascade import Cascade
from ponder.cascade.stages import classes_of, stage_of
from ponder.cascade.student import Embeddings, Student
from ponder.deploy import int8
from ponder.deploy.exporting import onnx
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers.exits import teach_heads
from ponder.integrations.transformers.reading import (
    PlainClassifier,
    read_classifier,
    read_fine_tuned,
)
from ponder.integrations.transformers.texts import max_positions, tokenize
from ponder.policies import ExitPolicy, FixedStep, LastStep

__all__ = ["Race", "Way"]

Progress = Callable[[str, int, int], object]
_RANGES = 200  # texts that fix the ranges of int8
_BLOCK = 512  # texts of a call
_SPARE = 0.9
"""The share of a time limit to plan for, since ways that fit are timed again with the others."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer, with its costs and promise.

    Args:
        name: Its name.
        model: An object with `predict`.
        disagreement: Share of the certifying texts whose answer differs from the model's.
        promise: The promised upper bound of the disagreement; NaN without a promise.
        accuracy: Share of the certifying texts that are answered right; NaN without labels.
        megabytes: Size of the files to deploy.
        needs_torch: Whether PyTorch has to be.
        seconds: Seconds for a text in batches of 32: median, lowest and highest of the rounds.
        alone: Seconds for a text by itself: median and 95th percentile.
        speed_up: Seconds of the model as it is ÷ these, of the same rounds: median, lowest,
            highest.
    """

    name: str
    model: Any
    disagreement: float
    promise: float
    accuracy: float
    megabytes: float
    needs_torch: bool
    seconds: tuple[float, float, float] = (math.nan,) * 3
    alone: tuple[float, float] = (math.nan,) * 2
    speed_up: tuple[float, float, float] = (math.nan,) * 3


@dataclass(frozen=True, eq=False)
class _Under:
    """A model with exits, or an export, under a policy."""

    model: Any
    policy: ExitPolicy

    @property
    def classes(self) -> Sequence[str] | None:
        return classes_of(self.model)

    @property
    def num_steps(self) -> int:
        return int(getattr(self.model, "ponder", self.model).num_steps)

    def predict(self, texts: Sequence[Any], policy: ExitPolicy | None = None) -> Any:
        return self.model.predict(texts, policy=self.policy if policy is None else policy)

    def record(self, texts: Sequence[Any]) -> Any:
        return self.model.record(texts)

    def save(self, folder: Path) -> None:
        self.model.policy = self.policy
        save = self.model.save if isinstance(self.model, OnnxModel) else self.model.save_pretrained
        save(folder)


class _Plain(_Under):
    """The encoder by itself, as it runs without exits."""

    def predict(self, texts: Sequence[Any], policy: ExitPolicy | None = None) -> Any:
        return PlainClassifier(self.model.encoder, self.model.tokenizer).predict(texts)


@dataclass(frozen=True, eq=False)
class _BlindMix:
    """A blind mix: a share of the texts, drawn by their contents alone, goes to the student."""

    student: Student
    model: _Plain
    share: float

    def predict(self, texts: Sequence[Any]) -> Any:
        drawn = self.drawn(texts)
        labels = np.empty(len(texts), dtype=object)
        easy, others = (
            [text for text, own in zip(texts, drawn, strict=True) if own == side]
            for side in (True, False)
        )
        labels[drawn] = [
            self.student.classes[n] for n in self.student.predict_proba(easy).argmax(1)
        ]
        labels[~drawn] = self.model.predict(others).labels
        return SimpleNamespace(labels=labels.tolist())

    def drawn(self, texts: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(uniform(1, content_ids(texts)) < self.share)


class Race:
    """The texts in three parts, the answers of all models to them, and the ways that are ready.

    Arguments are those of `advise`, a folder for graphs, which the ways need as long as they exist,
    and a function `progress(phase, done, total)`.
    """

    def __init__(
        self,
        source: str,
        texts: Sequence[Any],
        labels: Sequence[Any] | None,
        folder: Path,
        progress: Progress,
        *,
        level: float,
        confidence: float,
        within: float | None,
        deep: bool,
        seed: int,
    ) -> None:
        self.level = level
        self.within = within
        self.deep = deep
        self.seed = seed
        self.folder = folder
        # All promises hold at once: each way has a share of the error probability.
        self.confidence = 1.0 - (1.0 - confidence) / (len(WAYS) + deep)
        self.progress = progress
        self.model = read_fine_tuned(source)
        self.names = classes_of(self.model) or ()
        self.size = _megabytes(self.model.encoder)
        encoded = tokenize(self.model.tokenizer, texts, max_positions(self.model.encoder))
        self.cut = encoded.truncated
        self.lengths = np.array([len(row["input_ids"]) for row in encoded.rows])
        numbers = None if labels is None else np.array(class_numbers(labels, self.names))
        self.sides = teach_heads(self.model, encoded.rows, seed=seed, progress=progress)
        self.rows = [encoded.rows[n] for n in self.sides.places[0]]
        runs = (self.sides.choosing, self.sides.certifying)
        self.seen = Recorded(
            np.concatenate([np.asarray(run.row_ids) for run in runs]),
            np.concatenate([np.asarray(run.outputs) for run in runs]),
            seed=seed,
            weights=self.sides.certifying.weights,
        )
        rest = np.concatenate(self.sides.places[1:])
        own = self.seen.sides[1]
        self.certifying = rest[own]
        self.teach = [texts[n] for n in self.sides.places[0]]
        self.rest = [texts[n] for n in rest]
        self.check = [texts[n] for n in self.certifying]
        self.answers = self.seen.exits[own, -1].argmax(-1)
        self.labels = None if numbers is None else numbers[self.certifying]
        self.made: dict[str, Promise] = {}
        self.found: list[Way] = []
        self.stopped = False
        self.student: Student | None = None

    def run(self) -> None:
        """Make every way in turn, and time them; after an interrupt, those that are ready count."""
        try:
            self._make()
            self._time()
        except KeyboardInterrupt:
            self.stopped = True
            if not self.found:
                raise

    def _make(self) -> None:
        self.model.policy = LastStep()
        plain = _Plain(self.model, LastStep())
        as_it_is = Promise(LastStep(), True, self.answers, np.zeros(len(self.answers)))
        self._add("as it is", plain, as_it_is, self.size, promised=0.0)
        self.student = self._taught_student()
        self._ways(WAYS[:4], self.model, plain, self.size)
        if self.student is not None:
            self._blind_mix(plain, self.student)
        self._int8()
        if self.deep:
            self._half()

    def _time(self) -> None:
        """Time all ways in turn, round by round."""
        models = [way.model for way in self.found]
        for number, all_seconds in enumerate(timing.rounds(models, self._sample()), 1):
            self.found = [
                replace(way, seconds=one.batches, alone=one.alone, speed_up=one.speed_up)
                for way, one in zip(self.found, all_seconds, strict=True)
            ]
            self.progress("timing", number, timing.ROUNDS)

    def relative_cost(
        self, name: str, texts: int | None = None, level: float | None = None
    ) -> float:
        """Return the mean relative cost of a way, with fewer texts or another level."""
        some = np.random.default_rng(self.seed).permutation(len(self.seen.ids))[:texts]
        seen = self.seen if texts is None else self.seen.taken(some)
        made = promise(seen, name, level or self.level, self.confidence)
        student = "cascade" in name
        steps = self.seen.exits.shape[1] if name.endswith("exits") else 1
        return float(np.minimum((made.depth - student) / steps, 1.0).mean()) if made.met else 1.0

    def changed(self, name: str) -> tuple[tuple[str, str, str], ...]:
        """Return certifying texts whose answer a way changes, with both answers; 50 at most."""
        rows = zip(self.check, self.answers, self.made[name].answers, strict=True)
        found = [
            (text, self.names[now], self.names[then]) for text, now, then in rows if now != then
        ]
        return tuple(
            (text if isinstance(text, str) else " ‖ ".join(text), *both)
            for text, *both in found[:50]
        )

    def _add(
        self, name: str, model: Any, made: Promise, size: float, promised: float | None = None
    ) -> None:
        right = math.nan if self.labels is None else float((made.answers == self.labels).mean())
        promised = (self.level if made.met else math.nan) if promised is None else promised
        other = float((made.answers != self.answers).mean())
        self.made[name] = made
        self.found.append(
            Way(name, model, other, promised, right, size, needs_torch=not name.startswith("int8"))
        )

    def _taught_student(self) -> Student | None:
        """Teach a student the answers that the model gave; a model of one answer needs none."""
        answers = np.asarray(self.sides.taught.outputs)[:, -1].argmax(-1)
        if len(set(answers.tolist())) < 2 or not isinstance(self.teach[0], str):
            return None
        self.progress("student", 0, 1)
        named = [self.names[n] for n in answers]
        embeddings = Embeddings.of(self.model)
        student = Student.fit(self.teach, named, seed=self.seed, embeddings=embeddings)
        self.seen = replace(self.seen, student=stage_of(student).outputs(self.rest, self.names))
        self.progress("student", 1, 1)
        return student

    def _ways(self, names: Sequence[str], model: Any, whole: Any, size: float) -> None:
        """Add the ways of a model: with exits, behind the student, and both."""
        exits = whole
        for name in names:
            behind = exits if name.endswith("exits") else whole
            if "cascade" not in name:
                made = promise(self.seen, name, self.level, self.confidence)
                exits = _Under(model, made.policy)
                self._add(name, exits, made, size)
            elif self.student is not None and (behind is whole or stage_of(behind).num_steps > 1):
                made = promise(self.seen, name, self.level, self.confidence)
                cascade = Cascade(
                    [self.student, behind], COSTS, policy=made.policy, classes=self.names
                )
                self._add(name, cascade, made, size + self.student.megabytes)

    def _blind_mix(self, plain: _Plain, student: Student) -> None:
        assert self.seen.student is not None
        taught = self.seen.student[self.seen.sides[1]].argmax(-1)
        mix = _BlindMix(
            student, plain, min(1.0, self.level / max(float((taught != self.answers).mean()), 1e-9))
        )
        drawn = mix.drawn(self.check)
        made = Promise(LastStep(), False, np.where(drawn, taught, self.answers), drawn * 1.0)
        self._add("blind mix", mix, made, self.size + student.megabytes)

    def _int8(self) -> None:
        """Quantise the model, record its answers, and add its ways."""
        choose, check = self.seen.sides
        self.progress("int8", 0, len(self.rest))
        full = onnx(self.model, self.folder / "fp32")
        texts = [self.rest[n] for n in choose]
        most = int8.most_moved(len(check), self.level, self.confidence)
        answers = self.seen.exits[choose, -1].argmax(-1)
        threads = torch.get_num_threads()
        eight = int8.choose(full, self.teach[:_RANGES], texts, answers, most, threads)
        outputs = np.zeros_like(self.seen.exits)
        for start in range(0, len(self.rest), _BLOCK):
            block = self.rest[start : start + _BLOCK]
            outputs[start : start + len(block)] = eight.record(block).outputs
            self.progress("int8", start + len(block), len(self.rest))
        self.seen = replace(self.seen, int8=outputs)
        size = sum(path.stat().st_size for path in eight.folder.iterdir()) / 1e6
        self._ways(WAYS[4:], eight, _Under(eight, LastStep()), size)
        if self.within is not None:
            self._step_within(self.within, eight, size)

    def _step_within(self, seconds: float, model: Any, size: float) -> None:
        """Add the deepest fixed step whose 95th percentile for single texts is within a time."""
        last = self.seen.exits.shape[1]
        texts = self._sample()[: 4 * timing.ALONE]
        for step in range(last, 0, -1):
            cut = _Under(model, FixedStep(step))
            if (
                np.quantile([timing.seconds_of(cut, [text]) for text in texts], 0.95)
                > _SPARE * seconds
            ):
                continue
            if step < last:
                assert self.seen.int8 is not None
                answers = self.seen.int8[self.seen.sides[1], step - 1].argmax(-1)
                made = Promise(cut.policy, False, answers, np.full(len(answers), step))
                self._add(f"int8, step {step}", cut, made, size)
            return

    def _half(self) -> None:
        """A model of the first half of the layers, which learned the answers of the whole."""
        encoder = copy.deepcopy(self.model.encoder)
        count = encoder.config.num_hidden_layers
        lists = [
            part
            for part in encoder.modules()
            if isinstance(part, nn.ModuleList) and len(part) == count
        ]
        if not lists or count < 2:
            return
        del lists[0][count // 2 :]
        encoder.config.num_hidden_layers = count // 2
        _teach(
            encoder,
            self.model,
            self.rows,
            torch.as_tensor(self.sides.taught.outputs[:, -1]),
            self.progress,
        )
        PlainClassifier(encoder, self.model.tokenizer).save_pretrained(self.folder / "half")
        half = read_classifier(self.folder / "half")
        outputs = _Plain(half, LastStep()).predict(self.rest).outputs.numpy()
        made = promise(
            replace(self.seen, int8=outputs[:, None]), "int8", self.level, self.confidence
        )
        self._add("half the layers", _Plain(half, made.policy), made, _megabytes(half.encoder))

    def _sample(self) -> list[Any]:
        """Return certifying texts to be timed, with the lengths and depths of all texts."""
        depths = [made.depth for made in self.made.values()]
        columns = np.stack([self.lengths[self.certifying], *depths], axis=1)
        return [self.check[n] for n in timing.sample(columns, self.seed).tolist()]


def _teach(encoder: Any, whole: Any, rows: Sequence[Any], target: Any, progress: Progress) -> None:
    """Teach a cut encoder the answers of the whole, in three epochs of AdamW on the KL."""
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-4, weight_decay=0.01)
    batches = [
        b
        for _ in range(3)
        for b in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(32)
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1.0 - done / len(batches))
    encoder.requires_grad_(True).train()
    for number, places in enumerate(batches, 1):
        batch = whole.tokenizer.pad([rows[n] for n in places.tolist()], return_tensors="pt")
        logits = encoder(
            **{name: batch[name] for name in batch if name in whole.adapter.inputs}
        ).logits
        whole.ponder.task.distillation_losses(logits, target[places], 1.0, None).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        progress("half the layers", number, len(batches))
    encoder.eval()


def _megabytes(model: nn.Module) -> float:
    return sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6
