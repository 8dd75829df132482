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
from benchmarks.environment import environment
from benchmarks.examples import load_tokenizer
from benchmarks.files import digest, with_digest
from benchmarks.text.wnut import TAGS, EntityScore, Sentence, Tokenized, load, score, spans, tokenize, word_tags
from ponder import Trajectory, recipes
from ponder.calibration.records import serves
from ponder.integrations.transformers import PonderForTokenClassification, PonderTrainer
from ponder.policies import ExitPolicy

__all__ = ["FORMAT", "TaggingConfig", "run"]

FORMAT = "ponder-text-1"
_KEEPS = 0.99
_VALUES = 101


@dataclass(frozen=True)
class TaggingConfig:
    """Everything that decides the result of a run; the defaults were not tuned. Rates are as in `benchmarks.glue`."""

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
    _train(config, model, ready["train"], DataCollatorForTokenClassification(tokenizer), progress)
    seconds = time.perf_counter() - started
    measured = {
        split: _Measured(sentences[split], ready[split], model.record(ready[split].rows, batch_size=64))
        for split in ("dev", "test")
    }
    chosen = _choose(measured["dev"], model.policy)
    num_steps = model.ponder.num_steps
    recipe = recipes.get(config.recipe).for_steps(num_steps).for_task("token_classification")
    return with_digest(
        {
            "format": FORMAT,
            "task": "WNUT-17",
            "config": dataclasses.asdict(config),
            "num_steps": num_steps,
            "recipe_fields": recipe.to_dict(),
            "policy": model.policy.to_dict(),
            "policy_by_dev": None if chosen is None else chosen.to_dict(),
            "splits": {split: part.summary(model.policy, chosen) for split, part in measured.items()},
            "training": {"seconds": round(seconds, 1)},
            "environment": environment(model.device),
        }
    )


def _train(
    config: TaggingConfig, model: PonderForTokenClassification, data: Tokenized, collate: Any, progress: bool
) -> None:
    """Run every stage of the recipe."""
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
            seed=config.seed,
            bf16=config.bf16,
            use_cpu=not torch.accelerator.is_available(),
            report_to="none",
            disable_tqdm=not progress,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        lambda_lr = config.lambda_lr if model.recipe.own_lambda_lr else None
        given = {"train_dataset": data.rows, "data_collator": collate, "head_lr": config.head_lr}
        trainer = PonderTrainer(model, arguments, lambda_lr=lambda_lr, **given)
        trainer.remove_callback(PrinterCallback)
        with quick_products(config.bf16):
            trainer.train()
    model.train(False)


@dataclass(frozen=True)
class _Measured:
    """A split with the model's answers to it at every step."""

    sentences: Sequence[Sentence]
    tokenized: Tokenized
    trajectory: Trajectory

    def score(self, outputs: Tensor) -> EntityScore:
        """Return the score of outputs, `(sentences, length, tags)`."""
        predicted = outputs.argmax(-1).tolist()
        rows = zip(predicted, self.sentences, self.tokenized.first_pieces, strict=True)
        return score([word_tags(*row) for row in rows], [sentence.tags for sentence in self.sentences])

    def at(self, policy: ExitPolicy) -> dict[str, Any]:
        """Return the score and the depth of the exits of a policy."""
        exits = self.trajectory.replay(policy)
        counts = torch.bincount(exits.exit_step, minlength=self.trajectory.num_steps + 1)[1:]
        return {
            **_rounded(self.score(exits.outputs)),
            "mean_exit_step": round(float(exits.exit_step.double().mean()), 4),
            "exit_histogram": counts.tolist(),
        }

    def summary(self, policy: ExitPolicy, chosen: ExitPolicy | None) -> dict[str, Any]:
        """Return the measurements of the split."""
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
    """Return the policy with the threshold that takes the fewest steps and keeps 99% of the F1 of full depth.

    None for a policy that has no threshold, or where no threshold keeps as much.
    """
    if policy.tunable is None:
        return None
    least = _KEEPS * dev.score(dev.trajectory.outputs[:, -1]).f1
    values = policy.tunable.values(dev.trajectory.num_steps, dev.trajectory.width, _VALUES)
    candidates = [policy.with_threshold(value) for value in values]
    measured = [(each, dev.at(each)) for each in candidates if serves(dev.trajectory, each)]
    keeping = [(at["mean_exit_step"], place) for place, (_, at) in enumerate(measured) if at["f1"] >= least]
    return measured[min(keeping)[1]][0] if keeping else None


def _rounded(of: EntityScore) -> dict[str, float]:
    return {name: round(value, 6) for name, value in dataclasses.asdict(of).items()}
