"""`PonderPreTrainedModel`: a Hugging Face model that exits per example.

It holds one `PonderWrapper`, `model.ponder`, which runs. This file builds it (`from_encoder`,
`from_finetuned`) and names its inputs and outputs; its files are those of the base class
(`ponder.integrations.transformers.saved_model`). Each kind of answer (one class a text, one class a
token, features, …) is a short subclass in `ponder.integrations.transformers.heads`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization

from ponder import recipes
from ponder._utils.checks import check_choice
from ponder.calibration.records import Metric
from ponder.errors import ArgumentError
from ponder.integrations.transformers.adapter import Adapter, AdapterStem
from ponder.integrations.transformers.card import Evaluation, evaluate
from ponder.integrations.transformers.config import PonderConfig
from ponder.integrations.transformers.families import PackedExample, encoder_of, pack
from ponder.integrations.transformers.finetuned import EarlyHead, FinetunedAdapter, OwnAnswer
from ponder.integrations.transformers.loading import (
    AutoClass,
    check_saveable,
    load_whole,
    new_encoder,
)
from ponder.integrations.transformers.named_heads import HeadsWrapper
from ponder.integrations.transformers.outputs import PonderModelOutput
from ponder.integrations.transformers.saved_model import SavedModel
from ponder.integrations.transformers.texts import Rows, answer_rows, record_rows
from ponder.model.heads import LambdaHead, PerStep, make_heads
from ponder.model.steps import ContextDict
from ponder.objectives import Distillation, FinalStep
from ponder.policies import ExitPolicy, LastStep
from ponder.recipes import Recipe, Stage
from ponder.running.loop import Answers
from ponder.tasks import Task, TaskName
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

if TYPE_CHECKING:
    from ponder.deploy.export import ExportSource

__all__ = ["PonderPreTrainedModel"]

_PROBLEMS: dict[str, TaskName] = {
    "single_label_classification": "classification",
    "regression": "regression",
    "multi_label_classification": "multilabel",
}
_REMEDIES = {
    "inputs_embeds": "Pass input_ids. Prompt tuning replaces them by embeddings: use LoRA, or "
    "another method of peft that changes layers.",
    "past_key_values": "Leave it out: nothing is generated. Of peft's methods, use LoRA.",
    "output_attentions": "Leave it out, and call the plain encoder.",
    "output_hidden_states": "Leave it out; model.unroll(…, keep_features=True) records the "
    "features of every step.",
}
"""Arguments of other Transformers models that a model with exits cannot honour, with remedies."""
_EXITS = Recipe(
    name="exits",
    paper="this library: early heads that learn to answer as a frozen fine-tuned model does",
    stages=(Stage(Distillation(), train="early_heads"),),
    policy=LastStep(),
    per_step_heads=True,
    tuned_for=None,
)


class PonderPreTrainedModel(SavedModel):
    """An encoder with the parts of a recipe, or a fine-tuned model with exits.

    Build it with `from_encoder` or `from_finetuned`; reload it with `from_pretrained`. Subclasses
    differ in the features that heads read (`readouts`), in the meaning of answers (`task_of`) and
    in their names (`named_outputs`).

    Args:
        config: The configuration; weights are random until they are loaded.
        encoder: An encoder or fine-tuned model. By default a new one is made from the
            configuration.
        adapter: The adapter of the encoder. By default the encoder is captured.

    Attributes:
        tokenizer: The tokenizer of `predict`, saved and loaded with the weights; None if there is
            no tokenizer.

    Example:
        >>> model.policy, model.recipe.name, model.ponder.num_steps
        (Quantile(q=0.5), 'palbert', 4)
        >>> model.unroll(**batch).outputs.shape
        torch.Size([5, 4, 3])
    """

    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules: list[str] = []  # noqa: RUF012 (the base class adds those of the encoder)

    accepts_loss_kwargs = False
    """The loss is a mean over the batch: `Trainer` scales it itself."""
    readouts: ClassVar[tuple[str, ...]] = ("pooler", "mean", "first_token", "last_token")
    """Readouts that suit the heads; the first that the encoder has is the default."""
    heads_name: ClassVar[str] = "classifier"
    """The name under which peft looks for the heads of such a model."""
    task_name: ClassVar[TaskName | None] = None
    """The name of the task; None if `problem_type` determines it."""
    per_position: ClassVar[bool] = False
    """Whether there is an answer at each position."""
    auto_class: ClassVar[AutoClass]
    """The Auto class of Transformers that finds models of this kind."""

    def __init__(
        self,
        config: PonderConfig,
        encoder: PreTrainedModel | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        attention = config._attn_implementation  # the base class overwrites what was requested
        super().__init__(config)
        whole = encoder or new_encoder(config, attention)
        if encoder is not None:
            for module in encoder.modules():
                # Else `post_init` draws new weights.
                module._is_hf_initialized = True  # type: ignore[assignment]
        self.ponder = self._wrapper(whole, adapter)
        self.main_input_name = whole.main_input_name
        self._tokenizer = None
        self.post_init()  # type: ignore[no-untyped-call]

    def _wrapper(self, whole: PreTrainedModel, adapter: Adapter | None) -> PonderWrapper:
        """Return a wrapper of an encoder with new heads, as the configuration describes it."""
        config = self.config
        adapter = adapter or self.adapt(whole, config)
        recipe = self.recipe
        steps = adapter.steps()
        head, lambda_head = self.make_heads(recipe, steps.num_steps)
        wrapper = HeadsWrapper(
            steps,
            heads_name=self.heads_name,
            head=head,
            lambda_head=lambda_head,
            prior=recipe.prior,
            policy=recipe.policy,
            stem=AdapterStem(adapter, whole),
            readout=adapter.readout(config.readout),
            task=self.task_of(config),
            padding=adapter.padding(),
        )
        wrapper.stages = recipe.stages
        wrapper.main_input_name = whole.main_input_name
        if isinstance(adapter, FinetunedAdapter):
            whole.requires_grad_(False)
        # The new parts take the device and the dtype of the encoder, which stays as it is.
        for part in wrapper.children():
            is_meta = any(weight.is_meta for weight in part.parameters())
            if part is not wrapper.stem and not is_meta:
                part.to(device=whole.device, dtype=whole.dtype)
        return wrapper

    @classmethod
    def adapt(cls, whole: PreTrainedModel, config: PonderConfig) -> Adapter:
        """Return the adapter of an encoder, or of a fine-tuned model."""
        if config.finetuned:
            return FinetunedAdapter(
                whole, cls.answer, cls.per_position, config.num_steps, config.example
            )
        return Adapter(encoder_of(whole), config.num_steps, config.example)

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """Return the head and the Lambda head of a recipe; for a fine-tuned model, early heads."""
        config = self.config
        labels = int(config.num_labels or 1)
        width = config.feature_size
        assert (
            width is not None
        )  # only the configuration that Transformers makes by itself has none
        if config.finetuned:
            states = 1 if self.per_position else 2
            early = [EarlyHead(labels, width, states) for _ in range(num_steps - 1)]
            return PerStep([*early, OwnAnswer(labels)]), None
        return make_heads(recipe, width, labels, num_steps, config.head_dropout)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as Transformers does, but start Lambda heads and early heads as built."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, LambdaHead):
            last: Any = module.layers[-1]
            initialization.constant_(last.bias, module.start_logit)
        if isinstance(module, EarlyHead):
            module.reset()

    @classmethod
    def task_of(cls, config: PonderConfig) -> TaskName | Task:
        """Return the task of the class, or else the one that `problem_type` names."""
        if cls.task_name is not None:
            return cls.task_name
        return _PROBLEMS[config.problem_type or "single_label_classification"]

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PathLike[str] | PreTrainedModel,
        recipe: str | Recipe = "frozen",
        num_labels: int | None = None,
        *,
        readout: str | None = None,
        policy: ExitPolicy | None = None,
        example: Mapping[str, object] | None = None,
        problem_type: str | None = None,
        id2label: Mapping[int, str] | None = None,
        head_dropout: float = 0.1,
        **loading: Any,
    ) -> Self:
        """Put a recipe's heads on a pretrained encoder.

        Args:
            encoder: A hub name, a folder, or a bare encoder (its weights are used, not copied). Of
                an encoder-decoder, the encoder is used. A decoder is read as an encoder; its last
                token is then the best readout.
            recipe: A recipe or its name. Its policy is chosen for the task, and the values that its
                paper tuned are scaled to the encoder's steps. Some recipes, the default among them,
                have several stages, which `PonderTrainer` runs.
            num_labels: The number of classes; 1 is regression. By default the length of `id2label`,
                or 2.
            readout: ``"pooler"``, ``"mean"``, ``"first_token"``, ``"last_token"`` or ``"tokens"``,
                if the model has it (`readouts`). By default the first that the encoder has.
            policy: An exit policy instead of the recipe's.
            example: The arguments of a call, for two or more different rows, the longest first, for
                an encoder whose inputs cannot be made up from its configuration. It is saved with
                the model.
            problem_type: The problem, as in Transformers, for models that have several. By default
                it follows from `num_labels`.
            id2label: Names of the classes.
            head_dropout: Dropout in front of the head.
            loading: Arguments of `AutoModel.from_pretrained`: `dtype` (float32 by default),
                `device_map`, `trust_remote_code`, ….

        Raises:
            ArgumentError: The recipe or readout is unknown, or the encoder cannot be used.
        """
        encoder = encoder_of(load_whole(AutoModel, encoder, loading))
        check_saveable(encoder)
        packed = _packed(example)
        adapter = Adapter(encoder, None, packed)
        known = [name for name in cls.readouts if adapter.has_readout(name)]
        if readout is None and known:
            readout = known[0]
        check_choice("readout", readout, known)
        labels = num_labels or len(id2label or ()) or 2
        classes: dict[str, Any] = {"num_labels": labels}
        if id2label:
            classes = {"id2label": dict(id2label)}  # it sets the number, too
        config = cls._config(
            encoder,
            adapter,
            str(readout),
            labels,
            problem_type,
            example=packed,
            head_dropout=head_dropout,
            **classes,
        )
        if isinstance(recipe, str):
            recipe = recipes.get(recipe)
        scaled = recipe.for_steps(adapter.steps().num_steps).for_task(cls.task_of(config))
        if policy is not None:
            scaled = dataclasses.replace(scaled, policy=policy)
        config.recipe = scaled.to_dict()
        config.name_or_path = encoder.config.name_or_path
        model = cls(config, encoder, adapter)
        model.train()  # the encoder too, which Transformers loads in evaluation mode
        return model

    @classmethod
    def _config(
        cls,
        whole: PreTrainedModel,
        adapter: Adapter,
        readout: str,
        labels: int,
        problem: str | None,
        **fields: Any,
    ) -> PonderConfig:
        """Return the configuration of a new model; without a problem, one label is regression.

        Args:
            whole: The encoder, or the fine-tuned model.
            adapter: Its adapter.
            readout: Name of the readout.
            labels: Number of labels.
            problem: The problem, as in Transformers.
            fields: Further fields of the configuration.
        """
        if cls.task_name is not None:  # the class has one task for any number of labels
            problem = None
        elif not problem:
            problem = "regression" if labels == 1 else "single_label_classification"
        return PonderConfig(
            encoder=whole.config,
            architecture=type(whole).__name__,
            readout=readout,
            num_steps=adapter.steps().num_steps,
            feature_size=adapter.width(readout),
            problem_type=problem,
            **fields,
        )

    @classmethod
    def from_finetuned(
        cls,
        model: str | PathLike[str] | PreTrainedModel,
        *,
        example: Mapping[str, object] | None = None,
        **loading: Any,
    ) -> Self:
        """Add exits to a fine-tuned model, which keeps its head.

        `fit_exits` fits them from inputs without labels; until then every row runs to the last
        step. At full depth the answers are those of the plain model, bit for bit. The model is
        frozen: training changes only the early heads, which learn to answer as full depth does.

        Args:
            model: A fine-tuned model of Transformers with a head of this class's kind, a folder, or
                a hub name.
            example: As for `from_encoder`.
            loading: As for `from_encoder`.

        Raises:
            ArgumentError: The model has no such head, or cannot be captured; the message says why.
            CheckpointError: The folder lacks weights of a fine-tuned model.
        """
        whole = load_whole(cls.auto_class, model, loading)
        config = whole.config
        if type(whole).__name__.endswith("Model") or config.model_type == "ponder":
            expected = "a fine-tuned model of Transformers with its head, and without exits"
            remedy = "Use from_encoder for a bare encoder, from_pretrained for a model with exits."
            raise ArgumentError("model", expected=expected, got=type(whole).__name__, remedy=remedy)
        check_saveable(whole)
        packed = _packed(example)
        adapter = FinetunedAdapter(whole, cls.answer, cls.per_position, None, packed)
        settings = cls._config(
            whole,
            adapter,
            "answer",
            int(config.num_labels or 1),
            config.problem_type,
            finetuned=True,
            recipe=_EXITS.to_dict(),
            example=packed,
            id2label=config.id2label,
            label2id=config.label2id,
        )
        settings.name_or_path = config.name_or_path
        wrapped = cls(settings, whole, adapter)
        wrapped.train(False)
        return wrapped

    @property
    def head_names(self) -> list[str]:
        """Names of the heads for peft's `modules_to_save`, if no `task_type` is given."""
        return [f"ponder.{self.heads_name}"]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the encoder's embeddings, as in Transformers."""
        embeddings: nn.Embedding = self.encoder.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = embeddings.num_embeddings
        return embeddings

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether steps are checkpointed; peft reads this name, about which Transformers warns."""
        return self.ponder.checkpoint_steps

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Checkpoint whole steps; `gradient_checkpointing_enable` calls this."""
        self.gradient_checkpointing = enable
        self.ponder.checkpoint_steps = enable

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        input_features: Tensor | None = None,
        policy: ExitPolicy | None = None,
        row_ids: Tensor | None = None,
        **inputs: Any,
    ) -> PonderModelOutput | tuple[Tensor, ...]:
        """Run every step in training, and each row to its exit in evaluation.

        Args:
            input_ids: Token ids, `(batch, length)`, of an encoder of texts.
            attention_mask: 1 at real positions and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, if the encoder has them.
            labels: Labels of the model's task.
            pixel_values: Images, as the encoder's processor returns them.
            input_values: Audio samples, `(batch, length)`; for some encoders a spectrogram.
            input_features: A spectrogram.
            policy: An exit policy instead of the model's.
            row_ids: Identity of each row, `(batch,)`, for seeded sampling.
            inputs: Further inputs of the encoder, by their names there. With `return_dict=False`
                the output is a tuple.
        """
        inputs |= {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        inputs |= {
            "pixel_values": pixel_values,
            "input_values": input_values,
            "input_features": input_features,
        }
        return self.run(inputs, labels, policy, row_ids)

    def run(
        self,
        inputs: ContextDict,
        labels: Tensor | None,
        policy: ExitPolicy | None,
        row_ids: Tensor | None,
    ) -> PonderModelOutput | tuple[Tensor, ...]:
        """Call the wrapper with the inputs of `forward`, by name."""
        as_tuple = inputs.pop("return_dict", None) is False
        # Callers pass False for what they do not want, such as output_attentions.
        context = {
            name: value
            for name, value in inputs.items()
            if value is not None and value is not False
        }
        main = self._main_input(context)
        out = self.ponder(main, labels=labels, policy=policy, row_ids=row_ids, **context)
        outputs = out.outputs
        trains_every_step = not isinstance(self.ponder.objective, FinalStep)
        if labels is None and outputs.requires_grad and trains_every_step:
            # A view, so that the hook sees only gradients of a loss that the caller computed.
            outputs = outputs.view_as(outputs)
            outputs.register_hook(_refuse_last_step_alone)
        of_steps: dict[str, Tensor | None] = {}
        if out.trajectory is not None:
            of_steps["step_logits"] = out.trajectory.outputs
            of_steps["hazard_logits"] = out.trajectory.hazard_logits
        output = PonderModelOutput(
            loss=out.loss,
            exit_step=out.exit_step,
            **of_steps,
            **self.named_outputs(outputs),
        )
        if as_tuple:
            values: tuple[Tensor, ...] = output.to_tuple()
            return values
        return output

    def _main_input(self, context: ContextDict) -> Tensor:
        """Take the main input out of the arguments of a call.

        Raises:
            ArgumentError: An input is missing, or an argument would have no effect.
        """
        name = self.main_input_name
        for unread in _REMEDIES.keys() & context.keys():
            raise ArgumentError(
                unread,
                expected="None: a model that exits early does not support it",
                got=type(context[unread]).__name__,
                remedy=_REMEDIES[unread],
            )
        missing = {name, *self.adapter.required} - context.keys()
        if missing:
            raise ArgumentError(
                name if name in missing else ", ".join(sorted(missing)),
                expected=f"an input of {type(self.encoder).__name__}",
                got=", ".join(context) or "nothing",
                remedy="Pass all outputs of its tokenizer or processor; Trainer keeps them with "
                "remove_unused_columns=False.",
            )
        main: Tensor = context.pop(name)
        return main

    @staticmethod
    def answer(output: Mapping[str, Tensor]) -> Tensor:
        """Return the answer in the output of a fine-tuned model."""
        return output["logits"]

    def named_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return the answer by the names of its fields in the output."""
        return {"logits": outputs}

    def unroll(self, **inputs: Any) -> Trajectory:
        """Run every step; arguments as for a call, and `keep_features`."""
        context = {name: value for name, value in inputs.items() if value is not None}
        return self.ponder.unroll(self._main_input(context), **context)

    def predict(self, rows: Rows, **options: Any) -> Answers:
        """Run every example to its exit, in its order.

        Args:
            rows: Texts, or pairs of texts, if there is a tokenizer; or encodings without padding,
                each a dict with the main input, as a tokenizer or processor returns them.
            options: Arguments of `ponder.predict`: `batch_size`, `policy`, `progress`, ….

        Returns:
            The answers, with the names of classes as `labels`.
        """
        return answer_rows(self, rows, **options)

    def record(self, rows: Rows, **options: Any) -> Trajectory:
        """Run every step of every example; arguments as for `predict` and `ponder.record`."""
        return record_rows(self, rows, **options)

    def export_source(self) -> ExportSource:
        """Return the wrapper, an example, the tokenizer and the labels for `ponder.export.onnx`."""
        # Exports need ONNX, which takes a second to import.
        exporting = import_module("ponder.integrations.transformers.exporting")
        source: ExportSource = exporting.source_of(self)
        return source

    def note_evaluation(
        self, trajectory: Trajectory, data: str, *, metric: Metric | None = None
    ) -> Evaluation:
        """Measure the policy on labelled rows, for the configuration and the model card.

        Args:
            trajectory: A full-depth run of this model on rows with labels that chose neither
                weights nor policy.
            data: A short name of the rows: ``"RTE, validation"``.
            metric: The score, as for `ponder.calibration.sweep`. By default the task's.
        """
        noted = evaluate(trajectory, self.policy, data, metric)
        others = [
            row
            for row in self.config.evaluations
            if (row["data"], row["policy"]) != (data, noted["policy"])
        ]
        self.config.evaluations = [*others, noted]
        return noted


def _packed(example: Mapping[str, object] | None) -> PackedExample | None:
    """Return an example as the configuration keeps it; None if the caller passed none."""
    if example is None:
        return None
    return pack(example)


def _refuse_last_step_alone(gradient: Tensor) -> None:
    """Raise, since a loss of the last step alone would not train the exits."""
    raise ArgumentError(
        "labels",
        expected="labels in the call of a model whose recipe trains every step",
        got="a loss of out.logits, of the last step alone (as plain Trainer computes it with "
        "label_smoothing_factor or compute_loss_func)",
        remedy="Use PonderTrainer, which smooths the labels of every step; pass labels to the "
        "model and use out.loss; or compute your loss from out.step_logits.",
    )
