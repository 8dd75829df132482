"""A whole data set through a model of this package: to its exits, or through all steps."""

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

__all__ = ["predict_rows", "record_rows"]

_CONTEXT = ("attention_mask", "token_type_ids")


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
            there, and nothing else.
        collate: Makes a batch from a list of examples of any kind: a collator of Transformers, say.
        options: Arguments of `ponder.predict`.
    """
    wrapper: Any = model.ponder
    name = model.main_input_name
    if collate is None:
        found = predict(wrapper, _Pairs(dataset, name), owner=model, **options)
    else:
        found = predict(wrapper, dataset, collate=lambda rows: _pair(collate(rows), name), owner=model, **options)
    return found if len(found) else replace(found, outputs=found.outputs.reshape(0, int(model.config.num_labels or 1)))


def record_rows(
    model: PreTrainedModel,
    dataset: Iterable[Any],
    *,
    collate: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    **options: Any,
) -> Trajectory:
    """`ponder.inference.recording.record` on what a tokenizer gives; arguments as for it and for `predict_rows`.

    The labels are those of the call, or those that the examples carry as `labels` or `label`.
    """
    name = model.main_input_name
    if collate is None:
        return record(model.ponder, _Pairs(dataset, name), owner=model, **options)
    return record(model.ponder, dataset, collate=lambda rows: _pair(collate(rows), name), owner=model, **options)


class _Pairs:
    """A data set as pairs (inputs, context)."""

    def __init__(self, dataset: Any, name: str) -> None:
        self.dataset, self.name = dataset, name

    def __iter__(self) -> Any:
        return (_pair(example, self.name) for example in examples_in(self.dataset))


def _pair(example: Any, name: str) -> tuple[Any, dict[str, Any]]:
    if not isinstance(example, Mapping) or name not in example:
        raise ArgumentTypeError(
            "example",
            expected=f"a dict with {name}",
            got=f"a dict with {', '.join(example)}" if isinstance(example, Mapping) else type(example).__name__,
            remedy="Tokenise texts first, without padding; prepare images and audio by their processor.",
        )
    context = {key: example[key] for key in _CONTEXT if example.get(key) is not None}
    labels = example.get("labels", example.get("label"))  # as the collators of Transformers read them
    return example[name], context if labels is None else {**context, "labels": labels}
