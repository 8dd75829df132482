"""`open_folder`: any folder that `ponder` wrote with a text classifier in it, as a model that a service can run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch

from ponder._utils.columns import fitted_columns
from ponder._utils.files import read_json
from ponder._utils.modes import check_evaluating
from ponder._utils.validation import check_choice
from ponder.engine.certificates import policy_to_hand_on
from ponder.engine.loop import Exits
from ponder.errors import CheckpointError
from ponder.inference.examples import ExampleReader, placed
from ponder.inference.streaming import StreamEngine
from ponder.integrations.transformers.configuration import PonderConfig
from ponder.integrations.transformers.finetuned import EXITS_FILE, FinetunedClassifier, is_export
from ponder.integrations.transformers.sequence_classification import PonderForSequenceClassification
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy
from ponder.serving import Batcher, Limits, ServedModel, Text, Tokens, WindowBatcher
from ponder.serving.exported import open_export
from ponder.serving.model import check_texts, check_tokens
from ponder.serving.watching import digests_of
from ponder.serving.window import BatchRunner
from ponder.wrapper import PonderWrapper

__all__ = ["Batching", "open_folder", "served"]

Batching = Literal["stream", "window"]


def open_folder(folder: str | PathLike[str], *, batching: Batching = "stream") -> ServedModel:
    """Read a model to serve.

    Args:
        folder: A folder that `ponder exits` (or `FinetunedClassifier.save_pretrained`) or
            `PonderForSequenceClassification.save_pretrained` wrote, or an export of `ponder.export.onnx`; with its
            tokenizer.
        batching: ``"stream"``: rows at different depths share steps, and a row leaves when it is done; ``"window"``:
            whole batches of what came within a short window, as an export always does.

    Raises:
        ArgumentError: The folder holds an export and exits that were saved, which may answer differently.
        CheckpointError: The folder is none of these, is damaged, or has no tokenizer.

    Example:
        >>> model.save_pretrained("saved")
        >>> _ = tokenizer.save_pretrained("saved")
        >>> open_folder("saved").num_steps
        4
    """
    check_choice("batching", batching, ("stream", "window"))
    place = Path(folder)
    digests = digests_of(place)  # before the model is read, so that no change in between is missed
    if is_export(place):
        return open_export(place, digests)
    if EXITS_FILE in digests:
        model: Any = FinetunedClassifier.from_pretrained(place)
        longest = max_positions(model)
    elif "config.json" in digests and _architecture(place) == PonderForSequenceClassification.__name__:
        model = PonderForSequenceClassification.from_pretrained(place).eval()
        longest = max_positions(model.encoder)
    else:
        raise CheckpointError(
            f"{place}: expected a folder of `ponder exits`, of PonderForSequenceClassification or of "
            "ponder.export.onnx; got none of them. A plain classifier is given exits first: ponder exits MODEL."
        )
    tokenizer = load_tokenizer(str(place))
    return served(model.ponder, model.config.id2label, tokenizer, longest, batching, folder=place, digests=digests)


def served(
    model: PonderWrapper,
    id2label: Mapping[int, str],
    tokenizer: Any,
    longest: int,
    batching: Batching = "stream",
    *,
    folder: Path | None = None,
    digests: Mapping[str, str] | None = None,
) -> ServedModel:
    """A model in memory as one that a service can run.

    Args:
        model: The model, in evaluation mode, on token ids with `attention_mask` and `token_type_ids`.
        id2label: Names of the classes, by number; JSON has numbers as texts.
        tokenizer: The model's tokenizer, one of Transformers.
        longest: The number of tokens that texts are cut to.
        batching: How texts share steps, as for `open_folder`.
        folder: The folder that it was read from, or None.
        digests: SHA-256 of the folder's files, by name.

    Raises:
        ArgumentError: The model is in training mode.

    Example:
        >>> made = served(model.ponder, {0: "no", 1: "maybe", 2: "yes"}, tokenizer, longest=32)
        >>> made.labels, made.tokenize(["a short text"]).truncated
        (('no', 'maybe', 'yes'), [False])
    """
    check_evaluating(model)
    return ServedModel(
        num_steps=model.num_steps,
        policy=policy_to_hand_on(model),
        task=model.task or task_named(None),
        labels=tuple(str(id2label[place]) for place in sorted(id2label, key=int)),
        tokenize=partial(_tokens, tokenizer, longest, fitted_columns(folder) if folder else ()),
        start=partial(_stream if batching == "stream" else _window, model),
        check=model.checked,
        folder=folder,
        digests=digests,
    )


def _architecture(folder: Path) -> str | None:
    config = read_json(folder / "config.json")
    names = config.get("architectures")
    ours = config.get("model_type") == PonderConfig.model_type and isinstance(names, list)
    return str(names[0]) if ours and names else None


def _tokens(tokenizer: Any, longest: int, columns: Sequence[str], texts: Sequence[Text]) -> Tokens:
    check_texts(texts, columns)
    made = tokenize(tokenizer, [(text,) if isinstance(text, str) else text for text in texts], longest)
    check_tokens(row["input_ids"] for row in made.rows)
    return Tokens([_example(row) for row in made.rows], made.cut)


def _example(row: Mapping[str, Any]) -> Any:
    tensors = {name: torch.tensor(values) for name, values in row.items()}
    return tensors.pop("input_ids"), tensors


def _stream(model: PonderWrapper, limits: Limits) -> Batcher:
    return StreamEngine(model, max_batch=limits.max_batch, max_waiting=limits.places)


def _window(model: PonderWrapper, limits: Limits) -> Batcher:
    return WindowBatcher.within(_batch_runner(model), limits)


def _batch_runner(model: PonderWrapper) -> BatchRunner:
    """What runs a batch of examples to their exits, for a `WindowBatcher`."""
    reader, device = ExampleReader(model.padding), next(model.parameters()).device

    def run(examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
        with torch.inference_mode():
            inputs, context = placed(*reader.batch([reader.read(example) for example in examples]), device)
            exits = model.exits(inputs, context, model.checked(policy), row_ids=torch.tensor(row_ids))
        return Exits(exits.outputs.clone(), exits.exit_step)

    return run
