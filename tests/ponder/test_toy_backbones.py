"""Every kind of backbone: full depth is the plain encoder bit for bit, and nothing is left behind or lost."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies, priors
from ponder.policies import Bernoulli, Confidence, LastStep, Patience, Quantile
from tests.ponder.checks import Bomb, Explosion, assert_unchanged, leaves, refused, snapshot, to_dtype
from tests.toys import NUM_STEPS, TOYS, WIDTH, labels_for, make_toy, wrap

every_toy = pytest.mark.parametrize("name", TOYS)


def batch_of(name: str, size: int = 7) -> tuple[Any, Any, dict[str, Any]]:
    toy = make_toy(name)
    return toy, *toy.batch(size, seed=2)


# 6. Identity


@every_toy
@pytest.mark.parametrize("grad", [True, False])
def test_without_early_exit_the_outputs_are_the_plain_encoders(name: str, grad: bool) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy).eval()
    with torch.set_grad_enabled(grad):
        expected = model.head(toy.plain(inputs, **context))
        run = model(inputs, policy=LastStep(), **context)
        trajectory = model.unroll(inputs, **context)
    assert torch.equal(run.outputs, expected)
    # Rounding of products of other sizes (unroll calls the head for all steps at once) depends on the processor.
    torch.testing.assert_close(trajectory.outputs[:, -1], expected)
    assert run.exit_step.tolist() == [NUM_STEPS] * 7
    assert run.loss is None
    assert run.trajectory is None


@every_toy
def test_training_runs_all_steps_and_its_gradients_are_the_plain_encoders(name: str) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy, lambda_head=None).train()
    labels = labels_for("classification", 7)
    out = model(inputs, labels=labels, **context)
    out.loss.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    loss = nn.functional.cross_entropy(model.head(toy.plain(inputs, **context)), labels)
    loss.backward()
    torch.testing.assert_close(out.loss, loss)
    assert got.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for n, p in model.named_parameters():
        if n in got:
            torch.testing.assert_close(got[n], p.grad)


@every_toy
def test_the_trajectory_holds_every_step(name: str) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy).eval()
    trajectory = model.eval().unroll(inputs, keep_features=True, labels=labels_for("classification", 7), **context)
    assert trajectory.outputs.shape == (7, NUM_STEPS, 3)
    assert trajectory.hazard_logits.shape == (7, NUM_STEPS)
    assert trajectory.features.shape == (7, NUM_STEPS, WIDTH)
    assert trajectory.row_ids.tolist() == list(range(7))
    assert len(trajectory) == 7
    assert trajectory.num_steps == NUM_STEPS
    assert trajectory.task == "classification"
    torch.testing.assert_close(trajectory.outputs, model.head(trajectory.features))
    assert model.unroll(inputs, **context).features is None
    assert wrap(toy, lambda_head=None).eval().unroll(inputs, **context).hazard_logits is None


@every_toy
@pytest.mark.filterwarnings("ignore:unroll in training mode")
@pytest.mark.parametrize("training", [True, False])
def test_batches_of_one_and_of_none(name: str, training: bool) -> None:
    toy, inputs, context = batch_of(name, 1)
    model = wrap(toy).train(training)
    one = model(inputs, labels=labels_for("classification", 1), **context)
    assert one.outputs.shape == (1, 3)
    assert one.exit_step.shape == (1,)
    inputs, context = toy.batch(0)
    none = model(inputs, labels=labels_for("classification", 0), **context)
    assert none.outputs.shape == (0, 3)
    assert none.exit_step.shape == (0,)
    assert none.exit_step.dtype == torch.long
    assert none.loss.item() == 0.0
    trajectory = model.unroll(inputs, keep_features=True, **context)
    assert trajectory.outputs.shape == (0, NUM_STEPS, 3)
    assert trajectory.hazard_logits.shape == (0, NUM_STEPS)
    assert trajectory.features.shape == (0, NUM_STEPS, WIDTH)
    for policy in (Quantile(0.5), Patience(2), Bernoulli(), LastStep()):
        exits = trajectory.replay(policy)
        assert exits.outputs.shape == (0, 3)
        assert exits.exit_step.shape == (0,)
        assert model.eval()(inputs, policy=policy, **context).outputs.shape == (0, 3)
        model.train(training)
    assert trajectory.halting.pmf.shape == (0, NUM_STEPS)


def test_an_empty_batch_trains_without_a_gradient() -> None:
    toy = make_toy("shared")
    model = wrap(toy).train()
    inputs, _ = toy.batch(0)
    model(inputs, labels=labels_for("classification", 0)).loss.backward()
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_an_empty_batch_with_a_head_per_step() -> None:
    toy = make_toy("shared")
    model = wrap(toy, head=ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(NUM_STEPS)))
    for mode in (True, False):
        assert model.train(mode)(toy.batch(0)[0]).outputs.shape == (0, 3)


def test_an_empty_batch_of_stages_of_several_widths() -> None:
    """Trap: h_0, given to a head that is as wide as the last stage."""
    steps = [nn.Sequential(nn.Linear(small, large), nn.Tanh()) for small, large in ((4, 8), (8, 6))]
    model = ponder.PonderWrapper(steps, head=ponder.PerStep([nn.Linear(8, 3), nn.Linear(6, 3)]), task="classification")
    inputs, labels = torch.zeros(0, 4), labels_for("classification", 0)
    assert model.eval()(inputs).outputs.shape == (0, 3)
    assert model.unroll(inputs).outputs.shape == (0, 2, 3)
    model.train()(inputs, labels=labels).loss.backward()
    model.objective = objectives.FinalStep() + objectives.Alignment(0.1)
    with refused("features of the readout", "one shape", "(2, 8) and (2, 6)", "ponder.PerStep"):
        model(torch.randn(2, 4), labels=labels_for("classification", 2))


# 7. Nothing left behind


@every_toy
@pytest.mark.filterwarnings("ignore:unroll in training mode")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("where", ["step", "head", "lambda_head", "readout", "stem"])
@pytest.mark.parametrize("call", [1, 2])
def test_after_an_exception_the_next_call_works(name: str, training: bool, where: str, call: int) -> None:
    toy = make_toy(name)
    inputs, context = toy.batch(7, seed=2)
    policy = policies.Confidence(0.8) | Quantile(0.8)
    model = wrap(toy, policy=policy).train(training)
    bomb = plant(model, where)
    labels = labels_for("classification", 7)
    expected = model(inputs, labels=labels, **context)
    before = snapshot(model)
    once = where == "stem" or (where == "step" and model.steps.schedule.count(0) == 1)
    once = once or (training and "head" in where)  # one call for all steps
    bomb.arm(1 if once else call)
    with pytest.raises(Explosion):
        model(inputs, labels=labels, **context)
    bomb.disarm()
    assert_unchanged(before, model)
    again = model(inputs, labels=labels, **context)
    assert torch.equal(again.outputs, expected.outputs)
    assert torch.equal(again.exit_step, expected.exit_step)
    assert torch.equal(again.loss, expected.loss)


def plant(model: ponder.PonderWrapper, where: str) -> Bomb:
    """Put a bomb in front of one part."""
    if where == "step":
        bombs = [Bomb(fn) for fn in model.steps.fns]
        model.steps.fns = nn.ModuleList(bombs)
        return bombs[0]
    if where == "readout":
        bomb = Bomb(model.readout.readout)
        model.readout.readout = bomb
    elif where == "lambda_head":
        bomb = Bomb(model.lambda_head)
        bomb.history, bomb.initial = model.lambda_head.history, model.lambda_head.initial
        model.lambda_head = bomb
    elif where == "stem":
        bomb = Bomb(model.stem or (lambda inputs, **context: inputs))
        del model.stem
        model.stem = bomb
    else:
        bomb = Bomb(model.head)
        model.head = bomb
    return bomb


@pytest.mark.parametrize("method", ["init", "decide"])
def test_after_an_exception_in_a_policy_the_next_call_works(method: str) -> None:
    class Faulty(policies.ExitPolicy):
        def init(self, batch):
            if method == "init":
                raise Explosion
            return torch.zeros(batch.size)

        def decide(self, step, state):
            if int(step.index[0]) == 2:
                raise Explosion
            return step.index > 3, state

    toy, inputs, context = batch_of("transformer")
    model = wrap(toy).eval()
    expected, before = model(inputs, **context), snapshot(model)
    with pytest.raises(Explosion):
        model(inputs, policy=Faulty(), **context)
    assert_unchanged(before, model)
    assert torch.equal(model(inputs, **context).outputs, expected.outputs)
    trajectory = model.unroll(inputs, **context)
    with pytest.raises(Explosion):
        trajectory.replay(Faulty())
    assert torch.equal(trajectory.replay(model.policy).exit_step, expected.exit_step)


def test_after_an_exception_in_an_objective_the_next_call_works() -> None:
    class Faulty(objectives.Objective):
        def per_example(self, unrolled):
            raise Explosion

    toy, inputs, context = batch_of("stacked")
    model = wrap(toy, objective=Faulty()).train()
    labels, before = labels_for("classification", 7), snapshot(model)
    with pytest.raises(Explosion):
        model(inputs, labels=labels, **context)
    assert_unchanged(before, model)
    model.objective = objectives.FinalStep()
    assert bool(model(inputs, labels=labels, **context).loss.isfinite())


@every_toy
def test_a_call_changes_neither_the_model_nor_its_inputs(name: str) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy)
    twin = copy.deepcopy((inputs, context))
    before = snapshot(model)
    model(inputs, labels=labels_for("classification", 7), **context)
    assert_unchanged(before, model)
    model.eval()
    before = snapshot(model)
    model(inputs, **context)
    assert_unchanged(before, model)
    assert all(torch.equal(a, b) for a, b in zip(leaves((inputs, context)), leaves(twin), strict=True))


# 8. Round trips


def assert_same_results(model: ponder.PonderWrapper, twin: ponder.PonderWrapper, inputs: Any, context: Any) -> None:
    labels = labels_for("classification", 7)
    for training in (True, False):
        a = model.train(training)(inputs, labels=labels, **context)
        b = twin.train(training)(inputs, labels=labels, **context)
        assert torch.equal(a.outputs, b.outputs)
        assert torch.equal(a.exit_step, b.exit_step)
        assert torch.equal(a.loss, b.loss)
    assert twin.settings() == model.settings()


def configured(name: str) -> ponder.PonderWrapper:
    return wrap(
        make_toy(name),
        policy=policies.Confidence(0.9) | policies.Bernoulli(seed=3).after(2),
        objective=objectives.Ponder(0.2, kl="prior_posterior") + 0.5 * objectives.DeepSupervision(),
        prior=priors.Normal(2.0, 1.0),
    )


@every_toy
def test_deepcopy_and_pickle_keep_every_result(name: str) -> None:
    _, inputs, context = batch_of(name)
    model = configured(name)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_same_results(model, twin, inputs, context)
        own = {p.data_ptr() for p in model.parameters()}
        assert own.isdisjoint(p.data_ptr() for p in twin.parameters())


@every_toy
def test_save_and_load_keep_every_result(name: str, tmp_path) -> None:
    _, inputs, context = batch_of(name)
    model = configured(name)
    ponder.save(model, tmp_path / "new" / "folder")
    torch.manual_seed(99)
    twin = wrap(TOYS[name]())
    assert ponder.load(twin, tmp_path / "new" / "folder") is twin
    assert_same_results(model, twin, inputs, context)
    assert sorted(p.suffix for p in (tmp_path / "new" / "folder").iterdir()) == [".json", ".safetensors"]


@every_toy
def test_a_state_dict_keeps_every_result(name: str) -> None:
    _, inputs, context = batch_of(name)
    model = wrap(make_toy(name))
    torch.manual_seed(99)
    twin = wrap(TOYS[name]())
    twin.load_state_dict(model.state_dict())
    assert_same_results(model, twin, inputs, context)


@every_toy
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-4), (torch.bfloat16, 0.2)])
def test_other_precisions(name: str, dtype: torch.dtype, within: float) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy).eval()
    expected = model.unroll(inputs, **context)
    model.to(dtype)
    inputs, context = to_dtype(inputs, dtype), to_dtype(context, dtype)
    trajectory = model.unroll(inputs, **context)
    assert trajectory.outputs.dtype == dtype
    assert trajectory.hazard_logits.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(trajectory.halting.pmf.float(), expected.halting.pmf, atol=within, rtol=0)
    for policy in (Quantile(0.5), Bernoulli(1), Patience(1), Confidence(0.5)):
        out = model(inputs, policy=policy, labels=labels_for("classification", 7), **context)
        assert out.outputs.dtype == dtype
        assert bool(out.loss.isfinite())
    loss = model.train()(inputs, labels=labels_for("classification", 7), **context).loss
    loss.backward()
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_autocast_keeps_hazards_in_float32() -> None:
    toy, inputs, context = batch_of("stacked")
    model = wrap(toy).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trajectory = model.unroll(inputs, **context)
        run = model(inputs, policy=Quantile(0.5), **context)
    assert trajectory.outputs.dtype == torch.bfloat16
    assert trajectory.hazard_logits.dtype == torch.float32
    assert torch.equal(run.exit_step, trajectory.replay(Quantile(0.5)).exit_step)


@pytest.mark.parametrize("name", ["shared", "transformer", "tuple-state"])
def test_a_trained_step_lowers_the_loss(name: str) -> None:
    toy, inputs, context = batch_of(name)
    model = wrap(toy).train()
    optimiser = torch.optim.SGD(ponder.parameter_groups(model, lr=0.01, lambda_lr=0.02))
    labels = labels_for("classification", 7)
    losses = []
    for _ in range(5):
        loss = model(inputs, labels=labels, **context).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_shared_steps_have_one_set_of_weights() -> None:
    model = wrap(make_toy("shared"))
    assert len([n for n in model.state_dict() if n.startswith("steps.")]) == 2
    assert Confidence(0.5) != Confidence(0.6)
