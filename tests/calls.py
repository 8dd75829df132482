"""Python calls into our files, and the overhead beside a loop written by hand: ``python -m tests.calls``.

Prints one table of calls and one of overheads, with the aims beside them. Not collected: times
belong to no test.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ponder
from ponder import policies

ROOT = str(Path(ponder.__file__).parent)
WIDTH, CLASSES, STEPS, VOCABULARY = 384, 3, 6, 1000  # MiniLM's width and depth


class Embed(nn.Module):
    """Token ids to vectors, with the mask that PyTorch's layers read."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        return self.norm(self.words(ids))


class Encoder(nn.Module):
    """A plain encoder with a list of layers, for `from_recipe`."""

    def __init__(self, width: int = WIDTH, steps: int = STEPS) -> None:
        super().__init__()
        self.embed = Embed() if width == WIDTH else nn.Identity()
        self.layers = nn.ModuleList([layer(width) for _ in range(steps)])

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embed(inputs)
        for each in self.layers:
            hidden = each(hidden)
        return hidden


def layer(width: int = WIDTH) -> nn.Module:
    """Return a layer of MiniLM's size."""
    return nn.TransformerEncoderLayer(
        width, 12 if width == WIDTH else 2, 4 * width, dropout=0.0, batch_first=True
    )


def hand_written() -> ponder.PonderWrapper:
    """Return a model given as steps, each with a head of its own."""
    heads = ponder.PerStep(nn.Linear(WIDTH, CLASSES) for _ in range(STEPS))
    return ponder.PonderWrapper(
        [layer() for _ in range(STEPS)],
        stem=Embed(),
        readout=ponder.readouts.first_token,
        head=heads,
        task="classification",
        objective=ponder.objectives.DeepSupervision("uniform"),
        policy=policies.Confidence(0.99),
    )


def by_hand(model: Any, ids: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Exit early as one would write it for this model alone."""
    hidden = model.stem(ids)
    rows = torch.arange(len(ids))
    outputs = hidden.new_empty(len(ids), CLASSES)
    exits = torch.empty(len(ids), dtype=torch.long)
    last = len(model.steps.fns)
    for step, (each, head) in enumerate(
        zip(model.steps.fns, model.head.heads, strict=True), start=1
    ):
        hidden = each(hidden)
        logits = head(hidden[:, 0])
        if step == last:
            outputs[rows], exits[rows] = logits, step
            break
        sure = logits.float().softmax(-1).amax(-1) > threshold
        if not sure.any():
            continue
        outputs[rows[sure]], exits[rows[sure]] = logits[sure], step
        if sure.all():
            break
        rows = rows[~sure]
        hidden = hidden[~sure]
    return outputs, exits


def train_by_hand(model: Any, ids: Tensor, labels: Tensor) -> Tensor:
    """Train the head of every step, as one would write it for this model alone."""
    hidden = model.stem(ids)
    losses = []
    for each, head in zip(model.steps.fns, model.head.heads, strict=True):
        hidden = each(hidden)
        losses.append(nn.functional.cross_entropy(head(hidden[:, 0]), labels))
    return torch.stack(losses).mean()


def count(call: Callable[[], Any]) -> tuple[int, int]:
    """Return how many Python functions of our files a call runs, and in how many files they are."""
    seen: Counter[tuple[str, str]] = Counter()

    def profile(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(ROOT):
            seen[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    call()  # what is done once is not counted
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    if "-v" in sys.argv:
        for (file, function), number in seen.most_common():
            print(f"    {number:5d} {Path(file).relative_to(ROOT)} {function}")
    return sum(seen.values()), len({file for file, _ in seen})


def overhead(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> float:
    """Return the median ratio of the processor time of two functions that are called in turn."""
    ratios = []
    for _ in range(rounds):
        spent = []
        for function in (ours, theirs, theirs, ours):
            begin = time.process_time()
            function()
            spent.append(time.process_time() - begin)
        ratios.append((spent[0] + spent[3]) / (spent[1] + spent[2]))
    return statistics.median(ratios)


def calls() -> dict[str, tuple[Callable[[], Any], int]]:
    """Return the calls that are counted, by name, each with its aim."""
    hand = hand_written().eval()
    ids = torch.randint(VOCABULARY, (4, 16))
    steps = ponder.PonderWrapper.from_recipe(
        [layer() for _ in range(STEPS)], "palbert", stem=Embed(), num_outputs=CLASSES, example=ids
    )
    small = Encoder(width=16)
    example = torch.randn(4, 5, 16)
    captured = ponder.PonderWrapper.from_recipe(
        Encoder(), "palbert", num_outputs=CLASSES, example=ids
    )
    labels = torch.randint(CLASSES, (4,))
    rows = list(ids)

    steps_trained = copy.deepcopy(steps.train())
    captured_trained = copy.deepcopy(captured.train())
    steps.eval(), captured.eval()
    trajectory = hand.unroll(
        torch.randint(VOCABULARY, (300, 4)), labels=torch.randint(CLASSES, (300,))
    )
    confidence = policies.Confidence
    build = ponder.PonderWrapper.from_recipe
    return {
        "from_recipe": (lambda: build(small, "palbert", num_outputs=3, example=example), 1500),
        "evaluation, steps": (lambda: steps(ids), 60),
        "evaluation, captured": (lambda: captured(ids), 100),
        "training, steps": (lambda: steps_trained(ids, labels=labels), 120),
        "training, captured": (lambda: captured_trained(ids, labels=labels), 120),
        "predict, 4 rows": (lambda: ponder.predict(hand, rows), 150),
        "Live, 1,000 texts": (live_of_a_thousand, 60_000),
        "control_risk": (
            lambda: ponder.control_risk(trajectory, confidence, level=0.05, confidence=0.95),
            600,
        ),
    }


def live_of_a_thousand() -> None:
    """Answer 1,000 texts by a fresh `Live`, whose models are functions."""

    def ask(texts: list[str]) -> list[str]:
        return ["card" if "card" in text else "loan" for text in texts]

    def cheap(texts: list[str]) -> Any:
        return np.array([[0.99, 0.01] if "card" in text else [0.01, 0.99] for text in texts])

    texts = [f"{word} number {n}" for n in range(500) for word in ("my card", "a loan")]
    ponder.Live(ask, 0.05, cheap=cheap, classes=["card", "loan"]).answer(texts)


def overheads() -> dict[str, tuple[Callable[[], Any], Callable[[], Any], float]]:
    """Return pairs of ours and the hand-written, by name, each with its aim."""
    rows = {}
    for batch, length, aim in ((1, 16, 1.08), (1, 32, 1.05), (8, 32, 1.03), (32, 32, 1.03)):
        model = hand_written().eval()
        ids = torch.randint(VOCABULARY, (batch, length))
        with torch.no_grad():
            sure = model.unroll(ids).outputs.softmax(-1).amax(-1)
            threshold = float(sure[:, :-1].amax(1).median())  # about half of the rows exit early
            model.policy = policies.Confidence(threshold)
            assert torch.equal(model(ids).exit_step, by_hand(model, ids, threshold)[1])
        ours = torch.no_grad()(partial(model, ids))
        theirs = torch.no_grad()(partial(by_hand, model, ids, threshold))
        rows[f"evaluation, {batch} × {length}"] = (ours, theirs, aim)
    trained = hand_written()
    ids = torch.randint(VOCABULARY, (8, 32))
    labels = torch.randint(CLASSES, (8,))
    trained.train()
    rows["training, 8 × 32"] = (
        lambda: trained(ids, labels=labels),
        lambda: train_by_hand(trained, ids, labels),
        1.08,
    )
    return rows


def main() -> None:
    """Print both tables."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{'calls of our functions':26} {'calls':>7} {'files':>6} {'aim':>7}")
    for name, (call, aim) in calls().items():
        number, files = count(call)
        print(f"{name:26} {number:7d} {files:6d} {aim:7d}")
    if "--times" in sys.argv:
        print(f"\n{'beside a loop by hand':26} {'ratio':>7} {'aim':>7}")
        for name, (ours, theirs, limit) in overheads().items():
            ratio = overhead(ours, theirs, 300 if name.startswith("evaluation, 1 ") else 60)
            print(f"{name:26} {ratio:7.3f} {limit:7.2f}")


if __name__ == "__main__":
    main()
