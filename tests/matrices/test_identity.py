"""Full depth is the unwrapped encoder; nothing remains after a failure; every round trip keeps every result."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, priors, recipes
from tests import toys
from tests.compare import assert_same_answers, assert_same_weights
from tests.matrices import cases
from tests.matrices.cases import CASES, KINDS, name
from tests.toys import LENGTH, ROWS, WIDTH, Toy, build, padding


def reloaded(model: Any, other: Any, path: Path) -> Any:
    """Save a model, and read it into another that was built in the same way."""
    ponder.save(model, path)
    return ponder.load(path, into=other)


every_kind = pytest.mark.parametrize("kind", KINDS)


# -- identity ------------------------------------------------------------------------------------------------------


def plain_answer(made: Toy, inputs: Any, **context: Tensor) -> Tensor:
    """What head and encoder answer without `ponder`."""
    features = made.plain(inputs, **context)
    return made.model.head(features[:, 0] if features.dim() == 3 else features)


@every_kind
@pytest.mark.parametrize("grad", [True, False])
def test_full_depth_is_the_unwrapped_encoder_bit_for_bit(kind: str, grad: bool) -> None:
    made = build(kind, dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        expected = plain_answer(made, made.inputs, **made.context)
        out = made.call(policy=policies.LastStep())
        assert torch.equal(out.outputs, expected)
        assert torch.equal(
            made.model(made.inputs, policy=policies.FixedStep(5), **made.context).outputs, expected
        )
        assert torch.equal(made.model.unroll(made.inputs, **made.context).outputs[:, -1], expected)
        made.model.train()  # in which PyTorch's own layers take another path
        expected = plain_answer(made, made.inputs, **made.context)
        assert torch.equal(made.call().outputs, expected)
    assert out.outputs.requires_grad is grad


@pytest.mark.parametrize("kind", ["captured", "captured-mask"])
@pytest.mark.parametrize("grad", [True, False])
def test_a_captured_encoder_takes_calls_that_the_example_was_not(kind: str, grad: bool) -> None:
    made = build(kind, dtype=torch.float32)
    longer = torch.randn(3, LENGTH + 5, WIDTH)
    hidden = torch.arange(LENGTH + 5) >= torch.tensor([[2], [LENGTH + 5], [6]])
    causal = nn.Transformer.generate_square_subsequent_mask(LENGTH + 5)
    calls: list[dict[str, Any]] = [{}, {"src_key_padding_mask": hidden}, {"mask": causal}]
    with torch.set_grad_enabled(grad):
        for call in calls:
            if kind == "captured-mask" and "src_key_padding_mask" not in call:
                continue
            given = {
                key: ponder.Shared(value) if key == "mask" else value for key, value in call.items()
            }
            found = made.model(longer, policy=policies.LastStep(), **given).outputs
            assert torch.equal(found, plain_answer(made, longer, **call)), list(call)
            early = made.model(longer, policy=policies.FixedStep(2), **given).outputs
            assert torch.equal(early, _cut(made, 2, longer, call)), list(call)


def _cut(made: Toy, layers: int, inputs: Tensor, call: dict[str, Any]) -> Tensor:
    shorter = copy.copy(made.plain)
    shorter._modules = {**made.plain._modules, "layers": made.plain.layers[:layers]}
    shorter.num_layers = layers
    return made.model.head(shorter(inputs, **call)[:, 0])


def test_a_finetuned_classifier_keeps_its_answers_bit_for_bit() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    from ponder.integrations.transformers import PonderForSequenceClassification

    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    plain = BertForSequenceClassification(
        BertConfig(**sizes, num_hidden_layers=3, num_labels=3)
    ).eval()
    batch = {
        "input_ids": torch.randint(3, 30, (5, 7)),
        "attention_mask": torch.ones(5, 7, dtype=torch.long),
    }
    batch["attention_mask"][1, 4:] = 0
    made = PonderForSequenceClassification.from_finetuned(plain)

    def logits(**options: Any) -> Tensor:
        out = made(**batch, **options)
        return out.logits if hasattr(out, "logits") else out.outputs

    with torch.no_grad():
        expected = plain(**batch).logits
        assert torch.equal(logits(), expected)
        assert torch.equal(logits(policy=policies.FixedStep(3)), expected)
        assert made(**batch, policy=policies.FixedStep(1)).exit_step.tolist() == [1] * 5
        assert torch.equal(plain(**batch).logits, expected)


# -- failures ------------------------------------------------------------------------------------------------------


class Fragile(toys.Tanh):
    """A step that fails from its third call on, until it is repaired."""

    calls = 0
    failing = False

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        if self.failing and self.calls > 2:
            raise ValueError("a step failed")
        return super().forward(hidden)


class Grudge(policies.ExitPolicy):
    """A policy that fails at the second step."""

    needs = frozenset({"output", "hazard"})

    def decide(self, step: Any, state: Any) -> Any:
        if int(step.index[0]) == 2:
            raise ValueError("a policy failed")
        return False, state


def snapshot(model: nn.Module) -> list[Any]:
    """Modes, hooks, names of weights and buffers, and who learns."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    parts = [
        (each, part.training, [len(getattr(part, h)) for h in hooks])
        for each, part in model.named_modules()
    ]
    weights = [
        (each, weight.requires_grad, weight.grad is None)
        for each, weight in model.named_parameters()
    ]
    return [parts, weights, sorted(model.state_dict()), torch.is_grad_enabled()]


@pytest.mark.parametrize("call", ["eval", "unroll", "train", "predict", "stream", "policy"])
def test_after_a_failure_the_next_call_works_and_nothing_remains(call: str) -> None:
    made = build("shared")
    step = Fragile().double()
    step.load_state_dict(
        next(part for part in made.model.modules() if isinstance(part, toys.Tanh)).state_dict()
    )
    parts = {
        "head": made.model.head,
        "lambda_head": made.model.lambda_head,
        "task": "classification",
    }
    model = ponder.PonderWrapper(step, toys.STEPS, **parts).eval()
    before = snapshot(model)
    expected = made.call(policy=policies.Confidence(0.7))
    model.train(call == "train")

    def fail() -> None:
        if call == "predict":
            ponder.predict(model, made.inputs)
        elif call == "stream":
            with ponder.StreamEngine(model) as engine:
                list(engine.run(made.inputs))
        elif call == "policy":
            model(made.inputs, policy=Grudge())
        elif call == "unroll":
            model.unroll(made.inputs)
        else:
            model(made.inputs, labels=cases.labels_for("classification"))

    step.failing = call != "policy"
    with pytest.raises(ValueError, match="failed"):
        fail()
    step.failing = False
    model.eval()
    assert snapshot(model) == before
    out = model(made.inputs, policy=policies.Confidence(0.7))
    assert out.exit_step.tolist() == expected.exit_step.tolist()
    assert torch.equal(out.outputs, expected.outputs)


@every_kind
def test_calls_leave_the_model_as_it_was(kind: str) -> None:
    made = build(kind)
    before = snapshot(made.model)
    weights = copy.deepcopy(made.model.state_dict())
    first = made.call(policy=policies.Bernoulli(seed=0))
    made.unroll(keep_features=True)
    ponder.predict(made.model, made.examples())
    with ponder.StreamEngine(made.model) as engine:
        list(engine.run(made.examples()))
    assert snapshot(made.model) == before
    assert all(torch.equal(value, weights[key]) for key, value in made.model.state_dict().items())
    assert torch.equal(made.call(policy=policies.Bernoulli(seed=0)).outputs, first.outputs)


# -- round trips ---------------------------------------------------------------------------------------------------


def build_other(made: Toy) -> Any:
    other = copy.deepcopy(made.model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    return other


def by_state_dict(made: Toy) -> Any:
    other = build_other(made)
    other.load_state_dict(made.model.state_dict())
    return other


TRIPS: dict[str, Callable[[Toy, Path], Any]] = {
    "deepcopy": lambda made, tmp_path: copy.deepcopy(made.model),
    "pickle": lambda made, tmp_path: pickle.loads(pickle.dumps(made.model)),
    "state_dict": lambda made, tmp_path: by_state_dict(made),
    "file": lambda made, tmp_path: reloaded(made.model, build_other(made), tmp_path / "model"),
    "dtypes": lambda made, tmp_path: copy.deepcopy(made.model).to(torch.float64),
    "modes": lambda made, tmp_path: copy.deepcopy(made.model).train().eval(),
}


@every_kind
@pytest.mark.parametrize("trip", TRIPS)
def test_a_model_survives_its_trip(kind: str, trip: str, tmp_path: Path) -> None:
    chosen = {
        "policy": policies.Bernoulli(seed=2),
        "objective": objectives.Ponder(0.3),
        "prior": priors.Geometric(0.3),
    }
    made = build(kind, per_step=True, **chosen)
    other = TRIPS[trip](made, tmp_path)
    assert {key: getattr(other, key) for key in chosen} == chosen
    assert_same_weights(other, made.model)
    for policy in (None, policies.Patience(1), policies.LastStep()):
        expected = made.call(policy=policy)
        found = other.eval()(made.inputs, policy=policy, **made.context)
        assert found.exit_step.tolist() == expected.exit_step.tolist()
        assert_same_answers(found.outputs, expected.outputs)
    labels = cases.labels_for("classification")
    losses = [
        float(m.train()(made.inputs, labels=labels, **made.context).loss.detach())
        for m in (made.model, other)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_a_saved_policy_prior_and_objective_come_back(tmp_path: Path) -> None:
    chosen = {"policy": policies.Confidence(0.9).after(2), "prior": priors.Uniform()}
    made = build("shared", objective=objectives.FinalStep(), **chosen)
    found = reloaded(made.model, build("shared").model, tmp_path / "model")
    assert (found.policy, found.prior, found.objective) == (
        *chosen.values(),
        objectives.FinalStep(),
    )


PLUGINS: list[Any] = [
    *CASES,
    objectives.Ponder(0.5, kl="prior_posterior")
    + 0.3 * objectives.Distillation(2.0, teacher="frozen"),
    objectives.DeepSupervision("linear"),
    objectives.FinalStep(),
    objectives.MutualDistillation(1.5),
    priors.Geometric(0.2),
    priors.Uniform(),
]


@pytest.mark.parametrize("plugin", PLUGINS, ids=name)
def test_a_plug_in_survives_json_pickle_and_copies(plugin: Any) -> None:
    base = next(
        kind
        for kind in (policies.ExitPolicy, objectives.Objective, priors.Prior)
        if isinstance(plugin, kind)
    )
    made = base.from_dict(json.loads(json.dumps(plugin.to_dict())))
    for other in (made, pickle.loads(pickle.dumps(plugin)), copy.deepcopy(plugin)):
        assert other == plugin
        assert type(other) is type(plugin)
        assert hash(other) == hash(plugin)
        assert other.to_dict() == plugin.to_dict()
    with pytest.raises(AttributeError):
        plugin.anything = 1


@pytest.mark.parametrize(
    "recipe", ["vanilla", "pondernet", "palbert", "pabee", "deebert", "fastbert"]
)
def test_a_recipe_survives_json(recipe: str) -> None:
    made = recipes.get(recipe)
    other = recipes.Recipe.from_dict(json.loads(json.dumps(made.to_dict())))
    assert other == made
    assert recipe in recipes.names()


@pytest.mark.parametrize("task", toys.TASKS)
def test_a_trajectory_survives_its_trip(task: str, tmp_path: Path) -> None:
    made = build(cases.KIND_OF_TASK[task], task)
    whole = made.unroll(labels=cases.labels_for(task), keep_features=True)
    whole.save(tmp_path / "run.safetensors")
    ids = torch.arange(ROWS)
    batches = [(*toys.take((made.inputs, made.context), rows), rows) for rows in ids.split(5)]
    parts = [
        made.model.unroll(inputs, row_ids=rows, **context) for inputs, context, rows in batches
    ]
    bare = replace(whole, labels=None, features=None)
    for other in (
        ponder.Trajectory.load(tmp_path / "run.safetensors"),
        ponder.Trajectory.cat(parts),
        whole.map(lambda tensor: tensor.clone()),
        copy.deepcopy(whole),
        made.model.record(made.examples(), batch_size=5),
        bare,
    ):
        assert (other.meaning.name, other.num_steps, len(other)) == (task, whole.num_steps, ROWS)
        outputs = [cases.answered(trajectory.outputs, task) for trajectory in (other, whole)]
        torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-9)
        for policy in (
            policies.Quantile(0.5),
            policies.Patience(1, tolerance=0.5),
            cases.Rising(1),
        ):
            assert (
                other.replay(policy).exit_step.tolist() == whole.replay(policy).exit_step.tolist()
            )
    loaded = ponder.Trajectory.load(tmp_path / "run.safetensors")
    assert torch.equal(loaded.labels, whole.labels)
    assert torch.equal(loaded.features, whole.features)


def test_rows_of_several_lengths_are_what_they_are_alone() -> None:
    made = build("captured-mask", policy=policies.Confidence(0.7))
    lengths = (~padding(ROWS)).sum(1).tolist()
    ragged = [made.inputs[row, :length] for row, length in enumerate(lengths)]
    alone = [
        made.model(row[None], src_key_padding_mask=torch.zeros(1, len(row), dtype=torch.bool))
        for row in ragged
    ]
    expected = [int(out.exit_step) for out in alone]
    outputs = torch.cat([out.outputs for out in alone])
    assert len(set(expected)) > 1
    predicted = ponder.predict(made.model, ragged, batch_size=4)
    assert predicted.exit_step.tolist() == expected
    torch.testing.assert_close(predicted.outputs, outputs, rtol=1e-9, atol=1e-9)
    trajectory = made.model.record(ragged, batch_size=4)
    assert trajectory.replay(made.model.policy).exit_step.tolist() == expected
    with ponder.StreamEngine(made.model, max_batch=5) as engine:
        answers = dict(engine.run(ragged))
    assert [answers[row].exit_step for row in range(ROWS)] == expected
