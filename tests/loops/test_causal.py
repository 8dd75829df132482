"""A token of a causal loop is computed once, and the text is that of computing everything anew."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ponder import LambdaHead, policies
from ponder.errors import ArgumentError
from ponder.loops import Block, Loop, greedy
from tests.loops.models import WIDTH, make_batch, make_loop

WORDS, MAX_STEPS = 11, 6


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(30, WIDTH)

    def forward(self, tokens: Tensor, places: Tensor) -> Tensor:
        return self.tokens(tokens) + self.places(places)


@torch.no_grad()
@pytest.mark.parametrize(
    "policy",
    [
        policies.Confidence(0.28),
        policies.Entropy(2.0),
        policies.Quantile(0.6),
        policies.Patience(1),
        policies.Converged(tolerance=0.15, on="features"),
        policies.Bernoulli(seed=5),
        policies.LastStep(),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_generation_is_computing_everything_anew(policy: policies.ExitPolicy) -> None:
    torch.manual_seed(0)
    loop = Loop(Block(WIDTH, 2, causal=True), nn.Linear(WIDTH, WORDS), LambdaHead(WIDTH)).eval()
    embed = Embed()
    prompt = torch.randint(WORDS, (3, 4))
    made = greedy(loop, embed, prompt, new_tokens=8, max_steps=MAX_STEPS, policy=policy)
    tokens = prompt
    for _ in range(8):
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        whole = loop(embed(tokens, places), max_steps=MAX_STEPS, policy=policy)
        tokens = torch.cat([tokens, whole.outputs[:, -1:].argmax(-1)], dim=1)
    assert made.tokens.tolist() == tokens.tolist()
    assert made.exit_step.tolist() == whole.exit_step.tolist()
    if not isinstance(policy, policies.LastStep):
        assert made.exit_step.unique().numel() > 1


@torch.no_grad()
def test_scoring_a_prefix_does_not_depend_on_what_follows() -> None:
    loop = make_loop("causal")
    hidden, _ = make_batch((5, 5, 5))
    call = {"max_steps": MAX_STEPS, "policy": policies.Confidence(0.5)}
    whole = loop(hidden, **call)
    part = loop(hidden[:, :3], **call)
    assert part.exit_step.tolist() == whole.exit_step[:, :3].tolist()
    torch.testing.assert_close(part.outputs, whole.outputs[:, :3], atol=1e-5, rtol=1e-5)


def test_each_token_is_run_to_its_exit_and_no_further() -> None:
    torch.manual_seed(0)
    loop = Loop(Block(WIDTH, 2, causal=True), nn.Linear(WIDTH, WORDS)).eval()
    run: list[int] = []
    loop.step.feed_forward.register_forward_hook(lambda *call: run.append(call[2][..., 0].numel()))
    prompt = torch.randint(WORDS, (3, 4))
    policy = policies.Confidence(0.28)
    made = greedy(loop, Embed(), prompt, new_tokens=5, max_steps=MAX_STEPS, policy=policy)
    assert sum(run) == int(made.exit_step.sum())


def test_a_block_that_sees_what_follows_generates_nothing() -> None:
    with pytest.raises(ArgumentError, match="causal"):
        greedy(make_loop("block"), Embed(), torch.zeros(1, 2).long(), new_tokens=1, max_steps=2)
