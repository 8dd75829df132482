"""A whole data set through the sequence-classification model: to its exits, or through all steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from transformers import PreTrainedModel

from ponder.errors import ArgumentTypeError
from ponder.inference.examples import examples_in
from ponder.inference.prediction import Predictions, predict
from ponder.inference.recording import record
from ponder.trajectory import Trajectory

__all__ = ["predict_texts", "record_texts"]

_CONTEXT = ("attention_mask", "token_type_ids")


def predict_texts(
    model: PreTrainedModel,
    dataset: Iterable[Any],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Predictions:
    """`ponder.predict` on what a tokenizer gives: a dict for each example, with `input_ids`, and lists or tensors.

    Args:
        model: A model of this package, whose `ponder` is a `PonderWrapper`.
        dataset: Examples, or a DataLoader of batches; `attention_mask` and `token_type_ids` are used where they are
            there, and nothing else.
        collate: Makes a batch from a list of examples of any kind: a collator of Transformers, say.
        options: As for `ponder.predict`.
    """
    wrapper: Any = model.ponder
    if collate is None:
        found = predict(wrapper, _Pairs(dataset), owner=model, **options)
    else:
        found = predict(wrapper, dataset, collate=lambda rows: _pair(collate(rows)), owner=model, **options)
    return found if len(found) else replace(found, outputs=found.outputs.reshape(0, int(model.config.num_labels or 1)))


def record_texts(
    model: PreTrainedModel,
    dataset: Iterable[Any],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Trajectory:
    """`ponder.inference.recording.record` on what a tokenizer gives; arguments as for it and for `predict_texts`.

    The labels are those of the call, or those that the examples carry as `labels` or `label`.
    """
    if collate is None:
        return record(model.ponder, _Pairs(dataset), owner=model, **options)
    return record(model.ponder, dataset, collate=lambda rows: _pair(collate(rows)), owner=model, **options)


class _Pairs:
    """A data set as pairs (inputs, context)."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Any:
        return (_pair(example) for example in examples_in(self.dataset))


def _pair(example: Any) -> tuple[Any, dict[str, Any]]:
    if not isinstance(example, Mapping) or "input_ids" not in example:
        raise ArgumentTypeError(
            "example",
            expected="a dict with input_ids",
            got=f"a dict with {', '.join(example)}" if isinstance(example, Mapping) else type(example).__name__,
            remedy="Tokenise the texts first, without padding.",
        )
    context = {name: example[name] for name in _CONTEXT if example.get(name) is not None}
    labels = example.get("labels", example.get("label"))  # as the collators of Transformers read them
    return example["input_ids"], context if labels is None else {**context, "labels": labels}
