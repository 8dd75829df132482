"""Recordings with an answer a token: padding counts neither for agreement nor for scores, risks and calibration."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import ponder
from ponder.analysis.reliability import confidences
from ponder.calibration import check_fresh
from ponder.calibration.risks import losses_by_step
from ponder.policies import Confidence, Patience
from tests.ponder.checks import refused

ROWS, STEPS, LENGTH = 30, 4, 5


def tagged(garbage: float) -> ponder.Trajectory:
    """Rows of one to five tokens, whose padded positions hold `garbage` and a label like any other."""
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(ROWS, STEPS, LENGTH, 3, generator=generator).cumsum(1)
    outputs[::3] = outputs[::3, :1]  # settled from the first step
    labels = outputs[:, -1].argmax(-1)
    labels[::4] = torch.randint(3, (len(labels[::4]), LENGTH), generator=generator)
    lengths = torch.arange(ROWS) % LENGTH + 1
    mask = torch.arange(LENGTH) < lengths[:, None]
    padding = ~mask[:, None, :, None] & (torch.arange(STEPS)[None, :, None, None] % 2 == 0)
    noise = garbage * torch.randn(outputs.shape, generator=generator)
    labels = torch.where(mask, labels, 2)
    return ponder.Trajectory(
        torch.where(padding, noise, outputs),
        None,
        torch.arange(ROWS),
        labels=labels,
        task="token_classification",
        mask=mask,
    )


def cut(trajectory: ponder.Trajectory, row: int) -> tuple[list[list[int]], list[int]]:
    """Predictions of a row at each step, and its labels, without padding: plain Python."""
    length = int(trajectory.mask[row].sum())
    answers = [[token.index(max(token)) for token in step[:length]] for step in trajectory.outputs[row].tolist()]
    return answers, trajectory.labels[row, :length].tolist()


@pytest.mark.parametrize("garbage", [3.0, float("nan")])
def test_what_is_right_and_what_agrees_is_told_without_padding(garbage: float) -> None:
    trajectory = tagged(garbage)
    rows = [cut(trajectory, row) for row in range(ROWS)]
    agrees = [[step == steps[-1] for step in steps] for steps, _ in rows]
    right = [[step == labels for step in steps] for steps, labels in rows]
    assert trajectory.agreement().tolist() == agrees
    assert trajectory.correct().tolist() == right
    assert losses_by_step("disagreement", trajectory).tolist() == [[float(not a) for a in row] for row in agrees]
    assert losses_by_step("error", trajectory).tolist() == [[float(not r) for r in row] for row in right]
    full = sum(row[-1] for row in right) / ROWS
    curve = trajectory.sweep(Confidence, [0.4, 0.6])
    assert curve.full_depth.score == pytest.approx(full)
    for policy, point in zip(curve.policies, curve.points, strict=True):
        exits = trajectory.replay(policy).exit_step.tolist()
        assert len(set(exits)) > 1
        assert point.score == pytest.approx(sum(row[n - 1] for row, n in zip(right, exits, strict=True)) / ROWS)
        assert point.agreement == pytest.approx(sum(row[n - 1] for row, n in zip(agrees, exits, strict=True)) / ROWS)
    assert trajectory.overthinking().right[-1] == pytest.approx(full)


@pytest.mark.parametrize("like", [Confidence, Patience])
def test_garbage_at_padding_changes_no_choice(like: Any) -> None:
    one, other = tagged(3.0), tagged(-50.0)
    for call in (
        lambda t: t.sweep(like).to_dict(),
        lambda t: ponder.calibrate(t, like, at_least=0.9).policy,
        lambda t: ponder.control_risk(t, like, level=0.5, confidence=0.6).policy,
        lambda t: ponder.control_risk(t, like, risk="error", level=0.6, confidence=0.6).policy,
    ):
        assert call(one) == call(other)


def on_the_left(trajectory: ponder.Trajectory, more: int) -> ponder.Trajectory:
    """The same rows behind their padding, of which there are some positions more."""
    outputs = torch.full((ROWS, STEPS, LENGTH + more, 3), torch.nan)
    labels = torch.full((ROWS, LENGTH + more), -100)
    mask = torch.zeros(ROWS, LENGTH + more, dtype=torch.bool)
    for row, length in enumerate(trajectory.mask.sum(1).tolist()):
        outputs[row, :, -length:] = trajectory.outputs[row, :, :length]
        labels[row, -length:], mask[row, -length:] = trajectory.labels[row, :length], True
    return dataclasses.replace(trajectory, outputs=outputs, labels=labels, mask=mask)


AGAIN = {
    "other numbers": lambda: tagged(-50.0),
    "NaN": lambda: tagged(float("nan")),
    "on the left": lambda: on_the_left(tagged(3.0), 0),
    "on the left, wider": lambda: on_the_left(tagged(3.0), 2),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
def test_rows_are_known_again_whatever_stands_at_padding(again: Any) -> None:
    """The trap: `record` blanks padding and `unroll` does not, so that the rows that chose a policy certified it."""
    chose = tagged(3.0)
    with refused("test", f"{ROWS} rows with the same id"):
        ponder.calibrate(chose, Confidence, at_most_steps=3.0).evaluate(again())
    with refused("trajectory", f"{ROWS} of {2 * ROWS} rows a second time"):
        ponder.control_risk(ponder.Trajectory.cat([chose, again()]), Confidence, level=0.5)
    check_fresh(again().map(lambda tensor: tensor.flip(0) if tensor.is_floating_point() else tensor), chose)


def test_spans_are_known_again_whatever_stands_at_padding() -> None:
    tokens = tagged(3.0)
    of_spans = {"outputs": tokens.outputs[..., :2], "labels": torch.zeros(ROWS, 2).long(), "task": "span"}
    spans = dataclasses.replace(tokens, **of_spans)
    blank = torch.where(spans.mask[:, None, :, None], spans.outputs, spans.meaning.blank)
    with refused("test", f"{ROWS} rows with the same id"):
        check_fresh(dataclasses.replace(spans, outputs=blank), spans)
    flipped = spans.mask.flip(1)  # padding in front, where labels are other places
    places = spans.mask.byte().sort(dim=1, stable=True).indices
    outputs = spans.outputs.gather(2, places[:, None, :, None].expand_as(spans.outputs))
    in_front = (~spans.mask).sum(1, keepdim=True)
    left = dataclasses.replace(spans, outputs=outputs, mask=flipped, labels=spans.labels + in_front)
    with refused("test", f"{ROWS} rows with the same id"):
        check_fresh(left, spans)


def test_nan_at_padding_is_no_missing_confidence() -> None:
    one, other = tagged(3.0), tagged(float("nan"))
    assert [repr(each) for each in other.reliability()] == [repr(each) for each in one.reliability()]
    one.outputs[LENGTH - 1, 0, 0, 0] = torch.nan
    with refused("trajectories", "NaN"):
        one.reliability()


def test_confidences_are_of_real_tokens() -> None:
    trajectory = tagged(3.0)
    probability, right = confidences(trajectory)
    assert probability.shape == right.shape == (int(trajectory.mask.sum()), STEPS)
    ignored = dataclasses.replace(trajectory, labels=torch.full_like(trajectory.labels, -100))
    assert confidences(ignored)[0].shape == (0, STEPS)


def test_what_pads_shorter_batches_is_no_answer() -> None:
    """Without masks every position is one, up to the end of its own batch."""
    generator = torch.Generator().manual_seed(3)
    made = [torch.randn(4, STEPS, length, 3, generator=generator).cumsum(1) for length in (4, 6)]
    parts = [
        ponder.Trajectory(outputs, None, torch.arange(4), labels=outputs[:, -1].argmax(-1), task="token_classification")
        for outputs in made
    ]
    both = ponder.Trajectory.cat(parts)
    for policy in (Confidence(0.5), Confidence(0.4)):
        exits = torch.cat([part.replay(policy).exit_step for part in parts])
        assert torch.equal(both.replay(policy).exit_step, exits)
        assert len(exits.unique()) > 1
    assert torch.equal(both.correct(), torch.cat([part.correct() for part in parts]))
    masked = dataclasses.replace(parts[0], mask=torch.ones(4, 4, dtype=torch.bool))
    mixed = ponder.Trajectory.cat([masked, parts[1]])
    assert torch.equal(mixed.replay(Confidence(0.5)).exit_step, both.replay(Confidence(0.5)).exit_step)
    assert ponder.Trajectory.cat([parts[0], parts[0]]).mask is None  # of one length nothing is padded
