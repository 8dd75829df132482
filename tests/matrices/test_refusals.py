"""A public call that is refused, or interrupted, after it has begun leaves everything as it was before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder._utils.seals import digest_of_path
from ponder.cascade import Cascade
from ponder.errors import NonFiniteError
from ponder.integrations.transformers import PonderForSequenceClassification, fit_exits
from ponder.integrations.transformers.rerank import CrossEncoder
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

TEXTS = some_texts(400)
QUERIES = [
    {"query": TEXTS[n], "documents": [TEXTS[(11 * n + 7 * place) % 397] for place in range(6)]}
    for n in range(120)
]


class Case(NamedTuple):
    """A call that is refused, and what has to stay."""

    call: Callable[[], object]
    state: Callable[[], Any]
    error: type[BaseException]


def cascade_case(call: Callable[[Cascade], object], error: type[BaseException]) -> Case:
    def cheap(inputs: Sequence[int]) -> Any:
        return np.where(np.array(inputs)[:, None] % 3 == 0, 0.5, [0.98, 0.02])

    def large(inputs: Sequence[int]) -> Any:
        if -1 in inputs:
            raise KeyboardInterrupt
        return np.tile([1.0, 0.0], (len(inputs), 1))

    cascade = Cascade([cheap, large], classes=["yes", "no"])
    assert cascade.certify(range(600), level=0.02).met
    state = lambda: (cascade.policy, cascade.costs, cascade.predict(range(9)).stage.tolist())  # noqa: E731
    return Case(lambda: call(cascade), state, error)


def state_of_model(model: Any) -> Any:
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    return weights, model.policy, model.config.exits, model.training


def exits_case(call: Callable[[Any], object], error: type[BaseException]) -> Case:
    model = PonderForSequenceClassification.from_finetuned(make_plain())
    model.tokenizer = make_tokenizer()
    fit_exits(model, TEXTS[:200], disagreement=0.3, epochs=1)
    return Case(lambda: call(model), lambda: state_of_model(model), error)


def ranker_case(call: Callable[[Any], object], error: type[BaseException]) -> Case:
    ranker = CrossEncoder(make_plain("sequence", "bert", labels=1), tokenizer=make_tokenizer())
    ranker.fit_exits(QUERIES[:100], top_k=2, changed=0.3)
    state = lambda: (ranker.settings, state_of_model(ranker.model))  # noqa: E731
    return Case(lambda: call(ranker), state, error)


def advise_case(tmp_path: Path, call: Callable[[Path], object], error: type[BaseException]) -> Case:
    model = make_plain()
    model.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    scratch = Path(tempfile.gettempdir())
    left = lambda: {path for path in scratch.glob("ponder-advise-*") if path not in before}  # noqa: E731
    before = set(scratch.glob("ponder-advise-*"))
    state = lambda: (digest_of_path(tmp_path / "model"), left())  # noqa: E731
    return Case(lambda: call(tmp_path / "model"), state, error)


def stopped(phase: str) -> Callable[[str, int, int], None]:
    def progress(now: str, done: int, total: int) -> None:
        if now == phase and done >= total:
            raise KeyboardInterrupt

    return progress


def broken_heads(model: Any) -> object:
    """Fit exits on features that are NaN, which is seen when the first head has begun to learn."""
    row = {"input_ids": [3, 4, 5]}
    rows = [{**row, "input_ids": [3, 4 + n % 30, 5 + n // 30]} for n in range(200)]
    weights = [part for name, part in model.named_parameters() if "embeddings.word" in name]
    with torch.no_grad():
        kept = weights[0][3].clone()
        weights[0][3] = torch.nan
        try:
            return fit_exits(model, rows, epochs=1)
        finally:
            weights[0][3] = kept


def calibrate_without_labels(model: Any) -> object:
    return ponder.calibrate(model.record(TEXTS[:50]), policies.Confidence, at_least=0.9)


CASES: dict[str, Callable[[Path], Case]] = {
    "cascade: too few inputs": lambda _: cascade_case(lambda c: c.certify(range(99)), ValueError),
    "cascade: a stage is interrupted": lambda _: cascade_case(
        lambda c: c.certify([*range(99), -1]), KeyboardInterrupt
    ),
    "cascade: the reference is broken": lambda _: cascade_case(
        lambda c: c.certify(range(600), reference=lambda inputs: ["?"] * len(inputs)), ValueError
    ),
    "cascade: an unknown positive class": lambda _: cascade_case(
        lambda c: c.certify(range(600), risk="missed", positive="maybe"), ValueError
    ),
    "cascade: a record of too few rows": lambda _: cascade_case(
        lambda c: c.certify(c.record(range(99))), ValueError
    ),
    "fit_exits: too few inputs": lambda _: exits_case(
        lambda m: fit_exits(m, TEXTS[:20]), ValueError
    ),
    "fit_exits: a level that is none": lambda _: exits_case(
        lambda m: fit_exits(m, TEXTS[100:300], disagreement=2.0, epochs=1), ValueError
    ),
    "fit_exits: a speed-up beyond all": lambda _: exits_case(
        lambda m: fit_exits(m, TEXTS[100:300], speed_up=99.0, epochs=1), ValueError
    ),
    "fit_exits: interrupted": lambda _: exits_case(
        lambda m: fit_exits(m, TEXTS[100:300], epochs=1, progress=stopped("train")),
        KeyboardInterrupt,
    ),
    "fit_exits: NaN": lambda _: exits_case(broken_heads, NonFiniteError),
    "calibrate: no labels": lambda _: exits_case(calibrate_without_labels, ValueError),
    "control_risk: an unknown risk": lambda _: exits_case(
        lambda m: ponder.control_risk(
            m.record(TEXTS[:50]), policies.Confidence, risk="none", level=0.1
        ),
        ValueError,
    ),
    "ranker: an unknown risk": lambda _: ranker_case(
        lambda r: r.fit_exits(QUERIES, top_k=3, risk="none"), ValueError
    ),
    "ranker: interrupted": lambda _: ranker_case(
        lambda r: r.fit_exits(QUERIES, top_k=3, progress=stopped("learn")), KeyboardInterrupt
    ),
    "ranker: no level": lambda _: ranker_case(
        lambda r: r.certify(QUERIES, policies.TopK(3, 1.0), changed=2.0), ValueError
    ),
    "advise: too few texts": lambda tmp_path: advise_case(
        tmp_path, lambda folder: ponder.advise(folder, TEXTS[:30]), ValueError
    ),
    "advise: an unknown label": lambda tmp_path: advise_case(
        tmp_path, lambda folder: ponder.advise(folder, TEXTS[:60], ["?"] * 60), ValueError
    ),
    "advise: interrupted": lambda tmp_path: advise_case(
        tmp_path,
        lambda folder: ponder.advise(folder, TEXTS[:60], progress=stopped("learn")),
        KeyboardInterrupt,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_after_a_refusal_all_is_as_before(name: str, tmp_path: Path) -> None:
    case = CASES[name](tmp_path)
    before = case.state()
    with pytest.raises(case.error):
        case.call()
    assert_same(case.state(), before)


def assert_same(found: Any, expected: Any) -> None:
    """Compare states, whose tensors are the same objects' values: bit for bit."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, tuple) and type(expected) is tuple:
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected
