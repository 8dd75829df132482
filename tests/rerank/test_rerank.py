"""A cross encoder whose candidates leave early: as the plain model, alone or in company, in time, saved, exported."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration.risks import ranked
from ponder.deploy.ranking import Ranker
from ponder.errors import ArgumentError
from ponder.integrations.transformers.rerank import CrossEncoder
from ponder.policies.base import all_within
from tests.cli.conftest import run  # noqa: F401
from tests.compare import CLOSE_CALL, assert_same_answers, assert_same_rows, assert_same_weights
from tests.integrations.encoders import make_plain, make_tokenizer, some_texts

SIZE = 8
TEXTS = some_texts(1000)


def pools(count: int, start: int = 0, scores: bool = False) -> list[dict[str, Any]]:
    """Queries with candidates of different length, and perhaps first-stage scores: the last ones with noise."""
    found: list[dict[str, Any]] = []
    for n in range(start, start + count):
        found.append(
            {
                "query": TEXTS[n],
                "documents": [TEXTS[(11 * n + 7 * place) % 997] for place in range(SIZE)],
            }
        )
    if scores:
        ranker = CrossEncoder(plain(), tokenizer=make_tokenizer())
        rng = np.random.default_rng(start)
        values = ranker.predict(
            [(pool["query"], document) for pool in found for document in pool["documents"]]
        )
        logits = np.log(values / (1 - values))
        noisy = (logits + 0.2 * logits.std() * rng.normal(size=len(values))).reshape(count, SIZE)
        found = [{**pool, "scores": own.tolist()} for pool, own in zip(found, noisy, strict=True)]
    return found


def plain() -> Any:
    return make_plain("sequence", "bert", labels=1)


@cache
def fitted(staged: bool) -> CrossEncoder:
    ranker = CrossEncoder(plain(), tokenizer=make_tokenizer())
    report = ranker.fit_exits(pools(240, scores=staged), top_k=2, changed=0.2)
    assert report.met
    layers = np.arange(1, ranker.num_steps + 1) - staged  # the first stage is paid already
    saved = 4 / (layers @ np.asarray(report.exit_shares))
    assert ranker.settings.fitted["pair_layers"] == pytest.approx(saved)
    return ranker


def clear_pools(ranker: Ranker, some: list[dict[str, Any]]) -> Any:
    """Return the pools whose rankings rounding cannot change: no two scores nearly equal, or nearly a margin apart."""
    topk = next(
        each for each in all_within(ranker.settings.policy) if isinstance(each, policies.TopK)
    )
    spread = np.ones(ranker.num_steps)
    spread[: len(topk.spread)] = topk.spread
    scores = ranker.record(some).outputs.reshape(len(some), SIZE, -1)
    one, other = np.triu_indices(SIZE, 1)
    gaps = np.abs(scores[:, one] - scores[:, other])
    distances = np.minimum(gaps, np.abs(gaps - topk.margin * spread))
    clear = (distances > CLOSE_CALL).all((1, 2))
    assert clear.mean() >= 0.8
    return clear


def assert_same_rankings(found: list[Any], expected: list[Any], clear: Any) -> None:
    """Candidates and their exits are the same in clear pools, and their scores within rounding."""
    for one, other, is_clear in zip(found, expected, clear, strict=True):
        if is_clear:
            for key in ("corpus_id", "exit_step"):
                assert [each[key] for each in one] == [each[key] for each in other]
            scores = [[each["score"] for each in ranking] for ranking in (one, other)]
            assert scores[0] == pytest.approx(scores[1], abs=1e-6)


def reference(pool: dict[str, Any]) -> list[float]:
    """The scores of the plain model, one pair at a time."""
    tokenizer = make_tokenizer()
    model = plain()
    with torch.no_grad():
        logits = [
            model(**tokenizer(pool["query"], document, return_tensors="pt")).logits
            for document in pool["documents"]
        ]
    return torch.cat(logits).sigmoid().flatten().tolist()


def test_without_exits_scores_are_those_of_the_plain_model() -> None:
    ranker = CrossEncoder(plain(), tokenizer=make_tokenizer())
    pool = pools(1)[0]
    expected = reference(pool)
    found = ranker.rank(**pool, return_documents=True)
    assert [one["score"] for one in found] == pytest.approx(
        sorted(expected, reverse=True), abs=1e-6
    )
    assert all(
        one["text"] == pool["documents"][one["corpus_id"]] and one["exit_step"] == 4
        for one in found
    )
    pairs = [(pool["query"], document) for document in pool["documents"]]
    assert ranker.predict(pairs).tolist() == pytest.approx(expected, abs=1e-6)
    assert float(ranker.predict(pairs[0])) == pytest.approx(expected[0], abs=1e-6)
    assert len(ranker.rank(**pool, top_k=3)) == 3


def test_it_is_what_sentence_transformers_gives(tmp_path: Path) -> None:
    theirs = pytest.importorskip("sentence_transformers").CrossEncoder
    plain().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for pool in pools(2):
        expected = theirs(str(tmp_path), device="cpu").rank(pool["query"], pool["documents"])
        found = CrossEncoder(tmp_path).rank(**pool)
        assert [one["corpus_id"] for one in found] == [one["corpus_id"] for one in expected]
        assert [one["score"] for one in found] == pytest.approx(
            [one["score"] for one in expected], abs=1e-6
        )


@pytest.mark.parametrize("staged", [False, True])
def test_a_run_leaves_where_the_record_does_alone_and_in_company(staged: bool) -> None:
    ranker = fitted(staged)
    some = pools(40, 300, staged)
    record = ranker.record(some)
    steps = record.exit_steps(ranker.settings.policy).reshape(-1, SIZE)
    assert ranker.num_steps == 4 + staged
    assert len(set(steps.ravel().tolist())) > 2
    together = ranker.rank_all(some, top_k=2)
    clear = clear_pools(ranker, some)
    assert_same_rankings([ranker.rank(**pool, top_k=2) for pool in some], together, clear)
    for exits, found, is_clear in zip(steps, together, clear, strict=True):
        candidates = [one["corpus_id"] for one in found]
        recorded = exits[candidates].tolist()
        assert not is_clear or [one["exit_step"] for one in found] == recorded
    if staged:
        assert (steps == 1).any()  # before the first layer


def test_candidates_that_ran_longer_come_first_as_in_the_certificate() -> None:
    ranker = fitted(False)
    some = pools(40, 300)
    record = ranker.record(some)
    policy = ranker.settings.policy
    steps = record.exit_steps(policy).reshape(-1, SIZE)
    columns = record.outputs.reshape(len(some), SIZE, -1)
    scores = np.take_along_axis(columns, steps[..., None] - 1, axis=2)[..., 0]
    expected = []
    by_score = []
    for own_steps, own_scores in zip(steps.tolist(), scores.tolist(), strict=True):
        places = list(zip(own_steps, own_scores, range(SIZE), strict=True))
        expected.append([place for *_, place in sorted(places, key=lambda one: (-one[0], -one[1]))])
        by_score.append([place for *_, place in sorted(places, key=lambda one: -one[1])])
    found = ranker.rank_all(some, SIZE, policy=policy)
    clear = clear_pools(ranker, some)
    orders = [[one["corpus_id"] for one in ranking] for ranking in found]
    assert_same_rows(orders, expected, clear)
    assert expected != by_score


@pytest.mark.parametrize("staged", [False, True])
def test_nothing_is_computed_for_candidates_that_left(staged: bool) -> None:
    ranker = fitted(staged)
    pool = pools(1, 310, staged)[0]
    rows: list[int] = []
    layer = ranker.model.encoder.bert.encoder.layer[2]
    hook = layer.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    record = ranker.record([pool])
    rows.clear()
    try:
        ranker.rank(**pool, top_k=2)
    finally:
        hook.remove()
    steps = record.exit_steps(ranker.settings.policy)
    assert sum(rows) == int((steps >= 3 + staged).sum())


def test_more_than_was_promised_is_ranked_at_full_depth() -> None:
    pool = pools(1, 320)[0]
    found = fitted(False).rank(**pool, top_k=5)
    assert [one["score"] for one in found] == pytest.approx(
        sorted(reference(pool), reverse=True)[:5], abs=1e-6
    )


def test_the_promise_names_queries_and_another_answer_is_rare() -> None:
    ranker = fitted(False)
    fresh = pools(150, 400)
    assert "120 queries" in ranker.settings.fitted["statement"]
    changed = [
        {one["corpus_id"] for one in found} != {one["corpus_id"] for one in full}
        for found, full in zip(
            ranker.rank_all(fresh, 2),
            ranker.rank_all(fresh, 2, policy=policies.LastStep()),
            strict=True,
        )
    ]
    assert 0 < np.mean(changed) < 0.3
    assert ranker.settings.fitted["pair_layers"] > 1.2


def test_folders_rank_alike_and_other_weights_lose_the_promise(tmp_path: Path) -> None:
    ranker = fitted(True)
    some = pools(10, 330, scores=True)
    ranker.save(tmp_path / "saved")
    loaded = CrossEncoder.load(tmp_path / "saved")
    assert loaded.settings == ranker.settings
    assert_same_weights(loaded.model, ranker.model)
    assert_same_answers(loaded.record(some).outputs, ranker.record(some).outputs)
    assert_same_rankings(loaded.rank_all(some), ranker.rank_all(some), clear_pools(ranker, some))
    next(iter(loaded.model.ponder.head.heads)).linear.bias.data += 1.0
    loaded.save(tmp_path / "moved")
    with pytest.warns(UserWarning, match="promise is dropped"):
        assert isinstance(CrossEncoder.load(tmp_path / "moved").settings.policy, policies.TopK)


@pytest.mark.parametrize("staged", [False, True])
def test_within_a_budget_the_best_so_far_is_the_answer(
    staged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranker = CrossEncoder(plain(), tokenizer=make_tokenizer())
    pool = pools(1, 340, staged)[0]
    now = [0.0]
    ranker.settings = fitted(staged).settings
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    for part in (
        ranker.model.encoder.bert.encoder.layer
    ):  # a clock on which a batch takes two seconds a layer more

        def tick(_: Any, given: Any) -> None:
            now[0] += 2.0 + given[0].shape[0] * given[0].shape[1] / 10

        part.register_forward_pre_hook(tick)
    ranker.rank(**pool, policy=policies.LastStep())  # so that the pace is known
    for budget in (0.5, 9.0, 15.0, 20.0, 200.0):
        for one in [*pools(5, 345, staged), pool]:
            start = now[0]
            found = ranker.rank(**one, top_k=2, within=budget)
            assert len(found) == 2
            assert now[0] - start <= budget
    full = ranker.rank(**pool, top_k=2)
    assert [one["corpus_id"] for one in found] == [one["corpus_id"] for one in full]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"documents": []}, 0),
        ({"documents": ["a b"], "scores": [0.5]}, 1),
        ({"documents": ["a b", "a b", "c"], "scores": [0.5, 0.5, math.nan]}, 2),
        ({"documents": ["a b " * 40, "c"], "scores": [0.1, 0.2]}, 2),
        ({"documents": ["a", "b"], "scores": [0.1]}, "score for each"),
        ({"documents": ["a", "b"], "scores": []}, r"no scores for 2 documents .*pass scores="),
        ({"documents": "a b"}, "a list of documents"),
        ({"documents": ["a", None]}, "a list of documents"),
    ],
)
def test_bad_and_odd_pools(change: dict[str, Any], what: Any) -> None:
    given = {"query": "a b", "scores": [], **change}
    if isinstance(what, str):
        with pytest.raises(ArgumentError, match=what):
            fitted(True).rank(**given)
    else:
        assert len(fitted(True).rank(**given)) == what


def test_a_model_with_several_labels_asks_which_ranks() -> None:
    with pytest.raises(ArgumentError, match="from 0 to 2"):
        CrossEncoder(make_plain("sequence", "bert"), tokenizer=make_tokenizer())
    ranker = CrossEncoder(make_plain("sequence", "bert"), 2, tokenizer=make_tokenizer())
    pool = pools(1)[0]
    tokenizer = make_tokenizer()
    model = make_plain("sequence", "bert")
    with torch.no_grad():
        first = (
            model(**tokenizer(pool["query"], pool["documents"][0], return_tensors="pt"))
            .logits[0, 2]
            .sigmoid()
        )
    assert float(ranker.predict((pool["query"], pool["documents"][0]))) == pytest.approx(
        float(first), abs=1e-6
    )


def test_scores_that_are_no_numbers_rank_last() -> None:
    assert ranked(
        np.zeros(3, dtype=int), np.array([0.1, math.nan, 0.3]), np.array([4, 4, 4])
    ).tolist() == [1, 2, 0]


# -- the command -------------------------------------------------------------------------------------------------


def lines(path: Path, some: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(pool) + "\n" for pool in some))
    return path


def test_the_command_and_what_reads_its_folder(run: Callable[..., Any], tmp_path: Path) -> None:  # noqa: F811
    plain().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    queries = lines(tmp_path / "q.jsonl", pools(200, 0, True))
    fresh = lines(tmp_path / "fresh.jsonl", pools(20, 300, True))
    options = ("--queries", queries, "--top-k", 2, "--changed", 0.2, "--out", tmp_path / "ranker")
    result = run("rerank", tmp_path / "model", *options)
    assert max(map(len, result.stdout.splitlines())) <= 80
    said = " ".join(result.stdout.split())
    assert "another set of the best 2 on at most 20% of queries like these, with 95%" in said
    assert "200 queries: some" in " ".join(result.stderr.split())  # an estimate of the time
    page = (tmp_path / "ranker" / "report.html").read_text()
    assert "--out answers.jsonl" in page
    assert ".predict(queries)" in page
    opened = ponder.open(tmp_path / "ranker")
    assert opened.statement in said
    assert len(opened.predict(pools(3, 300, True))) == 3
    refused = run("check", tmp_path / "ranker", "--texts", queries, code=2)
    assert "--texts: expected fresh texts" in " ".join(refused.stderr.split())
    other = lines(tmp_path / "other.jsonl", pools(120, 400, True))
    check = ("check", tmp_path / "ranker", "--texts", other, "--disagreement", 0.3)
    judged = " ".join(run(*check).stdout.split())
    assert "The promise is kept" in judged
    assert "120 fresh queries" in judged
    run("predict", tmp_path / "ranker", "--texts", fresh, "--out", tmp_path / "answers.jsonl")
    run("export", tmp_path / "ranker", "--out", tmp_path / "onnx")
    run("predict", tmp_path / "onnx", "--texts", fresh, "--out", tmp_path / "exported.jsonl")
    one, two = (
        [json.loads(line)["ranking"] for line in (tmp_path / name).read_text().splitlines()]
        for name in ("answers.jsonl", "exported.jsonl")
    )
    clear = clear_pools(CrossEncoder.load(tmp_path / "ranker"), pools(20, 300, True))
    assert_same_rankings(one, two, clear)
    assert [len(ranking) for ranking in one] == [2] * 20
    quantised = run(
        "export", tmp_path / "ranker", "--int8", "--texts", queries, "--out", tmp_path / "int8"
    )
    assert "200 queries" in " ".join(quantised.stdout.split())  # that certify the margin again
    run("predict", tmp_path / "int8", "--texts", fresh, "--out", tmp_path / "quantised.jsonl")
    fresh.write_text('{"query": "a", "documents": ["b"], "scores": [1, 2]}\n')
    refused = run(
        "predict", tmp_path / "ranker", "--texts", fresh, "--out", tmp_path / "no.jsonl", code=2
    )
    assert "query number 1" in " ".join(refused.output.split())
    fresh.write_bytes(b"\xff\xfe")
    refused = run(
        "rerank", tmp_path / "model", "--queries", fresh, "--out", tmp_path / "no", code=2
    )
    assert "--queries: expected text in UTF-8" in refused.output


def test_a_service_ranks() -> None:
    from fastapi.testclient import TestClient

    from ponder.deploy.server_ranking import create_rank_app

    ranker = fitted(False)
    pool = pools(1, 350)[0]
    with TestClient(create_rank_app(ranker)) as client:
        answer = client.post("/rank", json={**pool, "top_k": 2}).json()
        assert [one["corpus_id"] for one in answer["ranking"]] == [
            one["corpus_id"] for one in ranker.rank(**pool, top_k=2)
        ]
        assert "best 2" in client.get("/healthz").json()["policy"]
        assert "POST /rank" in client.get("/").json()
        assert (
            client.post(
                "/rank", json={"query": "a", "documents": ["b"], "scores": [1, 2]}
            ).status_code
            == 422
        )
        assert client.post("/rank", json={"query": "a"}).status_code == 422
