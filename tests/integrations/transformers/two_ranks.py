"""One of several processes that train one model, as `torchrun` starts them; with one process, the joined batches.

    python two_ranks.py FOLDER

`RANK`, `WORLD_SIZE` and the like say which process it is. Each writes its weights and what it reports, as JSON.
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset
from transformers import BertConfig, BertModel, TrainingArguments

import ponder
from ponder import policies
from ponder.errors import PonderError
from ponder.integrations.transformers import PonderForSequenceClassification, PonderTrainer

torch.set_num_threads(1)
ROWS, EACH, STEPS = 12, 8, 3
RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class InOrder(PonderTrainer):
    def _get_train_sampler(self, *_):
        return SequentialSampler(self.train_dataset)


def tokens():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (STEPS * EACH, 6), generator=generator)
    labels = (ids[:, 0] > 20).long()
    labels[::3] = -100  # of the rows of a batch, one rank has more without a label than the other
    return ids, labels


def build(recipe):
    """In double precision, where Adam does not amplify the rounding of a small gradient."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=40, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **sizes)
    encoder = BertModel(config, add_pooling_layer=False).double()
    return PonderForSequenceClassification.from_encoder(encoder, recipe, head_dropout=0.0)


def told(model, **reported):
    weights = {name: weight.flatten().tolist() for name, weight in model.state_dict().items()}
    return {"weights": weights, **reported}


def by_fit(recipe):
    model, (ids, labels) = build(recipe), tokens()
    loader = DataLoader(TensorDataset(ids, labels), batch_size=EACH // RANKS)
    report = ponder.fit(
        model, loader, epochs=2, lr=1e-2, held_out=[(ids[:ROWS], labels[:ROWS])], progress=False, warmup=0.0
    )
    epochs = [epoch for stage in report.stages for epoch in stage.epochs]
    expected = [epoch.expected_steps or 0.0 for epoch in epochs]
    return told(model, losses=[epoch.loss for epoch in epochs], expected=expected)


def by_trainer(recipe, folder):
    model, (ids, labels) = build(recipe), tokens()
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    arguments = TrainingArguments(
        output_dir=str(folder / f"out-{RANK}"),
        per_device_train_batch_size=EACH // RANKS,
        per_device_eval_batch_size=4,  # of 11 rows: two ranks get some of them twice, and count them once
        max_steps=STEPS,
        logging_steps=STEPS,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo" if RANKS > 1 else None,
        dataloader_pin_memory=False,
    )
    trainer = InOrder(model=model, args=arguments, train_dataset=rows, eval_dataset=rows[:11], lambda_lr=5e-3)
    trainer.train()
    model.policy = policies.Confidence(0.53)
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    names = ("loss", "loss_step_1", "expected_steps", "kl")
    return told(
        model,
        logged=[logged[name] for name in names if name in logged],
        exit_step=trainer.evaluate()["eval_exit_step"],
    )


def train(folder):
    found = {f"fit, {recipe}": by_fit(recipe) for recipe in ("palbert", "deebert")}
    return found | {f"trainer, {recipe}": by_trainer(recipe, folder) for recipe in ("palbert", "pabee")}


def refusal():
    try:
        ponder.fit(build("vanilla"), [tokens()], progress=False)
    except PonderError as error:
        return str(error)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    (place / f"told-{RANK}.json").write_text(json.dumps({**train(place), "refusal": refusal()}))
