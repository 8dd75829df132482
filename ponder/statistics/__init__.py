"""Promises about anything: ledger, bounds, certificates, verdicts and repeats; NumPy and SciPy.

* `bounds` gives p-values of a mean loss, and `ledger` a bound on a stream at all times.
* `sequence` tests values in a fixed order, until one fails.
* `certificate` states a promise, and `verdict` judges it on fresh rows.
* `answers` certifies a threshold on the confidences of any model.
* `repeats` says what rows are, where texts occur again, and `used` which rows made a promise.
"""

from typing import TYPE_CHECKING

from ponder._utils.lazy import lazy_names

if TYPE_CHECKING:
    from ponder.statistics.ledger import Ledger

__all__ = ["Ledger"]

if not TYPE_CHECKING:
    __getattr__ = lazy_names(__name__, ("ledger:Ledger",))
