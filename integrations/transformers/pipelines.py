"""`pipeline`: that of Transformers, whose pipelines take `policy=`, and tell the exits on request.

Its own `pipeline(…)` runs models of this package too, with the policy that they were saved with; an argument that it
does not know, such as `policy`, goes to the tokenizer there, which ignores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import transformers
from transformers import (
    AudioClassificationPipeline,
    FeatureExtractionPipeline,
    ImageClassificationPipeline,
    Pipeline,
    PreTrainedModel,
    TextClassificationPipeline,
    TokenClassificationPipeline,
)

from ponder._utils.modes import evaluating
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers.finetuned import FinetunedClassifier, has_exits
from ponder.integrations.transformers.modeling import PonderPreTrainedModel
from ponder.integrations.transformers.row_ids import ids_by_content
from ponder.policies import ExitPolicy

__all__ = ["pipeline"]

_GIVEN = ("input_ids", "attention_mask", "token_type_ids")


def pipeline(task: str, model: str | PathLike[str] | PreTrainedModel, **arguments: Any) -> Pipeline:
    """A pipeline of Transformers for a model of this package.

    What it gives is called as any, with two further arguments, which `arguments` may hold too: `policy`, who decides to
    exit instead of the model's own policy, and `exit_step=True`, which adds the exit to each result. The model answers
    in evaluation mode, and keeps the mode that it had.

    Args:
        task: ``"text-classification"``, ``"token-classification"``, ``"image-classification"``,
            ``"audio-classification"`` or ``"feature-extraction"``, or another name of one of these.
        model: A model, a folder or a hub name.
        arguments: Arguments of `transformers.pipeline`.

    Raises:
        ArgumentError: A task that models of this package do not have, or a model that is none of them.

    Example:
        >>> classify = pipeline("text-classification", model, tokenizer=tokenizer)
        >>> classify("a short text", exit_step=True, policy=policies.FixedStep(2))
        [{'label': 'LABEL_...', 'score': 0..., 'exit_step': 2}]
    """
    name = {"sentiment-analysis": "text-classification", "ner": "token-classification"}.get(task, task)
    if name not in _PIPELINES:
        raise ArgumentError(
            "task",
            expected=f"one of {', '.join(_PIPELINES)}",
            got=repr(task),
            remedy="Use transformers.pipeline for other models.",
        )
    if isinstance(model, FinetunedClassifier) or (isinstance(model, str | PathLike) and has_exits(model)):
        raise ArgumentTypeError(
            "model",
            expected="a model of this package's own classes, such as PonderForSequenceClassification",
            got="a fine-tuned classifier with exits, which pipelines would run without them",
            remedy="Read it with FinetunedClassifier.from_pretrained(folder), and call its predict(…), or run "
            "`ponder predict folder --texts …`.",
        )
    build: Any = transformers.pipeline
    made: Pipeline = build(name, model, pipeline_class=_PIPELINES[name], **arguments)
    if not any(isinstance(module, PonderPreTrainedModel) for module in made.model.modules()):
        raise ArgumentTypeError(
            "model",
            expected="a model of this package",
            got=f"a {type(made.model).__name__}, which has no exits",
            remedy="Use transformers.pipeline for it.",
        )
    return made


class _Exits(Pipeline):
    """What is added to a pipeline of Transformers, from which a subclass inherits besides."""

    tells_exits = True

    def _sanitize_parameters(
        self, *args: Any, policy: ExitPolicy | None = None, exit_step: bool | None = None, **kwargs: Any
    ) -> Any:
        base: Any = super()
        before, forward, after = base._sanitize_parameters(*args, **kwargs)
        if exit_step and not self.tells_exits:
            raise ArgumentError(
                "exit_step",
                expected=f"None for a {self.task}, whose results have no place for it",
                got=exit_step,
                remedy="Call the model itself: its output has exit_step.",
            )
        if policy is not None:
            forward = {**forward, "policy": policy}
        return before, forward, after if exit_step is None else {**after, "exit_step": exit_step}

    def _forward(  # type: ignore[override]
        self, *args: Any, policy: ExitPolicy | None = None, **kwargs: Any
    ) -> Any:
        base: Any = super()
        inputs, *others = args
        with evaluating(self.model):
            return base._forward({**inputs, "policy": policy, "row_ids": ids_by_content(inputs)}, *others, **kwargs)

    def postprocess(  # type: ignore[override]
        self, *args: Any, exit_step: bool = False, **kwargs: Any
    ) -> Any:
        """Make the results as Transformers does, with the exit in each where it is asked for."""
        base: Any = super()
        results = base.postprocess(*args, **kwargs)
        if not exit_step:
            return results
        pieces = [args[0]] if isinstance(args[0], Mapping) else args[0]
        exits = {"exit_step": max(int(piece["exit_step"][0]) for piece in pieces)}
        return {**results, **exits} if isinstance(results, Mapping) else [{**result, **exits} for result in results]


class _TextClassification(_Exits, TextClassificationPipeline):
    pass


class _ImageClassification(_Exits, ImageClassificationPipeline):
    pass


class _AudioClassification(_Exits, AudioClassificationPipeline):
    pass


class _TokenClassification(_Exits, TokenClassificationPipeline):
    """A long text may be cut into pieces, which leave alone; its tokens tell the exit of the deepest."""

    def _forward(  # type: ignore[override]
        self, model_inputs: Mapping[str, Any], policy: ExitPolicy | None = None
    ) -> Any:
        given = {name: model_inputs[name] for name in _GIVEN if name in model_inputs}
        with evaluating(self.model):
            out = self.model(**given, policy=policy, row_ids=ids_by_content(given))
        found = {"logits": out.logits, "exit_step": out.exit_step}  # beside what came, which is cut into rows with them
        return {"offset_mapping": None, **model_inputs, **found}


class _FeatureExtraction(_Exits, FeatureExtractionPipeline):
    tells_exits = False


_PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": _TextClassification,
    "token-classification": _TokenClassification,
    "image-classification": _ImageClassification,
    "audio-classification": _AudioClassification,
    "feature-extraction": _FeatureExtraction,
}
