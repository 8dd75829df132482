"""Trajectories: joined, mapped, saved, loaded, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ponder
from ponder import Trajectory
from ponder.errors import CheckpointError, PonderError
from ponder.parts.tasks import Classification, Multilabel, Task
from ponder.policies import Bernoulli, Confidence, Patience, Quantile
from tests.ponder.checks import refused
from tests.toys import labels_for, make_toy, wrap

PARTS = ("outputs", "hazard_logits", "row_ids", "features", "labels")


def unrolled(size: int = 6, seed: int = 0, **options: Any) -> Trajectory:
    toy = make_toy("shared")
    inputs, _ = toy.batch(size, seed)
    options = {"labels": labels_for("classification", size), "keep_features": True, **options}
    with torch.no_grad():
        return wrap(toy).eval().unroll(inputs, row_ids=torch.arange(size) + 10 * seed, **options)


def assert_same(a: Trajectory, b: Trajectory) -> None:
    for name in PARTS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or (x.dtype == y.dtype and torch.equal(x, y)), name
    assert a.task == b.task
    for policy in (Quantile(0.5), Bernoulli(2), Patience(2), Confidence(0.7)):
        if a.hazard_logits is not None or "hazard" not in policy.needs:
            assert torch.equal(a.replay(policy).exit_step, b.replay(policy).exit_step)


def test_printed_it_says_what_it_holds_and_no_numbers() -> None:
    assert repr(Trajectory(torch.zeros(9, 4, 3), torch.zeros(9, 4), torch.arange(9))) == (
        "Trajectory(9 rows, 4 steps, outputs (3,) with hazard_logits, task None)"
    )


def bare() -> Trajectory:
    return Trajectory(torch.randn(3, 4, 2), None, torch.arange(3))


@pytest.mark.parametrize("make", [unrolled, bare, lambda: unrolled(0)], ids=["full", "bare", "empty"])
def test_round_trips(make, tmp_path) -> None:
    trajectory = make()
    for twin in (copy.deepcopy(trajectory), pickle.loads(pickle.dumps(trajectory))):
        assert_same(twin, trajectory)
    trajectory.save(tmp_path / "deep" / "run.safetensors")
    assert_same(Trajectory.load(tmp_path / "deep" / "run.safetensors"), trajectory)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["run.safetensors"]
    trajectory.save(str(tmp_path / "deep" / "run.safetensors"))


def test_a_slice_is_saved_as_its_rows(tmp_path) -> None:
    part = unrolled().map(lambda tensor: tensor[1:3])
    part.save(tmp_path / "part.safetensors")
    assert_same(Trajectory.load(tmp_path / "part.safetensors"), part)
    assert len(part) == 2


def test_rows_that_are_taken_and_numbers_of_another_type_are_two_calls() -> None:
    """Trap: outputs were in the new order and ids, masks and labels in the old one, where the shape was the same."""
    whole, turned = unrolled(4), torch.tensor([2, 0, 3, 1])
    for fn in (lambda t: t[turned].double(), lambda t: t.flip(0).half(), lambda t: t[:2].double(), lambda t: t / 2):
        with refused("fn", "torch.int64", "two calls of map", type_error=True):
            whole.map(fn)
    done = whole.map(lambda t: t[turned]).map(Tensor.double)
    assert done.row_ids.tolist() == whole.row_ids[turned].tolist()
    assert torch.equal(done.outputs, whole.outputs[turned].double())


def test_joined_batches_are_one_batch() -> None:
    a, b = unrolled(4, seed=0), unrolled(3, seed=1)
    whole = Trajectory.cat([a, b])
    assert len(whole) == 7
    assert whole.row_ids.tolist() == [0, 1, 2, 3, 10, 11, 12]
    for policy in (Quantile(0.5), Bernoulli(4), Patience(1), Confidence(0.6)):
        apart = torch.cat([a.replay(policy).exit_step, b.replay(policy).exit_step])
        assert torch.equal(whole.replay(policy).exit_step, apart)
    assert_same(Trajectory.cat([a]), a)
    assert_same(Trajectory.cat([a, unrolled(0)]), a)


def test_what_does_not_join() -> None:
    with refused("trajectories", "at least one"):
        Trajectory.cat([])
    with refused("trajectories", "one model"):
        Trajectory.cat([unrolled(), unrolled(keep_features=False)])
    with refused("trajectories", "over 4 steps", "over 5 steps"):
        Trajectory.cat([bare(), Trajectory(torch.zeros(3, 5, 2), None, torch.arange(3))])
    with refused("trajectories", "task 'regression'"):
        Trajectory.cat([bare(), Trajectory(torch.zeros(3, 4, 2), None, torch.arange(3), task="regression")])


def test_detached_from_the_graph() -> None:
    toy = make_toy("shared")
    trajectory = wrap(toy).eval().unroll(toy.batch(3)[0])
    assert trajectory.outputs.requires_grad
    detached = trajectory.detach()
    assert not detached.outputs.requires_grad
    assert not detached.hazard_logits.requires_grad
    assert detached.features is None
    exits = trajectory.replay(Quantile(0.5))
    assert exits.outputs.requires_grad


def test_replaying_changes_nothing() -> None:
    trajectory = unrolled()
    twin = copy.deepcopy(trajectory)
    trajectory.replay(Patience(1) | Quantile(0.9))
    assert_same(trajectory, twin)


def test_without_hazards_there_is_no_halting_distribution() -> None:
    with pytest.raises(PonderError, match=r"no Lambda head.*lambda_head=ponder\.LambdaHead"):
        _ = bare().halting
    assert unrolled().halting.pmf.shape == (6, 5)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-10]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not safetensors at all"),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(pickle.dumps({"outputs": torch.zeros(1)})),
    ],
    ids=["missing", "truncated", "empty", "foreign", "folder", "pickle"],
)
def test_a_file_that_is_no_trajectory(spoil, tmp_path) -> None:
    path = tmp_path / "run.safetensors"
    unrolled().save(path)
    spoil(path)
    with pytest.raises(CheckpointError, match=r"run\.safetensors: missing, truncated or no safetensors file"):
        Trajectory.load(path)


def test_other_safetensors_files_are_no_trajectories(tmp_path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"expected a file of the format 'ponder-trajectory-1'; got None"):
        Trajectory.load(tmp_path / "model.safetensors")
    save_file({"outputs": torch.zeros(2, 2)}, tmp_path / "half.safetensors", {"format": "ponder-trajectory-1"})
    with pytest.raises(CheckpointError, match=r"without \['row_ids'\]"):
        Trajectory.load(tmp_path / "half.safetensors")


def test_a_place_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with refused("folder", "can be written", "file"):
        unrolled().save(tmp_path / "file" / "run.safetensors")


class Screening(Classification):
    """A task of a user's own, which inherits its name."""

    def predictions(self, outputs: Tensor) -> Tensor:
        return (outputs.softmax(-1)[..., 1] > 0.9).long()


def test_a_task_of_ones_own_under_a_name_of_the_librarys_is_not_read_as_that(tmp_path: Path) -> None:
    plain = Trajectory(torch.randn(6, 3, 2), None, torch.arange(6), task="classification")
    own = dataclasses.replace(plain, task_object=Screening(), row_ids=torch.arange(6, 12))
    own.save(tmp_path / "own")
    with pytest.warns(UserWarning, match="answers in a way of its own.* Give the task back"):
        again = Trajectory.load(tmp_path / "own")
    assert type(again.meaning).__name__ == "Custom"
    plain.save(tmp_path / "plain")
    assert type(Trajectory.load(tmp_path / "plain").meaning) is Classification
    for pair in ([plain, own], [again, own]):
        with refused("trajectories", "task"):
            Trajectory.cat(pair)
    assert len(Trajectory.cat([own, own])) == 12


class Focal(Classification):
    """The same answers, taught otherwise."""

    def losses(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return super().losses(outputs, labels) ** 2


class Mine(Classification):
    name = "mine"


def test_other_losses_are_no_other_answers(tmp_path: Path) -> None:
    plain = Trajectory(torch.randn(6, 3, 2), None, torch.arange(6), task="classification")
    dataclasses.replace(plain, task_object=Focal()).save(tmp_path / "focal")
    assert type(Trajectory.load(tmp_path / "focal").meaning) is Classification


def test_a_task_that_a_file_did_not_tell_is_that_of_its_name(tmp_path: Path) -> None:
    own = Trajectory(torch.randn(6, 3, 2), None, torch.arange(6), task="mine", task_object=Mine())
    own.save(tmp_path / "own")
    again = Trajectory.load(tmp_path / "own")
    for pair in ([own, again], [again, own]):
        assert type(Trajectory.cat(pair).meaning) is Mine
    with refused("trajectories", "task 'other'"):
        Trajectory.cat([again, dataclasses.replace(again, task="other")])


class Tags(Multilabel):
    name = "tags"


class Strict(Tags):
    name = "strict"

    def predictions(self, outputs: Tensor) -> Tensor:
        return (outputs > 2.0).long()


def test_a_task_of_ones_own_that_answers_as_one_of_the_librarys_is_read_as_that(tmp_path: Path) -> None:
    """The trap: several labels were taken for one class, and patience left at other steps."""
    g = torch.Generator().manual_seed(0)
    made = Trajectory(torch.randn(60, 4, 3, generator=g), None, torch.arange(60), task="tags", task_object=Tags())
    made.save(tmp_path / "tags")
    again = Trajectory.load(tmp_path / "tags")
    assert (again.task, type(again.meaning)) == ("tags", Multilabel)
    assert torch.equal(again.replay(Patience(1)).exit_step, made.replay(Patience(1)).exit_step)
    assert type(Trajectory.cat([again, made]).meaning) is Tags
    strict = dataclasses.replace(made, task="strict", task_object=Strict())
    strict.save(tmp_path / "strict")
    with pytest.warns(UserWarning, match="'strict', that answers in a way of its own.* Give the task back"):
        Trajectory.load(tmp_path / "strict")


@pytest.mark.parametrize("own", [Screening(), Strict(), Mine()], ids=["screening", "strict", "mine"])
def test_that_a_file_does_not_tell_the_task_is_told_again_of_one_that_was_saved_anew(own: Task, tmp_path: Path) -> None:
    """The trap: what was loaded, saved and loaded once more answered otherwise in silence."""
    made = Trajectory(torch.randn(6, 3, 2), None, torch.arange(6), task=own.name, task_object=own)
    tells = type(own) is not Mine
    for go_on in (lambda t: t, lambda t: t.map(torch.clone), lambda t: Trajectory.cat([t, t]), lambda t: t.detach()):
        made.save(tmp_path / "run")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            again = Trajectory.load(tmp_path / "run")
        assert ["answers in a way of its own" in str(each.message) for each in caught] == [True] * tells
        made = go_on(again)


def test_ids_masks_and_labels_stay_what_they_are(tmp_path: Path) -> None:
    """The trap: half precision has 2049 as 2048, and by their ids rows draw at random."""
    made = dataclasses.replace(unrolled(), row_ids=torch.arange(2049, 2055))
    for kind in (torch.half, torch.double):
        mapped = made.map(lambda tensor: tensor.to(kind))  # noqa: B023
        assert mapped.outputs.dtype == kind
        assert torch.equal(mapped.row_ids, made.row_ids)
        assert (mapped.row_ids.dtype, mapped.labels.dtype) == (torch.int64, torch.int64)
        mapped.save(tmp_path / "mapped")
        assert torch.equal(Trajectory.load(tmp_path / "mapped").row_ids, made.row_ids)
    with refused("fn", "integers and flags that stay", type_error=True):
        made.map(lambda tensor: tensor[:2].half())


def test_tensors_of_other_rows_or_steps_are_refused_where_a_trajectory_is_made() -> None:
    """The trap: it was replayed, with the hazards of other rows, and saved as what no file may hold."""
    outputs, hazards, ids = torch.randn(6, 4, 3), torch.randn(6, 4), torch.arange(6)
    whole = ponder.Trajectory(outputs, hazards, ids, features=torch.randn(6, 4, 5), policy_context={"budget": ids})
    for given, got in (
        ({"hazard_logits": torch.randn(9, 4)}, "hazard_logits (9, 4)"),
        ({"hazard_logits": torch.randn(6, 5)}, "hazard_logits (6, 5)"),
        ({"features": torch.randn(6, 3, 5)}, "features (6, 3, 5)"),
        ({"row_ids": torch.arange(5)}, "row_ids (5,)"),
        ({"mask": torch.ones(5, 7).bool()}, "mask (5, 7)"),
    ):
        with refused("trajectory", got):
            dataclasses.replace(whole, **given)
    with refused("policy_context['budget']", "shape (5,)"):
        dataclasses.replace(whole, policy_context={"budget": torch.arange(5)})
    with refused("policy_context", "a dict of tensors", type_error=True):
        dataclasses.replace(whole, policy_context={"budget": [1, 2, 3, 4, 5, 6]})
    with refused("trajectory", "row_ids ()"):
        whole.map(lambda tensor: tensor[0])


def test_what_is_counted_is_counted_in_evaluation_mode() -> None:
    run = ponder.Trajectory(
        torch.randn(30, 3, 2),
        None,
        torch.arange(30),
        labels=torch.arange(30) % 2,
        task="classification",
        training=True,
    )
    with refused("trajectory", "evaluation mode"):
        run.sweep(ponder.policies.Confidence)
    with refused("trajectories", "evaluation mode"):
        run.reliability()
    with refused("trajectory", "evaluation mode"):
        run.overthinking()
    with refused("trajectory", "evaluation mode"):
        ponder.priors.Empirical.fit(run)
