"""The race: make every way of one model, with its promise, and time them all.

1. `Material` gives the texts in three parts, and the recorded answers of the model.
2. Each way is chosen and certified on these (`ponder.advice.promises`). A student and an int8
   export are made on the way, and their answers are recorded too.
3. `ponder.advice.timing` times the ways in turn.

An interrupt stops the race; the ways that are ready are compared then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ponder._utils.rows import Text, one_line
from ponder.advice import timing
from ponder.advice.material import Material
from ponder.advice.promises import COSTS, Promise, promise
from ponder.advice.specs import AS_IT_IS, BLIND_MIX, WAYS, Depth, WaySpec
from ponder.advice.ways import BlindMix, ModelWithExits, PlainModel, PolicyModel, Way, WayModel
from ponder.calibration.records import Floats, Ints
from ponder.cascade.cascade import Cascade
from ponder.cascade.stages import stage_of
from ponder.cascade.student import Embeddings, Student
from ponder.deploy import int8
from ponder.deploy.exporting import onnx
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers.exits import Progress
from ponder.policies import FixedStep, LastStep

__all__ = ["Race", "Settings"]

_RANGES = 200
"""Texts that fix the ranges of int8."""
_BLOCK = 512
"""Texts of a call."""
_SPARE = 0.9
"""The share of a time limit to use, since a step that fits is timed again with the others."""


@dataclass(frozen=True)
class Settings:
    """Settings of a race; see `advise`.

    Args:
        level: Upper limit of the disagreement.
        confidence: Probability with which all promises hold together.
        within: Limit of the seconds of a single text, or None.
        seed: Seed of the samples that are timed.
    """

    level: float
    confidence: float
    within: float | None
    seed: int

    @property
    def confidence_of_each(self) -> float:
        """The confidence of one promise, by the union bound over all certified ways."""
        return 1.0 - (1.0 - self.confidence) / len(WAYS)


class Race:
    """The ways that are ready, with their promises.

    Args:
        material: The texts and the model.
        settings: The settings.
        folder: A folder for graphs, which the ways need while they are used.
        progress: Called with a phase, the number of its parts that are done, and of all.
    """

    def __init__(
        self, material: Material, settings: Settings, folder: Path, progress: Progress
    ) -> None:
        self.material = material
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.recorded = material.recorded
        """The recorded answers, to which those of student and int8 are added."""
        self.student: Student | None = None
        self.ways: list[Way] = []
        self.promises: dict[WaySpec, Promise] = {}
        """The promise of each way."""
        self.waited = 0.0
        """The share of the timing in which other processes had this one's core."""
        self.stopped = False
        """Whether an interrupt ended the race."""

    def run(self) -> None:
        """Make every way, and time them; an interrupt leaves those that are ready."""
        try:
            self._make()
            self._time()
        except KeyboardInterrupt:
            self.stopped = True
            if not self.ways:
                raise

    def _make(self) -> None:
        """Make the ways, one after the other."""
        model = self.material.model
        model.policy = LastStep()
        size = _megabytes(model.encoder)
        plain = PlainModel(model, LastStep())
        answers = self.material.answers
        as_it_is = Promise(LastStep(), True, answers, np.zeros(len(answers)))
        self._add(AS_IT_IS, plain, as_it_is, size, promised=0.0)
        self.student = self._teach_student()
        self._add_ways(model, plain, size, int8=False)
        if self.student is not None:
            self._add_blind_mix(plain, self.student, size)
        self._int8()

    def _time(self) -> None:
        """Time all ways in turn, round by round."""
        models = [way.model for way in self.ways]
        waiting = timing.Waiting()
        for number, all_seconds in enumerate(timing.rounds(models, self._sample()), 1):
            self.ways = [
                replace(way, seconds=one.batches, alone=one.alone, speed_up=one.speed_up)
                for way, one in zip(self.ways, all_seconds, strict=True)
            ]
            self.waited = waiting.share
            self.progress("timing", number, timing.ROUNDS)

    def relative_cost(
        self, way: WaySpec, texts: int | None = None, level: float | None = None
    ) -> float:
        """Return the mean share of the model's work that a way would need.

        Args:
            way: The way.
            texts: Number of texts that would choose and certify; by default all.
            level: Another level of disagreement.
        """
        recorded = self.recorded
        if texts is not None:
            order = np.random.default_rng(self.settings.seed).permutation(len(recorded.ids))
            recorded = recorded.taken(order[:texts])
        if level is None:
            level = self.settings.level
        made = promise(recorded, way, level, self.settings.confidence_of_each)
        if not made.met:
            return 1.0
        steps = 1
        if way.depth is Depth.EXITS:
            steps = self.recorded.exits.shape[1]
        stages_before = int(way.student)  # the student, which is the first step
        return float(np.minimum((made.depth - stages_before) / steps, 1.0).mean())

    def changed(self, way: WaySpec, most: int = 50) -> tuple[tuple[str, str, str], ...]:
        """Return certifying texts whose answer a way changes, with both answers."""
        classes = self.material.classes
        answers = self.material.answers
        others = self.promises[way].answers
        places = np.flatnonzero(answers != others)[:most].tolist()
        rows = []
        for place in places:
            text = one_line(self.material.certifying[place])
            rows.append((text, classes[answers[place]], classes[others[place]]))
        return tuple(rows)

    def _add(
        self,
        spec: WaySpec,
        model: WayModel,
        made: Promise,
        size: float,
        promised: float | None = None,
    ) -> None:
        """Add a way.

        Args:
            spec: What it consists of.
            model: Its model.
            made: Its policy, with the answers under it.
            size: Megabytes of the deployed files.
            promised: The promised level; by default that of the race, if it was certified.
        """
        if promised is None:
            promised = math.nan
            if made.met:
                promised = self.settings.level
        accuracy = math.nan
        if self.material.labels is not None:
            accuracy = float((made.answers == self.material.labels).mean())
        way = Way(
            spec=spec,
            model=model,
            disagreement=float((made.answers != self.material.answers).mean()),
            promise=promised,
            accuracy=accuracy,
            megabytes=size,
        )
        self.promises[spec] = made
        self.ways.append(way)

    def _teach_student(self) -> Student | None:
        """Teach a student the answers of the model; None if these are all the same, or of pairs."""
        teaching = [text for text in self.material.teaching if isinstance(text, str)]
        answers = np.asarray(self.material.taught.outputs)[:, -1].argmax(axis=-1)
        if len(set(answers.tolist())) < 2 or not teaching:
            return None
        self.progress("student", 0, 1)
        classes = self.material.classes
        student = Student.fit(
            teaching,
            [classes[n] for n in answers],
            seed=self.settings.seed,
            embeddings=Embeddings.of(self.material.model),
        )
        outputs = stage_of(student).outputs(self.material.others, classes)
        self.recorded = replace(self.recorded, student=outputs)
        self.progress("student", 1, 1)
        return student

    def _promise(self, way: WaySpec) -> Promise:
        """Certify a way at the level of the race."""
        settings = self.settings
        return promise(self.recorded, way, settings.level, settings.confidence_of_each)

    def _add_ways(
        self, model: ModelWithExits, whole: PolicyModel, size: float, *, int8: bool
    ) -> None:
        """Add ways of a model: with exits, whole behind the student, with exits behind it.

        Args:
            model: The model with exits.
            whole: The same at full depth.
            size: Its megabytes.
            int8: Whether it is the export in int8.
        """
        exits = whole
        for way in WAYS:  # with exits before it is with exits behind the student
            if way.int8 != int8:
                continue
            if not way.student:
                made = self._promise(way)
                exits = PolicyModel(model, made.policy)
                self._add(way, exits, made, size)
                continue
            behind = exits if way.depth is Depth.EXITS else whole
            has_exits = behind is not whole and stage_of(behind).num_steps > 1
            if self.student is not None and (behind is whole or has_exits):
                made = self._promise(way)
                cascade = Cascade(
                    [self.student, behind],
                    COSTS,
                    policy=made.policy,
                    classes=self.material.classes,
                )
                self._add(way, cascade, made, size + self.student.megabytes)

    def _add_blind_mix(self, plain: PlainModel, student: Student, size: float) -> None:
        """Add the blind mix whose share of other answers is the level."""
        assert self.recorded.student is not None
        answers = self.material.answers
        of_student = self.recorded.student[self.recorded.sides.certifying].argmax(axis=-1)
        disagreement = float((of_student != answers).mean())
        share = min(1.0, self.settings.level / max(disagreement, 1e-9))
        mix = BlindMix(student, plain, share)
        drawn = mix.drawn(self.material.certifying)
        made = Promise(LastStep(), False, np.where(drawn, of_student, answers), drawn.astype(float))
        self._add(BLIND_MIX, mix, made, size + student.megabytes)

    def _int8(self) -> None:
        """Quantise the model, record its answers, and add its ways."""
        others = self.material.others
        sides = self.recorded.sides
        settings = self.settings
        self.progress("int8", 0, len(others))
        exported = onnx(self.material.model, self.folder / "fp32")
        answers = self.recorded.exits[sides.choosing, -1].argmax(axis=-1)
        most_moved = int8.most_moved(
            len(sides.certifying), settings.level, settings.confidence_of_each
        )
        quantised = int8.choose(
            exported,
            self.material.teaching[:_RANGES],
            [others[row] for row in sides.choosing],
            answers,
            most_moved,
            torch.get_num_threads(),
        )
        self._record_int8(quantised)
        size = sum(path.stat().st_size for path in quantised.folder.iterdir()) / 1e6
        self._add_ways(quantised, PolicyModel(quantised, LastStep()), size, int8=True)
        if settings.within is not None:
            self._step_within(settings.within, quantised, size)

    def _record_int8(self, quantised: OnnxModel) -> None:
        """Add the answers of the int8 export to the recorded answers, block by block."""
        others = self.material.others
        outputs = np.zeros_like(self.recorded.exits)
        for start in range(0, len(others), _BLOCK):
            block = others[start : start + _BLOCK]
            outputs[start : start + len(block)] = quantised.record(block).outputs
            self.progress("int8", start + len(block), len(others))
        self.recorded = replace(self.recorded, int8=outputs)

    def _step_within(self, seconds: float, model: ModelWithExits, size: float) -> None:
        """Add the deepest fixed step whose 95th percentile for single texts is within a time."""
        last = self.recorded.exits.shape[1]
        texts = self._sample()[: 4 * timing.ALONE]
        for step in range(last, 0, -1):
            cut = PolicyModel(model, FixedStep(step))
            times = [timing.seconds_of(cut, [text]) for text in texts]
            if np.quantile(times, 0.95) > _SPARE * seconds:
                continue
            if step < last:
                assert self.recorded.int8 is not None
                certifying = self.recorded.sides.certifying
                answers: Ints = self.recorded.int8[certifying, step - 1].argmax(axis=-1)
                made = Promise(cut.policy, False, answers, np.full(len(answers), step))
                spec = WaySpec(f"int8, step {step}", Depth.FIXED, int8=True)
                self._add(spec, cut, made, size)
            return

    def _sample(self) -> list[Text]:
        """Return certifying texts to be timed.

        Their mean length, and their mean depths under all ways, are near those of all texts.
        """
        depths = [made.depth for made in self.promises.values()]
        columns: Floats = np.stack([self.material.certifying_lengths, *depths], axis=1)
        places = timing.sample(columns, self.settings.seed).tolist()
        return [self.material.certifying[place] for place in places]


def _megabytes(model: nn.Module) -> float:
    """Return the size of the weights."""
    sizes = [weight.numel() * weight.element_size() for weight in model.parameters()]
    return sum(sizes) / 1e6
