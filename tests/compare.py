"""How tests compare two forward passes: weights bit for bit, outputs within rounding, exits but for close calls.

Two passes give the same floats only if weights, batch and kernels are the same objects. A copy of
the weights may lie at another address, and a row in another batch may take another kernel; sums are
then made in another order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ponder import policies
from ponder.policies.base import all_within

CLOSE_CALL = 1e-5
"""A statistic this near to its threshold may fall on either side after rounding."""
_TOLERANCE = {np.dtype(np.float64): 1e-9}


def assert_same_weights(found: nn.Module, expected: nn.Module) -> None:
    """Every weight and buffer that is saved is equal, bit for bit."""
    found_state = found.state_dict()
    expected_state = expected.state_dict()
    assert found_state.keys() == expected_state.keys()
    for name, weight in expected_state.items():
        assert torch.equal(found_state[name], weight), name


def assert_same_answers(found: Any, expected: Any, atol: float | None = None) -> None:
    """Outputs of equal weights are equal within rounding: 1e-5 in single precision, 1e-9 in double."""
    one, other = (np.asarray(_array(each)) for each in (found, expected))
    assert one.dtype == other.dtype
    tolerance = _TOLERANCE.get(one.dtype, 1e-5) if atol is None else atol
    np.testing.assert_allclose(one, other, rtol=10 * tolerance, atol=tolerance)


def clear_rows(record: Any, policy: policies.ExitPolicy) -> NDArray[np.bool_]:
    """Return the rows of a record whose exits and answers rounding cannot change, `(rows,)`.

    The others have a statistic within `CLOSE_CALL` of its threshold, or two greatest outputs that
    are as near. They are few, or the test that compares the clear ones shows nothing.
    """
    mask = None if record.mask is None else np.asarray(_array(record.mask))
    close = _tied(np.asarray(_array(record.outputs)), mask)
    for each in all_within(policy):
        if each.tunable is None or each.tunable.whole:
            continue
        sign = 1.0 if each.tunable.higher_exits_later else -1.0
        threshold = sign * getattr(each, each.tunable.field)
        distances = np.abs(policy.scores(record, free=each) - threshold)
        close |= (distances <= CLOSE_CALL).any(1)
    assert close.mean() <= 0.2, "nearly all rows must be clear"
    return ~close


def assert_same_rows(found: Any, expected: Any, clear: NDArray[np.bool_]) -> None:
    """The clear rows of two columns (exit steps, labels, stages) are equal."""
    one, other = (np.asarray(_array(each)) for each in (found, expected))
    assert one.shape == other.shape
    np.testing.assert_array_equal(one[clear], other[clear])


def _array(values: Any) -> NDArray[Any] | Sequence[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _tied(outputs: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """Return the rows whose two greatest outputs are nearly equal at a step, or at a real position, `(rows,)`."""
    if outputs.shape[-1] < 2:
        return np.zeros(len(outputs), dtype=bool)
    greatest = np.partition(outputs, -2, axis=-1)[..., -2:]
    gaps = greatest[..., 1] - greatest[..., 0]
    if mask is not None and gaps.ndim == 3:
        gaps = np.where(mask[:, None], gaps, np.inf)
    return (gaps <= CLOSE_CALL).reshape(len(outputs), -1).any(1)
