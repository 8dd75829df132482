"""One root, Python's own categories, and errors that travel home from worker processes."""

from __future__ import annotations

import math
import pickle
from typing import Any

import numpy as np
import pytest

import ponder
from ponder import errors, policies
from ponder._utils.validation import check_real, check_share, check_type
from ponder.serving import refusals

WRONG = {"expected": "a number", "got": 3, "remedy": "Pass one."}


@pytest.mark.parametrize(
    ("kind", "python"),
    [
        (errors.ArgumentError, ValueError),
        (errors.ArgumentTypeError, TypeError),
        (errors.DataError, ValueError),
        (errors.CheckpointError, ValueError),
        (errors.NonFiniteError, ArithmeticError),
    ],
)
def test_errors_are_the_librarys_and_pythons(kind: type[Exception], python: type[Exception]) -> None:
    assert issubclass(kind, ponder.PonderError)
    assert issubclass(kind, python)
    assert kind.__name__ in errors.__all__


@pytest.mark.parametrize("kind", [errors.ArgumentError, errors.ArgumentTypeError])
def test_argument_errors_say_argument_expected_got_and_remedy(kind: type[Exception]) -> None:
    error = kind("q", **WRONG)
    assert str(error) == "q: expected a number; got 3. Pass one."
    assert (error.argument, error.expected, error.got, error.remedy) == ("q", "a number", "3", "Pass one.")


@pytest.mark.parametrize(
    "error",
    [
        errors.ArgumentError("q", **WRONG),
        errors.ArgumentTypeError("q", **WRONG),
        errors.DataError("a.tsv, line 3: 2 columns"),
        errors.CheckpointError("truncated"),
        errors.NonFiniteError("step 3"),
        errors.PonderError("other"),
        refusals.BrokenError(),
        refusals.OverloadedError(7),
        refusals.StoppingError(),
        refusals.TooLateError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_are_pickled(error: Exception) -> None:
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is type(error)
    assert str(twin) == str(error)
    assert twin.__dict__ == error.__dict__


def test_articles_are_those_of_english() -> None:
    with pytest.raises(errors.ArgumentTypeError, match=r"expected an ExitPolicy \(of ponder"):
        check_type("policy", 1, ponder.policies.ExitPolicy)
    with pytest.raises(errors.ArgumentTypeError, match=r"expected a Trajectory \(of ponder"):
        check_type("trajectory", 1, ponder.Trajectory)


def test_what_is_expected_of_numbers_can_be_passed() -> None:
    with pytest.raises(errors.ArgumentError, match=r"^q: expected a finite number; got nan\. Pass q=1, say\.$"):
        check_real("q", math.nan, -math.inf)
    for share in (0, 1.0, True):
        with pytest.raises(errors.ArgumentError, match=r"^q: expected a number in \(0, 1\); got .*\. Pass q=0\.5, say"):
            check_share("q", share)


@pytest.mark.parametrize("call", [lambda: policies.Patience(np.int64(2)), lambda: policies.Confidence(np.float32(0.5))])
def test_numbers_of_numpy_are_told_what_to_become(call: Any) -> None:
    with pytest.raises(errors.ArgumentError, match=r"Pass a number of Python: (int\(patience\)|float\(threshold\))\."):
        call()
