"""`Live` in front of a gateway: what is passed on, what is answered, and what fails."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import openai
import pytest
import uvicorn
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from ponder.cli.app import app
from ponder.deploy.front import Front, create_front_app
from ponder.errors import ArgumentError
from tests.deploy.gateway import LABELS, PROMPT, Gateway, gateway, said_to

TEXTS = [f"{word} number {n}" for n in range(280) for word in ("my card", "a loan")]
TEXTS[10::40] = [f"{text}, which is odd" for text in TEXTS[10::40]]
"""One in forty is answered by none of the labels."""


@pytest.fixture
def stub() -> Iterator[Gateway]:
    with gateway() as server:
        yield server


@contextmanager
def serving(front: Front) -> Iterator[str]:
    """Serve a front, and yield its address."""
    config = uvicorn.Config(create_front_app(front), log_level="error")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def door(stub: Gateway, tmp_path: Path) -> Iterator[str]:
    front = Front(stub.address, LABELS, 0.2, path=tmp_path / "live.db", price=0.01)
    with serving(front) as address:
        yield address


def call(text: Any, **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": text}]
    return {"model": "m", "temperature": 0, "messages": messages, **more}


def post(door: str, body: Any, **more: Any) -> httpx.Response:
    return httpx.post(f"{door}/v1/chat/completions", json=body, timeout=30, **more)


def test_the_openai_client_gets_what_the_gateway_says_and_pays_less(
    door: str, stub: Gateway
) -> None:
    with openai.OpenAI(base_url=f"{door}/v1", api_key="key", max_retries=0) as client:
        wrong = 0
        sources = list[str]()
        cheap = set[str]()
        for text in TEXTS:
            raw = client.chat.completions.with_raw_response.create(**call(text))
            sources.append(raw.headers["x-ponder-source"])
            content = raw.parse().choices[0].message.content
            wrong += content != said_to(text)
            if sources[-1] == "cheap":
                cheap.add(content)
        assert float(raw.headers["x-ponder-bound"]) <= 0.2
        assert raw.headers["x-ponder-asked"] == str(sources[-1] == "reference").lower()
        streamed = client.chat.completions.create(**call("a card", stream=True))
        words = [chunk.choices[0].delta.content for chunk in streamed]
        assert [model.id for model in client.models.list()] == ["m"]
    assert words == ["Hello", " you"]
    assert wrong <= 0.2 * len(TEXTS)
    assert sources[0] == "reference"
    assert cheap == {"Card.", "Loan."}
    asked = sources.count("reference")
    assert stub.asked == asked + 2  # the stream and the list of models
    assert asked < 0.9 * len(TEXTS)
    health = httpx.get(f"{door}/health").json()
    counted = {name: health[name] for name in ("answers", "asked", "saved", "spent")}
    saved = len(TEXTS) - asked
    assert counted == {
        "answers": len(TEXTS),
        "asked": asked,
        "saved": saved,
        "spent": pytest.approx(0.01 * asked),
    }
    assert health["W"] <= 0.2 * len(TEXTS)
    metrics = httpx.get(f"{door}/metrics").text
    assert f"ponder_saved {float(saved)}" in metrics
    assert "ponder_passed_total 2.0" in metrics


@pytest.mark.parametrize(
    "body",
    [
        call("a card", stream=True),
        call("a card", n=2),
        call("a card", logprobs=True),
        call("a card", tools=[{"type": "function", "function": {"name": "f"}}]),
        call([{"type": "image_url", "image_url": {"url": "data:,"}}]),
        call("a cardigan, alone") | {"messages": [{"role": "user", "content": "a cardigan"}]},
        call("a card") | {"messages": []},
        call("a card")
        | {"messages": call("")["messages"] + [{"role": "assistant", "content": "C"}]},
        {"prompt": "card or loan"},
        ["card", "loan"],
    ],
    ids=[
        "stream",
        "n",
        "logprobs",
        "tools",
        "image",
        "no label",
        "empty",
        "role",
        "prompt",
        "list",
    ],
)
def test_what_is_no_classification_call_is_passed_on(door: str, stub: Gateway, body: Any) -> None:
    content = json.dumps(body, indent=1).encode()
    headers = {"authorization": "Bearer key", "x-mine": "1", "content-type": "application/json"}
    try:
        answer = httpx.post(f"{door}/v1/chat/completions?v=1", content=content, headers=headers)
    except httpx.HTTPError:
        answer = None  # the stub fails on some
    path, sent, arrived = stub.requests[-1]
    assert (path, arrived) == ("/v1/chat/completions?v=1", content)
    assert {name: sent[name] for name in ("authorization", "x-mine")} == {
        "authorization": "Bearer key",
        "x-mine": "1",
    }
    if answer is not None and answer.status_code == 200:
        assert answer.headers["x-ponder-source"] == "passed"


def test_other_routes_and_methods_are_passed_on(door: str, stub: Gateway) -> None:
    answer = httpx.post(f"{door}/v1/embeddings?a=%20b", content=b"\x00\x01")
    assert answer.json() == {"length": 2}
    assert answer.headers["x-request-id"] == "from-the-gateway"
    assert stub.requests[-1][0] == "/v1/embeddings?a=%20b"
    assert httpx.get(f"{door}/v1/models").json()["data"][0]["id"] == "m"
    assert httpx.get(f"{door}/elsewhere").status_code == 404


def test_a_call_is_known_by_all_that_its_answer_depends_on(door: str, stub: Gateway) -> None:
    first = post(door, call("my card", user="a"))
    again = post(door, call("my card", user="b"))
    assert (first.headers["x-ponder-asked"], again.headers["x-ponder-asked"]) == ("true", "false")
    assert again.json()["choices"] == first.json()["choices"]
    assert again.json()["usage"]["total_tokens"] == 0
    for other in (call("my card", temperature=1), {**call("my card"), "model": "larger"}):
        assert post(door, other).headers["x-ponder-asked"] == "true"
    parts = call([{"type": "text", "text": "my card"}])
    assert post(door, parts).headers["x-ponder-asked"] == "false"
    schema = {"enum": list(LABELS)}
    odd = [post(door, call("an odd text")) for _ in range(2)]
    assert [one.headers["x-ponder-asked"] for one in odd] == ["true", "false"]
    contents = [one.json()["choices"][0]["message"]["content"] for one in odd]
    assert contents == [said_to("an odd text")] * 2  # none of the labels, and no error
    named = {"model": "m", "messages": [{"role": "user", "content": "mine"}], "guide": schema}
    assert post(door, named).headers["x-ponder-source"] == "reference"


@pytest.mark.parametrize("failing", [400, 401, 429, 500, 503, "no json", "refusal"])
def test_a_refusal_of_the_gateway_is_passed_on_as_it_is(
    door: str, stub: Gateway, failing: int | str
) -> None:
    stub.failing = failing
    through = post(door, call("my card"))
    direct = httpx.post(f"{stub.address}/chat/completions", json=call("my card"))
    assert (through.status_code, through.content) == (direct.status_code, direct.content)
    assert through.headers["x-request-id"] == "from-the-gateway"
    health = httpx.get(f"{door}/health").json()
    assert (health["answers"], health["asked"]) == (0, 0)
    stub.failing = None
    assert post(door, call("my card")).json()["choices"][0]["message"]["content"] == "Card."


def test_a_gateway_that_is_cut_slow_or_down_is_an_error_of_the_gateway(
    stub: Gateway, tmp_path: Path
) -> None:
    front = Front(stub.address, LABELS, path=tmp_path / "live.db", timeout=0.2)
    with serving(front) as door:
        for failing, status in (("cut", 502), ("slow", 504)):
            stub.failing = failing
            answer = post(door, call(f"my card {failing}"))
            assert (answer.status_code, answer.headers["x-ponder-asked"]) == (status, "true")
            assert answer.json()["error"]["code"].startswith("gateway_")
    down = Front("http://127.0.0.1:1/v1", LABELS, path=tmp_path / "live.db")
    with serving(down) as door:
        assert post(door, call("my card")).status_code == 502
        assert httpx.get(f"{door}/v1/models").status_code == 502


def test_a_client_retries_until_the_gateway_is_up(door: str, stub: Gateway) -> None:
    stub.failing = 503

    def up(request: Any) -> None:
        if stub.asked == 2:
            stub.failing = None

    with openai.OpenAI(base_url=f"{door}/v1", api_key="key", max_retries=4) as client:
        client._calculate_retry_timeout = lambda *given: up(given) or 0.0  # type: ignore[method-assign,func-returns-value]
        found = client.chat.completions.create(**call("my card"))
    assert (found.choices[0].message.content, stub.asked) == ("Card.", 3)


def test_what_was_paid_is_in_the_database(stub: Gateway, tmp_path: Path) -> None:
    path = tmp_path / "live.db"
    with serving(Front(stub.address, LABELS, path=path, budget=3)) as door:
        answers = [post(door, call(f"my card {n}")) for n in range(5)]
        assert [one.status_code for one in answers] == [200, 200, 200, 429, 429]
        assert answers[3].json()["error"]["code"] == "insufficient_quota"
        assert answers[3].headers["x-should-retry"] == "false"
        assert stub.asked == 3
    with serving(Front(stub.address, LABELS, path=path)) as door:
        again = post(door, call("my card 2"))
        assert again.json()["choices"][0]["message"]["content"] == "Card."
        assert (again.headers["x-ponder-asked"], stub.asked) == ("false", 3)


def test_calls_at_once_share_one_question(door: str, stub: Gateway) -> None:
    stub.failing = "slow"
    answers = list[httpx.Response]()
    threads = [Thread(target=lambda: answers.append(post(door, call("my card")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while not stub.asked:
        threads[0].join(0.01)
    stub.failing = None
    stub.slow.set()
    for thread in threads:
        thread.join()
    # The first finds its connection closed; of the others one asks, and all have its answer.
    assert sorted(one.status_code for one in answers) == [200, 200, 200, 502]
    assert stub.asked == 2


def test_one_label_is_refused() -> None:
    with pytest.raises(ArgumentError, match="two at least"):
        Front("http://127.0.0.1:1/v1", ["card", "card"])


def test_no_torch_is_loaded() -> None:
    code = "import sys; sys.modules['torch'] = None; import ponder.deploy.front"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_serve_stands_in_front_of_a_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = list[Any]()
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: served.append(app))
    (tmp_path / "labels.txt").write_text("card\nloan\n")
    options = ["serve", "--in-front-of", "http://127.0.0.1:1/v1", "--port", "0"]
    files = ["--labels", str(tmp_path / "labels.txt"), "--db", str(tmp_path / "live.db")]
    found = CliRunner().invoke(app, [*options, *files, "--level", "0.1", "--budget", "7"])
    assert found.exit_code == 0, found.output
    with TestClient(served[0]) as client:
        health = client.get("/health").json()
        assert (health["level"], health["asked"]) == (0.1, 0)
        assert client.get("/v1/models").status_code == 502
    assert "expected a file" in CliRunner().invoke(app, options).output
    assert "got neither" in CliRunner().invoke(app, ["serve", "--port", "0"]).output
    assert "got both" in CliRunner().invoke(app, [*options, str(tmp_path)]).output
