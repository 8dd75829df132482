"""A run per position equals its definition, for every policy, step, kind of halting and padding."""

from __future__ import annotations

import math

import pytest
import torch

import ponder
from ponder import objectives, policies, priors
from ponder.errors import ArgumentError
from ponder.loops import Loop
from tests.loops.models import POLICIES, STEPS, WIDTH, make_batch, make_loop
from tests.loops.reference import run_row

MAX_STEPS = 6


@pytest.mark.parametrize("halted", ["frozen", "hidden"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_run_is_its_definition(policy: policies.ExitPolicy, step: str, halted: str) -> None:
    loop = make_loop(step, halted)
    lengths = (5, 3, 5, 1)
    hidden, mask = make_batch(lengths)
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask.long(), policy=policy)
    for row, length in enumerate(lengths):
        expected = run_row(
            loop.step,
            loop.head,
            loop.lambda_head,
            policy,
            hidden[row, :length],
            MAX_STEPS,
            row_id=row,
            halted=halted,
        )
        assert out.exit_step[row, :length].tolist() == expected.exit_step.tolist()
        torch.testing.assert_close(
            out.outputs[row, :length], expected.outputs, atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(out.hidden[row, :length], expected.hidden, atol=1e-5, rtol=1e-5)
        assert not out.exit_step[row, length:].any()
        assert not out.outputs[row, length:].any()
        if length == max(lengths):  # the same without a mask
            with torch.no_grad():
                alone = loop(
                    hidden[row : row + 1],
                    max_steps=MAX_STEPS,
                    policy=policy,
                    row_ids=torch.tensor([row]),
                )
            assert alone.exit_step[0].tolist() == expected.exit_step.tolist()
            torch.testing.assert_close(alone.hidden[0], expected.hidden, atol=1e-5, rtol=1e-5)


def test_policies_of_the_matrix_halt_positions_at_different_steps() -> None:
    hidden, mask = make_batch()
    same = set()
    for name, policy in POLICIES.items():
        loop = make_loop()
        steps = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy).exit_step
        if len(set(steps[mask].tolist())) == 1:
            same.add(name)
    assert same <= {"fixed", "last"}


@pytest.mark.parametrize("step", STEPS)
def test_full_depth_is_the_plain_loop_bit_for_bit(step: str) -> None:
    loop = make_loop(step)
    hidden, _ = make_batch((5, 5, 5))
    with torch.no_grad():
        out = loop(hidden, max_steps=MAX_STEPS, policy=policies.LastStep())
        for _ in range(MAX_STEPS):
            hidden = loop.step(hidden)
        assert torch.equal(out.hidden, hidden)
        assert torch.equal(out.outputs, loop.head(hidden))


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_together_is_the_rule_for_rows(policy: policies.ExitPolicy) -> None:
    loop = make_loop("plain", "together")
    hidden, mask = make_batch()
    model = ponder.PonderWrapper(
        loop.step,
        MAX_STEPS,
        head=loop.head,
        lambda_head=loop.lambda_head,
        readout=ponder.readouts.identity,
        task="token_classification",
    ).eval()
    with torch.no_grad():
        rows = model(hidden, attention_mask=mask, policy=policy)
        out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policy)
    for row, real in enumerate(mask):
        assert out.exit_step[row].tolist() == (real * rows.exit_step[row]).tolist()
        torch.testing.assert_close(out.outputs[row, real], rows.outputs[row, real])


@torch.no_grad()
def test_scoring_a_prefix_does_not_depend_on_what_follows() -> None:
    loop = make_loop("causal")
    hidden, _ = make_batch((5, 5, 5))
    call = {"max_steps": MAX_STEPS, "policy": policies.Confidence(0.5)}
    whole = loop(hidden, **call)
    part = loop(hidden[:, :3], **call)
    assert part.exit_step.tolist() == whole.exit_step[:, :3].tolist()
    torch.testing.assert_close(part.outputs, whole.outputs[:, :3], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("halted", ["frozen", "hidden"])
def test_a_row_does_not_depend_on_its_batch(halted: str) -> None:
    loop = make_loop(halted=halted)
    hidden, mask = make_batch((5, 3, 5, 1, 4, 2))
    ids = torch.tensor([7, 2**62, 1, 4, 11, 5])
    for policy in (policies.Bernoulli(seed=0), policies.Confidence(0.5), policies.Patience(1)):
        call = {"max_steps": MAX_STEPS, "policy": policy}
        whole = loop(hidden, attention_mask=mask, row_ids=ids, **call)
        for rows in ([3], [4, 0], [5, 2, 1]):
            length = int(mask[rows].sum(1).max())  # other padding, too
            some = loop(
                hidden[rows, :length],
                attention_mask=mask[rows, :length],
                row_ids=ids[rows],
                **call,
            )
            assert some.exit_step.tolist() == whole.exit_step[rows, :length].tolist()
            expected = whole.outputs[rows, :length]
            torch.testing.assert_close(some.outputs, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("halted", ["frozen", "hidden", "together"])
@pytest.mark.parametrize("policy", [policies.Quantile(0.6), policies.Confidence(0.5)], ids=str)
def test_rows_and_batches_of_padding_alone_have_no_exits(
    policy: policies.ExitPolicy, halted: str
) -> None:
    loop = make_loop(halted=halted)
    hidden, mask = make_batch((5, 3, 5))
    call = {"max_steps": MAX_STEPS, "policy": policy}
    nothing = loop(hidden, attention_mask=torch.zeros_like(mask), **call)
    assert nothing.outputs.shape == (3, 5, 3)
    assert not nothing.exit_step.any()
    whole = loop(hidden, attention_mask=mask, **call)
    mask[1] = False
    some = loop(hidden, attention_mask=mask, **call)
    assert not some.exit_step[1].any()
    assert some.exit_step[[0, 2]].tolist() == whole.exit_step[[0, 2]].tolist()


def test_seeded_numbers_differ_by_row_and_position() -> None:
    loop = make_loop()
    hidden = torch.zeros(3, 40, WIDTH)  # the same hazards everywhere
    steps = loop(hidden, max_steps=30, policy=policies.Bernoulli(seed=0)).exit_step
    assert len({tuple(row) for row in steps.tolist()}) == 3
    assert len(set(steps[0].tolist())) > 3
    again = loop(hidden, max_steps=30, policy=policies.Bernoulli(seed=0)).exit_step
    other = loop(hidden, max_steps=30, policy=policies.Bernoulli(seed=1)).exit_step
    assert torch.equal(steps, again)
    assert not torch.equal(steps, other)


def test_only_what_runs_is_computed() -> None:
    loop = make_loop()
    hidden, mask = make_batch((5, 5, 5, 5))
    counts = {"feed_forward": 0, "key_value": 0, "head": 0}

    def count(name: str) -> object:
        def hook(module: object, args: tuple[torch.Tensor, ...], out: object) -> None:
            counts[name] += args[0].shape[:-1].numel()

        return hook

    loop.step.feed_forward.register_forward_hook(count("feed_forward"))
    loop.step.key_value.register_forward_hook(count("key_value"))
    loop.head.register_forward_hook(count("head"))
    out = loop(hidden, max_steps=MAX_STEPS, attention_mask=mask, policy=policies.Quantile(0.6))
    assert out.exit_step.unique().numel() > 2
    assert counts["feed_forward"] == out.position_steps
    assert counts["head"] == 20  # the policy reads hazards, so each position is answered once
    # Once a step that runs, once more after halting while others attend, and all where halting begins.
    assert counts["key_value"] <= out.position_steps + 20


def test_a_step_without_attention_mask_cannot_hide_positions() -> None:
    with pytest.raises(ArgumentError, match="attention_mask"):
        Loop(torch.nn.Linear(WIDTH, WIDTH), torch.nn.Linear(WIDTH, 3), halted="hidden")


def test_a_function_of_a_tree_of_states_and_its_context() -> None:
    class Recursive(torch.nn.Module):
        def forward(
            self, state: dict[str, torch.Tensor], problem: torch.Tensor, index: torch.Tensor
        ) -> dict[str, torch.Tensor]:
            moved = torch.tanh(state["z"] + problem) + 0.01 * index[:, None, None]
            return {"y": state["y"] + moved, "z": moved}

    torch.manual_seed(0)
    head = torch.nn.Linear(WIDTH, 3)
    loop = Loop(Recursive(), head, readout=lambda state: state["y"]).eval()
    problem = torch.randn(4, 5, WIDTH)
    state = {"y": torch.zeros(4, 5, WIDTH), "z": torch.zeros(4, 5, WIDTH)}
    with torch.no_grad():
        policy = policies.Confidence(0.8)
        out = loop(state, max_steps=MAX_STEPS, problem=problem, policy=policy)
        y = z = torch.zeros(4, 5, WIDTH)
        for number in range(1, MAX_STEPS + 1):
            z = torch.tanh(z + problem) + 0.01 * number
            y = y + z
            now = out.exit_step == number
            torch.testing.assert_close(out.hidden["y"][now], y[now])
            torch.testing.assert_close(out.outputs[now], head(y)[now])
    assert out.exit_step.unique().numel() > 2


@pytest.mark.parametrize("halted", ["frozen", "hidden", "together"])
@pytest.mark.parametrize("step", ["block", "plain"])
def test_training_with_halting_is_the_run(step: str, halted: str) -> None:
    loop = make_loop(step, halted)
    hidden, mask = make_batch()
    for policy in POLICIES.values():
        call = {"max_steps": MAX_STEPS, "attention_mask": mask, "policy": policy}
        run = loop.eval()(hidden, **call)
        trained = loop.train()(hidden, halting=True, **call)
        assert trained.exit_step.tolist() == run.exit_step.tolist()
        expected = run.outputs[mask]
        torch.testing.assert_close(trained.outputs[mask], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("halted", ["frozen", "hidden", "together"])
@pytest.mark.parametrize("halting", [False, True])
@pytest.mark.parametrize(
    "objective",
    [
        objectives.Ponder(0.5),
        objectives.DeepSupervision("uniform"),
        objectives.ACT(0.01),
        objectives.RandomDepth(1, 2, warm_up=2),
        objectives.FinalStep() + 0.1 * objectives.Ponder(0.1),
    ],
    ids=["ponder", "deep", "act", "random", "sum"],
)
def test_training_has_finite_gradients_of_real_positions(
    objective: objectives.Objective, halting: bool, halted: str
) -> None:
    loop = make_loop(halted=halted).train()
    hidden, mask = make_batch()
    hidden.requires_grad_(True)
    labels = torch.randint(3, mask.shape)
    labels[0, 0] = -100
    policy = policies.Confidence(0.5)
    call = {"max_steps": MAX_STEPS, "attention_mask": mask, "labels": labels}
    out = loop(hidden, objective=objective, halting=halting, policy=policy, **call)
    out.loss.backward()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in loop.parameters())
    assert hidden.grad[mask].isfinite().all()
    assert not hidden.grad[~mask].any()


def test_the_loss_is_that_of_positions_as_rows() -> None:
    loop = make_loop("plain").train()
    hidden, mask = make_batch()
    labels = torch.randint(3, mask.shape)
    call = {"max_steps": MAX_STEPS, "attention_mask": mask}
    out = loop(hidden, labels=labels, objective=objectives.Ponder(0.5), **call)
    trajectory = out.trajectory
    assert len(trajectory) == int(mask.sum())
    log_pmf = trajectory.halting.log_pmf
    prior = priors.Geometric(0.1).rescaled(12, MAX_STEPS)(MAX_STEPS)
    fits = torch.nn.functional.cross_entropy(
        trajectory.outputs.transpose(1, 2),
        labels[mask][:, None].expand(-1, MAX_STEPS),
        reduction="none",
    )
    each = (log_pmf.exp() * (fits + 0.5 * (log_pmf - prior.log_pmf))).sum(1)
    torch.testing.assert_close(out.loss, each.mean())


def test_act_per_position_is_graves_rule_in_plain_loops() -> None:
    """Units add up to 1 − ε at the last step; the answer is their mean, the cost that step and the remainder."""
    loop = make_loop("plain").train()
    hidden, mask = make_batch()
    labels = torch.randint(3, mask.shape)
    call = {"max_steps": MAX_STEPS, "attention_mask": mask}
    epsilon, cost = 0.05, 0.02
    out = loop(hidden, labels=labels, objective=objectives.ACT(cost, epsilon=epsilon), **call)
    trajectory = out.trajectory
    losses: list[float] = []
    lasts: list[int] = []
    for logits, outputs, label in zip(
        trajectory.hazard_logits, trajectory.outputs, labels[mask], strict=True
    ):
        units = logits.sigmoid().tolist()
        spent, step, answer = 0.0, 0, [0.0] * 3
        while step < MAX_STEPS:
            now = outputs[step].tolist()
            step += 1
            remainder = 1.0 - spent
            halts = step == MAX_STEPS or spent + units[step - 1] >= 1.0 - epsilon
            share = remainder if halts else units[step - 1]
            answer = [old + share * each for old, each in zip(answer, now, strict=True)]
            spent += units[step - 1]
            if halts:
                break
        lasts.append(step)
        fit = math.log(sum(map(math.exp, answer))) - answer[int(label)]
        losses.append(fit + cost * (step + remainder))
    assert float(out.loss.detach()) == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    exits = trajectory.replay(policies.ACT(epsilon)).exit_step.tolist()
    assert exits == lasts
    assert len(set(lasts)) > 1


def test_learning_to_copy_positions_from_their_neighbours() -> None:
    torch.manual_seed(0)
    loop = Loop(ponder.loops.Block(WIDTH, 2), torch.nn.Linear(WIDTH, 2))
    embed = torch.nn.Embedding(2, WIDTH)
    places = torch.nn.Parameter(torch.randn(6, WIDTH))
    optimizer = torch.optim.Adam([*loop.parameters(), *embed.parameters(), places], 3e-3)
    bits = torch.randint(2, (64, 6))
    labels = bits.roll(1, 1)
    objective = objectives.DeepSupervision("uniform")
    for _ in range(150):
        out = loop(embed(bits) + places, max_steps=3, labels=labels, objective=objective)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    out = loop.eval()(embed(bits) + places, max_steps=3, policy=policies.Confidence(0.9))
    assert (out.outputs.argmax(-1) == labels).float().mean() > 0.95
    assert out.exit_step.float().mean() < 2.5
