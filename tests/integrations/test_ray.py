"""Ray's two ways to answer: a table of texts without Ray itself, and a deployment on a stand-in of Ray Serve."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ponder.errors import PonderError
from ponder.integrations.ray import Predictor, deployment
from ponder.integrations.transformers import PonderForSequenceClassification
from tests.compare import assert_same_rows, clear_rows
from tests.integrations.encoders import make_model, make_tokenizer, some_texts

TEXTS = some_texts(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model()
    model.tokenizer = make_tokenizer()
    place = tmp_path_factory.mktemp("model")
    model.save_pretrained(place)
    return place


def test_answers_stand_beside_the_texts(folder: Path) -> None:
    table = {"text": np.array(TEXTS, dtype=object), "row": np.arange(20)}
    made = Predictor(folder)(table)
    model = PonderForSequenceClassification.from_pretrained(folder)
    answers = model.predict(TEXTS)
    clear = clear_rows(model.record(TEXTS), model.policy)
    assert made["row"].tolist() == list(range(20))
    assert_same_rows(made["label"], answers.labels, clear)
    assert_same_rows(made["exit_step"], answers.exit_step, clear)
    empty = Predictor(folder)({"text": np.array([], dtype=object)})
    assert {name: len(column) for name, column in empty.items()} == dict.fromkeys(
        ("text", "label", "probability", "exit_step"), 0
    )
    pairs = Predictor(folder, "text", "row")({"text": table["text"], "row": table["text"]})
    assert len(pairs["label"]) == 20


def test_a_deployment_answers_requests_in_batches(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def batch(**options: Any) -> Any:
        seen.update(options)

        def of(method: Any) -> Any:
            async def one(self: Any, text: Any) -> Any:
                return (await method(self, [text]))[0]

            return one

        return of

    def deploy(**options: Any) -> Any:
        seen.update(options)
        return lambda kind: SimpleNamespace(bind=kind)

    fake: Any = SimpleNamespace(batch=batch, deployment=deploy)
    monkeypatch.setitem(sys.modules, "ray.serve", fake)
    replica = deployment(folder, max_batch=8, num_replicas=2)
    assert (seen["max_batch_size"], seen["num_replicas"]) == (8, 2)

    async def body() -> Any:
        return {"text": TEXTS[0]}

    answer = asyncio.run(replica(SimpleNamespace(json=body)))
    expected = PonderForSequenceClassification.from_pretrained(folder).predict(TEXTS[:1])
    assert answer["label"] == expected.labels[0]
    assert answer["exit_step"] == int(expected.exit_step[0])


def test_without_ray_it_is_said_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PonderError, match="pip install"):
        deployment(folder)
