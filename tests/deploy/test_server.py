"""The service over ASGI: answers, refusals, batches, audits."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ponder import policies
from ponder.deploy.server import Limits, create_app, watch_of, with_threshold
from ponder.deploy.server_batching import Batcher, Some
from ponder.errors import ArgumentError
from ponder.policies import Certified, Confidence, ExitPolicy, LastStep

PATH = tuple((value, 0.0, 0.01) for value in (0.99, 0.95, 0.9, 0.85, 0.8))
CERTIFIED = Certified(
    policy=Confidence(0.8),
    statement="",
    risk="disagreement",
    level=0.05,
    confidence=0.95,
    bound="exact_binomial",
    rows=100,
    threshold_name="threshold",
    threshold_value=0.8,
    p_value=0.01,
    path=PATH,
    num_steps=4,
)


@dataclass
class Model:
    """Answers a text by its first letter; the policy decides the step, and at full depth `moved` texts change."""

    policy: ExitPolicy = CERTIFIED
    columns: Sequence[str] = ("text",)
    num_steps: int = 4
    max_characters: int = 10
    moved: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple[list[Any], ExitPolicy]] = field(default_factory=list)

    def answer(self, texts: Sequence[Any], policy: ExitPolicy | None = None) -> Some:
        policy = self.policy if policy is None else policy
        self.calls.append((list(texts), policy))
        self.begun.set()
        assert self.gate.wait(30)
        if "broken" in texts:
            raise RuntimeError("broken")
        last = isinstance(policy, LastStep)
        labels = ["other" if last and text[0] in self.moved else str(text[0]) for text in texts]
        return Some(
            labels,
            [float("nan") if text == "nan" else 0.75 for text in texts],
            [4 if last else 2] * len(texts),
        )


@pytest.fixture
def model() -> Model:
    made = Model()
    made.gate.set()
    return made


@pytest.fixture
def client(model: Model) -> Iterator[TestClient]:
    with TestClient(
        create_app(model, Limits(max_texts=4, max_body=2000)), raise_server_exceptions=False
    ) as made:
        yield made


def test_answers_stand_in_the_order_of_the_texts(client: TestClient, model: Model) -> None:
    found = client.post("/predict", json={"texts": ["b", "a long text that is cut", "nan"]})
    assert found.json() == {
        "labels": ["b", "a", None],
        "probabilities": [0.75, 0.75, None],
        "exit_step": [2, 2, 2],
        "num_steps": 4,
    }
    assert model.calls == [(["b", "a long tex", "nan"], CERTIFIED)]
    client.post("/predict", json={"texts": ["b"], "threshold": 0.97})
    assert model.calls[-1] == (["b"], Confidence(0.97))
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ({"text": ["a"]}, 422, "Field required"),
        ({"texts": []}, 422, "at least 1"),
        ({"texts": ["a"], "treshold": 0.5}, 422, "not permitted"),
        ({"texts": [1]}, 422, "valid string"),
        ({"texts": [["a", "b"]]}, 422, "expected texts; got pairs"),
        ({"texts": ["a"] * 5}, 422, "expected 4 at most; got 5"),
        ({"texts": ["a"], "threshold": 2}, 422, "threshold: expected a number in [0, 1]"),
        ({"texts": ["a" * 2000]}, 413, "larger than 2000 bytes"),
        ({"texts": ["broken"]}, 500, "the model failed"),
    ],
)
def test_refusals_say_what_was_expected(
    client: TestClient, body: Any, status: int, sentence: str
) -> None:
    found = client.post("/predict", json=body)
    assert found.status_code == status
    assert sentence in str(found.json()["detail"])
    page = client.get("/metrics").text
    assert f'ponder_requests_total{{status="{status}"}} 1.0' in page
    assert client.post("/predict", json={"texts": ["a"]}).status_code == 200


def test_a_body_of_unknown_length_is_counted(client: TestClient, model: Model) -> None:
    body = iter([b'{"texts": ["', b"a" * 2000, b'"]}'])
    found = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert (found.status_code, model.calls) == (413, [])


def test_a_request_is_one_line_of_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="ponder.server"):
        client.post("/predict", json={"texts": ["secret", "b"]})
        client.get("/healthz")
        client.post("/predict", json={"texts": []})
    lines = [record.message for record in caplog.records if record.name == "ponder.server"]
    assert [line.split()[:3] for line in lines] == [
        ["POST", "/predict", "200"],
        ["POST", "/predict", "422"],
    ]
    assert lines[0].endswith("texts=2 exit_step=2.00")
    assert "secret" not in " ".join(lines)


def test_metrics_count_texts_by_their_exit(client: TestClient) -> None:
    for texts in (["a", "b"], ["c"]):
        client.post("/predict", json={"texts": texts})
    page = client.get("/metrics").text
    assert 'ponder_exit_step_bucket{le="1.0"} 0.0' in page
    assert 'ponder_exit_step_bucket{le="2.0"} 3.0' in page
    assert "ponder_latency_seconds_count 2.0" in page
    assert "ponder_waiting_texts 0.0" in page


def test_thresholds_of_requests_may_be_forbidden(model: Model) -> None:
    with TestClient(create_app(model, Limits(fixed_policy=True))) as client:
        found = client.post("/predict", json={"texts": ["a"], "threshold": 0.5})
        assert (found.status_code, model.calls) == (422, [])
        assert "the policy is fixed" in found.json()["detail"]


def test_pairs_are_asked_for_where_exits_were_fitted_to_pairs(model: Model) -> None:
    model.columns = ("question", "answer")
    with TestClient(create_app(model)) as client:
        assert client.post("/predict", json={"texts": [["q" * 99, "a" * 99]]}).status_code == 200
        assert (
            "pairs of texts, [question, answer]"
            in client.post("/predict", json={"texts": ["a"]}).json()["detail"]
        )
    assert model.calls == [([("q" * 10, "a" * 10)], CERTIFIED)]


def test_a_deadline_counts_waiting_and_frees_the_places(model: Model) -> None:
    model.gate.clear()
    limits = Limits(deadline=0.05, max_waiting=1)
    with TestClient(create_app(model, limits)) as client:
        assert client.post("/predict", json={"texts": ["a"]}).status_code == 504
        assert (
            client.post("/predict", json={"texts": ["late"]}).status_code == 504
        )  # a place was free, the model is not
        model.gate.set()
        client.post("/predict", json={"texts": ["b"]})  # a batch after that of the late ones
    assert ["late"] not in [texts for texts, _ in model.calls]  # given up before its batch began


def test_too_many_waiting_texts_are_refused(model: Model) -> None:
    model.gate.clear()
    with TestClient(create_app(model, Limits(max_waiting=2))) as client:
        threads = [
            threading.Thread(
                target=client.post, args=("/predict",), kwargs={"json": {"texts": ["a", "b"]}}
            )
        ]
        threads[0].start()
        assert model.begun.wait(30)
        found = client.post("/predict", json={"texts": ["c"]})
        assert (found.status_code, found.headers["retry-after"]) == (429, "1")
        model.gate.set()
        threads[0].join()
        assert client.post("/predict", json={"texts": ["c"]}).status_code == 200


def test_requests_that_wait_share_a_batch_with_those_of_their_policy(model: Model) -> None:
    model.gate.clear()
    batcher = Batcher(model.answer, max_batch=4)
    first = batcher.submit(["first"], CERTIFIED)
    assert model.begun.wait(30)
    given = [
        (["a", "b"], CERTIFIED),
        (["c"], LastStep()),
        (["d", "e"], CERTIFIED),
        (["f"], CERTIFIED),
        (["g"] * 9, LastStep()),
    ]
    futures = [batcher.submit(texts, policy) for texts, policy in given]
    cancelled = batcher.submit(["cancelled"], CERTIFIED)
    assert cancelled.cancel()
    model.gate.set()
    for (texts, policy), future in zip(given, futures, strict=True):
        found = future.result(30)
        assert list(found.labels) == [text[0] for text in texts]
        assert list(found.exit_step) == [4 if policy == LastStep() else 2] * len(texts)
    assert first.result(30).labels == ["f"]
    batcher.close()
    assert [texts for texts, _ in model.calls] == [
        ["first"],
        ["a", "b", "d", "e"],
        ["c"],
        ["f"],
        ["g"] * 9,
    ]


def test_a_request_that_fails_fails_alone(model: Model) -> None:
    model.gate.clear()
    batcher = Batcher(model.answer, max_batch=8)
    futures = [batcher.submit([text], CERTIFIED) for text in ("first", "a", "broken", "b")]
    model.gate.set()
    assert [future.exception(30) is None for future in futures] == [True, True, False, True]
    batcher.close()
    with pytest.raises(RuntimeError, match="shutdown"):
        batcher.submit(["a"], CERTIFIED)


def test_the_policies_of_a_watch_are_those_that_the_certificate_tested() -> None:
    watch = watch_of(CERTIFIED, 0.5)
    assert watch is not None
    assert watch.policies == (CERTIFIED, Confidence(0.9), Confidence(0.95))
    assert (watch.audit.level, watch.audit.confidence, watch.audit.share) == (0.05, 0.95, 0.5)
    assert watch_of(CERTIFIED, 0.0) is None
    assert watch_of(Confidence(0.8), 0.5) is None


@pytest.mark.parametrize(
    ("policy", "moved"),
    [
        (Confidence(0.8), Confidence(0.9)),
        (CERTIFIED, Confidence(0.9)),
        (Confidence(0.8).after(2), Confidence(0.9).after(2)),
        (Confidence(0.8).before(3), Confidence(0.9).before(3)),
        (LastStep(), None),
        (Confidence(0.8) | policies.Entropy(0.1), None),
    ],
)
def test_a_threshold_is_moved_where_there_is_one(
    policy: ExitPolicy, moved: ExitPolicy | None
) -> None:
    if moved is None:
        with pytest.raises(ArgumentError, match="threshold"):
            with_threshold(policy, 0.9)
    else:
        assert with_threshold(policy, 0.9) == moved


def test_audits_step_back_to_safer_policies_and_then_to_full_depth(
    model: Model, tmp_path: Path
) -> None:
    model.moved, seen, state = "x", list[Any](), tmp_path / "audit.json"

    def ask(client: TestClient, text: str) -> Any:
        return client.post("/predict", json={"texts": [text] * 10})

    for stage, policy in enumerate([CERTIFIED, Confidence(0.9), Confidence(0.95), LastStep()]):
        watch = watch_of(CERTIFIED, 1.0, state, seen.append)  # the state survives a restart
        assert watch is not None
        assert (watch.stage, watch.policy) == (stage, policy)
        with TestClient(create_app(model, Limits(), watch)) as client:
            model.calls.clear()
            assert ask(client, "a").json()["labels"] == ["a"] * 10
            assert model.calls[0][1] == policy
            client.post(
                "/predict", json={"texts": ["x"] * 10, "threshold": 0.5}
            )  # not the policy's own answers
            ask(client, "x")  # answers of one stage: what comes after its end says nothing
            assert client.get("/healthz").json()["audit"]["stage"] >= stage
            assert "ponder_audit_wealth" in client.get("/metrics").text
    assert [end.stage for end in seen] == [0, 1, 2]


def test_answers_by_a_threshold_of_the_request_are_not_audited(model: Model) -> None:
    watch = watch_of(CERTIFIED, 1.0)
    assert watch is not None
    with TestClient(create_app(model, Limits(), watch)) as client:
        client.post("/predict", json={"texts": ["a"] * 30, "threshold": 0.5})
        client.post("/predict", json={"texts": ["a"] * 3})
    assert watch.audit.audits == 3


def test_answers_that_agree_never_step_back(model: Model) -> None:
    watch = watch_of(CERTIFIED, 1.0)
    assert watch is not None
    with TestClient(create_app(model, Limits(), watch)) as client:
        for _ in range(5):
            assert (
                client.post("/predict", json={"texts": ["a"] * 20}).json()["exit_step"] == [2] * 20
            )
    assert (watch.stage, watch.audit.disagreements) == (0, 0)
    assert 0 < watch.audit.audits <= 100
