"""Section 1: what wrapping costs at full depth, and what compiling and bfloat16 save.

The plain model is the one of Transformers with the same weights; both give the same logits. Rows are full, so that
neither side can leave padding out. "Compiled" compiles the layers of both, with sizes left open.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.figures import Options, figure, not_measured
from benchmarks.speed.subjects import Subject, albert_base, minilm
from benchmarks.speed.timing import Seconds, interleaved, ratio

__all__ = ["SECTION", "measure"]

SECTION = "overhead"
ANYWHERE, OVERALL, COMPILED, HALF = 1.03, 1.00, 1.25, 2.0
BATCHES, LENGTHS = (1, 8, 32), (32, 128)
BUDGET = 6.0


def measure(options: Options) -> list[dict[str, Any]]:
    """The section's figures."""
    found: list[dict[str, Any]] = []
    for make in (albert_base, minilm):
        subject = make(options)
        found += _full_depth(subject, options)
        found += _precision(subject, options)
        try:
            compiled = subject.compiled(backend="eager" if options.quick else "inductor")
            found += _full_depth(compiled, options)
            found += _compilation(subject, compiled, options)
        except Exception as error:  # no compiler, or one that fails: the section goes on
            found.append(not_measured(SECTION, f"{subject.name}, compiled", f"{type(error).__name__}: {error}"[:200]))
        finally:
            torch._dynamo.reset()
    return found


def _full_depth(subject: Subject, options: Options) -> list[dict[str, Any]]:
    found = []
    for rows, length in _cases(options):
        batch = subject.batch(rows, length)
        calls = {"wrapped": subject.run_wrapped(batch), "plain": subject.run_plain(batch)}
        seconds = _timed(calls, options)
        case = f"{subject.name}, batch {rows}, length {length}"
        found.append(
            figure(SECTION, case, "time at full depth ÷ plain", ratio(seconds, "wrapped", "plain"), at_most=ANYWHERE)
        )
    middle = statistics.median(one["value"] for one in found)
    found.append(figure(SECTION, f"{subject.name}, all", "time at full depth ÷ plain", middle, at_most=OVERALL))
    return found


def _compilation(subject: Subject, compiled: Subject, options: Options) -> list[dict[str, Any]]:
    found = []
    for length in _lengths(options):
        batch = subject.batch(BATCHES[-1], length)
        seconds = _timed({"eager": subject.run_wrapped(batch), "compiled": compiled.run_wrapped(batch)}, options)
        case = f"{subject.name}, batch {BATCHES[-1]}, length {length}"
        found.append(
            figure(SECTION, case, "throughput compiled ÷ eager", ratio(seconds, "eager", "compiled"), at_least=COMPILED)
        )
    return found


def _precision(subject: Subject, options: Options) -> list[dict[str, Any]]:
    """`predict(dtype=…)` runs under autocast; a model that was converted is faster, and less exact."""
    found, half, units = [], subject.to(torch.bfloat16), bfloat16_units()
    goal = HALF if units else None
    for length in _lengths(options):
        batch = subject.batch(BATCHES[-1], length)
        calls: dict[str, Callable[[], object]] = {
            "fp32": subject.run_wrapped(batch),
            "autocast": torch.autocast(options.device.type, dtype=torch.bfloat16)(subject.run_wrapped(batch)),
            "converted": half.run_wrapped(batch),
        }
        seconds = _timed(calls, options)
        for how in ("autocast", "converted"):
            case = f"{subject.name}, batch {BATCHES[-1]}, length {length}, {how}"
            value = ratio(seconds, "fp32", how)
            found.append(figure(SECTION, case, "throughput bf16 ÷ fp32", value, at_least=goal, processor=units))
    return found


def bfloat16_units() -> list[str]:
    """The processor's instructions for bfloat16 products, by their names in Linux; empty where there are none."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return sorted(flags & {"amx_bf16", "avx512_bf16", "avx_ne_convert"})


def _timed(calls: Mapping[str, Callable[[], object]], options: Options) -> Seconds:
    if options.quick:
        return interleaved(calls, rounds=1, least=0.0)
    return interleaved(calls, rounds=options.pairs, budget=BUDGET)


def _cases(options: Options) -> list[tuple[int, int]]:
    return [(rows, length) for rows in (BATCHES[:2] if options.quick else BATCHES) for length in _lengths(options)]


def _lengths(options: Options) -> tuple[int, ...]:
    return (8,) if options.quick else LENGTHS
