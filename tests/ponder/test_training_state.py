"""What a training batch may know besides outputs and labels: how far training has come, and a frozen teacher."""

from __future__ import annotations

import copy
import pickle
import types
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import Progress, objectives
from ponder.objectives import Alternating, DeepSupervision, Distillation, FinalStep, SimulatedExits
from ponder.parts.heads import PerStep
from ponder.policies import Confidence
from ponder.recipes import Stage, start_heads
from tests.ponder import capturable
from tests.ponder.checks import refused
from tests.toys import WIDTH, labels_for, make_toy, wrap

TAUGHT = Distillation(teacher="frozen")


def model_and_batch(objective: objectives.Objective, task: str = "classification"):
    torch.manual_seed(0)
    toy = make_toy("stacked")
    inputs, _ = toy.batch(6)
    return wrap(toy, task=task, objective=objective).train(), inputs, labels_for(task, 6)


# Progress


def test_progress_is_a_share_of_whole_steps() -> None:
    assert Progress(0, 4).share == 0.0
    assert Progress(3, 4).share == 0.75
    assert Progress(4, 4).share == 1.0


@pytest.mark.parametrize(
    ("step", "total", "argument"),
    [(0, 0, "total"), (-1, 4, "step"), (5, 4, "step"), (0.5, 4, "step"), (True, 4, "step"), (1, 2.0, "total")],
)
def test_progress_that_means_nothing_is_refused(step, total, argument: str) -> None:
    with refused(argument):
        Progress(step, total)


def test_an_objective_that_changes_on_the_way_says_where_progress_comes_from() -> None:
    model, inputs, labels = model_and_batch(SimulatedExits())
    with refused("objective", "SimulatedExits"):
        model(inputs, labels=labels)
    model.progress = Progress(0, 10)
    at_first = model(inputs, labels=labels).loss
    model.objective = DeepSupervision("uniform")
    torch.testing.assert_close(at_first, model(inputs, labels=labels).loss)  # β = 0: all steps alike


def test_turns_are_taken() -> None:
    model, inputs, labels = model_and_batch(Alternating(FinalStep(), DeepSupervision("uniform")))
    seen = []
    for step in range(4):
        model.progress = Progress(step, 4)
        seen.append(model(inputs, labels=labels).loss.item())
    expected = []
    for objective in (FinalStep(), DeepSupervision("uniform")):
        model.objective = objective
        expected.append(model(inputs, labels=labels).loss.item())
    assert seen == pytest.approx(expected * 2)


def test_a_turn_runs_what_it_reads_and_no_more() -> None:
    taught = Distillation(teacher="frozen")
    model, inputs, labels = model_and_batch(Alternating(objectives.OneStep(1), taught + 0.5 * FinalStep()))
    teacher = copy.deepcopy(model)
    model.attach_teacher(teacher)
    asked: list[int] = []
    teacher.steps.fns[0].register_forward_hook(lambda *_: asked.append(model.progress.step))
    depths, losses = [], []
    for step in range(4):
        model.progress = Progress(step, 4)
        out = model(inputs, labels=labels)
        depths.append(out.trajectory.num_steps)
        losses.append(out.loss.item())
    assert set(asked) == {1, 3}
    assert depths == [1, model.num_steps, 1, model.num_steps]
    model.objective = taught + 0.5 * FinalStep()
    assert losses[1] == pytest.approx(model(inputs, labels=labels).loss.item())
    summed = Alternating(FinalStep(), FinalStep()) + 2.0 * DeepSupervision("uniform")
    assert summed.at(Progress(0, 4)) == FinalStep() + 2.0 * DeepSupervision("uniform")
    assert summed.at(None) is summed
    assert (FinalStep() + taught).at(Progress(0, 4)) == FinalStep() + taught


def test_progress_is_not_saved() -> None:
    model, _, _ = model_and_batch(FinalStep())
    before = model.settings()
    model.progress = Progress(1, 2)
    assert model.settings() == before


# The teacher


def test_all_steps_learn_the_frozen_teachers_answers_at_full_depth() -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    teacher = copy.deepcopy(model)
    teacher.policy = Confidence(0.0)  # it would leave at the first step
    for parameter in teacher.parameters():
        parameter.data.mul_(1.5)
    model.attach_teacher(teacher)
    out = model(inputs, labels=labels)
    with torch.no_grad():
        taught = teacher.eval().unroll(inputs).outputs[:, -1].log_softmax(-1)
    students = out.trajectory.outputs.log_softmax(-1)
    expected = (taught.exp().unsqueeze(1) * (taught.unsqueeze(1) - students)).sum(-1).mean()
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())


def test_a_teacher_runs_without_dropout_and_only_where_it_is_asked() -> None:
    calls = []

    class Teacher(nn.Module):
        def forward(self, inputs: torch.Tensor, **context: torch.Tensor) -> torch.Tensor:
            calls.append(self.training)
            return inputs[:, :3]

    model, inputs, labels = model_and_batch(TAUGHT)
    teacher = Teacher().train()
    model.attach_teacher(teacher)
    model.train()(inputs, labels=labels)
    assert calls == [False]
    model.objective = FinalStep()
    model(inputs, labels=labels)
    model.eval()(inputs, labels=labels)
    model.train()(inputs)  # no labels, no loss
    assert calls == [False]


def test_what_a_teaching_function_uses_runs_without_dropout_too() -> None:
    # Trap: the dropout of a teacher that is wrapped in a function was on, and taught noise.
    model, inputs, labels = model_and_batch(TAUGHT)
    other, modes = nn.Sequential(nn.Linear(inputs.shape[1], 3), nn.Dropout(0.5)).train(), list[bool]()
    other[1].register_forward_hook(lambda module, *_: modes.append(module.training))
    model.attach_teacher(lambda inputs, **context: other(inputs) + 0.0 * model.num_steps)
    model.train()(inputs, labels=labels)
    assert modes == [False]
    assert other.training, "a peer goes on to learn itself"
    assert model.training
    assert len(list(copy.deepcopy(model).parameters())) == len(list(model.parameters()))


class Line:
    """An object that is no module, such as a pipeline, and answers by one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.module(inputs)


ELSEWHERE = types.SimpleNamespace()


def by_an_attribute(inputs: torch.Tensor, **context: torch.Tensor) -> torch.Tensor:
    return ELSEWHERE.teacher(inputs)


def by_an_imported_module(inputs: torch.Tensor, **context: torch.Tensor) -> torch.Tensor:
    return capturable.teacher(inputs)


def by_an_object_of_an_attribute(inputs: torch.Tensor, **context: torch.Tensor) -> torch.Tensor:
    return ELSEWHERE.line(inputs)


@pytest.mark.parametrize("teacher", [by_an_attribute, by_an_imported_module, by_an_object_of_an_attribute])
def test_what_a_teaching_function_calls_runs_without_dropout_by_whatever_way_it_finds_it(
    teacher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: what a function reaches by attributes of its globals is not found by reading its names.
    model, inputs, labels = model_and_batch(TAUGHT)
    other = nn.Sequential(nn.BatchNorm1d(inputs.shape[1]), nn.Linear(inputs.shape[1], 3), nn.Dropout(0.5)).train()
    monkeypatch.setattr(ELSEWHERE, "teacher", other, raising=False)
    monkeypatch.setattr(ELSEWHERE, "line", Line(other), raising=False)
    monkeypatch.setattr(capturable, "teacher", other, raising=False)
    model.attach_teacher(teacher)
    losses = [model.train()(inputs, labels=labels).loss.item() for _ in range(3)]
    assert losses == losses[:1] * 3
    assert int(other[0].num_batches_tracked) == 0
    assert all(module.training for module in other.modules())
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_teacher_that_fails_leaves_no_mode_behind() -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    other = nn.Dropout(0.5).train()
    ELSEWHERE.teacher = lambda inputs: other(inputs) @ torch.zeros(1, 1)
    model.attach_teacher(by_an_attribute)
    with pytest.raises(RuntimeError):
        model.train()(inputs, labels=labels)
    assert other.training
    assert not torch.nn.modules.module._global_forward_pre_hooks


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_teacher_of_another_dtype_is_called_in_its_own(dtype: torch.dtype, wrapped: bool) -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    teacher: nn.Module = copy.deepcopy(model).to(dtype) if wrapped else nn.Linear(inputs.shape[1], 3).to(dtype)
    model.attach_teacher(teacher)
    assert model.train()(inputs, labels=labels).loss.isfinite()


def test_a_teacher_that_answers_with_probabilities_is_told() -> None:
    # Trap: their softmax is nearly uniform, whatever the teacher knows.
    model, inputs, labels = model_and_batch(TAUGHT)
    logits = torch.randn(len(inputs), 3)
    model.attach_teacher(lambda inputs, **context: logits.softmax(-1))
    with pytest.warns(UserWarning, match="sum to 1, as probabilities do"):
        model.train()(inputs, labels=labels)
    model(inputs, labels=labels)  # once
    for fits in (logits, logits.log_softmax(-1), logits.sigmoid()):
        model.attach_teacher(lambda inputs, fits=fits, **context: fits)
        model(inputs, labels=labels)


def test_the_teacher_is_neither_a_part_of_the_model_nor_saved(tmp_path) -> None:
    model, inputs, _ = model_and_batch(TAUGHT)
    names, settings = set(model.state_dict()), model.settings()
    model.attach_teacher(copy.deepcopy(model))
    assert set(model.state_dict()) == names
    assert model.settings() == settings
    assert len(list(model.parameters())) == len(names)
    ponder.save(model, tmp_path)
    other, _, _ = model_and_batch(FinalStep())
    ponder.load(other, tmp_path)
    with refused("objective", "teacher"):
        other.train()(inputs, labels=labels_for("classification", 6))
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert copied(inputs, labels=labels_for("classification", 6)).loss.isfinite()


def test_without_a_teacher_the_remedy_is_named_and_one_can_be_taken_away() -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    with refused("objective", "teacher") as caught:
        model(inputs, labels=labels)
    assert "attach_teacher" in str(caught.value)
    model.attach_teacher(copy.deepcopy(model))
    model(inputs, labels=labels)
    model.attach_teacher(None)
    with refused("objective", "teacher"):
        model(inputs, labels=labels)


def test_teachers_that_cannot_teach_are_refused() -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    with refused("teacher", "the model itself"):
        model.attach_teacher(model)
    with refused("teacher", "str", type_error=True):
        model.attach_teacher("bert-base-uncased")
    model.attach_teacher(lambda inputs, **context: torch.zeros(6, 7))
    with refused("teacher", "(6, 7)"):
        model(inputs, labels=labels)
    model.attach_teacher(lambda inputs, **context: {"logits": torch.zeros(6, 3)})
    with refused("teacher", "dict", type_error=True):
        model(inputs, labels=labels)


def test_a_teacher_of_another_task_is_refused_whatever_its_shape() -> None:
    class Focal(ponder.tasks.Classification):
        name = "focal"

    student = wrap(make_toy("stacked"), task="classification")
    for task in ("multilabel", "regression"):
        with refused("teacher", "'classification'", f"'{task}'"):
            student.attach_teacher(wrap(make_toy("stacked"), task=task))
    assert not student.has_teacher
    for task in ("classification", None, Focal(), lambda outputs, labels: outputs[:, 0]):
        student.attach_teacher(wrap(make_toy("stacked"), task=task, outputs=3))
        assert student.has_teacher


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rows", [slice(None), slice(2, 3)])
def test_a_teacher_whose_outputs_are_not_finite_is_refused(value: float, rows: slice) -> None:
    model, inputs, labels = model_and_batch(TAUGHT)
    taught = torch.zeros(6, 3)
    taught[rows] = value
    model.attach_teacher(lambda inputs, **context: taught)
    for _ in range(2):  # and stays so, until it is mended
        with refused("teacher", f"infinity in {len(range(6)[rows])} of the first 6 rows"):
            model(inputs, labels=labels)
    taught.zero_()
    taught[:, 1] = -torch.inf  # a class that is excluded
    assert model(inputs, labels=labels).loss.isfinite()


def test_all_numbers_of_a_teacher_have_to_be_finite() -> None:
    model, inputs, _ = model_and_batch(TAUGHT, task="regression")
    with torch.no_grad():
        taught = torch.zeros_like(model.eval()(inputs).outputs)
    taught[2, 0] = -torch.inf  # no class that is excluded
    model.attach_teacher(lambda inputs, **context: taught)
    with refused("teacher", "1 of the first 6 rows"):
        model.train()(inputs, labels=torch.zeros_like(taught))


class PerPosition(nn.Linear):
    def forward(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden)


def test_what_a_teacher_says_at_padding_may_be_anything() -> None:
    taught = torch.zeros(2, 5, 3)
    taught[1, 3:] = torch.nan
    model = ponder.PonderWrapper(
        PerPosition(4, 4),
        2,
        head=nn.Linear(4, 3),
        readout=lambda hidden: hidden,
        task="token_classification",
        padding=ponder.Padding(),
    )
    model.objective = TAUGHT
    model.attach_teacher(lambda inputs, **context: taught)
    labels = torch.tensor([[-100, 1, 2, 0, 1], [1, 2, 0, -100, -100]])
    mask = (~taught.isnan().any(-1)).long()
    assert model.train()(torch.randn(2, 5, 4), labels=labels, attention_mask=mask).loss.isfinite()
    taught[1] = torch.nan
    model.attach_teacher(lambda inputs, **context: taught)
    with refused("teacher", "1 of the first 2 rows"):
        model(torch.randn(2, 5, 4), labels=labels, attention_mask=mask)


# Signals


@pytest.mark.parametrize("signal", ["confidence", "energy", "margin", "negative_entropy"])
def test_numbers_have_no_confidence_and_the_remedy_is_the_halting_distribution(signal: str) -> None:
    model, inputs, labels = model_and_batch(FinalStep(), task="regression")
    model.progress = Progress(1, 2)
    with refused("signal", "regression") as caught:
        model.objective = SimulatedExits(signal=signal)
    assert "signal='halting'" in str(caught.value)
    model.objective = SimulatedExits(signal="halting")
    assert model(inputs, labels=labels).loss.isfinite()


def test_the_halting_distribution_needs_a_lambda_head() -> None:
    with refused("objective", "SimulatedExits"):
        wrap(make_toy("stacked"), lambda_head=None, prior=None, objective=SimulatedExits(signal="halting"))


def test_the_weights_of_the_last_of_training_lie_at_the_exits() -> None:
    """With a sharp β, the loss is that of the step at which each row leaves, averaged over the thresholds."""
    model, _, _ = model_and_batch(SimulatedExits(thresholds=1, sharpness=1e4))
    inputs, labels = make_toy("stacked").batch(60)[0] * torch.linspace(0.0, 2.0, 60)[:, None], torch.arange(60) % 3
    model.progress = Progress(1, 1)
    out = model(inputs, labels=labels)
    sure = out.trajectory.outputs.softmax(-1).amax(-1)[:, :-1]
    threshold = (sure.min() + sure.max()) / 2
    left = [next((n for n, s in enumerate(row) if s > threshold), sure.shape[1]) for row in sure]
    assert len(set(left)) > 1
    losses = [-out.trajectory.outputs[i, n].log_softmax(-1)[labels[i]] for i, n in enumerate(left)]
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: SimulatedExits(thresholds=0), "thresholds"),
        (lambda: SimulatedExits(thresholds=2.5), "thresholds"),
        (lambda: SimulatedExits(sharpness=-1.0), "sharpness"),
        (lambda: SimulatedExits(signal="loss"), "signal"),
        (lambda: objectives.SignalCalibration(margin=-0.1), "margin"),
        (lambda: objectives.SignalCalibration(signal="halting"), "signal"),
        (lambda: objectives.Alignment(weight=float("nan")), "weight"),
        (lambda: Distillation(teacher="nobody"), "teacher"),
        (lambda: Stage(FinalStep(), train="head"), "train"),
        (lambda: Stage(FinalStep(), teacher="me"), "teacher"),
        (lambda: Stage(FinalStep(), early_heads="first"), "early_heads"),
    ],
)
def test_bad_hyper_parameters_are_refused(make, argument: str) -> None:
    with refused(argument):
        make()


def test_alternating_takes_objectives() -> None:
    with refused("odd", "str", type_error=True):
        Alternating(FinalStep(), "final-step")


# Stages


def test_early_heads_start_as_copies_of_the_last_one() -> None:
    heads = PerStep(nn.Linear(WIDTH, 3) for _ in range(3))
    before = heads.heads[0].weight.clone()
    start_heads(Stage(FinalStep()), heads)
    assert torch.equal(heads.heads[0].weight, before)
    start_heads(Stage(FinalStep(), early_heads="last"), heads)
    assert all(torch.equal(each.weight, heads.heads[-1].weight) for each in heads.heads)
    assert heads.heads[0].weight is not heads.heads[-1].weight
    start_heads(Stage(FinalStep(), early_heads="last"), nn.Linear(WIDTH, 3))  # a shared head is the last one


def test_stages_come_back_from_json_and_so_do_those_of_the_version_before() -> None:
    stage = Stage(TAUGHT, teacher="previous", early_heads="last")
    assert Stage.from_dict(stage.to_dict()) == stage
    old = {"objective": {"name": "final-step"}, "train": "early_heads"}
    assert Stage.from_dict(old) == Stage(FinalStep(), train="early_heads")


def test_the_previous_stage_teaches_as_a_frozen_copy_that_holds_no_gradients() -> None:
    model, inputs, labels = model_and_batch(FinalStep())
    model(inputs, labels=labels).loss.backward()
    model.start_stage(Stage(TAUGHT, teacher="previous", early_heads="last"))
    teacher = model._teacher.module
    assert teacher is not model
    assert not teacher.training
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    before = {name: weight.clone() for name, weight in teacher.state_dict().items()}
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    model(inputs, labels=labels).loss.backward()
    optimiser.step()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    model.start_stage(Stage(TAUGHT, teacher="previous"))
    assert model._teacher.module._teacher is None  # teachers do not pile up
