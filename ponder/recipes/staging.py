"""What recipes and their stages ask of the heads of a model, and what a stage does to its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ponder.errors import ArgumentError
from ponder.parts.gradients import equilibrium
from ponder.parts.heads import NormPerStep, PerStep
from ponder.policies import ExitPolicy
from ponder.recipes.base import Recipe, Stage

__all__ = [
    "check_heads",
    "check_made_for",
    "freeze_for",
    "mix_weights",
    "start_heads",
    "tells_epochs_apart",
]


def check_made_for(recipe: Recipe, head: nn.Module) -> None:
    """Refuse a model that lacks what `Recipe.make_heads` would have made: a head a step, norms, or scaled gradients.

    Args:
        recipe: The recipe.
        head: The head of the model that is to be trained with it.

    Raises:
        ArgumentError: The head is another, and the training would be that of another recipe.

    Example:
        >>> from ponder.recipes.staging import check_made_for
        >>> check_made_for(recipes.get("pabee"), ponder.PerStep([nn.Linear(8, 3) for _ in range(4)]))
    """
    if not recipe.per_step_heads:
        return
    kind, scaled = ("NormPerStep" if recipe.per_step_heads == "norms" else "PerStep"), ""
    fits = isinstance(head, PerStep) and isinstance(head, NormPerStep) == (kind == "NormPerStep")
    if isinstance(head, PerStep) and len(head) > 1:
        rescaled = recipe.early_gradient == "equilibrium"
        fits = fits and (head.gradient_scales == equilibrium(len(head))) == rescaled
        scaled = ", gradient_scales=equilibrium(N)" if rescaled else ""
    if not fits:
        raise ArgumentError(
            "recipe",
            expected=f"for {recipe.name!r} a model whose head is ponder.{kind}(…{scaled})",
            got=f"{type(head).__name__} with gradient_scales={head.gradient_scales}"
            if isinstance(head, PerStep)
            else f"{type(head).__name__}, shared by all steps",
            remedy="Build the model with from_recipe or from_encoder and this recipe, or with such a head.",
        )


def check_heads(stage: Stage, head: nn.Module, lambda_head: nn.Module | None) -> None:
    """Refuse a stage that trains heads that are not there.

    Args:
        stage: The stage.
        head: The head; `PerStep` where the stage trains early heads.
        lambda_head: The Lambda head, where there is one.

    Raises:
        ArgumentError: The stage trains early heads and there is one shared head, or a Lambda head that is not there or
            that its objective does not read, or it copies the last head to early heads of another kind.

    Example:
        >>> from ponder.recipes.staging import check_heads
        >>> check_heads(recipes.get("deebert").stages[1], ponder.PerStep([nn.Linear(8, 3) for _ in range(4)]), None)
    """
    if stage.early_heads == "last" and isinstance(head, PerStep) and not isinstance(head, NormPerStep):
        shapes = [{name: weight.shape for name, weight in each.state_dict().items()} for each in head.heads]
        if shapes.count(shapes[-1]) < len(shapes):
            raise ArgumentError(
                "stage",
                expected="early heads of the last one's kind for early_heads='last', which copies it",
                got="heads of another kind",
                remedy="Use a recipe whose early heads go on from what they are, such as the model's own.",
            )
    if stage.train == "early_heads" and not isinstance(head, PerStep):
        raise ArgumentError(
            "stage",
            expected="one head a step for train='early_heads'",
            got="a shared head",
            remedy="Use PerStep; in a Recipe, per_step_heads=True.",
        )
    if stage.train == "lambda_head" and lambda_head is None:
        raise ArgumentError(
            "stage",
            expected="a model with a Lambda head for train='lambda_head'",
            got="one without",
            remedy="Pass lambda_head=ponder.LambdaHead(width) to the model.",
        )
    if stage.train == "lambda_head" and "hazard" not in stage.objective.needs:
        raise ArgumentError(
            "stage",
            expected="an objective that reads the hazards for train='lambda_head'",
            got=repr(stage.objective),
            remedy="Use objectives.Ponder(0.5), say.",
        )


def start_heads(stage: Stage, head: nn.Module) -> None:
    """Let the early heads start where `stage` says; a shared head is left as it is.

    Args:
        stage: The stage that begins.
        head: The head.

    Example:
        >>> head = ponder.PerStep([nn.Linear(8, 3) for _ in range(4)])
        >>> start_heads(Stage(objectives.FinalStep(), early_heads="last"), head)
        >>> bool((head.heads[0].weight == head.heads[3].weight).all())
        True
    """
    if stage.early_heads == "last" and isinstance(head, PerStep):
        head.start_as_last()


def tells_epochs_apart(policy: ExitPolicy, stage: Stage, num_steps: int) -> bool:
    """Whether the score at a policy's exits can change with what a stage trains; else all epochs have the same.

    Args:
        policy: The policy under which epochs are scored.
        stage: The stage that is trained.
        num_steps: N.

    Example:
        >>> tells_epochs_apart(policies.LastStep(), recipes.get("deebert").stages[1], num_steps=4)
        False
    """
    if stage.train == "lambda_head":
        return "hazard" in policy.needs
    return stage.train == "all" or policy.exit_of_all(num_steps) != num_steps


def freeze_for(
    stage: Stage,
    encoder: nn.Module | Sequence[nn.Module],
    head: nn.Module,
    halting: Sequence[nn.Module | None] = (),
) -> None:
    """Set `requires_grad` so that training moves what `stage` trains and nothing else.

    What is frozen goes into evaluation mode too: its dropout is off, and its BatchNorm statistics do not move. A module
    that a trained part shares with a frozen one is frozen.

    Args:
        stage: The stage.
        encoder: Everything but the heads, as one module or several.
        head: The head; `PerStep` where the stage trains early heads.
        halting: The Lambda head or None, and what is trained with it: the readout of its own, and the weights of a
            learned prior, where there are such.

    Raises:
        ArgumentError: The stage trains early heads and there is one shared head, or a Lambda head that is not there.

    Example:
        >>> head = ponder.PerStep([nn.Linear(8, 3) for _ in range(4)])
        >>> freeze_for(recipes.get("deebert").stages[1], nn.Linear(8, 8), head)
        >>> [one.weight.requires_grad for one in head.heads]
        [True, True, True, False]
    """
    check_heads(stage, head, next(iter(halting), None))
    heads = list(head.heads) if isinstance(head, PerStep) else [head]
    parts = {
        "encoder": [encoder] if isinstance(encoder, nn.Module) else list(encoder),
        "early_heads": heads[:-1],
        "last_head": heads[-1:],
        "lambda_head": [module for module in halting if module is not None],
    }
    moves = {name: stage.train in ("all", name) for name in parts}
    for name, modules in parts.items():
        for weight in (weight for module in modules if moves[name] for weight in module.parameters()):
            if _learns(weight):
                weight.requires_grad_(True)
    for name, modules in parts.items():  # after the trained ones, which may share something with these
        for module in modules:
            if not moves[name]:
                module.requires_grad_(False)
                module.eval()


def _learns(weight: nn.Parameter) -> bool:
    """Whether a parameter can have a gradient; quantised ones, of whole numbers, have none."""
    return weight.is_floating_point() or weight.is_complex()


@torch.no_grad()
def mix_weights(stage: Stage, model: nn.Module, head: nn.Module, began: nn.Module) -> None:
    """Move the parameters of `model` to α · their own + (1 − α) · those that the stage began with (`Stage.mixing`).

    Buffers, such as the statistics of BatchNorm, stay as they were trained, and so does what early heads that began as
    copies of the last one share with nothing else.

    Args:
        stage: The stage that has been trained.
        model: The model, with all of its parts.
        head: Its head.
        began: A copy of the model from before the stage.

    Example:
        >>> stage = Stage(objectives.Distillation(teacher="frozen"), teacher="previous", mixing=0.75)
        >>> trained, began = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = trained.weight.data.fill_(4.0), began.weight.data.fill_(0.0)
        >>> mix_weights(stage, trained, trained, began)
        >>> trained.weight.item()
        3.0
    """
    early = list(head.heads)[:-1] if isinstance(head, PerStep) and stage.early_heads == "last" else []
    mixed = _weights_outside(early, model)
    before = dict(began.named_parameters())
    for name, weight in model.named_parameters():
        if id(weight) in mixed and _learns(weight):
            start = before[name].to(weight.device)
            weight.copy_(torch.lerp(start, weight, stage.mixing))


def _weights_outside(left_out: Sequence[nn.Module], module: nn.Module) -> set[int]:
    """The identities of the parameters that a module reaches by other ways than through those that are left out."""
    if any(module is each for each in left_out):
        return set()
    own = {id(weight) for weight in module.parameters(recurse=False)}
    return own.union(*(_weights_outside(left_out, child) for child in module.children()))
