"""`priors.Learned`: its weights belong to the model, and its hyper-parameters stay frozen."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, priors
from ponder.errors import CheckpointError
from tests.ponder import oracles
from tests.ponder.checks import refused

NUM_STEPS = 6
KEY = "prior_weights.logits"
START = {"initial": priors.Geometric(0.2)}


def make(prior: Any = None, beta: float = 0.5) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        nn.Sequential(nn.Linear(4, 4), nn.Tanh()),
        NUM_STEPS,
        head=nn.Linear(4, 3),
        lambda_head=ponder.LambdaHead(4),
        prior=prior or priors.Learned(NUM_STEPS, **START),
        objective=objectives.Ponder(beta),
        task="classification",
    )


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=generator), torch.randint(3, (8,), generator=generator)


def trained() -> ponder.PonderWrapper:
    """A model whose prior has left its start."""
    model = make()
    with torch.no_grad():
        model.prior.logits.copy_(torch.linspace(-1.0, 2.0, NUM_STEPS))
    return model


def expected_pmf(start: list[float], logits: list[float]) -> list[float]:
    weights = [p * math.exp(w) for p, w in zip(start, logits, strict=True)]
    return [weight / sum(weights) for weight in weights]


def test_starts_at_its_initial_prior_and_moves_by_its_logits() -> None:
    start = oracles.prior({"name": "geometric", "rate": 0.2}, NUM_STEPS)
    assert make().prior(NUM_STEPS, dtype=torch.float64).pmf.tolist() == pytest.approx(start, abs=1e-12)
    logits = torch.linspace(-1.0, 2.0, NUM_STEPS).tolist()
    assert trained().prior(NUM_STEPS).pmf.tolist() == pytest.approx(expected_pmf(start, logits), abs=1e-6)


def test_its_weights_are_the_models() -> None:
    model = make()
    parameters = dict(model.named_parameters())
    assert parameters[KEY] is model.prior.logits
    assert KEY in model.state_dict()
    assert [group["name"] for group in ponder.parameter_groups(model, 1e-3)] == ["model", "lambda"]
    halting = ponder.parameter_groups(model, 1e-3, 1e-2)[1]
    assert halting["lr"] == 1e-2
    assert any(parameter is model.prior.logits for parameter in halting["params"])


def test_the_gradient_is_the_priors_mass_less_the_posteriors() -> None:
    model, (x, labels) = make(beta=0.5), batch()
    out = model.train()(x, labels=labels)
    out.loss.backward()
    posterior = [oracles.pmf(row) for row in out.trajectory.hazard_logits.tolist()]
    average = [sum(p[n] for p in posterior) / len(posterior) for n in range(NUM_STEPS)]
    mass = oracles.prior({"name": "geometric", "rate": 0.2}, NUM_STEPS)
    expected = [0.5 * (p - q) for p, q in zip(mass, average, strict=True)]
    assert model.prior.logits.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_alone_it_becomes_the_average_posterior() -> None:
    model, (x, labels) = make(), batch()
    optimizer = torch.optim.Adam(model.prior_weights.parameters(), lr=0.3)
    for _ in range(80):
        optimizer.zero_grad()
        out = model.train()(x, labels=labels)
        out.loss.backward()
        optimizer.step()
    average = out.trajectory.halting.pmf.mean(0).tolist()
    assert model.prior(NUM_STEPS).pmf.tolist() == pytest.approx(average, abs=1e-3)


def test_replacing_it_takes_its_weights_away() -> None:
    model = make()
    model.prior = priors.Geometric(0.3)
    assert KEY not in model.state_dict()
    model.prior = fresh = priors.Learned(NUM_STEPS)
    assert dict(model.named_parameters())[KEY] is fresh.logits
    model.prior = again = priors.Learned(NUM_STEPS)  # equal, and another object with other weights
    assert dict(model.named_parameters())[KEY] is again.logits


def test_two_in_one_module_stay_two() -> None:
    """Trap: modules that compare by value are counted once by `parameters()`."""
    pair = nn.ModuleList([make(), make()])
    assert sum(name.endswith(KEY) for name, _ in pair.named_parameters()) == 2


def test_save_and_load_keep_the_weights_and_the_parameter(tmp_path: Path) -> None:
    model = trained()
    ponder.save(model, tmp_path)
    assert '"initial": {' in (tmp_path / "ponder.json").read_text()
    twin = make()
    parameter = twin.prior.logits
    ponder.load(twin, tmp_path)
    assert twin.prior.logits is parameter  # an optimiser made before loading still holds it
    assert torch.equal(twin.prior.logits, model.prior.logits)
    other = make(priors.Learned(NUM_STEPS))  # another start: it is replaced by the one that was saved
    ponder.load(other, tmp_path)
    assert other.prior == model.prior
    assert dict(other.named_parameters())[KEY] is other.prior.logits
    assert torch.equal(other.prior(NUM_STEPS).pmf, model.prior(NUM_STEPS).pmf)
    with pytest.raises(CheckpointError, match=KEY):
        ponder.load(make(priors.Geometric(0.1)), tmp_path)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_hold_their_own_weights(clone: Any) -> None:
    model = trained()
    twin = clone(model)
    assert torch.equal(twin.prior.logits, model.prior.logits)
    assert dict(twin.named_parameters())[KEY] is twin.prior.logits
    with torch.no_grad():
        twin.prior.logits.zero_()
    assert not torch.equal(twin.prior.logits, model.prior.logits)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_follows_the_model_to_another_type(dtype: torch.dtype) -> None:
    model = trained()
    before = model.prior(NUM_STEPS).pmf
    model.to(dtype)
    assert model.prior.logits.dtype == dtype
    made = model.prior(NUM_STEPS)
    assert made.pmf.dtype == torch.float32
    assert made.pmf.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert made.pmf.tolist() == pytest.approx(before.tolist(), abs=1e-2)


def test_follows_the_model_to_the_meta_device_and_is_built_there() -> None:
    assert make().to("meta").prior.logits.is_meta
    with torch.device("meta"):
        assert priors.Learned(NUM_STEPS, **START)(NUM_STEPS).pmf.is_meta


def test_rescaling_scales_the_start() -> None:
    prior = priors.Learned(12, priors.Geometric(0.1))
    assert prior.rescaled(12, 12) is prior
    assert prior.rescaled(12, 6) == priors.Learned(6, priors.Geometric(0.1).rescaled(12, 6))
    assert priors.Learned(12).rescaled(12, 6) == priors.Learned(6)


def test_bad_arguments_are_refused() -> None:
    for num_steps in (0, 2.0, True):
        with refused("num_steps"):
            priors.Learned(num_steps)
    with refused("prior", "6 steps", "over 4"):
        make(priors.Learned(4))
    with refused("initial", "some probability"):
        priors.Learned(2, priors.Categorical((0.0, 1.0)))
    with refused("initial", "does not learn"):
        priors.Learned(2, priors.Learned(2))
    with refused("prior", "3 steps", "2 probabilities"):
        priors.Learned(3, priors.Categorical((0.5, 0.5)))


def test_one_prior_for_two_models_is_told() -> None:
    """The trap: in a loop over seeds the second begins where the first ended, and trains the first on."""
    prior = priors.Learned(NUM_STEPS)
    first = make(prior)
    for own in (prior, priors.Geometric(0.2), prior):
        first.prior = own
    with pytest.warns(UserWarning, match="was given to another model before"):
        make(prior)
    make(copy.deepcopy(prior))


def test_weights_that_were_read_are_those_of_the_models_own_prior(tmp_path: Path) -> None:
    """The trap: an optimizer that was made before the file was read trained a prior that nobody asked any more."""
    ponder.save(trained(), tmp_path)
    other = make(priors.Learned(NUM_STEPS)).double()  # another start
    held = other.prior.logits
    ponder.load(other, tmp_path)
    assert other.prior.logits is held
    assert held.dtype == torch.float64
    assert torch.equal(held.float(), trained().prior.logits)
    assert other.prior.initial == priors.Geometric(0.2)
