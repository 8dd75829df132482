"""Whatever chooses from a trajectory looks at it first: its kind, its rows, its mode, and rows that are not finite."""

import pytest
import torch
from torch import nn

import ponder
from ponder import objectives, policies
from ponder.calibration import fit_gate
from ponder.errors import ArgumentError, ArgumentTypeError

CHOOSERS = {
    "calibrate": lambda trajectory: ponder.calibrate(trajectory, policies.Confidence, at_most_steps=2.0),
    "control_risk": lambda trajectory: ponder.control_risk(trajectory, policies.Confidence, level=0.3),
    "diagnose": lambda trajectory: ponder.diagnose(trajectory, samples=40),
    "fit_gate": lambda trajectory: fit_gate(trajectory, "error"),
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        [nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.5)) for _ in range(3)],
        head=nn.Linear(8, 3),
        objective=objectives.DeepSupervision("uniform"),
        task="classification",
    ).eval()


@pytest.fixture(scope="module")
def data():
    torch.manual_seed(1)
    return torch.randn(60, 8), torch.randint(3, (60,))


def record(model, inputs, labels):
    with torch.no_grad():
        return model.unroll(inputs, labels=labels)


@pytest.mark.parametrize("choose", CHOOSERS.values(), ids=CHOOSERS)
def test_what_is_no_trajectory_is_refused(choose, data):
    with pytest.raises(ArgumentTypeError, match="trajectory: expected a trajectory; got Tensor"):
        choose(data[0])


@pytest.mark.parametrize("choose", CHOOSERS.values(), ids=CHOOSERS)
def test_answers_with_dropout_on_choose_nothing(choose, model, data):
    model.train()
    try:
        with pytest.warns(UserWarning, match="training mode"):
            trajectory = record(model, *data)
    finally:
        model.eval()
    with pytest.raises(ArgumentError, match="expected a run in evaluation mode"):
        choose(trajectory)


def test_a_gate_learns_from_the_rows_that_are_finite_alone(model, data):
    inputs, labels = data
    broken = inputs.clone()
    broken[:7] = torch.nan
    gate, without = (fit_gate(record(model, *given), "error") for given in ((broken, labels), (inputs[7:], labels[7:])))
    torch.testing.assert_close(torch.tensor(gate.tables), torch.tensor(without.tables), rtol=1e-4, atol=1e-4)
    apart = {"tables": None, "fitted_on": None}  # the ids of rows are others
    assert {**gate.to_dict(), **apart} == {**without.to_dict(), **apart}
    with pytest.raises(ArgumentError, match="rows whose outputs are finite"):
        fit_gate(record(model, broken[:7], labels[:7]), "error")


@pytest.mark.parametrize(("argument", "value"), [("samples", 0), ("speedups", (0.5,))])
def test_a_diagnosis_with_nothing_to_compare_is_refused(argument, value, model, data):
    with pytest.raises(ArgumentError, match=argument):
        ponder.diagnose(record(model, *data), **{argument: value})


def test_an_example_that_the_module_cannot_be_called_with_is_named():
    encoder = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    with pytest.raises(ArgumentError, match=r"example: expected inputs that the module can be called with"):
        ponder.capture(encoder, torch.randn(4, 5))
