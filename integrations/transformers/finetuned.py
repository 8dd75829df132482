"""`FinetunedClassifier`: a fine-tuned classifier of Transformers, kept as it is, with early heads beside it.

It may classify texts, images, recordings or the tokens of a text, or find the span of an answer (`head_kinds`). The
whole classifier is captured, so that what follows its last layer *is* its own head, whatever that is made of. At full
depth the answer is that of the plain classifier, bit for bit. The head of an earlier step is the model's own head on
that step's hidden state, times a number, plus a linear map of the state: it starts as the model's own head, and learns
on inputs without labels to answer as full depth does (`exits.fit_exits`).

A saved folder is the plain classifier's own, which Transformers reads as before, with the exits in two more files.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ponder._utils.columns import fitted_columns
from ponder._utils.files import digest_of, locked, read_json, read_tensors, write_json, write_tensors
from ponder._utils.modes import evaluating
from ponder._utils.validation import check_choice
from ponder.engine.certificates import has_stale_certificate
from ponder.engine.teaching import frozen_copy
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.export.manifest import FILE as EXPORT_FILE
from ponder.export.source import ExportSource
from ponder.inference.prediction import Predictions
from ponder.integrations.transformers.arguments import honoured, span_labels
from ponder.integrations.transformers.assigned import check_assigned
from ponder.integrations.transformers.captured import constants_of
from ponder.integrations.transformers.early_heads import (
    AnswerAndStates,
    ClassifierStem,
    EarlyHead,
    OwnAnswer,
    check_states,
)
from ponder.integrations.transformers.encoders import check_block_sparse
from ponder.integrations.transformers.examples import example_for
from ponder.integrations.transformers.exporting import token_source
from ponder.integrations.transformers.head_kinds import check_readable, kind_of, load_finetuned
from ponder.integrations.transformers.model_card import remove_card
from ponder.integrations.transformers.prediction import predict_rows, record_rows
from ponder.integrations.transformers.saving import save_whole
from ponder.parts.capturing.captured import CapturedStem, capture
from ponder.parts.capturing.joinable import JoinableStem
from ponder.parts.heads import PerStep
from ponder.parts.padding import Along
from ponder.parts.tasks import Span
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.certified import certificates
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderOutput, PonderWrapper

__all__ = ["EXITS_FILE", "FinetunedClassifier"]

_FORMAT = "ponder-exits-1"
_pad_sequence = partial(nn.utils.rnn.pad_sequence, batch_first=True)
EXITS_FILE, _HEADS, _LEARNED = "exits.json", "exits.safetensors", "learned"
SPLIT = 2
"""The version of the rule by which `exits.split_rows` tells inputs apart; models keep theirs as `split`."""


class FinetunedClassifier(nn.Module):
    """A fine-tuned classifier with exits; build it with `from_finetuned`, and reload it with `from_pretrained`.

    Args:
        classifier: The classifier; its weights are used, not copied.
        plain: The model that the answers are to agree with, where that is not the classifier itself: what it was before
            its encoder learned too. It is not saved.

    Attributes:
        kind: What its answers mean.
        seed: Seed of the split by which its exits were fitted, which `fit_exits` sets; None before. It tells which
            inputs the heads learned on.
        learned_by: Seed of the split by which the encoder learned too (`exits-deep`); None where it did not.
        learned: Numbers by which the inputs that its heads learned on are known again, `(inputs,)` long; None where the
            encoder learned too, and of models of before.
        columns: Names of the columns of texts that its exits were fitted to, where `ponder exits` fitted them.
        split: Version of the rule of that split, see `ponder.integrations.transformers.exits.split_rows`.

    Raises:
        ArgumentError: It cannot be captured, or its answer is not one of several; the message says why.

    Example:
        >>> plain = BertForSequenceClassification(config).eval()
        >>> model = FinetunedClassifier.from_finetuned(plain)  # in earnest: a folder, or a hub name
        >>> bool((model(**batch).outputs == plain(**batch).logits).all())  # at full depth, bit for bit
        True
    """

    columns: tuple[str, ...] = ()  # of the class, as the next, for models that were pickled by an earlier version
    learned: Tensor | None = None

    def __init__(self, classifier: PreTrainedModel, plain: PreTrainedModel | None = None) -> None:
        super().__init__()
        kind = self.kind = kind_of(classifier)
        check_block_sparse(classifier)
        self.seed: int | None = None
        self.split = SPLIT
        self.learned_by: int | None = None
        self._plain = None if plain is None else (plain,)  # in a tuple, where it is no part of this module
        self.main_input_name = classifier.main_input_name
        labels = int(classifier.config.num_labels or 0)
        was_training = classifier.training
        classifier.eval()
        example = {**example_for(classifier), **constants_of(classifier)}
        try:
            parts = capture(classifier, example, features=kind.read)
        except ArgumentError as error:
            if error.argument != "example":
                raise
            raise ArgumentError(
                "model",
                expected="a classifier that answers to inputs made up from its configuration, by which it is captured",
                got=error.got.rstrip("."),
                remedy="Add to its configuration what it lacks, or call ponder.capture with an example of your own.",
            ) from error
        finally:
            classifier.train(was_training)
        assert isinstance(parts.stem, CapturedStem)
        padding, stem = parts.padding, ClassifierStem(parts.stem)
        if padding is not None:
            for name in ("token_type_ids", "given_token_type_ids"):  # the example had none
                parts.stem.layered.lengths[name] = Along(fill=0)
            fill = Along(fill=_padding_of(classifier))
            streamed = None if padding.stem is None else JoinableStem(stem, padding.mask, padding.real)
            padding = replace(padding, inputs=fill, stem=streamed, pooled=not kind.task.per_position)
        with evaluating(classifier):
            width, self._reads_mask = check_states(parts.stem, example, kind, classifier)
        early = [EarlyHead(labels, width, 1 if kind.task.per_position else 2) for _ in range(parts.steps.num_steps - 1)]
        weights = next(classifier.parameters())
        self.ponder = PonderWrapper(
            parts.steps,
            head=PerStep([*early, OwnAnswer(labels)]).to(weights.device, weights.dtype),
            policy=LastStep(),
            stem=stem,
            readout=AnswerAndStates(parts.readout, kind.task.per_position, classifier),
            task=kind.task,
            padding=padding,
        )
        self.ponder.kept = (classifier,)
        self.eval()

    @classmethod
    def from_finetuned(
        cls, model: str | PathLike[str] | PreTrainedModel, recipe: Literal["exits", "exits-deep"] = "exits"
    ) -> FinetunedClassifier:
        """Put exits beside the head of a fine-tuned classifier; they still have to be fitted, by `fit_exits`.

        Until then every row runs to the last step, and the answers are those of the plain classifier.

        Args:
            model: A classifier of Transformers (of texts, tokens, images or audio) or a model that answers with a span,
                a folder or a hub name. Files are read in float32, from safetensors only; remote code is never run.
            recipe: ``"exits"``: the model is frozen, and only early heads learn. ``"exits-deep"``: a copy of the model
                learns with them, the model as it is being its teacher; exits come earlier, and full depth may move.

        Raises:
            ArgumentError: It is no classifier of one class of several, it has adapters of peft, its encoder learned
                by ``"exits-deep"`` and would be a teacher now, or it cannot be captured (says why).
            CheckpointError: The folder holds no whole classifier.
        """
        check_choice("recipe", recipe, ("exits", "exits-deep"))
        config = getattr(model, "config", None)
        if isinstance(model, str | PathLike) and (Path(model) / "config.json").is_file():
            config = read_json(Path(model) / "config.json")
        kind = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
        if kind == "ponder":
            raise ArgumentError(
                "model",
                expected="a fine-tuned classifier of Transformers, without exits",
                got="a model of this library, which has exits",
                remedy="Read it with PonderForSequenceClassification.from_pretrained, or the class that saved it.",
            )
        if _has_adapters(model):
            raise ArgumentError(
                "model",
                expected="a fine-tuned classifier whose weights are all its own",
                got=f"adapters of peft ({model if isinstance(model, str | PathLike) else type(model).__name__})",
                remedy="Merge them first, and pass what comes of it: peft_model.merge_and_unload().",
            )
        if not isinstance(model, PreTrainedModel):
            if not isinstance(model, str | PathLike):
                raise ArgumentTypeError(
                    "model",
                    expected="a sequence classifier of Transformers, a folder or a hub name",
                    got=type(model).__name__,
                    remedy="Capture any other module with ponder.capture.",
                )
            learned_by = None
            if has_exits(model):
                learned_by = _learned_by(Path(model))
                if learned_by is not None and recipe == "exits-deep":
                    raise ArgumentError(
                        "model",
                        expected="the classifier as it was fine-tuned, which is the teacher",
                        got=f"{model}, whose encoder learned with its exits",
                        remedy="Pass the classifier of before, or read this one with "
                        "FinetunedClassifier.from_pretrained.",
                    )
                warnings.warn(
                    f"{model} holds exits that were fitted: they, and what was certified, are left out. Read them with "
                    "FinetunedClassifier.from_pretrained.",
                    stacklevel=2,
                )
            model = load_finetuned(model)
            if learned_by is not None:
                made = cls(model)
                made.learned_by, made.split = learned_by
                return made
        if recipe == "exits":
            return cls(model)
        return cls(deepcopy(model), plain=frozen_copy(model))

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read what `save_pretrained` wrote, in the type of weights in which it was saved.

        Raises:
            CheckpointError: A file is missing, damaged or of another save, or the model in the folder was changed after
                its exits were fitted.
        """
        place = Path(folder)
        if not has_exits(place):
            config = read_json(place / "config.json") if (place / "config.json").is_file() else {}
            if config.get("model_type") == "ponder":
                raise CheckpointError(
                    f"{place}: expected exits beside a plain classifier; got a model that was built with exits of its "
                    "own. Read it with PonderForSequenceClassification.from_pretrained, or the class that saved it; "
                    "ponder.export.onnx and `ponder serve` take it."
                )
            got = f"one without {EXITS_FILE}, or with that of an earlier model" if place.is_dir() else "no folder"
            raise CheckpointError(
                f"{place}: expected a folder that `ponder exits` or FinetunedClassifier.save_pretrained wrote; "
                f"got {got}. Give a plain classifier its exits first."
            )
        with locked(place, shared=True):
            settings = read_json(place / EXITS_FILE)
            if settings.get("format") != _FORMAT:
                raise CheckpointError(
                    f"{place / EXITS_FILE}: expected the format {_FORMAT!r}; got another. Save again."
                )
            if settings.get("digests") != _digests(place):
                raise CheckpointError(
                    f"{place}: the model or its exits are not those that were saved together. Fit the exits again."
                )
            heads = read_tensors(place / _HEADS, _FORMAT)[0]
            made = cls(load_finetuned(place, "auto"))  # in another type it would answer otherwise than was certified
        _check_answers(made.classifier, settings, place)
        made.learned = heads.pop(_LEARNED, None)
        own = made.heads.state_dict()
        if own.keys() != heads.keys() or any(own[name].shape != heads[name].shape for name in own):
            raise CheckpointError(f"{place / _HEADS}: the heads are of another model. Fit the exits again.")
        made.heads.load_state_dict(heads)
        try:
            made.ponder.take_saved_policy(ExitPolicy.from_dict(settings["policy"]))
        except Exception as error:  # whatever a constructor does with values that it was not written for
            raise CheckpointError(f"{place / EXITS_FILE}: its policy cannot be used ({error}). Save again.") from error
        made.seed, made.split = settings.get("seed"), settings.get("split", 1)
        made.learned_by, made.columns = settings.get("learned_by"), fitted_columns(place)
        if made._reads_mask and "reads_mask" not in settings:
            made._forget_promise(place)
        return made

    def _forget_promise(self, place: Path) -> None:
        """Say that early heads were fitted when they read padding too, and take off what was promised of them then."""
        for promised in certificates(self.policy):
            self.policy = promised.policy
        warnings.warn(
            f"{place}: its early heads were fitted by a version in which they read the padding that "
            f"{type(self.classifier).__name__} adds, or that stands in its samples; they leave it out now, so early "
            "answers are others, and nothing is promised of them. Fit the exits again: `ponder exits`, or fit_exits.",
            stacklevel=3,
        )

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the plain classifier, as Transformers does, and the exits beside it.

        `exits.json` is written last and names the digests of all weights: a save that was broken off is refused by
        `from_pretrained`, and never mixed with another. What `ponder exits` wrote about other exits in the folder, or a
        model card about another model, is removed; a README of its owner's stays.

        Raises:
            ArgumentError: The folder cannot be written, the classifier could not be read again, or weights were changed
                after the policy was certified.
        """
        check_readable(self.classifier)
        self._check_certificate()
        save_whole(lambda part: self.classifier.save_pretrained(part), folder, self._save_exits)

    def _check_certificate(self) -> None:
        """Refuse to write a certificate beside weights for which it was not given."""
        if has_stale_certificate(self.ponder):
            raise ArgumentError(
                "model",
                expected="the weights for which its policy was certified",
                got="others: the classifier or its heads were changed since",
                remedy="Fit the exits again; or set model.policy = model.policy.policy, which promises nothing.",
            )

    def _save_exits(self, place: Path) -> None:
        learned = {} if self.learned is None else {_LEARNED: self.learned}
        write_tensors(place / _HEADS, {**self.heads.state_dict(), **learned}, {"format": _FORMAT})
        own = {"digests": _digests(place), "policy": self.policy.to_dict()}
        before = read_json(place / EXITS_FILE) if has_exits(place) else {}
        if any(before.get(name) != value for name, value in own.items()):
            remove_card(place)
        write_json(
            place / EXITS_FILE,
            {
                "format": _FORMAT,
                **own,
                "seed": self.seed,
                "split": self.split,
                "learned_by": self.learned_by,
                "columns": list(self.columns),
                "reads_mask": True,
                "answers": _answers(self.classifier).tolist(),
                "tolerance": 1e-3 if self.classifier.dtype in (torch.float32, torch.float64) else 0.05,
            },
        )

    @property
    def plain(self) -> PreTrainedModel:
        """The model that answers are to agree with: the classifier, or what it was before its encoder learned too."""
        return self.classifier if self._plain is None else self._plain[0]

    @property
    def deep(self) -> bool:
        """Whether the encoder is to learn too, from `plain`."""
        return self._plain is not None

    @property
    def classifier(self) -> PreTrainedModel:
        """The classifier that runs, head and all; the one that was given, where only early heads learn."""
        model: PreTrainedModel = self.ponder.stem.captured.module  # type: ignore[union-attr, assignment]
        return model

    @property
    def config(self) -> Any:
        """The classifier's configuration."""
        return self.classifier.config

    @property
    def heads(self) -> PerStep:
        """One head a step; the last one hands on the classifier's own answer."""
        head = self.ponder.head
        assert isinstance(head, PerStep)
        return head

    @property
    def num_steps(self) -> int:
        """N, the classifier's layers."""
        return self.ponder.num_steps

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy, saved with the model; assigning one checks it."""
        return self.ponder.policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self.ponder.policy = policy

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign as PyTorch does, but refuse what is the wrapper's, and what is read alone, such as `classifier`."""
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)  # where it is a module, too
            return
        check_assigned(self, name)
        super().__setattr__(name, value)

    def forward(self, inputs: Tensor | None = None, policy: ExitPolicy | None = None, **context: Any) -> PonderOutput:
        """Each row to its exit, in evaluation mode.

        Args:
            inputs: The main input, which may be named as the classifier names it too: `input_ids`, say.
            policy: Decides instead of the model's own policy.
            context: `attention_mask`, `token_type_ids`, and what else `PonderWrapper.forward` takes.

        Raises:
            ArgumentError: Labels in training mode, whose loss would train the classifier too, unless it is frozen.
        """
        main, context = self._read(inputs, context)
        return self.ponder(main, policy=policy, **context)

    def unroll(self, inputs: Tensor | None = None, **context: Any) -> Trajectory:
        """Full depth, no exit; arguments as for a call and for `PonderWrapper.unroll`."""
        main, context = self._read(inputs, context)
        return self.ponder.unroll(main, **context)

    def _read(self, inputs: Tensor | None, context: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The main input, and the other arguments of a call as the wrapper takes them: labels by one name."""
        context = honoured(context)
        found: Tensor | None = context.pop(self.main_input_name, None) if inputs is None else inputs
        if found is None:
            raise ArgumentError(
                self.main_input_name, expected="the main input", got="nothing", remedy="Pass what a tokenizer gives."
            )
        if isinstance(self.kind.task, Span):
            places = span_labels(context.pop("start_positions", None), context.pop("end_positions", None))
            if places is not None and context.get("labels") is not None:
                raise ArgumentError(
                    "labels", expected="None beside start_positions", got="both", remedy="Pass one of them."
                )
            if places is not None:
                context["labels"] = places
        return found, context

    def export_source(self) -> ExportSource:
        """What `ponder.export.onnx` writes: rows of tokens as an example, and the tokenizer of the classifier.

        Raises:
            ArgumentError: The classifier reads something else than tokens, or weights were changed after the policy was
                certified.
        """
        self._check_certificate()
        config = self.config
        folders = [Path(config._name_or_path)] if config._name_or_path else []
        labels = [str(config.id2label[place]) for place in range(config.num_labels)]
        return token_source(self.ponder, self.classifier, self.main_input_name, folders, labels, self.columns)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch of encodings by name, padded on the right to the longest; labels where all have them."""
        fill = {self.main_input_name: _padding_of(self.classifier), "labels": -100}
        device, batch = next(self.parameters()).device, {}
        for name in (self.main_input_name, "attention_mask", "token_type_ids", "labels"):
            given = [row.get(name, row.get("label") if name == "labels" else None) for row in rows]
            absent = [value is None for value in given]
            if all(absent) or (any(absent) and name in (self.main_input_name, "labels")):
                continue
            if any(absent):  # of a row that does not tell, all positions are real, and of the first part
                blank = torch.ones if name == "attention_mask" else torch.zeros
                given = [
                    blank(len(row[self.main_input_name]), dtype=torch.long) if value is None else value
                    for value, row in zip(given, rows, strict=True)
                ]
            each = [torch.as_tensor(value) for value in given]
            padded = torch.stack if not each[0].dim() else partial(_pad_sequence, padding_value=fill.get(name, 0))
            batch[name] = padded(each).to(device)
        places = [[row.get(name) for row in rows] for name in ("start_positions", "end_positions")]
        if "labels" not in batch and isinstance(self.kind.task, Span) and all(None not in of for of in places):
            batch["labels"] = torch.tensor(places, device=device).T.contiguous()
        if "attention_mask" not in batch and self.main_input_name == "input_ids":
            lengths = torch.tensor([len(row["input_ids"]) for row in rows], device=device)
            batch["attention_mask"] = (torch.arange(int(lengths.max()), device=device) < lengths[:, None]).long()
        return batch

    def predict(self, dataset: Iterable[Any], **options: Any) -> Predictions:
        """Every example of a tokenised data set to its exit; see `predict_rows`."""
        return predict_rows(self, dataset, **options)  # type: ignore[arg-type]

    def record(self, dataset: Iterable[Any], **options: Any) -> Trajectory:
        """Every step of every example of a tokenised data set; see `record_rows`."""
        return record_rows(self, dataset, **options)  # type: ignore[arg-type]


def _padding_of(classifier: PreTrainedModel) -> int:
    """What stands behind the end of a shorter input: the token for it, and silence in sounds, which have none."""
    has_tokens = classifier.main_input_name == "input_ids"
    return int(getattr(classifier.config, "pad_token_id", None) or 0) if has_tokens else 0


def _has_adapters(model: object) -> bool:
    """Whether a model, or what was saved in a folder, holds adapters of peft that are not merged."""
    if isinstance(model, str | PathLike):
        return (Path(model) / "adapter_config.json").is_file()
    return isinstance(model, nn.Module) and any(type(m).__module__.startswith("peft.") for m in model.modules())


def has_exits(folder: str | PathLike[str]) -> bool:
    """Whether a folder holds exits beside a classifier, as `FinetunedClassifier.save_pretrained` writes them.

    Where a model of a recipe was saved over them, they are not about it.
    """
    config = Path(folder) / "config.json"
    if not (Path(folder) / EXITS_FILE).is_file():
        return False
    return not config.is_file() or read_json(config).get("model_type") != "ponder"


def is_export(folder: Path) -> bool:
    """Whether the model of a folder is an export; refused where it could be one or the other.

    Raises:
        ArgumentError: The folder holds an export and exits that were saved, which may answer differently.
    """
    exported, saved = (folder / EXPORT_FILE).is_file(), (folder / EXITS_FILE).is_file()
    if exported and saved:
        raise ArgumentError(
            "folder",
            expected="the folder of one model",
            got=f"{folder}, with an export ({EXPORT_FILE}) and a saved model ({EXITS_FILE}), which may answer "
            "differently",
            remedy="Export into a folder of its own.",
        )
    return exported


def _learned_by(folder: Path) -> tuple[int, int] | None:
    """The seed and the version of the split by which the encoder in a folder learned with its exits; None if not."""
    with locked(folder, shared=True):
        settings = read_json(folder / EXITS_FILE)
        # Else the weights that are there learned otherwise by now.
        whole = (folder / _HEADS).is_file() and settings.get("digests") == _digests(folder)
    seed = settings.get("learned_by") if whole else None
    return None if seed is None else (seed, settings.get("split", 1))


def _answers(classifier: PreTrainedModel) -> Tensor:
    """What a classifier answers to an example, flat: by it is seen whether the same was read that was saved."""
    with evaluating(classifier), torch.no_grad():
        out = classifier(**example_for(classifier))
    given = [out[name] for name in ("logits", "start_logits", "end_logits") if out.get(name) is not None]
    return torch.cat([part.detach().flatten() for part in given]).double().cpu()


def _check_answers(classifier: PreTrainedModel, settings: Mapping[str, Any], place: Path) -> None:
    """Refuse a classifier that does not answer as the one that was saved; earlier versions did not note that."""
    if "answers" not in settings:
        return
    then, now = torch.tensor(settings["answers"], dtype=torch.float64), _answers(classifier)
    near = settings.get("tolerance", 1e-3) * max(1.0, float(then.abs().max()))
    if then.shape != now.shape or not torch.allclose(now, then, rtol=0.0, atol=near, equal_nan=True):
        raise CheckpointError(
            f"{place}: the classifier that was read does not answer as the one that was saved, whose code was another "
            "than its configuration says (an exchanged activation, say). Build it as it was, and fit the exits again."
        )


def _digests(folder: Path) -> dict[str, str]:
    """The digests of all weights in a folder, by name."""
    names = [path for path in sorted(folder.glob("model*.safetensors")) if path.is_file()]
    return {path.name: digest_of(path) for path in [*names, folder / _HEADS]}
