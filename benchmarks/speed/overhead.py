"""Section 1: the cost of wrapping at full depth, and the gain of compiled layers.

The plain model is the one of Transformers with the same weights; both give the same logits. Rows are full, so that
neither side can save padding. "Compiled" compiles the layers of both, with sizes that stay open.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from benchmarks.speed.subjects import Options, Seconds, Subject, albert_base, figure, interleaved, minilm, ratio

__all__ = ["SECTION", "measure"]

SECTION = "overhead"
ANYWHERE, OVERALL, COMPILED = 1.03, 1.00, 1.25
BATCHES, LENGTHS = (1, 8, 32), (32, 128)


def measure(options: Options) -> list[dict[str, Any]]:
    """Return the section's figures."""
    found: list[dict[str, Any]] = []
    for make in (albert_base, minilm):
        subject = make(options)
        found += _full_depth(subject, options)
        compiled = subject.compiled(backend="eager" if options.quick else "inductor")
        found += _full_depth(compiled, options)
        for length in _lengths(options):
            batch = subject.batch(BATCHES[-1], length)
            seconds = _timed(options, eager=subject.run_wrapped(batch), compiled=compiled.run_wrapped(batch))
            case, value = f"{subject.name}, batch {BATCHES[-1]}, length {length}", ratio(seconds, "eager", "compiled")
            found.append(figure(SECTION, case, "throughput compiled ÷ eager", value, at_least=COMPILED))
        torch._dynamo.reset()
    return found


def _full_depth(subject: Subject, options: Options) -> list[dict[str, Any]]:
    found = []
    for rows in BATCHES[:2] if options.quick else BATCHES:
        for length in _lengths(options):
            batch = subject.batch(rows, length)
            seconds = _timed(options, wrapped=subject.run_wrapped(batch), plain=subject.run_plain(batch))
            case, value = f"{subject.name}, batch {rows}, length {length}", ratio(seconds, "wrapped", "plain")
            found.append(figure(SECTION, case, "time at full depth ÷ plain", value, at_most=ANYWHERE))
    middle = statistics.median(one["value"] for one in found)
    found.append(figure(SECTION, f"{subject.name}, all", "time at full depth ÷ plain", middle, at_most=OVERALL))
    return found


def _timed(options: Options, **calls: Any) -> Seconds:
    if options.quick:
        return interleaved(calls, rounds=1, least=0.0)
    return interleaved(calls, rounds=options.pairs, budget=6.0)


def _lengths(options: Options) -> tuple[int, ...]:
    return (8,) if options.quick else LENGTHS
