"""Tasks against plain loops: losses, predictions, agreement, correctness, scores and what a teacher teaches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ponder import tasks
from ponder.errors import ArgumentError, PonderError
from ponder.tasks import IGNORED_LABEL, Custom, Task, as_task, infer_task, task_named

ROWS = 6
STEPS = 4
LENGTH = 5
CLASSES = 3
NAMES = ("classification", "regression", "multilabel", "token_classification", "span")
MASK = torch.arange(LENGTH) < torch.tensor([[5], [3], [1], [4], [2], [5]])


def sample(name: str) -> tuple[Tensor, Tensor]:
    """Outputs of all steps and labels; some tokens, labels and ends have none."""
    if name == "classification":
        return torch.randn(ROWS, STEPS, CLASSES), torch.arange(ROWS) % CLASSES
    if name == "regression":
        return torch.randn(ROWS, STEPS, 2), torch.randn(ROWS, 2)
    if name == "multilabel":
        labels = torch.randint(0, 2, (ROWS, CLASSES)).float()
        labels[0, 0] = IGNORED_LABEL
        return torch.randn(ROWS, STEPS, CLASSES), labels
    if name == "token_classification":
        labels = torch.randint(0, CLASSES, (ROWS, LENGTH)).masked_fill(~MASK, IGNORED_LABEL)
        return torch.randn(ROWS, STEPS, LENGTH, CLASSES), labels
    return torch.randn(ROWS, STEPS, LENGTH, 2), torch.tensor(
        [[0, 4], [1, 2], [0, 0], [0, IGNORED_LABEL], [1, 1], [2, 3]]
    )


def cells(
    name: str, outputs: Tensor, labels: Tensor, row: int, step: int
) -> list[tuple[list[float], float]]:
    """The logits and the label of each answer of a row at a step, in plain Python; for spans, over the positions."""
    given = outputs[row, step].tolist()
    label = labels[row].tolist()
    if name == "classification":
        return [(given, label)]
    if name == "token_classification":
        return list(zip(given, label, strict=True))
    if name == "span":
        return [([position[end] for position in given], label[end]) for end in (0, 1)]
    return [([value], each) for value, each in zip(given, label, strict=True)]


def log_softmax(values: list[float]) -> list[float]:
    top = max(values)
    total = math.log(math.fsum(math.exp(value - top) for value in values)) + top
    return [value - total for value in values]


def loss_of(name: str, cell: tuple[list[float], float], smoothing: float = 0.0) -> float:
    values, label = cell
    if name == "regression":
        return (values[0] - label) ** 2
    if name == "multilabel":
        target = label * (1 - smoothing) + smoothing / 2
        positive = -math.log1p(math.exp(-values[0]))
        return -(target * positive + (1 - target) * (positive - values[0]))
    log_p = log_softmax(values)
    return -(1 - smoothing) * log_p[int(label)] - smoothing / len(log_p) * math.fsum(log_p)


def answer(name: str, values: list[float]) -> Any:
    if name == "regression":
        return values[0]
    return values[0] > 0 if name == "multilabel" else values.index(max(values))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", NAMES)
def test_losses_equal_a_plain_loop(name: str, smoothing: float) -> None:
    task, (outputs, labels) = task_named(name), sample(name)
    if smoothing:
        if name in ("regression", "span"):
            with pytest.raises(ArgumentError, match="only classes can be smoothed"):
                task.smoothed(smoothing)
            return
        task = task.smoothed(smoothing)
    checked = task.check(outputs[:, 0], labels)
    for step in range(STEPS):
        losses = task.losses(outputs[:, step], checked)
        for row in range(ROWS):
            known = [c for c in cells(name, outputs, labels, row, step) if c[1] != IGNORED_LABEL]
            count = 2 if name == "span" else len(known)
            expected = math.fsum(loss_of(name, cell, smoothing) for cell in known) / count
            assert losses[row].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(
        torch.autograd.functional.jacobian(lambda x: task.losses(x, checked), outputs[:, 0])[0, 1],
        torch.zeros_like(outputs[0, 0]),
    )


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("name", NAMES)
def test_answers_equal_a_plain_loop(name: str, library: str) -> None:
    task, (outputs, labels) = task_named(name), sample(name)
    outputs[::2] = outputs[::2, -1:] + 0.1 * outputs[::2]  # rows that settle
    if name == "token_classification":
        outputs[:, -1] = torch.where(
            MASK[..., None], outputs[:, -1], -outputs[:, -1]
        )  # padding does not
    outputs[1, 0].fill_(torch.nan)
    checked = task.check(outputs[:, 1], labels)
    masked: Any = MASK if task.per_position else None
    read: Any = task.without_padding(outputs, masked)
    if library == "numpy":
        outputs, read, checked = (x.numpy() for x in (outputs, read, checked))
        masked = None if masked is None else masked.numpy()
    agrees = task.agreement(read, masked)
    answered = task.answered(outputs[:, 0], masked)
    assert [bool(one) for one in answered] == [row != 1 for row in range(ROWS)]
    right = task.correct(read, checked) if task.comparable else None
    table = task.scores(read, checked)
    same = task.same(
        task.predictions(read[:, 1]), task.predictions(read[:, -1]), tolerance=0.05, mask=masked
    )
    apart = task.distance(task.predictions(read[:, 1]), task.predictions(read[:, -1]), mask=masked)
    plain = torch.as_tensor(read)
    for row in range(ROWS):
        counted = MASK[row].tolist() if task.per_token else [True] * 9
        for step in range(1, STEPS):
            now, last = (
                [answer(name, values) for values, _ in cells(name, plain, labels, row, at)]
                for at in (step, STEPS - 1)
            )
            pairs = [(a, b) for a, b, counts in zip(now, last, counted, strict=False) if counts]
            assert bool(agrees[row, step]) == all(a == b for a, b in pairs)
            known = [
                (answer(name, v), label)
                for v, label in cells(name, plain, labels, row, step)
                if label != IGNORED_LABEL
            ]
            if right is not None:
                assert bool(right[row, step]) == all(a == label for a, label in known)
                assert float(table[row, step]) == float(right[row, step])
            else:
                expected = -math.fsum((a - label) ** 2 for a, label in known) / len(known)
                assert float(table[row, step]) == pytest.approx(expected, abs=1e-6)
            if step == 1:
                gaps = [abs(a - b) if task.numbers else float(a != b) for a, b in pairs]
                assert float(apart[row]) == pytest.approx(
                    max(gaps) if task.numbers else sum(gaps) / len(gaps)
                )
                assert bool(same[row]) == (max(gaps) < (0.05 if task.numbers else 0.5))


def test_nan_at_padding_is_no_missing_answer() -> None:
    outputs, _ = sample("token_classification")
    outputs = torch.where(MASK[:, None, :, None], outputs, torch.nan)[:, 0]
    task = task_named("token_classification")
    assert task.answered(outputs, MASK).tolist() == [True] * ROWS
    assert task.answered(outputs).tolist() == [row in (0, 5) for row in range(ROWS)]


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_teaches_its_answer_and_no_padding(name: str) -> None:
    task, (outputs, _) = task_named(name), sample(name)
    student = outputs[:, 0]
    teacher = outputs[:, 1]
    mask = MASK if task.per_position else None
    losses = task.distillation_losses(student, teacher, 2.0, mask)
    assert losses.shape == (ROWS,)
    assert bool((losses > -1e-6).all())
    assert bool((task.distillation_losses(teacher, teacher, 2.0, mask) <= losses).all())
    if name == "classification":
        p, q = (x.div(2.0).log_softmax(-1) for x in (teacher, student))
        torch.testing.assert_close(
            losses, 4.0 * F.kl_div(q, p, log_target=True, reduction="none").sum(-1)
        )
    if mask is not None:
        noise = torch.where(mask[..., None], student, torch.full_like(student, torch.nan))
        torch.testing.assert_close(task.distillation_losses(noise, teacher, 2.0, mask), losses)


def test_rows_without_a_label_count_for_nothing() -> None:
    for name in ("classification", "multilabel", "token_classification", "span"):
        task, (outputs, labels) = task_named(name), sample(name)
        labels[2] = IGNORED_LABEL
        given = outputs[:, 0].clone().requires_grad_()
        checked = task.check(given, labels)
        task.losses(given, checked).sum().backward()
        assert given.grad is not None
        assert bool((given.grad[2] == 0).all())
        labelled = task.labelled(checked)
        assert labelled.tolist() == [row != 2 for row in range(ROWS)]
        with pytest.raises(ArgumentError, match=r"a label for every row.*-100 for 1 of 6"):
            task.correct(outputs, checked)


def test_an_answer_that_was_cut_off_is_none() -> None:
    task = tasks.Span()
    outputs = torch.randn(2, LENGTH, 2)
    assert task.check(outputs, torch.tensor([[1, 7], [-1, 4]])).tolist() == [[1, -100], [-100, 4]]
    mask = torch.arange(LENGTH) < torch.tensor([[2], [5]])
    assert task.inside(torch.tensor([[1, 3], [2, 4]]), mask).tolist() == [[1, -100], [2, 4]]
    far = outputs.index_fill(1, torch.tensor([4]), 9.0)
    assert bool((task.predictions(task.without_padding(far, mask))[0] < 2).all())


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "message"),
    [
        (
            "classification",
            (4, 3),
            torch.zeros(4),
            r"labels: expected integers \(class indices\); got torch.float32",
        ),
        (
            "classification",
            (4, 3),
            torch.zeros(4, dtype=torch.bool),
            "got torch.bool.*task='regression'",
        ),
        (
            "classification",
            (4, 3),
            torch.tensor([0, 1, 2, 3]),
            "classes 0 … 2 .*got values between 0 and 3",
        ),
        (
            "classification",
            (4, 3),
            torch.tensor([[0], [1], [2], [0]]),
            r"shape \(4,\); got shape \(4, 1\)",
        ),
        (
            "classification",
            (4, 1),
            torch.zeros(4).long(),
            "outputs of the head.*at least 2 classes.*regression",
        ),
        ("classification", (4, 3), torch.ones(4, 3), r"got shape \(4, 3\).*another task"),
        ("regression", (4, 1), torch.zeros(3), r"shape \(4,\); got shape \(3,\)"),
        ("regression", (4, 2), torch.full((4, 2), torch.nan), "finite numbers"),
        ("multilabel", (4, 3), torch.full((4, 3), 2.0), "0 or 1"),
        ("token_classification", (4, 3), torch.zeros(4, 3).long(), "readout that keeps positions"),
        ("span", (4, 5, 2), torch.zeros(4, 2), "integers"),
    ],
)
def test_wrong_labels_are_named(
    name: str, outputs: tuple[int, ...], labels: Tensor, message: str
) -> None:
    with pytest.raises(PonderError, match=message):
        task_named(name).check(torch.zeros(outputs), labels)


def test_regression_takes_labels_with_and_without_their_dimension() -> None:
    task = tasks.Regression()
    for labels in (torch.arange(4), torch.arange(4.0)[:, None]):
        checked = task.check(torch.zeros(4, 1), labels)
        torch.testing.assert_close(task.losses(torch.zeros(4, 1), checked), torch.arange(4.0) ** 2)
        torch.testing.assert_close(
            task.scores(torch.zeros(4, 2, 1), checked)[:, 0], -(torch.arange(4.0).double() ** 2)
        )
    assert bool(task.labelled(torch.tensor([-100.0])))  # a number


def test_a_loss_of_ones_own() -> None:
    task = as_task(lambda outputs, labels: (outputs[:, 0] - labels).abs())
    assert isinstance(task, Custom)
    assert task.losses(torch.ones(3, 2), torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert (task.classes, task.numbers, task.metric, task.each_row_alone) == (
        True,
        False,
        None,
        False,
    )
    assert Custom(classes=False).numbers
    with pytest.raises(
        ArgumentError, match=r"one loss per example, \(3,\).*shape \(\).*reduction='none'"
    ):
        Custom(F.mse_loss).losses(torch.ones(3), torch.zeros(3))


def test_tasks_are_found_by_name() -> None:
    assert [task_named(name).name for name in NAMES] == list(NAMES)
    assert task_named(None).name == "classification"
    assert isinstance(task_named("focal"), Custom)
    assert as_task(None) is None
    own: Task = tasks.Multilabel(0.1)
    assert as_task(own) is own
    with pytest.raises(
        ArgumentError, match=r"one of classification, regression, .* got 'clasification'"
    ):
        as_task("clasification")
    shown = [
        infer_task(np.zeros(outputs), labels).name
        for outputs, labels in (
            ((2, 3), np.zeros(2, int)),
            ((2, 5, 3), np.zeros((2, 5), int)),
            ((2, 3), np.zeros(2)),
        )
    ]
    assert shown == ["classification", "token_classification", "regression"]


def test_tasks_decide_edge_cases() -> None:
    assert task_named("multilabel").predictions(torch.tensor([0.0, 0.1])).tolist() == [False, True]
    one = torch.tensor([[1.0], [1.0]])
    other = torch.tensor([[1.5], [1.25]])
    assert task_named("regression").same(one, other, tolerance=0.5).tolist() == [False, True]
