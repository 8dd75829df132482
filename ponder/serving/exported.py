"""Export folders as models that a service can run: onnxruntime, in batches of a short window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ponder._utils.columns import fitted_columns
from ponder.engine.loop import Exits
from ponder.errors import CheckpointError
from ponder.export.examples import encoded, open_tokenizer
from ponder.export.manifest import Manifest
from ponder.export.runtime import OnnxModel
from ponder.parts.tasks.named import task_recorded
from ponder.policies import ExitPolicy
from ponder.serving.model import ServedModel, Text, Tokens, check_texts, check_tokens
from ponder.serving.window import WindowBatcher

__all__ = ["open_export"]


def open_export(folder: Path, digests: Mapping[str, str]) -> ServedModel:
    """An export of `ponder.export.onnx` of a text classifier; classes without names are called by their numbers.

    Raises:
        CheckpointError: The folder is broken, or has no tokenizer, or its task finds answers in code of its own.
    """
    model = OnnxModel(folder, threads=torch.get_num_threads())
    manifest = model.manifest
    if manifest.tokenizer is None:
        raise CheckpointError(f"{folder}: has no tokenizer, so no texts can be served. Export it with tokenizer=….")
    tokenizer = open_tokenizer(folder, manifest)
    if manifest.own_answers:
        raise CheckpointError(
            f"{folder}: its task {manifest.task!r} finds answers in code of its own, which an export does not hold. "
            "Serve the model with PyTorch."
        )
    if manifest.per_position:
        raise CheckpointError(
            f"{folder}: expected one answer a text; its task {manifest.task!r} has them at positions. "
            "Call the export itself: ponder.export.OnnxModel(folder).predict(texts)."
        )
    task = task_recorded(manifest.task, classes=manifest.classes, numbers=manifest.numbers)
    return ServedModel(
        num_steps=manifest.num_steps,
        policy=ExitPolicy.from_dict(model.policy),
        task=task,
        labels=() if task.numbers else manifest.labels or tuple(str(place) for place in range(manifest.outputs[-1])),
        tokenize=partial(_tokens, tokenizer, manifest, fitted_columns(folder)),
        start=partial(WindowBatcher.within, partial(_run, model)),
        check=model.check,
        folder=folder,
        digests=digests,
    )


def _tokens(tokenizer: Any, manifest: Manifest, columns: Sequence[str], texts: Sequence[Text]) -> Tokens:
    check_texts(texts, columns)
    made = tokenizer.encode_batch(list(texts))
    check_tokens(encoding.ids for encoding in made)
    return Tokens([encoded(encoding, manifest) for encoding in made], [bool(encoding.overflowing) for encoding in made])


def _run(model: OnnxModel, examples: Sequence[Any], policy: ExitPolicy | None, row_ids: Sequence[int]) -> Exits:
    answers = model.predict(examples, batch_size=len(examples), policy=policy, row_ids=np.asarray(row_ids))
    return Exits(torch.from_numpy(answers.outputs), torch.from_numpy(answers.exit_step))
