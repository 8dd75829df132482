"""`PonderPreTrainedModel`: a Hugging Face encoder that exits per example, whatever its heads answer.

What an answer is (a class a text, a class a token, features, …) is a subclass each, in a file of its own.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization

from ponder import recipes
from ponder._utils.certificates import without_certificates
from ponder.analysis.metrics import MetricLike
from ponder.engine.certificates import has_stale_certificate, warn_of_stale_certificate
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.export.source import ExportSource
from ponder.inference.prediction import Predictions
from ponder.integrations.transformers.adapter import Adapter, AdapterStem
from ponder.integrations.transformers.arguments import (
    check_fields,
    check_ignored,
    count_labels,
    honoured,
    not_handed_on,
)
from ponder.integrations.transformers.assigned import check_assigned
from ponder.integrations.transformers.captured import CapturedAdapter, on_meta
from ponder.integrations.transformers.configuration import PonderConfig, fields_of
from ponder.integrations.transformers.encoders import adapter_for, encoder_of, is_exact
from ponder.integrations.transformers.examples import further_inputs
from ponder.integrations.transformers.exporting import token_source
from ponder.integrations.transformers.finetuned import FinetunedClassifier
from ponder.integrations.transformers.head_kinds import PROBLEMS, HeadKind, saved_head
from ponder.integrations.transformers.heads import EncoderWrapper, check_heads_learn
from ponder.integrations.transformers.loading import load_encoder, load_whole
from ponder.integrations.transformers.model_card import evaluation_of, remove_reports, write_beside
from ponder.integrations.transformers.noted import are_others, assigned_fields, leave_out_measurements
from ponder.integrations.transformers.prediction import predict_rows, record_rows
from ponder.integrations.transformers.readable import check_encoder, check_heads
from ponder.integrations.transformers.saving import save_whole
from ponder.integrations.transformers.teachers import as_teacher
from ponder.objectives import Objective
from ponder.parts.heads import HazardLayer
from ponder.parts.padding import Padding
from ponder.parts.readouts import ReadoutCall
from ponder.parts.tasks import Task, TaskName, as_task
from ponder.parts.tasks.custom import LossFunction, warn_of_own_weights
from ponder.policies import ExitPolicy
from ponder.policies.certified import is_certified
from ponder.priors import Prior
from ponder.recipes import Recipe, Stage
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderOutput

__all__ = ["PonderPreTrainedModel"]

_OWNED = "ponder.stem.encoder."
_SAVED = frozenset({"encoder", "recipe", "policy", "readout", "num_steps", "feature_size"})
_MAIN_INPUTS = ("input_ids", "pixel_values", "input_values", "input_features")


class PonderPreTrainedModel(PreTrainedModel):
    """An encoder with the heads, prior, objective and policy of a recipe.

    Build it from an encoder with `from_encoder`; reload it with `from_pretrained`. A subclass says what is read of the
    encoder (`readouts`), what its answers mean (`task_of`) and what a call takes and gives (`forward`).

    Args:
        config: The configuration; weights are random until they are loaded.
        encoder: The encoder to use instead of a new one made from the configuration.
        adapter: Its adapter, where it is known.

    Example:
        >>> model.policy, model.recipe.name, model.ponder.num_steps
        (Quantile(q=0.5), 'palbert', 4)
        >>> model.unroll(**batch).outputs.shape
        torch.Size([5, 4, 3])
    """

    config_class = PonderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (the base class's protocol; it adds those of the encoder)

    accepts_loss_kwargs = False
    """What `Trainer` asks: the loss is a mean over the batch, whatever `forward` takes besides."""
    readouts: ClassVar[tuple[str, ...]] = ("pooler", "mean")
    """What may be read of the encoder, see `Adapter.readout`; the first that the encoder has is the default."""
    inputs: ClassVar[tuple[str, ...]] = ("input_ids",)
    """Main inputs of the encoders that this model is for."""
    problems: ClassVar[bool] = False
    """Whether `problem_type` says what an answer means."""
    heads_name: ClassVar[str] = "classifier"
    """Under which name peft looks for what is new in such a model; see `EncoderWrapper`."""
    pipeline_tag: ClassVar[str] = "feature-extraction"
    """What the hub calls the task, for the model card."""

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
        task, recipe = self.task_of(config), config.make_recipe()
        config.recipe = recipe.to_dict()  # with the policy that took the place of one that is not registered here
        adapter = self._adapter = adapter or adapter_for(self.encoder, config.num_steps)
        self.main_input_name = adapter.main_input
        self._check_readout(config.readout, adapter)
        self._readout_name, self._problem = config.readout, config.problem_type
        steps = adapter.steps()
        head, lambda_head = self.make_heads(recipe, steps.num_steps)
        self.ponder = EncoderWrapper(
            steps,
            heads_name=self.heads_name,
            head=head,
            lambda_head=lambda_head,
            prior=recipe.prior,
            objective=recipe.stages[0].objective,
            policy=recipe.policy,
            stem=AdapterStem(adapter),
            readout=adapter.readout(config.readout),
            halting_readout=adapter.readout("mean") if config.readout == "tokens" else None,
            task=task,
            padding=_padding(adapter, config.readout),
        )
        self.ponder.stages = recipe.stages
        for part in self.ponder.children():  # the heads go where the encoder is; it stays as it was given
            if part is not self.ponder.stem:
                on_meta = any(weight.is_meta for weight in part.parameters())  # while Transformers loads
                part.to(device=None if on_meta else self.encoder.device, dtype=self.encoder.dtype)
        # The encoder is a part of `ponder`, which runs alone too; files know it by one name, `encoder`.
        self.register_state_dict_post_hook(_without_second_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_second_names)  # type: ignore[no-untyped-call]
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Draw all linear layers anew as Transformers does; a Lambda head still starts at its hazard."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, HazardLayer):
            initialization.constant_(module.bias, module.start_logit)

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName | Task:
        """What an answer means, by the configuration: here by its `problem_type`.

        Raises:
            ArgumentError: The configuration asks for something else than this model does.
        """
        return _by_problem(config)

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """The head and the Lambda head."""
        config = self.config
        width = config.feature_size or self.encoder.config.hidden_size
        return recipe.make_heads(width, int(config.num_labels or 1), num_steps, config.head_dropout)

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PathLike[str] | PreTrainedModel,
        recipe: str | Recipe = "palbert",
        num_labels: int | None = None,
        *,
        readout: Literal["pooler", "mean", "tokens"] | None = None,
        policy: ExitPolicy | None = None,
        problem_type: str | None = None,
        head_dropout: float = 0.1,
        dtype: torch.dtype | str | None = None,
        attn_implementation: str | None = None,
        device_map: Any = None,
        **config: Any,
    ) -> Self:
        """Put a recipe's heads on a pretrained encoder.

        Args:
            encoder: A hub name, a folder, or a bare encoder (its weights are used, not copied); of an
                encoder-decoder, the encoder is used.
            recipe: A recipe or its name; its policy is that for the task, and what its paper tuned is scaled to the
                encoder's steps.
            num_labels: Classes; 1 is regression. Where None as many as `id2label` names; else, with their names, those
                of a fine-tuned model of the same kind that is loaded (its head is left out, which warns); else 2.
            readout: ``"pooler"``, ``"mean"`` or ``"tokens"``, as far as the model has them (`readouts`); where None,
                the first of these that the encoder has.
            policy: An exit policy instead of the recipe's.
            problem_type: The problem, as in Transformers, for models that have several; taken from `num_labels` where
                None.
            head_dropout: Dropout in front of the head.
            dtype: Type of the weights of an encoder that is loaded, and of the heads; float32 where None.
            attn_implementation: The attention of an encoder that is loaded: ``"eager"``, ``"sdpa"``, …; Transformers'
                choice where None.
            device_map: The devices of an encoder that is loaded: ``"auto"``, ``"cuda"``, …; the heads go where it is.
            config: Further fields of the configuration, for example `id2label`.

        Raises:
            ArgumentError: An unknown recipe, readout, family of encoders or argument.
            CheckpointError: The encoder cannot be loaded from safetensors.
        """
        check_fields(config)
        if config.get("label2id") and not config.get("id2label"):
            config["id2label"] = {place: name for name, place in config["label2id"].items()}
        unnamed = num_labels is None and not config.get("id2label")
        num_labels = count_labels(num_labels, config.get("id2label"))
        source = encoder
        encoder = _encoder(encoder, dtype=dtype, attn_implementation=attn_implementation, device_map=device_map)
        head = None if isinstance(source, PreTrainedModel) else saved_head(encoder.config)
        if head is not None:
            warnings.warn(
                f"{source}: the head of this {head[0]} is left out, and its encoder is used. from_finetuned keeps the "
                "head of a fine-tuned classifier, and puts exits beside it.",
                stacklevel=2,
            )
            if unnamed and cls._answers_as(head[1]):
                num_labels, names = encoder.config.num_labels, encoder.config.id2label
                config = {**config, "id2label": names, "label2id": encoder.config.label2id}
                problem_type = problem_type or (encoder.config.problem_type if cls.problems else None)
        adapter = adapter_for(encoder)
        cls._check_input(adapter)
        default = next((name for name in cls.readouts if adapter.has_readout(name)), cls.readouts[-1])
        read: str = default if readout is None else readout
        cls._check_readout(read, adapter)
        num_steps = adapter.steps().num_steps
        recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
        if cls.problems:
            problem_type = problem_type or ("regression" if num_labels == 1 else "single_label_classification")
        task = cls.task_of(PonderConfig(num_labels=num_labels, problem_type=problem_type))
        recipe = recipe.for_steps(num_steps).for_task(task)
        recipe = recipe if policy is None else dataclasses.replace(recipe, policy=policy)
        made = PonderConfig(
            encoder=fields_of(encoder),
            recipe=recipe.to_dict(),
            readout=read,
            head_dropout=head_dropout,
            num_steps=num_steps,
            feature_size=adapter.width(read),
            num_labels=num_labels,
            problem_type=problem_type,
            **config,
        )
        model = cls(made, encoder, adapter)
        model.train()  # the encoder too, which Transformers gives in evaluation mode
        if isinstance(source, PreTrainedModel):  # what was loaded was made from its configuration
            try:
                model.check_readable()
            except ArgumentError as error:
                warnings.warn(f"The model runs here, and save_pretrained will refuse it. {error}", stacklevel=2)
        return model

    @classmethod
    def from_finetuned(
        cls, model: str | PathLike[str] | PreTrainedModel, recipe: Literal["exits", "exits-deep"] = "exits"
    ) -> FinetunedClassifier:
        """Keep a fine-tuned classifier, head and all, and put exits beside it.

        What comes is no model of this class, whose heads are a recipe's, but a `FinetunedClassifier`.
        Arguments and errors as for `FinetunedClassifier.from_finetuned`.
        """
        return FinetunedClassifier.from_finetuned(model, recipe)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model that was saved, as in Transformers, but from safetensors only: nothing is unpickled.

        Raises:
            ArgumentError: An argument asks for other steps, heads or another readout than what was saved was trained
                with, or for a policy, which is assigned to what was loaded.
            CheckpointError: The folder does not hold a whole model.
        """
        for name in _SAVED & kwargs.keys():
            if (given := kwargs.pop(name)) is not None:
                raise _trained_with(name, given)
        _check_saved(kwargs.get("config"), pretrained_model_name_or_path)
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
        cls._check_architecture(model.config.architectures)
        model.learn_encoder()
        model.ponder.take_saved_policy(model.policy)
        return (model, info) if with_info else model

    @classmethod
    def _check_architecture(cls, saved: Any) -> None:
        """Refuse the weights of another class of this package: all heads have the same names, and may fit by shape."""
        name = saved[0] if saved else cls.__name__
        others = {kind.__name__ for kind in _package_classes() if not issubclass(cls, kind)}
        if name in others:
            raise ArgumentError(
                "pretrained_model_name_or_path",
                expected=f"a model that {cls.__name__} saved",
                got=f"one of {name}, whose heads answer something else",
                remedy=f"Load it with {name}.from_pretrained.",
            )

    def learn_encoder(self) -> None:
        """Learn and prove what had to wait for the encoder's weights; nothing to do where they were there."""
        if isinstance(self._adapter, CapturedAdapter):
            self._adapter.learned()
            self._renew_readouts()
        elif not on_meta(self.encoder) and not is_exact(self.encoder):
            warnings.warn(
                f"encoder: at full depth the {type(self._adapter).__name__} gives something else than the "
                f"{type(self.encoder).__name__} itself. Build the model again with from_encoder, which captures it.",
                stacklevel=3,
            )

    def _renew_readouts(self) -> None:
        """Read anew of the adapter what it learned of the encoder."""
        readout = self.config.readout
        self.ponder.readout = ReadoutCall(self._adapter.readout(readout))
        if self.ponder.halting_readout is not None:
            self.ponder.halting_readout = ReadoutCall(self._adapter.readout("mean"))
        self.ponder.padding = _padding(self._adapter, readout)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the encoder's embeddings, as in Transformers, and its configuration, which is saved with the model."""
        embeddings: nn.Embedding = self.encoder.resize_token_embeddings(*args, **kwargs)
        if isinstance(self._adapter, CapturedAdapter):
            self._adapter.forget()
            self._adapter.learned()
            self._renew_readouts()
        return embeddings

    def check_readable(self, state_dict: Mapping[str, Any] | None = None) -> None:
        """Refuse what `save_pretrained` would write so that it is read as another model, or not at all.

        Args:
            state_dict: The weights to be saved, where they are not the model's own.

        Raises:
            ArgumentError: The encoder's configuration does not make it again: it is of a class of its owner's, say, its
                parts were exchanged, or it holds adapters of peft. Or the recipe does not make the heads again.
        """
        check_encoder(self, state_dict)
        if self.config.readout != self._readout_name:
            raise ArgumentError(
                "config.readout",
                expected=f"{self._readout_name!r}, as the model was built",
                got=repr(self.config.readout),
                remedy="Build the model with from_encoder(…, readout=…).",
            )
        self._check_problem()
        if state_dict is None:
            check_heads(self)

    def _check_problem(self) -> None:
        """Refuse a problem that was set once the model had its task: nothing reads it here, and a file does."""
        if self.config.problem_type != vars(self).get("_problem", self.config.problem_type):  # not in what was pickled
            raise ArgumentError(
                "config.problem_type",
                expected=f"{self._problem!r}, as the model was built",
                got=repr(self.config.problem_type),
                remedy="Build the model with from_encoder(…, problem_type=…).",
            )

    def save_pretrained(  # type: ignore[override]
        self, save_directory: str | PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Save the model, as in Transformers, wholly or not at all, also where the process is killed in the middle.

        A model card is written beside the weights, unless the folder has a README of its owner's. What was promised or
        measured of other weights than those that are saved is left out, with a warning.

        Raises:
            ArgumentError: The folder cannot be written, or would be read as another model; see `check_readable`. Or a
                `variant` is asked for: a folder holds one file of weights, which its configuration knows.
        """
        if kwargs.get("variant") is not None:
            raise ArgumentError(
                "variant",
                expected="None: a folder holds the weights of one save, which its config.json names",
                got=repr(kwargs["variant"]),
                remedy="Save to a folder of its own.",
            )
        self.config.encoder = fields_of(self.encoder)  # it may have changed since, by resize_token_embeddings, say
        self.config.recipe = {**self.config.recipe, **assigned_fields(self)}
        others = are_others(self, kwargs.get("state_dict"))
        leave_out_measurements(self, others)
        if has_stale_certificate(self.ponder) or (others and is_certified(self.policy)):
            warn_of_stale_certificate()
            self.config.recipe = without_certificates(self.config.recipe)
        save = super().save_pretrained
        if not is_main_process:
            save(save_directory, is_main_process=False, **kwargs)
            return
        self.check_readable(kwargs.get("state_dict"))

        def write(part: Path) -> None:
            save(part, **kwargs)
            write_beside(self, part, Path(save_directory))

        save_whole(write, save_directory, remove_reports)

    def note_evaluation(self, trajectory: Trajectory, data: str, *, metric: MetricLike | None = None) -> dict[str, Any]:
        """Measure the model's policy on labelled rows, and note it in the configuration and on the model card.

        Args:
            trajectory: A full-depth run of this model, with the weights that it has now, on rows with labels, which
                chose neither weights nor policy: `model.record`.
            data: What the rows are, in a few words: ``"RTE, validation"``.
            metric: The score: a name, a callable (outputs, labels) → number (of the rows that have a label, or, with an
                answer a token, of the tokens that do), or None for the task's own.

        Returns:
            What was noted: the score of the policy and that of full depth, the mean exit step, and the speed-up in
            steps. What the same data came to under the same policy before is replaced.

        Raises:
            ArgumentError: The trajectory has no rows or no labels, or is a run of other weights.
        """
        weights = self.ponder.weights_digest()
        if trajectory.weights not in (None, weights) and weights is not None:
            raise ArgumentError(
                "trajectory",
                expected="a run of this model, with the weights that it has now",
                got="one of other weights",
                remedy="Record the rows again: model.record(rows).",
            )
        noted = {**evaluation_of(trajectory, self.policy, data, metric), "weights": trajectory.weights}
        others = [row for row in self.config.evaluations if (row["data"], row["policy"]) != (data, noted["policy"])]
        self.config.evaluations = [*others, noted]
        return noted

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy; assigning one checks it, and saves it with the model."""
        return self.ponder.policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        if policy != self.ponder.policy and getattr(self, "peft_config", None) is not None:
            warnings.warn(
                "policy: adapters of peft are saved without it. Assign it again to peft_model.get_base_model().policy "
                "after PeftModel.from_pretrained, or save the merged model (merge_and_unload), which holds it; its "
                "weights are others, so certify after merging.",
                stacklevel=2,
            )
        self.ponder.policy = policy
        self.config.recipe = {**self.config.recipe, "policy": policy.to_dict()}

    @property
    def objective(self) -> Objective:
        """The training loss; assigning one checks it against the model, and saves it with the model."""
        return self.ponder.objective

    @objective.setter
    def objective(self, objective: Objective) -> None:
        self.ponder.objective = objective

    @property
    def prior(self) -> Prior | None:
        """The prior of the halting step; assigning one checks it, and saves it with the model."""
        return self.ponder.prior

    @prior.setter
    def prior(self, prior: Prior | None) -> None:
        self.ponder.prior = prior

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages of training; assigning them checks each, and saves them with the model."""
        return self.ponder.stages

    @stages.setter
    def stages(self, stages: Sequence[Stage]) -> None:
        self.ponder.stages = stages

    @property
    def task(self) -> Task | None:
        """What labels and outputs mean; assigning another, with weights of classes, say, is for this object alone."""
        return self.ponder.task

    @task.setter
    def task(self, task: TaskName | LossFunction | Task) -> None:
        meant = as_task(task)
        warn_of_own_weights(meant, self)
        self.ponder.take_task(meant)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assign as PyTorch does, but that what is the wrapper's goes there, or is refused."""
        if isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, value)  # also where it is a module
            return
        check_assigned(self, name)
        if name == "encoder" and "ponder" in vars(self).get("_modules", {}) and not self._holds_encoder(value):
            raise ArgumentError(
                "encoder",
                expected="the one that the model was built from, whose layers are its steps",
                got=f"another {type(value).__name__}, of which nothing would run",
                remedy="Build the model with from_encoder(encoder, …), or load weights into model.encoder.",
            )
        super().__setattr__(name, value)

    def _holds_encoder(self, module: Any) -> bool:
        """Whether the encoder that runs is a part of a module, such as peft puts around it."""
        return isinstance(module, nn.Module) and any(part is self._adapter.encoder for part in module.modules())

    @property
    def recipe(self) -> Recipe:
        """The recipe, scaled to this encoder, as it was noted last: `stages` and `prior` are those that train."""
        recipe: Recipe = self.config.make_recipe()
        return recipe

    def note_recipe(self, recipe: Recipe) -> None:
        """Take the name of another recipe, whose stages and policy the model was given, and keep its own heads."""
        self.config.recipe = {**self.config.recipe, "name": recipe.name, "paper": recipe.paper}

    def check_trainable(self) -> None:
        """Refuse to train heads that could not learn.

        Raises:
            ArgumentError: Adapters of peft have frozen them.
        """
        self.ponder.check_trainable()
        check_heads_learn(self, self.ponder)

    @property
    def head_names(self) -> list[str]:
        """The name of what is new and is trained in full, heads and Lambda head: peft's `modules_to_save`.

        peft finds it itself by the `task_type` of a classifier or of question answering.

        Example:
            `LoraConfig(target_modules=["query", "value"], modules_to_save=model.head_names)`
        """
        return [f"ponder.{self.heads_name}"]

    def attach_teacher(self, teacher: PreTrainedModel | None) -> None:
        """Let objectives that distil from a frozen teacher learn from this one; it is neither trained nor saved.

        Args:
            teacher: A model with the same head and labels, such as a copy of this model or any fine-tuned model of
                Transformers with the same tokenizer; one that exits early answers at full depth. None takes the teacher
                away.

        Raises:
            ArgumentError: The teacher is this model, shares weights with it, has other labels, or another problem.
        """
        self.ponder.attach_teacher(None if teacher is None else as_teacher(teacher, self, self.ponder.task))

    def start_stage(self, stage: Stage) -> None:
        """Take the objective of a stage of training, its teacher and heads, and freeze what it does not train.

        Raises:
            ArgumentError: The model has adapters of peft, beside which all else of the encoder stays frozen.
        """
        if getattr(self, "peft_config", None) is not None:
            raise ArgumentError(
                "stage",
                expected="a model without adapters of peft, whose stages freeze and train its own weights",
                got="one with adapters",
                remedy="Call ponder.fit(peft_model, …), which runs all stages and trains nothing that is frozen.",
            )
        self.ponder.start_stage(stage)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Let all weights learn, or none, as in PyTorch; what a stage has frozen is then the caller's own affair."""
        self.ponder.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def finish_stage(self, stage: Stage) -> None:
        """Take leave of a stage's own teacher after training, and mix the weights as `Stage.mixing` says."""
        self.ponder.finish_stage(stage)

    @classmethod
    def _answers_as(cls, kind: HeadKind) -> bool:
        """Whether the labels of a fine-tuned head are such as this model's."""
        return {"classification": cls.problems, "token_classification": cls.pipeline_tag == "token-classification"}.get(
            kind.task.name, False
        )

    @classmethod
    def _check_input(cls, adapter: Adapter) -> None:
        if adapter.main_input not in cls.inputs:
            raise ArgumentError(
                "encoder",
                expected=f"an encoder of {' or '.join(cls.inputs)}, for a {cls.__name__}",
                got=f"{type(adapter.encoder).__name__}, which reads {adapter.main_input}",
                remedy="Use the model of its kind of inputs, or ponder.PonderWrapper with the parts of adapter_for.",
            )
        if others := further_inputs(adapter.encoder):
            raise not_handed_on("encoder", f"a {type(adapter.encoder).__name__}, which reads {' and '.join(others)}")

    @classmethod
    def _check_readout(cls, name: str, adapter: Adapter) -> None:
        if name not in cls.readouts:
            raise ArgumentError(
                "readout", expected=" or ".join(cls.readouts), got=repr(name), remedy="Choose one of them."
            )
        if not adapter.has_readout(name):
            has = next((repr(other) for other in cls.readouts if adapter.has_readout(other)), "another encoder")
            raise ArgumentError(
                "readout",
                expected=has,
                got=f"{name!r}, of an encoder without {'a pooler' if name == 'pooler' else 'states of tokens'}",
                remedy=f"Use readout={has}.",
            )

    def train(self, mode: bool = True) -> Self:
        """Set the mode as PyTorch does, but that an encoder whose every parameter is frozen stays in evaluation mode.

        `PonderWrapper.train` does so for its own parts; the encoder is a part of this model, which it only borrows.
        """
        super().train(mode)
        encoder = getattr(self, "encoder", None)  # the base class trains and evaluates while it is being built
        if mode and encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()
        return self

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether steps are checkpointed: peft asks by this name, and Transformers warns that it has another now."""
        return bool(self.ponder.checkpoint_steps)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """What `gradient_checkpointing_enable` calls: steps are checkpointed, whole, whatever the family of layers."""
        self.gradient_checkpointing = self.ponder.checkpoint_steps = enable

    def run(
        self, inputs: dict[str, Tensor | None], ignored: Mapping[str, Any], **arguments: Any
    ) -> tuple[PonderOutput, dict[str, Tensor | None]]:
        """One call of the wrapper, for `forward` of a subclass.

        Args:
            inputs: What may be the main input, by name; exactly the encoder's own must be given.
            ignored: What Transformers and its friends pass to any model; see `check_ignored`.
            arguments: Arguments of the wrapper.

        Returns:
            What the wrapper gives, and the fields that the outputs of all models share.
        """
        others = {name: ignored[name] for name in _MAIN_INPUTS if name in ignored}
        check_ignored({name: value for name, value in ignored.items() if name not in others}, self.encoder)
        given = {name: value for name, value in {**inputs, **others}.items() if value is not None}
        if list(given) != [self.main_input_name]:
            raise ArgumentError(
                " and ".join(given) or self.main_input_name,
                expected=f"{self.main_input_name}, which {type(self.encoder).__name__} reads",
                got=" and ".join(given) or "nothing",
                remedy="Use the tokenizer, image processor or feature extractor of the encoder.",
            )
        if arguments.get("labels") is not None:
            self._check_problem()
            if self.training:
                check_heads_learn(self, self.ponder)
        out = self.ponder(self._checked(given[self.main_input_name]), **arguments)
        unrolled = out.trajectory
        return out, {
            "loss": out.loss,
            "exit_step": out.exit_step,
            "step_logits": None if unrolled is None else unrolled.outputs,
            "hazard_logits": None if unrolled is None else unrolled.hazard_logits,
        }

    def unroll(self, inputs: Tensor | None = None, **kwargs: Any) -> Trajectory:
        """Full depth, no exit; arguments as for a call, and `keep_features`.

        Args:
            inputs: The main input, which may be named as in a call too.
            kwargs: The other arguments of a call.
        """
        given = kwargs.pop(self.main_input_name, None) if inputs is None else inputs
        return self.ponder.unroll(self._checked(given), **honoured(kwargs))

    def _checked(self, inputs: Any) -> Tensor:
        """The main input, or an error where an encoder of texts was given something else than token ids."""
        name = self.main_input_name
        if not isinstance(inputs, Tensor):
            raise ArgumentTypeError(
                name,
                expected="a tensor",
                got=type(inputs).__name__,
                remedy="Pass what the tokenizer or processor gives with return_tensors='pt'.",
            )
        if name == "input_ids" and (inputs.dim() != 2 or inputs.is_floating_point() or inputs.dtype == torch.bool):
            raise ArgumentError(
                name,
                expected="token ids, (batch, length) integers",
                got=f"{inputs.dtype} of shape {tuple(inputs.shape)}",
                remedy="Pass what the tokenizer gives; images and sound have models of their own.",
            )
        return inputs

    def export_source(self) -> ExportSource:
        """What `ponder.export.onnx` writes: rows of tokens as an example, and the tokenizer of the encoder.

        Raises:
            ArgumentError: The encoder reads something else than tokens.
        """
        places = [Path(place) for place in (self.config._name_or_path, self.encoder.config._name_or_path) if place]
        names: Any = self.config.id2label
        labels = [str(names[place]) for place in range(self.config.num_labels or 0)]
        return token_source(self.ponder, self.encoder, self.main_input_name, places, labels)

    def predict(self, dataset: Any, **options: Any) -> Predictions:
        """Every example of a prepared data set to its exit, in its order; see `predict_rows` and `ponder.predict`."""
        return predict_rows(self, dataset, **options)

    def record(self, dataset: Any, **options: Any) -> Trajectory:
        """Every step of every example of a prepared data set, in its order; see `record_rows`."""
        return record_rows(self, dataset, **options)


def _package_classes() -> Iterator[type[PonderPreTrainedModel]]:
    """The classes of models that this package has; a user's own derive from them elsewhere."""
    package, below = __name__.rpartition(".")[0], list(PonderPreTrainedModel.__subclasses__())
    while below:
        kind = below.pop()
        below += kind.__subclasses__()
        if kind.__module__.startswith(f"{package}."):
            yield kind


def _check_saved(config: Any, source: Any) -> None:
    """Refuse a configuration, such as Auto classes make of their arguments, of another model than the folder's."""
    if not isinstance(config, PonderConfig) or source is None or not Path(source).is_dir():
        return
    own = vars(PonderConfig.from_pretrained(source))
    for name in _SAVED & own.keys():
        if getattr(config, name) != own[name]:
            raise _trained_with(name, getattr(config, name))


def _trained_with(name: str, given: Any) -> ArgumentError:
    return ArgumentError(
        name,
        expected="no such argument: it is saved with the weights, which were trained with it",
        got=repr(given),
        remedy="Assign model.policy = … to what was loaded."
        if name == "policy"
        else "Leave it out, or build another model of the encoder with from_encoder.",
    )


def _without_second_names(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in [name for name in state if name.startswith(f"{prefix}{_OWNED}")]:
        del state[name]


def _with_second_names(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    own = f"{prefix}encoder."
    state.update(
        {prefix + _OWNED + name.removeprefix(own): state[name] for name in list(state) if name.startswith(own)}
    )


def _by_problem(config: PonderConfig) -> TaskName:
    problem = str(config.problem_type)
    if problem not in PROBLEMS:
        raise ArgumentError(
            "problem_type",
            expected=f"one of {', '.join(PROBLEMS)}",
            got=repr(config.problem_type),
            remedy="Choose one, or leave it out.",
        )
    if not config.num_labels or config.num_labels < 1:
        raise ArgumentError(
            "num_labels", expected="a whole number ≥ 1", got=config.num_labels, remedy="Regression has 1."
        )
    return PROBLEMS[problem]


def _encoder(encoder: str | PathLike[str] | PreTrainedModel, **loading: Any) -> PreTrainedModel:
    """The bare encoder, loaded where it is not one yet; arguments of loading that are None ask for nothing."""
    asked = {name: value for name, value in loading.items() if value is not None}
    if isinstance(encoder, str | PathLike):
        return encoder_of(load_encoder(encoder, **asked))
    for name, value in asked.items():
        raise ArgumentError(
            name,
            expected="None for an encoder that is loaded already",
            got=repr(value),
            remedy="Load the encoder with it, or pass its folder or hub name.",
        )
    return encoder_of(encoder)


def _padding(adapter: Adapter, readout: str) -> Padding | None:
    """Say where lengths lie; answers a token have a length themselves, so that batches do not get narrower."""
    padding = adapter.padding()
    return padding if padding is None or readout != "tokens" else dataclasses.replace(padding, pooled=False)


def _as_loaded(encoder: PreTrainedModel) -> PreTrainedModel:
    """Mark modules that a user exchanged as initialised, or else `post_init` draws their weights anew."""
    for module in encoder.modules():
        module._is_hf_initialized = True  # type: ignore[assignment]
    return encoder
