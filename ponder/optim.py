"""Parameter groups: the heads may learn at rates of their own (PALBERT paper, Section 3.2); and which may be fused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from ponder._utils.validation import check_real
from ponder.parts.heads import LAMBDA_HEADS
from ponder.priors import PriorWeights
from ponder.wrapper import PonderWrapper

__all__ = ["may_fuse", "parameter_groups"]

_FUSED_ON = ("cpu", "cuda", "hpu", "mps", "xpu")


def parameter_groups(
    model: nn.Module,
    lr: float,
    lambda_lr: float | None = None,
    head_lr: float | None = None,
    weight_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for a `torch.optim` optimiser: the encoder's parameters, the heads', and those of Lambda heads and priors.

    New heads on a pretrained encoder learn best at a rate some twenty times that of the encoder (docs/benchmark.md).

    Args:
        model: A `PonderWrapper`, or any module that holds one.
        lr: Learning rate of all that has none of its own.
        lambda_lr: Learning rate of the Lambda head and of a learned prior; `lr` where None.
        head_lr: Learning rate of the heads; `lr` where None.
        weight_decay: Weight decay; where given, each group comes in two with this key: the weights, and, with 0, what
            has fewer than two dimensions (biases and norms).

    Returns:
        Groups with `params`, `lr` and `name` (``"model"``, ``"lambda"``, and ``"head"`` where `head_lr` is given); a
        group without parameters is left out.

    Example:
        >>> model = PonderWrapper(nn.Linear(4, 4), num_steps=3, head=nn.Linear(4, 2), lambda_head=LambdaHead(4))
        >>> groups = parameter_groups(model, lr=1e-4, lambda_lr=5e-5)
        >>> sorted({group["lr"] for group in groups})
        [5e-05, 0.0001]
    """
    rates = {"model": lr, "head": head_lr, "lambda": lr if lambda_lr is None else lambda_lr}
    for argument, rate in (("lr", lr), ("lambda_lr", lambda_lr), ("head_lr", head_lr)):
        if rate is not None:
            check_real(argument, rate, remedy=f"Pass {argument}=2e-5, say.")
    owners = dict.fromkeys(
        _ids(module for module in model.modules() if isinstance(module, (*LAMBDA_HEADS, PriorWeights))), "lambda"
    )
    if head_lr is not None:
        heads = _ids(module.head for module in model.modules() if isinstance(module, PonderWrapper))
        owners = {**dict.fromkeys(heads, "head"), **owners}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups[owners.get(id(parameter), "model")].append(parameter)
    made = [{"name": name, "params": held, "lr": rates[name]} for name, held in groups.items() if held]
    return made if weight_decay is None else [part for group in made for part in _split(group, weight_decay)]


def may_fuse(parameters: Iterable[Tensor]) -> bool:
    """Whether ``fused=True`` of a `torch.optim` optimiser, several times as fast on a CPU, is right for these.

    On a CPU the fused kernels take each parameter for numbers without gaps between them: of a view into something
    wider, ``nn.Parameter(weight[:, :k])`` say, they move its neighbours in its place, and tell nobody.
    """
    return all(
        type(parameter) is nn.Parameter
        and parameter.is_contiguous()
        and parameter.is_floating_point()
        and parameter.device.type in _FUSED_ON
        for parameter in parameters
    )


def _split(group: dict[str, Any], weight_decay: float) -> list[dict[str, Any]]:
    """A group in two: what decays, and what does not."""
    check_real("weight_decay", weight_decay)
    parts = [
        {**group, "params": [p for p in group["params"] if (p.dim() > 1) == decays], "weight_decay": decay}
        for decays, decay in ((True, float(weight_decay)), (False, 0.0))
    ]
    return [part for part in parts if part["params"]]


def _ids(modules: Iterable[nn.Module]) -> set[int]:
    return {id(parameter) for module in modules for parameter in module.parameters()}
