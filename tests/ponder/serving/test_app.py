"""What the application answers: right answers, and to each wrong request its own status."""

from __future__ import annotations

import json
import math
import queue
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from importlib.metadata import version as version_of
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient

from ponder import policies
from ponder.errors import ArgumentError, NonFiniteError, PonderError
from ponder.inference.streaming import StreamOutput
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy
from ponder.serving import Limits, Service, Text, Tokens, WindowBatcher, create_app
from ponder.serving.answers import answer_of
from ponder.serving.model import check_texts
from tests.ponder.checks import refused
from tests.ponder.serving.serving_toys import (
    LABELS,
    LONGEST,
    STEPS,
    application,
    features,
    opened,
    outcomes,
    served,
    tokenize,
    toy,
)

pytestmark = pytest.mark.anyio

TEXTS = [f"text {number}" for number in range(20)]


def expected(texts: list[str], policy: ExitPolicy | None = None) -> tuple[list[str], list[int]]:
    with torch.no_grad():
        out = toy()(torch.stack([features(text) for text in texts]), policy=policy)
    return [LABELS[place] for place in out.outputs.argmax(-1).tolist()], out.exit_step.tolist()


def alike(one: dict[str, Any], other: dict[str, Any]) -> bool:
    same = one["label"] == other["label"] and one["exit_step"] == other["exit_step"]
    return same and math.isclose(one["score"], other["score"], rel_tol=1e-5)


async def test_classes_of_one_name_are_refused() -> None:
    # Trap: an export with two of them was served, and each answer lost the score of one.
    with refused("labels", "'no', 'no'"):
        served(toy(), labels=("no", "no", "yes"))


@pytest.mark.parametrize("batching", ["stream", "window"])
async def test_answers_are_those_of_the_model(batching: str) -> None:
    async with opened(application(batching=batching)) as client:
        told = (await client.post("/predict", json={"texts": TEXTS})).json()
        one = (await client.post("/predict", json={"text": TEXTS[3]})).json()
    labels, steps = expected(TEXTS)
    assert [answer["label"] for answer in told["answers"]] == labels
    assert [answer["exit_step"] for answer in told["answers"]] == steps
    assert len(set(steps)) > 1, "exits differ, or nothing was seen"
    assert told["num_steps"] == STEPS
    assert alike(one["answers"][0], told["answers"][3])
    for answer in told["answers"]:
        assert answer["scores"][answer["label"]] == answer["score"] == max(answer["scores"].values())
        assert math.isclose(sum(answer["scores"].values()), 1.0, rel_tol=1e-5)
        assert answer["overdue"] is False


@pytest.mark.parametrize("batching", ["stream", "window"])
@pytest.mark.parametrize(
    ("asked", "policy"),
    [
        ({"threshold": 0.9}, policies.Confidence(0.9)),
        ({"max_steps": 2}, policies.Confidence(0.6).before(2)),
        ({"threshold": 1, "max_steps": 3}, policies.Confidence(1.0).before(3)),
        ({"max_steps": STEPS}, policies.Confidence(0.6)),
    ],
)
async def test_a_request_may_ask_for_its_own_threshold_and_steps(
    batching: str, asked: dict[str, Any], policy: ExitPolicy
) -> None:
    async with opened(application(batching=batching)) as client:
        told = (await client.post("/predict", json={"texts": TEXTS, **asked})).json()
    assert [answer["exit_step"] for answer in told["answers"]] == expected(TEXTS, policy)[1]


async def test_pairs_of_texts() -> None:
    async with opened(application()) as client:
        told = await client.post("/predict", json={"texts": [["a premise", "a hypothesis"], ["b", "c"]]})
        one = await client.post("/predict", json={"text": ["b", "c"]})
    assert told.status_code == one.status_code == 200
    assert alike(told.json()["answers"][1], one.json()["answers"][0])


async def test_over_long_texts_are_cut_and_counted() -> None:
    async with opened(application()) as client:
        told = (await client.post("/predict", json={"texts": ["short", "x" * (LONGEST + 1)]})).json()
        page = (await client.get("/metrics")).text
    assert [answer["truncated"] for answer in told["answers"]] == [False, True]
    assert "ponder_texts_truncated_total 1.0" in page


async def test_a_tokenizer_that_drops_texts_is_found_out() -> None:
    # Trap: there were fewer answers than texts, and nobody knew whose they were.
    def dropping(texts: Sequence[Text]) -> Tokens:
        return tokenize([text for text in texts if text])

    service = Service(replace(served(toy()), tokenize=dropping))
    try:
        with pytest.raises(PonderError, match="tokenize gave 1 examples, and of 1 whether they were cut, for 2 texts"):
            await service.predict(["", "a text"])
    finally:
        await service.close()


async def test_regression_and_several_labels() -> None:
    async with opened(application(toy(policies.FixedStep(2), task="regression", outputs=1))) as client:
        told = (await client.post("/predict", json={"text": "a"})).json()["answers"][0]
        assert told.keys() == {"value", "exit_step", "overdue", "truncated"}
        assert isinstance(told["value"], float)
    async with opened(application(toy(policies.FixedStep(2), task="multilabel"))) as client:
        told = (await client.post("/predict", json={"text": "a"})).json()["answers"][0]
        assert told["labels"] == [label for label, score in told["scores"].items() if score > 0.5]


WRONG: list[Any] = [
    {},
    [],
    None,
    "text",
    3,
    {"text": None},
    {"text": 3},
    {"text": ["one"]},
    {"text": ["one", "two", "three"]},
    {"texts": []},
    {"texts": "one"},
    {"texts": ["a", 3]},
    {"texts": ["a", None]},
    {"texts": [["a"]]},
    {"texts": {"0": "a"}},
    {"text": "a", "texts": ["a"]},
    {"text": "a", "treshold": 0.5},
    {"text": "a", "\ud800": 1},
    {"text": "a", "threshold": "0.5"},
    {"text": "a", "threshold": float("nan")},
    {"text": "a", "threshold": float("inf")},
    {"text": "a", "threshold": 1.5},
    {"text": "a", "threshold": -0.1},
    {"text": "a", "threshold": True},
    {"text": "a", "max_steps": 0},
    {"text": "a", "max_steps": STEPS + 1},
    {"text": "a", "max_steps": 10**30},
    {"text": "a", "max_steps": 1.5},
    {"text": "a", "max_steps": True},
    {"text": "a", "deadline": 0},
    {"text": "a", "deadline": -1},
    {"text": "a", "deadline": float("nan")},
    {"text": "half a surrogate \ud800"},
    {"texts": ["a"] * 65},
]


@pytest.mark.parametrize("body", WRONG, ids=lambda body: ascii(body)[:60])
async def test_requests_of_the_wrong_shape(body: Any) -> None:
    async with opened(application()) as client:
        told = await client.post(
            "/predict", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )
        assert told.status_code == 422, told.text
        assert told.json()["detail"]
        assert len(told.content) < 4000
        assert await outcomes(client) == {"invalid": 1.0}


async def test_what_is_wrong_is_said_in_the_words_of_the_request() -> None:
    # Trap: errors named the validators of the library, each text had two, and a missing header was none of them.
    async with opened(application()) as client:
        told = (await client.post("/predict", json={"texts": ["a", 3, ["a"]]})).json()["detail"]
        assert told == [
            {"where": ["body", "texts", 1], "what": "Input should be a text, or a pair: a list of two"},
            {
                "where": ["body", "texts", 2, "pair"],
                "what": "List should have at least 2 items after validation, not 1",
            },
        ]
        told = (await client.post("/predict", content=b'{"text": "a"}')).json()["detail"]
        assert [each["where"] for each in told] == [["body"]]
        assert "with the header content-type: application/json" in told[0]["what"]
        told = (await client.post("/predict", json={})).json()["detail"]
        assert "expected either text or texts" in told[0]["what"]
        odd, is_json = b'{"text": "a", "\\ud800": 1}', {"content-type": "application/json"}
        told = (await client.post("/predict", content=odd, headers=is_json)).json()["detail"]
        assert "unable to parse raw data as a unicode string" in told[0]["what"], "an object, and of JSON"
        assert (await client.get("/openapi.json")).json()["info"]["version"] == version_of("ponder-torch")


@pytest.mark.parametrize("texts", ["a text", [], None, [None], [3], [("a", "b", "c")], [("a", None)], [["a"]]])
async def test_what_are_not_texts_is_refused(texts: Any) -> None:
    # Trap: a text alone was answered letter by letter, and a third side of a pair was taken for a target.
    service = Service(served(toy()))
    with refused("texts"):
        await service.predict(texts)
    assert service.metrics.outcomes()["invalid"] == 1
    assert len((await service.predict(["a", ("a", "b")])).answers) == 2
    await service.close()


def test_pairs_may_be_tuples_and_lists() -> None:
    check_texts([("a", "b"), ["c", "d"]])  # type: ignore[list-item]
    with refused("texts", "both"):
        check_texts([("a", "b"), "c"])


@pytest.mark.parametrize(
    ("task", "labels"), [("classification", ("no",)), ("multilabel", ("no", "maybe", "yes", "more"))]
)
async def test_classes_without_names_are_named_in_the_log(task: str, labels: tuple[str, ...]) -> None:
    service = Service(served(toy(policies.LastStep(), task=task), labels=labels))
    with pytest.raises(PonderError, match=rf"the model has 3 classes, and {len(labels)} names for them"):
        await service.predict(["a"])
    await service.close()


def test_an_application_that_nobody_opened_says_so() -> None:
    client = TestClient(application())  # without `with`, which opens it
    with pytest.raises(PonderError, match="the application is not open"):
        client.post("/predict", json={"text": "a"})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"text": "a"',
        b"\xff\xfe",
        b'{"text": "\xff"}',
        b"[" * 100_000,
        b'{"text": "a", "max_steps": ' + b"9" * 5000 + b"}",
        b"\x00",
    ],
    ids=lambda content: repr(content[:20]),
)
async def test_requests_that_are_no_json(content: bytes) -> None:
    async with opened(application()) as client:
        told = await client.post("/predict", content=content, headers={"content-type": "application/json"})
        assert told.status_code in (400, 422), told.text
        assert told.json()["detail"]
        assert await outcomes(client) == {"invalid": 1.0}
        assert (await client.post("/predict", json={"text": "a"})).status_code == 200


async def test_other_types_methods_and_paths() -> None:
    async with opened(application()) as client:
        assert (await client.post("/predict", content=b"text=a")).status_code == 422
        assert (await client.get("/predict")).status_code == 405
        assert (await client.post("/other", json={"text": "a"})).status_code == 404
        assert (await client.post("/healthz", json={})).status_code == 405


@pytest.mark.parametrize("declared", [True, False])
async def test_requests_that_are_too_large(declared: bool) -> None:
    async with opened(application(limits=Limits(max_body=1000))) as client:
        body = json.dumps({"text": "x" * 2000}).encode()

        async def parts() -> AsyncIterator[bytes]:
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        told = await client.post(
            "/predict",
            content=body if declared else parts(),
            headers={"content-type": "application/json"},
        )
        assert told.status_code == 413
        assert "larger than 1000 bytes" in told.json()["detail"]
        assert await outcomes(client) == {"too_large": 1.0}
        small = json.dumps({"text": "x" * 900}).encode()
        assert (await client.post("/predict", content=small)).status_code == 422  # no content type
        headers = {"content-type": "application/json"}
        assert (await client.post("/predict", content=small, headers=headers)).status_code == 200


@pytest.mark.parametrize("batching", ["stream", "window"])
@pytest.mark.parametrize("text", ["fail", "nan"])
async def test_a_text_that_the_model_fails_on_fails_alone(batching: str, text: str) -> None:
    async with opened(application(batching=batching)) as client:
        told = await client.post("/predict", json={"texts": ["a", text]})
        assert told.status_code == 500
        assert "fails" not in told.text, "what went wrong inside is for the log"
        assert (await client.post("/predict", json={"text": "a"})).status_code == 200
        assert await outcomes(client) == {"failed": 1.0, "answered": 1.0}


async def test_policies_without_a_single_threshold() -> None:
    for policy in (policies.LastStep(), policies.Confidence(0.5) | policies.Patience(2)):
        async with opened(application(toy(policy))) as client:
            told = await client.post("/predict", json={"text": "a", "threshold": 0.5})
            assert told.status_code == 422
            assert "has no single threshold" in told.json()["detail"]
            assert (await client.post("/predict", json={"text": "a", "max_steps": 2})).status_code == 200


async def test_a_whole_threshold() -> None:
    async with opened(application(toy(policies.Patience(2)))) as client:
        assert (await client.post("/predict", json={"text": "a", "threshold": 3})).status_code == 200
        assert (await client.post("/predict", json={"text": "a", "threshold": 1.5})).status_code == 422


async def test_metrics_tell_requests_texts_and_exit_steps() -> None:
    async with opened(application()) as client:
        await client.post("/predict", json={"texts": TEXTS})
        await client.post("/predict", json={})
        page = (await client.get("/metrics")).text
        health = (await client.get("/healthz")).json()
    steps = expected(TEXTS)[1]
    assert 'ponder_requests_total{outcome="answered"} 1.0' in page
    assert 'ponder_requests_total{outcome="invalid"} 1.0' in page
    assert f"ponder_texts_total {float(len(TEXTS))}" in page
    assert f"ponder_exit_step_sum {float(sum(steps))}" in page
    assert f'ponder_exit_step_bucket{{le="1.0"}} {float(steps.count(1))}' in page
    assert "ponder_latency_seconds_count 1.0" in page
    assert "ponder_waiting_texts 0.0" in page
    assert "ponder_folder_changed 0.0" in page
    assert "ponder_audit" not in page
    assert health["status"] == "ok"
    assert health["policy"] == "Confidence(threshold=0.6)"
    assert health["audit"] is None


class Budget(ExitPolicy):
    """Reads what no request has."""

    needs = frozenset({"context"})

    def decide(self, step: Any, state: Any) -> Any:
        return step.context["budget"] <= step.index, state


async def test_a_policy_that_cannot_serve_is_told_when_the_service_opens() -> None:
    """Trap: every request was refused as if its client had done wrong."""
    for model, policy, words in (
        (served(toy()), Budget(), "that requests do not have"),
        (served(toy()), policies.Patience(7), "7"),
    ):
        with pytest.raises(ArgumentError, match=words):
            Service(replace(model, policy=policy))


@pytest.mark.parametrize("batching", ["stream", "window"])
async def test_a_fault_of_the_model_is_none_of_the_client(batching: str) -> None:
    """Trap: a head that loses rows was told as 422, and nothing was logged."""
    model = toy()
    model.head.forward = lambda features: features[:0]  # type: ignore[method-assign, assignment, union-attr]
    async with opened(application(model, batching=batching)) as client:
        assert (await client.post("/predict", json={"text": "a"})).status_code == 500
        assert await outcomes(client) == {"failed": 1.0}


@pytest.mark.parametrize("error", [TimeoutError("a remote store"), queue.Full()])
async def test_errors_of_the_models_own_are_no_deadline_and_no_full_queue(error: Exception) -> None:
    def run(examples: Sequence[Any], policy: Any, row_ids: Sequence[int]) -> Any:
        raise error

    model = replace(served(toy()), start=lambda limits: WindowBatcher.within(run, limits))
    async with opened(create_app(model)) as client:
        assert (await client.post("/predict", json={"text": "a", "deadline": 1000})).status_code == 500
        assert await outcomes(client) == {"failed": 1.0}


def test_a_class_that_is_ruled_out_has_the_score_zero() -> None:
    """Trap: −∞ at a class was "not finite", though its probability is 0."""
    ruled_out = StreamOutput(torch.tensor([0.0, float("-inf"), 0.0]), 1)
    told = answer_of(task_named("classification"), LABELS, ruled_out, truncated=False)
    assert told["scores"] == {"no": 0.5, "maybe": 0.0, "yes": 0.5}
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NonFiniteError):
            answer_of(
                task_named("classification"), LABELS, StreamOutput(torch.tensor([bad, 0.0, 0.0]), 1), truncated=False
            )
