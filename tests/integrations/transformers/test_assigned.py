"""What is assigned to a model of Transformers and is the wrapper's inside it: it takes effect, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback

import ponder
from ponder import objectives, priors, recipes, tasks
from ponder.integrations.transformers import PonderForSequenceClassification
from tests.integrations.transformers.encoders import make_model
from tests.integrations.transformers.test_finetuned_heads import MODELS, make
from tests.integrations.transformers.test_ponder_trainer import Collator, examples, make_trainer
from tests.ponder.checks import refused


def batches() -> DataLoader[Any]:
    return DataLoader(examples(), batch_size=8, collate_fn=Collator())  # type: ignore[arg-type]


def test_objective_prior_stages_and_task_are_those_of_the_wrapper(tmp_path: Path) -> None:
    # Trap: nn.Module takes any name, so that training went on with the objective of the recipe.
    model = make_model("bert-of-3", recipe="palbert")
    objective = objectives.Ponder(0.1) + objectives.FinalStep()
    model.objective, model.prior = objective, priors.Uniform()
    model.task = tasks.Classification(weight=(1.0, 100.0))
    assert model.objective is model.ponder.objective is objective
    assert model.prior is model.ponder.prior
    assert model.task is model.ponder.task
    model.stages = ()
    report = ponder.fit(model, batches(), epochs=1, progress=False)
    assert [stage.objective for stage in report.stages] == [objective.to_dict()]
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert (again.objective, again.prior) == (objective, priors.Uniform())
    model.task = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 100.0]), reduction="none")  # a module, and no part
    assert isinstance(model.ponder.task, tasks.Task)
    assert "task" not in model._modules


def test_parts_of_the_wrapper_are_refused() -> None:
    model = make_model("bert-of-3")
    for name, value in (("head", nn.Linear(2, 2)), ("lambda_head", None), ("truncate_below", 0.1), ("padding", None)):
        with refused(name, "the wrapper's inside it"):
            setattr(model, name, value)
    model.note = "a name that is nobody's"

    class Mine(type(model)):  # type: ignore[misc]
        """A model with a head of its own beside the exits."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.head = nn.Linear(2, 2)

    assert isinstance(Mine(model.config).head, nn.Linear)
    finetuned = PonderForSequenceClassification.from_finetuned(make(next(iter(MODELS))))
    with refused("objective", "the wrapper's inside it"):
        finetuned.objective = objectives.FinalStep()


def test_a_model_that_was_trained_by_another_recipe_is_saved_as_that(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="pabee")
    ponder.fit(model, batches(), recipe="deebert", epochs=1, progress=False)
    model.save_pretrained(tmp_path)
    again = PonderForSequenceClassification.from_pretrained(tmp_path)
    assert again.recipe.name == "deebert"
    assert again.stages == model.stages == recipes.get("deebert").for_steps(3).stages
    assert "deebert" in (tmp_path / "README.md").read_text()


def test_the_trainer_trains_the_stages_that_were_assigned(tmp_path: Path) -> None:
    model = make_model("bert-of-3", recipe="pabee")
    model.stages = recipes.get("deebert").for_steps(3).stages
    trainer = make_trainer(model, tmp_path, num_train_epochs=1)
    trainer.all_stages = True
    started: list[recipes.Stage] = []

    class Listens(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            started.append(model.ponder.started_stage)

    trainer.add_callback(Listens())
    trainer.train()
    assert started == list(model.stages)
    model.stages = ()  # then its objective alone
    trainer.train()
    assert started[2:] == [recipes.Stage(model.objective)]


def test_another_encoder_layers_and_readouts_are_refused(tmp_path: Path) -> None:
    """Trap: the old encoder ran on, and the weights of the new one were saved."""
    model = make_model("bert-of-3")
    with refused("encoder", "of which nothing would run"):
        model.encoder = make_model("bert-of-3").encoder
    model.encoder = model.encoder
    model.encoder = nn.Sequential(model.encoder)  # as peft puts a module around it
    model.encoder = model.encoder[0]
    layers = model.encoder.encoder.layer
    own, layers[1] = layers[1], make_model("bert-of-3").encoder.encoder.layer[1]
    with refused("encoder", "those of steps [2]"):
        model.save_pretrained(tmp_path)
    layers[1] = own
    model.config.readout = "mean"
    with refused("config.readout", "'mean'"):
        model.save_pretrained(tmp_path)
    finetuned = PonderForSequenceClassification.from_finetuned(make(next(iter(MODELS))))
    with pytest.raises(AttributeError, match="classifier"):
        finetuned.classifier = make(next(iter(MODELS)))


def test_a_problem_that_is_set_too_late_is_refused(tmp_path: Path) -> None:
    # Trap: the model went on with its task, and the folder was read with the other one.
    model = make_model("bert-of-3").eval()
    given = {"input_ids": torch.tensor([[5, 6, 7]])}
    model.config.problem_type = "multi_label_classification"
    for use in (lambda: model(**given, labels=torch.tensor([1])), lambda: model.save_pretrained(tmp_path)):
        with refused("config.problem_type", "'multi_label_classification'", "from_encoder"):
            use()
    assert model(**given).loss is None
