"""Twelve seeded models with what is measured of them, for the golden files.

Weights and data depend on shapes and seeds alone, never on the names of parameters, so that a model
that is built of other classes is the same model.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import ponder
from ponder import objectives, policies, priors
from tests.toys import CLASSES, ROWS, STEPS, WIDTH, Cell, Momentum, Tanh, Toy, first_of_pair

LENGTH = 6


def fill(parameters: Iterable[nn.Parameter], seed: int, gain: float = 1.0) -> None:
    """Overwrite weights by numbers that depend on the shape, and on how many of this shape came before."""
    seen: dict[tuple[int, ...], int] = {}
    for weight in parameters:
        shape = tuple(weight.shape)
        place = seen[shape] = seen.get(shape, 0) + 1
        generator = torch.Generator().manual_seed(zlib.crc32(repr((seed, shape, place)).encode()))
        values = torch.randn(shape, generator=generator)
        scale = gain * shape[-1] ** -0.5 if len(shape) > 1 else 0.3
        with torch.no_grad():  # one bias alone is that of a hazard, which starts low
            weight.copy_(values * scale if shape != (1,) else torch.full_like(values, -1.0))


def fill_module(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Fill a module; norms keep weights near one, and dropout is switched off."""
    fill(module.parameters(), seed, gain)
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.LayerNorm):
            with torch.no_grad():
                part.weight.add_(1.0)
    return module


def normal(seed: int, *shape: int) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(seed: int, high: int, *shape: int) -> Tensor:
    """Seeded integers from 0."""
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def lengths(rows: int) -> Tensor:
    """Which positions are real, `(rows, length)`; lengths from 2 on."""
    return torch.arange(LENGTH) < 2 + torch.arange(rows).remainder(LENGTH - 1)[:, None]


class InputStem(nn.Module):
    """A stem that begins with zeros, and passes the input on as context."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.zeros_like(inputs), {"x": inputs}


@dataclass
class Case(Toy):
    """A toy with labels.

    Args:
        labels: Labels of the batch.
        task: The task.
        heads: The weights of the heads, of a model of Transformers.
    """

    labels: Tensor = field(default_factory=lambda: torch.zeros(0))
    task: str = "classification"
    heads: list[nn.Parameter] = field(default_factory=list)

    def unroll(self, **options: Any) -> Any:
        """Record every step."""
        if hasattr(self.model, "config"):
            return self.model.unroll(input_ids=self.inputs, **self.context, **options)
        return super().unroll(**options)

    def weights_of_heads(self) -> list[nn.Parameter]:
        """Return the weights of the heads."""
        if self.heads:
            return self.heads
        parts = (self.model.head, self.model.lambda_head)
        return [weight for part in parts if part is not None for weight in part.parameters()]


def _heads(outputs: int, per_step: bool, lambda_head: bool) -> dict[str, Any]:
    head: nn.Module = nn.Linear(WIDTH, outputs)
    if per_step:
        head = ponder.PerStep([nn.Linear(WIDTH, outputs) for _ in range(STEPS)])
    made: dict[str, Any] = {"head": fill_module(head, 11, 3.0)}
    if lambda_head:
        made["lambda_head"] = fill_module(ponder.LambdaHead(WIDTH, layers=3, history=2), 12, 2.5)
        made["prior"] = priors.Geometric(0.2)
    return made


def _wrapped(
    steps: Any,
    inputs: Any,
    labels: Tensor,
    *,
    task: str = "classification",
    outputs: int = CLASSES,
    per_step: bool = False,
    **options: Any,
) -> Case:
    if isinstance(steps, nn.Module):
        fill_module(steps, 10, 1.6)
        options.setdefault("num_steps", STEPS)
    parts = _heads(outputs, per_step, lambda_head=True)
    options = {
        "objective": objectives.Ponder(beta=0.5),
        "policy": policies.Quantile(0.5),
        **options,
    }
    model = ponder.PonderWrapper(steps, task=task, **parts, **options)
    return Case(model.eval(), inputs, labels=labels, task=task)


def shared(**options: Any) -> Case:
    return _wrapped(Tanh(), normal(1, ROWS, WIDTH), integers(2, CLASSES, ROWS), **options)


def stacked(**options: Any) -> Case:
    steps = [fill_module(Tanh(), 20 + n, 1.6) for n in range(STEPS)]
    return _wrapped(
        steps, normal(1, ROWS, WIDTH), integers(2, CLASSES, ROWS), per_step=True, **options
    )


def tuple_state(**options: Any) -> Case:
    inputs = normal(1, ROWS, WIDTH), {"velocity": normal(3, ROWS, WIDTH)}
    labels = integers(2, CLASSES, ROWS)
    return _wrapped(Momentum(), inputs, labels, readout=first_of_pair, **options)


def recurrent(**options: Any) -> Case:
    inputs = normal(1, ROWS, WIDTH)
    labels = integers(2, CLASSES, ROWS)
    return _wrapped(Cell(), inputs, labels, stem=InputStem(), **options)


def regression(**options: Any) -> Case:
    return _wrapped(
        Tanh(), normal(1, ROWS, WIDTH), normal(2, ROWS, 1), task="regression", outputs=1, **options
    )


def multilabel(**options: Any) -> Case:
    labels = integers(2, 2, ROWS, CLASSES).float()
    return _wrapped(Tanh(), normal(1, ROWS, WIDTH), labels, task="multilabel", **options)


def _captured(labels: Tensor, mask: bool, recipe: str = "palbert", **options: Any) -> Case:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 16, dropout=0.0, batch_first=True)
    encoder = fill_module(
        nn.TransformerEncoder(layer, num_layers=STEPS, enable_nested_tensor=False), 30, 2.0
    )
    inputs = normal(1, ROWS, LENGTH, WIDTH)
    context = {"src_key_padding_mask": ~lengths(ROWS)} if mask else {}
    example = {"src": inputs, **context} if mask else inputs
    model = ponder.PonderWrapper.from_recipe(
        encoder.eval(), recipe, num_outputs=CLASSES, example=example, **options
    )
    return _with_filled_heads(Case(model, inputs, context, labels=labels))


def captured(recipe: str = "palbert") -> Case:
    return _captured(integers(2, CLASSES, ROWS), mask=False, recipe=recipe)


def captured_mask(recipe: str = "palbert") -> Case:
    return _captured(integers(2, CLASSES, ROWS), mask=True, recipe=recipe)


def token_classification(recipe: str = "palbert") -> Case:
    labels = integers(2, CLASSES, ROWS, LENGTH).masked_fill(~lengths(ROWS), -100)
    case = _captured(labels, mask=True, recipe=recipe, task="token_classification")
    case.task = "token_classification"
    return case


def _with_filled_heads(case: Case) -> Case:
    fill_module(case.model.head, 11, 3.0)
    if case.model.lambda_head is not None:
        fill_module(case.model.lambda_head, 12, 2.5)
    case.model.eval()
    return case


def _transformer(kind: str, recipe: str) -> Case:
    import transformers

    from ponder.integrations.transformers import PonderForSequenceClassification

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=STEPS,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **({"embedding_size": 8} if kind == "Albert" else {}),
    )
    encoder = fill_module(getattr(transformers, f"{kind}Model")(config), 40, 2.0)
    own = {weight.data_ptr() for weight in encoder.parameters()}
    model = PonderForSequenceClassification.from_encoder(encoder, recipe=recipe, num_labels=CLASSES)
    heads = [weight for weight in model.parameters() if weight.data_ptr() not in own]
    fill(heads, 48, 2.5)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    real = lengths(ROWS)
    batch = {"input_ids": (3 + integers(1, 37, ROWS, LENGTH)) * real + ~real * config.pad_token_id}
    batch["attention_mask"] = real.long()
    ids = batch.pop("input_ids")
    return Case(model.eval(), ids, batch, labels=integers(2, CLASSES, ROWS), heads=heads)


def albert(recipe: str = "palbert") -> Case:
    return _transformer("Albert", recipe)


def bert(recipe: str = "palbert") -> Case:
    return _transformer("Bert", recipe)


def mpnet(recipe: str = "palbert") -> Case:
    return _transformer("MPNet", recipe)


WRAPPED = (shared, stacked, tuple_state, recurrent, regression, multilabel)
FROM_RECIPES = (captured, captured_mask, token_classification, albert, bert, mpnet)
MODELS: dict[str, Callable[..., Case]] = {
    build.__name__: build for build in (*WRAPPED, *FROM_RECIPES)
}
RECIPES = ("vanilla", "pondernet", "palbert", "pabee")
OBJECTIVES: dict[str, Any] = {
    "ponder": objectives.Ponder(beta=0.5),
    "ponder-prior-posterior": objectives.Ponder(beta=0.1, kl="prior_posterior"),
    "ponder-log-expected": objectives.Ponder(beta=0.3, likelihood="log_expected"),
    "deep-linear": objectives.DeepSupervision("linear"),
    "deep-uniform": objectives.DeepSupervision("uniform"),
    "final": objectives.FinalStep(),
    "distillation": objectives.Distillation(2.0, 0.5),
    "sum": objectives.Ponder(beta=0.5) + 0.3 * objectives.DeepSupervision("uniform"),
}


def policies_for(task: str) -> dict[str, policies.ExitPolicy]:
    """Eight policies or more that serve the task."""
    answers = policies.Patience(1, tolerance=0.6) if task == "regression" else policies.Patience(1)
    hazard = policies.Quantile(0.4)
    common = {
        "quantile": policies.Quantile(0.5),
        "bernoulli": policies.Bernoulli(seed=3),
        "patience": answers,
        "or": answers | policies.Quantile(0.7),
        "and-after": (answers & hazard).after(3),
        "before": answers.before(4),
        "fixed": policies.FixedStep(2),
        "last": policies.LastStep(),
    }
    if task not in ("classification", "token_classification"):
        return common
    certainty = {
        "entropy": policies.Entropy(0.45),
        "confidence": policies.Confidence(0.8),
        "margin": policies.Margin(0.5),
    }
    return common | certainty | {"sure-or-still": policies.Confidence(0.95) | policies.Patience(2)}


def exits(name: str) -> dict[str, tuple[list[int], Tensor]]:
    """Exit steps and outputs of a model under each policy."""
    case = MODELS[name]()
    found = {}
    for each, policy in policies_for(case.task).items():
        with torch.no_grad():
            out = case.call(policy=policy)
        outputs = out.logits if hasattr(out, "logits") else out.outputs
        found[each] = out.exit_step.tolist(), outputs
    return found


def training(name: str) -> dict[str, dict[str, float]]:
    """Losses, and the norms of the gradients of all weights and of the heads, under each objective or recipe."""
    build = MODELS[name]
    found = {}
    wrapped = build in WRAPPED
    for each in OBJECTIVES if wrapped else RECIPES:
        case = build(objective=OBJECTIVES[each]) if wrapped else build(each)
        case.model.train()
        loss = case.call(labels=case.labels).loss
        loss.backward()
        found[each] = {
            "loss": loss.item(),
            "all": _norm(case.model.parameters()),
            "heads": _norm(case.weights_of_heads()),
        }
        case.model.eval()
        found[each]["eval"] = case.call(labels=case.labels).loss.item()
    return found


def _norm(parameters: Iterable[nn.Parameter]) -> float:
    grads = [weight.grad.double().pow(2).sum() for weight in parameters if weight.grad is not None]
    return float(torch.stack(grads).sum().sqrt()) if grads else 0.0


CERTIFIED: dict[str, tuple[str, float]] = {
    "confidence": ("disagreement", 0.1),
    "entropy": ("disagreement", 0.2),
    "margin": ("error_gap", 0.1),
    "quantile": ("disagreement", 0.3),
    "patience": ("error", 0.7),
    "energy": ("disagreement", 0.02),
}


def recorded() -> Any:
    """The trajectory of 400 rows of the shared model, with labels that later steps predict better."""
    case = shared()
    inputs = normal(5, 400, WIDTH)
    labels = case.model(inputs, policy=policies.LastStep()).outputs.argmax(-1)
    noisy = torch.where(integers(6, 5, 400) == 0, integers(7, CLASSES, 400), labels)
    with torch.no_grad():
        return case.model.unroll(inputs, labels=noisy)


def threshold_of(policy: Any) -> float | None:
    """The threshold of a policy, or of the one inside it; None at full depth."""
    spec = policy if isinstance(policy, dict) else policy.to_dict()
    inside = spec.get("policy")
    if isinstance(inside, dict):
        return threshold_of(inside)
    return next(
        (float(spec[key]) for key in ("threshold", "q", "patience", "step") if key in spec), None
    )


def certificates() -> dict[str, dict[str, Any]]:
    """What risk control and calibration choose on a recorded run, and what that gives on it."""
    trajectory = recorded()
    found = {}
    for name, (risk, level) in CERTIFIED.items():
        family = {"patience": policies.Patience}.get(name) or getattr(policies, name.capitalize())
        control = ponder.control_risk(
            trajectory,
            family,
            risk=risk,
            level=level,
            confidence=0.9,
            bound="hoeffding_bentkus",
        )
        threshold = {"threshold": threshold_of(control.policy)}
        found[f"control-{name}-{risk}"] = _measured(trajectory, control.policy) | threshold
        for target in ({"at_least": 0.97}, {"at_most_steps": 2.5}):
            chosen = ponder.calibrate(trajectory, family, **target)
            found[f"calibrate-{name}-{next(iter(target))}"] = _measured(trajectory, chosen.policy)
    return found


def _measured(trajectory: Any, policy: Any) -> dict[str, Any]:
    exits = trajectory.replay(policy)
    given = exits.outputs.argmax(-1)
    full = trajectory.outputs[:, -1].argmax(-1)
    return {
        "mean_exit_step": float(exits.exit_step.double().mean()),
        "disagreement": float((given != full).double().mean()),
        "accuracy": float((given == trajectory.labels).double().mean()),
    }


def distributions() -> dict[str, list[float]]:
    """Numbers of the halting distribution of a few hazards."""
    logits = 2.0 * normal(8, 4, 7)
    halting = ponder.StepDistribution.from_hazard_logits(logits)
    other = ponder.StepDistribution.from_hazard_logits(0.5 * logits.flip(0))
    prior = priors.Geometric(0.2)(7)
    values = {
        "pmf": halting.pmf,
        "mean": halting.mean,
        "variance": halting.variance,
        "mode": halting.mode.float(),
        "entropy": halting.entropy(),
        "log_prob": halting.log_prob(torch.tensor([1, 3, 5, 7])),
        "cdf": halting.cdf(torch.tensor([1, 3, 5, 7])),
        "icdf": halting.icdf(torch.tensor([0.1, 0.4, 0.7, 0.95])).float(),
        "kl": torch.distributions.kl_divergence(halting, other),
        "prior": prior.pmf,
    }
    return {name: [float(number) for number in value.flatten()] for name, value in values.items()}
