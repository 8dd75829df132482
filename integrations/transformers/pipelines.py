"""`pipeline`: that of Transformers, whose pipelines take `policy=`, and give the exits on request.

Its own `pipeline(…)` runs models of this package too, with the policy that they were saved with.
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

from ponder._utils.checks import check_choice
from ponder._utils.modes import evaluating
from ponder.integrations.transformers.texts import ids_by_content
from ponder.policies import ExitPolicy

__all__ = ["pipeline"]


def pipeline(task: str, model: str | PathLike[str] | PreTrainedModel, **arguments: Any) -> Pipeline:
    """Return a pipeline of Transformers for a model of this package.

    It is called as any, with two further arguments, which `arguments` may hold too: `policy`, an exit policy instead of
    the model's own, and `exit_step=True`, which adds the exit to each result. The model answers in evaluation mode, and
    keeps the mode that it had.

    Args:
        task: ``"text-classification"``, ``"token-classification"``, ``"image-classification"``,
            ``"audio-classification"`` or ``"feature-extraction"``, or another name of one of these.
        model: A model, a folder or a hub name.
        arguments: Arguments of `transformers.pipeline`.

    Example:
        >>> classify = pipeline("text-classification", model, tokenizer=tokenizer)
        >>> classify("a short text", exit_step=True, policy=policies.FixedStep(2))
        [{'label': 'LABEL_...', 'score': 0..., 'exit_step': 2}]
    """
    name = {"sentiment-analysis": "text-classification", "ner": "token-classification"}.get(task, task)
    check_choice("task", name, _PIPELINES)
    if isinstance(model, PreTrainedModel):
        arguments.setdefault("tokenizer", getattr(model, "tokenizer", None))
    build: Any = transformers.pipeline
    made: Pipeline = build(name, model, pipeline_class=_PIPELINES[name], **arguments)
    return made


class _Exits(Pipeline):
    """Exits in a pipeline of Transformers, from which a subclass inherits besides."""

    def _sanitize_parameters(
        self, *args: Any, policy: ExitPolicy | None = None, exit_step: bool | None = None, **kwargs: Any
    ) -> Any:
        base: Any = super()
        before, forward, after = base._sanitize_parameters(*args, **kwargs)
        forward = forward if policy is None else {**forward, "policy": policy}
        return before, forward, after if exit_step is None else {**after, "exit_step": exit_step}

    def _forward(  # type: ignore[override]
        self, *args: Any, policy: ExitPolicy | None = None, **kwargs: Any
    ) -> Any:
        base: Any = super()
        inputs, *others = args
        with evaluating(self.model):
            return base._forward({**inputs, "policy": policy, "row_ids": ids_by_content(inputs)}, *others, **kwargs)

    def postprocess(self, *args: Any, exit_step: bool = False, **kwargs: Any) -> Any:  # type: ignore[override]
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


class _FeatureExtraction(_Exits, FeatureExtractionPipeline):
    pass


class _TokenClassification(_Exits, TokenClassificationPipeline):
    """A long text may be cut into pieces, which exit alone; its tokens have the exit of the deepest."""

    def _forward(  # type: ignore[override]
        self, model_inputs: Mapping[str, Any], policy: ExitPolicy | None = None
    ) -> Any:
        model: Any = self.model
        given = {name: model_inputs[name] for name in model.adapter.inputs if name in model_inputs}
        with evaluating(model):
            out = model(**given, policy=policy, row_ids=ids_by_content(given))
        return {"offset_mapping": None, **model_inputs, "logits": out.logits, "exit_step": out.exit_step}


_PIPELINES: dict[str, type[Pipeline]] = {
    "text-classification": _TextClassification,
    "token-classification": _TokenClassification,
    "image-classification": _ImageClassification,
    "audio-classification": _AudioClassification,
    "feature-extraction": _FeatureExtraction,
}
