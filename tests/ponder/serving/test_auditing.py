"""Audits of the traffic: after the answer, at full depth; steps back; a state that survives a restart."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import queue
import shutil
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI

import ponder
from ponder import policies
from ponder._utils.files import alone
from ponder.calibration import control_agreement
from ponder.errors import ArgumentError, CheckpointError, PonderError
from ponder.inference.streaming import StreamOutput
from ponder.monitor import Audit
from ponder.monitor.state_file import StateFile
from ponder.parts.tasks import task_named
from ponder.policies import Certified, ExitPolicy
from ponder.serving import AuditPlan
from ponder.serving.auditing import TrafficAudit
from ponder.serving.metrics import Metrics
from tests.ponder.serving.serving_toys import STEPS, application, features, opened, toy

pytestmark = pytest.mark.anyio

CLASSES = "classification"
TEXTS = [f"text {number}" for number in range(60)]


def plan(path: Path | None = None, *order: ExitPolicy, share: float = 1.0, **more: Any) -> AuditPlan:
    return AuditPlan(Audit(0.05, 0.95, share), order or (policies.FixedStep(1), policies.FixedStep(3)), path, **more)


def app(path: Path | None = None, **more: Any) -> FastAPI:
    return application(toy(policies.FixedStep(1)), audit=plan(path, **more))


async def quiet(client: httpx.AsyncClient) -> dict[str, Any]:
    """The state of the audits when none is running."""
    service = client._transport.app.state.service  # type: ignore[attr-defined]
    while service.audit.running:
        await asyncio.sleep(0)
    told: dict[str, Any] = (await client.get("/healthz")).json()["audit"]
    return told


def differs(step: int) -> list[bool]:
    with torch.no_grad():
        seen = toy().unroll(torch.stack([features(text) for text in TEXTS]))
    return (~seen.agreement()[:, step - 1]).tolist()


async def test_every_answer_is_compared_with_full_depth_and_the_policy_steps_back() -> None:
    async with opened(app()) as client:
        audit, stage, steps = Audit(0.05, 0.95, 1.0), 0, {0: 1, 1: 3, 2: STEPS}
        wrong = {step: differs(step) for step in (1, 3)}
        for place, text in enumerate(TEXTS):
            told = (await client.post("/predict", json={"text": text})).json()["answers"][0]
            assert told["exit_step"] == steps[stage]
            state = await quiet(client)
            if stage < 2:
                audit.chosen()
                audit.record(wrong[steps[stage]][place])
                assert state["audits"] == audit.audits
                stage = audit.stage
            assert state["stage"] == stage
            assert state["full_depth"] is (stage == 2)
        page = (await client.get("/metrics")).text
    assert stage >= 1, "or nothing was tested"
    assert f"ponder_audit_stage {float(stage)}" in page
    assert "ponder_audit_wealth" in page


async def test_the_state_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    states = []
    for part in (TEXTS[:20], TEXTS[20:]):
        async with opened(app(path)) as client:
            for text in part:
                await client.post("/predict", json={"text": text})
                state = await quiet(client)
            states.append(state)
    async with opened(app()) as client:
        for text in TEXTS:
            await client.post("/predict", json={"text": text})
            state = await quiet(client)
    assert states[-1] == state, "as if it had never stopped"
    saved = json.loads(path.read_text())
    assert saved["audit"]["stage"] == state["stage"]


async def test_a_crash_does_not_bring_the_same_draws_again(tmp_path: Path) -> None:
    # Trap: the count was written with an audit alone. A service that was killed before its next one drew the answers
    # that are not audited again, and so after every start: nothing was audited any more.
    path, starts = tmp_path / "audit.json", []
    for _ in range(3):
        async with opened(app(path, share=0.001)) as client:
            await client.post("/predict", json={"texts": TEXTS[:5]})
            killed = path.read_text()  # what a crash here would leave
            starts.append(json.loads(killed)["audit"]["answers"])
        path.write_text(killed)
    assert starts == [1000, 2000, 3000]
    async with opened(app(path, share=0.001)) as client:
        await client.post("/predict", json={"texts": TEXTS[:5]})
    assert json.loads(path.read_text())["audit"]["answers"] == 3005, "exactly, where it was closed"


def test_the_count_in_the_file_stays_ahead(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    audit = TrafficAudit(plan(path, share=1e-9), task_named(CLASSES), None)  # type: ignore[arg-type]
    for answers in (499, 2, 498):
        audit.seen([None] * answers, [torch.zeros(3)] * answers, 0)
    audit._judge.submit(lambda: None).result()  # after what it was asked for before
    assert json.loads(path.read_text())["audit"]["answers"] >= 1500, "before all that it counted have come"
    audit._judge.shutdown()
    audit.seen([None] * 2000, [torch.zeros(3)] * 2000, 0)  # its thread has ended, as after `close`
    audit.close()
    assert json.loads(path.read_text())["audit"]["answers"] == 2999


def test_a_stage_that_ends_while_the_policy_is_read() -> None:
    # Trap: the stage was read twice, and the thread of the audits may end it in between.
    class Ending:
        stages = iter([1, 2, 2])
        stage = property(lambda self: next(self.stages))

    audit = TrafficAudit(plan(), task_named(CLASSES), None)  # type: ignore[arg-type]
    audit._audit = Ending()  # type: ignore[assignment]
    assert audit.policy == policies.FixedStep(3)
    assert audit.policy == policies.LastStep()


@pytest.mark.parametrize("content", ["{", "{}", '{"format": "ponder-served-audit-1"}', "[]"])
async def test_states_that_are_damaged_or_of_another_promise(tmp_path: Path, content: str) -> None:
    path = tmp_path / "audit.json"
    path.write_text(content)
    with pytest.raises(CheckpointError):
        async with opened(app(path)):
            pass
    path.unlink()
    async with opened(app(path)):
        pass
    with pytest.raises(CheckpointError, match="of another promise or of other policies"):
        async with opened(app(path, share=0.5)):
            pass


async def test_a_file_is_kept_by_one_service_at_a_time(tmp_path: Path) -> None:
    # Trap: each wrote its own state over the other's, so that an alarm was taken back in silence.
    path = tmp_path / "new" / "audit.json"
    async with opened(app(path)) as client:
        for text in TEXTS:
            await client.post("/predict", json={"text": text})
            state = await quiet(client)
        with pytest.raises(PonderError, match=r"audit\.json: another process keeps this file"):
            async with opened(app(path)):
                pass
    assert state["stage"] >= 1, "or nothing was tested"
    for _ in range(2):  # what was refused, or closed, keeps nothing
        async with opened(app(path)) as client:
            assert (await quiet(client))["stage"] == state["stage"]


@pytest.mark.parametrize("readable", [True, False])
def test_a_lock_of_another_user_is_taken_or_refused(
    readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trap: it could not be opened for writing, and the file had two holders in silence.
    path, own = tmp_path / "audit.json", os.open

    def opened_by_another(name: Any, flags: int, *rest: Any) -> int:
        if flags & (os.O_RDWR | os.O_CREAT) or not readable:
            raise PermissionError(errno.EACCES, "Permission denied")
        return own(name, flags, *rest)

    with alone(path):
        monkeypatch.setattr(os, "open", opened_by_another)
        with (
            pytest.raises(PonderError, match="another process" if readable else r"audit\.json\.lock.*denied"),
            alone(path),
        ):
            pass
    if readable:
        with alone(path):
            pass


def test_a_link_and_its_file_have_one_holder(tmp_path: Path) -> None:
    path, link = tmp_path / "kept" / "audit.json", tmp_path / "audit.json"
    link.symlink_to(path)
    for one, other in ((path, link), (link, path)):
        with alone(one), pytest.raises(PonderError, match="another process"), alone(other):
            pass
    StateFile(link, "a-format", [policies.LastStep()]).write({})
    assert link.is_symlink()
    assert path.exists(), "or the link were a file of its own, with another lock"


async def test_answers_that_are_not_the_policys_own_are_not_audited() -> None:
    async with opened(app()) as client:
        await client.post("/predict", json={"text": "a", "max_steps": 2})
        await client.post("/predict", json={"text": "a", "threshold": 2})
        assert (await quiet(client))["audits"] == 0
        await client.post("/predict", json={"texts": ["a", "b"]})
        assert (await quiet(client))["audits"] == 2


async def test_a_share_is_audited() -> None:
    audit = Audit(0.05, 0.95, 0.5)
    chosen = sum(audit.chosen() for _ in TEXTS)
    made = application(toy(), audit=plan(None, policies.LastStep(), share=0.5))
    async with opened(made) as client:
        for text in TEXTS:
            await client.post("/predict", json={"text": text})
            state = await quiet(client)
    assert state["audits"] == chosen
    assert state["disagreements"] == 0


async def test_regression_needs_a_tolerance() -> None:
    numbers = toy(policies.FixedStep(1), task="regression", outputs=1)
    with pytest.raises(ArgumentError, match="tolerance"):
        async with opened(application(numbers, audit=plan())):
            pass
    async with opened(application(numbers, audit=plan(tolerance=100.0))) as client:
        await client.post("/predict", json={"text": "a"})
        state = await quiet(client)
    assert (state["audits"], state["disagreements"]) == (1, 0)


async def test_policies_that_cannot_serve_the_model_are_refused_before_it_is_served() -> None:
    with pytest.raises(ArgumentError, match="needs no hazard"):
        async with opened(application(toy(), audit=plan(None, policies.Quantile(0.5)))):
            pass


Family = Callable[[float], policies.ExitPolicy]


def certified(level: float = 0.1, like: Any = policies.Confidence, grid: Any = None) -> Certified:
    torch.manual_seed(1)
    sure = torch.nn.functional.one_hot(torch.arange(400) % 3, 3).float()
    shares = torch.linspace(0.5, 6.0, STEPS)[None, :, None]
    outputs = sure[:, None] * shares + 0.8 * torch.randn(400, STEPS, 3)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(400))
    return ponder.control_risk(trajectory, like, level=level, grid=grid).policy


def test_a_certificate_is_a_plan() -> None:
    policy = certified()
    made = AuditPlan.of_certificate(policy, 0.02)
    assert made is not None
    assert (made.audit.level, made.audit.confidence, made.audit.share) == (0.1, 0.95, 0.02)
    assert made.policies[0] is policy
    values = [one.threshold for one in made.policies[1:] if isinstance(one, policies.Confidence)]
    assert policy.threshold_value is not None
    assert len(values) == 2
    assert policy.threshold_value < values[0] < values[1], "safer and safer"


def of_threshold(value: float) -> policies.ExitPolicy:
    return policies.Confidence(value)


def reversed_threshold(value: float) -> policies.ExitPolicy:
    return policies.Confidence(1.0 - value)


def beyond_the_threshold(value: float) -> policies.ExitPolicy:
    return policies.Confidence(min(value, 0.99))


def several(value: float) -> policies.ExitPolicy:
    return policies.Confidence(value) | policies.Margin(value)


def after_two(value: float) -> policies.ExitPolicy:
    return policies.Confidence(value).after(2)


@pytest.mark.parametrize(
    ("like", "grid", "safer"),
    [
        (of_threshold, [0.9, 0.8, 0.5], (0.8, 0.9)),
        (reversed_threshold, [0.1, 0.3, 0.5], ()),
        (beyond_the_threshold, [2.0, 1.5, 0.5], ()),
        (several, [0.9, 0.5], ()),
        (after_two, [0.9, 0.5], (0.9,)),
    ],
)
def test_a_certificate_of_a_callable_is_a_plan(like: Family, grid: list[float], safer: tuple[float, ...]) -> None:
    """Values of the callable were taken for those of the policy's threshold, and combinations were not audited."""
    policy = certified(0.5, like, grid)
    assert policy.threshold_value == 0.5
    policy = policies.from_dict(json.loads(json.dumps(policy.to_dict())))
    made = AuditPlan.of_certificate(policy)
    assert made is not None
    around = policies.Confidence if like is not after_two else after_two
    assert made.policies == (policy, *map(around, safer))


async def test_a_served_certificate_of_a_callable_steps_back_to_full_depth(tmp_path: Path) -> None:
    plan = AuditPlan.of_certificate(certified(0.5, several, [0.9, 0.5]), 1.0, tmp_path / "audit.json")
    assert plan is not None
    for _ in range(2):  # the second time from the file
        async with opened(application(toy(), audit=plan)) as client:
            answer = await client.post("/predict", json={"texts": ["a", "b"]})
            assert answer.status_code == 200
            assert (await quiet(client))["stage"] == 0


def test_what_is_not_certified_about_full_depth_is_no_plan() -> None:
    nothing = certified(1e-6)
    assert nothing.threshold_value is None
    assert AuditPlan.of_certificate(nothing) is None
    assert AuditPlan.of_certificate(policies.Confidence(0.9)) is None


async def test_a_full_disk_does_not_stop_the_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "folder" / "audit.json"
    async with opened(app(path)) as client:
        shutil.rmtree(path.parent)
        path.parent.write_text("a file in the way")
        assert (await client.post("/predict", json={"text": "a"})).status_code == 200
        assert (await quiet(client))["audits"] == 1
    assert "could not be kept" in caplog.text


async def test_a_file_that_cannot_be_written_is_told_before_anything_is_served(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="a place that can be written"):
        async with opened(app(tmp_path / "file" / "audit.json")):
            pass


def test_an_audit_of_nan_is_a_disagreement_but_where_full_depth_has_no_answer_either() -> None:
    """The most probable class of NaN is the first, so that it agreed with all answers of that class."""
    given, nan = torch.tensor([1.0, 0.0, 0.0]), torch.full((3,), torch.nan)
    for answer, deepest, expected in ((given, nan, 1), (nan, given, 1), (nan, nan, 0), (given, given, 0)):

        class Answering:
            def submit(self, *_: Any, deepest: torch.Tensor = deepest, **__: Any) -> Future[StreamOutput]:
                future: Future[StreamOutput] = Future()
                future.set_result(StreamOutput(deepest, STEPS))
                return future

        audit = TrafficAudit(plan(), task_named("classification"), Answering())  # type: ignore[arg-type]
        audit.seen(["a text"], [answer], 0)
        audit.close()
        assert (audit.state()["audits"], audit.state()["disagreements"]) == (1, expected)


def test_audits_that_find_no_place_are_counted() -> None:
    class Busy:
        """One text may wait, for ever."""

        waiting = 0

        def submit(self, *_: Any, **__: Any) -> Future[StreamOutput]:
            if self.waiting:
                raise queue.Full
            self.waiting += 1
            return Future()

    answers = [torch.zeros(3)] * 5
    for most in (1, 32):
        audit = TrafficAudit(plan(max_running=most), task_named("classification"), Busy())  # type: ignore[arg-type]
        audit.seen(["a text"] * 5, answers, 0)
        assert (audit.running, audit.state()["skipped"]) == (1, 4)
        page = Metrics(STEPS, lambda: 0, lambda: False, audit.state).page().decode()
        assert "# TYPE ponder_audit_skipped_total counter" in page
        assert "ponder_audit_skipped_total 4.0" in page
        audit.close()


async def test_answers_with_a_deadline_of_their_own_are_audited_unless_it_passed() -> None:
    async with opened(app()) as client:
        await client.post("/predict", json={"text": "a", "deadline": 60})
        state = await quiet(client)
    assert (state["audits"], state["skipped"]) == (1, 0)


def test_a_promise_about_another_model_is_no_plan() -> None:
    """An audit compares with full depth of what is served; that of int8 is not the fp32 that was promised."""
    torch.manual_seed(0)
    outputs = torch.randn(400, STEPS, 3).cumsum(1)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(400), labels=outputs[:, -1].argmax(1), task=CLASSES)
    for own, risk in ((True, "disagreement"), (False, "disagreement_with_reference")):
        fresh = dataclasses.replace(trajectory, row_ids=torch.arange(400, 800))
        found = control_agreement(trajectory, fresh, level=0.2, own_full_depth=own).found
        assert found.met
        assert found.policy.risk == risk
        assert (AuditPlan.of_certificate(found.policy) is not None) == own


async def test_a_plan_serves_several_services_each_from_its_beginning() -> None:
    """Trap: the second began where the first had stepped back to."""
    shared = plan()
    for _ in range(2):
        async with opened(application(toy(policies.FixedStep(1)), audit=shared)) as client:
            assert (await client.get("/healthz")).json()["policy"] == "FixedStep(step=1)"
            await client.post("/predict", json={"texts": TEXTS})
            assert (await quiet(client))["stage"] > 0
    assert (shared.audit.stage, shared.audit.answers) == (0, 0)


async def test_a_threshold_is_that_of_the_policy_that_answers() -> None:
    """Trap: it went to the model's own policy, which answers nothing under a plan."""
    order = policies.Confidence(0.4), policies.Confidence(0.9)
    async with opened(application(toy(policies.Patience(2)), audit=plan(None, *order))) as client:
        told = await client.post("/predict", json={"texts": TEXTS, "threshold": 0.8})
        own = toy(policies.Confidence(0.8))(torch.stack([features(text) for text in TEXTS]))
        assert [answer["exit_step"] for answer in told.json()["answers"]] == own.exit_step.tolist()
