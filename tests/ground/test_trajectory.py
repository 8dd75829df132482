"""Trajectories: joining, taking, saving, and what calibration reads of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ponder import policies, tasks
from ponder._utils.trees import alike
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.trajectory import Trajectory

ROWS = 8
STEPS = 4
LENGTH = 5
CLASSES = 3
TASKS = ("classification", "regression", "multilabel", "token_classification", "span", None)


def make(
    task: str | None = "classification", length: int = LENGTH, masked: bool = True
) -> Trajectory:
    """A trajectory with everything that there can be."""
    meaning = tasks.task_named(task)
    last = (
        (length, 2 if task == "span" else CLASSES)
        if meaning.per_position
        else (1 if meaning.numbers else CLASSES,)
    )
    labels = {
        "regression": torch.randn(ROWS, 1),
        "multilabel": torch.randint(0, 2, (ROWS, CLASSES)).float(),
        "token_classification": torch.randint(0, CLASSES, (ROWS, length)),
        "span": torch.tensor([[0, 1]]).expand(ROWS, 2),
    }.get(str(task), torch.arange(ROWS) % CLASSES)
    mask = torch.arange(length) < 2 + torch.arange(ROWS).remainder(length - 1)[:, None]
    return Trajectory(
        torch.randn(ROWS, STEPS, *last),
        torch.randn(ROWS, STEPS),
        torch.arange(ROWS),
        features=torch.randn(ROWS, STEPS, *(last[:1] if meaning.per_position else ()), 6),
        labels=labels,
        task=task,
        mask=mask if meaning.per_position and masked else None,
        policy_context={"budget": torch.arange(ROWS) % STEPS},
        weights="0" * 64,
    )


def same(one: Trajectory, other: Trajectory) -> bool:
    settings = ("task", "training", "weights", "content_ids")
    return alike(one.tensors(), other.tensors()) and all(
        getattr(one, s) == getattr(other, s) for s in settings
    )


@pytest.mark.parametrize("task", TASKS)
def test_files_hold_all_of_it(task: str | None, tmp_path: Path) -> None:
    trajectory = make(task)
    for given in (
        trajectory,
        replace(trajectory, training=True, content_ids=True, weights=None, features=None),
    ):
        given.save(tmp_path / "run.safetensors")
        again = Trajectory.load(tmp_path / "run.safetensors")
        assert same(again, given)
        assert again.meaning.name == given.meaning.name
        assert (
            f"({ROWS} rows, {STEPS} steps, outputs {tuple(given.outputs.shape[2:])} with hazard_logits, "
            in repr(again)
        )
    tiny = Trajectory(trajectory.outputs[:0], None, torch.arange(0))
    tiny.save(tmp_path / "none.safetensors")
    assert len(Trajectory.load(tmp_path / "none.safetensors")) == 0


def test_outputs_that_are_features_too_are_saved_twice(tmp_path: Path) -> None:
    outputs = torch.randn(3, 2, 4)
    Trajectory(outputs, None, torch.arange(3), features=outputs).save(tmp_path / "run.safetensors")
    assert torch.equal(Trajectory.load(tmp_path / "run.safetensors").features, outputs)


def test_tasks_of_ones_own_are_saved_as_what_they_derive_from(tmp_path: Path) -> None:
    class Focal(tasks.Classification):
        name = "focal"

    base = make()
    for task, expected, numbers in (
        (Focal(), "classification", False),
        (tasks.Custom(), "custom", False),
        (tasks.Custom(classes=False), "custom", True),
    ):
        replace(base, task=task).save(tmp_path / "run.safetensors")
        again = Trajectory.load(tmp_path / "run.safetensors")
        assert (again.meaning.name, again.meaning.numbers) == (expected, numbers)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    from ponder._utils.seals import write_sealed

    write_sealed(tmp_path / "other.safetensors", "other", {}, {"outputs": torch.ones(1)})
    with pytest.raises(CheckpointError, match="no trajectory"):
        Trajectory.load(tmp_path / "other.safetensors")


@pytest.mark.parametrize("task", TASKS)
def test_batches_of_several_lengths_join(task: str | None) -> None:
    parts = [make(task, LENGTH), make(task, LENGTH - 2), make(task, LENGTH - 1, masked=False)]
    joined = Trajectory.cat(parts)
    assert (len(joined), joined.task, joined.weights) == (3 * ROWS, task, "0" * 64)
    if joined.meaning.per_position:  # beyond the end of the second batch
        assert bool(
            (joined.outputs[ROWS : 2 * ROWS, :, LENGTH - 2 :] == joined.meaning.blank).all()
        )
    for part, start in zip(parts, range(0, 3 * ROWS, ROWS), strict=True):
        own = joined.map(lambda tensor, start=start: tensor[start : start + ROWS])  # type: ignore[misc]
        for policy in (
            policies.Quantile(0.6),
            policies.Patience(1, tolerance=0.5),
            policies.LastStep(),
        ):
            assert torch.equal(own.replay(policy).exit_step, part.replay(policy).exit_step)
        assert np.array_equal(own.agreement(), part.agreement())
        np.testing.assert_allclose(own.score_table(), part.score_table(), atol=1e-6)


def test_only_records_of_one_model_join() -> None:
    one = make()
    for other in (
        replace(one, weights="1" * 64),
        replace(one, features=None),
        replace(one, task="multilabel"),
    ):
        with pytest.raises(ArgumentError):
            Trajectory.cat([one, other])
    assert Trajectory.cat([one, replace(one, training=True)]).training


def test_map_takes_rows_and_keeps_integers() -> None:
    trajectory = make("token_classification")
    half = trajectory.map(Tensor.half)
    kinds = {name: tensor.dtype for name, tensor in half.tensors().items()}
    kept = {
        "row_ids": torch.int64,
        "labels": torch.int64,
        "policy_context.budget": torch.int64,
        "mask": torch.bool,
    }
    assert kinds == {
        **dict.fromkeys(("outputs", "hazard_logits", "features"), torch.float16),
        **kept,
    }
    some = trajectory.map(lambda tensor: tensor[2:4])
    assert len(some) == 2
    assert some.policy_context is not None
    assert some.policy_context["budget"].tolist() == [2, 3]
    grown = replace(trajectory, outputs=trajectory.outputs.clone().requires_grad_())
    assert not grown.detach().outputs.requires_grad


def test_tensors_must_be_of_the_same_rows_and_steps() -> None:
    outputs = torch.randn(3, 2, 4)
    for hazards, ids in ((torch.randn(3, 3), torch.arange(3)), (None, torch.arange(4))):
        with pytest.raises(ArgumentError, match="of the same rows and steps"):
            Trajectory(outputs, hazards, ids)


# -- policies ----------------------------------------------------------------------------------------------------


class Watch(policies.ExitPolicy):
    """Keeps all rows, and what it was shown of them."""

    def __init__(self, needs: frozenset[str]) -> None:
        self.needs = needs
        self.seen: list[policies.StepView] = []

    def decide(self, step: policies.StepView, state: Any) -> Any:
        self.seen.append(step)
        return False, state


@pytest.mark.parametrize("task", ["classification", "token_classification", "span"])
def test_views_are_what_the_loop_shows(task: str) -> None:
    trajectory = make(task)
    watch = Watch(frozenset({"hazard", "output", "features", "context"}))
    trajectory.replay(watch)
    views = list(trajectory.views(watch.needs))
    assert len(views) == STEPS
    for one, other in zip(views, watch.seen, strict=False):
        assert alike(dict(one.readings), dict(other.readings))
        assert alike(
            (one.index, one.mask, one.policy_context),
            (other.index, other.mask, other.policy_context),
        )
        torch.testing.assert_close(one.cdf, trajectory.halting.cdf(one.index))
    assert list(next(iter(trajectory.views(frozenset()))).readings) == []


def test_scores_give_the_exits_under_every_threshold() -> None:
    trajectory = make()
    for policy in (policies.Confidence(0.6), policies.Quantile(0.4), policies.Margin(0.3)):
        scores = policy.scores(trajectory)
        assert scores.shape == (ROWS, STEPS)
        assert bool((scores[:, -1] == np.inf).all())
        value = getattr(policy, policy.tunable.field)
        exits = (scores.astype(np.float32) > np.float32(value)).argmax(1) + 1
        assert np.array_equal(exits, trajectory.exit_steps(policy))


def test_what_was_not_recorded_cannot_be_replayed() -> None:
    bare = Trajectory(torch.randn(3, 2, 4), None, torch.arange(3))
    with pytest.raises(ArgumentError, match="hazard"):
        bare.replay(policies.Quantile(0.5))
    with pytest.raises(ArgumentError, match="features"):
        bare.replay(Watch(frozenset({"features"})))
    with pytest.raises(PonderError, match="no Lambda head"):
        _ = bare.halting
    with pytest.raises(PonderError, match="ExitPolicy"):
        bare.replay("quantile")  # type: ignore[arg-type]
    none = bare.map(lambda tensor: tensor[:0])
    assert none.replay(policies.Confidence(0.5)).exit_step.shape == (0,)


def test_replays_of_sure_rows_exit_at_once() -> None:
    outputs = torch.zeros(2, 3, 2)
    outputs[0, :, 1] = 1e4  # TRAP: raw exponentials give NaN here
    trajectory = Trajectory(outputs, None, torch.arange(2))
    assert trajectory.replay(policies.Entropy(0.1)).exit_step.tolist() == [1, 3]
    assert trajectory.exit_steps(policies.Confidence(0.9)).tolist() == [1, 3]


# -- answers -----------------------------------------------------------------------------------------------------


def test_nan_is_no_answer() -> None:
    trajectory = make()
    trajectory.outputs[0, 1] = torch.nan
    trajectory.outputs[1, -1] = torch.nan
    agrees = trajectory.agreement()
    correct = trajectory.correct()
    assert not agrees[0, 1]
    assert agrees[1].tolist() == [False] * (STEPS - 1) + [True]
    assert not correct[0, 1]
    assert not correct[1, -1]
    losses = trajectory.losses(lambda outputs, labels: (outputs.argmax(-1) != labels).float())
    assert losses[0, 1] == losses[1, -1] == 1.0
    assert np.array_equal(losses, 1.0 - correct)
    table = trajectory.score_table()
    assert table is not None
    assert table[0, 1] == 0.0
    numbers = make("regression")
    numbers.outputs[0, 1] = torch.nan
    assert np.isnan(numbers.score_table()[0, 1])  # 0 would be the best


@pytest.mark.parametrize("task", TASKS)
def test_scores_of_exits_are_means_of_tables(task: str | None) -> None:
    trajectory = make(task)
    table = trajectory.score_table()
    name = trajectory.score_name()
    several = task in ("multilabel", "token_classification")
    expected = (
        "negative_squared_error"
        if task == "regression"
        else "exact_match"
        if several
        else "accuracy"
    )
    assert name == expected
    assert trajectory.score_name(name) == name
    steps = np.arange(ROWS) % STEPS + 1
    outputs, labels = trajectory.answers_at(steps)
    assert len(outputs) == len(labels)
    if task == "regression":
        assert table is not None
        assert table[np.arange(ROWS), steps - 1].mean() == pytest.approx(
            -float(((outputs - labels) ** 2).mean()), abs=1e-6
        )
    if task == "classification":
        assert table is not None
        assert (
            table[np.arange(ROWS), steps - 1].mean()
            == (outputs.argmax(-1) == labels).float().mean()
        )
    if task == "token_classification":
        assert len(outputs) == int(trajectory.mask.sum())  # type: ignore[union-attr]
    assert trajectory.score_table(lambda outputs, labels: 0.5) is None
    with pytest.raises(ArgumentError, match="or a callable"):
        trajectory.score_name("bleu")


def test_labels_show_the_task_of_a_model_that_names_none() -> None:
    outputs = torch.randn(4, 3, 1)
    numbers = Trajectory(outputs, None, torch.arange(4), labels=torch.randn(4))
    assert numbers.meaning.name == "regression"
    assert numbers.batch.task.classes  # as the policies of the model saw it
    with pytest.raises(ArgumentError, match="right or wrong"):
        numbers.correct()
    with pytest.raises(ArgumentError, match=r"Record them: model.unroll\(inputs, labels=labels\)"):
        Trajectory(outputs, None, torch.arange(4), task="regression").score_table()
