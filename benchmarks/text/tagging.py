"""One run of token classification: train a recipe on WNUT-17, and score every step and the exits by entities.

All stages of the recipe run for a fixed number of epochs, so that nothing is selected; the development set chooses the
one threshold that is reported besides the recipe's own, and the test set is only reported on.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DataCollatorForTokenClassification, PrinterCallback, TrainingArguments, set_seed

from benchmarks import backbones
from benchmarks.bf16 import quick_products
from benchmarks.checksum import digest, with_checksum
from benchmarks.environment import environment
from benchmarks.examples import load_tokenizer
from benchmarks.glue.curves import fits
from benchmarks.text.entities import EntityScore, score, spans
from benchmarks.text.wnut import TAGS, Sentence, Tokenized, load, tokenize, word_tags
from ponder import recipes
from ponder.errors import ArgumentError, NonFiniteError
from ponder.integrations.transformers import PonderForTokenClassification, PonderTrainer
from ponder.policies import ExitPolicy
from ponder.recipes import Recipe
from ponder.trajectory import Trajectory

__all__ = ["FORMAT", "TaggingConfig", "recipe_of", "run"]

FORMAT = "ponder-text-1"
_KEEPS = 0.99
_VALUES = 101


@dataclass(frozen=True)
class TaggingConfig:
    """Everything that decides the result of a run; the defaults were not tuned.

    Args:
        recipe: Name of a recipe.
        policy: An exit policy instead of the recipe's, as `ExitPolicy.to_dict` gives it.
        backbone: The backbone, as for `benchmarks.backbones.resolve`.
        seed: Seed of the first weights, of order and of dropout.
        epochs: Epochs of each stage, ≥ 1.
        lr: Learning rate of the encoder.
        head_lr: Learning rate of the heads, which are new.
        lambda_lr: Learning rate of the Lambda head, where the recipe gives it one of its own.
        batch_size: Sentences a step of the optimiser.
        max_length: Pieces of words; longer sentences are cut.
        max_train: Train on the first so many sentences; all where None.
        bf16: Train under bfloat16 autocast.
    """

    recipe: str = "palbert"
    policy: dict[str, Any] | None = None
    backbone: str = "minilm"
    seed: int = 0
    epochs: int = 3
    lr: float = 1e-4
    head_lr: float = 1e-3
    lambda_lr: float = 1e-4
    batch_size: int = 32
    max_length: int = 128
    max_train: int | None = None
    bf16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "max_train"):
            value = getattr(self, name)
            if value is not None and value < (4 if name == "max_length" else 1):
                raise ArgumentError(name, expected="a whole number ≥ 1 (pieces: ≥ 4)", got=value, remedy="Pass more.")
        for name in ("lr", "head_lr", "lambda_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ArgumentError(name, expected="a number in (0, 1)", got=getattr(self, name), remedy="Pass 1e-4.")

    @property
    def key(self) -> str:
        """A name for the run: readable, and different for every configuration."""
        backbone = self.backbone.rstrip("/").rsplit("/", 1)[-1]
        return f"wnut17-{backbone}-{self.recipe}-s{self.seed}-{digest(dataclasses.asdict(self))}".lower()


def run(config: TaggingConfig, folder: Path | None, *, progress: bool = True) -> dict[str, Any]:
    """Train, and measure on the development and the test set; the result, as plain JSON.

    Args:
        config: The run.
        folder: The folder that holds `wnut17`.
        progress: Show progress bars.
    """
    sentences = {split: load(folder, split) for split in ("train", "dev", "test")}
    sentences["train"] = sentences["train"][: config.max_train]
    tokenizer = load_tokenizer(config.backbone)
    ready = {split: tokenize(part, tokenizer, config.max_length) for split, part in sentences.items()}
    policy = None if config.policy is None else ExitPolicy.from_dict(config.policy)
    set_seed(config.seed)
    model = PonderForTokenClassification.from_encoder(
        backbones.resolve(config.backbone), config.recipe, len(TAGS), policy=policy, id2label=dict(enumerate(TAGS))
    )
    started = time.perf_counter()
    collate = DataCollatorForTokenClassification(tokenizer)
    log = _train(config, model, ready["train"], collate, progress)
    seconds = time.perf_counter() - started
    model.train(False)
    measured = {
        split: _Measured(
            sentences[split], ready[split], model.record(ready[split].rows, batch_size=64, progress=progress)
        )
        for split in ("dev", "test")
    }
    chosen = _choose(measured["dev"], model.policy)
    splits = {split: part.summary(model.policy, chosen) for split, part in measured.items()}
    return with_checksum(
        {
            "format": FORMAT,
            "task": "WNUT-17",
            "config": dataclasses.asdict(config),
            "num_steps": model.ponder.num_steps,
            "recipe_fields": recipe_of(config, model.ponder.num_steps).to_dict(),
            "policy": model.policy.to_dict(),
            "policy_by_dev": None if chosen is None else chosen.to_dict(),
            "splits": splits,
            "training": {"seconds": round(seconds, 1), "log": log},
            "environment": environment(model.device),
        }
    )


def recipe_of(config: TaggingConfig, num_steps: int) -> Recipe:
    """The recipe of a run on so many steps, with the policy that it has for tokens."""
    return recipes.get(config.recipe).for_steps(num_steps).for_task("token_classification")


def _train(
    config: TaggingConfig, model: PonderForTokenClassification, data: Tokenized, collate: Any, progress: bool
) -> list[dict[str, float]]:
    """Every stage of the recipe; what was logged after each epoch."""
    steps = -(-len(data.rows) // config.batch_size) * config.epochs
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=config.epochs,
            learning_rate=config.lr,
            warmup_steps=round(0.1 * steps),
            per_device_train_batch_size=config.batch_size,
            train_sampling_strategy="group_by_length",
            save_strategy="no",
            logging_strategy="epoch",
            seed=config.seed,
            bf16=config.bf16,
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
            disable_tqdm=not progress,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = PonderTrainer(
            model=model,
            args=arguments,
            train_dataset=data.rows,
            data_collator=collate,
            head_lr=config.head_lr,
            lambda_lr=config.lambda_lr if model.recipe.own_lambda_lr else None,
            all_stages=True,
        )
        trainer.remove_callback(PrinterCallback)
        with quick_products(config.bf16):
            trainer.train()
    names = ("epoch", "loss", "expected_steps", "kl")
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{name: round(entry[name], 6) for name in names if name in entry} for entry in history]


@dataclass(frozen=True)
class _Measured:
    """A split with everything that the model answers to it at any step."""

    sentences: Sequence[Sentence]
    tokenized: Tokenized
    trajectory: Trajectory

    def __post_init__(self) -> None:
        if unanswered := int((~self.trajectory.answered()).any(1).sum()):
            raise NonFiniteError(
                f"outputs: {unanswered} of {len(self.sentences)} sentences have an answer that is NaN at some step, of "
                "which the class with the highest logit would be the first. The run diverged: lower the learning rates."
            )

    def score(self, outputs: Tensor) -> EntityScore:
        """The score of outputs, `(sentences, length, tags)`."""
        predicted = outputs.argmax(-1).tolist()
        rows = zip(predicted, self.sentences, self.tokenized.first_pieces, strict=True)
        return score([word_tags(*row) for row in rows], [sentence.tags for sentence in self.sentences])

    def at(self, policy: ExitPolicy) -> dict[str, Any]:
        """The score where `policy` lets sentences leave, and how deep they go."""
        exits = self.trajectory.replay(policy)
        counts = torch.bincount(exits.exit_step, minlength=self.trajectory.num_steps + 1)[1:]
        return {
            **_rounded(self.score(exits.outputs)),
            "mean_exit_step": round(float(exits.exit_step.double().mean()), 4),
            "exit_histogram": counts.tolist(),
        }

    def summary(self, policy: ExitPolicy, chosen: ExitPolicy | None) -> dict[str, Any]:
        """What is reported of the split."""
        each = [self.score(outputs) for outputs in self.trajectory.outputs.unbind(1)]
        return {
            "sentences": len(self.sentences),
            "entities": sum(len(spans(sentence.tags)) for sentence in self.sentences),
            "per_step": [round(step.f1, 6) for step in each],
            "full_depth": _rounded(each[-1]),
            "exits": self.at(policy),
            "exits_by_dev": None if chosen is None else self.at(chosen),
        }


def _choose(dev: _Measured, policy: ExitPolicy) -> ExitPolicy | None:
    """The policy with the threshold that takes the fewest steps and keeps 99% of the F1 of full depth.

    Chosen on the development set. None for a policy that has no threshold, or where no threshold keeps as much.
    """
    if policy.tunable is None:
        return None
    outputs = dev.trajectory.outputs
    least = _KEEPS * dev.score(outputs[:, -1]).f1
    values = policy.tunable.values(dev.trajectory.num_steps, outputs.shape[-1], _VALUES)
    candidates = (policy.with_threshold(value) for value in values if fits(policy, value, dev.trajectory))
    measured = [(candidate, dev.at(candidate)) for candidate in candidates]
    keeping = [(at["mean_exit_step"], place) for place, (_, at) in enumerate(measured) if at["f1"] >= least]
    return measured[min(keeping)[1]][0] if keeping else None


def _rounded(of: EntityScore) -> dict[str, float]:
    return {name: round(value, 6) for name, value in dataclasses.asdict(of).items()}
