"""Looped models of the literature, on tiny configurations, against their own rule in plain loops."""

from __future__ import annotations

import inspect
import math
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import HrmTextConfig, HrmTextModel

from ponder import objectives, policies
from ponder.loops import Block, Loop, Problem
from ponder.loops.adapters import hrm as hrm_adapter
from ponder.loops.adapters import hrm_text, huginn, ouro, recursive
from tests.loops.models import WIDTH

CLASSES = 5


@pytest.mark.parametrize("module", [recursive, hrm_adapter, huginn, ouro, hrm_text])
def test_an_adapter_takes_forty_lines(module: ModuleType) -> None:
    source = inspect.getsource(module).splitlines()
    body = source[next(i for i, line in enumerate(source) if line.startswith("__all__")) + 1 :]
    code = [line for line in body if line.strip() and not line.strip().startswith('"""')]
    assert len(code) <= 40, len(code)


def test_trm_halts_each_puzzle_as_its_q_head_says_and_the_next_takes_its_place() -> None:
    torch.manual_seed(0)
    mixing = nn.Linear(WIDTH, WIDTH)
    nn.init.normal_(mixing.weight, std=0.6)  # wanders for long
    step = recursive.Recursion(nn.Sequential(mixing, nn.Tanh()), inner=2)
    head = nn.Linear(WIDTH, CLASSES)
    q_head = recursive.QHead(WIDTH)
    loop = Loop(
        step,
        head,
        q_head,
        policy=policies.RightAnswer(0.5),
        readout=recursive.answer_of,
        halted="together",
    ).eval()
    puzzles = torch.randn(12, 4, WIDTH)
    zeros = torch.zeros(4, WIDTH)
    problems = [Problem((zeros, zeros), {"problem": puzzle}) for puzzle in puzzles]
    answers = {answer.number: answer for answer in loop.carry(problems, max_steps=16, slots=3)}
    steps = set()
    with torch.no_grad():
        for number, puzzle in enumerate(puzzles):
            state = (zeros[None], zeros[None])
            taken = 0
            while taken < 16 and (taken == 0 or q_head(state[0])[0] <= 0):
                state = step(state, puzzle[None])
                taken += 1
            steps.add(taken)
            assert set(answers[number].exit_step.tolist()) == {taken}
            expected = head(state[0])[0]
            torch.testing.assert_close(answers[number].outputs, expected, atol=1e-5, rtol=1e-4)
    assert len(steps) > 2


def test_hrm_halts_each_puzzle_by_its_q_values_and_the_next_takes_its_place() -> None:
    torch.manual_seed(3)
    networks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(2)]
    for network in networks:
        nn.init.normal_(network[0].weight, std=0.6)  # wanders for long
    high_network, low_network = networks
    head, values = nn.Linear(WIDTH, CLASSES), hrm_adapter.QValues(WIDTH)
    step = hrm_adapter.HighLow(high_network, low_network, high_cycles=2, low_cycles=3)
    loop = Loop(
        step,
        head,
        values,
        policy=policies.RightAnswer(0.5),
        readout=hrm_adapter.high_state,
        halted="together",
    ).eval()
    puzzles = torch.randn(12, 4, WIDTH)
    zeros = torch.zeros(4, WIDTH)
    problems = [Problem((zeros, zeros), {"problem": puzzle}) for puzzle in puzzles]
    answers = {answer.number: answer for answer in loop.carry(problems, max_steps=16, slots=3)}
    steps = set()
    with torch.no_grad():
        for number, puzzle in enumerate(puzzles):
            high = low = zeros
            taken, halted = 0, False
            while taken < 16 and not halted:
                for _ in range(2):
                    for _ in range(3):
                        low = low_network(low + high + puzzle)
                    high = high_network(high + low)
                q_halt, q_continue = values.linear(high[0])
                taken, halted = taken + 1, bool(q_halt > q_continue)
            steps.add(taken)
            assert set(answers[number].exit_step.tolist()) == {taken}
            torch.testing.assert_close(answers[number].outputs, head(high), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(answers[number].hidden[1], low, atol=1e-5, rtol=1e-4)
    assert len(steps) > 2


def _huginn_exit(kind: str, logits: torch.Tensor, states: torch.Tensor) -> int:
    """The step at which Huginn's evaluator stops one token: logits and states of every step, states from h_0."""
    log_p = logits.log_softmax(-1)
    stable = 0
    for step in range(1, len(logits)):
        now, before = log_p[step], log_p[step - 1]
        entropies = [float(-(each.exp() * each).sum()) for each in (now, before)]
        stable = stable + 1 if int(now.argmax()) == int(before.argmax()) else 0
        moved = (states[step] - states[step - 1]).norm() / states[step].norm()
        met = {
            "kl": float(F.kl_div(now, before, reduction="sum", log_target=True)) < 0.02,
            "entropy-diff": abs(entropies[0] - entropies[1]) < 0.02,
            "latent-diff": float(moved) <= 0.2,
            "argmax-stability": stable >= 3,
        }
        if met[kind]:
            return step + 1
    return len(logits)


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("kl", huginn.OutputChange("kl", 0.02)),
        ("entropy-diff", huginn.OutputChange("entropy", 0.02)),
        ("latent-diff", policies.Converged(tolerance=0.2, on="features")),
        ("argmax-stability", policies.Patience(3)),
    ],
)
def test_huginn_criteria_of_single_positions(kind: str, policy: policies.ExitPolicy) -> None:
    torch.manual_seed(0)
    core = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    step = huginn.InjectedCore(lambda hidden, mask: core(hidden), WIDTH)
    head = nn.Linear(WIDTH, CLASSES)
    loop = Loop(step, head, policy=policy).eval()
    hidden, embedded = torch.randn(2, 3, 6, WIDTH).unbind()
    out = loop(hidden, max_steps=10, embedded=embedded)
    states = []
    for _ in range(10):
        hidden = step(hidden, embedded)
        states.append(hidden)
    every = torch.stack(states)  # (steps, batch, length, width)
    for row in range(3):
        for place in range(6):
            own = every[:, row, place].detach()
            assert int(out.exit_step[row, place]) == _huginn_exit(kind, head(own).detach(), own)
    assert out.exit_step.unique().numel() > 1


def test_ouro_exits_by_its_cdf_and_its_loss_is_that_of_a_uniform_prior() -> None:
    torch.manual_seed(0)
    stack = ouro.LoopedStack([Block(WIDTH, 2, causal=True) for _ in range(2)], nn.LayerNorm(WIDTH))
    gate = nn.Linear(WIDTH, 1)
    head = nn.Linear(WIDTH, CLASSES)
    loop = ouro.ouro_loop(stack, head, gate, q=0.7)
    hidden = torch.randn(3, 6, WIDTH)
    out = loop.eval()(hidden, max_steps=4)
    trajectory = loop.unroll(hidden, max_steps=4, policy=policies.Quantile(0.7))
    for hazards, taken in zip(trajectory.hazard_logits, out.exit_step.flatten(), strict=True):
        remaining, cdf, expected = 1.0, 0.0, 4
        for step, hazard in enumerate(hazards.sigmoid().tolist()[:3], start=1):
            cdf, remaining = cdf + remaining * hazard, remaining * (1 - hazard)
            if cdf > 0.7:
                expected = step
                break
        assert int(taken) == expected
    labels = torch.randint(CLASSES, (3, 6))
    trained = loop.train()(hidden, max_steps=4, labels=labels, objective=objectives.Ponder(0.1))
    pmf = trained.trajectory.halting.pmf
    repeated = labels.flatten()[:, None].expand(-1, 4)
    outputs = trained.trajectory.outputs.transpose(1, 2)
    fit = (pmf * F.cross_entropy(outputs, repeated, reduction="none")).sum(1)
    entropy = -(pmf * pmf.log()).sum(1)
    expected_loss = (fit - 0.1 * entropy).mean() + 0.1 * math.log(4)
    torch.testing.assert_close(trained.loss, expected_loss)


@pytest.fixture(scope="module")
def hrm() -> HrmTextModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    cycles = {"H_cycles": 3, "L_cycles": 2, "num_layers_per_stack": 1}
    config = HrmTextConfig(vocab_size=20, num_key_value_heads=2, head_dim=8, **sizes, **cycles)
    return HrmTextModel(config).eval()


@torch.no_grad()
def test_hrm_text_at_full_depth_is_the_model_of_transformers(hrm: HrmTextModel) -> None:
    ids = torch.randint(1, 20, (2, 7))
    head = nn.Linear(16, 20, bias=False)
    loop = Loop(hrm_text.HighCycle(hrm), head, readout=hrm_text.high_state).eval()
    state, context = hrm_text.start(hrm, ids)
    whole = loop(state, max_steps=3, policy=policies.LastStep(), **context)
    assert torch.equal(whole.hidden[0], hrm(input_ids=ids, use_cache=False).last_hidden_state)
    some = loop(state, max_steps=6, policy=policies.Confidence(0.12), **context)
    assert some.exit_step.unique().numel() > 1
    first = some.exit_step == 1
    one = loop(state, max_steps=1, **context)
    torch.testing.assert_close(some.outputs[first], one.outputs[first])
