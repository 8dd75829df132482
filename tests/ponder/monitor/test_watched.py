"""A watched model: audits after the answers, steps back in order, and state in a file."""

from __future__ import annotations

import copy
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError
from ponder.monitor import Audit, StepBack, Watched
from ponder.monitor.state_file import StateFile
from ponder.parts.recording import same_answers
from ponder.parts.tasks import task_named
from ponder.policies import ExitPolicy, StepView
from ponder.serving import AuditPlan
from tests.ponder.checks import refused
from tests.toys import make_toy, wrap

ORDER = [policies.FixedStep(1), policies.FixedStep(3)]


class Flipping(nn.Module):
    """A step that turns the answer round: an early exit at an even depth differs from full depth (3), always."""

    def forward(self, hidden: Tensor) -> Tensor:
        return -hidden


def agreeing() -> ponder.PonderWrapper:
    return ponder.PonderWrapper(nn.Identity(), num_steps=4, head=nn.Identity(), task="classification").eval()


def flipping() -> ponder.PonderWrapper:
    return ponder.PonderWrapper(Flipping(), num_steps=4, head=nn.Identity(), task="classification").eval()


def every(**options: Any) -> Audit:
    return Audit(**{"level": 0.1, "share": 1.0, **options})


def test_the_answers_are_those_of_the_model_under_the_policy_of_the_stage() -> None:
    toy = make_toy("transformer")
    model = wrap(toy).eval()
    inputs, context = toy.batch(6)
    watched = Watched(model, [policies.Confidence(0.7)], every())
    found, plain = watched(inputs, **context), model(inputs, policy=policies.Confidence(0.7), **context)
    assert torch.equal(found.exit_step, plain.exit_step)
    torch.testing.assert_close(found.outputs, plain.outputs, rtol=0, atol=1e-5)
    full = model(inputs, policy=policies.LastStep(), **context).outputs.argmax(1)
    assert watched.run_audits() == 6
    assert watched.audit.disagreements == int((plain.outputs.argmax(1) != full).sum()) > 0


def test_a_promise_that_holds_keeps_its_policy() -> None:
    watched = Watched(agreeing(), ORDER, every())
    for _ in range(20):
        watched(torch.randn(16, 3))
    watched.run_audits()
    assert (watched.audit.stage, watched.audit.audits, watched.audit.disagreements) == (0, 320, 0)
    assert watched.policy == ORDER[0]


def test_a_broken_promise_steps_back_through_the_order_to_full_depth_and_says_so() -> None:
    told: list[StepBack] = []
    watched = Watched(flipping(), ORDER, every(), tell=told.append)
    seen = []
    while not watched.at_full_depth:
        seen.append(watched(torch.randn(4, 3)).exit_step[0].item())
        watched.run_audits()
    assert sorted(set(seen)) == [1, 3]
    assert [left.stage for left in told] == [0, 1]
    assert watched.policy == policies.LastStep()
    assert set(watched(torch.randn(4, 3)).exit_step.tolist()) == {4}
    assert watched.run_audits() == 0  # nothing is audited at full depth


def test_without_a_listener_it_warns() -> None:
    watched = Watched(flipping(), ORDER, every())
    watched(torch.randn(4, 3))
    with pytest.warns(RuntimeWarning, match="can no longer be held"):
        watched.run_audits()


def test_answers_of_an_earlier_stage_do_not_count_for_the_next() -> None:
    watched = Watched(flipping(), ORDER, every(), tell=lambda left: None, max_waiting=1000)
    for _ in range(10):
        watched(torch.randn(4, 3))
    audited = watched.run_audits()
    assert watched.audit.stage == 1
    assert audited < 40
    assert watched.audit.audits == 0


def test_audits_wait_and_a_full_queue_runs_them() -> None:
    watched = Watched(agreeing(), ORDER, every(), max_waiting=8)
    watched(torch.randn(8, 3))
    assert (watched.waiting, watched.audit.audits) == (8, 0)
    watched(torch.randn(1, 3))
    assert (watched.waiting, watched.audit.audits) == (0, 9)


def test_answers_of_a_stream_are_audited_too() -> None:
    model, rows = agreeing(), torch.randn(30, 3)
    watched = Watched(model, ORDER, every(share=0.5))
    with ponder.StreamEngine(model, watched.policy) as engine:
        for number, out in engine.run(rows):
            watched.seen(rows[number][None], out.output[None])
    assert 0 < watched.run_audits() < 30
    assert watched.audit.disagreements == 0


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    rows = torch.randn(40, 4, 3)
    unbroken = Watched(flipping(), ORDER, every(level=0.3), tell=lambda left: None)
    watched = Watched(flipping(), ORDER, every(level=0.3), tell=lambda left: None, path=path)
    for number, batch in enumerate(rows):
        for one in (unbroken, watched):
            one(batch)
            one.run_audits()
        if number % 3 == 0:
            watched = Watched(flipping(), ORDER, every(level=0.3), tell=lambda left: None, path=path)
        assert watched.audit.to_dict() == unbroken.audit.to_dict()
    assert watched.at_full_depth


def test_many_short_lives_audit_what_one_long_life_does(tmp_path: Path) -> None:
    # Trap: nothing was kept until something was audited, so that each life drew as the first, which drew nothing.
    path, rows, audit = tmp_path / "state.json", torch.randn(60, 4, 3), {"level": 0.3, "share": 0.03}
    unbroken = Watched(flipping(), ORDER, every(**audit), max_waiting=1)
    for batch in rows:
        watched = Watched(flipping(), ORDER, every(**audit), path=path)
        for one in (unbroken, watched):
            one(batch)
            one.run_audits()
    first = every(**audit)
    assert not any(first.chosen() for _ in range(4)), "or nothing was tested"
    assert watched.audit.to_dict() == unbroken.audit.to_dict()
    assert unbroken.audit.audits > 0


def test_the_file_is_written_at_once_and_only_where_there_is_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written, write = tmp_path / "state.json", [], StateFile.write
    monkeypatch.setattr(StateFile, "write", lambda file, state: (written.append(state), write(file, state)))
    watched = Watched(flipping(), ORDER, every(), path=path, tell=lambda left: None, max_waiting=100)
    assert path.exists()
    assert len(written) == 1
    watched.run_audits()
    assert len(written) == 1  # nothing happened
    watched(torch.randn(4, 3))
    watched.run_audits()
    assert len(written) == 2
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="a place that can be written"):
        Watched(flipping(), ORDER, every(), path=tmp_path / "file" / "state.json")


@pytest.mark.parametrize("argument", ["labels", "num_steps", "policy"])
def test_what_only_a_call_of_the_model_takes_is_refused_by_name(argument: str) -> None:
    watched = Watched(agreeing(), ORDER, every())
    with pytest.raises(ArgumentError, match=f"got {argument!r}, an argument of a call of the model") as caught:
        watched(torch.randn(4, 3), **{argument: None})
    assert "Did you mean" not in str(caught.value)
    assert (watched.audit.answers, watched.waiting) == (0, 0)


def test_the_state_of_other_policies_or_of_another_promise_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    Watched(agreeing(), ORDER, every(), path=path).save()
    with pytest.raises(CheckpointError, match="other policies"):
        Watched(agreeing(), ORDER[:1], every(), path=path)
    with pytest.raises(CheckpointError, match="another promise"):
        Watched(agreeing(), ORDER, every(level=0.2), path=path)
    with pytest.raises(CheckpointError, match="another promise"):
        Watched(agreeing(), ORDER, every(), path=path, tolerance=0.5)
    before = {name: value for name, value in json.loads(path.read_text()).items() if name != "tolerance"}
    path.write_text(json.dumps(before))  # as an earlier version wrote it
    Watched(agreeing(), ORDER, every(), path=path, tolerance=0.5)
    path.write_text("{}")
    with pytest.raises(CheckpointError, match="format"):
        Watched(agreeing(), ORDER, every(), path=path)


def test_a_file_has_one_writer(tmp_path: Path) -> None:
    """Trap: two that shared a file wrote what each knew, and one took back the alarm of the other in silence."""
    path = tmp_path / "state.json"
    alarmed, calm = (
        Watched(model, ORDER, every(), path=path, tell=lambda left: None) for model in (flipping(), agreeing())
    )
    alarmed(torch.randn(40, 3))
    calm(torch.randn(20, 3))
    with pytest.raises(CheckpointError, match="another writer has changed it"):
        calm.save()
    assert Watched(flipping(), ORDER, every(), path=path).audit.to_dict() == alarmed.audit.to_dict()
    path.unlink()  # to begin anew
    calm.save()
    calm.save()
    assert Watched(agreeing(), ORDER, every(), path=path).audit.to_dict() == calm.audit.to_dict()


def test_regression_is_watched_within_a_tolerance() -> None:
    model = ponder.PonderWrapper(Flipping(), num_steps=3, head=nn.Linear(3, 1), task="regression").eval()
    with pytest.raises(ArgumentError, match="tolerance"):
        Watched(model, ORDER[:1], every())
    watched = Watched(model, ORDER[:1], every(), tolerance=1e-6)
    watched(torch.randn(1, 3))
    watched.run_audits()
    assert watched.audit.disagreements == 0  # steps 1 and 3 are the same


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_a_number_of_a_model_that_names_no_task_is_refused_by_the_first_call(tolerance: float) -> None:
    """The trap: the audit refused it, inside a later call, whose answer was lost, and so in all that came after."""
    model = ponder.PonderWrapper(Flipping(), num_steps=3, head=nn.Linear(3, 1)).eval()
    watched = Watched(model, ORDER[:1], every(share=0.01), tolerance=tolerance)
    with refused("outputs", "(1, 1)", "task='regression'"):
        watched(torch.randn(4, 3))
    with refused("outputs", "(1, 1)", "task='regression'"):
        watched.seen(torch.randn(4, 3), torch.randn(4, 1))
    assert watched.waiting == 0
    classes = Watched(ponder.PonderWrapper(nn.Identity(), num_steps=3, head=nn.Identity()).eval(), ORDER[:1], every())
    classes(torch.randn(4, 3))
    assert (classes.waiting, classes.run_audits(), classes.audit.disagreements) == (4, 4, 0)


def test_bad_arguments_are_refused() -> None:
    for model, order, match in (
        (agreeing().train(), ORDER, "model.eval"),
        (agreeing(), [], "at least one policy"),
        (agreeing(), [policies.Quantile(0.5)], "hazard"),
    ):
        with pytest.raises(ArgumentError, match=match):
            Watched(model, order)
    with pytest.raises(ArgumentError, match="max_waiting"):
        Watched(agreeing(), ORDER, max_waiting=0)


def test_a_step_back_is_kept_before_anybody_is_told_who_may_raise(tmp_path: Path) -> None:
    def broken(left: StepBack) -> None:
        raise RuntimeError("pager is down")

    path = tmp_path / "audit.json"
    watched = Watched(flipping(), ORDER, every(), path=path, tell=broken, max_waiting=100)
    for _ in range(2):
        watched(torch.randn(40, 3))
    with pytest.raises(RuntimeError, match="pager"):
        watched.run_audits()
    assert watched.audit.stage == 1
    assert Watched(flipping(), ORDER, every(), path=path).policy == ORDER[1]
    assert watched.waiting == 40, "what was not audited yet still waits"


def test_nan_agrees_with_nothing() -> None:
    nan = torch.full((20, 3), torch.nan)
    watched = Watched(agreeing(), ORDER, every(), tell=lambda left: None)
    watched.seen(torch.tensor([3.0, 0.0, 0.0]).expand(20, 3), nan)
    watched.run_audits()
    assert watched.audit.stage == 1


def test_full_depth_without_an_answer_differs_from_none_as_in_a_certificate() -> None:
    """The trap: rows that full depth answers with NaN ended a stage that had been certified with such rows."""
    model, nan = agreeing(), torch.randn(600, 3)
    nan[::10] = torch.nan
    certified = ponder.control_risk(model.record(nan), policies.Confidence, level=0.05)
    assert certified.met
    told: list[StepBack] = []
    watched = Watched(model, [certified.policy], every(level=0.05), tell=told.append)
    watched(nan)
    watched.run_audits()
    assert (watched.audit.audits, watched.audit.disagreements, told) == (600, 0, [])


@pytest.mark.parametrize("task", ["classification", "regression", "multilabel", "token_classification", "span"])
def test_an_answer_is_the_same_as_that_of_full_depth(task: str) -> None:
    """NaN is no answer: it is that of full depth where this has none."""
    shape = (4, 5, 2) if task in ("token_classification", "span") else (4, 3)
    full = torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs() + 1.0
    given = full.clone()
    given[2] = -given[2]
    given[[0, 1], ..., :1], full[[1, 3], ..., :1] = torch.nan, torch.nan
    same = same_answers(task_named(task), given, full, tolerance=0.1)
    assert same.tolist() == [False, True, False, False]


def test_outputs_that_are_not_those_of_the_inputs_are_refused() -> None:
    """Fewer rows were audited in silence, and classes in the place of logits compared as if they were logits."""
    model, inputs = agreeing(), torch.randn(6, 3)
    given = model(inputs).outputs
    for outputs in (given[:5], torch.cat([given, given])):
        with pytest.raises(ArgumentError, match=r"^outputs: expected a tensor with the batch first, \(6, …\)"):
            Watched(model, ORDER, every()).seen(inputs, outputs)
    with pytest.raises(ArgumentTypeError, match=r"^outputs: expected a Tensor .* got ndarray"):
        Watched(model, ORDER, every()).seen(inputs, given.numpy())
    for outputs in (given.argmax(1), torch.randn(6, 4)):
        watched = Watched(model, ORDER, every())
        watched.seen(inputs, outputs)
        with pytest.raises(ArgumentError, match=r"^outputs: expected .* of shape \(6, 3\); got shape \(6"):
            watched.run_audits()
        assert (watched.audit.audits, watched.waiting) == (0, 0)


class FlippingPadding(nn.Module):
    """A step that turns the answers at padding round, and no other."""

    def forward(self, hidden: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid[..., None] != 0, hidden, -hidden)


def test_padding_is_what_the_model_says_it_is() -> None:
    model = ponder.PonderWrapper(
        FlippingPadding(),
        num_steps=4,
        head=nn.Identity(),
        readout=ponder.readouts.identity,
        task="token_classification",
        padding=ponder.Padding(mask="valid", pooled=False),
    ).eval()
    inputs = torch.tensor([1.0, 0.0]).expand(20, 5, 2).contiguous()
    valid = torch.tensor([1, 1, 1, 0, 0]).expand(20, 5).contiguous()
    watched = Watched(model, ORDER, every())
    watched(inputs, valid=valid)
    assert watched.run_audits() == 20
    assert watched.audit.disagreements == 0


@dataclass(frozen=True)
class Budget(ExitPolicy):
    """Leaves at the step that the caller asks for."""

    needs = frozenset({"context"})

    def decide(self, step: StepView, state: Any) -> tuple[Tensor | bool, Any]:
        return step.index >= step.context["budget"], state


def test_a_policy_that_asks_the_caller_is_no_promise() -> None:
    model = ponder.PonderWrapper(nn.Linear(2, 2), num_steps=4, head=nn.Identity(), task="classification").eval()
    with pytest.raises(ArgumentError, match=r"policies: expected .* got Budget\(\), which reads policy_context"):
        Watched(model, [Budget()])


def certified(threshold: float | None) -> policies.Certified:
    told = {"statement": "", "risk": "disagreement", "level": 0.1, "confidence": 0.95, "bound": "betting", "rows": 9}
    chosen = {"threshold_name": "threshold", "threshold_value": threshold, "p_value": 0.01, "path": ()}
    inside = policies.LastStep() if threshold is None else policies.Confidence(threshold)
    return policies.Certified(inside, **told, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "order",
    [
        [policies.Confidence(0.5), policies.Confidence(0.4)],
        [policies.FixedStep(3), policies.FixedStep(1)],
        [policies.Entropy(0.2), policies.Entropy(0.4)],
        [policies.Confidence(0.5).after(2), policies.Confidence(0.4).after(2)],
        [policies.LastStep(), policies.Confidence(0.4)],
        [certified(None), policies.Confidence(0.4)],
        [certified(0.9), certified(0.8)],
        [certified(0.9), policies.Confidence(0.8)],
    ],
)
def test_stepping_back_to_what_leaves_earlier_is_refused(order: list[ExitPolicy]) -> None:
    with pytest.raises(ArgumentError, match="policies: expected from the cheapest to the safest"):
        Watched(agreeing(), order, every())
    with pytest.raises(ArgumentError, match="policies: expected from the cheapest to the safest"):
        AuditPlan(every(), tuple(order))
    Watched(agreeing(), order[::-1], every())


def test_answers_on_their_way_at_a_step_back_say_nothing_of_the_next_policy() -> None:
    # Trap: they were noted at the stage that stood when they came, and burnt one policy after the other.
    told: list[StepBack] = []
    model, inputs = flipping(), torch.randn(60, 3)
    watched = Watched(model, [policies.FixedStep(3), policies.FixedStep(4)], every(), tell=told.append)
    stage, policy = watched.stage, watched.policy
    outputs = model(inputs, policy=policy).outputs  # all submitted before the first audit
    for row in range(len(inputs)):
        watched.seen(inputs[row : row + 1], outputs[row : row + 1], stage=stage)
        watched.run_audits()
    assert [left.stage for left in told] == [0]
    assert (watched.stage, watched.policy) == (1, policies.FixedStep(4))
    for other in (-1, 2):  # stages count from 0, and this one did not begin yet
        with refused("stage", str(other)):
            watched.seen(inputs, outputs, stage=other)
    assert copy.deepcopy(watched).audit.to_dict() == watched.audit.to_dict()


def test_a_call_is_of_the_stage_at_which_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: another thread stepped back while the model ran, and the answers counted for the policy after it.
    told: list[StepBack] = []
    model = flipping()
    watched = Watched(model, [policies.FixedStep(3), policies.FixedStep(4)], every(), tell=told.append, max_waiting=99)
    watched(torch.randn(30, 3))
    run = type(model).exits

    def slow(self: Any, *args: Any, **named: Any) -> Any:
        found = run(self, *args, **named)
        if args[2] == policies.FixedStep(3):
            monkeypatch.setattr(type(model), "exits", run)
            watched.run_audits()
        return found

    monkeypatch.setattr(type(model), "exits", slow)
    watched(torch.randn(30, 3))
    watched.run_audits()
    assert [left.stage for left in told] == [0]
    assert watched.policy == policies.FixedStep(4)


@pytest.mark.parametrize("in_a_file", [False, True])
def test_threads_lose_no_audit(in_a_file: bool, tmp_path: Path) -> None:
    path = tmp_path / "audit.json" if in_a_file else None
    watched = Watched(agreeing(), [policies.FixedStep(1)], every(share=0.5), path=path)

    def use() -> None:
        for _ in range(20):
            watched(torch.randn(8, 3))
            watched.run_audits()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            for call in [pool.submit(use) for _ in range(4)]:
                call.result()
    finally:
        sys.setswitchinterval(interval)
    counted = every(share=0.5)
    assert watched.audit.answers == 4 * 20 * 8
    assert watched.audit.audits == sum(counted.chosen() for _ in range(4 * 20 * 8))
    if path is not None:
        assert StateFile(path, "ponder-watched-1", (policies.FixedStep(1),)).read(every(share=0.5)).audits == (
            watched.audit.audits
        )


def _certified(level: float, risk: Any) -> ExitPolicy:
    labels = torch.arange(400) % 2
    outputs = 5.0 * torch.nn.functional.one_hot(labels, 2)[:, None].repeat(1, 4, 1).float()
    run = ponder.Trajectory(outputs, None, torch.arange(400), labels=labels, task="classification")
    return ponder.control_risk(run, policies.FixedStep, risk=risk, level=level, confidence=0.9).policy


def test_what_is_audited_is_what_the_certificate_promises() -> None:
    watched = Watched(agreeing(), [_certified(0.3, "disagreement")])
    assert (watched.audit.level, watched.audit.confidence) == (0.3, 0.9)
    assert Watched(agreeing(), ORDER).audit.level == Audit().level
    nothing = _certified(1e-4, "disagreement")  # of so few rows nothing so strict can be certified
    assert Watched(agreeing(), [_certified(0.3, "disagreement"), nothing]).audit.level == 0.3
    assert Watched(agreeing(), [policies.FixedStep(1), nothing]).audit.level == Audit().level
    assert Watched(agreeing(), [_certified(0.3, "disagreement")], every(level=0.2)).audit.level == 0.2


def test_a_certificate_of_another_risk_needs_an_audit_of_its_own() -> None:
    """The trap: errors may be many where answers hardly ever differ from full depth."""
    with refused("audit", "differ from full depth", "of error", "Audit(level="):
        Watched(agreeing(), [_certified(0.3, "error")])
    assert Watched(agreeing(), [_certified(0.3, "error")], every(level=0.2)).audit.level == 0.2
