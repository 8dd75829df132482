"""The service over ASGI: answers, refusals, batches, audits."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient

from ponder import policies
from ponder.deploy.auditing import ServedLedger
from ponder.deploy.server import (
    Limits,
    create_app,
    ledger_of,
    with_threshold,
)
from ponder.deploy.server_batching import Batcher, Some
from ponder.deploy.server_ranking import create_rank_app
from ponder.errors import ArgumentError, CheckpointError
from ponder.policies import Certified, Confidence, ExitPolicy, LastStep
from ponder.statistics.certificate import Certificate

JSON = {"content-type": "application/json"}
PATH = tuple((value, 0.0, 0.01) for value in (0.99, 0.95, 0.9, 0.85, 0.8))
PROMISE = Certificate(
    "Stop",
    "other answers",
    level=0.05,
    confidence=0.95,
    rows=100,
    threshold_value=0.8,
    p_value=0.01,
    path=PATH,
    num_steps=4,
)
CERTIFIED = Certified(Confidence(0.8), PROMISE)


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
    health = client.get("/healthz").json()
    assert (health["status"], health["policy"][:18]) == ("ok", "a confidence above")
    assert client.get("/").json()["POST /predict"] == "Answer texts, each at its exit."
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
        ({"texts": ["b", "\ud83d"]}, 422, "Unicode"),
    ],
)
def test_refusals_say_what_was_expected(
    client: TestClient, body: Any, status: int, sentence: str
) -> None:
    found = client.post("/predict", content=json.dumps(body), headers=JSON)
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


def test_a_ledger_is_of_the_promise(tmp_path: Path) -> None:
    ledger = ledger_of(PROMISE, 0.5)
    assert ledger is not None
    assert (ledger.level, ledger.ledger.confidence, ledger.share) == (0.05, 0.95, 0.5)
    assert ledger_of(PROMISE, 0.0) is None
    assert ledger_of(None, 0.5) is None
    path = tmp_path / "ledger.json"
    ledger_of(PROMISE, 0.5, path)
    with pytest.raises(ArgumentError, match="Use one file for each promise"):
        ServedLedger(0.01, path=path)
    path.write_text(path.read_text().replace('"answers": 0', '"answers": 900'))
    with pytest.raises(CheckpointError, match="delete it to start anew"):
        ledger_of(PROMISE, 0.5, path)
    path.write_text("{")
    with pytest.raises(CheckpointError, match="no ledger"):
        ServedLedger(0.01, path=path)


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


def ask(client: TestClient, text: str, count: int = 4) -> Any:
    return client.post("/predict", json={"texts": [text] * count})


def test_a_service_defers_when_the_bound_passes_and_answers_early_again_by_itself(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model.moved = "x"
    path = tmp_path / "ledger.json"
    coin = iter(range(10**9))

    def some() -> ServedLedger:
        return ServedLedger(0.05, 0.95, 0.5, path, coin=lambda: next(coin) % 2)

    ledger = some()
    with TestClient(create_app(model, Limits(), ledger)) as client:
        early = [ask(client, "a").json()["exit_step"][0] for _ in range(250)]
        assert early[0] == 4  # nothing is known yet
        assert early[-1] == 2
        before = ledger.ledger.bound
        with caplog.at_level("WARNING", logger="ponder.server"):
            changed = [ask(client, "x").json()["exit_step"][0] for _ in range(30)]
            assert changed[-1] == 4
            again = [ask(client, "a").json()["exit_step"][0] for _ in range(600)]
        assert again[-1] == 2
        # Each change of the gate is one line.
        assert len(caplog.records) < 60
        words = [record.message.split(":")[0] for record in caplog.records]
        words = [word for word in words if "answers are" in word]
        assert words[:2] == ["early answers are given", "answers are deferred"]
        assert all(one != other for one, other in pairwise(words))
        health = client.get("/health").json()
        assert health["ledger"]["ledger"]["caught"] > 0
        assert health["statement"].startswith("Of 3,520 answers at most")
        assert "ponder_ledger_bound" in client.get("/metrics").text
        client.post("/predict", json={"texts": ["x"] * 4, "threshold": 0.5})
        assert ledger.answers == 3520  # answers of another policy are not of the promise
    assert ledger.ledger.bound > before
    assert ledger.ledger.bound <= 0.05 * ledger.answers
    after = some()
    assert (after.answers, after.ledger) == (ledger.answers, ledger.ledger)
    again_killed = some()  # the one before was not closed
    assert again_killed.ledger.missed_at_most == max(
        ledger.ledger.missed_at_most, ledger.ledger.worst
    )


def test_coins_below_the_share_audit_early_answers_and_a_kill_counts_the_worst(
    tmp_path: Path,
) -> None:
    coins = iter([0.2, 0.7, 0.4, 0.5])
    path = tmp_path / "ledger.json"
    ledger = ServedLedger(0.05, 0.95, 0.5, path, coin=lambda: next(coins))
    assert ledger.note([True, False, True, True, True]) == [0, 3]
    ledger.settle(True)
    killed = ServedLedger(0.05, 0.95, 0.5, path)
    assert killed.ledger.missed_at_most == ledger.ledger.worst > ledger.ledger.missed_at_most


def test_int8_is_audited_by_the_folder_before_it(model: Model) -> None:
    before = Model(moved="x")
    before.gate.set()
    ledger = ServedLedger(0.05, 0.95, 1.0)
    with TestClient(create_app(model, Limits(), ledger, before)) as client:
        found = [ask(client, "x") for _ in range(38)]
    assert found[0].json()["labels"] == ["other"] * 4  # deferred to the reference
    assert (ledger.ledger.audits, ledger.ledger.caught) == (4, 4)


def test_errors_of_rows_reach_the_log(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    @dataclass(frozen=True)
    class Broken(Some):
        errors: Any = None

    model.answer = lambda texts, policy=None: Broken(  # type: ignore[method-assign]
        ["a"] * len(texts), [float("nan")] * len(texts), [1] * len(texts), {0: ValueError("torn")}
    )
    with TestClient(create_app(model)) as client:
        assert client.post("/predict", json={"texts": ["a"]}).json()["labels"] == [None]
    assert "torn" in caplog.text


def test_a_body_without_its_header_gets_a_sentence(client: TestClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    found = client.post("/predict", content=b'{"texts": ["a"]}', headers=form)
    assert found.status_code == 422
    assert "content-type: application/json" in found.json()["detail"]


def test_a_body_that_never_ends_ends_at_the_deadline(model: Model) -> None:
    app = create_app(model, Limits(deadline=0.05))
    sent = list[Any]()

    async def slowly() -> Any:
        await asyncio.sleep(0)
        if slowly.first:  # type: ignore[attr-defined]
            slowly.first = False  # type: ignore[attr-defined]
            return {"type": "http.request", "body": b"{", "more_body": True}
        await asyncio.Event().wait()
        return None

    slowly.first = True  # type: ignore[attr-defined]

    async def keep(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b""}
    headers = [(b"content-type", b"application/json")]
    asyncio.run(app({**scope, "headers": headers}, slowly, keep))
    assert sent[0]["status"] == 504
    assert (b"connection", b"close") in sent[0]["headers"]


class _Order:
    """A ranker that scores a document by its length, and notes the time it was given."""

    num_steps = 4
    first_stage = False
    settings = SimpleNamespace(policy=Confidence(0.9))

    def __init__(self) -> None:
        self.within = list[Any]()

    def rank_all(self, pools: Any, top_k: int | None, *, within: float | None) -> Any:
        self.within.append(within)
        order = sorted(range(len(pools[0].documents)), key=lambda n: -len(pools[0].documents[n]))
        best = order[:top_k]
        scores = [float(len(pools[0].documents[n])) for n in best]
        rows = zip(best, scores, strict=True)
        return [[{"corpus_id": n, "score": score, "exit_step": 1} for n, score in rows]]


def test_queries_have_a_limit_of_documents_and_what_is_left_of_the_deadline() -> None:
    ranker = _Order()
    limits = Limits(max_documents=3, max_body=4000, deadline=9.0)
    with TestClient(create_rank_app(ranker, limits)) as client:  # type: ignore[arg-type]
        body = {"query": "q", "documents": ["a", "ccc", "bb"]}
        assert [one["corpus_id"] for one in client.post("/rank", json=body).json()["ranking"]] == [
            1,
            2,
            0,
        ]
        assert 0.0 < ranker.within[0] <= 9.0
        client.post("/rank", json={**body, "within": 0.5})
        assert ranker.within[1] == 0.5
        many = client.post("/rank", json={"query": "q", "documents": ["a"] * 4})
        assert (many.status_code, "expected 3 at most" in many.text) == (422, True)
        half = json.dumps({"query": "q", "documents": ["\ud83d"]})
        broken = client.post("/rank", content=half, headers=JSON)
        assert broken.status_code == 422
        assert client.get("/health").json()["status"] == "ok"
