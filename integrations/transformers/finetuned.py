"""`FinetunedClassifier`: a fine-tuned classifier of Transformers, kept as it is, with early heads beside it.

The whole classifier is captured, so that what follows its last layer *is* its own head, whatever that is made of. At
full depth the answer is that of the plain classifier, bit for bit. The head of an earlier step is the model's own head
on that step's hidden state, times a number, plus a linear map of the state: it starts as the model's own head, and
learns on inputs without labels to answer as full depth does (`exits.fit_exits`).

A saved folder is the plain classifier's own, which Transformers reads as before, with the exits in two more files.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import replace
from inspect import Parameter, Signature
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from ponder._utils.files import digest_of, locked, make_folder, read_json, read_tensors, write_json, write_tensors
from ponder._utils.trees import Tree
from ponder._utils.validation import check_choice
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.inference.prediction import Predictions
from ponder.integrations.transformers.examples import example_for
from ponder.integrations.transformers.loading import load_whole
from ponder.integrations.transformers.prediction import predict_rows, record_rows
from ponder.integrations.transformers.saving import save_whole
from ponder.parts import readouts
from ponder.parts.capture import CapturedStem, capture
from ponder.parts.heads import PerStep
from ponder.parts.joinable import JoinableStem
from ponder.parts.padding import Along
from ponder.policies import ExitPolicy, LastStep
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderOutput, PonderWrapper

__all__ = ["EarlyHead", "FinetunedClassifier"]

_FORMAT = "ponder-exits-1"
_EXITS, _HEADS = "exits.json", "exits.safetensors"


class FinetunedClassifier(nn.Module):
    """A fine-tuned classifier with exits; build it with `from_finetuned`, and reload it with `from_pretrained`.

    Args:
        classifier: The classifier; its weights are used, not copied, and never changed.

    Raises:
        ArgumentError: It cannot be captured, or its answer is not one class of several; the message says why.
    """

    main_input_name = "input_ids"

    def __init__(self, classifier: PreTrainedModel) -> None:
        super().__init__()
        labels = _num_labels(classifier)
        was_training = classifier.training
        classifier.eval()
        example = {**example_for(classifier), **_constants(classifier)}
        parts = capture(classifier, example, features=_logits)
        classifier.train(was_training)
        assert isinstance(parts.stem, CapturedStem)
        readout = _Readout(parts.readout)
        padding, stem = parts.padding, _Stem(parts.stem)
        if padding is not None:
            fill = Along(fill=getattr(classifier.config, "pad_token_id", None) or 0)
            streamed = None if padding.stem is None else JoinableStem(stem, padding.mask, padding.real)
            padding = replace(padding, inputs=fill, stem=streamed, pooled=True)
        width = _state_width(parts.stem, parts.steps.fns[0], example)
        early = [EarlyHead(labels, width) for _ in range(parts.steps.num_steps - 1)]
        weights = next(classifier.parameters())
        self.ponder = PonderWrapper(
            parts.steps,
            head=PerStep([*early, _OwnAnswer(labels)]).to(weights.device, weights.dtype),
            policy=LastStep(),
            stem=stem,
            readout=readout,
            task="classification",
            padding=padding,
        )
        self.eval()

    @classmethod
    def from_finetuned(
        cls, model: str | PathLike[str] | PreTrainedModel, recipe: Literal["exits"] = "exits"
    ) -> FinetunedClassifier:
        """Put exits beside the head of a fine-tuned classifier; they still have to be fitted, by `fit_exits`.

        Until then every row runs to the last step, and the answers are those of the plain classifier.

        Args:
            model: A sequence classifier of Transformers, a folder or a hub name. Files are read in float32, from
                safetensors only; remote code is never run.
            recipe: ``"exits"``: the model is frozen, and only early heads learn.

        Raises:
            ArgumentError: It is no classifier of one class of several, or it cannot be captured (says why).
            CheckpointError: The folder holds no whole classifier.
        """
        check_choice("recipe", recipe, ("exits",))
        if not isinstance(model, PreTrainedModel):
            if not isinstance(model, str | PathLike):
                raise ArgumentTypeError(
                    "model",
                    expected="a sequence classifier of Transformers, a folder or a hub name",
                    got=type(model).__name__,
                    remedy="Capture any other module with ponder.capture.",
                )
            model = _load_classifier(model)
        return cls(model)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> Self:
        """Read what `save_pretrained` wrote.

        Raises:
            CheckpointError: A file is missing, damaged or of another save, or the model in the folder was changed after
                its exits were fitted.
        """
        place = Path(folder)
        if not (place / _EXITS).is_file():
            raise CheckpointError(
                f"{place}: expected a folder that `ponder exits` or save_pretrained wrote; got none with {_EXITS}. "
                "Give a plain classifier its exits first."
            )
        with locked(place, shared=True):
            settings = read_json(place / _EXITS)
            if settings.get("format") != _FORMAT:
                raise CheckpointError(f"{place / _EXITS}: expected the format {_FORMAT!r}; got another. Save again.")
            if settings.get("digests") != _digests(place):
                raise CheckpointError(
                    f"{place}: the model or its exits are not those that were saved together. Fit the exits again."
                )
            heads = read_tensors(place / _HEADS, _FORMAT)[0]
        made = cls(_load_classifier(place))
        own = made.heads.state_dict()
        if own.keys() != heads.keys() or any(own[name].shape != heads[name].shape for name in own):
            raise CheckpointError(f"{place / _HEADS}: the heads are of another model. Fit the exits again.")
        made.heads.load_state_dict(heads)
        try:
            made.policy = ExitPolicy.from_dict(settings["policy"])
        except Exception as error:  # whatever a constructor does with values that it was not written for
            raise CheckpointError(f"{place / _EXITS}: its policy cannot be used ({error}). Save again.") from error
        return made

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the plain classifier, as Transformers does, and the exits beside it.

        `exits.json` is written last and names the digests of all weights: a save that was broken off is refused by
        `from_pretrained`, and never mixed with another.

        Raises:
            ArgumentError: The folder cannot be written.
        """
        place = make_folder(Path(folder))
        save_whole(lambda part: self.classifier.save_pretrained(part), place)
        with locked(place):
            write_tensors(place / _HEADS, self.heads.state_dict(), {"format": _FORMAT})
            write_json(place / _EXITS, {"format": _FORMAT, "digests": _digests(place), "policy": self.policy.to_dict()})

    @property
    def classifier(self) -> PreTrainedModel:
        """The plain classifier, as it was given."""
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

    def forward(self, input_ids: Tensor, policy: ExitPolicy | None = None, **context: Any) -> PonderOutput:
        """Each row to its exit, in evaluation mode.

        Args:
            input_ids: Token ids, `(batch, length)`.
            policy: Decides instead of the model's own policy.
            context: `attention_mask`, `token_type_ids`, and what else `PonderWrapper.forward` takes.
        """
        return self.ponder(input_ids, policy=policy, **context)

    def unroll(self, input_ids: Tensor, **context: Any) -> Trajectory:
        """Full depth, no exit; arguments as for `PonderWrapper.unroll`."""
        return self.ponder.unroll(input_ids, **context)

    def predict(self, dataset: Iterable[Any], **options: Any) -> Predictions:
        """Every example of a tokenised data set to its exit; see `predict_rows`."""
        return predict_rows(self, dataset, **options)  # type: ignore[arg-type]

    def record(self, dataset: Iterable[Any], **options: Any) -> Trajectory:
        """Every step of every example of a tokenised data set; see `record_rows`."""
        return record_rows(self, dataset, **options)  # type: ignore[arg-type]


class EarlyHead(nn.Module):
    r"""The answer of an early step: z = s · own(h) + W [norm(first token) ‖ norm(mean)] + b.

    It starts with s = 1, W = 0 and b = 0: the model's own head on this step's state.

    Args:
        labels: Number of classes.
        width: Size of the hidden state.
    """

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.labels, self.width = labels, width
        self.scale = nn.Parameter(torch.ones(()))
        self.linear = nn.Linear(2 * width, labels)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `(batch, labels)` from what the readout gives, `(batch, labels + 2 · width)`."""
        states = features[:, self.labels :].unflatten(1, (2, self.width))
        logits: Tensor = self.linear(F.layer_norm(states, (self.width,)).flatten(1))
        return self.scale * features[:, : self.labels] + logits


class _OwnAnswer(nn.Module):
    """The classifier's own logits, untouched."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.labels = labels

    def forward(self, features: Tensor) -> Tensor:
        return features[:, : self.labels]


class _Stem(nn.Module):
    """The captured stem, which registers the classifier; token types are left out where it has none."""

    def __init__(self, captured: CapturedStem) -> None:
        super().__init__()
        self.captured = captured
        self.takes = frozenset(inspect.signature(captured.module.forward).parameters)

    def forward(
        self, inputs: Tree, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None, **named: Any
    ) -> tuple[Tree, dict[str, Any]]:
        given = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden, context = self.captured(inputs, **{k: v for k, v in given.items() if k in self.takes}, **named)
        context.pop("attention_mask", None)
        return hidden, {**context, "attention_mask": attention_mask}


class _Readout:
    """The model's own logits if it had ended here, the first token, and the mean of the tokens, side by side."""

    borrows_modules = True

    def __init__(self, own: Callable[..., Tensor]) -> None:
        self.own = own
        takes = inspect.signature(own).parameters.values()
        self.reads_context = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in takes)
        self.__signature__ = Signature(
            [Parameter("hidden", Parameter.POSITIONAL_OR_KEYWORD), Parameter("context", Parameter.VAR_KEYWORD)]
        )

    def __call__(self, hidden: Tree, **context: Any) -> Tensor:
        states = _states(hidden)
        logits = self.own(hidden, **context) if self.reads_context else self.own(hidden)
        mean = readouts.mean(states, attention_mask=context.get("attention_mask"))
        return torch.cat([logits, readouts.first_token(states).to(logits), mean.to(logits)], dim=1)


def _states(hidden: Tree) -> Tensor:
    states: Tensor = hidden["hidden"] if isinstance(hidden, dict) else hidden
    return states


def _logits(output: Any) -> Any:
    return output["logits"]


def _num_labels(classifier: PreTrainedModel) -> int:
    """The number of classes; what is no classifier of one class of several is refused."""
    config = classifier.config
    labels, problem = int(getattr(config, "num_labels", 0) or 0), getattr(config, "problem_type", None)
    if not type(classifier).__name__.endswith("ForSequenceClassification"):
        raise ArgumentError(
            "model",
            expected="a sequence classifier of Transformers (…ForSequenceClassification)",
            got=type(classifier).__name__,
            remedy="Pass the fine-tuned classifier, head included; a bare encoder is for from_encoder.",
        )
    if labels < 2 or problem not in (None, "single_label_classification"):
        raise ArgumentError(
            "model",
            expected="a classifier whose answer is one of two or more classes, which early answers can agree with",
            got=f"num_labels={labels}, problem_type={problem!r}",
            remedy="For regression and several labels at once, train exits with from_encoder.",
        )
    return labels


def _constants(classifier: PreTrainedModel) -> dict[str, Any]:
    takes = inspect.signature(classifier.forward).parameters
    constants: dict[str, Any] = {"use_cache": False} if "use_cache" in takes else {}
    return constants if getattr(classifier.config, "return_dict", True) else {**constants, "return_dict": True}


def _state_width(stem: CapturedStem, step: Callable[..., Tree], example: dict[str, Any]) -> int:
    """The width of the hidden state; what is not `(batch, length, width)` is refused."""
    given = {name: value for name, value in example.items() if isinstance(value, Tensor)}
    with torch.no_grad():
        hidden, _ = stem(given.pop("input_ids", None), **given)
    states = _states(hidden)
    if states.dim() != 3:
        raise ArgumentError(
            "model",
            expected="layers with a hidden state (batch, length, width)",
            got=f"one of shape {tuple(states.shape)}",
            remedy="Capture it with ponder.capture, and give it heads of your own.",
        )
    return states.shape[-1]


def _load_classifier(source: str | PathLike[str]) -> PreTrainedModel:
    """A whole classifier in float32; nothing of it may be random."""
    remedy = "Pass the folder of a fine-tuned sequence classifier, as save_pretrained writes it."
    model, info = load_whole(
        AutoModelForSequenceClassification.from_pretrained,
        str(source),
        "model",
        remedy,
        AutoConfig.for_model,
        lambda config: AutoModelForSequenceClassification.from_config(config, trust_remote_code=False),
        exact=False,
        trust_remote_code=False,
        dtype=torch.float32,
    )
    if info["missing_keys"]:  # a pooler, without which an encoder is whole, and a classifier is not
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise CheckpointError(f"model: expected a whole classifier; {source} lacks {missing}. {remedy}")
    loaded: PreTrainedModel = model
    return loaded


def _digests(folder: Path) -> dict[str, str]:
    """The digests of all weights in a folder, by name."""
    names = [path for path in sorted(folder.glob("model*.safetensors")) if path.is_file()]
    return {path.name: digest_of(path) for path in [*names, folder / _HEADS]}
