"""`ponder.fit`: all stages of a recipe, on accelerate itself."""

from __future__ import annotations

import copy
import json
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ponder
from ponder import objectives, policies, priors, recipes
from ponder.errors import NonFiniteError
from ponder.training import FitReport, measured
from ponder.training.measured import Means
from ponder.training.options import Options
from ponder.training.scoring import HeldOut
from ponder.training.tracking import Tracking
from tests.ponder.checks import refused

pytest.importorskip("accelerate", reason="accelerate is not installed")

WIDTH, STEPS = 8, 4


def data(rows: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs[:, 0] > 0).long()


def loader(rows: int = 64, seed: int = 0) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*data(rows, seed)), batch_size=16, shuffle=True)


def make(recipe: Any = "palbert", **options: Any) -> ponder.PonderWrapper:
    torch.manual_seed(3)
    layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(STEPS)]
    options = {"num_outputs": 2, "example": torch.randn(2, WIDTH), "head_dropout": 0.0, **options}
    return ponder.PonderWrapper.from_recipe(layers, recipe, **options)


def fit(model: Any, given: Any = None, *args: Any, **options: Any) -> FitReport:
    options = {"epochs": 2, "lr": 1e-2, "head_lr": None, "seed": 1, **options}
    return ponder.fit(model, loader() if given is None else given, *args, **options)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_parameter_that_is_a_view_into_something_wider_learns_and_its_neighbours_do_not() -> None:
    """Trap: the fused AdamW of PyTorch takes a parameter on the CPU for numbers without gaps."""
    found = []
    for as_view in (False, True):
        model, wide = make(), torch.linspace(-0.1, 0.1, 2 * WIDTH * WIDTH).view(WIDTH, 2 * WIDTH)
        part, beside = wide[:, :WIDTH], wide[:, WIDTH:].clone()
        model.steps.fns[0][0].weight = nn.Parameter(part if as_view else part.clone())
        fit(model)
        found.append(weights(model))
        assert torch.equal(wide[:, WIDTH:], beside)
        assert torch.equal(part, model.steps.fns[0][0].weight) == as_view
    for name, tensor in found[0].items():
        torch.testing.assert_close(found[1][name], tensor)


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_runs_all_its_stages(name: str) -> None:
    model = make(name)
    model.steps.fns[0][0].bias.requires_grad_(False)
    report = fit(model, held_out=[data(32, seed=9)])
    assert [stage.objective for stage in report.stages] == [stage.objective.to_dict() for stage in model.stages]
    assert [stage.trained for stage in report.stages] == [stage.train for stage in model.stages]
    assert all(len(stage.epochs) == 2 for stage in report.stages)
    frozen = [weight for weight in model.parameters() if not weight.requires_grad]
    assert len(frozen) == 1, "what was frozen before is, and nothing else"
    assert not model.training
    assert model.progress is None
    inputs, labels = data(32, seed=9)
    with torch.no_grad():
        right = (model(inputs).outputs.argmax(1) == labels).double().mean().item()
    assert report.metric == "accuracy"
    assert report.score == pytest.approx(right)
    assert json.loads(json.dumps(report.to_dict()))["stages"]
    assert "(kept)" in str(report)
    mixing = [stage.mixing < 1 for stage in model.stages]
    assert [stage.mixed is not None for stage in report.stages] == mixing
    assert ("mixed with" in str(report)) == any(mixing)


def test_it_learns_and_says_what_it_expected() -> None:
    model = make()
    report = fit(model, loader(160), epochs=10, lr=3e-2, patience=None, held_out=[data(32, seed=9)])
    first, *_, last = report.stages[0].epochs
    assert last.loss < 0.7 * first.loss
    assert report.score > 0.85
    assert 1.0 <= last.expected_steps <= STEPS
    assert 1.0 <= last.exit_step <= STEPS


def test_the_loss_is_that_of_the_model_and_the_gradient_is_clipped() -> None:
    """One step of SGD's size by hand: AdamW's first step is the sign of the gradient, whatever its size."""
    model, batch = make("vanilla"), data(16)
    before = weights(model)
    expected = model.train()(batch[0], labels=batch[1]).loss
    names = [name for name, _ in model.named_parameters()]
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    report = fit(model, [batch], epochs=1, warmup=0.0, schedule="constant", clip=1e-3)
    assert report.stages[0].epochs[0].loss == pytest.approx(expected.item(), rel=1e-5)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    for name, gradient in zip(names, gradients, strict=True):
        clipped = gradient * min(1.0, 1e-3 / (norm + 1e-6))
        moved = 1e-2 * clipped / (clipped.abs() + 1e-8)
        torch.testing.assert_close(model.state_dict()[name], before[name] - moved, atol=1e-5, rtol=1e-3)


def test_rates_of_their_own_and_a_frozen_rate() -> None:
    model = make()
    before = weights(model)
    fit(model, lr=0.0, head_lr=1e-2, lambda_lr=0.0, epochs=1)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.1.weight", "head.1.bias"}


def test_warm_up_and_decay() -> None:
    for schedule in ("linear", "cosine", "constant"):
        options = Options(1, None, 1.0, None, None, 0.0, 0.25, schedule, None, False)
        seen = [options.share(step, 8) for step in range(9)]
        assert seen[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
        assert seen[8] == pytest.approx(1.0 if schedule == "constant" else 0.0)
        assert seen[2:] == sorted(seen[2:], reverse=True)
    assert options.share(5, None) == 1.0


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_rate_is_never_negative(schedule: str) -> None:
    # Trap: a loader that gives more batches than its length says took the rate below 0, which climbs the loss.
    options = Options(1, None, 1.0, None, None, 0.0, 0.0, schedule, None, False)
    assert [options.share(step, 4) for step in range(4, 9)] == pytest.approx([0.0] * 5)


class TestSelection:
    def test_the_best_epoch_is_restored_and_patience_ends_a_stage(self) -> None:
        scores = iter([0.3, 0.9, 0.1, 0.2, 0.95])
        kept: list[dict[str, torch.Tensor]] = []
        model = make("vanilla")

        def metric(outputs: torch.Tensor, labels: torch.Tensor) -> float:
            kept.append(weights(model))
            return next(scores)

        report = fit(model, epochs=5, held_out=[data(8)], metric=metric, patience=2)
        (stage,) = report.stages
        assert [epoch.score for epoch in stage.epochs] == [0.3, 0.9, 0.1, 0.2]
        assert (stage.best_epoch, report.score, report.metric) == (2, 0.9, "metric")
        assert all(torch.equal(tensor, kept[1][name]) for name, tensor in model.state_dict().items())

    def test_a_score_that_is_nan_is_the_worst(self) -> None:
        """A correlation is NaN while all answers are the same, as in a first epoch."""
        scores = iter([math.nan, 0.5, math.nan, 0.4])
        report = fit(make("vanilla"), epochs=4, held_out=[data(8)], metric=lambda *_: next(scores), patience=2)
        assert (report.stages[0].best_epoch, report.score) == (2, 0.5)

    def test_early_heads_are_scored_at_the_exits_wherever_their_stage_stands(self) -> None:
        """Full depth cannot change there, so that the first epoch was kept whatever came after it."""
        first, early = recipes.get("deebert").for_steps(STEPS).stages
        model = make("deebert")
        model.stages = (first, early, early)
        model.policy = policies.FixedStep(1)
        report = fit(model, held_out=[data(32)])
        assert [stage.epochs[0].exit_step for stage in report.stages] == [STEPS, 1, 1]

    @pytest.mark.parametrize("train", ["early_heads", "lambda_head"])
    def test_where_the_score_cannot_change_all_epochs_run_and_the_last_is_kept(self, train: Any) -> None:
        """Trap: all epochs tie, so that the first was the best, and patience ended the stage."""
        recipe = recipes.get("pabee" if train == "early_heads" else "palbert")
        model = make(recipe, policy=policies.LastStep())
        objective = objectives.DeepSupervision() if train == "early_heads" else model.objective
        model.stages = (recipes.Stage(objective, train=train),)
        report = fit(model, held_out=[data(32, seed=1)], epochs=5, patience=1, select="exits")
        assert (len(report.stages[0].epochs), report.stages[0].best_epoch) == (5, 5)
        assert report.score is not None
        once_more = make(recipe, policy=policies.LastStep())
        once_more.stages = model.stages
        fit(once_more, epochs=5)
        assert all(torch.equal(tensor, weights(once_more)[name]) for name, tensor in weights(model).items())

    def test_the_mean_of_all_steps_chooses_where_all_of_them_are_taught(self) -> None:
        # Trap: at the exits of a threshold, an epoch scores by how early it lets rows go.
        of_steps = iter([0.5, 0.1, 0.2, 0.3, 0.5, *[0.4] * 4, 0.9, *[0.3] * 5])  # an epoch: at the exits, and each step
        model = make("pabee", policy=policies.FixedStep(2))
        assert STEPS == 4

        def metric(outputs: torch.Tensor, labels: torch.Tensor) -> float:
            return next(of_steps)

        report = fit(model, epochs=3, held_out=[data(8)], metric=metric)
        (stage,) = report.stages
        assert [epoch.score for epoch in stage.epochs] == [0.5, 0.4, 0.3]
        assert [epoch.score_of_steps for epoch in stage.epochs] == pytest.approx([0.275, 0.525, 0.3])
        assert (stage.best_epoch, report.score) == (2, 0.4)
        assert "metric 0.4000, exit step 2.00, mean of all steps 0.5250  (kept)" in str(report)

    def test_a_step_whose_score_is_no_number_does_not_count(self) -> None:
        # Trap: a precision of a step that never says yes is NaN, and with it was that of every epoch.
        scores = iter([0.5, math.nan, 0.2, 0.3, 0.4] * 2)
        report = fit(make("pabee"), epochs=2, held_out=[data(8)], metric=lambda *_: next(scores))
        assert [epoch.score_of_steps for epoch in report.stages[0].epochs] == pytest.approx([0.3, 0.3])

    def test_a_stage_of_the_lambda_head_changes_no_step(self) -> None:
        model = make("palbert", policy=policies.LastStep())
        model.stages = (recipes.Stage(model.objective, train="lambda_head"),)
        report = fit(model, held_out=[data(32, seed=1)], epochs=4, patience=1, select="steps")
        assert (len(report.stages[0].epochs), report.stages[0].best_epoch) == (4, 4)

    @pytest.mark.parametrize(
        ("objective", "by_steps"),
        [
            (0.5 * objectives.FinalStep(), False),
            (objectives.FinalStep() + 0.1 * objectives.FinalStep(), False),
            (objectives.OneStep(2), False),
            (objectives.FinalStep() + objectives.Distillation(), True),
            (objectives.FinalStep() + 0.0 * objectives.Distillation(), False),
            (objectives.Alternating(objectives.FinalStep(), objectives.DeepSupervision()), True),
            (objectives.MutualDistillation(), True),
            (objectives.SimulatedExits(), True),
        ],
    )
    def test_objectives_say_whether_they_teach_all_steps(self, objective: Any, by_steps: bool) -> None:
        model = make("pabee")
        model.objective, model.stages = objective, ()
        epoch = fit(model, held_out=[data(8)], epochs=1).stages[0].epochs[0]
        assert (epoch.score_of_steps is not None) == by_steps

    def test_how_epochs_are_selected_can_be_said(self) -> None:
        scored = [data(32, seed=1)]
        epoch = fit(make("pabee"), held_out=scored, epochs=1, select="exits").stages[0].epochs[0]
        assert epoch.score_of_steps is None
        shared = fit(make("palbert"), held_out=scored, epochs=1, select="steps").stages[0].epochs[0]
        assert shared.score_of_steps is not None
        with refused("select", "'exits'"):
            fit(make("pabee"), select="exits")
        with refused("select", "'loss'"):
            fit(make("pabee"), held_out=scored, select="loss")

    def test_the_score_of_steps_is_that_of_a_record(self) -> None:
        model = make("pabee", policy=policies.FixedStep(2))
        report = fit(model, held_out=[data(16, seed=1), data(16, seed=2)], epochs=1)
        recorded = [model.unroll(inputs, labels=labels) for inputs, labels in (data(16, seed=1), data(16, seed=2))]
        right = ponder.Trajectory.cat(recorded).correct().double()
        epoch = report.stages[0].best
        assert (epoch.score_of_steps, epoch.score) == pytest.approx((right.mean().item(), right[:, 1].mean().item()))

    def test_a_lambda_head_is_scored_at_the_exits_wherever_its_stage_stands(self) -> None:
        model = make(policy=policies.Quantile(0.0))
        halting = recipes.Stage(model.objective, train="lambda_head")
        model.stages = (halting, recipes.Stage(model.objective))
        assert fit(model, held_out=loader(), epochs=1).stages[0].epochs[0].exit_step == 1

    def test_stages_before_the_last_are_scored_at_full_depth(self) -> None:
        report = fit(make("deebert"), held_out=[data(32)], epochs=1)
        assert report.stages[0].epochs[0].exit_step == STEPS

    @pytest.mark.parametrize(
        ("task", "outputs", "labels", "name"),
        [
            ("regression", 1, torch.randn(16), "negative_squared_error"),
            ("multilabel", 3, torch.randint(0, 2, (16, 3)).float(), "accuracy"),
            (lambda out, y: (out[:, 0] - y).abs(), 1, torch.randn(16), "negative_loss"),
            ("classification", 2, torch.randn(16, 2).softmax(-1), "accuracy"),
            ("classification", 2, torch.tensor([0, -100] * 8), "accuracy"),
        ],
    )
    def test_other_tasks(self, task: Any, outputs: int, labels: torch.Tensor, name: str) -> None:
        batch = (data(16)[0], labels)
        report = fit(make(num_outputs=outputs, task=task), [batch], held_out=[batch], epochs=1)
        assert report.metric == name
        assert math.isfinite(report.score)

    def test_tokens_of_batches_of_other_lengths(self) -> None:
        torch.manual_seed(0)
        model = ponder.PonderWrapper.from_recipe(
            [nn.Linear(WIDTH, WIDTH) for _ in range(3)],
            "palbert",
            num_outputs=2,
            example=torch.randn(2, 5, WIDTH),
            task="token_classification",
        )
        batches = []
        for length in (4, 6):
            inputs = torch.randn(5, length, WIDTH)
            labels = (inputs[..., 0] > 0).long()
            labels[:, -1] = -100
            batches.append((inputs, labels))
        report = fit(model, batches, held_out=batches, epochs=1)
        with torch.no_grad():
            right = torch.cat([(model(x).outputs.argmax(-1) == y)[y != -100] for x, y in batches])
        assert report.score == pytest.approx(right.double().mean().item())


class TestBatches:
    def test_pairs_and_dicts_are_the_same(self) -> None:
        inputs, labels = data(16)
        forms: list[Any] = [
            (inputs, labels),
            [inputs, labels],
            {"x": inputs, "labels": labels},
            {"label": labels, "x": inputs, "mask": None},
            (inputs, {"labels": labels}),
        ]
        found = [fit(make(), [form]).stages[0].epochs[-1].loss for form in forms]
        assert found == pytest.approx([found[0]] * len(forms))

    def test_context_reaches_the_steps(self) -> None:
        class Adding(nn.Module):
            def forward(self, hidden: torch.Tensor, extra: torch.Tensor) -> torch.Tensor:
                return hidden + extra

        inputs, labels = data(16)
        given = {"inputs": inputs, "extra": torch.ones(16, WIDTH)}
        model = ponder.PonderWrapper.from_recipe([Adding()] * 2, "vanilla", num_outputs=2, example=given)
        held_out = [(inputs, {"extra": given["extra"], "labels": labels})]
        assert fit(model, [{**given, "labels": labels}], held_out=held_out).score is not None

    def test_without_labels(self) -> None:
        inputs, _ = data(16)
        model = make()
        before = weights(model)
        for batch, words in (
            (inputs, "a Tensor alone"),
            ({"x": inputs}, "a dict with x"),
            ((inputs,), "a tuple of Tensor"),
            ((inputs, {"mask": inputs}), "a tuple of Tensor, dict"),
            ({"x": inputs, "labels": [0, 1]}, "labels, a tensor"),
        ):
            with refused("loader", words):
                fit(model, [batch])
        with refused("loader", "str", type_error=True):
            fit(model, ["text"])
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_held_out_data_without_labels_are_found_before_anything_is_trained(self) -> None:
        model, inputs = make(), data(4)[0]
        before = weights(model)
        for held_out in ([{"x": inputs}], DataLoader(TensorDataset(inputs), batch_size=2)):
            with refused("held_out", "with labels"):
                fit(model, held_out=held_out)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    @pytest.mark.parametrize("argument", ["loader", "held_out"])
    def test_any_batch_of_a_list_without_labels_is_found_before_anything_is_trained(self, argument: str) -> None:
        # Trap: the first one alone was looked at, and the error came after the weights had moved.
        model, batches = make(), [data(8), {"x": data(8)[0]}]
        before = weights(model)
        with refused(argument, "a dict with x"):
            fit(model, **{"given": [data(8)], argument: batches} if argument == "held_out" else {"given": batches})
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def test_a_look_at_held_out_data_draws_no_random_number_and_reads_nothing_on(self) -> None:
        class Augmented(Dataset[Any]):
            def __len__(self) -> int:
                return 8

            def __getitem__(self, place: int) -> Any:
                drawn = torch.rand(WIDTH) + random.random() + float(np.random.rand())
                return drawn, torch.tensor(place % 2)

        def drawn() -> list[Any]:
            return [torch.rand(1).item(), random.random(), float(np.random.rand()), torch.rand(1, generator=own).item()]

        found = []
        for looks in (False, True):
            torch.manual_seed(0), random.seed(0), np.random.seed(0)
            own = torch.Generator().manual_seed(7)
            if looks:
                HeldOut(DataLoader(Augmented(), batch_size=4, shuffle=True, generator=own), None, None).check(
                    policies.LastStep()
                )
            found.append(drawn())
        assert found[0] == found[1]

        class Stream(IterableDataset[Any]):
            def __iter__(self) -> Any:
                raise AssertionError("read before its time")

        HeldOut(DataLoader(Stream(), batch_size=4), None, None).check(policies.LastStep())
        HeldOut(DataLoader({"a": data(1)}, batch_sampler=[["a"]]), None, None).check(policies.LastStep())  # type: ignore[arg-type]

    @pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
    def test_empty_loaders_and_such_as_can_be_read_once(self) -> None:
        with refused("loader", "at least one batch"):
            fit(make(), [])
        with refused("loader", "at least one batch"):
            fit(make(), DataLoader(TensorDataset(*data(4)), batch_size=16, drop_last=True))
        with refused("held_out", "at least one batch"):
            fit(make(), held_out=[])
        with refused("held_out", "at least one batch"):
            fit(make(), held_out=DataLoader(TensorDataset(*data(4)), batch_size=16, drop_last=True))
        with refused("loader", "labels once", "'labels' and 'label'"):
            fit(make(), [{"inputs": data(4)[0], "labels": data(4)[1], "label": data(4)[1]}])
        with refused("held_out", "row with a label"):
            fit(make(), held_out=[(data(4)[0], torch.full((4,), -100))])
        with refused("loader", "once an epoch", type_error=True):
            fit(make(), iter([data(4)]))
        with refused("loader", "once an epoch", type_error=True):
            fit(make(), {"x": 1})

        class Endless(IterableDataset[Any]):
            def __iter__(self) -> Any:
                return iter([(row, label) for row, label in zip(*data(8), strict=True)])

        for options in ({}, {"schedule": "constant"}, {"warmup": 0.0}):
            with refused("loader", "without a length", "schedule='constant', warmup=0"):
                fit(make(), DataLoader(Endless(), batch_size=4), **options)
        uncounted: dict[str, Any] = {"schedule": "constant", "warmup": 0}
        assert len(fit(make(), DataLoader(Endless(), batch_size=4), **uncounted).stages[0].epochs) == 2
        staged = make()
        staged.stages = (recipes.Stage(objectives.SimulatedExits()),)
        with pytest.raises(ponder.PonderError, match="how much of the training is done"):
            fit(staged, DataLoader(Endless(), batch_size=4), **uncounted)
        turns = objectives.Alternating(objectives.FinalStep(), objectives.DeepSupervision("uniform"))
        staged.stages = (recipes.Stage(turns),)  # which reads no share
        assert len(fit(staged, DataLoader(Endless(), batch_size=4), **uncounted).stages[0].epochs) == 2


class TestFaults:
    def test_a_loss_that_is_not_finite_keeps_the_weights_from_before(self) -> None:
        inputs, labels = data(16)
        bad = inputs.clone()
        bad[3, 2] = math.nan
        model, expected = make(), make()
        with pytest.raises(NonFiniteError, match=r"fit, epoch 1, step 2: .*loss of nan.*check_finite"):
            fit(model, [(inputs, labels), (bad, labels)], schedule="constant", warmup=0.0)
        fit(expected, [(inputs, labels)], epochs=1, schedule="constant", warmup=0.0)
        for name, tensor in model.state_dict().items():
            assert tensor.isfinite().all()
            torch.testing.assert_close(tensor, expected.state_dict()[name])
        assert all(weight.requires_grad for weight in model.parameters())
        assert not model.training
        fit(model)  # the next call works

    def test_other_models_and_numbers(self) -> None:
        with refused("model", "Linear", type_error=True):
            fit(nn.Linear(2, 2))
        for options in ({"epochs": 0}, {"patience": 0}, {"warmup": 1.0}, {"clip": 0.0}, {"weight_decay": -1.0}):
            with refused(*options):
                fit(make(), **options)
        with refused("schedule", "quadratic"):
            fit(make(), schedule="quadratic")
        with refused("lr", "-1"):
            fit(make(), lr=-1.0)
        with refused("bf16", "'no'", type_error=True):
            fit(make(), bf16="no")
        with refused("folder", "TensorBoard"):
            fit(make(), trackers="tensorboard")
        with refused("recipe", "palbret"):
            fit(make(), None, "palbret")
        with refused("objective", "needs no hazard"):
            fit(make("pabee"), None, "palbert")

    def test_without_accelerate(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "accelerate", None)
        with pytest.raises(ponder.PonderError, match=r"ponder-torch\[train\]"):
            fit(make())


def test_a_model_without_a_recipe_trains_its_own_objective_or_that_of_another_recipe() -> None:
    model = ponder.PonderWrapper(
        [nn.Linear(WIDTH, WIDTH) for _ in range(STEPS)],
        head=ponder.PerStep(nn.Linear(WIDTH, 2) for _ in range(STEPS)),
        objective=objectives.DeepSupervision("uniform"),
        task="classification",
    )
    (stage,) = fit(model).stages
    assert stage.objective == objectives.DeepSupervision("uniform").to_dict()
    report = fit(model, None, "deebert")
    assert [stage.trained for stage in report.stages] == ["all", "early_heads"]
    assert model.policy == recipes.get("deebert").policy
    assert all(weight.requires_grad for weight in model.parameters())


def test_an_epoch_without_a_label_taught_nothing() -> None:
    """The trap: a loss of 0.0, epoch after epoch, and weights that never moved."""
    inputs, labels = data(16)
    nothing = torch.full_like(labels, -100)
    for batches in ([(inputs, nothing)] * 2, [(inputs[:0], labels[:0])] * 2):
        with refused("loader", "at least one row with a label", "none in the 2 batches of fit, epoch 1"):
            fit(make(), batches)
    fit(make(), [(inputs, nothing), (inputs, labels)], epochs=1)


def test_what_nothing_would_read_is_refused(tmp_path: Path) -> None:
    with refused("metric", "None without held_out"):
        fit(make(), metric=lambda outputs, labels: 0.5)
    with refused("folder", "None without trackers"):
        fit(make(), folder=tmp_path)
    for named in ({"trackers": "tensorboard"}, {"folder": tmp_path}):
        with refused("accelerator", "None beside trackers and folder"):
            fit(make(), accelerator=accelerate.Accelerator(), **named)


def test_bfloat16_trains_float32_weights() -> None:
    seen: list[torch.dtype] = []
    model = make()
    hook = model.head.register_forward_hook(lambda *given: seen.append(given[2].dtype))
    fit(model, bf16=True, epochs=1)
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_tensorboard_gets_losses_scores_and_histograms(tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed"
    )
    fit(make(), held_out=[data(16)], trackers="tensorboard", folder=tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "ponder"), size_guidance={"histograms": 0})
    events.Reload()
    scalars = set(events.Tags()["scalars"])
    assert {"train/loss", "train/lr", "train/expected_steps", "train/kl", "train/loss_step_1"} <= scalars
    assert {"held_out/score", "held_out/exit_step", f"halting/step_{STEPS}", "held_out/exits/step_1"} <= scalars
    assert set(events.Tags()["histograms"]) == {"halting", "held_out/exits"}
    shares = [events.Scalars(f"halting/step_{step}")[-1].value for step in range(1, STEPS + 1)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)
    (last,) = [event.histogram_value for event in events.Histograms("halting")][-1:]
    assert list(last.bucket) == pytest.approx(shares)
    assert len(events.Histograms("halting")) == 2, "one an epoch"


def test_nothing_is_written_where_nobody_looks(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(make(), held_out=[data(16)], progress=True)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_shows_loss_step_and_score(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    fit(make("deebert"), held_out=[data(16)], epochs=1)
    shown = capfd.readouterr().err
    assert "stage 1/2" in shown
    assert "score" in shown
    assert "exit_step" in shown


def test_an_accelerator_of_ones_own_is_used_and_left_alone() -> None:
    from accelerate import Accelerator

    own = Accelerator(cpu=True)
    fit(make(), accelerator=own, epochs=1)
    assert fit(make(), accelerator=own, epochs=1).stages[0].epochs[0].loss > 0


def test_mixed_precision_of_an_accelerator_ends_with_the_training() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(True)
    try:
        model = make("ponder")
        fit(model, accelerator=Accelerator(cpu=True, mixed_precision="bf16"), epochs=1)
    finally:
        AcceleratorState._reset_state(True)
    assert "forward" not in vars(model)
    with torch.no_grad():
        outputs = model(data(8)[0]).outputs
    assert outputs.dtype == torch.float32
    assert torch.equal(outputs, ponder.predict(model, data(8)[0]).outputs)


def test_an_accelerator_that_accumulates_is_refused() -> None:
    from accelerate import Accelerator

    with refused("accelerator", "gradient_accumulation_steps=1", "4"):
        fit(make(), accelerator=Accelerator(cpu=True, gradient_accumulation_steps=4))


def test_a_truncated_unroll_is_measured_against_the_prior_of_its_loss() -> None:
    torch.manual_seed(0)
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH),
        num_steps=20,
        head=nn.Linear(WIDTH, 2),
        lambda_head=ponder.LambdaHead(WIDTH),
        prior=priors.Learned(20),
        objective=objectives.Ponder(0.1),
        truncate_below=0.05,
        task="classification",
    )
    out = model.train()(data(16)[0], labels=data(16)[1])
    halting, steps = out.trajectory.halting, out.trajectory.num_steps
    assert steps < 20
    p, prior = halting.pmf, model.prior(20).pmf
    prior = torch.cat([prior[:steps], prior[steps:].sum(0, keepdim=True)])
    left = p[:, -1] * torch.sigmoid(-out.trajectory.hazard_logits[:, -1])
    p = torch.cat([p[:, :-1], (p[:, -1] - left)[:, None], left[:, None]], dim=1)
    found = measured(model, out.trajectory.outputs, out.trajectory.hazard_logits, data(16)[1])
    torch.testing.assert_close(found["kl"], (p * (p.log() - prior.log())).sum(1), atol=1e-4, rtol=1e-3)
    assert fit(model, [data(16)], epochs=1).stages[0].epochs[0].loss > 0


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
def test_one_step_of_a_model_with_a_prior_over_all_of_them() -> None:
    model = make("palbert", task="classification")
    model.prior, model.objective, model.stages = priors.Learned(STEPS), objectives.OneStep(2), ()
    assert fit(model, [data(16)], epochs=1).stages[0].epochs[0].loss > 0


def test_what_is_shared_by_a_batch_reaches_the_frozen_teacher() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, hidden: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return self.linear(hidden) + bias

    head = ponder.PerStep([nn.Linear(WIDTH, 2) for _ in range(STEPS)])
    model = ponder.PonderWrapper([Step() for _ in range(STEPS)], head=head, task="classification")
    inputs, labels = data(16)
    batch = (inputs, {"labels": labels, "bias": ponder.Shared(torch.randn(1, WIDTH))})
    assert len(fit(model, [batch], recipe="ponder", epochs=1).stages) == 2


def test_a_model_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    from ponder.integrations.transformers import PonderForSequenceClassification

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    model = PonderForSequenceClassification.from_encoder(transformers.BertModel(config), "deebert")
    tokens = torch.randint(30, (8, 6))
    batch = {"attention_mask": torch.ones_like(tokens), "input_ids": tokens, "labels": torch.tensor([0, 1] * 4)}
    report = fit(model, [batch], held_out=[batch])
    assert [stage.trained for stage in report.stages] == ["all", "early_heads"]
    with torch.no_grad():
        right = (model(**batch).logits.argmax(1) == batch["labels"]).double().mean()
    assert report.score == pytest.approx(float(right))
    assert not model.training


def test_spans_of_several_lengths_are_scored() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(STEPS)]
    model = ponder.PonderWrapper.from_recipe(
        layers, "pabee", num_outputs=2, example=torch.randn(2, 5, WIDTH), task="span"
    )
    batches = [(torch.randn(4, length, WIDTH), torch.randint(length, (4, 2))) for length in (5, 7)]
    report = fit(model, batches, held_out=batches)
    with torch.no_grad():
        right = [(model.eval()(x).outputs.argmax(1) == y).all(1).double() for x, y in batches]
    assert report.score == pytest.approx(torch.cat(right).mean().item())


@pytest.mark.parametrize(("recipe", "head"), [("deebert", "PerStep"), ("palbert", "lambda_head=ponder.LambdaHead")])
def test_heads_that_a_recipe_wants_are_missed_before_anything_is_trained(recipe: str, head: str) -> None:
    model = ponder.PonderWrapper([nn.Linear(WIDTH, WIDTH) for _ in range(3)], head=nn.Linear(WIDTH, 2))
    before, policy, stages = weights(model), model.policy, model.stages
    with pytest.raises(ponder.PonderError, match=head):
        fit(model, None, recipe)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert (model.policy, model.stages) == (policy, stages)


def test_half_precision_that_scales_losses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    monkeypatch.setattr(Accelerator, "mixed_precision", "fp16")  # there is no such device here
    with refused("accelerator", "mixed_precision='no' or 'bf16'", "'fp16'"):
        fit(make(), accelerator=Accelerator(cpu=True))


class Remembers(nn.Module):
    """A step that keeps a table as long as what it has seen, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table = nn.Linear(WIDTH, WIDTH), torch.zeros(0)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if len(self.table) < hidden.shape[1]:
            self.table = torch.arange(hidden.shape[1]).float().cos()
        return self.linear(hidden) * self.table[: hidden.shape[1], None]


def test_what_an_encoder_keeps_of_scoring_can_be_trained_with() -> None:
    model = ponder.PonderWrapper(
        Remembers(), 3, head=nn.Linear(WIDTH, 2), readout=lambda hidden: hidden.mean(1), task="classification"
    )
    batches = {length: [(torch.randn(4, length, WIDTH), torch.tensor([0, 1, 0, 1]))] for length in (5, 9)}
    assert fit(model, batches[5], held_out=batches[9]).stages[0].best_epoch in (1, 2)


def test_rows_without_a_label_count_for_nothing_in_what_is_measured() -> None:
    model, (inputs, labels) = make("vanilla").train(), data(4)
    labels[1:] = -100
    out = model(inputs, labels=labels)
    assert out.loss is not None
    found = measured(model, out.trajectory.outputs, None, labels)
    assert found[f"loss_step_{STEPS}"].tolist() == pytest.approx([out.loss.item()])
    labels[0] = -100
    assert len(measured(model, out.trajectory.outputs, None, labels)["loss_step_1"]) == 0


def test_means_keep_no_tensor_of_each_batch() -> None:
    # Trap: what nobody asks for (a Trainer that logs nothing) grew for the whole training.
    means = Means()
    for rows in (1, 2, 3):
        means.add({"loss": torch.full((rows,), float(rows))})
    assert sum(tensor.numel() for tensor in tensors_in(vars(means))) <= 1
    assert means.taken() == {"loss": pytest.approx(14 / 6)}
    assert means.taken() == {}


def tensors_in(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [tensor for part in parts for tensor in tensors_in(part)]


class MeanOfSteps(objectives.Objective):
    """One that nobody gave a name."""

    def per_example(self, unrolled: Any) -> Any:
        return unrolled.losses.mean(1)

    def __repr__(self) -> str:
        return "MeanOfSteps()"


def test_an_objective_without_a_name_is_trained_and_told() -> None:
    model = make("vanilla")
    model.objective, model.stages = MeanOfSteps(), ()
    report = fit(model)
    assert report.stages[0].objective == {"name": "MeanOfSteps()"}
    assert json.loads(json.dumps(report.to_dict()))


@pytest.mark.parametrize(
    ("late", "words"),
    [
        (recipes.Stage(objectives.FinalStep(), train="early_heads"), "a shared head"),
        (recipes.Stage(objectives.Ponder(0.5)), "no hazard"),
    ],
)
def test_a_later_stage_that_cannot_run_is_found_at_once(late: Any, words: str) -> None:
    stages = (recipes.Stage(objectives.FinalStep()), late)
    mine = recipes.Recipe("mine", "none", stages=stages, policy=policies.LastStep())
    with pytest.raises(ponder.PonderError, match=words):
        make(mine)
    model = make("vanilla")
    with pytest.raises(ponder.PonderError, match=words):
        model.stages = stages
    assert len(model.stages) == 1


class Named(nn.Module):
    """An encoder that is called with two tensors by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, signal: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = signal * mask
        for layer in self.layers:
            hidden = layer(hidden).tanh() * mask
        return hidden


def test_the_inputs_of_a_dict_are_told_by_name() -> None:
    inputs, labels = data(16)
    mask = torch.ones(16, 1)
    models = []
    for order in (("signal", "mask", "labels"), ("mask", "labels", "signal")):
        torch.manual_seed(0)
        example = {"signal": inputs[:2], "mask": mask[:2]}
        model = ponder.PonderWrapper.from_recipe(
            Named(), "vanilla", num_outputs=2, example=example, head_dropout=0.0, layers="layers"
        )
        batch = {"signal": inputs, "mask": mask, "labels": labels}
        fit(model, [{name: batch[name] for name in order}])
        models.append(weights(model))
    for name, weight in models[0].items():
        assert torch.equal(weight, models[1][name]), name
    with refused("signal", "would not be read"):
        model(mask, signal=inputs)


class Evaluated(nn.Linear):
    """Answers NaN in evaluation mode, as a model that overflows there."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs) if self.training else super().forward(inputs) * torch.nan


@pytest.mark.parametrize("task", ["classification", "multilabel", "token_classification"])
def test_nan_is_no_right_answer_of_held_out_data(task: str) -> None:
    inputs = torch.randn(6, 3, WIDTH) if task == "token_classification" else torch.randn(6, WIDTH)
    labels = torch.zeros(inputs.shape[:-1], dtype=torch.long)
    labels = torch.zeros(6, 2) if task == "multilabel" else labels
    readout = ponder.readouts.identity if task == "token_classification" else None
    options: dict[str, Any] = {"objective": objectives.FinalStep(), "task": task, "readout": readout}
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), num_steps=2, head=Evaluated(WIDTH, 2), **options)
    assert fit(model, [(inputs, labels)], held_out=[(inputs, labels)], epochs=1).score == 0.0


def test_sampled_exits_of_held_out_data_do_not_depend_on_its_batches() -> None:
    inputs, labels = data(48, seed=5)
    model = make("pondernet")
    found = []
    for size in (1, 5, 48):
        parts = list(zip(inputs.split(size), labels.split(size), strict=True))
        found.append(measured_held_out(model, parts))
    assert found[0] == found[1] == found[2]
    assert found[0] == model.predict(inputs).exit_step.double().mean().item()
    assert found[0] > 1.0


def test_rows_of_held_out_data_may_say_who_they_are() -> None:
    inputs, labels = data(48, seed=5)
    model, ids = make("pondernet"), torch.arange(48) + 1000
    batch = {"inputs": inputs, "labels": labels, "row_ids": ids}
    with torch.no_grad():
        expected = model.eval()(inputs, row_ids=ids).exit_step.double().mean().item()
        assert expected != model(inputs).exit_step.double().mean().item()
    assert measured_held_out(model, [batch]) == expected
    assert fit(model, [batch], held_out=[batch], epochs=1).score is not None


def measured_held_out(model: Any, parts: Any) -> float:
    return HeldOut(parts, None, None).score(model, model.policy, torch.device("cpu")).exit_step


def test_a_teacher_that_shares_weights_is_refused() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH, WIDTH) for _ in range(2)]
    student, teacher = (
        ponder.PonderWrapper.from_recipe(layers, "vanilla", num_outputs=2, example=torch.randn(2, WIDTH)) for _ in "ab"
    )
    with refused("teacher", "shares weights"):
        student.attach_teacher(teacher)
    student.attach_teacher(copy.deepcopy(teacher))


def test_what_the_caller_froze_stays_frozen_in_a_stage() -> None:
    model = make("deebert")
    mine = model.steps.fns[0][0].bias.requires_grad_(False)
    first, second = model.stages
    model.start_stage(first)
    assert not mine.requires_grad
    assert model.steps.fns[0][0].weight.requires_grad
    model.start_stage(second)  # freezes the encoder by itself
    model.start_stage(first)
    assert not mine.requires_grad
    assert model.steps.fns[0][0].weight.requires_grad


def test_what_a_stage_froze_is_not_taken_for_the_callers_doing() -> None:
    """Trap: one stage started by hand, and `fit` after it left the encoder frozen in all of its own, in silence."""
    model, other = make("deebert"), make("deebert")
    mine = model.steps.fns[0][0].bias.requires_grad_(False)
    other.steps.fns[0][0].bias.requires_grad_(False)
    model.start_stage(model.stages[1])
    fit(model)
    fit(other)
    assert weights(model).keys() == weights(other).keys()
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(other).items())
    assert [weight for weight in model.parameters() if not weight.requires_grad] == [mine]


@pytest.mark.parametrize("again", ["fit", "start_stage"])
def test_what_the_caller_froze_after_undoing_a_stage_stays_frozen(again: str) -> None:
    # Trap: the names that the stage had frozen were still taken for its own, and the encoder was thawed and trained.
    model = make("deebert")
    model.start_stage(model.stages[1])
    model.finish_stage(model.stages[1])
    assert model.freezing_stage is model.stages[1]
    model.requires_grad_(True)
    assert model.freezing_stage is None
    for weight in model.steps.parameters():
        weight.requires_grad_(False)
    before = weights(model)
    if again == "fit":
        fit(model)
    else:
        model.start_stage(model.stages[0])
    assert not any(weight.requires_grad for weight in model.steps.parameters())
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items() if name.startswith("steps"))


def test_a_stage_of_which_a_weight_was_thawed_by_hand_freezes_no_more() -> None:
    model = make("deebert")
    model.start_stage(model.stages[1])
    model.steps.fns[0][0].bias.requires_grad_(True)
    assert model.freezing_stage is None


def test_a_model_that_an_earlier_version_pickled_is_trained() -> None:
    """Trap: it does not know whether its objective was assigned after its stages."""
    model = make()
    vars(model).pop("_instead_of_stages", None)
    assert fit(copy.deepcopy(model), epochs=1).stages[0].objective == model.stages[0].objective.to_dict()


def test_an_objective_that_was_assigned_after_the_stages_is_so_in_a_model_that_was_read(tmp_path: Path) -> None:
    """Trap: the stages were trained in silence, and never the objective that the folder names."""
    saved, read = make(), make()
    read.objective = 3.0 * read.objective
    ponder.save(saved, tmp_path / "stages")
    fit(ponder.load(read, tmp_path / "stages"), epochs=1)  # what the reader had been assigned is gone
    saved.objective = 2.0 * saved.objective
    ponder.save(saved, tmp_path / "assigned")
    with refused("objective", "assigned after them"):
        fit(ponder.load(make(), tmp_path / "assigned"), epochs=1)


def test_held_out_labels_of_two_kinds_are_refused() -> None:
    inputs, labels = data(16)
    soft = nn.functional.one_hot(labels, 2).float()
    with refused("held_out", "('rows',), ('rows', 2)", "argmax"):
        fit(make(), held_out=[(inputs, labels), (inputs, soft)], epochs=1)


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
def test_an_objective_that_no_stage_trains_is_refused() -> None:
    """Trap: a second `fit` with another objective trained that of the recipe again, and put it back."""
    model = make()
    fit(model, epochs=1)
    model.objective = objectives.FinalStep()
    with refused("objective", "FinalStep()", "stages = ()"):
        fit(model, epochs=1)
    assert model.objective == objectives.FinalStep()
    assert fit(model, epochs=1, recipe="palbert").stages[0].objective["name"] == "ponder"
    model.objective, model.stages = objectives.FinalStep(), ()
    assert fit(model, epochs=1).stages[0].objective == objectives.FinalStep().to_dict()


def test_a_later_stage_without_its_teacher_is_found_at_once() -> None:
    stages = (recipes.Stage(objectives.FinalStep()), recipes.Stage(objectives.Distillation(teacher="frozen")))
    model = make(recipes.Recipe("mine", "none", stages=stages, policy=policies.LastStep()))
    before = weights(model)
    with refused("teacher", "none"):
        fit(model)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_steps_that_were_drawn_have_no_loss_of_their_own() -> None:
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH), 4, head=nn.Linear(WIDTH, 2), objective=objectives.RandomDepth(warm_up=2)
    )
    trajectory = model.eval().unroll(torch.randn(3, WIDTH), labels=torch.tensor([0, 1, 0]))
    assert measured(model, trajectory.outputs, None, trajectory.labels) == {}


@pytest.mark.parametrize(
    ("built", "wanted", "said"),
    [
        ("vanilla", recipes.get("pabee"), "Linear"),
        ("cosee", recipes.get("ponder", heads="norms"), "NormPerStep"),
        (recipes.get("ponder", heads="norms"), recipes.get("cosee"), "NormPerStep"),
        ("ponder", recipes.get("ponder", early_gradient="equilibrium"), "gradient_scales=(1.0, 1.0, 1.0, 1.0)"),
        (recipes.get("ponder", early_gradient="equilibrium"), recipes.get("pabee"), "gradient_scales=(0.25, 0.333"),
    ],
)
def test_recipes_whose_heads_the_model_has_not_are_refused(built: Any, wanted: Any, said: str) -> None:
    model = make(built)
    before = weights(model)
    with refused("recipe", wanted.name, "from_recipe", said if said != "Linear" else "shared by all steps"):
        fit(model, recipe=wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_recipe_that_cannot_teach_the_task_leaves_the_model_as_it_was() -> None:
    own = ponder.tasks.Custom(lambda outputs, labels: (outputs[:, 0] - labels).abs(), classes=True)
    model = make("pabee", task=own, policy=policies.Patience(1))
    before, policy, stages = weights(model), model.policy, model.stages
    with refused("objective", "defines what the teacher teaches"):
        fit(model, recipe="ponder")
    assert (model.policy, model.stages) == (policy, stages)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_recipes_whose_heads_the_model_has_are_trained() -> None:
    for options in ({"heads": "norms"}, {"early_gradient": "equilibrium"}):
        recipe = recipes.get("ponder", joint=True, **options)
        assert len(fit(make(recipe), recipe=recipe, epochs=1).stages) == 1


def test_early_heads_of_another_kind_are_not_copied_from_the_last() -> None:
    heads = ponder.PerStep([*(nn.Sequential(nn.Linear(WIDTH, 2)) for _ in range(STEPS - 1)), nn.Linear(WIDTH, 2)])
    model = ponder.PonderWrapper([nn.Linear(WIDTH, WIDTH) for _ in range(STEPS)], head=heads, task="classification")
    before = weights(model)
    with refused("stage", "early heads of the last one's kind"):
        fit(model, recipe="ponder")
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_a_metric_that_broadcasts_is_refused_by_fit() -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), 2, head=nn.Linear(4, 1), task="regression")
    data = [(torch.randn(8, 4), torch.randn(8))]
    with refused("metric", "broadcasts"):
        ponder.fit(
            model, data, epochs=1, held_out=data, metric=lambda o, y: -float(((o - y) ** 2).mean()), progress=False
        )


def test_a_lambda_head_that_nothing_trains_is_told_where_the_policy_reads_it() -> None:
    def model(policy: policies.ExitPolicy) -> ponder.PonderWrapper:
        return ponder.PonderWrapper(
            nn.Linear(4, 4),
            3,
            head=nn.Linear(4, 2),
            lambda_head=ponder.LambdaHead(4),
            objective=objectives.FinalStep(),
            policy=policy,
            task="classification",
        )

    data = [(torch.randn(8, 4), torch.randint(2, (8,)))]
    with pytest.warns(UserWarning, match="no objective of this training reads its hazards"):
        ponder.fit(model(policies.Quantile(0.5)), data, epochs=1, progress=False)
    ponder.fit(model(policies.Confidence(0.9)), data, epochs=1, progress=False)
    frozen = model(policies.Quantile(0.5))
    frozen.lambda_head.requires_grad_(False)
    ponder.fit(frozen, data, epochs=1, progress=False)


class Augmented(DataLoader[Any]):
    """A loader with an `__iter__` of its own, as augmentation and mixup have it."""

    def __iter__(self) -> Any:
        for inputs, labels in super().__iter__():
            yield torch.full_like(inputs, 7.0), labels


class Seen(nn.Module):
    """A step that keeps what it was given in training."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.inputs: list[float] = []

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.inputs.append(hidden.mean().item())
        return self.linear(hidden)


def seeing() -> tuple[ponder.PonderWrapper, list[float]]:
    step = Seen()
    return ponder.PonderWrapper([step], head=nn.Linear(WIDTH, 2), task="classification"), step.inputs


def test_a_loader_with_an_iter_of_its_own_is_iterated_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: accelerate makes a plain DataLoader of it, without a word.
    model, inputs = seeing()
    given = Augmented(TensorDataset(*data(16)), batch_size=8)
    fit(model, given, epochs=1)
    assert inputs == [7.0, 7.0]
    monkeypatch.setattr(accelerate.Accelerator, "num_processes", 2)
    with refused("loader", "a Augmented", "an __iter__ of its own", "collate_fn", type_error=True):
        fit(model, given, epochs=1)


def test_a_loader_that_counts_its_epochs_begins_with_the_first() -> None:
    class Curriculum:
        epoch = -1

        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            self.epoch += 1
            return iter([(torch.full((4, WIDTH), float(self.epoch)), torch.tensor([0, 1, 0, 1]))])

    model, inputs = seeing()
    fit(model, Curriculum(), epochs=3)
    assert inputs == [0.0, 1.0, 2.0]


class Counts(nn.Module):
    """A step that counts its calls of training where no `state_dict` has a tensor of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(WIDTH, WIDTH), 0
        self.register_buffer("count", torch.zeros(()), persistent=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
            self.count += 1
        return self.linear(hidden)

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


def test_the_best_epoch_comes_back_with_what_is_no_tensor_and_what_is_not_saved() -> None:
    step, scores = Counts(), iter([0.5, 0.9, 0.1, 0.1])
    model = ponder.PonderWrapper([step], head=nn.Linear(WIDTH, 2), task="classification")
    options: dict[str, Any] = {"held_out": [data(8)], "metric": lambda outputs, labels: next(scores)}
    assert fit(model, [data(8)], epochs=4, patience=None, **options).stages[0].best_epoch == 2
    assert (step.calls, step.count.item()) == (2, 2.0)


def per_step() -> ponder.PonderWrapper:
    steps, heads = ([nn.Linear(WIDTH, width) for _ in range(2)] for width in (WIDTH, 2))
    return ponder.PonderWrapper(
        steps, head=ponder.PerStep(heads), lambda_head=ponder.LambdaHead(WIDTH), task="classification"
    )


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
@pytest.mark.parametrize(("batches", "epochs"), [(1, 1), (2, 3)])
def test_a_stage_that_teaches_nothing_of_what_it_trains_is_refused(batches: int, epochs: int) -> None:
    # Trap: every head is called and gets a gradient of 0, and the report looks as ever.
    model = per_step()
    model.stages = (recipes.Stage(objectives.FinalStep(), train="early_heads"),)
    with refused("objective", "train='early_heads'", "FinalStep()", "fit", "DeepSupervision"):
        fit(model, [data(8, seed) for seed in range(batches)], epochs=epochs)
    with refused("stage", "reads the hazards", "FinalStep()", "Ponder"):
        model.stages = (recipes.Stage(objectives.FinalStep(), train="lambda_head"),)


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
def test_an_objective_that_reaches_nothing_that_is_not_frozen_is_refused() -> None:
    # Trap: no weight moved, and the report looks as ever.
    model = per_step()
    model.objective = objectives.FinalStep()
    model.steps.requires_grad_(False)
    model.head.heads[-1].requires_grad_(False)
    before = weights(model)
    with refused("objective", "train='all'", "FinalStep()", "requires_grad_(True)"):
        fit(model, [data(8)], epochs=1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    model.objective = objectives.DeepSupervision()
    fit(model, [data(8)], epochs=1)


def test_a_loss_of_nothing_has_nothing_left_to_teach() -> None:
    model = make("vanilla", task=lambda outputs, labels: 0.0 * outputs[:, 0])
    assert fit(model, [data(8)], epochs=1).stages[0].epochs[0].loss == 0.0


@pytest.mark.parametrize("name", ["deebert", "fastbert"])
def test_training_again_goes_on_with_the_first_stage_and_says_so(name: str, tmp_path: Path) -> None:
    # Trap: it went on with the last one, on all parameters and in silence; that of FastBERT looks at no label.
    model = make(name)
    fit(model)
    assert (model.objective, model.started_stage) == (model.stages[0].objective, None)
    ponder.save(model, tmp_path)
    inputs, labels = data(8)
    for again in (model, copy.deepcopy(model), ponder.load(make(name), tmp_path)):
        with pytest.warns(UserWarning, match=r"none was started.*objective of stage 1 alone, FinalStep\(\)"):
            loss = again.train()(inputs, labels=labels).loss
        last = nn.functional.cross_entropy(again(inputs).outputs, labels)
        torch.testing.assert_close(loss, last)
    fit(model, epochs=1)  # all stages, and nothing is told
    model.objective = objectives.DeepSupervision()  # of the user's own choice
    model.train()(inputs, labels=labels)


def test_a_later_stage_in_a_folder_of_an_earlier_version_is_told(tmp_path: Path) -> None:
    """What `fit` left there was the objective of the last stage."""
    saved = make("fastbert")
    saved.start_stage(saved.stages[1])
    ponder.save(saved, tmp_path)
    read, (inputs, labels) = ponder.load(make("fastbert"), tmp_path), data(8)
    with pytest.warns(UserWarning, match=r"none was started.*objective of stage 2 alone, Distillation"):
        read.train()(inputs, labels=labels)
    read(inputs, labels=labels)  # once
    saved.train()(inputs, labels=labels)  # which was started


def test_a_training_that_breaks_off_leaves_neither_stage_nor_teacher() -> None:
    model = make("ponder")

    class Breaks:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Any:
            if model.has_teacher:  # in the second stage
                raise KeyboardInterrupt
            return iter([data(8)])

    with pytest.raises(KeyboardInterrupt):
        fit(model, Breaks(), epochs=1)
    assert (model.objective, model.started_stage, model.progress) == (model.stages[0].objective, None, None)
    assert not model.has_teacher
    assert all(weight.requires_grad for weight in model.parameters())


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
@pytest.mark.parametrize("objective", [objectives.RandomDepth(warm_up=None), objectives.OneStep(2)])
def test_where_steps_are_drawn_or_left_out_no_halting_distribution_is_told(
    objective: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: the mean over the steps that were run was told as that over all.
    drawn = list[str]()
    monkeypatch.setattr(Tracking, "histogram", lambda self, name, values: drawn.append(name))
    head = {"head": nn.Linear(WIDTH, 2), "lambda_head": ponder.LambdaHead(WIDTH, start=1e-4)}
    model = ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 12, objective=objective, task="classification", **head)
    assert fit(model, [data(8)] * 3, epochs=1).stages[0].epochs[0].expected_steps is None
    assert drawn == []
    model.objective = objectives.Ponder(0.5)
    assert fit(model, [data(8)], epochs=1, lr=0.0).stages[0].epochs[0].expected_steps > 11.0
    assert drawn == ["halting"]


def test_the_halting_distribution_of_an_epoch_is_that_of_its_labelled_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: a mean of the batches' means, over rows without a label too, beside a mean of the labelled rows.
    drawn = list[list[float]]()
    monkeypatch.setattr(Tracking, "histogram", lambda self, name, shares: drawn.append([float(s) for s in shares]))
    model, (inputs, labels) = make(), data(33)
    with torch.no_grad():
        for weight in model.lambda_head.parameters():
            weight.mul_(6.0)
    inputs[32:] *= 10.0
    labels[4:16] = -100
    batches = [(inputs[:32], labels[:32]), (inputs[32:], labels[32:])]
    epoch = fit(model, batches, epochs=1, lr=0.0).stages[0].epochs[0]
    (shares,) = drawn
    with torch.no_grad():
        expected = model.unroll(inputs[labels != -100]).halting.pmf.mean(0)
    assert shares == pytest.approx(expected.tolist(), abs=1e-6)
    assert sum(step * share for step, share in enumerate(shares, start=1)) == pytest.approx(epoch.expected_steps)


@pytest.mark.filterwarnings("ignore:.*leaves by the Lambda head")
def test_turns_of_which_one_teaches_nothing_are_trained() -> None:
    for other, train in ((objectives.DeepSupervision(), "early_heads"), (objectives.Ponder(0.5), "lambda_head")):
        model = per_step()
        turns = objectives.Alternating(objectives.FinalStep(), other)
        model.stages = (recipes.Stage(turns, train=train),)
        before = weights(model)
        fit(model, [data(8, seed) for seed in range(2)], epochs=1)
        assert not all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_what_a_policy_reads_of_held_out_rows_is_looked_for_before_training() -> None:
    @dataclass(frozen=True)
    class Budgeted(policies.ExitPolicy):
        needs = frozenset({"context"})

        def decide(self, step: Any, state: Any) -> tuple[Any, Any]:
            return step.index >= step.context["budget"], state

    def batches(budgets: bool) -> list[dict[str, Any]]:
        given = {"policy_context": {"budget": torch.tensor([1, 2, 3])}} if budgets else {}
        return [{"inputs": torch.randn(3, 4), "labels": torch.tensor([0, 1, 0]), **given}]

    def model() -> ponder.PonderWrapper:
        made = ponder.PonderWrapper(
            nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), task="classification", policy=Budgeted()
        )
        made.main_input_name = "inputs"
        return made

    before = (made := model()).head.weight.clone()
    with refused("held_out", "Budgeted() reads of each row", "'policy_context': {"):
        ponder.fit(made, batches(False), held_out=batches(False), epochs=1, progress=False)
    assert torch.equal(made.head.weight, before)
    report = ponder.fit(model(), batches(False), held_out=batches(True), epochs=1, progress=False)
    assert report.stages[-1].epochs[-1].exit_step == 2.0
