"""`EncoderWrapper`: a `PonderWrapper` whose heads have a second name, by which peft finds what is new in a model.

Beside its adapters, peft trains in full and saves the modules whose names end in ``classifier`` (in a model for
`task_type="SEQ_CLS"` or ``"TOKEN_CLS"``) or in ``qa_outputs`` (``"QUESTION_ANS"``): it puts a module of its own in
their place, which holds a copy for each adapter. So head and Lambda head stand in one module of that name, and are read
from there. Files know them as those of any wrapper, ``head`` and ``lambda_head``.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ponder.errors import ArgumentError
from ponder.wrapper import PonderWrapper

__all__ = ["EncoderWrapper", "Heads", "check_heads_learn"]

_NAMES = ("head", "lambda_head")


class Heads(nn.Module):
    """The head and the Lambda head of a model, which are called one by one.

    Args:
        head: The head.
        lambda_head: The Lambda head, or None.
    """

    def __init__(self, head: nn.Module | None = None, lambda_head: nn.Module | None = None) -> None:
        super().__init__()
        self.head, self.lambda_head = head, lambda_head


class EncoderWrapper(PonderWrapper):
    """A `PonderWrapper` that reads its heads from a module which peft may exchange.

    Args:
        args: Arguments of `PonderWrapper`.
        heads_name: The name of that module.
        kwargs: Keyword arguments of `PonderWrapper`.
    """

    heads_name: str

    def __init__(self, *args: Any, heads_name: str, **kwargs: Any) -> None:
        object.__setattr__(self, "heads_name", heads_name)  # is read while the base class assigns its heads
        super().__init__(*args, **kwargs)
        self.register_state_dict_post_hook(_as_in_files)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_files)  # type: ignore[no-untyped-call]

    @property
    def head(self) -> Any:  # type: ignore[override]
        """The head, of the adapter that is active."""
        return self._heads.head

    @property
    def lambda_head(self) -> Any:  # type: ignore[override]
        """The Lambda head, likewise."""
        return self._heads.lambda_head

    @property
    def _heads(self) -> Any:
        """Both: `Heads`, or what peft put in their place."""
        return self._modules[self.heads_name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _NAMES:
            if self.heads_name not in self._modules:  # before the others: peft goes by the first name of a module
                super().__setattr__(self.heads_name, Heads())
            setattr(self._heads, name, value)
            self._modules[name] = value
            return
        super().__setattr__(name, value)
        if name == self.heads_name and isinstance(value, Heads):  # peft gives them back: merged, or as they were
            self._modules.update({part: getattr(value, part) for part in _NAMES})


def check_heads_learn(model: Any, wrapper: PonderWrapper) -> None:
    """Refuse to train a model with adapters of peft around heads that are new and would never learn.

    Args:
        model: The model whose modules peft may have exchanged.
        wrapper: The wrapper in it.

    Raises:
        ArgumentError: All of the head or of the Lambda head is frozen, and peft has no copy of it to train.
    """
    if getattr(model, "peft_config", None) is None:
        return
    if isinstance(wrapper, EncoderWrapper) and not isinstance(getattr(wrapper, wrapper.heads_name), Heads):
        check_prior_learns(wrapper)
        return  # peft trains a copy; a stage of training may freeze a part of it
    check_prior_learns(wrapper)
    for name, part in (("head", wrapper.head), ("Lambda head", wrapper.lambda_head)):
        weights = [] if part is None else list(part.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            raise ArgumentError(
                "modules_to_save",
                expected="the heads, which are new and have to be trained in full beside the adapters",
                got=f"a {name} that is frozen",
                remedy="Pass LoraConfig(…, modules_to_save=model.head_names), or the task_type of the model.",
            )


def check_prior_learns(wrapper: PonderWrapper) -> None:
    """Refuse a learned prior that is frozen: peft neither trains nor saves it.

    Raises:
        ArgumentError: All of its weights are.
    """
    weights = [] if wrapper.prior_weights is None else list(wrapper.prior_weights.parameters())
    if weights and not any(weight.requires_grad for weight in weights):
        raise ArgumentError(
            "prior",
            expected="one that is not learned, beside adapters of peft, which would neither train nor save it",
            got=repr(wrapper.prior),
            remedy="Build the model with priors.Geometric(0.1), say, or with the prior that was learned, as a table.",
        )


def _as_in_files(module: EncoderWrapper, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for part in _NAMES:
        for name in [name for name in state if name.startswith(f"{prefix}{module.heads_name}.{part}.")]:
            del state[name]


def _from_files(module: EncoderWrapper, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    if not isinstance(getattr(module, module.heads_name), Heads):
        return  # then they are of what peft keeps beside its copies
    for part in _NAMES:
        own, shared = f"{prefix}{part}.", f"{prefix}{module.heads_name}.{part}."
        state.update({shared + name.removeprefix(own): state[name] for name in list(state) if name.startswith(own)})
