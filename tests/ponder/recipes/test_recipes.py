"""Recipes: what each combines, how it scales, and that it builds a model that trains and exits."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ponder
from ponder import objectives, policies, recipes
from ponder.objectives import (
    Alignment,
    Alternating,
    DeepSupervision,
    Distillation,
    FinalStep,
    Ponder,
    SignalCalibration,
    SimulatedExits,
)
from ponder.parts.gradients import equilibrium
from ponder.parts.heads import NormPerStep, PerStep
from ponder.parts.tasks import Classification, as_task, task_named
from ponder.policies import Bernoulli, Confidence, Energy, Entropy, FixedStep, LastStep, Patience, Quantile
from ponder.priors import Geometric, Learned
from ponder.recipes import LambdaSpec, Recipe, Stage, freeze_for
from tests.ponder.checks import refused
from tests.ponder.examples import RECIPES, Example
from tests.toys import WIDTH, labels_for, make_toy

every_recipe = pytest.mark.parametrize("case", RECIPES, ids=str)


def make(case: Example) -> Recipe:
    return recipes.get(case.name, **case.arguments)


def test_every_recipe_has_an_example() -> None:
    assert {case.name for case in RECIPES} == set(recipes.names())


@every_recipe
@pytest.mark.parametrize("num_steps", [2, 6, 24])
def test_builds_a_model_that_trains_in_every_stage_and_exits(case: Example, num_steps: int) -> None:
    recipe = make(case).for_steps(num_steps)
    head, hazards = recipe.make_heads(WIDTH, 3, num_steps, dropout=0.0)
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH),
        num_steps,
        head=head,
        lambda_head=hazards,
        prior=recipe.prior,
        policy=recipe.policy,
        task="classification",
    )
    inputs, _ = make_toy("shared").batch(6)
    labels = labels_for("classification", 6)
    for stage in recipe.stages:
        model.start_stage(stage)
        model.progress = ponder.Progress(1, 10)
        before = copy.deepcopy(model.state_dict())
        model.zero_grad(set_to_none=True)
        optimiser = torch.optim.SGD(ponder.parameter_groups(model, lr=0.1))
        loss = model.train()(inputs, labels=labels).loss
        loss.backward()
        optimiser.step()
        assert bool(loss.isfinite())
        moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
        assert moved
        if stage.train == "early_heads":
            assert all(n.startswith("head.heads.") for n in moved)
            assert not any(n.startswith(f"head.heads.{num_steps - 1}.") for n in moved)
        if stage.train == "lambda_head":
            assert all(n.startswith("lambda_head.") for n in moved)
    out = model.eval()(inputs, labels=labels)
    assert out.outputs.shape == (6, 3)
    assert bool(((out.exit_step >= 1) & (out.exit_step <= num_steps)).all())


@every_recipe
def test_round_trips(case: Example) -> None:
    recipe = make(case)
    assert recipe.name == case.name
    assert recipe.paper
    data = json.loads(json.dumps(recipe.to_dict()))
    for twin in (Recipe.from_dict(data), copy.deepcopy(recipe), pickle.loads(pickle.dumps(recipe))):
        assert twin == recipe
    assert Recipe.from_dict(recipe.for_steps(7).to_dict()) == recipe.for_steps(7)
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.name = "mine"


@every_recipe
def test_scaling_to_the_tuned_depth_changes_nothing_and_scaling_happens_once(case: Example) -> None:
    recipe = make(case)
    assert recipe.for_steps(12).policy == recipe.policy
    assert recipe.for_steps(6).for_steps(6) == recipe.for_steps(6)
    assert recipe.for_steps(6).tuned_for == (6 if recipe.tuned_for else None)


def test_what_each_combines() -> None:
    vanilla, pondernet, palbert = (recipes.get(n) for n in ("vanilla", "pondernet", "palbert"))
    pabee, deebert, fastbert = (recipes.get(n) for n in ("pabee", "deebert", "fastbert"))
    assert (vanilla.policy, vanilla.stages, vanilla.lambda_head) == (LastStep(), (Stage(FinalStep()),), None)
    assert isinstance(pondernet.policy, Bernoulli)
    assert pondernet.lambda_head == LambdaSpec(layers=1, history=1)
    assert not pondernet.own_lambda_lr
    assert pondernet.stages == (Stage(Ponder(0.5)),)
    assert pondernet.prior == Geometric(0.1)
    assert palbert.policy == Quantile(0.5)
    assert palbert.lambda_head == LambdaSpec(layers=3, history=2, initial="stem", activation="tanh")
    assert palbert.own_lambda_lr
    assert palbert.prior == Geometric(0.1)
    assert pabee.policy == Patience(6, tolerance=0.1)
    assert pabee.stages == (Stage(DeepSupervision("linear")),)
    assert deebert.stages == (Stage(FinalStep()), Stage(DeepSupervision("uniform"), train="early_heads"))
    assert isinstance(deebert.policy, Entropy)
    assert not deebert.policy.normalize
    assert fastbert.stages == (Stage(FinalStep()), Stage(Distillation(), train="early_heads"))
    assert fastbert.policy.normalize
    cosee = recipes.get("cosee", calibration=0.2)
    assert cosee.stages == (Stage(SimulatedExits(signal="energy") + 0.2 * SignalCalibration(signal="energy")),)
    assert (cosee.policy, cosee.per_step_heads) == (Energy(0.9), True)
    assert [r.per_step_heads for r in (vanilla, pondernet, palbert, pabee, deebert, fastbert)] == [False] * 3 + [
        True
    ] * 3


@pytest.mark.parametrize(
    ("switch", "field", "off"),
    [
        ("q_exit", "policy", Bernoulli(0)),
        ("own_lambda_lr", "own_lambda_lr", False),
        ("deep_lambda", "lambda_head", LambdaSpec(layers=1, history=2)),
        ("hidden_concat", "lambda_head", LambdaSpec(layers=3, history=1)),
    ],
)
def test_each_change_of_palbert_is_a_switch(switch: str, field: str, off: object) -> None:
    full, without = recipes.get("palbert"), recipes.get("palbert", **{switch: False})
    assert without == dataclasses.replace(full, **{field: off})


def test_palbert_without_its_changes_is_pondernet() -> None:
    none = recipes.get("palbert", q_exit=False, own_lambda_lr=False, deep_lambda=False, hidden_concat=False)
    pondernet = recipes.get("pondernet")
    assert dataclasses.replace(none, name="pondernet", paper=pondernet.paper) == pondernet


def test_what_was_tuned_for_twelve_steps_is_scaled() -> None:
    assert recipes.get("pabee").for_steps(6).policy == Patience(3, 0.1)
    assert recipes.get("pabee").for_steps(24).policy == Patience(12, 0.1)
    assert recipes.get("palbert").for_steps(6).prior.rate == pytest.approx(1 - 0.9**2)
    assert recipes.get("palbert").for_steps(6).policy == Quantile(0.5)


def test_heads_are_built_as_specified() -> None:
    head, hazards = recipes.get("pabee").make_heads(8, 2, 6, dropout=0.3)
    assert isinstance(head, PerStep)
    assert len(head) == 6
    assert hazards is None
    assert head.heads[0][0].p == 0.3
    head, hazards = recipes.get("palbert").make_heads(8, 2, 6)
    assert head(torch.zeros(3, 8)).shape == (3, 2)
    assert hazards.history == 2
    assert len(list(hazards.parameters())) == 6


def test_freezing_needs_a_head_per_step_and_is_undone_by_the_next_stage() -> None:
    encoder, head = nn.Linear(2, 2), PerStep(nn.Linear(2, 2) for _ in range(3))
    early, everything = Stage(FinalStep(), train="early_heads"), Stage(FinalStep())
    freeze_for(early, encoder, head)
    trainable = [n for n, p in head.named_parameters() if p.requires_grad]
    assert trainable == ["heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias"]
    assert not any(p.requires_grad for p in encoder.parameters())
    freeze_for(everything, encoder, head)
    assert all(p.requires_grad for p in (*encoder.parameters(), *head.parameters()))
    with refused("stage", "one head a step", "PerStep"):
        freeze_for(early, encoder, nn.Linear(2, 2))


def test_unknown_names_and_foreign_data_are_refused() -> None:
    with refused("recipe", "palbert", "'albert'"):
        recipes.get("albert")
    good = recipes.get("palbert").to_dict()
    for data in (
        {},
        None,
        [],
        {**good, "extra": 1},
        {**good, "stages": "all"},
        {key: value for key, value in good.items() if key != "policy"},
        {**good, "lambda_head": {"depth": 3}},
    ):
        with refused("data", "Recipe.to_dict()"):
            Recipe.from_dict(data)


def test_ponder_leaves_by_confidence_and_otherwise_by_its_lambda_head() -> None:
    recipe = recipes.get("ponder", confidence=0.7, q=0.4).for_steps(6)
    assert recipe.policy == recipe.for_task("classification").policy == Confidence(0.7)
    assert recipe.for_task("regression").policy == recipe.for_task("multilabel").policy == Quantile(0.4)
    assert recipe.for_task(task_named("regression")) == recipe.for_task("regression")
    for one_class in (task_named(None), Classification(label_smoothing=0.1)):
        assert recipe.for_task(one_class).policy == Confidence(0.7)
    for other in (as_task(F.mse_loss), "custom", "span", "token_classification"):
        assert recipe.for_task(other).policy == Quantile(0.4)
    assert recipe.for_task("unnamed").policy == Confidence(0.7)
    for unknown in ("regress", 3, None):
        with refused("task", "one of classification, regression"):
            recipe.for_task(unknown)
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert recipes.get("palbert").for_task("regression") == recipes.get("palbert")
    before = {name: value for name, value in recipes.get("pabee").to_dict().items() if name != "otherwise"}
    assert Recipe.from_dict(before) == recipes.get("pabee")  # as it was saved by an older version


def test_ponder_is_fine_tuning_and_then_agreement_with_it() -> None:
    plain, taught, halting = recipes.get("ponder").stages
    assert (plain,) == recipes.get("vanilla").stages
    assert taught == Stage(Distillation(teacher="frozen"), teacher="previous", early_heads="last", mixing=0.7)
    assert halting == Stage(Ponder(0.5), train="lambda_head")
    with_labels = recipes.get("ponder", labels=0.5, temperature=2.0).stages[1].objective
    assert with_labels == Distillation(2.0, teacher="frozen") + 0.5 * DeepSupervision("uniform")
    aligned = recipes.get("ponder", alignment=0.5)
    assert aligned.stages[1].objective == Distillation(teacher="frozen") + Alignment(0.5)
    joint = recipes.get("ponder", joint=True).stages[0]
    assert joint == Stage(DeepSupervision("uniform") + Distillation() + FinalStep())
    assert recipes.get("ponder", joint=True, alignment=0.5).stages[0].objective == joint.objective + Alignment(0.5)


def test_the_last_step_may_take_turns_with_all_of_them() -> None:
    teacher, all_steps = Distillation(teacher="frozen"), DeepSupervision("uniform") + Distillation() + FinalStep()
    assert recipes.get("ponder", alternating=True).stages[1].objective == Alternating(FinalStep(), teacher)
    assert recipes.get("ponder", alternating=True, joint=True).stages[0].objective == Alternating(
        FinalStep(), all_steps
    )


def test_one_head_may_be_shared_behind_norms() -> None:
    recipe = recipes.get("ponder", heads="norms", early_gradient="equilibrium")
    head, _ = recipe.make_heads(WIDTH, 3, 4, dropout=0.0)
    assert isinstance(head, NormPerStep)
    assert head.gradient_scales == equilibrium(4)
    with refused("heads", "one of own, norms", "'shared'"):
        recipes.get("ponder", heads="shared")
    for wrong in ("shared", 1, None):
        with refused("per_step_heads", "norms"):
            dataclasses.replace(recipe, per_step_heads=wrong)


def test_a_smaller_model_may_be_taught_by_the_whole_one() -> None:
    recipe = recipes.get("static", k=3, taught=True)
    plain, taught = recipe.stages
    assert (plain,) == recipes.get("vanilla").stages
    assert taught == Stage(Distillation(teacher="frozen", step=3), teacher="previous")
    assert recipe.for_steps(6).policy == FixedStep(3)
    assert not recipe.per_step_heads  # the head of fine-tuning goes on


@pytest.mark.parametrize("taught", [False, True])
def test_what_is_not_scaled_is_not_scaled_the_second_time(taught: bool) -> None:
    # Trap: rows left at step 4 of a model of which step 2 alone had been trained.
    recipe = recipes.get("static", k=2, taught=taught)
    again = Recipe.from_dict(recipe.for_steps(4).to_dict()).for_steps(8)
    assert again.policy == FixedStep(2)
    assert again == recipe


def test_what_is_behind_the_step_that_is_taught_learns_nothing() -> None:
    recipe = recipes.get("static", k=2, taught=True)
    head, _ = recipe.make_heads(WIDTH, 3, 4, dropout=0.0)
    steps = [nn.Linear(WIDTH, WIDTH) for _ in range(4)]
    model = ponder.PonderWrapper(steps, head=head, policy=recipe.policy, task="classification")
    model.start_stage(recipe.stages[1])
    before = copy.deepcopy(model.state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(6, WIDTH)
    model.train()(inputs, labels=torch.arange(6) % 3).loss.backward()
    optimiser.step()
    moved = {name.split(".weight")[0] for name, new in model.state_dict().items() if not torch.equal(new, before[name])}
    assert {name for name in moved if "steps" in name and ".bias" not in name} == {"steps.fns.0", "steps.fns.1"}


def test_a_lambda_head_that_the_policy_does_not_read_is_left_out() -> None:
    recipe = recipes.get("ponder").for_steps(6)
    classes, numbers = recipe.for_task("classification"), recipe.for_task("regression")
    assert (classes.lambda_head, classes.prior, classes.stages) == (None, None, recipe.stages[:2])
    assert (numbers.lambda_head, numbers.prior, numbers.stages) == (recipe.lambda_head, recipe.prior, recipe.stages)
    old = recipes.get("palbert-joint")
    assert old.for_task("classification") == old  # its loss needs the hazards


def test_recipes_saved_by_the_version_before_come_back() -> None:
    saved = recipes.get("deebert").to_dict()
    saved["stages"] = [{"objective": s["objective"], "train": s["train"]} for s in saved["stages"]]
    assert Recipe.from_dict(saved) == recipes.get("deebert")
    unmixed = recipes.get("ponder").to_dict()
    for stage in unmixed["stages"]:
        del stage["mixing"]
    assert Recipe.from_dict(unmixed) == recipes.get("ponder", mixing=1.0)


@pytest.mark.parametrize("train", ["all", "early_heads", "lambda_head"])
def test_a_stage_moves_what_it_trains_and_freezes_the_rest(train: str) -> None:
    head = PerStep(nn.Linear(WIDTH, 3) for _ in range(4))
    model = ponder.PonderWrapper(
        nn.Linear(WIDTH, WIDTH),
        4,
        head=head,
        lambda_head=ponder.LambdaHead(WIDTH),
        objective=FinalStep(),
        task="classification",
    )
    objective = Ponder(0.5) if train == "lambda_head" else DeepSupervision()
    for stage in (Stage(objective, train="early_heads"), Stage(objective, train=train)):  # and thaws what was frozen
        model.start_stage(stage)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    everything = {name for name, _ in model.named_parameters()}
    early = {name for name in everything if name.startswith("head.") and not name.startswith("head.heads.3.")}
    halting = {name for name in everything if name.startswith("lambda_head.")}
    assert trained == {"all": everything, "early_heads": early, "lambda_head": halting}[train]


def started(mixing: float, early_heads: str = "last") -> tuple[ponder.PonderWrapper, Stage]:
    """A model in the middle of a stage with a frozen copy of itself, every weight of it moved by 1 since it began."""
    steps = [nn.Linear(WIDTH, WIDTH) for _ in range(3)]
    head = PerStep(nn.Linear(WIDTH, 3) for _ in range(3))
    model = ponder.PonderWrapper(steps, head=head, task="classification")
    stage = Stage(Distillation(teacher="frozen"), teacher="previous", early_heads=early_heads, mixing=mixing)
    model.start_stage(stage)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    return model, stage


@pytest.mark.parametrize("mixing", [0.25, 0.7, 1.0])
@pytest.mark.parametrize("early_heads", ["last", "go_on"])
def test_a_finished_stage_mixes_its_weights_with_those_that_it_began_with(mixing: float, early_heads: str) -> None:
    model, stage = started(mixing, early_heads)
    trained = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.finish_stage(stage)
    for name, weight in model.named_parameters():
        is_new = early_heads == "last" and name.startswith(("head.heads.0", "head.heads.1"))
        moved = 1.0 if is_new else mixing  # of the 1 by which training had moved every weight
        for now, then in zip(weight.flatten().tolist(), trained[name].flatten().tolist(), strict=True):
            assert now == pytest.approx(then - 1 + moved, abs=1e-5)


def test_a_stage_is_finished_once_and_after_it_was_started() -> None:
    model, stage = started(0.5)
    model.finish_stage(stage)
    with refused("stage", "start_stage"):
        model.finish_stage(stage)
    model.attach_teacher(copy.deepcopy(model))
    model.finish_stage(Stage(FinalStep()))  # has no teacher of its own: the one that was attached stays
    assert model._teacher is not None


def test_what_early_heads_share_with_the_rest_is_mixed_as_the_rest_is() -> None:
    # Trap: weights were told by whether an early head has them, and the last head has the shared ones too.
    shared = nn.Linear(8, 3)
    heads = ponder.PerStep(nn.Sequential(nn.LayerNorm(8), shared) for _ in range(3))
    model = ponder.PonderWrapper([nn.Linear(8, 8) for _ in range(3)], head=heads, task="classification")
    stage = Stage(Distillation(teacher="frozen"), teacher="previous", early_heads="last", mixing=0.25)
    model.start_stage(stage)
    began = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    model.finish_stage(stage)
    for name, weight in model.named_parameters():
        early = name.startswith(("head.heads.0.0", "head.heads.1.0"))
        torch.testing.assert_close(weight - began[name], torch.full_like(weight, 1.0 if early else 0.25))


def test_a_stage_is_mixed_with_what_it_began_with_whoever_teaches() -> None:
    # Trap: what the stage began with was taken to be the teacher that is attached at its end.
    model, stage = started(0.5, "go_on")
    moved = [weight.detach().clone() for weight in model.parameters()]  # by 1
    other = copy.deepcopy(model)
    with torch.no_grad():
        for weight in other.parameters():
            weight.fill_(7.0)
    model.attach_teacher(other)
    model.finish_stage(stage)
    torch.testing.assert_close([weight.detach() for weight in model.parameters()], [each - 0.5 for each in moved])
    assert model.has_teacher  # which is the caller's
    with refused("stage", "frozen copy"):
        model.finish_stage(stage)


@pytest.mark.parametrize("mixing", [0.0, -0.1, 1.5, float("nan"), "half"])
def test_a_share_that_is_none_is_refused(mixing) -> None:
    with refused("mixing"):
        Stage(FinalStep(), teacher="previous", mixing=mixing)


def test_mixing_needs_the_weights_that_the_stage_began_with() -> None:
    with refused("mixing", "previous"):
        Stage(FinalStep(), mixing=0.5)


def test_a_stage_that_trains_a_lambda_head_needs_one() -> None:
    with refused("stage", "one without"):
        freeze_for(Stage(FinalStep(), train="lambda_head"), nn.Linear(2, 2), nn.Linear(2, 2), (None, None))


def test_the_policy_of_other_tasks_is_scaled_too() -> None:
    recipe = dataclasses.replace(recipes.get("pabee"), otherwise=Patience(8, 0.5))
    assert recipe.for_steps(6).for_task("regression").policy == Patience(4, 0.5)


@pytest.mark.parametrize("start", [0.02, 0.7])
def test_a_lambda_head_may_start_deep(start: float) -> None:
    recipe = recipes.get("pondernet", start=start)
    assert recipe.for_steps(20).lambda_head == recipe.lambda_head  # a step of a loop means the same however many follow
    assert recipes.Recipe.from_dict(recipe.to_dict()) == recipe
    torch.manual_seed(0)
    _, head = recipe.make_heads(32, 2, 20)
    assert head is not None
    features = 0.01 * torch.randn(50, 32)
    assert head(features).sigmoid().mean().item() == pytest.approx(start, rel=0.25)
    with refused("start", "1.5"):
        recipes.get("pondernet", start=1.5).make_heads(32, 2, 20)


def test_a_lambda_head_may_start_at_the_priors_hazard() -> None:
    recipe = recipes.get("palbert-joint", start=True).for_steps(6)
    _, started = recipe.make_heads(32, 2, 6)
    _, plain = recipes.get("palbert-joint").for_steps(6).make_heads(32, 2, 6)
    features, hazard = torch.randn(200, 64), recipe.prior(6).pmf[0].item()
    assert started(features).sigmoid().mean().item() == pytest.approx(hazard, abs=0.05)
    assert plain(features).sigmoid().mean().item() == pytest.approx(0.5, abs=0.1)


def test_models_of_one_recipe_learn_priors_of_their_own() -> None:
    recipe = recipes.Recipe(
        "mine",
        "x",
        (Stage(Ponder(0.5)),),
        Quantile(0.5),
        lambda_head=LambdaSpec(),
        prior=Learned(3),
        tuned_for=None,
    )
    layers = [nn.Linear(4, 4) for _ in range(3)]
    one, two = (
        ponder.PonderWrapper.from_recipe(layers, recipe, num_outputs=2, example=torch.randn(2, 4)) for _ in range(2)
    )
    assert one.prior_weights is not None
    with torch.no_grad():
        one.prior_weights.logits.add_(torch.tensor([1.0, 0.0, 0.0]))
    for other in (two.prior, recipe.prior):
        assert other is not None
        assert torch.equal(other(3).pmf, Learned(3)(3).pmf)


def test_a_recipe_is_made_of_stages_and_policies() -> None:
    stage = recipes.Stage(objectives.FinalStep())
    with refused("stages", "none"):
        recipes.Recipe("mine", "none", stages=(), policy=policies.LastStep())
    with refused("stages", "FinalStep", type_error=True):
        recipes.Recipe("mine", "none", stages=(objectives.FinalStep(),), policy=policies.LastStep())
    for name in ("policy", "otherwise"):
        with refused(name, "ABCMeta", type_error=True):
            recipes.Recipe("mine", "none", stages=(stage,), **{"policy": policies.LastStep(), name: policies.Patience})


def test_options_that_nothing_reads_and_negative_weights_are_refused() -> None:
    for name, value in (("labels", 0.7), ("mixing", 0.3)):
        with refused(name, "joint=True"):
            recipes.get("ponder", joint=True, **{name: value})
    with refused("labels", "-1"):
        recipes.get("ponder", labels=-1.0)
    with refused("calibration", "-1"):
        recipes.get("cosee", calibration=-1.0)


def test_the_shape_of_a_lambda_head_is_checked_where_it_is_written() -> None:
    """The trap: any other word for the start meant one half, or the prior's."""
    for field, value in (("start", "haf"), ("start", 7), ("layers", 0), ("activation", "x"), ("initial", "x")):
        with refused(field):
            LambdaSpec(**{field: value})


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("palbert", "q_exit"),
        ("palbert", "own_lambda_lr"),
        ("palbert", "deep_lambda"),
        ("palbert", "hidden_concat"),
        ("static", "taught"),
        ("ponder", "joint"),
        ("ponder", "alternating"),
    ],
)
def test_switches_are_no_words(name: str, option: str) -> None:
    """The trap: the word False, as Python writes it on a command line, is true."""
    with refused(option, "True or False", "'False'", type_error=True):
        recipes.get(name, **{option: "False"})
