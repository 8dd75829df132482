"""Tasks: losses against plain Python, and labels that do not fit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import ponder
from ponder import policies
from ponder.parts.tasks import (
    Classification,
    Custom,
    Multilabel,
    Regression,
    Task,
    TaskName,
    TokenClassification,
    as_task,
    infer_task,
    task_named,
)
from tests.ponder import oracles
from tests.ponder.checks import refused
from tests.toys import make_toy, wrap


def example_of(task: str, rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    if task == "classification":
        return torch.randn(rows, 4, generator=g) * 3, torch.randint(0, 4, (rows,), generator=g)
    if task == "regression":
        return torch.randn(rows, 2, generator=g), torch.randn(rows, 2, generator=g)
    if task == "multilabel":
        return torch.randn(rows, 3, generator=g) * 3, torch.randint(0, 2, (rows, 3), generator=g).float()
    labels = torch.randint(0, 4, (rows, 5), generator=g)
    labels[torch.rand(rows, 5, generator=g) < 0.4] = -100
    return torch.randn(rows, 5, 4, generator=g), labels


@pytest.mark.parametrize("name", ["classification", "regression", "multilabel", "token_classification"])
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_losses_equal_the_oracle(name: str, rows: int, seed: int) -> None:
    outputs, labels = example_of(name, rows, seed)
    task = as_task(name)
    losses = task.losses(outputs, task.check(outputs, labels))
    expected = [oracles.task_loss(name, o, y) for o, y in zip(outputs.tolist(), labels.tolist(), strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["classification", "regression", "multilabel", "token_classification"])
def test_float64_stays_float64(name: str) -> None:
    outputs, labels = example_of(name, 3, 0)
    outputs = outputs.double().requires_grad_()
    task = as_task(name)
    labels = task.check(outputs, labels.double() if labels.is_floating_point() else labels)
    assert task.losses(outputs, labels).dtype == torch.float64
    assert torch.autograd.gradcheck(lambda o: task.losses(o, labels), outputs)


def test_one_number_per_example_in_either_shape() -> None:
    task, outputs = as_task("regression"), torch.tensor([[1.0], [2.0]])
    for labels in (torch.tensor([0.0, 4.0]), torch.tensor([[0.0], [4.0]]), torch.tensor([0, 4])):
        assert task.losses(outputs, task.check(outputs, labels)).tolist() == [1.0, 4.0]
    flat = outputs[:, 0]
    assert task.losses(flat, task.check(flat, torch.tensor([0.0, 4.0]))).tolist() == [1.0, 4.0]


def test_rows_without_a_labelled_token_cost_nothing() -> None:
    task, outputs = as_task("token_classification"), torch.randn(2, 3, 4)
    labels = torch.tensor([[-100, -100, -100], [1, -100, 2]])
    losses = task.losses(outputs, task.check(outputs, labels))
    assert losses[0].item() == 0.0
    assert losses[1].item() > 0.0


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "words"),
    [
        ("classification", (4, 3), torch.zeros(3).long(), ("shape (4,)", "shape (3,)")),
        ("classification", (4, 3), torch.zeros(4, 3).long(), ("shape (4,)", "shape (4, 3)")),
        ("classification", (4, 3), torch.zeros(4, 3), ("sum to 1", "between 0 and 0")),
        ("classification", (4, 3), torch.tensor([[2.0, -1.0, 0.0]] * 4), ("sum to 1", "between -1 and 2")),
        ("classification", (4, 3), torch.tensor([0, 1, 2, 3]), ("classes 0 … 2", "between 0 and 3")),
        ("classification", (4, 3), torch.tensor([0, 1, 2, -1]), ("classes 0 … 2", "between -1 and 2")),
        ("classification", (4, 3), torch.tensor([0, 1, -100, -101]), ("classes 0 … 2", "between -101 and 1")),
        ("regression", (4, 1), torch.zeros(3), ("shape (4,)", "shape (3,)")),
        ("regression", (4, 2), torch.zeros(4), ("shape (4, 2)", "shape (4,)")),
        ("regression", (4, 1), torch.tensor([0.0, math.nan, 1.0, math.inf]), ("finite numbers", "2 of 4 rows")),
        ("regression", (4, 2), torch.tensor([[0.0, math.nan]] + [[0.0, 1.0]] * 3), ("finite numbers", "1 of 4 rows")),
        ("multilabel", (4, 3), torch.zeros(4), ("shape (4, 3)", "shape (4,)")),
        ("multilabel", (4, 3), torch.full((4, 3), 2.0), ("0 or 1",)),
        ("token_classification", (4, 5, 3), torch.zeros(4).long(), ("shape (4, 5)", "shape (4,)")),
        ("token_classification", (4, 5, 3), torch.full((4, 5), 3), ("classes 0 … 2", "between 3 and 3")),
        (lambda o, y: o.sum(-1), (4, 3), torch.zeros(3), ("shape (4,)", "shape (3,)")),
    ],
)
def test_labels_of_the_wrong_shape_or_range_are_refused(task, outputs, labels, words) -> None:
    with refused("labels", *words):
        as_task(task).check(torch.zeros(outputs), labels)


@pytest.mark.parametrize(
    ("task", "outputs", "dtype"),
    [
        ("classification", (4, 3), torch.float32),
        ("classification", (4, 3), torch.bool),
        ("classification", (4, 3), torch.complex64),
        ("regression", (4, 1), torch.complex64),
    ],
)
def test_labels_of_the_wrong_type_are_refused(task: str, outputs, dtype: torch.dtype) -> None:
    with refused("labels", str(dtype), type_error=True):
        as_task(task).check(torch.zeros(outputs), torch.zeros(4, dtype=dtype))


@pytest.mark.parametrize(
    ("task", "shape"),
    [
        ("classification", (4, 1)),
        ("classification", (4, 2, 3)),
        ("multilabel", (4,)),
        ("token_classification", (4, 3)),
    ],
)
def test_outputs_that_do_not_fit_the_task_are_refused(task: str, shape: tuple[int, ...]) -> None:
    with refused("outputs of the head", str(shape)):
        as_task(task).check(torch.zeros(shape), torch.zeros(4).long())


@pytest.mark.parametrize("losses", [torch.tensor(1.0), torch.zeros(4, 1), torch.zeros(3), 1.0])
def test_a_users_loss_is_one_number_per_example(losses: object) -> None:
    task = as_task(lambda outputs, labels: losses)
    with refused("task", "one loss per example, (4,)", "reduction='none'"):
        task.losses(torch.zeros(4, 2), torch.zeros(4))


def test_outputs_of_positions_are_those_of_tokens_and_spans() -> None:
    assert {name for name in get_args(TaskName) if task_named(name).per_position} == {"token_classification", "span"}


def test_tasks_are_found_by_name_and_inferred() -> None:
    with refused("task", "classification", "'classify'"):
        as_task("classify")
    assert as_task(None) is None
    regression = as_task("regression")
    assert isinstance(regression, Task)
    assert as_task(regression) is regression
    for labels, shape, name in (
        (torch.zeros(2).long(), (2, 3), "classification"),
        (torch.zeros(2), (2, 3), "regression"),
        (torch.zeros(2).long(), (2, 1), "regression"),
        (torch.zeros(2, 4).long(), (2, 4, 3), "token_classification"),
    ):
        assert infer_task(torch.zeros(shape), labels).name == name


@pytest.mark.parametrize("name", ["classification", "regression", "multilabel", "token_classification"])
@pytest.mark.parametrize("masked", [False, True])
def test_distances_against_a_plain_loop(name: str, masked: bool) -> None:
    """The share of parts that are others; the greatest difference of numbers; padding does not count."""
    generator = torch.Generator().manual_seed(4)
    shape = (30, 5, 3) if name == "token_classification" else (30, 3)
    task = as_task(name)
    assert task is not None
    one, other = (task.predictions(torch.randn(shape, generator=generator)) for _ in range(2))
    mask = torch.rand(30, 5, generator=generator) < 0.6 if masked and name == "token_classification" else None
    if mask is not None:
        mask[:, 0] = True
    found = task.distance(one, other, mask=mask)
    assert found.shape == (30,)
    for row, distance in enumerate(found.tolist()):
        a, b = (list(part) if isinstance(part, list) else [part] for part in (one[row].tolist(), other[row].tolist()))
        pairs = [(x, y) for i, (x, y) in enumerate(zip(a, b, strict=True)) if mask is None or bool(mask[row, i])]
        if name == "regression":
            expected = max(abs(x - y) for x, y in pairs)
        else:
            expected = sum(x != y for x, y in pairs) / len(pairs)
        assert distance == pytest.approx(expected)
    assert bool((task.distance(one, one, mask=mask) == 0).all())
    if not task.numbers:
        assert torch.equal(found == 0, task.same(one, other, mask=mask))


class Numbers(Regression):
    """Several numbers at each position."""

    per_token = True


@pytest.mark.parametrize("task", [Numbers(), TokenClassification()], ids=lambda task: type(task).__name__)
@pytest.mark.parametrize("width", [3, 5])  # as wide as long: a mask laid along the parts would pass in silence
def test_several_answers_at_a_position_are_compared_at_real_positions(task: Task, width: int) -> None:
    generator = torch.Generator().manual_seed(6)
    shape = (20, 4, 5, width) if task.numbers else (20, 4, 5, width, 2)
    outputs = torch.randn(shape, generator=generator)
    outputs[1::2, :3, :2] = outputs[1::2, -1:, :2]
    lengths = torch.randint(1, 4, (20,), generator=generator)
    mask = torch.arange(5) < lengths[:, None]
    agreed = task.agreement(outputs, mask)
    given = task.predictions(outputs)
    same = task.same(given[:, 0], given[:, -1], tolerance=0.5, mask=mask)
    apart = task.distance(given[:, 0], given[:, -1], mask=mask)
    assert 0 < int(agreed[:, 0].sum()) < 20
    for row, length in enumerate(lengths.tolist()):
        real = given[row : row + 1, :, :length]
        assert torch.equal(agreed[row : row + 1], task.agreement(outputs[row : row + 1, :, :length]))
        assert bool(same[row]) == bool(task.same(real[:, 0], real[:, -1], tolerance=0.5))
        assert apart[row].item() == pytest.approx(task.distance(real[:, 0], real[:, -1]).item())


def test_a_mask_of_other_positions_than_there_are_hides_none() -> None:
    one, other = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)
    other[1, 2] = 1.0
    mask = torch.zeros(2, 6, dtype=torch.bool)
    assert Numbers().same(one, other, tolerance=0.5, mask=mask).tolist() == [True, False]


@pytest.mark.parametrize("kind", [Classification, Multilabel, TokenClassification])
def test_smoothing_keeps_what_a_task_of_ones_own_adds(kind: type[Any]) -> None:
    """Class weights were gone in silence where a Trainer smoothed the labels."""

    class Weighted(kind):
        def __init__(self, weights: list[float], label_smoothing: float = 0.0) -> None:
            super().__init__(label_smoothing)
            self.weights = weights

    task = Weighted([1.0, 100.0])
    smoothed = task.smoothed(0.1)
    assert (type(smoothed), smoothed.weights, smoothed.label_smoothing) == (Weighted, [1.0, 100.0], 0.1)
    assert task.label_smoothing == 0.0
    with refused("label_smoothing"):
        task.smoothed(1.0)


WEIGHTS = (0.5, 1.0, 2.0, 10.0)


def weighed(row: list[float], label: int, smoothing: float) -> float:
    """The smoothed cross-entropy of a label, times the weight of its class."""
    logs = oracles.log_softmax(row)
    return WEIGHTS[label] * -((1 - smoothing) * logs[label] + smoothing * sum(logs) / len(logs))


@given(st.integers(1, 6), st.sampled_from([0.0, 0.2]), st.integers(0, 10**6))
def test_the_loss_of_a_row_is_multiplied_by_the_weight_of_its_class(rows: int, smoothing: float, seed: int) -> None:
    """PyTorch weighs the smoothing of a row by all classes: with weights (1, 20) every row taught the second."""
    outputs, labels = example_of("classification", rows, seed)
    labels[0] = -100
    task = Classification(weight=WEIGHTS).smoothed(smoothing)
    pairs = zip(outputs.tolist(), labels.tolist(), strict=True)
    expected = [weighed(row, label, smoothing) if label != -100 else 0.0 for row, label in pairs]
    assert task.losses(outputs, task.check(outputs, labels)).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(st.integers(1, 6), st.sampled_from([0.0, 0.2]), st.integers(0, 10**6))
def test_a_soft_label_costs_so_much_of_what_each_class_costs(rows: int, smoothing: float, seed: int) -> None:
    outputs, hard = example_of("classification", rows, seed)
    soft = (outputs.flip(0) / 3).softmax(-1)
    task = Classification(smoothing, weight=WEIGHTS)
    expected = [
        sum(share * weighed(row, label, smoothing) for label, share in enumerate(shares))
        for row, shares in zip(outputs.tolist(), soft.tolist(), strict=True)
    ]
    assert task.losses(outputs, task.check(outputs, soft)).tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    certain = torch.nn.functional.one_hot(hard, 4).float()
    torch.testing.assert_close(task.losses(outputs, certain), task.losses(outputs, hard))


def test_weights_of_other_classes_than_there_are() -> None:
    with refused("weight", "finite number > 0"):
        Classification(weight=(1.0, 0.0))
    with refused("weight", "each of the 4 classes", "2 numbers"):
        Classification(weight=(1.0, 2.0)).check(*example_of("classification", 3, seed=0))


def test_weights_of_classes_are_taken_in_their_order() -> None:
    for weight in ([1.0, 3.0], torch.tensor([1.0, 3.0]), np.array([1.0, 3.0])):
        assert Classification(weight=weight).weight == (1.0, 3.0)
    for weight in ({1.0, 3.0}, {0: 1.0}, (number for number in (1.0, 3.0)), "13"):
        with refused("weight", type(weight).__name__, type_error=True):
            Classification(weight=weight)  # type: ignore[arg-type]


def focal(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    log_p = outputs.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -((1 - log_p.exp()) ** 2) * log_p


def huber(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.smooth_l1_loss(outputs, labels, reduction="none").mean(-1)


READS_CLASSES = [
    lambda: policies.Entropy(0.2),
    lambda: policies.Tempered(policies.Confidence(0.9), (1.0,)),
    lambda: policies.Voting(2),
    lambda: policies.Gate(3, ("confidence",), "logistic", ((0.0, 0.0), (0.0, 0.0))),
]


@pytest.mark.parametrize("policy", READS_CLASSES)
def test_a_loss_of_ones_own_says_whether_outputs_are_classes(policy: Callable[[], policies.ExitPolicy]) -> None:
    """Rows of numbers left by the entropy of a softmax over them, in silence."""

    def wrapped(task: Any) -> ponder.PonderWrapper:
        steps = [torch.nn.Linear(4, 4) for _ in range(3)]
        return ponder.PonderWrapper(steps, head=torch.nn.Linear(4, 2), task=task, policy=policy())

    with pytest.warns(UserWarning, match=r"nobody said .* logits of classes.*Custom\(loss, classes=True\)"):
        model = wrapped(huber)
    with pytest.warns(UserWarning, match="nobody said"):
        model.eval().unroll(torch.randn(5, 4)).replay(policy())
    for unsaid in (policies.LastStep(), policies.Patience(1)):
        model.policy = unsaid
    with refused("policy", "'custom'"):
        wrapped(Custom(huber, classes=False))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = wrapped(Custom(focal, classes=True))
    assert model.train()(torch.randn(5, 4), labels=torch.tensor([0, 1, 0, 1, 0])).loss.isfinite()


def test_the_answers_of_a_loss_on_numbers_are_numbers(tmp_path: Any) -> None:
    steps = [torch.nn.Linear(4, 4) for _ in range(3)]
    model = ponder.PonderWrapper(steps, head=torch.nn.Linear(4, 2), task=Custom(huber, classes=False)).eval()
    with refused("tolerance", "positive number"):
        model.policy = policies.Patience(1)
    model.policy = policies.Patience(1, tolerance=0.1)
    trajectory = model.unroll(torch.randn(9, 4))
    plain = ponder.Trajectory(trajectory.outputs, None, trajectory.row_ids, task="regression")
    assert torch.equal(trajectory.agreement(), plain.agreement())
    trajectory.save(tmp_path / "numbers")
    with refused("policy", "'custom'"):
        ponder.Trajectory.load(tmp_path / "numbers").replay(policies.Confidence(0.9))


@pytest.mark.parametrize(("task", "told"), [(None, False), (Custom(focal, classes=True), False), (focal, True)])
def test_what_was_said_is_told_by_the_file_of_a_trajectory(task: Any, told: bool, tmp_path: Any) -> None:
    model = ponder.PonderWrapper(torch.nn.Linear(4, 4), 3, head=torch.nn.Linear(4, 2), task=task).eval()
    model.unroll(torch.randn(9, 4)).save(tmp_path / "file")
    again = ponder.Trajectory.load(tmp_path / "file")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        again.replay(policies.Confidence(0.9))
    assert bool(seen) == told


@pytest.mark.parametrize("classes", ["no", 0])
def test_what_outputs_are_is_said_by_true_or_false(classes: Any) -> None:
    with refused("classes", "True or False", type_error=True):
        Custom(huber, classes=classes)


def test_a_class_over_custom_says_itself_what_outputs_are() -> None:
    class Focal(Custom):
        classes = True

        def __init__(self) -> None:
            super().__init__(focal)

    class Below(Focal):
        pass

    assert not Focal().supposed
    assert not Below().supposed
    assert Custom(focal).supposed


def test_numbers_are_not_looked_at_where_they_have_no_values() -> None:
    """Trap: the look at NaN ended exports, and estimates of memory."""
    task = Regression()
    assert task.check(torch.randn(5, 1, device="meta"), torch.randn(5, device="meta")).shape == (5,)
    with FakeTensorMode():
        assert task.check(torch.randn(5, 1), torch.randn(5)).shape == (5,)


def test_a_task_of_tokens_that_takes_labels_for_its_teacher_is_refused_when_the_model_is_built() -> None:
    class Before(TokenClassification):
        def distillation_losses(self, student: Any, teacher: Any, temperature: float, labels: Any = None) -> Any:
            return super().distillation_losses(student, teacher, temperature)

    class Now(TokenClassification):
        def distillation_losses(self, *given: Any, **told: Any) -> Any:
            return super().distillation_losses(*given, **told)

    ponder.objectives.Distillation().check_task(Now())
    with refused("task", "mask=None", "labels"):
        ponder.objectives.Distillation().check_task(Before())


def test_a_task_that_is_assigned_is_looked_at() -> None:
    # Trap: nn.Module takes any name, and keeps a module as a part, so that training went on without it.
    model = ponder.PonderWrapper(
        nn.Linear(4, 4), 3, head=nn.Linear(4, 3), policy=policies.Entropy(0.3), task="classification"
    )
    with refused("task", "'no such task'"):
        model.task = "no such task"
    with refused("policy", "Entropy", "'regression'"):
        model.task = "regression"
    assert isinstance(model.task, Classification)
    model.policy = policies.FixedStep(2)
    model.task = nn.MSELoss(reduction="none")
    assert isinstance(model.task, Custom)
    assert "task" not in model._modules
    outside = nn.Linear(3, 1)
    with pytest.warns(UserWarning, match="the loss uses a Linear whose weights learn"):
        model.task = lambda outputs, labels: outside(outputs).squeeze(-1) - labels
    model.task = None
    assert model.spec.task.name == task_named(None).name


def test_a_task_that_the_objective_cannot_learn_is_refused() -> None:
    model = ponder.PonderWrapper(
        nn.Linear(4, 4), 3, head=nn.Linear(4, 3), objective=ponder.objectives.SimulatedExits(), task="classification"
    )
    with refused("signal", "the task 'regression'"):
        model.task = "regression"
    assert isinstance(model.task, Classification)


def test_a_module_is_no_policy() -> None:
    model = ponder.PonderWrapper(nn.Linear(4, 4), 3, head=nn.Linear(4, 3))
    with refused("policy", "Linear", type_error=True):
        model.policy = nn.Linear(2, 2)
    assert "policy" not in model._modules


def test_numbers_of_a_model_that_names_no_task_are_no_classes_to_its_policy() -> None:
    """Rows left by the probabilities of a softmax over numbers, in silence, which a named task refuses."""
    toy = make_toy("shared")
    inputs, _ = toy.batch(6)
    numbers = torch.randn(6, 3)
    model = wrap(toy, task=None, outputs=3, policy=policies.Confidence(0.9))
    told = r"names no task, and Confidence\(.*Name the task: task='regression'"
    with pytest.warns(UserWarning, match=told):
        model.train()(inputs, labels=numbers)
    with pytest.warns(UserWarning, match=told):
        model.eval()(inputs, labels=numbers)
    model(inputs, labels=torch.tensor([0, 1, 2, 0, 1, 2]))  # these are classes
    model(inputs, labels=numbers, policy=policies.FixedStep(2))  # and this reads none
