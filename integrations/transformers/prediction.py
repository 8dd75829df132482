"""A whole data set through a model of this package: to its exits, or through all steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.inference.examples import examples_in
from ponder.inference.prediction import Predictions, predict
from ponder.inference.recording import record
from ponder.parts.tasks import Span
from ponder.trajectory import Trajectory

__all__ = ["predict_rows", "record_rows"]

_CONTEXT = ("attention_mask", "token_type_ids")
_SPAN = ("start_positions", "end_positions")
_LABELS = ("labels", "label", *_SPAN)


def predict_rows(
    model: PreTrainedModel,
    dataset: Iterable[Any],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Predictions:
    """`ponder.predict` on what a tokenizer gives: a dict for each example, with the main input, and lists or tensors.

    Args:
        model: A model of this package, whose `ponder` is a `PonderWrapper`.
        dataset: Examples, or a DataLoader of batches; `attention_mask` and `token_type_ids` are used where they are
            there. What else the encoder reads, such as `bbox`, is refused; other columns are not looked at.
        collate: Makes a batch from a list of examples of any kind: a collator of Transformers, say.
        options: Arguments of `ponder.predict`.
    """
    wrapper: Any = model.ponder
    pair = _Pair.of(model)
    if collate is None:
        found = predict(wrapper, _Pairs(dataset, pair), owner=model, **options)
    else:
        found = predict(wrapper, dataset, collate=lambda rows: pair(collate(rows)), owner=model, **options)
    return found if len(found) else replace(found, outputs=found.outputs.reshape(0, int(model.config.num_labels or 1)))


def record_rows(
    model: PreTrainedModel,
    dataset: Iterable[Any],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Trajectory:
    """`ponder.inference.recording.record` on what a tokenizer gives; arguments as for it and for `predict_rows`.

    The labels are those of the call, or those that the examples carry as `labels` or `label`, or, where the answer is a
    span, as `start_positions` and `end_positions`.
    """
    pair = _Pair.of(model)
    if collate is None:
        return record(model.ponder, _Pairs(dataset, pair), owner=model, **options)
    return record(model.ponder, dataset, collate=lambda rows: pair(collate(rows)), owner=model, **options)


class _Pairs:
    """A data set as pairs (inputs, context)."""

    def __init__(self, dataset: Any, pair: _Pair) -> None:
        self.dataset, self.pair = dataset, pair

    def __iter__(self) -> Any:
        return map(self._pair, examples_in(self.dataset))

    def _pair(self, example: Any) -> tuple[Any, dict[str, Any]]:
        inputs, context = self.pair(example)
        if self.pair.name == "input_ids" and getattr(inputs, "ndim", 1) > 1:
            raise ArgumentError(
                "example",
                expected="the ids of one input, (length,)",
                got=f"ids of shape {tuple(inputs.shape)}",
                remedy="Leave out return_tensors, or pass {name: tensor[0] for name, tensor in encoding.items()}.",
            )
        return inputs, context


@dataclass(frozen=True)
class _Pair:
    """An example or a batch as a pair (inputs, context).

    Args:
        name: The name of the main input.
        unread: What the encoder's own forward reads and nothing here passes on, such as `bbox`: an example with it is
            refused, whose answer would be another one.
        span: Whether the answer is a span, whose labels are two places.
    """

    name: str
    unread: frozenset[str]
    span: bool

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        whole: Any = getattr(model, "classifier", None) or model.encoder
        reads = frozenset(inspect.signature(whole.forward).parameters)
        unread = reads - {model.main_input_name, *_CONTEXT, *_LABELS}
        wrapper: Any = model.ponder
        return cls(model.main_input_name, unread, isinstance(wrapper.task, Span))

    def __call__(self, example: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(example, Mapping) or self.name not in example:
            raise ArgumentTypeError(
                "example",
                expected=f"a dict with {self.name}",
                got=f"a dict with {', '.join(example)}" if isinstance(example, Mapping) else type(example).__name__,
                remedy="Tokenise texts first, without padding; prepare images and audio by their processor.",
            )
        if _is_empty(example[self.name]):
            raise ArgumentError(
                "example",
                expected=f"one token, or one element of another kind, at least in {self.name}",
                got="none",
                remedy="Drop empty examples before the model, or answer them yourself.",
            )
        if others := sorted(name for name in example if name in self.unread and example[name] is not None):
            raise ArgumentError(
                "example",
                expected=f"no inputs but {self.name} and {' and '.join(_CONTEXT)}",
                got=f"{', '.join(others)}, which the encoder reads too",
                remedy="Remove the column where it says nothing; else ponder.capture the model with it in the example, "
                "and put ponder.PonderWrapper around the parts.",
            )
        context = {key: example[key] for key in _CONTEXT if example.get(key) is not None}
        labels = example.get("labels", example.get("label"))  # as the collators of Transformers read them
        places = [example.get(name) for name in _SPAN if self.span]
        if labels is None and places and all(place is not None for place in places):
            labels = torch.stack([torch.as_tensor(place) for place in places], dim=-1)
        return example[self.name], context if labels is None else {**context, "labels": labels}


def _is_empty(value: Any) -> bool:
    shape = getattr(value, "shape", None)
    return isinstance(value, list | tuple) and not value if shape is None else 0 in shape
