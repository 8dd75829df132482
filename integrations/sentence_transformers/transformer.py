"""`PonderTransformer`: the library's `Transformer` module, with a model of this package inside that exits per row."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from sentence_transformers.base.modules import Transformer

from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.transformers import FinetunedClassifier, PonderForSequenceClassification, PonderModel
from ponder.integrations.transformers.finetuned import EXITS_FILE
from ponder.integrations.transformers.row_ids import ids_by_content
from ponder.policies import ExitPolicy

__all__ = ["PonderTransformer"]

_GIVEN = ("input_ids", "attention_mask", "token_type_ids", "pixel_values", "input_values", "input_features")
_TASKS: dict[type[Any], Any] = {
    PonderModel: "feature-extraction",
    PonderForSequenceClassification: "sequence-classification",
    FinetunedClassifier: "sequence-classification",
}


_FINDING = (
    *("model_name_or_path", "transformer_task", "config", "backend", "is_peft_model", "subfolder", "token"),
    *("cache_dir", "revision", "local_files_only", "trust_remote_code"),
)
"""What `Transformer` says of where a model is; all else asks for something of it."""


def _check_asked(backend: str | None, options: Mapping[str, Any]) -> None:
    """Refuse to load a `FinetunedClassifier` otherwise than it was saved, which its certificate is about."""
    asked = {name: value for name, value in options.items() if name not in _FINDING and value not in (None, "auto")}
    if backend not in (None, "torch"):
        asked["backend"] = backend
    if asked:
        raise ArgumentError(
            "model_kwargs",
            expected="nothing for a FinetunedClassifier, which runs in PyTorch, in the type of weights in which it was "
            "saved and certified",
            got=", ".join(f"{name}={value!r}" for name, value in asked.items()),
            remedy="Leave it out; for another type, load the classifier in it, fit its exits again, and save it.",
        )


class PonderTransformer(Transformer):
    """The first module of a `SentenceTransformer` or `CrossEncoder`, whose rows leave at steps of their own.

    A `PonderModel` gives the tokens of each row as they were at its exit (``readout="tokens"``), and the modules behind
    pool them; or, with another readout, the embedding itself. A `PonderForSequenceClassification` gives scores, and so
    does a `FinetunedClassifier`, a classifier of pairs that was fine-tuned already. The features also hold `exit_step`:
    `encode(texts, output_value=None)` shows it, and `prediction.predict` gives it.

    In training every step runs, and the answer is that of the last; the tokens of each step are in the features as
    `all_layer_embeddings`, by which the library's `AdaptiveLayerLoss` trains every exit; they are so in evaluation mode
    too, at full depth, while `config.output_hidden_states` is set, as that loss sets it, and no policy is named.

    Args:
        model_name_or_path: A folder that `save` wrote, or a saved model of this package with its tokenizer.
        options: Arguments of `Transformer`.

    Example:
        >>> from ponder.integrations.transformers import PonderModel
        >>> module = PonderTransformer.of(PonderModel.from_encoder(encoder, "vanilla", readout="tokens"), tokenizer)
        >>> module.get_embedding_dimension()
        16
    """

    forward_kwargs = {"policy", "exit_column"}  # noqa: RUF012 (the base class's protocol)
    """What `encode` and `predict` hand on to `forward`."""

    def __init__(self, model_name_or_path: str, **options: Any) -> None:
        super().__init__(model_name_or_path, **options)
        self._limit_length()

    def _limit_length(self) -> None:
        longest = getattr(self._encoder_config, "max_position_embeddings", None)
        if self.tokenizer is not None and isinstance(longest, int) and longest > 0:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, longest)

    @classmethod
    def of(
        cls, model: PonderModel | PonderForSequenceClassification | FinetunedClassifier, processor: Any, **options: Any
    ) -> Self:
        """The module around a model that is in memory; its weights are used, not copied.

        Args:
            model: A `PonderModel`, a `PonderForSequenceClassification`, or a `FinetunedClassifier` of texts.
            processor: Its tokenizer, or another processor of Transformers.
            options: Arguments of `Transformer`.

        Raises:
            ArgumentTypeError: Another kind of model, or of answers.
        """
        of_tokens = isinstance(model, FinetunedClassifier) and model.kind.task.per_position
        if type(model) not in _TASKS or of_tokens:
            raise ArgumentTypeError(
                "model",
                expected=" or ".join(kind.__name__ for kind in _TASKS),
                got=type(model).__name__ + (", with an answer for each token" if of_tokens else ""),
                remedy="Build one with from_encoder; a whole SentenceTransformer is for with_exits.",
            )
        with TemporaryDirectory() as folder:  # the base class reads configuration and processor from files only
            model.config.save_pretrained(folder)
            processor.save_pretrained(folder)
            given = {**(options.pop("model_kwargs", None) or {}), "model": model}
            made = cls(folder, transformer_task=_TASKS[type(model)], model_kwargs=given, **options)
        made.processor = copy.deepcopy(processor)  # files do not know all that was set on it, such as truncation_side
        made._limit_length()
        return made

    def _load_model(self, *args: Any, model: Any = None, **options: Any) -> Any:
        """The model that `of` was given, or else the one in the folder."""
        if model is not None:
            return model
        folder = Path(options["model_name_or_path"] if "model_name_or_path" in options else args[0])
        if (folder / EXITS_FILE).is_file():
            _check_asked(args[3] if len(args) > 3 else options.get("backend"), options)
            return FinetunedClassifier.from_pretrained(folder)
        return super()._load_model(*args, **options)

    def save(self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any) -> None:
        """Write the model as the library does; a `FinetunedClassifier` writes its exits beside the classifier."""
        model: Any = self.model
        if not isinstance(model, FinetunedClassifier):
            super().save(output_path, *args, safe_serialization=safe_serialization, **kwargs)
            return
        model.save_pretrained(output_path)
        self.processor.save_pretrained(output_path)
        self.save_config(output_path)

    def get_embedding_dimension(self) -> int:
        """The size of what is given for a token or a row; of a fine-tuned classifier, that of its encoder."""
        model: Any = self.model
        if isinstance(model, FinetunedClassifier):
            return super().get_embedding_dimension()
        return int(model.config.feature_size or self._encoder_config.hidden_size)

    @property
    def _encoder_config(self) -> Any:
        model: Any = self.model
        return model.config if isinstance(model, FinetunedClassifier) else model.encoder.config

    def forward(
        self, features: dict[str, Any], policy: ExitPolicy | None = None, exit_column: bool = False, **ignored: Any
    ) -> dict[str, Any]:
        """Run each row to its exit.

        Args:
            features: What `preprocess` gave; `token_embeddings`, `sentence_embedding` or `scores`, and `exit_step`,
                `(batch,)`, are added.
            policy: Decides instead of the model's own policy.
            exit_column: Append the exit step to the scores, as one more column.
            ignored: What other modules read.
        """
        model: Any = self.model
        given = {name: features[name] for name in _GIVEN if name in features}
        if policy is None and _asks_for_layers(model):
            layers = features["all_layer_embeddings"] = list(model.unroll(**given).outputs.unbind(1))
            features["token_embeddings"] = last = layers[-1]
            features["exit_step"] = torch.full((len(last),), len(layers), device=last.device)
            return features
        out = model(**given, policy=policy, row_ids=ids_by_content(given))
        if isinstance(model, PonderForSequenceClassification | FinetunedClassifier):
            scores = out.outputs if isinstance(model, FinetunedClassifier) else out.logits
            features["scores"] = torch.cat([scores, out.exit_step[:, None].to(scores)], 1) if exit_column else scores
        elif out.last_hidden_state is None:
            features["sentence_embedding"] = out.pooler_output
        else:
            features["token_embeddings"] = out.last_hidden_state
            if out.step_logits is not None:
                features["all_layer_embeddings"] = list(out.step_logits.unbind(1))
        features["exit_step"] = out.exit_step
        return features


def _asks_for_layers(model: Any) -> bool:
    """Whether a loss that reads the tokens of every layer is evaluated; in training they come by themselves."""
    if not isinstance(model, PonderModel) or model.training or model.config.readout != "tokens":
        return False
    return bool(model.config.output_hidden_states)
