"""The halting distribution against plain Python, over sizes and hazards of every magnitude."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.distributions import Categorical, kl_divergence

from ponder import StepDistribution, priors
from ponder.errors import ArgumentError
from tests.ponder import oracles
from tests.ponder.checks import refused

moderate = st.lists(st.floats(-8, 8), min_size=1, max_size=12)
extreme = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=40)


def from_list(logits: list[float], dtype: torch.dtype = torch.float64) -> StepDistribution:
    return StepDistribution.from_hazard_logits(torch.tensor(logits, dtype=dtype))


@given(extreme)
@example([0.0])
@example([-1e4] * 5)
@example([1e4] * 5)
def test_pmf_and_moments_equal_a_plain_loop(logits: list[float]) -> None:
    halting, p = from_list(logits), oracles.pmf(logits)
    assert halting.pmf.tolist() == pytest.approx(p, abs=1e-12)
    assert halting.cdf_table.tolist() == pytest.approx(oracles.cdf(p), abs=1e-12)
    assert halting.mean.item() == pytest.approx(oracles.mean(p), abs=1e-9)
    assert halting.variance.item() == pytest.approx(oracles.variance(p), abs=1e-8)
    assert halting.stddev.item() == pytest.approx(math.sqrt(oracles.variance(p)), abs=1e-4)
    assert halting.entropy().item() == pytest.approx(oracles.entropy(p), abs=1e-9)
    assert halting.num_steps == len(p)


@given(moderate)
def test_log_prob_cdf_and_mode_look_up_steps_from_one(logits: list[float]) -> None:
    halting, p = from_list(logits), oracles.pmf(logits)
    steps = halting.enumerate_support()
    assert steps.tolist() == list(range(1, len(p) + 1))
    assert halting.log_prob(steps).tolist() == pytest.approx([math.log(mass) for mass in p])
    assert halting.cdf(steps).tolist() == pytest.approx(oracles.cdf(p))
    assert p[int(halting.mode) - 1] == pytest.approx(max(p))


@given(moderate, st.floats(0, 1))
@example([0.0, 0.0, 0.0], 0.0)
@example([0.0, 0.0, 0.0], 1.0)
@example([1e4, 0.0, 0.0], 1.0)
def test_icdf_is_the_first_step_whose_cdf_reaches_the_level(logits: list[float], q: float) -> None:
    step = from_list(logits).icdf(torch.tensor(q, dtype=torch.float64))
    assert int(step) in oracles.icdf(oracles.pmf(logits), q)


def test_icdf_at_a_cdf_that_equals_the_level() -> None:
    sure = StepDistribution(torch.tensor([0.0, 1.0, 0.0]).log())
    assert sure.cdf_table.tolist() == [0.0, 1.0, 1.0]
    assert sure.icdf(torch.tensor([0.0, 0.5, 1.0])).tolist() == [1, 2, 2]


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(*[st.lists(st.floats(-8, 8), min_size=n, max_size=n)] * 2)))
def test_kl_equals_a_plain_loop_in_both_directions(pair: tuple[list[float], list[float]]) -> None:
    (p, q), (a, b) = map(from_list, pair), map(oracles.pmf, pair)
    assert kl_divergence(p, q).item() == pytest.approx(oracles.kl(a, b), abs=1e-9)
    assert kl_divergence(q, p).item() == pytest.approx(oracles.kl(b, a), abs=1e-9)
    assert kl_divergence(p, p).item() == 0.0


def test_kl_agrees_with_torchs_own_categorical() -> None:
    p, q = (StepDistribution(torch.randn(4, 6).log_softmax(-1)) for _ in range(2))
    own = kl_divergence(Categorical(logits=p.log_pmf), Categorical(logits=q.log_pmf))
    torch.testing.assert_close(kl_divergence(p, q), own)


def test_kl_is_infinite_where_a_step_that_p_allows_is_excluded() -> None:
    p = StepDistribution(torch.tensor([0.5, 0.5]).log())
    q = StepDistribution(torch.tensor([1.0, 0.0]).log())
    assert kl_divergence(p, q).item() == math.inf
    assert kl_divergence(q, p).item() == pytest.approx(math.log(2))


def test_steps_without_mass_give_no_nan_and_no_gradient() -> None:
    log_p = torch.tensor([0.0, -torch.inf], requires_grad=True)
    p, q = StepDistribution(log_p), StepDistribution(torch.tensor([0.5, 0.5]).log())
    total = p.entropy() + kl_divergence(p, q)
    total.backward()
    assert total.item() == pytest.approx(math.log(2))
    assert bool(log_p.grad.isfinite().all())


def test_kl_refuses_other_step_counts() -> None:
    with refused("q", "3 steps", "4"):
        kl_divergence(from_list([0.0] * 3), from_list([0.0] * 4))


sizes = st.one_of(st.integers(1, 1000), st.sampled_from([1, 2, 999, 1000]))
scales = st.sampled_from([0.0, 1.0, 5.0, 30.0, 1e3, 1e4])


@given(sizes, scales, st.floats(-8, 8), st.integers(0, 10**6))
@example(1000, 0.0, -7.0, 0)
@example(1000, 0.0, -5.0, 0)
@example(1000, 1e4, 0.0, 0)
def test_mass_is_one_in_every_precision(num_steps: int, scale: float, shift: float, seed: int) -> None:
    noise = torch.randn(num_steps, generator=torch.Generator().manual_seed(seed)) * scale + shift
    for dtype, within in ((torch.float64, 1e-9), (torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 1e-3)):
        halting = StepDistribution.from_hazard_logits(noise.clamp(-1e4, 1e4).to(dtype))
        assert halting.pmf.double().sum().item() == pytest.approx(1.0, abs=within)
        assert halting.cdf_table[-1].item() == 1.0
        assert bool((halting.cdf_table.diff() >= 0).all())
        assert bool((halting.cdf_table <= 1).all())
        assert halting.pmf.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        for statistic in (halting.mean, halting.variance, halting.entropy()):
            assert bool(statistic.isfinite())


@given(sizes, scales, st.integers(0, 10**6))
@example(1000, 1e4, 0)
def test_gradients_are_finite(num_steps: int, scale: float, seed: int) -> None:
    noise = torch.randn(2, num_steps, generator=torch.Generator().manual_seed(seed)) * scale
    logits = noise.clamp(-1e4, 1e4).requires_grad_()
    halting = StepDistribution.from_hazard_logits(logits)
    prior = StepDistribution(torch.zeros(num_steps).log_softmax(-1)).expand((2,))
    total = halting.mean + halting.variance + halting.entropy()
    (total + kl_divergence(halting, prior) + kl_divergence(prior, halting)).sum().backward()
    assert bool(logits.grad.isfinite().all())


def test_gradient_of_the_pmf_equals_finite_differences() -> None:
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: StepDistribution.from_hazard_logits(z).pmf, logits)
    assert torch.autograd.gradcheck(lambda z: StepDistribution.from_hazard_logits(z).entropy(), logits)


def test_the_last_hazard_is_ignored() -> None:
    a, b = from_list([0.3, -1.0, 5.0]), from_list([0.3, -1.0, -5.0])
    assert torch.equal(a.log_pmf, b.log_pmf)


def test_samples_follow_the_pmf_and_keep_shapes() -> None:
    halting = from_list([0.0, 0.0, 0.0])
    draws = halting.sample((40_000,))
    assert draws.dtype == torch.long
    shares = torch.bincount(draws, minlength=4)[1:].double() / draws.numel()
    torch.testing.assert_close(shares, halting.pmf, atol=0.01, rtol=0)
    batch = StepDistribution.from_hazard_logits(torch.randn(3, 2, 5))
    assert batch.sample((7,)).shape == (7, 3, 2)
    assert batch.sample().shape == (3, 2)
    assert not batch.has_rsample
    saturated = from_list([1e4, 0.0, 0.0])
    assert saturated.sample((50,)).eq(1).all()


def test_batches_broadcast_and_expand() -> None:
    one = from_list([0.5, -0.5, 1.0])
    many = one.expand((4, 2))
    assert many.batch_shape == (4, 2)
    assert many.event_shape == ()
    assert many.pmf.shape == (4, 2, 3)
    assert torch.equal(many.pmf[3, 1], one.pmf)
    assert many.log_pmf.untyped_storage().data_ptr() == one.log_pmf.untyped_storage().data_ptr()
    assert one.log_prob(torch.tensor([[1], [2]])).shape == (2, 1)
    assert many.log_prob(torch.tensor(2)).shape == (4, 2)
    assert many.icdf(torch.rand(4, 2)).shape == (4, 2)
    assert one.icdf(torch.rand(6)).shape == (6,)
    assert many.enumerate_support().shape == (3, 4, 2)
    assert many.enumerate_support(expand=False).shape == (3, 1, 1)
    assert many.support.check(torch.tensor([1, 3])).all()
    assert not many.support.check(torch.tensor([0, 4])).any()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_no_steps_are_refused(shape: tuple[int, ...]) -> None:
    with refused("log_pmf", "at least one step", str(shape)):
        StepDistribution(torch.zeros(shape))
    with refused("logits", "at least one step", str(shape)):
        StepDistribution.from_hazard_logits(torch.zeros(shape))


def test_unnormalised_masses_are_refused() -> None:
    with refused("log_pmf", "sum to 1", "log_softmax"):
        StepDistribution(torch.tensor([0.5, 0.2]).log())
    assert StepDistribution(torch.tensor([0.5, 0.2]).log(), validate_args=False).num_steps == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normalised_again(dtype: torch.dtype) -> None:
    log_pmf = (3 * torch.randn(500, 60, generator=torch.Generator().manual_seed(0))).to(dtype).log_softmax(-1)
    made = StepDistribution(log_pmf)
    torch.testing.assert_close(made.pmf.sum(-1), torch.ones(500), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.pmf, log_pmf.float().exp(), atol=5e-3, rtol=5e-2)
    with refused("log_pmf", "sum to 1"):
        StepDistribution(torch.tensor([0.5, 0.3], dtype=dtype).log())


@pytest.mark.parametrize("q", [-0.1, 1.5, math.nan])
@pytest.mark.parametrize(
    "make",
    [from_list, lambda z: from_list(z).expand((2,)), lambda z: StepDistribution(from_list(z).log_pmf)],
    ids=["hazards", "expanded", "pmf"],
)
def test_levels_and_steps_out_of_range_are_refused(make, q: float) -> None:
    halting = make([0.0, 0.0, 0.0])
    with refused("value", "[0, 1]"):
        halting.icdf(torch.tensor(q))
    for step in (0, 4):
        with pytest.raises(ValueError, match="support"):
            halting.log_prob(torch.tensor(step))
        with pytest.raises(ValueError, match="support"):
            halting.cdf(torch.tensor(step))


def test_round_trips() -> None:
    halting = StepDistribution.from_hazard_logits(torch.randn(3, 4))
    _ = halting.pmf
    for twin in (copy.deepcopy(halting), pickle.loads(pickle.dumps(halting))):
        assert torch.equal(twin.log_pmf, halting.log_pmf)
        assert torch.equal(twin.pmf, halting.pmf)


def test_errors_are_the_librarys() -> None:
    assert issubclass(ArgumentError, ValueError)


def test_values_are_checked_whatever_the_process_default() -> None:
    # TRAP: torch.compile switches PyTorch's own checks off for the whole process.
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        with refused("log_pmf"):
            StepDistribution(torch.tensor([0.5, 0.2]).log())
        with refused("value"):
            StepDistribution.from_hazard_logits(torch.zeros(3)).icdf(torch.tensor(1.5))
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def test_nan_stays_nan() -> None:
    broken = StepDistribution.from_hazard_logits(torch.tensor([[math.nan, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert broken.entropy().isnan().tolist() == [True, False]
    divergence = kl_divergence(broken, priors.Geometric(0.3)(3).expand((2,)))
    assert divergence.isnan().tolist() == [True, False]


def test_the_quantile_of_a_number() -> None:
    found = StepDistribution(torch.tensor([[0.25, 0.5, 0.25]]).log())
    assert found.icdf(0.5).tolist() == found.icdf(torch.tensor(0.5)).tolist() == [2]
