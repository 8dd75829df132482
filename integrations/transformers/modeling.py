"""`PonderForSequenceClassification`: a Hugging Face encoder that exits per example."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.utils.generic import ModelOutput

from ponder import recipes
from ponder.engine.teaching import frozen_copy
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.export.source import ExportSource
from ponder.inference.prediction import Predictions
from ponder.integrations.transformers.adapter import Adapter, AdapterStem
from ponder.integrations.transformers.captured import CapturedAdapter
from ponder.integrations.transformers.configuration import READOUTS, PonderConfig
from ponder.integrations.transformers.encoders import adapter_for, encoder_of
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.integrations.transformers.loading import load_encoder, load_whole
from ponder.integrations.transformers.prediction import predict_texts, record_texts
from ponder.integrations.transformers.saving import save_whole
from ponder.parts.heads import HazardLayer
from ponder.parts.readouts import ReadoutCall
from ponder.parts.tasks import TaskName
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe, Stage, freeze_for, start_heads
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["PonderForSequenceClassification", "PonderSequenceClassifierOutput"]

_OWNED = "ponder.stem.encoder."

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
        adapter: Its adapter, where it is known.
    """

    config_class = PonderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (the base class's protocol)

    def __init__(
        self, config: PonderConfig, encoder: PreTrainedModel | None = None, adapter: Adapter | None = None
    ) -> None:
        attention = config._attn_implementation  # what was asked for; the base class puts its own choice there
        super().__init__(config)
        if encoder is None:
            made = AutoModel.from_config(
                config.encoder_config(), trust_remote_code=False, attn_implementation=attention
            )
            self.encoder = encoder_of(made)
        else:
            self.encoder = _as_loaded(encoder)
        task, recipe = _task(config), config.make_recipe()
        adapter = self._adapter = adapter or adapter_for(self.encoder, config.num_steps)
        _check_readout(config.readout, adapter)
        steps = adapter.steps()
        head, lambda_head = recipe.make_heads(
            config.feature_size or self.encoder.config.hidden_size,
            int(config.num_labels or 1),
            steps.num_steps,
            config.head_dropout,
        )
        self.ponder = PonderWrapper(
            steps,
            head=head,
            lambda_head=lambda_head,
            prior=recipe.prior,
            objective=recipe.stages[0].objective,
            policy=recipe.policy,
            stem=AdapterStem(adapter),
            readout=adapter.readout(config.readout),
            task=task,
            padding=adapter.padding(),
        )
        self.ponder.to(device=self.encoder.device, dtype=self.encoder.dtype)
        # The encoder is a part of `ponder`, which runs alone too; files know it by one name, `encoder`.
        self.register_state_dict_post_hook(_without_second_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_second_names)  # type: ignore[no-untyped-call]
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
        readout: Literal["pooler", "mean"] | None = None,
        policy: ExitPolicy | None = None,
        problem_type: str | None = None,
        head_dropout: float = 0.1,
        **config: Any,
    ) -> Self:
        """Put a recipe's heads on a pretrained encoder.

        Args:
            encoder: A hub name, a folder, or a bare encoder (its weights are used, not copied); of an
                encoder-decoder, the encoder is used.
            recipe: A recipe or its name; its policy is that for the task, and what its paper tuned is scaled to the
                encoder's steps.
            num_labels: Classes; 1 is regression.
            readout: ``"pooler"`` or ``"mean"``; where None, the pooler where the encoder has one.
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
        encoder = encoder_of(encoder)
        adapter = adapter_for(encoder)
        _check_input(adapter, cls)
        if readout is None:
            readout = "pooler" if adapter.has_readout("pooler") else "mean"
        _check_readout(readout, adapter)
        num_steps = adapter.steps().num_steps
        recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
        problem_type = problem_type or ("regression" if num_labels == 1 else "single_label_classification")
        recipe = recipe.for_steps(num_steps)
        recipe = recipe.for_task(_TASKS.get(problem_type, problem_type))
        made = PonderConfig(
            encoder={**encoder.config.to_diff_dict(), "model_type": encoder.config.model_type},
            recipe=recipe.to_dict(),
            readout=readout,
            head_dropout=head_dropout,
            num_steps=num_steps,
            feature_size=adapter.width(readout),
            num_labels=num_labels,
            problem_type=problem_type,
            **config,
        )
        model = cls(made, encoder, adapter)
        model.policy = model.policy if policy is None else policy
        return model

    @classmethod
    def from_finetuned(
        cls, model: str | PathLike[str] | PreTrainedModel, recipe: Literal["exits"] = "exits"
    ) -> FinetunedClassifier:
        """Keep a fine-tuned classifier, head and all, and put exits beside it.

        What comes is no `PonderForSequenceClassification`, whose heads are a recipe's, but a `FinetunedClassifier`.
        Arguments and errors as for `FinetunedClassifier.from_finetuned`.
        """
        return FinetunedClassifier.from_finetuned(model, recipe)

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
            PonderConfig,
            cls,
            **kwargs,
        )
        model.learn_encoder()
        return (model, info) if with_info else model

    def learn_encoder(self) -> None:
        """Learn and prove what had to wait for the encoder's weights; nothing to do where they were there."""
        if isinstance(self._adapter, CapturedAdapter):
            self._adapter.learned()
            self.ponder.readout = ReadoutCall(self._adapter.readout(self.config.readout))
            self.ponder.padding = self._adapter.padding()

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """As in Transformers; a save is whole or has not happened, also where the process is killed in the middle.

        Raises:
            ArgumentError: The folder cannot be written.
        """
        save = super().save_pretrained
        if not is_main_process:
            save(save_directory, is_main_process=False, **kwargs)
            return
        save_whole(lambda part: save(part, **kwargs), save_directory)

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

    def attach_teacher(self, teacher: PreTrainedModel | None) -> None:
        """Let objectives that distil from a frozen teacher learn from this one; it is neither trained nor saved.

        Args:
            teacher: A classifier of the same labels whose call gives `logits`, such as a copy of this model or any
                fine-tuned model of Transformers with the same tokenizer; one that exits early answers at full depth.
                None takes the teacher away.

        Raises:
            ArgumentError: The teacher is this model, or has other labels.
        """
        if teacher is None:
            self.ponder.attach_teacher(None)
            return
        if not isinstance(teacher, PreTrainedModel):
            raise ArgumentTypeError(
                "teacher",
                expected="a classifier of Transformers",
                got=type(teacher).__name__,
                remedy="Attach any other callable to the wrapper: model.ponder.attach_teacher(…).",
            )
        if teacher is self:
            raise ArgumentError(
                "teacher",
                expected="a model that does not change while this one is trained",
                got="the model itself",
                remedy="Pass copy.deepcopy(model).",
            )
        own, theirs = (dict(model.config.id2label or {}) for model in (self, teacher))
        if own != theirs:
            raise ArgumentError(
                "teacher",
                expected=f"the student's {len(own)} labels, in the same order",
                got=f"{len(theirs)} labels, {_first_difference(own, theirs)}",
                remedy="Fine-tune the teacher on the student's labels, or give both the same id2label.",
            )
        self.ponder.attach_teacher(_Logits(teacher))

    def start_stage(self, stage: Stage) -> None:
        """Take the objective of a stage of training, its teacher and heads, and freeze what it does not train."""
        if stage.teacher == "previous":
            self.attach_teacher(None)
            self.attach_teacher(frozen_copy(self))
        start_heads(stage, self.ponder.head)
        self.ponder.objective = stage.objective
        freeze_for(stage, self.encoder, self.ponder.head, (self.ponder.lambda_head, self.ponder.prior_weights))

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch, but that an encoder whose every parameter is frozen stays in evaluation mode.

        `PonderWrapper.train` does so for its own parts; the encoder is a part of this model, which it only borrows.
        """
        super().train(mode)
        encoder = getattr(self, "encoder", None)  # the base class trains and evaluates while it is being built
        if mode and encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
        return self

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

    def record(self, dataset: Any, **options: Any) -> Trajectory:
        """Every step of every example of a tokenised data set, in its order; see `record_texts`."""
        return record_texts(self, dataset, **options)


class _Logits(nn.Module):
    """A classifier of Transformers as a teacher: its logits, at full depth."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, **context: Any) -> Tensor:
        if isinstance(self.model, PonderForSequenceClassification):
            context["policy"] = LastStep()
        logits: Tensor = self.model(input_ids, **{k: v for k, v in context.items() if v is not None}).logits
        return logits


def _first_difference(own: Mapping[Any, str], theirs: Mapping[Any, str]) -> str:
    place = next(i for i in sorted({*own, *theirs}) if own.get(i) != theirs.get(i))
    return f"the first that differs {theirs.get(place)!r} in place of {own.get(place)!r}"


def _without_second_names(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}{_OWNED}")]:
        del state[name]


def _with_second_names(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    own = f"{prefix}encoder."
    state.update(
        {prefix + _OWNED + name.removeprefix(own): state[name] for name in list(state) if name.startswith(own)}
    )


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


def _check_input(adapter: Adapter, model: type[PreTrainedModel]) -> None:
    if adapter.main_input != model.main_input_name:
        raise ArgumentError(
            "encoder",
            expected=f"an encoder of {model.main_input_name}, for a {model.__name__}",
            got=f"{type(adapter.encoder).__name__}, which reads {adapter.main_input}",
            remedy="Wrap it with ponder.PonderWrapper, with the parts that adapter_for gives.",
        )


def _check_readout(name: str, adapter: Adapter) -> None:
    if name not in READOUTS:
        raise ArgumentError("readout", expected=" or ".join(READOUTS), got=repr(name), remedy="Choose one of them.")
    if not adapter.has_readout(name):
        has = next((repr(other) for other in READOUTS if adapter.has_readout(other)), "another encoder")
        raise ArgumentError(
            "readout",
            expected=has,
            got=f"{name!r}, of an encoder without {'a pooler' if name == 'pooler' else 'states of tokens'}",
            remedy=f"Use readout={has}.",
        )
