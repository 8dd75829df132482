"""The race: every way as an object that answers texts, what it promises, and its seconds, all timed in turn."""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ponder._utils.rows import class_numbers, content_ids
from ponder._utils.seeds import uniform
from ponder.advice.promises import WAYS, Promise, Recorded, promise
from ponder.calibration.agreement import most_failures
from ponder.cascade.cascade import Cascade
from ponder.cascade.student import Embeddings, Student
from ponder.deploy.exporting import onnx, quantized
from ponder.deploy.manifest import files_of
from ponder.deploy.runtime import OnnxModel
from ponder.integrations.transformers.exits import teach_heads
from ponder.integrations.transformers.reading import read_classifier, read_fine_tuned
from ponder.integrations.transformers.texts import encodings_of, max_positions, tokenize
from ponder.policies import ExitPolicy, FixedStep, LastStep

__all__ = ["Race", "Way"]

Progress = Callable[[str, int, int], object]
_ROUNDS, _TIMED, _ALONE, _DRAWS = 5, 128, 16, 500  # rounds; texts in batches of 32 and alone; samples to choose from
_CLOSE = 1.25  # ways that take so much longer than the fastest are not timed in all rounds
_RANGES, _BLOCK = 200, 512  # texts that fix the ranges of int8; texts of a call
clock = time.perf_counter
"""Seconds; `benchmarks.advice` takes those of the processor, where others run beside it."""


@dataclass(frozen=True, eq=False)
class Way:
    """One way to answer, with what it costs and promises.

    Args:
        name: Its name.
        model: What answers: an object with `predict`.
        disagreement: Share of the certifying texts that are answered otherwise than by the model as it is.
        promise: The disagreement that is promised at most; NaN where nothing is.
        accuracy: Share of the certifying texts that are answered right; NaN without labels.
        megabytes: Size of what has to be deployed.
        needs_torch: Whether PyTorch has to be.
        seconds: Seconds for a text in batches of 32: median, lowest and highest of the rounds.
        alone: Seconds for a text by itself: median and 95th percentile.
        speed_up: Seconds of the model as it is ÷ these, of the same rounds: median, lowest, highest.
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
    classes: tuple[str, ...]

    @property
    def num_steps(self) -> int:
        return int(getattr(self.model, "ponder", self.model).num_steps)

    def predict(self, texts: Sequence[Any], policy: ExitPolicy | None = None) -> Any:
        return self.model.predict(texts, policy=self.policy if policy is None else policy)

    def record(self, texts: Sequence[Any]) -> Any:
        return self.model.record(texts)

    def save(self, folder: Path) -> None:
        if not isinstance(self.model, OnnxModel):
            self.model.policy = self.policy
            self.model.save_pretrained(folder)
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name in files_of(self.model.folder):
            shutil.copyfile(self.model.folder / name, folder / name)
        self.model.policy = self.policy
        self.model.manifest.write(folder)


@dataclass(frozen=True, eq=False)
class _Plain(_Under):
    """The encoder by itself, as it runs without exits: in batches of similar length."""

    def predict(self, texts: Sequence[Any], policy: ExitPolicy | None = None) -> Any:
        rows = encodings_of(self.model, list(texts))
        order = sorted(range(len(rows)), key=lambda n: -len(rows[n]["input_ids"]))
        logits: Any = torch.empty(len(rows), len(self.classes))
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                places = order[start : start + 32]
                batch = self.model.tokenizer.pad([rows[n] for n in places], return_tensors="pt")
                given = {name: batch[name] for name in batch if name in self.model.adapter.inputs}
                logits[places] = self.model.encoder(**given).logits
        return _Answers(logits, [self.classes[n] for n in logits.argmax(-1).tolist()])


@dataclass(frozen=True, eq=False)
class _Answers:
    outputs: Any
    labels: list[str]


@dataclass(frozen=True, eq=False)
class _BlindMix:
    """A blind mix: a share of the texts, drawn by their contents alone, goes to the student."""

    student: Student
    model: _Plain
    share: float

    def predict(self, texts: Sequence[Any]) -> Any:
        drawn, names = self.drawn(texts), np.empty(len(texts), dtype=object)
        for side, answer in ((drawn, self._of_student), (~drawn, lambda some: self.model.predict(some).labels)):
            if side.any():
                names[side] = answer([text for text, own in zip(texts, side, strict=True) if own])
        return _Answers(None, names.tolist())

    def drawn(self, texts: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(uniform(1, content_ids(texts)) < self.share)

    def _of_student(self, texts: Sequence[Any]) -> list[str]:
        return [self.student.classes[n] for n in self.student.predict_proba(texts).argmax(1)]


class Race:
    """The texts in three parts, the answers of all models to them, and the ways that are ready.

    Args:
        source: Folder or hub name of the model.
        texts: The texts.
        labels: Names or numbers of their classes.
        level: The disagreement that is asked for.
        confidence: Probability with which all promises hold at once.
        deep: Whether a model of half the layers is taught.
        seed: Seed of the split.
        folder: A folder for graphs, which the ways need as long as they live.
        progress: Called with a phase, what is done of it, and all of it.
    """

    def __init__(
        self,
        source: str,
        texts: Sequence[Any],
        labels: Sequence[Any] | None,
        *,
        level: float,
        confidence: float,
        deep: bool,
        seed: int,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.level, self.seed, self.folder, self.progress = level, seed, folder, progress
        self.confidence = 1.0 - (1.0 - confidence) / (len(WAYS) + deep)
        self.deep, self.model = deep, read_fine_tuned(source)
        named: Any = self.model.config.id2label
        self.names = tuple(str(named[n]) for n in sorted(named))
        encoded = tokenize(self.model.tokenizer, texts, max_positions(self.model.encoder))
        self.cut, self.lengths = encoded.truncated, [len(row["input_ids"]) for row in encoded.rows]
        numbers = None if labels is None else np.array(class_numbers(labels, self.names))
        self.sides = teach_heads(self.model, encoded.rows, seed=seed, progress=progress)
        teach, rest = self.sides.places[0], np.concatenate(self.sides.places[1:])
        both = (self.sides.choosing, self.sides.certifying)
        ids, outputs = (np.concatenate([np.asarray(getattr(r, n)) for r in both]) for n in ("row_ids", "outputs"))
        self.seen = Recorded(ids, outputs, seed=seed, weights=self.sides.certifying.weights)
        own = self.seen.sides[1]
        self.teach, self.rest = [texts[n] for n in teach], [texts[n] for n in rest]
        self.check = [self.rest[n] for n in own]
        self.rows = [encoded.rows[n] for n in teach]
        self.answers = outputs[own, -1].argmax(-1)
        self.labels = None if numbers is None else numbers[rest][own]
        self.lengths_checked = np.array(self.lengths)[rest][own]
        self.made: dict[str, Promise] = {}
        self.found: list[Way] = []
        self.student: Student | None = None

    def run(self) -> None:
        """Make every way, one after the other; those that are ready are in `found`."""
        self.model.policy = LastStep()
        plain = _Plain(self.model, LastStep(), self.names)
        size = sum(weight.numel() * weight.element_size() for weight in self.model.encoder.parameters()) / 1e6
        self._add("as it is", plain, Promise(LastStep(), True, self.answers, np.zeros(len(self.answers))), size, 0.0)
        for name in WAYS[:2]:
            made = promise(self.seen, name, self.level, self.confidence)
            self._add(name, _Under(self.model, made.policy, self.names), made, size)
        self.student = self._taught_student()
        self._cascades("", plain, size)
        if self.student is not None:
            self._blind_mix(plain)
        self._int8()
        if self.deep:
            self._half(size)

    def time(self) -> None:
        """Time all ways in turn, round by round; those that are far behind in the first three only."""
        texts = self._sample()
        batches, alone = ([list[float]() for _ in self.found] for _ in range(2))
        racing = list(range(len(self.found)))
        for way in self.found:
            way.model.predict(texts[:32])
        for number in range(_ROUNDS):
            for place in racing:
                batches[place].append(_seconds(self.found[place].model, texts) / len(texts))
                if number < 3:
                    alone[place] += [_seconds(self.found[place].model, [text]) for text in texts[:_ALONE]]
            self.found = [_with_seconds(*each, batches[0]) for each in zip(self.found, batches, alone, strict=True)]
            self.progress("timing", number + 1, _ROUNDS)
            if number == 2:
                most = _CLOSE * min(way.seconds[0] for way in self.found)
                racing = [place for place in racing if place == 0 or self.found[place].seconds[0] <= most]

    def steps_within(self, seconds: float) -> None:
        """Add the deepest fixed step, in int8, at which the 95th percentile of a text by itself is within a time."""
        eight = next((way for way in self.found if way.name == "int8"), None)
        texts = self._sample()[: 3 * _ALONE]
        for step in range(self.model.ponder.num_steps - 1, 0, -1):
            if eight is None or self.seen.int8 is None:
                return
            model = _Under(eight.model.model, FixedStep(step), self.names)
            alone = [_seconds(model, [text]) for text in texts]
            if np.quantile(alone, 0.95) <= seconds or step == 1:
                answers = self.seen.int8[self.seen.sides[1], step - 1].argmax(-1)
                made = Promise(model.policy, False, answers, np.full(len(answers), step))
                self._add(f"int8, step {step}", model, made, eight.megabytes)
                rounds = [_seconds(model, texts) / len(texts) for _ in range(3)]
                plain = [_seconds(self.found[0].model, texts) / len(texts) for _ in range(3)]
                self.found[-1] = _with_seconds(self.found[-1], rounds, alone, plain)
                return

    def relative_cost(self, name: str, texts: int | None = None, level: float | None = None) -> float:
        """Return the mean share of the model that a way would need by some of the texts, or at another level."""
        some = np.random.default_rng(self.seed).permutation(len(self.seen.ids))[:texts]
        seen = self.seen if texts is None else self.seen.taken(some)
        made = promise(seen, name, level or self.level, self.confidence)
        student, steps = "cascade" in name, self.seen.exits.shape[1] if name.endswith("exits") else 1
        return float(np.minimum((made.depth - student) / steps, 1.0).mean()) if made.met else 1.0

    def changed(self, name: str) -> tuple[tuple[str, str, str], ...]:
        """Return certifying texts whose answer a way changes, with both answers; 50 at most."""
        rows = zip(self.check, self.answers, self.made[name].answers, strict=True)
        found = [(_as_text(text), self.names[now], self.names[then]) for text, now, then in rows if now != then]
        return tuple(found[:50])

    def _add(self, name: str, model: Any, made: Promise, size: float, promised: float | None = None) -> None:
        right = math.nan if self.labels is None else float((made.answers == self.labels).mean())
        promised = (self.level if made.met else math.nan) if promised is None else promised
        needs_torch = not name.startswith("int8")
        other = float((made.answers != self.answers).mean())
        self.made[name] = made
        self.found.append(Way(name, model, other, promised, right, size, needs_torch))

    def _taught_student(self) -> Student | None:
        """Teach a student the answers that the model gave; a model of one answer needs none."""
        answers = np.asarray(self.sides.taught.outputs)[:, -1].argmax(-1)
        if len(set(answers.tolist())) < 2 or not isinstance(self.teach[0], str):
            return None
        self.progress("student", 0, 1)
        fast = getattr(self.model.tokenizer, "backend_tokenizer", None)
        matrix = self.model.encoder.get_input_embeddings().weight.detach().float().numpy()
        embeddings = None if fast is None else Embeddings(fast.to_str(), np.ascontiguousarray(matrix))
        names = [self.names[n] for n in answers]
        student = Student.fit(self.teach, names, seed=self.seed, embeddings=embeddings)
        sure = np.zeros((len(self.rest), len(self.names)))
        sure[:, [self.names.index(name) for name in student.classes]] = student.predict_proba(self.rest)
        self.seen = replace(self.seen, student=np.log(np.maximum(sure, 1e-12)))
        self.progress("student", 1, 1)
        return student

    def _cascades(self, prefix: str, model: Any, size: float) -> None:
        """The student before a model, and before the same with its exits."""
        if self.student is None:
            return
        tokens = self.student.tokens
        arrays = [self.student.weights, self.student.idf, *([] if tokens is None else [tokens.matrix])]
        own = size + sum(array.nbytes for array in arrays) / 1e6
        exits = next(way for way in self.found if way.name == ("int8 + exits" if prefix else "exits"))
        for ending in ("", " + exits"):
            if ending and math.isnan(exits.promise):
                return  # as a stage of its own it would have no policy
            name = f"{prefix}cascade{ending}"
            made = promise(self.seen, name, self.level, self.confidence)
            last = exits.model if ending else model
            cascade = Cascade([self.student, last], [0.03, 1.0], policy=made.policy, classes=self.names)
            self._add(name, cascade, made, own)

    def _blind_mix(self, plain: _Plain) -> None:
        assert self.student is not None
        assert self.seen.student is not None
        taught = self.seen.student[self.seen.sides[1]].argmax(-1)
        share = min(1.0, self.level / max(float((taught != self.answers).mean()), 1e-9))
        mix = _BlindMix(self.student, plain, share)
        answers = np.where(mix.drawn(self.check), taught, self.answers)
        size = next(way.megabytes for way in self.found if way.name == "cascade")
        self._add("blind mix", mix, Promise(LastStep(), False, answers, mix.drawn(self.check) * 1.0), size)

    def _int8(self) -> None:
        """Quantise all products, if that moves few answers of the choosing texts; else those that do not narrow."""
        self.model.policy, (choose, check) = LastStep(), self.seen.sides
        self.progress("int8", 0, len(self.rest))
        full, threads = onnx(self.model, self.folder / "fp32"), torch.get_num_threads()
        most = max(most_failures(len(check), self.level, self.confidence), 0)
        for products in ("all", True):
            folder = self.folder / f"int8-{products}"
            folder = quantized(full, folder, products, calibration=self.teach[:_RANGES])
            eight, outputs = OnnxModel(folder, threads=threads), np.zeros_like(self.seen.exits)
            self._record(eight, choose, outputs)
            moved = (outputs[choose, -1].argmax(-1) != self.seen.exits[choose, -1].argmax(-1)).mean()
            if 2 * moved * len(check) <= most:
                break
        self._record(eight, check, outputs)
        self.seen = replace(self.seen, int8=outputs)
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        for name in WAYS[4:6]:
            made = promise(self.seen, name, self.level, self.confidence)
            self._add(name, _Under(eight, made.policy, self.names), made, size)
        self._cascades("int8 ", _Under(eight, LastStep(), self.names), size)

    def _record(self, model: OnnxModel, places: NDArray[Any], outputs: NDArray[Any]) -> None:
        for start in range(0, len(places), _BLOCK):
            block = places[start : start + _BLOCK]
            outputs[block] = model.record([self.rest[n] for n in block]).outputs
            self.progress("int8", start + len(block), len(places))

    def _half(self, size: float) -> None:
        """A model of the first half of the layers, taught the answers of the whole on the texts that teach."""
        encoder = copy.deepcopy(self.model.encoder)
        count = encoder.config.num_hidden_layers
        lists = [part for part in encoder.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
        if not lists or count < 2:
            return
        del lists[0][count // 2 :]
        encoder.config.num_hidden_layers = count // 2
        _teach(encoder, self.model, self.rows, torch.as_tensor(self.sides.taught.outputs[:, -1]), self.progress)
        encoder.save_pretrained(self.folder / "half")
        self.model.tokenizer.save_pretrained(self.folder / "half")
        half = read_classifier(self.folder / "half")
        self.seen = replace(self.seen, half=_Plain(half, LastStep(), self.names).predict(self.rest).outputs.numpy())
        made = promise(self.seen, "half", self.level, self.confidence)
        size *= sum(p.numel() for p in half.encoder.parameters()) / sum(
            p.numel() for p in self.model.encoder.parameters()
        )
        self._add("half the layers", _Plain(half, made.policy, self.names), made, size)

    def _sample(self) -> list[Any]:
        """Texts to be timed: of many samples the one whose length, and depth under all ways, is that of all texts."""
        columns = np.stack([self.lengths_checked, *(made.depth for made in self.made.values())], axis=1).astype(
            np.float64
        )
        columns = (columns - columns.mean(0)) / np.maximum(columns.std(0), 1e-9)
        draw = np.random.default_rng(self.seed)
        size = min(_TIMED, len(columns))
        samples = [draw.choice(len(columns), size, replace=False) for _ in range(_DRAWS)]
        best = min(samples, key=lambda sample: float((columns[sample].mean(0) ** 2).sum()))
        return [self.check[n] for n in best]


def _teach(encoder: Any, whole: Any, rows: Sequence[Any], target: Any, progress: Progress) -> None:
    """Teach a cut encoder the answers of the whole, by three passes of AdamW over the KL divergence."""
    optimiser = torch.optim.AdamW(encoder.parameters(), lr=1e-4, weight_decay=0.01)
    batches = [
        b for _ in range(3) for b in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).split(32)
    ]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda done: 1.0 - done / len(batches))
    encoder.requires_grad_(True).train()
    for number, places in enumerate(batches, 1):
        batch = whole.tokenizer.pad([rows[n] for n in places.tolist()], return_tensors="pt")
        logits = encoder(**{name: batch[name] for name in batch if name in whole.adapter.inputs}).logits
        whole.ponder.task.distillation_losses(logits, target[places], 1.0, None).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
        progress("half the layers", number, len(batches))
    encoder.eval()


def _as_text(text: Any) -> str:
    return text if isinstance(text, str) else " ‖ ".join(text)


def _seconds(model: Any, texts: Sequence[Any]) -> float:
    start = clock()
    model.predict(texts)
    return clock() - start


def _with_seconds(way: Way, took: Sequence[float], alone: Sequence[float], plain: Sequence[float]) -> Way:
    ratios = np.array(plain[: len(took)]) / np.array(took)
    return replace(
        way,
        seconds=(float(np.median(took)), min(took), max(took)),
        alone=(float(np.median(alone)), float(np.quantile(alone, 0.95))),
        speed_up=(float(np.median(ratios)), float(ratios.min()), float(ratios.max())),
    )
