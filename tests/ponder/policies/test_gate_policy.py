"""Gates: fitted on a frozen model's trajectory, plain numbers, and equal in run, replay and scikit-learn."""

from __future__ import annotations

import builtins
import dataclasses
import json
import warnings
from pathlib import Path

import pytest
import torch

import ponder
from ponder import policies
from ponder.calibration import fit_gate
from ponder.calibration.gate import staying_pays
from ponder.errors import ArgumentTypeError, PonderError
from ponder.policies import Gate
from ponder.policies.gate import GATE_SIGNALS
from ponder.testing import check_policy
from tests.ponder import oracles
from tests.ponder.checks import assert_exits, records, refused
from tests.toys import labels_for, make_toy, wrap

sklearn = pytest.importorskip("sklearn", reason="gates are fitted with scikit-learn, which is not installed")
KINDS = ("logistic", "boosted")
HAZARDS = ("hazard", "cdf", "expected")


def record(
    rows: int = 200, num_steps: int = 6, task: str | None = "classification", hazards: bool = True, seed: int = 0
):
    """A trajectory whose later steps are better, with labels."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows,), generator=g)
    difficulty = torch.rand(rows, 1, 1, generator=g) * num_steps
    steps = torch.arange(1, num_steps + 1).view(1, -1, 1)
    signal = torch.nn.functional.one_hot(labels, 3).unsqueeze(1) * torch.sigmoid(steps - difficulty) * 4
    outputs = signal + torch.randn(rows, num_steps, 3, generator=g)
    if task == "regression":
        outputs, labels = outputs[..., :1], labels.float()
    return ponder.Trajectory(
        outputs=outputs,
        hazard_logits=torch.randn(rows, num_steps, generator=g) if hazards else None,
        row_ids=torch.arange(rows),
        features=torch.randn(rows, num_steps, 8, generator=g),
        labels=labels,
        task=task,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("task", "floor"), [("classification", 3), ("regression", 1)])
def test_a_gate_keeps_the_contract_of_policies(kind: str, task: str, floor: int) -> None:
    gate = fit_gate(record(task=task), floor=floor, model=kind, trees=3)
    check_policy(gate, task=task, num_steps=6)


def test_a_gate_on_the_hidden_state_keeps_it_too() -> None:
    check_policy(fit_gate(record(), signals=("movement", "hidden")), num_steps=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hazards", [True, False])
def test_its_exits_are_those_of_a_plain_loop(kind: str, hazards: bool) -> None:
    fitted_on, other = record(hazards=hazards), record(rows=80, hazards=hazards, seed=1)
    gate = fit_gate(fitted_on, model=kind, target="error", floor=2, threshold=0.4)
    exits = other.replay(gate)
    assert len(set(exits.exit_step.tolist())) > 2, "a gate that decides nothing proves nothing"
    assert_exits(exits, gate, records(other))


@pytest.mark.parametrize("kind", KINDS)
def test_its_probabilities_are_those_of_scikit_learn(kind: str) -> None:
    trajectory, signals = record(num_steps=4), ("confidence", "margin", "streak", "shift", "cdf")
    gate = fit_gate(trajectory, "error", model=kind, signals=signals)
    pays = staying_pays(trajectory, "error")
    rows = [oracles._Row(row) for row in records(trajectory)]
    values = torch.tensor([oracles.gate_signals(row, signals) for row in rows])
    mine = torch.tensor([oracles.gate_probabilities(row, signals, kind, gate.tables) for row in rows])
    for n in range(3):
        x, y = values[:, n].double(), pays[:, n].numpy()
        if kind == "logistic":
            x = (x - x.mean(0)) / torch.where(x.std(0, correction=0) > 0, x.std(0, correction=0), 1.0)
            theirs = sklearn.linear_model.LogisticRegression(max_iter=1000).fit(x.numpy(), y)
        else:
            x = x.float()
            theirs = sklearn.ensemble.GradientBoostingClassifier(n_estimators=50, max_depth=3, random_state=0)
            theirs.fit(x.numpy(), y)
        expected = torch.as_tensor(theirs.predict_proba(x.numpy())[:, 1])
        off = (mine[:, n].double() - expected).abs()
        assert off.quantile(0.99) < 1e-3  # a row may stand within rounding of a split of a tree
        assert off.max() < (1e-3 if kind == "logistic" else 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gain_that_it_is_fitted_to_is_more_than_delta(kind: str) -> None:
    """Against scikit-learn on signals and labels that are made here."""
    trajectory = record(rows=120, num_steps=3)
    x = torch.cat([trajectory.outputs.softmax(-1).amax(-1, keepdim=True), trajectory.features], dim=-1).double()
    losses = -trajectory.outputs.log_softmax(-1)[torch.arange(120), :, trajectory.labels]
    gates = []
    for delta in (0.1, 1.0):
        gate = fit_gate(trajectory, "gain", delta, model=kind, trees=4, signals=("confidence", "hidden"))
        assert (gate.target, gate.delta) == ("gain", delta)
        gates.append(gate)
        for n, table in enumerate(gate.tables):
            pays = ((losses[:, n, None] - losses[:, n + 1 :]) > delta).any(1).numpy()
            at = x[:, n]
            if kind == "logistic":
                scaled = (at - at.mean(0)) / at.std(0, correction=0)
                theirs = sklearn.linear_model.LogisticRegression(max_iter=1000).fit(scaled.numpy(), pays)
                mine, expected = at @ at.new_tensor(table[:-1]) + table[-1], theirs.decision_function(scaled.numpy())
            else:
                made = sklearn.ensemble.GradientBoostingClassifier(n_estimators=4, max_depth=3, random_state=0)
                expected = made.fit(at.float().numpy(), pays).decision_function(at.float().numpy())
                assert len(table[1]) == 4
                rows = at.float().tolist()
                mine = torch.tensor([table[0] + sum(oracles.walk(tree, row) for tree in table[1]) for row in rows])
            torch.testing.assert_close(mine.double(), torch.as_tensor(expected), rtol=1e-3, atol=1e-3)
    assert gates[0].tables != gates[1].tables


def test_what_it_is_asked_for_is_what_it_decides_by() -> None:
    trajectory = record(rows=60)
    gate = fit_gate(trajectory, "error", floor=3, threshold=0.9)
    assert (gate.floor, gate.threshold, gate.target, gate.delta) == (3, 0.9, "error", 0.0)
    assert gate.signals == ("confidence", "margin", "energy", "negative_entropy", "streak", "shift", *HAZARDS)
    assert fit_gate(record(task="regression"), delta=0.1).signals == ("movement", *HAZARDS)
    assert int(trajectory.replay(gate).exit_step.min()) == 3
    with refused("delta", "has no amount"):
        fit_gate(trajectory, "error", delta=0.1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("toy", ["stacked", "transformer", "gru-cell"])
def test_running_a_model_with_it_is_replaying_it(kind: str, toy: str) -> None:
    torch.manual_seed(0)
    made = make_toy(toy)
    model = wrap(made, task="classification").eval()
    inputs, context = made.batch(60, seed=3)
    labels = labels_for("classification", 60)
    trajectory = model.unroll(inputs, labels=labels, keep_features=True, **context)
    gate = fit_gate(trajectory, "error", model=kind, threshold=0.3)
    replayed, ran = trajectory.replay(gate), model(inputs, policy=gate, **context)
    assert torch.equal(replayed.exit_step, ran.exit_step)
    torch.testing.assert_close(replayed.outputs, ran.outputs)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_plain_numbers(kind: str, tmp_path) -> None:
    trajectory = record()
    gate = fit_gate(trajectory, model=kind)
    again = policies.from_dict(json.loads(json.dumps(gate.to_dict())))
    assert again == gate
    assert torch.equal(trajectory.replay(again).exit_step, trajectory.replay(gate).exit_step)
    toy = make_toy("stacked")
    model = wrap(toy, task="classification").eval()
    inputs, context = toy.batch(40)
    model.policy = fit_gate(model.unroll(inputs, labels=labels_for("classification", 40), **context), model=kind)
    ponder.save(model, tmp_path)
    other = ponder.load(wrap(make_toy("stacked"), task="classification"), tmp_path)
    assert other.policy == model.policy
    assert torch.equal(other.eval()(inputs, **context).exit_step, model(inputs, **context).exit_step)


def test_a_gate_that_knows_saves_steps_that_the_same_answers_need_not() -> None:
    """On fresh rows: the gate's mean exit step is far below full depth, at about its accuracy."""
    fitted_on, test = record(rows=3000), record(rows=3000, seed=5)
    gate = fit_gate(fitted_on, "error")
    chosen = ponder.calibrate(record(rows=3000, seed=9), gate, at_least=0.99)
    point, full = chosen.evaluate(dataclasses.replace(test, row_ids=test.row_ids + 10_000)), chosen.curve.full_depth
    assert point.mean_exit_step < 4.5
    assert point.score > full.score - 0.03


# What hindsight tells


def test_hindsight_by_a_plain_loop() -> None:
    trajectory = record(rows=50)
    rows = records(trajectory)
    for target, delta in (("gain", 0.0), ("gain", 0.3), ("error", 0.0), ("agreement", 0.0)):
        told = staying_pays(trajectory, target, delta).tolist()
        for row, label, mine in zip(rows, trajectory.labels.tolist(), told, strict=True):
            losses = [oracles.task_loss("classification", output, label) for output in row["outputs"]]
            given = [output.index(max(output)) for output in row["outputs"]]
            for n in range(6):
                later = range(n + 1, 6)
                expected = {
                    "gain": any(losses[m] < losses[n] - delta for m in later),
                    "error": given[n] != label and any(given[m] == label for m in later),
                    "agreement": given[n] != given[-1],
                }[target]
                assert mine[n] == expected


def test_without_labels_agreement_with_full_depth_is_fitted_and_said() -> None:
    trajectory = dataclasses.replace(record(), labels=None)
    with pytest.warns(UserWarning, match=r"no labels.*agreement with full depth.*target='agreement'"):
        gate = fit_gate(trajectory)
    assert gate.target == "agreement"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_gate(trajectory, "agreement") == gate
    with refused("trajectory", "target='error'"):
        fit_gate(trajectory, "error")


def test_steps_where_all_rows_agree_are_constants() -> None:
    trajectory = record(rows=20)
    trajectory = dataclasses.replace(trajectory, outputs=trajectory.outputs[:, -1:].expand(-1, 6, -1).contiguous())
    gate = fit_gate(trajectory, "agreement")
    assert all(weights == 0 for table in gate.tables for weights in table[:-1])
    assert trajectory.replay(gate).exit_step.tolist() == [1] * 20  # P(another answer) = 0.5 / 21


# Answers at every position, and gates that all steps share


TOKEN_SIGNALS = ("confidence", "margin", "energy", "negative_entropy", "streak", "shift", "movement")


def token_record(rows: int = 60, num_steps: int = 5, length: int = 4, seed: int = 0):
    """A trajectory of answers at every position, which get better; some rows are padded."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (rows, length), generator=g)
    mask = torch.arange(length) < torch.randint(1, length + 1, (rows, 1), generator=g)
    steps, difficulty = torch.arange(num_steps).view(1, -1, 1, 1), torch.rand(rows, 1, length, 1, generator=g) * 4
    signal = torch.nn.functional.one_hot(labels, 3).unsqueeze(1) * torch.sigmoid(2 * (steps - difficulty)) * 6
    return ponder.Trajectory(
        outputs=signal + torch.randn(rows, num_steps, length, 3, generator=g),
        hazard_logits=None,
        row_ids=torch.arange(rows),
        labels=torch.where(mask, labels, -100),
        mask=mask,
        task="token_classification",
    )


def signals_of_rows(trajectory: ponder.Trajectory) -> torch.Tensor:
    """`TOKEN_SIGNALS` of every row and step but the last, from those of each position alone."""
    found = []
    for outputs, mask in zip(trajectory.outputs, trajectory.mask, strict=True):
        of_positions = torch.tensor(
            [
                oracles.gate_signals(oracles._Row({"outputs": outputs[:, place].tolist()}), TOKEN_SIGNALS)
                for place in mask.nonzero().flatten().tolist()
            ]
        )
        least, most, mean = of_positions.amin(0), of_positions.amax(0), of_positions.mean(0)
        found.append(torch.cat([least[:, :5], most[:, 5:6], mean[:, 6:]], dim=1))
    return torch.stack(found)[:, :-1]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_of_positions_the_least_sure_counts_and_padding_does_not(kind: str, shared: bool) -> None:
    trajectory = token_record()
    gate = fit_gate(trajectory, "error", model=kind, shared=shared, signals=TOKEN_SIGNALS, trees=5, threshold=0.3)
    values, exits = signals_of_rows(trajectory), trajectory.replay(gate).exit_step.tolist()
    assert len(set(exits)) > 2, "a gate that decides nothing proves nothing"
    for row, exit_step in zip(values.tolist(), exits, strict=True):
        tables = [gate.tables[0]] * 4 if shared else gate.tables
        scores = []
        for table, signals in zip(tables, row, strict=True):
            line = kind == "logistic"
            trees = 0.0 if line else sum(oracles.walk(tree, signals) for tree in table[1])
            scores.append(
                sum(w * v for w, v in zip(table, signals, strict=False)) + table[-1] if line else table[0] + trees
            )
        expected = next((n for n, score in enumerate(scores, start=1) if oracles.sigmoid(score) < 0.3), 5)
        assert exit_step == expected


@pytest.mark.parametrize("shared", [True, False])
def test_a_gate_of_positions_keeps_the_contract(shared: bool) -> None:
    check_policy(fit_gate(token_record(), "error", shared=shared), task="token_classification", num_steps=5)


def test_a_shared_gate_serves_more_steps_than_it_was_fitted_on() -> None:
    gate = fit_gate(record(num_steps=4), "error", shared=True, threshold=0.2)
    assert len(gate.tables) == 1
    assert gate.num_steps is None
    assert policies.from_dict(json.loads(json.dumps(gate.to_dict()))) == gate
    check_policy(gate, num_steps=6)
    steps = record(num_steps=9, seed=3).replay(gate).exit_step
    assert int(steps.max()) > 4


def test_settled_is_right_here_and_at_all_later_steps() -> None:
    trajectory = record(rows=50)
    right = trajectory.correct().tolist()
    told = staying_pays(trajectory, "unsettled").tolist()
    for row, mine in zip(right, told, strict=True):
        assert mine == [not all(row[n:]) for n in range(5)] + [False]


@pytest.mark.parametrize(("target", "delta"), [("gain", 0.1), ("error", 0.0), ("unsettled", 0.0)])
def test_hindsight_does_not_look_at_padding(target, delta) -> None:
    tokens = token_record()
    beyond = torch.where(tokens.mask, tokens.labels, 1)  # labels of padding, which need not be the ignored one
    told = staying_pays(dataclasses.replace(tokens, labels=beyond), target, delta)
    assert torch.equal(told, staying_pays(tokens, target, delta))
    spans = dataclasses.replace(
        tokens, outputs=tokens.outputs[..., :2], labels=torch.zeros(len(tokens), 2).long(), task="span"
    )
    far_out = torch.arange(5.0).view(1, 5, 1, 1).expand_as(spans.outputs)  # at padding, another one at each step
    answering = torch.where(spans.mask[:, None, :, None], spans.outputs, far_out)
    told = staying_pays(dataclasses.replace(spans, outputs=answering), target, delta)
    assert torch.equal(told, staying_pays(spans, target, delta))


def test_features_of_positions_are_no_signal() -> None:
    trajectory = dataclasses.replace(token_record(), features=torch.zeros(60, 5, 4, 8))
    with refused("signals", "hidden"):
        fit_gate(trajectory, "error", signals=("hidden",))
    of_spans = {"outputs": trajectory.outputs[..., :2], "labels": torch.zeros(60, 2).long(), "task": "span"}
    with refused("signals", "hidden"):
        fit_gate(dataclasses.replace(trajectory, **of_spans), "unsettled", signals=("hidden",))


@pytest.mark.parametrize("kind", KINDS)
def test_features_of_positions_are_no_signal_of_one_answer_either(kind: str) -> None:
    """The trap: a head that reads the first token, and exits that hang on what stands at padding."""
    pooled = record(num_steps=4)
    tokens = dataclasses.replace(pooled, features=torch.randn(200, 4, 5, 8), mask=torch.ones(200, 5).bool())
    with refused("signals", "hidden", "readout"):
        fit_gate(tokens, "unsettled", signals=("margin", "hidden"), model=kind, trees=2)
    gate = fit_gate(pooled, "unsettled", signals=("margin", "hidden"), model=kind, trees=2)
    assert len(pooled.replay(gate).exit_step) == 200
    with refused("signals", "hidden", "readout"):
        tokens.replay(gate)


# Refusals


def test_a_gate_of_another_number_of_steps_is_refused() -> None:
    gate = fit_gate(record(num_steps=4))
    with refused("policy", "4", "6"):
        record(num_steps=6).replay(gate)
    toy = make_toy("stacked")
    with refused("policy", "fit_gate"):
        wrap(toy, task="classification").policy = gate


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"target": "loss"}, "target"),
        ({"delta": -1.0}, "delta"),
        ({"floor": 0}, "floor"),
        ({"floor": 7}, "floor"),
        ({"model": "forest"}, "model"),
        ({"trees": 0}, "trees"),
        ({"signals": ("entropy",)}, "signals"),
        ({"signals": ()}, "signals"),
        ({"threshold": 1.5}, "threshold"),
    ],
)
def test_bad_arguments_are_refused(arguments, argument: str) -> None:
    with refused(argument):
        fit_gate(record(), **arguments)


def test_rows_that_fitted_a_shared_gate_are_known_again_in_a_deeper_run() -> None:
    torch.manual_seed(0)
    step = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh())
    model = ponder.PonderWrapper(step, num_steps=4, head=torch.nn.Linear(6, 3), task="classification").eval()
    inputs, labels = torch.randn(80, 6), torch.randint(3, (80,))
    gate = fit_gate(model.record(inputs, labels=labels), "error", shared=True)
    deeper = model.record(inputs, labels=labels, num_steps=8)
    with refused("trajectory", "rows on which the policy was not fitted"):
        ponder.calibrate(deeper, gate, at_most_steps=3.0)
    others = model.record(torch.randn(80, 6), labels=labels, num_steps=8)
    assert len(ponder.calibrate(others, gate, at_most_steps=8.0).curve) > 1


@pytest.mark.parametrize("options", [{"weight": (1.0, 8.0, 1.0)}, {"label_smoothing": 0.3}], ids=str)
def test_a_gate_is_the_same_from_a_trajectory_that_was_saved(tmp_path: Path, options) -> None:
    trajectory = record(rows=200)
    weighed = dataclasses.replace(trajectory, task_object=ponder.tasks.Classification(**options))
    weighed.save(tmp_path / "saved.safetensors")
    loaded = ponder.Trajectory.load(tmp_path / "saved.safetensors")
    assert fit_gate(weighed, "gain", 0.1) == fit_gate(loaded, "gain", 0.1) == fit_gate(trajectory, "gain", 0.1)


def test_trajectories_that_tell_nothing_are_refused() -> None:
    with refused("trajectory"):
        fit_gate(record(rows=0))
    with refused("trajectory"):
        fit_gate(record(num_steps=1))
    with refused("target", "regression"):
        fit_gate(record(task="regression"), "agreement")
    with refused("trajectory", "target='gain'", "labels=labels)."):  # no agreement is promised, which has no answers
        fit_gate(dataclasses.replace(record(task="regression"), labels=None), "gain", signals=("hidden",))
    with pytest.warns(UserWarning, match="Gate reads class probabilities, and nobody said"), refused("task", "custom"):
        fit_gate(record(task="custom"))
    with refused("signals", "['cdf']", "confidence, margin", "Lambda head"):
        fit_gate(record(hazards=False), signals=("confidence", "cdf"))
    with refused("signals", "['hidden']", "keep_features=True"):
        fit_gate(dataclasses.replace(record(), features=None), signals=("hidden",))
    with refused("signals", "['confidence']", "regression", "movement, hazard"):
        fit_gate(record(task="regression"), signals=("confidence",))
    with refused("signals", "'confidence'", "Pass signals=('confidence',)", type_error=True):
        fit_gate(record(), signals="confidence")


@pytest.mark.parametrize("shared", [False, True])
def test_a_gate_of_another_number_of_classes_is_refused(shared: bool) -> None:
    """The trap: of five classes none is as sure as the surest of three, and a gate let rows go by another scale."""
    gate = fit_gate(record(), "error", shared=shared)
    assert gate.classes == 3
    assert policies.from_dict(gate.to_dict()) == gate
    more = record(seed=1)
    more = dataclasses.replace(more, outputs=torch.cat([more.outputs, more.outputs[..., :2]], dim=-1))
    for policy in (gate, gate | policies.Confidence(0.99)):
        with refused("policy", "5 classes", "3", "fit_gate"):
            more.replay(policy)
    with refused("policy", "5 classes"):
        ponder.calibrate(more, gate, at_least=0.9)
    of_before = gate.to_dict()
    del of_before["classes"]
    more.replay(policies.from_dict(of_before))
    for without in (fit_gate(record(task="regression"), delta=0.1), fit_gate(record(), signals=("hazard", "hidden"))):
        assert without.classes is None


def test_a_gate_on_features_of_another_width_is_refused() -> None:
    trajectory = record()
    for kind in KINDS:
        gate = fit_gate(trajectory, "error", signals=("hidden",), model=kind)
        narrow = dataclasses.replace(trajectory, features=trajectory.features[..., :1])
        with refused("policy", "width"):
            narrow.replay(gate)


def test_without_scikit_learn_the_extra_is_named_and_fitted_gates_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = fit_gate(record())
    real = builtins.__import__

    def no_sklearn(name: str, *arguments: object, **named: object) -> object:
        if name.split(".")[0] == "sklearn":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", no_sklearn)
    with pytest.raises(PonderError, match=r"ponder-torch\[gate\]"):
        fit_gate(record())
    assert policies.from_dict(gate.to_dict()) == gate
    record(rows=5).replay(gate)


def test_every_signal_can_be_read() -> None:
    gate = fit_gate(record(), signals=GATE_SIGNALS)
    assert gate.needs == {"output", "hazard", "features"}
    assert len(gate.tables[0]) == len(GATE_SIGNALS) - 1 + 8 + 1
    assert isinstance(gate, Gate)


def test_shared_is_true_or_false() -> None:
    with pytest.raises(ArgumentTypeError, match=r"shared: expected True or False; got 'no'"):
        fit_gate(record(), shared="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("signal", ["hazard", "energy"])
def test_what_differs_by_rounding_alone_teaches_nothing(signal: str) -> None:
    """A collapsed Lambda head, or a saturated energy: of such a signal great weights would let rows go by chance."""
    train, fresh = record(300, seed=1), record(4000, seed=2)
    if signal == "hazard":
        train, fresh = (dataclasses.replace(t, hazard_logits=0.3 + 1e-7 * t.hazard_logits) for t in (train, fresh))
    else:
        train, fresh = (dataclasses.replace(t, outputs=t.outputs + 14.0) for t in (train, fresh))
    gate = fit_gate(train, signals=("confidence", signal))
    assert all(abs(table[1]) < 1e3 for table in gate.tables)
    exact = dataclasses.replace(fresh, outputs=fresh.outputs.double(), hazard_logits=fresh.hazard_logits.double())
    same = fresh.replay(gate).exit_step == exact.replay(gate).exit_step
    assert float(same.double().mean()) > 0.999


def test_a_sure_models_confidence_teaches_a_gate() -> None:
    """Right answers differ from wrong ones by a hundred-thousandth, which is much more than rounding."""
    g = torch.Generator().manual_seed(0)
    labels, right = torch.randint(2, (2000,), generator=g), torch.rand(2000, 2, generator=g) < 0.8
    right[:, 1] = True
    margins = torch.where(right, 13.2, 11.4) + 0.3 * torch.randn(2000, 2, generator=g)
    given = torch.where(right, labels[:, None], 1 - labels[:, None])
    outputs = torch.nn.functional.one_hot(given, 2) * margins.unsqueeze(-1)
    trajectory = ponder.Trajectory(outputs, None, torch.arange(2000), labels=labels, task="classification")
    gate = fit_gate(trajectory, "error", signals=("confidence",))
    exits = trajectory.replay(gate)
    assert (exits.outputs.argmax(-1) == labels).double().mean() > 0.95
    assert exits.exit_step.double().mean() < 1.6
