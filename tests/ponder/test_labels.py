"""Labels as the ecosystem has them: −100 for none, smoothed labels, soft labels; each against plain Python."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import ponder
from ponder import calibration, objectives, policies, priors, tasks
from ponder.objectives import Ponder, SignalCalibration
from ponder.parts.tasks import as_task
from tests.ponder import oracles
from tests.ponder.checks import refused

SMOOTH = 0.2


def soft_cross_entropy(logits: list[float], target: list[float]) -> float:
    return -math.fsum(t * log_p for t, log_p in zip(target, oracles.log_softmax(logits), strict=True))


def smoothed(label: int, classes: int) -> list[float]:
    return [SMOOTH / classes + (1.0 - SMOOTH) * (place == label) for place in range(classes)]


def built(task: Any, outputs: int = 3, objective: Any = None, **options: Any) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        nn.Linear(8, 8),
        num_steps=4,
        head=nn.Linear(8, outputs),
        lambda_head=ponder.LambdaHead(8),
        prior=priors.Geometric(0.3),
        objective=objective or Ponder(0.5),
        task=task,
        **options,
    )


def ponder_loss(losses: list[list[float]], trajectory: ponder.Trajectory, beta: float = 0.5) -> float:
    """The mean over the rows of `losses` whose row is not None, by the oracles alone."""
    prior = priors.Geometric(0.3)(4).pmf.tolist()
    rows = []
    for each, logits in zip(losses, trajectory.hazard_logits.tolist(), strict=True):
        if each is not None:
            p = oracles.pmf(logits)
            rows.append(math.fsum(a * b for a, b in zip(p, each, strict=True)) + beta * oracles.kl(p, prior))
    return math.fsum(rows) / max(len(rows), 1)


class TestSmoothing:
    @given(st.integers(1, 5), st.integers(0, 10**6))
    def test_classes(self, rows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        outputs, labels = torch.randn(rows, 4, generator=g) * 3, torch.randint(0, 4, (rows,), generator=g)
        found = tasks.Classification(SMOOTH).losses(outputs, labels).tolist()
        pairs = zip(outputs.tolist(), labels.tolist(), strict=True)
        assert found == pytest.approx([soft_cross_entropy(o, smoothed(y, 4)) for o, y in pairs], rel=1e-4, abs=1e-5)

    @given(st.integers(1, 5), st.integers(0, 10**6))
    def test_tokens(self, rows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        outputs, labels = torch.randn(rows, 5, 4, generator=g), torch.randint(0, 4, (rows, 5), generator=g)
        labels[torch.rand(rows, 5, generator=g) < 0.4] = -100
        found = tasks.TokenClassification(SMOOTH).losses(outputs, labels).tolist()
        expected = []
        for o, y in zip(outputs.tolist(), labels.tolist(), strict=True):
            kept = [soft_cross_entropy(a, smoothed(b, 4)) for a, b in zip(o, y, strict=True) if b != -100]
            expected.append(math.fsum(kept) / max(len(kept), 1))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)

    @given(st.integers(1, 5), st.integers(0, 10**6))
    def test_sets_of_labels(self, rows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        outputs, labels = torch.randn(rows, 3, generator=g), torch.randint(0, 2, (rows, 3), generator=g).float()
        found = tasks.Multilabel(SMOOTH).losses(outputs, labels).tolist()
        eased = (labels * (1 - SMOOTH) + SMOOTH / 2).tolist()
        pairs = zip(outputs.tolist(), eased, strict=True)
        assert found == pytest.approx([oracles.task_loss("multilabel", o, y) for o, y in pairs], rel=1e-4, abs=1e-5)

    def test_the_objective_sees_it_at_every_step_and_the_lambda_head_learns_from_it(self) -> None:
        model, inputs, labels = built(tasks.Classification(SMOOTH)), torch.randn(5, 8), torch.randint(3, (5,))
        out = model.train()(inputs, labels=labels)
        steps = [
            [soft_cross_entropy(o, smoothed(y, 3)) for o in row]
            for row, y in zip(out.trajectory.outputs.tolist(), labels.tolist(), strict=True)
        ]
        assert out.loss.item() == pytest.approx(ponder_loss(steps, out.trajectory), rel=1e-5)
        out.loss.backward()
        assert all(bool(weight.grad.any()) for weight in model.lambda_head.parameters())

    def test_a_share_that_is_none_and_tasks_without_classes_are_refused(self) -> None:
        for share in (-0.1, 1.0, math.nan):
            with refused("label_smoothing", "number in [0, 1)"):
                tasks.Classification(share)
        for name in ("regression", "span"):
            with refused("label_smoothing", name):
                as_task(name).smoothed(0.1)
        with refused("label_smoothing", "custom"):
            as_task(lambda outputs, labels: labels).smoothed(0.1)
        assert as_task("multilabel").smoothed(0.1).label_smoothing == 0.1
        assert as_task("multilabel").label_smoothing == 0.0


class TestSoftLabels:
    @given(st.integers(1, 5), st.integers(0, 10**6))
    def test_losses_equal_the_oracle(self, rows: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        outputs, labels = torch.randn(rows, 4, generator=g), torch.rand(rows, 4, generator=g).softmax(-1)
        task = as_task("classification")
        found = task.losses(outputs, task.check(outputs, labels)).tolist()
        pairs = list(zip(outputs.tolist(), labels.tolist(), strict=True))
        assert found == pytest.approx([soft_cross_entropy(o, y) for o, y in pairs], rel=1e-4, abs=1e-5)
        eased = tasks.Classification(SMOOTH).losses(outputs, labels).tolist()
        mixed = [soft_cross_entropy(o, [SMOOTH / 4 + (1 - SMOOTH) * share for share in y]) for o, y in pairs]
        assert eased == pytest.approx(mixed, rel=1e-4, abs=1e-5)

    def test_certain_ones_are_hard_labels(self) -> None:
        model, inputs, hard = built("classification"), torch.randn(6, 8), torch.randint(3, (6,))
        soft = nn.functional.one_hot(hard, 3).to(torch.float16)
        for mode in (model.train, model.eval):
            mode()
            assert model(inputs, labels=soft).loss.item() == pytest.approx(model(inputs, labels=hard).loss.item())

    def test_what_is_right_is_their_most_probable_class(self, tmp_path) -> None:
        model, inputs = built("classification", objective=Ponder(0.1) + SignalCalibration()).eval(), torch.randn(40, 8)
        soft = torch.randn(40, 3).softmax(-1)
        trajectory = model.unroll(inputs, labels=soft)
        hard = model.unroll(inputs, labels=soft.argmax(-1))
        assert torch.equal(trajectory.correct(), hard.correct())
        assert calibration.fit_temperatures(trajectory) == calibration.fit_temperatures(hard)
        for one, other in zip(trajectory.reliability(), hard.reliability(), strict=True):
            assert repr(one) == repr(other)
        trajectory.save(tmp_path / "soft.safetensors")
        assert torch.equal(ponder.Trajectory.load(tmp_path / "soft.safetensors").labels, soft)
        model.train()(inputs, labels=soft).loss.backward()

    def test_a_model_that_names_no_task_still_takes_floats_for_numbers(self) -> None:
        model = built(None, objective=objectives.FinalStep())
        out = model.train()(torch.randn(4, 8), labels=torch.full((4, 3), 7.0))
        assert out.loss.item() == pytest.approx(((out.outputs - 7.0) ** 2).mean().item(), rel=1e-5)


class TestNoLabel:
    """A row without a label counts for nothing: not in the mean, not in the divergence, not in the gradient."""

    @pytest.mark.parametrize(
        ("task", "labels"),
        [
            ("classification", torch.tensor([0, -100, 2, 1, -100])),
            ("multilabel", torch.tensor([[1.0, 0, 1], [-100] * 3, [0, 1, 0], [1, 1, 1], [-100] * 3])),
        ],
    )
    def test_the_loss_is_that_of_the_others(self, task: str, labels: torch.Tensor) -> None:
        model, inputs = built(task), torch.randn(5, 8)
        kept = torch.tensor([0, 2, 3])
        for mode in (model.train, model.eval):
            mode()
            found, expected = model(inputs, labels=labels), model(inputs[kept], labels=labels[kept])
            assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
            gradients = [torch.autograd.grad(out.loss, model.head.weight)[0] for out in (found, expected)]
            torch.testing.assert_close(*gradients)

    def test_against_the_oracle(self) -> None:
        model, labels = built("classification"), [2, -100, 0, -100]
        out = model.train()(torch.randn(4, 8), labels=torch.tensor(labels))
        steps = [
            None if y == -100 else [oracles.task_loss("classification", o, y) for o in row]
            for row, y in zip(out.trajectory.outputs.tolist(), labels, strict=True)
        ]
        assert out.loss.item() == pytest.approx(ponder_loss(steps, out.trajectory), rel=1e-5)

    def test_one_label_of_several_may_be_unknown(self) -> None:
        task, outputs = tasks.Multilabel(), torch.randn(2, 3)
        labels = task.check(outputs, torch.tensor([[1.0, -100, 0], [0, 0, -100]]))
        expected = [
            oracles.task_loss("multilabel", [o for o, y in zip(row, given, strict=True) if y != -100], known)
            for row, given, known in zip(outputs.tolist(), labels.tolist(), ([1.0, 0.0], [0.0, 0.0]), strict=True)
        ]
        assert task.losses(outputs, labels).tolist() == pytest.approx(expected, rel=1e-5)
        assert task.correct(outputs[:, None], labels).shape == (2, 1)
        assert len(task.confidences(outputs[:, None], labels)[0]) == 4

    def test_a_batch_without_any_costs_nothing(self) -> None:
        model = built("classification")
        for mode in (model.train, model.eval):
            mode()
            loss = model(torch.randn(3, 8), labels=torch.full((3,), -100)).loss
            assert loss.item() == 0.0
            loss.backward()
            assert not model.head.weight.grad.any()

    def test_tokens_and_spans(self) -> None:
        tokens = torch.tensor([[-100, 1, 2], [-100] * 3])
        task, outputs = as_task("token_classification"), torch.randn(2, 3, 4)
        assert task.labelled(task.check(outputs, tokens)).tolist() == [True, False]
        span, outputs = as_task("span"), torch.randn(2, 5, 2)
        assert span.labelled(span.check(outputs, torch.tensor([[1, 2], [9, -100]]))).tolist() == [True, False]

    def test_an_objective_over_the_whole_batch_refuses_them(self) -> None:
        model = built("classification", objective=SignalCalibration())
        with refused("labels", "1 of 3 rows"):
            model.train()(torch.randn(3, 8), labels=torch.tensor([0, 1, -100]))

    def test_what_counts_rows_as_right_or_wrong_refuses_them_and_confidences_leave_them_out(self) -> None:
        trajectory = built("classification").eval().unroll(torch.randn(4, 8), labels=torch.tensor([0, 1, -100, 2]))
        with refused("labels", "-100 for 1 of 4 rows"):
            trajectory.correct()
        task = as_task("classification")
        assert task.confidences(trajectory.outputs, trajectory.labels)[1].shape == (3, 4)
        assert len(calibration.fit_temperatures(trajectory)) == 4

    @pytest.mark.parametrize("task", ["multilabel", "token_classification", "span"])
    def test_rows_without_one_are_no_right_answers_in_any_task(self, task: str) -> None:
        outputs = torch.randn(4, 3, 5, 2) if task != "multilabel" else torch.randn(4, 3, 5)
        labels = torch.zeros(4, 2 if task == "span" else 5, dtype=torch.long)
        labels[:3] = -100
        trajectory = ponder.Trajectory(outputs, torch.randn(4, 3), torch.arange(4), labels=labels, task=task)
        for ask in (
            trajectory.correct,
            lambda: trajectory.sweep(policies.FixedStep),
            lambda: ponder.control_risk(trajectory, policies.Quantile, risk="error", level=0.5),
            lambda: calibration.fit_gate(trajectory, target="error"),
            lambda: calibration.fit_gate(trajectory, target="gain", delta=0.1),
        ):
            with refused("labels", "-100 for 3 of 4 rows"):
                ask()
        assert len(calibration.fit_gate(trajectory, target="agreement").tables) == 2
        known = trajectory.map(lambda tensor: tensor[3:])
        assert known.correct().shape == (1, 3)

    def test_a_position_of_a_span_without_one_counts_for_nothing(self) -> None:
        span, outputs = as_task("span"), torch.tensor([[[3.0, 0.0], [0.0, 3.0], [0.0, 0.0]]]).unsqueeze(1)
        assert span.correct(outputs, torch.tensor([[0, -100]])).tolist() == [[True]]
        assert span.correct(outputs, torch.tensor([[0, 2]])).tolist() == [[False]]
        assert span.confidences(outputs, torch.tensor([[-100, 1]]))[1].tolist() == [[True]]


def test_a_class_that_is_excluded_by_a_logit_of_minus_infinity_has_no_share_of_a_soft_label() -> None:
    outputs = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    loss = as_task("classification").losses(outputs, torch.tensor([[0.25, 0.0, 0.75]]))
    rest = oracles.log_softmax([0.0, 1.0])
    assert loss.tolist() == pytest.approx([-0.25 * rest[0] - 0.75 * rest[1]])
    loss.sum().backward()
    assert outputs.grad[0].tolist() == pytest.approx([math.exp(rest[0]) - 0.25, 0.0, math.exp(rest[1]) - 0.75])
