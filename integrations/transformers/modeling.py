"""`PonderPreTrainedModel`: a Hugging Face model that exits per example.

A kind of answer (a class a text, a class a token, features, …) is a short subclass each, in
`heads.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import transformers
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedModel, initialization
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.generic import ModelOutput

from ponder import recipes
from ponder._utils.checks import check_choice
from ponder._utils.files import reading
from ponder._utils.seals import digest_of_file
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers.adapters import (
    Adapter,
    AdapterStem,
    CapturedAdapter,
    adapter_for,
)
from ponder.integrations.transformers.card import evaluate, model_card, write_card
from ponder.integrations.transformers.config import PonderConfig, changed_files
from ponder.integrations.transformers.families import encoder_of, pack
from ponder.integrations.transformers.finetuned import EarlyHead, FinetunedAdapter, OwnAnswer
from ponder.model.heads import LambdaHead, PerStep, make_heads
from ponder.model.readouts import ReadoutCall
from ponder.objectives import Distillation, FinalStep
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.combine import promise_about
from ponder.recipes import Recipe, Stage
from ponder.running.loop import Answers
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = [
    "HeadsWrapper",
    "PonderModelOutput",
    "PonderPreTrainedModel",
    "load_whole",
    "span_labels",
]

_PROBLEMS = {
    "single_label_classification": "classification",
    "regression": "regression",
    "multi_label_classification": "multilabel",
}
_REMEDIES = {
    "inputs_embeds": "Pass input_ids. Prompt tuning and its kin put embeddings in their place: use LoRA, or another "
    "method of peft that changes layers.",
    "past_key_values": "Leave it out: nothing is generated. Of peft's methods, use LoRA.",
    "output_attentions": "Leave it out, and ask the plain encoder.",
    "output_hidden_states": "Leave it out; model.unroll(…, keep_features=True) gives what heads read at every step.",
}
"""Arguments of other models of Transformers that a model with exits cannot honour."""
_EXITS = Recipe(
    name="exits",
    paper="this library: early heads that learn to answer as a frozen fine-tuned model does",
    stages=(Stage(Distillation(), train="early_heads"),),
    policy=LastStep(),
    per_step_heads=True,
    tuned_for=None,
)
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
_ENCODER = "ponder.stem.encoder"  # the path of the encoder in the model
_READING: ContextVar[tuple[str, bool | None, dict[str, Any]] | None] = ContextVar(
    "_READING", default=None
)
"""What `from_pretrained` reads: the folder or name, whether its code is trusted, and arguments of the hub."""


@dataclass
class PonderModelOutput(ModelOutput):
    """Output of a model with exits: in training of the last step, else of each row's exit.

    Args:
        loss: Scalar, where labels were given.
        logits: Logits of a classifier, or numbers, `(batch, [length,] labels)`.
        start_logits: Logits of the first token of an answer, `(batch, length)`.
        end_logits: Logits of its last token, likewise.
        last_hidden_state: Tokens, `(batch, length, width)`, of an encoder that reads tokens.
        pooler_output: Features, `(batch, width)`, of an encoder that reads anything else.
        exit_step: The step of these, `(batch,)`, 1-based.
        step_logits: All of it at every step in training, `(batch, steps, …)`.
        hazard_logits: Hazard logits of every step in training, with a Lambda head, `(batch,
            steps)`.

    Example:
        >>> out = model.train()(**batch, labels=torch.tensor([0, 1, 2, 0, 1]))
        >>> out.loss.shape, out.step_logits.shape, out.hazard_logits.shape
        (torch.Size([]), torch.Size([5, 4, 3]), torch.Size([5, 4]))
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    exit_step: Tensor | None = None
    step_logits: Tensor | None = None
    hazard_logits: Tensor | None = None


class PonderPreTrainedModel(PreTrainedModel):
    """An encoder with the heads, prior, objective and policy of a recipe, or a fine-tuned model with exits.

    Build it with `from_encoder` or `from_finetuned`; reload it with `from_pretrained`. Subclasses
    differ in what they read (`readouts`), what their answers mean (`task_of`) and how these are
    called (`named_outputs`).

    Args:
        config: The configuration; weights are random until they are loaded.
        encoder: The encoder, or fine-tuned model, instead of a new one made from the configuration.
        adapter: Its adapter, where it is known.

    Attributes:
        tokenizer: The tokenizer of `predict`, found beside the weights and saved with them; None
            where there is none.

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
    """The loss is a mean over the batch: `Trainer` scales it itself."""
    readouts: ClassVar[tuple[str, ...]] = ("pooler", "mean", "first_token", "last_token")
    """Readouts of the encoder that suit the heads; the first that the encoder has is the default."""
    heads_name: ClassVar[str] = "classifier"
    """The name under which peft looks for the heads of such a model."""
    pipeline_tag: ClassVar[str] = "feature-extraction"
    """The name of the task on the hub."""
    task_name: ClassVar[str | None] = None
    """The name of the task; None where `problem_type` says so."""
    per_position: ClassVar[bool] = False
    """True for an answer at each position."""
    auto_class: ClassVar[Any]

    def __init__(
        self,
        config: PonderConfig,
        encoder: PreTrainedModel | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        attention = (
            config._attn_implementation
        )  # as it was asked for; the base class puts its own choice there
        super().__init__(config)
        whole = encoder or _new_encoder(config, attention)
        if encoder is not None:
            for module in encoder.modules():
                module._is_hf_initialized = True  # type: ignore[assignment]  # else `post_init` draws weights anew
        self.ponder = self._wrapper(whole, adapter)
        self.main_input_name = whole.main_input_name
        self._tokenizer: Any = None
        self.post_init()  # type: ignore[no-untyped-call]

    def _wrapper(self, whole: PreTrainedModel, adapter: Adapter | None) -> PonderWrapper:
        """The wrapper around an encoder, as the configuration says, with new heads."""
        config: Any = self.config
        adapter = adapter or self.adapt(whole, config)
        recipe = self.recipe
        steps, read = adapter.steps(), config.readout
        head, lambda_head = self.make_heads(recipe, steps.num_steps)
        wrapper = HeadsWrapper(
            steps,
            heads_name=self.heads_name,
            head=head,
            lambda_head=lambda_head,
            prior=recipe.prior,
            policy=recipe.policy,
            stem=AdapterStem(adapter, whole),
            readout=adapter.readout(read),
            task=self.task_of(config),
            padding=adapter.padding(),
        )
        wrapper.stages, wrapper.main_input_name = recipe.stages, whole.main_input_name
        if isinstance(adapter, FinetunedAdapter):
            whole.requires_grad_(False)
        for (
            part
        ) in wrapper.children():  # the heads go where the encoder is; it stays as it was given
            if part is not wrapper.stem and not any(weight.is_meta for weight in part.parameters()):
                part.to(device=whole.device, dtype=whole.dtype)
        return wrapper

    @classmethod
    def adapt(cls, whole: PreTrainedModel, config: PonderConfig) -> Adapter:
        """The adapter of an encoder, or of a fine-tuned model."""
        if config.finetuned:
            return FinetunedAdapter(
                whole, cls.answer, cls.per_position, config.num_steps, config.example
            )
        return adapter_for(whole, config.num_steps, config.example)

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """The head and the Lambda head: a recipe's, or early heads beside a fine-tuned model's own."""
        config = self.config
        labels = int(config.num_labels or 1)
        if config.finetuned:
            states = 1 if self.per_position else 2
            early = [EarlyHead(labels, config.feature_size, states) for _ in range(num_steps - 1)]
            return PerStep([*early, OwnAnswer(labels)]), None
        return make_heads(recipe, config.feature_size, labels, num_steps, config.head_dropout)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as Transformers does; a Lambda head still starts at its hazard, an early head at 0."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, LambdaHead):
            last: Any = module.layers[-1]
            initialization.constant_(last.bias, module.start_logit)
        if isinstance(module, EarlyHead):
            module.reset()

    @classmethod
    def task_of(cls, config: PonderConfig) -> Any:
        """The task: the class's own, or what the configuration's `problem_type` says."""
        return cls.task_name or _PROBLEMS[config.problem_type or "single_label_classification"]

    @classmethod
    def from_encoder(
        cls,
        encoder: str | PathLike[str] | PreTrainedModel,
        recipe: str | Recipe = "frozen",
        num_labels: int | None = None,
        *,
        readout: str | None = None,
        policy: ExitPolicy | None = None,
        example: Mapping[str, Any] | None = None,
        problem_type: str | None = None,
        id2label: Mapping[int, str] | None = None,
        head_dropout: float = 0.1,
        **loading: Any,
    ) -> Self:
        """Put a recipe's heads on a pretrained encoder.

        Args:
            encoder: A hub name, a folder, or a bare encoder (its weights are used, not copied); of
                an encoder-decoder, the encoder is used. A decoder is read as an encoder, best by
                its last token.
            recipe: A recipe or its name; its policy is that for the task, and what its paper tuned
                is scaled to the encoder's steps. `PonderTrainer` trains the several stages that
                some have, the default among them.
            num_labels: Classes; 1 is regression. Where None as many as `id2label` names, or 2.
            readout: ``"pooler"``, ``"mean"``, ``"first_token"``, ``"last_token"`` or ``"tokens"``,
                as far as the model has them (`readouts`); where None, the first of these that the
                encoder has.
            policy: An exit policy instead of the recipe's.
            example: What the encoder is called with, for two different rows or more, the longest
                first, where it reads more than its configuration says; it is saved with the model.
            problem_type: The problem, as in Transformers, for models that have several; taken from
                `num_labels` where None.
            id2label: Names of the classes.
            head_dropout: Dropout in front of the head.
            loading: Arguments of `AutoModel.from_pretrained`: `dtype` (float32 where it is not
                given), `device_map`, `trust_remote_code`, ….

        Raises:
            ArgumentError: An unknown recipe or readout, or an encoder that cannot be used.
        """
        encoder = encoder_of(load_whole(AutoModel, encoder, loading))
        check_saveable(encoder)
        packed = None if example is None else pack(example)
        adapter = adapter_for(encoder, None, packed)
        known = [name for name in cls.readouts if adapter.has_readout(name)]
        readout = known[0] if readout is None and known else readout
        check_choice("readout", readout, known)
        labels = num_labels or (len(id2label) if id2label else 2)
        config = cls._config(
            encoder,
            adapter,
            str(readout),
            labels,
            problem_type,
            example=packed,
            head_dropout=head_dropout,
            **({"id2label": dict(id2label)} if id2label else {"num_labels": labels}),
        )
        made = recipes.get(recipe) if isinstance(recipe, str) else recipe
        made = made.for_steps(adapter.steps().num_steps).for_task(cls.task_of(config))
        config.recipe = (
            made if policy is None else dataclasses.replace(made, policy=policy)
        ).to_dict()
        config.name_or_path = encoder.config.name_or_path
        model = cls(config, encoder, adapter)
        model.train()  # the encoder too, which Transformers gives in evaluation mode
        return model

    @classmethod
    def _config(
        cls,
        whole: PreTrainedModel,
        adapter: Adapter,
        read: str,
        labels: int,
        problem: str | None,
        **fields: Any,
    ) -> PonderConfig:
        """The configuration of a new model; where no problem is named, one label is regression."""
        problem = problem or ("regression" if labels == 1 else "single_label_classification")
        return PonderConfig(
            encoder=whole.config,
            architecture=type(whole).__name__,
            readout=read,
            num_steps=adapter.steps().num_steps,
            feature_size=adapter.width(read),
            problem_type=problem if cls.task_name is None else None,
            **fields,
        )

    @classmethod
    def from_finetuned(
        cls,
        model: str | PathLike[str] | PreTrainedModel,
        *,
        example: Mapping[str, Any] | None = None,
        **loading: Any,
    ) -> Self:
        """Keep a fine-tuned model, head and all, and put exits beside it; `fit_exits` fits them, from inputs alone.

        At full depth the answers are those of the plain model, bit for bit; until exits are fitted
        every row runs to the last step. The model is frozen, so training moves the early heads
        alone, to answer as full depth does.

        Args:
            model: A fine-tuned model of Transformers, with the head that this class is for; a
                folder or a hub name.
            example: As for `from_encoder`.
            loading: As for `from_encoder`.

        Raises:
            ArgumentError: It has no such head, or cannot be captured (says why).
            CheckpointError: The folder holds no whole fine-tuned model.
        """
        whole = load_whole(cls.auto_class, model, loading)
        config = whole.config
        if type(whole).__name__.endswith("Model") or config.model_type == "ponder":
            expected = "a fine-tuned model of Transformers, head included, without exits"
            remedy = (
                "A bare encoder is for from_encoder, and a model with exits for from_pretrained."
            )
            raise ArgumentError("model", expected=expected, got=type(whole).__name__, remedy=remedy)
        check_saveable(whole)
        packed = None if example is None else pack(example)
        adapter = FinetunedAdapter(whole, cls.answer, cls.per_position, None, packed)
        made = cls._config(
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
        made.name_or_path = config.name_or_path
        wrapped = cls(made, whole, adapter)
        wrapped.train(False)
        return wrapped

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load what `save_pretrained` wrote, as in Transformers.

        An encoder with code of its own needs ``trust_remote_code=True``, which runs the files
        beside the weights.

        Raises:
            CheckpointError: The folder holds weights of another class, or code that is not trusted.
        """
        names = ("cache_dir", "revision", "token", "local_files_only")
        hub: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
        source = str(pretrained_model_name_or_path)
        source_known = _READING.set((source, kwargs.pop("trust_remote_code", None), hub))
        with_info = kwargs.pop("output_loading_info", False)
        base: Any = super()
        try:
            with reading(source, "model with exits"):
                model, info = base.from_pretrained(
                    source, *args, **kwargs, output_loading_info=True
                )
        finally:
            _READING.reset(source_known)
        saved = (model.config.architectures or [cls.__name__])[0]
        if (
            saved != cls.__name__
            and saved.startswith("PonderFor")
            and cls.__name__.startswith("PonderFor")
        ):
            raise CheckpointError(
                f"{pretrained_model_name_or_path}: expected a model that {cls.__name__} saved; got one of {saved}, "
                f"whose heads answer something else. Load it with {saved}.from_pretrained."
            )
        _refuse_missing(source, model, info["missing_keys"])
        model._learn()
        changed = partial(changed_files, source, subfolder=kwargs.get("subfolder", ""), **hub)
        model.policy = promise_about(model.ponder.weights_digest, model.policy, changed)
        return (model, info) if with_info else model

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the tied weights, those of the encoder included: the base class looks for them in children alone."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        if not all_submodels:
            inner = self.encoder.all_tied_weights_keys
            tied |= {f"{_ENCODER}.{name}": f"{_ENCODER}.{source}" for name, source in inner.items()}
        return tied

    def _learn(self) -> None:
        """Capture the encoder, which had to wait for its weights; nothing to do where an adapter needs none."""
        adapter = self.adapter
        if isinstance(adapter, CapturedAdapter) and adapter.parts is None:
            wrapper, read = self.ponder, self.config.readout
            wrapper.steps = adapter.learn().steps
            padding = wrapper.padding = adapter.padding()
            wrapper.readout = ReadoutCall(adapter.readout(read), padding)

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save the model as in Transformers, with its tokenizer, a model card, and the code that an encoder brought."""
        self.policy = promise_about(self.ponder.weights_digest, self.policy)
        folder, wrapper, recipe = Path(save_directory), self.ponder, self.recipe
        recipe = dataclasses.replace(
            recipe, policy=wrapper.policy, prior=wrapper.prior, stages=wrapper.stages
        )
        self.config.recipe = recipe.to_dict()
        if kwargs.get("is_main_process", True):
            folder.mkdir(parents=True, exist_ok=True)
            for part in (self.encoder, self.encoder.config):
                if part._auto_class is not None:
                    custom_object_save(part, folder, config=self.encoder.config)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)
            files = [folder / name for name in _VOCABULARIES if self.tokenizer is not None]
            self.config.digests = {p.name: digest_of_file(p) for p in files if p.is_file()}
            write_card(self, folder)
        # Under the names that weights have here: Trainer reads its checkpoints without renaming
        # any.
        super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload the model as in Transformers, with its own model card."""
        base: Any = super()
        found = base.push_to_hub(repo_id, **kwargs)
        model_card(self, repo_id.rpartition("/")[2]).push_to_hub(repo_id, token=kwargs.get("token"))
        return found

    @property
    def encoder(self) -> Any:
        """The encoder, or the fine-tuned model with its head."""
        stem: Any = self.ponder.stem
        return stem.encoder

    @property
    def adapter(self) -> Adapter:
        """The adapter by which the encoder is read."""
        stem: Any = self.ponder.stem
        adapter: Adapter = stem.adapter
        return adapter

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of `predict`, saved with the model; found beside the weights when it is first asked for."""
        if self._tokenizer is None and self.main_input_name == "input_ids":
            with contextlib.suppress(CheckpointError):
                self._tokenizer = _texts().load_tokenizer(str(self.config.name_or_path or ""))
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy, saved with the model; assigning one checks it."""
        return self.ponder.policy

    @policy.setter
    def policy(self, policy: ExitPolicy) -> None:
        self.ponder.policy = policy

    @property
    def recipe(self) -> Recipe:
        """The recipe that the model was built with, scaled to this encoder."""
        return Recipe.from_dict(self.config.recipe)

    @property
    def head_names(self) -> list[str]:
        """Peft's `modules_to_save`: heads and Lambda head; it finds them itself by the `task_type` of the head."""
        return [f"ponder.{self.heads_name}"]

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Resize the encoder's embeddings, as in Transformers."""
        embeddings: nn.Embedding = self.encoder.resize_token_embeddings(*args, **kwargs)
        self.config.vocab_size = embeddings.num_embeddings
        return embeddings

    @property
    def is_gradient_checkpointing(self) -> bool:
        """True where steps are checkpointed; peft asks by this name, of which Transformers warns."""
        return self.ponder.checkpoint_steps

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Checkpoint whole steps, of any family of layers; `activation_checkpointing_enable` calls this."""
        self.gradient_checkpointing = self.ponder.checkpoint_steps = enable

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
    ) -> Any:
        """Run every step in training, and each row to its exit in evaluation, as `PonderWrapper.forward` does.

        Args:
            input_ids: Token ids, `(batch, length)`, of an encoder of texts.
            attention_mask: 1 at real positions and 0 at padding, `(batch, length)`.
            token_type_ids: Segments, `(batch, length)`, where the encoder has them.
            labels: Labels, as the model's task has them.
            pixel_values: Images, as the encoder's processor gives them.
            input_values: Samples `(batch, length)`, or a spectrogram for the encoders that call it
                so.
            input_features: A spectrogram, for the encoders that call it so.
            policy: An exit policy instead of the model's own.
            row_ids: Identity of each row, `(batch,)`, for seeded sampling.
            inputs: Further inputs of the encoder, by its own names; `return_dict=False` asks for a
                tuple.
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
        inputs: dict[str, Any],
        labels: Tensor | None,
        policy: ExitPolicy | None,
        row_ids: Tensor | None,
    ) -> Any:
        """Make one call of the wrapper, for `forward`, whose inputs are given by name."""
        as_tuple = inputs.pop("return_dict", None) is False
        context = {
            name: value
            for name, value in inputs.items()
            if value is not None and value is not False
        }
        main = self._main_input(context)
        out = self.ponder(main, labels=labels, policy=policy, row_ids=row_ids, **context)
        trajectory, outputs = out.trajectory, out.outputs
        if (
            labels is None
            and outputs.requires_grad
            and not isinstance(self.ponder.objective, FinalStep)
        ):
            outputs = outputs.view_as(outputs)
            outputs.register_hook(_refuse_alone)
        made = PonderModelOutput(
            loss=out.loss,
            exit_step=out.exit_step,
            step_logits=None if trajectory is None else trajectory.outputs,
            hazard_logits=None if trajectory is None else trajectory.hazard_logits,
            **self.named_outputs(outputs),
        )
        return made.to_tuple() if as_tuple else made

    def _main_input(self, context: dict[str, Any]) -> Tensor:
        """Take the main input out of the arguments of a call, and refuse what no answer would honour."""
        name = self.main_input_name
        for unread in _REMEDIES.keys() & context.keys():
            expected = "None: a model that exits early has no such thing"
            remedy = _REMEDIES[unread]
            raise ArgumentError(
                unread, expected=expected, got=type(context[unread]).__name__, remedy=remedy
            )
        if name not in context or (missing := self.adapter.required - context.keys()):
            raise ArgumentError(
                name if name not in context else ", ".join(sorted(missing)),
                expected=f"what {type(self.encoder).__name__} reads",
                got=", ".join(context) or "nothing",
                remedy="Pass what its tokenizer or processor gives; Trainer keeps all of it with "
                "remove_unused_columns=False.",
            )
        main: Tensor = context.pop(name)
        return main

    @staticmethod
    def answer(output: Any) -> Tensor:
        """The answer in the output of a fine-tuned model."""
        logits: Tensor = output["logits"]
        return logits

    def named_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """The fields of the output that hold the answer."""
        return {"logits": outputs}

    def unroll(self, **inputs: Any) -> Trajectory:
        """Run every step; arguments as for a call, and `keep_features`."""
        context = {name: value for name, value in inputs.items() if value is not None}
        return self.ponder.unroll(self._main_input(context), **context)

    def predict(self, rows: Any, **options: Any) -> Answers:
        """Run every example to its exit, in its order.

        Args:
            rows: Texts, or pairs of texts, where there is a tokenizer; or encodings: a dict each
                with the main input, as a tokenizer or processor gives them, without padding.
            options: Arguments of `ponder.predict`: `batch_size`, `policy`, `progress`, ….

        Returns:
            Answers, whose `labels` are names of classes and `probabilities` those of the labels.
        """
        answers: Answers = _texts().answer_rows(self, rows, options)
        return answers

    def record(self, rows: Any, **options: Any) -> Trajectory:
        """Run every step of every example, in its order; arguments as for `predict` and `ponder.record`."""
        trajectory: Trajectory = _texts().record_rows(self, rows, options)
        return trajectory

    def export_source(self) -> Any:
        """Return what `ponder.export.onnx` writes: the wrapper, an example of its call, tokenizer and labels."""
        return import_module("ponder.integrations.transformers.exporting").source_of(self)

    def note_evaluation(
        self, trajectory: Trajectory, data: str, *, metric: Any = None
    ) -> dict[str, Any]:
        """Measure the policy on labelled rows, and note it in the configuration and on the model card.

        Args:
            trajectory: A full-depth run of this model on rows with labels, which chose neither
                weights nor policy.
            data: What the rows are, in a few words: ``"RTE, validation"``.
            metric: The score, as for `ponder.calibration.sweep`; the task's own where None.
        """
        noted = evaluate(trajectory, self.policy, data, metric)
        others = [
            row
            for row in self.config.evaluations
            if (row["data"], row["policy"]) != (data, noted["policy"])
        ]
        self.config.evaluations = [*others, noted]
        return noted


class HeadsWrapper(PonderWrapper):
    """A `PonderWrapper` whose heads stand in one module, under the name by which peft finds what is new in a model.

    Beside its adapters, peft trains in full and saves the modules whose names end in ``classifier``
    or ``qa_outputs``: it puts a module of its own in their place, which holds a copy for each
    adapter. So heads are read from there.
    """

    def __init__(self, *args: Any, heads_name: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        heads: Any = nn.Module()
        heads.head, heads.lambda_head = self.head, self.lambda_head
        del self.head, self.lambda_head
        self.heads_name = heads_name
        self.add_module(heads_name, heads)

    def __getattr__(self, name: str) -> Any:
        """The heads, of the adapter that is active; anything else as PyTorch finds it."""
        if name in ("head", "lambda_head") and "heads_name" in self.__dict__:
            return getattr(self._modules[self.heads_name], name)
        return super().__getattr__(name)


def _texts() -> Any:
    """The module of data sets and tokenizers, loaded when it is first used: it takes as long as the model's own."""
    return import_module("ponder.integrations.transformers.texts")


def span_labels(start: Tensor | None, end: Tensor | None) -> Tensor | None:
    """Return the labels of spans, `(batch, 2)`, of their first and last tokens, `(batch,)` each."""
    return (
        None
        if start is None or end is None
        else torch.stack([start.reshape(-1), end.reshape(-1)], dim=1)
    )


def check_saveable(model: PreTrainedModel) -> None:
    """Refuse, before any training, a model that its configuration and files would not make again.

    Raises:
        ArgumentError: Its class is of neither Transformers nor an Auto class, or it holds adapters
            of peft.
    """
    kind: Any = type(model)
    registered = MODEL_MAPPING.get(type(model.config), None)
    known = (
        kind.__module__.startswith("transformers.")
        or kind._auto_class is not None
        or kind is registered
    )
    if not known or "peft" in {type(part).__module__.partition(".")[0] for part in model.modules()}:
        raise ArgumentError(
            "encoder",
            expected="a model that can be read again from its files",
            got=f"a {kind.__name__} with adapters of peft"
            if known
            else f"a {kind.__name__} of {kind.__module__}",
            remedy="Pass what model.merge_and_unload() gives."
            if known
            else "Call its register_for_auto_class('AutoModel'), so that its code is saved beside it; or use "
            "ponder.PonderWrapper with the parts that ponder.capture gives.",
        )


def load_whole(
    auto: Any, source: str | PathLike[str] | PreTrainedModel, loading: Mapping[str, Any]
) -> PreTrainedModel:
    """A model of Transformers, loaded where it is not one yet; no weight may be random."""
    if isinstance(source, PreTrainedModel):
        if loading:
            raise TypeError(
                f"unexpected keyword arguments for a model that is loaded already: {', '.join(loading)}"
            )
        return source
    given = {"dtype": torch.float32, **loading, "output_loading_info": True}
    model: PreTrainedModel
    model, info = auto.from_pretrained(str(source), **given)
    missing = info["missing_keys"]
    if (
        auto is AutoModel
    ):  # checkpoints of language models have no pooler, and many encoders do without
        missing = [key for key in missing if "pooler" not in key.split(".")]
    _refuse_missing(str(source), model, missing)
    return model


def _refuse_missing(source: str, model: nn.Module, missing: Iterable[str]) -> None:
    """Refuse a folder that lacks weights: Transformers draws them at random, and says so in a log."""
    lacking = sorted(missing)
    if lacking:
        raise CheckpointError(
            f"{source}: expected all weights of a {type(model).__name__}; it lacks {', '.join(lacking[:3])}, which "
            "would be random. Pass the folder of a fine-tuned model, or its encoder to from_encoder."
        )


def _new_encoder(config: PonderConfig, attention: str | None) -> PreTrainedModel:
    """A new encoder, or model with a head, as the configuration says."""
    remote, given = config.remote_code, {"attn_implementation": attention, "dtype": config.dtype}
    if remote:
        source, trusted, hub = _READING.get() or (str(config.name_or_path), None, {})
        config.trust(source, trusted, **hub)
    if not config.finetuned:
        return encoder_of(
            AutoModel.from_config(config.encoder, trust_remote_code=bool(remote), **given)
        )
    if remote:
        name = next(auto for auto, at in remote.items() if at.endswith(f".{config.architecture}"))
        auto = getattr(transformers, name)
        return auto.from_config(config.encoder, trust_remote_code=True, **given)  # type: ignore[no-any-return]
    return getattr(transformers, str(config.architecture))._from_config(config.encoder, **given)  # type: ignore[no-any-return]


def _refuse_alone(gradient: Tensor) -> None:
    raise ArgumentError(
        "labels",
        expected="labels in the call of a model whose recipe trains every step",
        got="a loss of out.logits, of the last step alone (as plain Trainer takes with label_smoothing_factor or "
        "compute_loss_func)",
        remedy="Use PonderTrainer, which smooths the labels of every step; pass labels to the model and take out.loss; "
        "or take your loss of out.step_logits.",
    )
