"""`fit` on every recipe: what moves, what is kept, and what is left behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ponder
from ponder import objectives, policies, recipes
from ponder.fitting.stage_run import StageRun
from ponder.model.batch import ArgumentNames, read_batch
from ponder.training import EpochReport

WIDTH = 6
STEPS = 3
CLASSES = 2
INPUTS = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
LABELS = (INPUTS[:, 0] * INPUTS[:, 1] > 0).long()
BATCHES = [(INPUTS[at : at + 16], LABELS[at : at + 16]) for at in range(0, 64, 16)]


def build(recipe: str = "palbert", **options: Any) -> ponder.PonderWrapper:
    torch.manual_seed(1)
    steps = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.1)) for _ in range(STEPS)
    ]
    return ponder.PonderWrapper.from_recipe(
        steps, recipe, num_outputs=CLASSES, example=INPUTS[:2], **options
    )


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_runs_all_its_stages(name: str) -> None:
    model = build(name)
    stages = model.stages
    objective = model.objective
    before = state(model)
    report = ponder.fit(model, BATCHES, epochs=2, held_out=BATCHES[:2], lr=1e-2, head_lr=1e-2)
    assert [(epoch.stage, epoch.epoch) for epoch in report.epochs] == [
        (stage, epoch) for stage in range(1, len(stages) + 1) for epoch in (1, 2)
    ]
    assert sum(epoch.kept for epoch in report.epochs) == len(stages)
    assert report.score == [epoch.score for epoch in report.epochs if epoch.kept][-1]
    assert len(str(report).splitlines()) == len(report.epochs)
    assert (model.stages, model.objective, model.teacher, model.progress) == (
        stages,
        objective,
        None,
        None,
    )
    assert not any(module.training for module in model.modules())
    assert all(weight.requires_grad for weight in model.parameters())
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert "forward" not in vars(model)


def test_fit_learns() -> None:
    model = build("pabee")
    report = ponder.fit(model, BATCHES, epochs=60, lr=2e-2, head_lr=2e-2, held_out=BATCHES, seed=0)
    assert report.epochs[-1].loss < 0.7 * report.epochs[0].loss
    assert report.score > 0.85


def test_an_objective_that_was_assigned_is_trained_and_not_the_stages() -> None:
    model = build("deebert")
    model.objective = objectives.DeepSupervision("uniform")
    report = ponder.fit(model, BATCHES, epochs=1)
    assert ([epoch.stage for epoch in report.epochs], model.objective) == (
        [1],
        objectives.DeepSupervision("uniform"),
    )


def test_the_loss_is_that_of_the_model_and_the_schedule_falls_to_zero() -> None:
    model = build(head_dropout=0.0)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    before = state(model)
    expected = model.train()(*BATCHES[0][:1], labels=BATCHES[0][1]).loss.item()
    report = ponder.fit(model, BATCHES[:1], epochs=1, lr=1e-3, head_lr=None, warmup=0.0)
    assert report.epochs[0].loss == pytest.approx(expected)
    moved = [
        (value - before[name]).abs().max().item() for name, value in model.state_dict().items()
    ]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)  # Adam's first step is the learning rate


def test_rates_rise_and_fall(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    step = torch.optim.AdamW.step

    def spy(self: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return step(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    ponder.fit(build(), BATCHES, epochs=5, lr=1.0, head_lr=None, warmup=0.2)
    assert len(seen) == 20
    assert seen[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert seen[4:] == pytest.approx([(20 - number) / 16 for number in range(4, 20)])


def test_the_best_epoch_is_kept() -> None:
    model = build("vanilla")
    weights = []
    scores = iter([0.2, 0.9, 0.4])
    run = StageRun._score

    def score(self: Any, *arguments: Any) -> tuple[float, float]:
        weights.append(state(model))
        return next(scores), run(self, *arguments)[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "_score", score)
        report = ponder.fit(model, BATCHES, epochs=3, held_out=BATCHES, lr=1e-2)
    assert [epoch.kept for epoch in report.epochs] == [False, True, False]
    assert all(torch.equal(value, weights[1][name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "task", ["token_classification", "regression", "multilabel", "span", "own"]
)
def test_held_out_scores_of_every_task(task: str) -> None:
    sequence = task in ("token_classification", "span")
    inputs = torch.randn(8, 4, WIDTH) if sequence else INPUTS[:8]
    labels = {
        "token_classification": torch.zeros(8, 4, dtype=torch.long),
        "span": torch.tensor([[0, 1]] * 8),
        "regression": torch.randn(8, 2),
        "multilabel": torch.ones(8, 2),
        "own": torch.randn(8, 2),
    }[task]
    own: Any = (
        (lambda outputs, labels: (outputs - labels).abs().mean(-1)) if task == "own" else task
    )
    model = ponder.PonderWrapper(
        [nn.Linear(WIDTH, WIDTH) for _ in range(STEPS)],
        readout=ponder.readouts.identity,
        head=nn.Linear(WIDTH, 2),
        task=own,
    )
    report = ponder.fit(
        model, [(inputs, labels)], epochs=1, held_out=[(inputs, labels)], lr=1e-9, head_lr=None
    )
    run = model.unroll(inputs, labels=labels)
    expected = (
        -model(inputs, labels=labels).loss.item()
        if task == "own"
        else float(run.score_table()[:, -1].mean())
    )
    assert report.score == pytest.approx(expected, abs=1e-4)
    assert report.epochs[0].exit_step == STEPS


def test_a_loss_that_is_nan_leaves_the_weights_of_before() -> None:
    model = build()
    ponder.fit(model, BATCHES, epochs=1)
    before = state(model)
    with pytest.raises(ponder.errors.NonFiniteError, match="stage 1, epoch 1, step 1"):
        ponder.fit(model, [(INPUTS[:4] * torch.nan, LABELS[:4])], epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.progress, model.training) == (None, False)


def test_what_the_caller_froze_stays_frozen() -> None:
    model = build("deebert")
    model.steps.requires_grad_(False)
    before = state(model.steps)
    ponder.fit(model, BATCHES, epochs=1, head_lr=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in model.steps.state_dict().items())
    assert not any(weight.requires_grad for weight in model.steps.parameters())
    model.requires_grad_(False)
    with pytest.raises(ponder.errors.ArgumentError, match="frozen before"):
        ponder.fit(model, BATCHES, epochs=1)


def test_a_module_around_the_model_and_a_data_loader() -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ponder = build("pabee")

    rows = list(zip(INPUTS, LABELS, strict=True))
    model = Around()
    report = ponder.fit(model, DataLoader(rows, batch_size=16, shuffle=True), epochs=2, seed=3)
    again = Around()
    assert (
        ponder.fit(again, DataLoader(rows, batch_size=16, shuffle=True), epochs=2, seed=3) == report
    )


@pytest.mark.parametrize(
    "batch",
    [
        (INPUTS, LABELS),
        [INPUTS, LABELS],
        (INPUTS, {"labels": LABELS}),
        {"x": INPUTS, "labels": LABELS},
        {"label": LABELS, "x": INPUTS, "mask": None},
    ],
)
def test_batches_of_every_form(batch: Any) -> None:
    read = read_batch(batch).labelled()
    assert read.inputs is INPUTS
    assert read.labels is LABELS
    assert read.context == {}


def test_the_inputs_of_a_dict_go_by_their_name() -> None:
    batch = {"mask": LABELS, "x": INPUTS, "start_positions": LABELS, "end_positions": LABELS}
    read = read_batch(batch, ArgumentNames("x"))
    assert read.inputs is INPUTS
    assert (read.labels.shape, set(read.context)) == ((64, 2), {"mask"})


@pytest.mark.parametrize(
    "batch", [INPUTS, {"x": INPUTS}, (INPUTS,), (INPUTS, [0, 1]), {"labels": LABELS}]
)
def test_batches_without_labels_are_refused(batch: Any) -> None:
    with pytest.raises(ponder.errors.ArgumentError, match="under 'labels'"):
        ponder.fit(build(), [batch])


@pytest.mark.parametrize(
    "options", [{"epochs": 0}, {"warmup": 1.0}], ids=lambda options: next(iter(options))
)
def test_numbers_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ponder.errors.ArgumentError, match=next(iter(options))):
        ponder.fit(build(), BATCHES, **options)
    with pytest.raises(ponder.errors.ArgumentError, match="at least one batch"):
        ponder.fit(build(), [])


def test_progress_reaches_objectives_that_change() -> None:
    shares: list[float] = []

    class Spy(objectives.FinalStep):
        needs = frozenset({"progress"})

        def per_example(self, unrolled: objectives.Unrolled) -> torch.Tensor:
            shares.append(unrolled.given("progress").share)
            return super().per_example(unrolled)

    model = build("vanilla")
    model.objective = Spy()
    ponder.fit(model, BATCHES, epochs=2)
    assert shares == [number / 8 for number in range(8)]


def test_reports_are_read_at_a_glance() -> None:
    epoch = EpochReport(2, 1, loss=0.5, score=0.75, exit_step=2.5, kept=True)
    assert (
        str(ponder.training.FitReport((epoch,)))
        == "stage 2, epoch 1: loss 0.5000, score 0.7500 at step 2.50 (kept)"
    )
    assert copy.deepcopy(epoch) == epoch


def test_policies_that_read_hazards_choose_by_the_exits() -> None:
    model = build("palbert", policy=policies.Quantile(0.5))
    report = ponder.fit(model, BATCHES, epochs=1, held_out=BATCHES)
    steps = torch.cat([model(inputs).exit_step for inputs, _ in BATCHES])
    assert report.epochs[0].exit_step == pytest.approx(float(steps.double().mean()))
