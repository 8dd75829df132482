"""`PonderForSequenceClassification`: a Hugging Face encoder that exits per example."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput

from ponder import recipes
from ponder.errors import ArgumentError
from ponder.export.source import ExportSource
from ponder.inference.prediction import Predictions
from ponder.integrations.transformers.adapter import EncoderAdapter, adapter_for
from ponder.integrations.transformers.configuration import READOUTS, PonderConfig
from ponder.integrations.transformers.loading import load_encoder, load_whole
from ponder.integrations.transformers.prediction import predict_texts
from ponder.parts.heads import HazardLayer
from ponder.parts.readouts import mean
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe, Stage, freeze_for
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["PonderForSequenceClassification", "PonderSequenceClassifierOutput"]

_TASKS: dict[str, TaskName] = {
    "single_label_classification": "classification",
    "regression": "regression",
    "multi_label_classification": "multilabel",
}


@dataclass
class PonderSequenceClassifierOutput(ModelOutput):
    """What a call gives.

    Args:
        loss: Scalar, where labels were given.
        logits: Outputs at each row's exit (in training: of the last step), `(batch, labels)`.
        exit_step: The step of `logits`, `(batch,)`, 1-based.
        step_logits: In training, outputs of every step, `(batch, steps, labels)`.
        hazard_logits: In training, with a Lambda head, `(batch, steps)`.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderForSequenceClassification(PreTrainedModel):
    """An encoder with the heads, prior, objective and policy of a recipe.

    Build it from an encoder with `from_encoder`; reload it with `from_pretrained`.

    Args:
        config: The configuration; weights are random until they are loaded.
        encoder: The encoder to use instead of a new one made from the configuration.
    """

    config_class = PonderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (the base class's protocol)

    def __init__(self, config: PonderConfig, encoder: PreTrainedModel | None = None) -> None:
        attention = config._attn_implementation  # what was asked for; the base class puts its own choice there
        super().__init__(config)
        if encoder is None:
            self.encoder = AutoModel.from_config(
                config.encoder_config(), trust_remote_code=False, attn_implementation=attention
            )
        else:
            self.encoder = _as_loaded(encoder)
        task, recipe, adapter = _task(config), config.make_recipe(), adapter_for(self.encoder)
        steps = adapter.steps()
        head, lambda_head = recipe.make_heads(
            self.encoder.config.hidden_size, int(config.num_labels or 1), steps.num_steps, config.head_dropout
        )
        self.ponder = PonderWrapper(
            steps,
            head=head,
            lambda_head=lambda_head,
            prior=recipe.prior,
            objective=recipe.stages[0].objective,
            policy=recipe.policy,
            stem=adapter.stem,
            readout=_readout(config.readout, adapter),
            task=task,
            padding=adapter.padding(),
        )
        self.ponder.to(device=self.encoder.device, dtype=self.encoder.dtype)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """As Transformers does, which draws all linear layers anew; a Lambda head still starts at its hazard."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, HazardLayer):
            initialization.constant_(module.bias, module.start_logit)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PathLike[str] | PreTrainedModel,
        recipe: str | Recipe = "palbert",
        num_labels: int = 2,
        *,
        readout: Literal["pooler", "mean"] = "pooler",
        policy: ExitPolicy | None = None,
        problem_type: str | None = None,
        head_dropout: float = 0.1,
        **config: Any,
    ) -> Self:
        """Put a recipe's heads on a pretrained encoder.

        Args:
            encoder: A hub name, a folder, or a bare encoder (its weights are used, not copied).
            recipe: A recipe or its name; its policy is that for the task, and what its paper tuned is scaled to the
                encoder's steps.
            num_labels: Classes; 1 is regression.
            readout: ``"pooler"`` or ``"mean"``.
            policy: An exit policy instead of the recipe's.
            problem_type: As in Transformers; taken from `num_labels` where None.
            head_dropout: Dropout in front of the head.
            config: Further fields of the configuration, for example `id2label`.

        Raises:
            ArgumentError: An unknown recipe, readout or family of encoders.
            CheckpointError: The encoder cannot be loaded from safetensors.
        """
        if isinstance(encoder, str | PathLike):
            encoder = load_encoder(encoder)
        recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
        problem_type = problem_type or ("regression" if num_labels == 1 else "single_label_classification")
        recipe = recipe.for_steps(adapter_for(encoder).steps().num_steps)
        recipe = recipe.for_task(_TASKS.get(problem_type, problem_type))
        made = PonderConfig(
            encoder={**encoder.config.to_diff_dict(), "model_type": encoder.config.model_type},
            recipe=recipe.to_dict(),
            readout=readout,
            head_dropout=head_dropout,
            num_labels=num_labels,
            problem_type=problem_type,
            **config,
        )
        model = cls(made, encoder=encoder)
        model.policy = model.policy if policy is None else policy
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Transformers, from safetensors only: nothing is unpickled.

        Raises:
            CheckpointError: The folder does not hold a whole model.
        """
        read = super().from_pretrained
        with_info = kwargs.pop("output_loading_info", False)
        model, info = load_whole(
            lambda source, **named: read(source, *args, **named),
            pretrained_model_name_or_path,
            "model",
            "Pass a folder that save_pretrained wrote; a plain encoder is for from_encoder.",
            **kwargs,
        )
        return (model, info) if with_info else model

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy; assigning one checks it, and saves it with the model."""
        return self.ponder.policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self.ponder.policy = policy
        self.config.recipe = {**self.config.recipe, "policy": policy.to_dict()}

    @property
    def recipe(self) -> Recipe:
        """The recipe, scaled to this encoder."""
        recipe: Recipe = self.config.make_recipe()
        return recipe

    def start_stage(self, stage: Stage) -> None:
        """Take the objective of a stage of training, and freeze what it does not train."""
        self.ponder.objective = stage.objective
        freeze_for(stage, self.encoder, self.ponder.head)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """What `gradient_checkpointing_enable` calls: steps are checkpointed, whole, whatever the family of layers."""
        self.gradient_checkpointing = self.ponder.checkpoint_steps = enable

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
    ) -> PonderSequenceClassifierOutput:
        """As `PonderWrapper.forward`: every step in training, each row to its exit in evaluation.

        Args:
            input_ids: Token ids, `(batch, length)`.
            attention_mask: 1 at tokens and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            labels: Labels, `(batch,)` (multilabel: `(batch, labels)`).
            policy: Decides instead of the model's own policy.
            row_ids: Who each row is, `(batch,)`, for seeded sampling.
        """
        out = self.ponder(
            input_ids,
            labels=labels,
            policy=policy,
            row_ids=row_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
        )
        unrolled = out.trajectory
        return PonderSequenceClassifierOutput(
            loss=out.loss,
            logits=out.outputs,
            exit_step=out.exit_step,
            step_logits=None if unrolled is None else unrolled.outputs,
            hazard_logits=None if unrolled is None else unrolled.hazard_logits,
        )

    def export_source(self) -> ExportSource:
        """What `ponder.export.onnx` writes: two rows of tokens as an example, and the tokenizer of the encoder."""
        config = self.encoder.config
        pad = int(config.pad_token_id or 0)
        ids = torch.full((2, 4), (pad + 1) % config.vocab_size, device=self.encoder.device)
        mask = torch.ones_like(ids)
        ids[1, 2:], mask[1, 2:] = pad, 0
        tokenizer = Path(str(self.encoder.config._name_or_path or ".")) / "tokenizer.json"
        return ExportSource(
            model=self.ponder,
            inputs=ids,
            context={"attention_mask": mask, "token_type_ids": torch.zeros_like(ids)},
            name="input_ids",
            defaults={"attention_mask": 1.0, "token_type_ids": 0.0},
            tokenizer=tokenizer if tokenizer.is_file() else None,
            max_length=getattr(config, "max_position_embeddings", None),
        )

    def unroll(self, input_ids: Tensor, **kwargs: Any) -> Trajectory:
        """Full depth, no exit; arguments as for a call, and `keep_features`."""
        return self.ponder.unroll(input_ids, **kwargs)

    def predict(self, dataset: Any, **options: Any) -> Predictions:
        """Every example of a tokenised data set to its exit, in its order; see `predict_texts` and `ponder.predict`."""
        return predict_texts(self, dataset, **options)


def _task(config: PonderConfig) -> TaskName:
    if config.problem_type not in _TASKS:
        raise ArgumentError(
            "problem_type",
            expected=f"one of {', '.join(_TASKS)}",
            got=repr(config.problem_type),
            remedy="Choose one, or leave it out.",
        )
    if not config.num_labels or config.num_labels < 1:
        raise ArgumentError(
            "num_labels", expected="a whole number ≥ 1", got=config.num_labels, remedy="Regression has 1."
        )
    return _TASKS[config.problem_type]


def _as_loaded(encoder: PreTrainedModel) -> PreTrainedModel:
    """Mark modules that a user exchanged as initialised, or else `post_init` draws their weights anew."""
    for module in encoder.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]
    return encoder


def _readout(name: str, adapter: EncoderAdapter) -> Any:
    if name not in READOUTS:
        raise ArgumentError("readout", expected=" or ".join(READOUTS), got=repr(name), remedy="Choose one of them.")
    if name == "pooler" and not adapter.has_pooler:
        raise ArgumentError(
            "readout", expected="'mean'", got="'pooler', without a pooler", remedy="Use readout='mean'."
        )
    return adapter.pool if name == "pooler" else _token_mean


def _token_mean(hidden: Tensor, token_mask: Tensor | None = None) -> Tensor:
    return mean(hidden, attention_mask=token_mask)
