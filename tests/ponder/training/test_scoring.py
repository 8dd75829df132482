"""The score of held-out data is that of a recorded run: the same rows, the same tokens, the same answers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, tasks
from ponder.analysis.metrics import as_metric
from ponder.analysis.sweeps import measure
from ponder.training.scoring import HeldOut, Score
from tests.ponder.checks import refused

LENGTHS = [3, 5, 2, 5, 4, 1, 3, 5]
ROWS, LONGEST, OUTPUTS = len(LENGTHS), max(LENGTHS), 4
MASK = torch.arange(LONGEST) < torch.tensor(LENGTHS)[:, None]
POLICY = policies.FixedStep(2)


class Scaled(nn.Module):
    """Other answers at each step, at padding too."""

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return 3.0 * hidden.roll(1, -1)


def wrap(task: Any) -> ponder.PonderWrapper:
    return ponder.PonderWrapper(
        [Scaled() for _ in range(3)], head=nn.Identity(), task=task, readout=ponder.readouts.identity, policy=POLICY
    ).eval()


def material(task: str) -> tuple[ponder.PonderWrapper, Tensor, Tensor, dict[str, Tensor]]:
    """A model, inputs, labels and context; some rows, tokens and labels have none."""
    g = torch.Generator().manual_seed(0)
    width = 2 if task == "span" else OUTPUTS
    positions = task in ("span", "token_classification")
    inputs = torch.randn(ROWS, *[LONGEST] * positions, width, generator=g)
    labels = {
        "classification": torch.randint(OUTPUTS, (ROWS,), generator=g),
        "multilabel": torch.randint(2, (ROWS, OUTPUTS), generator=g).float(),
        "regression": torch.randn(ROWS, OUTPUTS, generator=g),
        "token_classification": torch.randint(OUTPUTS, (ROWS, LONGEST), generator=g),  # at padding too
        "span": (torch.rand(ROWS, 2, generator=g) * torch.tensor(LENGTHS)[:, None]).long(),
    }[task]
    if task != "regression":
        labels[:2] = -100
    if labels.dim() == 1:
        labels[2] = -100
    if labels.dim() > 1 and task != "regression":
        labels[3, 1] = labels[4, 0] = -100
    if positions:
        inputs = torch.where(MASK.unsqueeze(-1), inputs, 50.0)
    return wrap(task), inputs, labels, {"attention_mask": MASK.long()} if positions else {}


def held_out(task: str, size: int, metric: Any = None) -> Score:
    model, inputs, labels, context = material(task)
    parts = []
    for start in range(0, ROWS, size):
        end = start + size
        longest = max(LENGTHS[start:end]) if context else None
        cut = [each[start:end, :longest] for each in (inputs, *context.values())]
        own = labels[start:end, :longest] if task == "token_classification" else labels[start:end]
        parts.append((cut[0], {**dict(zip(context, cut[1:], strict=True)), "labels": own}))
    return HeldOut(parts, metric, None).score(model, POLICY, torch.device("cpu"))


def recorded(task: str) -> ponder.Trajectory:
    model, inputs, labels, context = material(task)
    with torch.no_grad():
        return model.unroll(inputs, labels=labels, **context)


TASKS = ["classification", "multilabel", "regression", "token_classification", "span"]


@pytest.mark.parametrize("size", [1, 3, ROWS])
@pytest.mark.parametrize("task", TASKS)
def test_a_metric_is_given_the_same_of_held_out_data_and_of_a_record(task: str, size: int) -> None:
    given: list[tuple[Tensor, Tensor]] = []

    def metric(outputs: Tensor, labels: Tensor) -> float:
        given.append((outputs, labels))
        return 0.5

    assert held_out(task, size, metric).score == 0.5
    assert measure(recorded(task), POLICY, metric=metric).score == 0.5
    (outputs, labels), (of_record, labels_of_record) = given
    width = outputs.shape[1]
    if task == "span":  # what is beyond all texts of the batches is no position of them
        assert bool((of_record[:, width:] == tasks.Span.blank).all())
        of_record = of_record[:, :width]
    assert torch.equal(outputs, of_record)
    assert torch.equal(labels, labels_of_record)
    known = {"regression": ROWS, "token_classification": int(MASK[2:].sum()) - 2}.get(task, ROWS - 2)
    assert len(outputs) == len(labels) == (known - 1 if task == "classification" else known)


@pytest.mark.parametrize("size", [1, 3, ROWS])
@pytest.mark.parametrize("task", TASKS)
def test_its_own_score_is_that_of_rows_tokens_or_labels(task: str, size: int) -> None:
    outputs, labels = recorded(task).outputs[:, 1], recorded(task).labels
    assert labels is not None
    known = labels != -100
    if task == "regression":
        expected = -(outputs - labels).square().mean()
    elif task == "span":  # of rows: no answer begins or ends at padding
        right = outputs.masked_fill(~MASK.unsqueeze(-1), -math.inf).argmax(1) == labels
        expected = (right | ~known).all(1)[known.any(1)].double().mean()
    elif task == "multilabel":
        expected = ((outputs > 0) == (labels > 0.5))[known].double().mean()
    else:
        known &= MASK if task == "token_classification" else True
        expected = (outputs.argmax(-1) == labels)[known].double().mean()
    assert held_out(task, size).score == pytest.approx(float(expected))


def test_tokens_of_rows_that_say_who_they_are_are_scored_where_a_stem_makes_their_mask() -> None:
    def stem(inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return inputs, {"attention_mask": (inputs[..., 0] != 50.0).long()}

    model, inputs, labels, _ = material("token_classification")
    model = ponder.PonderWrapper(
        [Scaled() for _ in range(3)],
        head=nn.Identity(),
        task="token_classification",
        stem=stem,
        readout=ponder.readouts.identity,
    )
    found = [
        HeldOut([(inputs, {"labels": labels, **more})], None, None).score(model, POLICY, torch.device("cpu"))
        for more in ({}, {"row_ids": torch.arange(ROWS) + 7})
    ]
    assert found[0] == found[1]


def test_spans_are_scored_as_a_record_of_their_rows_is() -> None:
    trajectory = recorded("span")
    labelled = trajectory.map(lambda tensor: tensor[2:])
    assert held_out("span", ROWS).score == held_out("span", 1).score == measure(labelled, POLICY).score


def test_tokens_are_scored_by_what_the_task_predicts() -> None:
    class Cautious(tasks.TokenClassification):
        """An entity only where it is much likelier than none."""

        name = "cautious"

        def predictions(self, outputs: Tensor) -> Tensor:
            best = outputs[..., 1:].max(-1)
            return torch.where(best.values > outputs[..., 0] + 8.0, best.indices + 1, 0)

    _, inputs, labels, context = material("token_classification")
    model = wrap(Cautious())
    with torch.no_grad():
        given = Cautious().predictions(model(inputs, **context).outputs)
    known = (labels != -100) & MASK
    scored = HeldOut([(inputs, {**context, "labels": labels})], None, None).score(model, POLICY, torch.device("cpu"))
    assert scored.score == float((given == labels)[known].double().mean())
    assert not torch.equal(given[known], (inputs.roll(2, -1)).argmax(-1)[known])


@pytest.mark.parametrize("task", ["token_classification", "multilabel"])
def test_the_score_of_rows_of_several_answers_is_called_exact_match(task: str) -> None:
    trajectory = recorded(task).map(lambda tensor: tensor[2:])
    curve = trajectory.sweep(policies.FixedStep)
    assert curve.metric == "exact_match"
    points = [trajectory.sweep(policies.FixedStep, metric=name).points for name in ("accuracy", "exact_match")]
    assert points == [curve.points] * 2  # by the name of before, too
    assert "exact_match" in ponder.calibrate(trajectory, policies.FixedStep, at_most_steps=2.0).statement
    with refused("metric", "'exact_match' with the task 'classification'"):
        recorded("classification").sweep(policies.FixedStep, metric="exact_match")


def test_labels_that_fit_no_task_are_handed_as_they_are_where_none_is_named() -> None:
    """A mean and a variance, or several classes a row, of a model whose meaning its owner alone knows."""
    outputs, ids = torch.randn(6, 3, 2), torch.arange(6)
    for labels in (torch.randn(6), torch.randint(2, (6, 2)), torch.full((6, 5), -100), torch.ones(6, 2) > 0):
        made = as_metric(lambda outputs, labels: labels.numel(), ponder.Trajectory(outputs, None, ids, labels=labels))
        assert made is not None
        trajectory = ponder.Trajectory(outputs, None, ids, labels=labels)
        assert made.of_exits(trajectory, torch.ones(6, dtype=torch.long)) == labels.numel()
    labels = torch.tensor([0, 1, -100, 0, 1, -100])
    trajectory = ponder.Trajectory(outputs, None, ids, labels=labels)
    assert measure(trajectory, POLICY, metric=lambda outputs, labels: len(outputs) + len(labels)).score == 8


class TestEpochs:
    """What `fit` makes of scores."""

    def fit(self, model: Any, batch: Any, **options: Any) -> Any:
        pytest.importorskip("accelerate", reason="accelerate is not installed")
        options = {"epochs": 6, "lr": 1e-2, "head_lr": None, "seed": 0, "patience": 2, "progress": False, **options}
        return ponder.fit(model, [batch], held_out=[batch], **options)

    def model(self, task: str, outputs: int = 1, head: Any = nn.Linear) -> ponder.PonderWrapper:
        torch.manual_seed(0)
        return ponder.PonderWrapper(
            nn.Linear(8, 8), num_steps=2, head=head(8, outputs), task=task, objective=objectives.FinalStep()
        )

    def test_many_labels_of_which_all_are_never_right_tell_epochs_apart(self) -> None:
        inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
        labels = (inputs @ torch.randn(8, 40, generator=torch.Generator().manual_seed(2)) > 0).float()
        report = self.fit(self.model("multilabel", 40), (inputs, labels))
        assert report.metric == "accuracy"
        assert report.stages[0].best_epoch > 3
        assert 0.5 < report.score < 1.0

    @pytest.mark.parametrize("metric", [None, lambda outputs, labels: math.nan])
    def test_a_score_that_is_nan_in_every_epoch_is_refused(self, metric: Any) -> None:
        class Diverging(nn.Linear):
            def forward(self, inputs: Tensor) -> Tensor:
                return super().forward(inputs) if self.training or metric else super().forward(inputs) * math.nan

        model = self.model("regression", head=Diverging)
        with refused("held_out" if metric is None else "metric", "NaN in all 3 epochs of fit"):
            self.fit(model, (torch.randn(4, 8), torch.randn(4)), metric=metric)
        assert not model.training

    def test_a_metric_that_is_no_number_is_named(self) -> None:
        for found in (None, torch.zeros(2)):
            with refused("metric", "one number", type(found).__name__, type_error=True):
                self.fit(self.model("regression"), (torch.randn(4, 8), torch.randn(4)), metric=lambda *_, it=found: it)

    def test_a_score_of_minus_infinity_is_one(self) -> None:
        report = self.fit(self.model("regression"), (torch.randn(4, 8), torch.randn(4)), metric=lambda *_: -math.inf)
        assert (report.stages[0].best_epoch, report.score) == (1, -math.inf)
