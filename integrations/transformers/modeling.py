"""`PonderPreTrainedModel`: a Hugging Face model that exits per example.

It holds one `PonderWrapper`, `model.ponder`, which runs; this file builds it (`from_encoder`,
`from_finetuned`), reads and saves it as Transformers does, and names its inputs and outputs. Each
kind of answer (one class a text, one class a token, features, …) is a short subclass in `heads.py`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, initialization
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils.generic import ModelOutput

from ponder import recipes
from ponder._utils.checks import check_choice
from ponder._utils.files import ABOUT, reading, replaced_folder
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
from ponder.integrations.transformers.loading import (
    check_has_weights,
    check_saveable,
    load_whole,
    new_encoder,
    reading_from,
)
from ponder.integrations.transformers.named_heads import HeadsWrapper
from ponder.model.heads import LambdaHead, PerStep, make_heads
from ponder.model.readouts import ReadoutCall
from ponder.objectives import Distillation, FinalStep
from ponder.policies import ExitPolicy, LastStep
from ponder.policies.combine import promise_about
from ponder.recipes import Recipe, Stage
from ponder.running.loop import Answers
from ponder.trajectory import Trajectory
from ponder.wrapper import PonderWrapper

__all__ = ["FILES_OF_A_MODEL", "PonderModelOutput", "PonderPreTrainedModel", "span_labels"]

_PROBLEMS = {
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
_VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
_WEIGHTS = ("model.safetensors", "model-*.safetensors", "model.safetensors.index.json")
FILES_OF_A_MODEL = ("config.json", *_WEIGHTS, *ABOUT)
"""Patterns of the files that are replaced when a model is saved over an older one."""
_ENCODER = "ponder.stem.encoder"  # the path of the encoder in the model


@dataclass
class PonderModelOutput(ModelOutput):
    """Output of a model with exits: of the last step in training, of each row's exit in evaluation.

    Args:
        loss: Scalar; None without labels.
        logits: Logits of a classifier, or numbers, `(batch, [length,] labels)`.
        start_logits: Logits of the first token of an answer, `(batch, length)`.
        end_logits: Logits of the last token of an answer, `(batch, length)`.
        last_hidden_state: Features of all tokens, `(batch, length, width)`.
        pooler_output: Features of each row, `(batch, width)`.
        exit_step: The step of these outputs, `(batch,)`, 1-based.
        step_logits: The outputs of every step in training, `(batch, steps, …)`.
        hazard_logits: Hazard logits of every step in training, `(batch, steps)`; None without a
            Lambda head.

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
    """An encoder with the parts of a recipe, or a fine-tuned model with exits.

    Build it with `from_encoder` or `from_finetuned`; reload it with `from_pretrained`. Subclasses
    differ in the features that heads read (`readouts`), in the meaning of answers (`task_of`) and
    in their names (`named_outputs`).

    Args:
        config: The configuration; weights are random until they are loaded.
        encoder: An encoder or fine-tuned model. By default a new one is made from the
            configuration.
        adapter: The adapter of the encoder. By default the one of its family.

    Attributes:
        tokenizer: The tokenizer of `predict`, saved and loaded with the weights; None if there is
            no tokenizer.

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
    _no_split_modules: list[str] = []  # noqa: RUF012 (the base class adds those of the encoder)

    accepts_loss_kwargs = False
    """The loss is a mean over the batch: `Trainer` scales it itself."""
    readouts: ClassVar[tuple[str, ...]] = ("pooler", "mean", "first_token", "last_token")
    """Readouts that suit the heads; the first that the encoder has is the default."""
    heads_name: ClassVar[str] = "classifier"
    """The name under which peft looks for the heads of such a model."""
    pipeline_tag: ClassVar[str] = "feature-extraction"
    """The name of the task on the hub."""
    task_name: ClassVar[str | None] = None
    """The name of the task; None if `problem_type` determines it."""
    per_position: ClassVar[bool] = False
    """Whether there is an answer at each position."""
    auto_class: ClassVar[Any]

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
        self._tokenizer: Any = None
        self.post_init()  # type: ignore[no-untyped-call]

    def _wrapper(self, whole: PreTrainedModel, adapter: Adapter | None) -> PonderWrapper:
        """Return a wrapper of an encoder with new heads, as the configuration describes it."""
        config: Any = self.config
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
        return adapter_for(whole, config.num_steps, config.example)

    def make_heads(self, recipe: Recipe, num_steps: int) -> tuple[nn.Module, nn.Module | None]:
        """Return the head and the Lambda head of a recipe; for a fine-tuned model, early heads."""
        config = self.config
        labels = int(config.num_labels or 1)
        if config.finetuned:
            states = 1 if self.per_position else 2
            early = [EarlyHead(labels, config.feature_size, states) for _ in range(num_steps - 1)]
            return PerStep([*early, OwnAnswer(labels)]), None
        return make_heads(recipe, config.feature_size, labels, num_steps, config.head_dropout)

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights as Transformers does, but start Lambda heads and early heads as built."""
        super()._init_weights(module)  # type: ignore[no-untyped-call]
        if isinstance(module, LambdaHead):
            last: Any = module.layers[-1]
            initialization.constant_(last.bias, module.start_logit)
        if isinstance(module, EarlyHead):
            module.reset()

    @classmethod
    def task_of(cls, config: PonderConfig) -> Any:
        """Return the task of the class, or else the one that `problem_type` names."""
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
        adapter = adapter_for(encoder, None, packed)
        known = [name for name in cls.readouts if adapter.has_readout(name)]
        if readout is None and known:
            readout = known[0]
        check_choice("readout", readout, known)
        labels = num_labels or len(id2label or ()) or 2
        classes: dict[str, Any] = {"num_labels": labels}
        if id2label:
            classes = {"id2label": dict(id2label)}
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
        read: str,
        labels: int,
        problem: str | None,
        **fields: Any,
    ) -> PonderConfig:
        """Return the configuration of a new model; without a problem, one label is regression."""
        if cls.task_name is not None:  # the class has one task, whatever the number of labels
            problem = None
        elif not problem:
            problem = "regression" if labels == 1 else "single_label_classification"
        return PonderConfig(
            encoder=whole.config,
            architecture=type(whole).__name__,
            readout=read,
            num_steps=adapter.steps().num_steps,
            feature_size=adapter.width(read),
            problem_type=problem,
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a saved model, as in Transformers.

        An encoder that brings code needs ``trust_remote_code=True``, which runs the files beside
        the weights.

        Raises:
            CheckpointError: The folder holds weights of another class, or code that is not trusted.
        """
        names = ("cache_dir", "revision", "token", "local_files_only")
        hub: dict[str, Any] = {name: kwargs[name] for name in names if name in kwargs}
        source = str(pretrained_model_name_or_path)
        trusts_code = kwargs.pop("trust_remote_code", None)
        with_info = kwargs.pop("output_loading_info", False)
        base: Any = super()
        with reading_from(source, trusts_code, hub), reading(source, "model with exits"):
            model, info = base.from_pretrained(source, *args, **kwargs, output_loading_info=True)
            _check_class(source, (model.config.architectures or [cls.__name__])[0], cls.__name__)
            check_has_weights(source, model, info["missing_keys"])
            model._learn()
        changed = partial(changed_files, source, subfolder=kwargs.get("subfolder", ""), **hub)
        model.policy = promise_about(model.ponder.weights_digest, model.policy, changed)
        if with_info:
            return model, info
        return model

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Return the tied weights, with those of the encoder, which the base class overlooks."""
        tied: dict[str, str] = super().get_expanded_tied_weights_keys(all_submodels)
        if not all_submodels:
            inner = self.encoder.all_tied_weights_keys
            tied |= {f"{_ENCODER}.{name}": f"{_ENCODER}.{source}" for name, source in inner.items()}
        return tied

    def _learn(self) -> None:
        """Capture the encoder now that it has its weights, if it has to be captured."""
        adapter = self.adapter
        if isinstance(adapter, CapturedAdapter) and adapter.parts is None:
            wrapper = self.ponder
            wrapper.steps = adapter.learn().steps
            wrapper.padding = adapter.padding()
            wrapper.readout = ReadoutCall(adapter.readout(self.config.readout), wrapper.padding)

    def save_pretrained(
        self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> None:
        """Save the model as in Transformers, with its tokenizer, card, and the encoder's code.

        The folder is replaced as a whole. Other files in it stay, such as those of a checkpoint.
        """
        self.policy = promise_about(self.ponder.weights_digest, self.policy)
        wrapper = self.ponder
        recipe = dataclasses.replace(
            self.recipe, policy=wrapper.policy, prior=wrapper.prior, stages=wrapper.stages
        )
        self.config.recipe = recipe.to_dict()
        # Under the names that weights have here, since Trainer reads its checkpoints as they are.
        options = {"save_original_format": False, **kwargs}
        adapters_alone = getattr(self, "_hf_peft_config_loaded", False)
        if adapters_alone or not _writes_alone(options):
            super().save_pretrained(save_directory, *args, **options)
            return
        owned = set(FILES_OF_A_MODEL)
        if options.get("variant"):  # of the weights, which stands beside others
            owned -= set(_WEIGHTS)
        if self.tokenizer is not None:
            owned |= set(_VOCABULARIES)
        with replaced_folder(Path(save_directory), ["config.json"], owned) as new:
            self._write_beside_weights(new)
            super().save_pretrained(new, *args, **options)

    def _write_beside_weights(self, folder: Path) -> None:
        """Write code, tokenizer and model card into a folder."""
        for part in (self.encoder, self.encoder.config):
            if part._auto_class is not None:
                custom_object_save(part, folder, config=self.encoder.config)
        files: list[Path] = []
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
            files = [folder / name for name in _VOCABULARIES]
        self.config.digests = {p.name: digest_of_file(p) for p in files if p.is_file()}
        write_card(self, folder)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> Any:  # type: ignore[override]
        """Upload the model as in Transformers, with its model card."""
        base: Any = super()
        commit = base.push_to_hub(repo_id, **kwargs)
        model_card(self, repo_id.rpartition("/")[2]).push_to_hub(repo_id, token=kwargs.get("token"))
        return commit

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
        """The tokenizer of `predict`, saved with the model; it is loaded at its first use."""
        if self._tokenizer is None and self.main_input_name == "input_ids":
            with contextlib.suppress(CheckpointError):
                self._tokenizer = _texts().load_tokenizer(str(self.config.name_or_path or ""))
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def policy(self) -> ExitPolicy:
        """The exit policy, saved with the model; one that is assigned is checked first."""
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
    ) -> Any:
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
        inputs: dict[str, Any],
        labels: Tensor | None,
        policy: ExitPolicy | None,
        row_ids: Tensor | None,
    ) -> Any:
        """Call the wrapper with the inputs of `forward`, by name."""
        as_tuple = inputs.pop("return_dict", None) is False
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
            return output.to_tuple()
        return output

    def _main_input(self, context: dict[str, Any]) -> Tensor:
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
            argument = ", ".join(sorted(missing))
            if name in missing:
                argument = name
            raise ArgumentError(
                argument,
                expected=f"an input of {type(self.encoder).__name__}",
                got=", ".join(context) or "nothing",
                remedy="Pass all outputs of its tokenizer or processor; Trainer keeps them with "
                "remove_unused_columns=False.",
            )
        main: Tensor = context.pop(name)
        return main

    @staticmethod
    def answer(output: Any) -> Tensor:
        """Return the answer in the output of a fine-tuned model."""
        logits: Tensor = output["logits"]
        return logits

    def named_outputs(self, outputs: Tensor) -> dict[str, Tensor]:
        """Return the answer by the names of its fields in the output."""
        return {"logits": outputs}

    def unroll(self, **inputs: Any) -> Trajectory:
        """Run every step; arguments as for a call, and `keep_features`."""
        context = {name: value for name, value in inputs.items() if value is not None}
        return self.ponder.unroll(self._main_input(context), **context)

    def predict(self, rows: Any, **options: Any) -> Answers:
        """Run every example to its exit, in its order.

        Args:
            rows: Texts, or pairs of texts, if there is a tokenizer; or encodings without padding,
                each a dict with the main input, as a tokenizer or processor returns them.
            options: Arguments of `ponder.predict`: `batch_size`, `policy`, `progress`, ….

        Returns:
            The answers, with the names of classes as `labels`.
        """
        answers: Answers = _texts().answer_rows(self, rows, options)
        return answers

    def record(self, rows: Any, **options: Any) -> Trajectory:
        """Run every step of every example; arguments as for `predict` and `ponder.record`."""
        trajectory: Trajectory = _texts().record_rows(self, rows, options)
        return trajectory

    def export_source(self) -> Any:
        """Return the wrapper, an example, the tokenizer and the labels for `ponder.export.onnx`."""
        return import_module("ponder.integrations.transformers.exporting").source_of(self)

    def note_evaluation(
        self, trajectory: Trajectory, data: str, *, metric: Any = None
    ) -> dict[str, Any]:
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


def _texts() -> Any:
    """Import the module of data sets and tokenizers, which takes long, at its first use."""
    return import_module("ponder.integrations.transformers.texts")


def _packed(example: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return an example as the configuration keeps it; None if the caller passed none."""
    if example is None:
        return None
    return pack(example)


def _writes_alone(options: Mapping[str, Any]) -> bool:
    """Return whether this process writes all of a saved model.

    Where processes write shards, none of them does.
    """
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    first = options.get("is_main_process", True) and not (several and torch.distributed.get_rank())
    return bool(first) and not options.get("distributed_checkpoint")


def span_labels(start: Tensor | None, end: Tensor | None) -> Tensor | None:
    """Return the labels of spans, `(batch, 2)`, from first and last tokens, `(batch,)` each."""
    if start is None or end is None:
        return None
    return torch.stack([start.reshape(-1), end.reshape(-1)], dim=1)


def _check_class(source: str, saved: str, loading: str) -> None:
    """Refuse to load the heads of one class into another."""
    if saved != loading and saved.startswith("PonderFor") and loading.startswith("PonderFor"):
        raise CheckpointError(
            f"{source}: expected a model that {loading} saved; got one of {saved}, whose heads "
            f"answer something else. Load it with {saved}.from_pretrained."
        )


def _refuse_last_step_alone(gradient: Tensor) -> None:
    raise ArgumentError(
        "labels",
        expected="labels in the call of a model whose recipe trains every step",
        got="a loss of out.logits, of the last step alone (as plain Trainer computes it with "
        "label_smoothing_factor or compute_loss_func)",
        remedy="Use PonderTrainer, which smooths the labels of every step; pass labels to the "
        "model and use out.loss; or compute your loss from out.step_logits.",
    )
