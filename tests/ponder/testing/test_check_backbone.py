"""`check_backbone` passes every toy, and names the rule that a broken backbone breaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ponder
from ponder import policies
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.testing import ContractError, check_backbone
from ponder.testing.snapshot import differences, snapshot
from tests.ponder.test_padding import model_with_slots
from tests.toys import TOYS, WIDTH, Affine, make_toy, wrap


@pytest.mark.parametrize("toy_name", TOYS)
def test_every_toy_keeps_the_contract_and_comes_back_as_it_was(toy_name: str) -> None:
    toy = make_toy(toy_name)
    model = wrap(toy).train()
    model.head.eval()
    inputs, context = toy.batch(6, seed=2)
    before, state = snapshot(model), torch.get_rng_state()
    assert check_backbone(model, inputs, **context) is None
    assert not differences(before, model)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "parts",
    [
        {"policy": policies.Bernoulli()},
        {"policy": policies.Patience(2)},
        {"policy": policies.Entropy(0.4)},
        {"lambda_head": None},
        {"head": ponder.PerStep(nn.Linear(WIDTH, 3) for _ in range(5))},
        {"prior": ponder.priors.Learned(5)},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_other_parts(parts: dict[str, Any]) -> None:
    toy = make_toy("gru-cell")
    check_backbone(wrap(toy, **parts), toy.batch(7)[0])


def test_other_precisions_and_a_single_step() -> None:
    toy = make_toy("shared")
    for dtype in (torch.float64, torch.bfloat16):
        check_backbone(wrap(toy).to(dtype), toy.batch(6)[0].to(dtype))
    check_backbone(ponder.PonderWrapper(nn.Linear(WIDTH, WIDTH), 1, head=nn.Linear(WIDTH, 2)), torch.randn(3, WIDTH))


def test_a_policy_without_a_name_is_not_saved_and_all_else_is_checked() -> None:
    class Mine(policies.ExitPolicy):
        def decide(self, step, state):
            return step.index >= 2, state

    toy = make_toy("shared")
    check_backbone(wrap(toy, policy=Mine()), toy.batch(6)[0])


# Broken ones, a rule each


class NormalisesOverTheBatch(Affine):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden - hidden.mean(0))


class CountsCalls(Affine):
    """Keeps a state of its own from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(hidden) + 0.01 * self.calls


class RemembersTheBatch(Affine):
    """Takes something from the first step that no longer fits once rows have left."""

    first: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        if self.first is None or len(self.first) < len(hidden):
            self.first = hidden
        return super().forward(hidden) + 0.5 * self.first[: len(hidden)]


class Grows(Affine):
    """Leaves an attribute behind at every call."""

    def forward(self, hidden: Tensor) -> Tensor:
        setattr(self, f"cache_{len(vars(self))}", None)
        return super().forward(hidden)


class CountsInABuffer(Affine):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(hidden)


class NoisyInEvaluation(Affine):
    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + torch.rand(()) * 0.1


class WeightOutOfSight(Affine):
    """A weight that is no parameter: it is neither saved nor loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_weights = [nn.Parameter(torch.randn(WIDTH))]

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + self.hidden_weights[0]


class OtherCopies(Affine):
    """What its copies have in a buffer that is not saved is drawn again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.randn(WIDTH), persistent=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> OtherCopies:
        twin = OtherCopies()
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + self.scale


class WeightInAList(Affine):
    """The same, and a copy has it: only a model built anew would not."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {"weights": [torch.randn(WIDTH, requires_grad=True)]}

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + self.kept["weights"][0]


class NeedsRows(Affine):
    def forward(self, hidden: Tensor) -> Tensor:
        assert len(hidden) > 0
        return super().forward(hidden)


def stem_that_needs_rows(inputs: Tensor) -> Tensor:
    return inputs / inputs.abs().max()


ROWS_ALONE, NOTHING_LEFT = "do not depend on the other rows", "leave nothing behind"


@pytest.mark.parametrize(
    ("parts", "rule", "seen"),
    [
        ({"steps": NormalisesOverTheBatch()}, ROWS_ALONE, "outputs of rows"),
        ({"steps": NoisyInEvaluation()}, "those of the last step of unroll", "differ by"),
        ({"steps": CountsCalls()}, "those of the last step of unroll", "differ by"),
        ({"steps": RemembersTheBatch()}, ROWS_ALONE, "outputs of rows"),
        ({"steps": Grows()}, NOTHING_LEFT, "the attributes of steps"),
        ({"steps": CountsInABuffer()}, NOTHING_LEFT, "calls"),
        ({"steps": Affine(), "stem": stem_that_needs_rows}, ROWS_ALONE, "differ by"),
        ({"steps": Affine(), "head": nn.Sequential(NeedsRows(), nn.Linear(WIDTH, 3))}, "may have no rows", "Assertion"),
        ({"steps": WeightOutOfSight()}, "is a parameter of its module", "steps.fns.0: hidden_weights"),
        ({"steps": WeightInAList()}, "is a parameter of its module", "steps.fns.0: kept"),
        ({"steps": OtherCopies()}, "copies give the same outputs", "after copy.deepcopy"),
    ],
    ids=lambda value: type(value["steps"]).__name__ if isinstance(value, dict) else None,
)
def test_a_broken_backbone_is_caught(parts: dict[str, Any], rule: str, seen: str) -> None:
    model = ponder.PonderWrapper(**{"num_steps": 4, "head": nn.Linear(WIDTH, 3), **parts})
    with pytest.raises(ContractError) as caught:
        check_backbone(model, torch.randn(6, WIDTH))
    assert rule in caught.value.rule, caught.value
    assert seen in caught.value.seen, caught.value
    assert not [name for name in snapshot(model) if name.startswith("the hooks") and any(snapshot(model)[name])]


def test_a_model_that_is_not_what_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ponder.testing.backbone.load", lambda model, folder: model)
    toy = make_toy("shared")
    with pytest.raises(ContractError, match="after saving and loading"):
        check_backbone(wrap(toy), toy.batch(6)[0])


def test_a_tensor_of_the_whole_batch_that_is_not_marked() -> None:
    class Biased(Affine):
        def forward(self, hidden: Tensor, bias: Tensor) -> Tensor:
            return super().forward(hidden) + bias

    model = ponder.PonderWrapper(Biased(), 4, head=nn.Linear(WIDTH, 3))
    with pytest.raises(ArgumentError, match=r"ponder\.Shared"):
        check_backbone(model, torch.randn(6, WIDTH), bias=torch.randn(1, WIDTH))
    check_backbone(model, torch.randn(6, WIDTH), bias=ponder.Shared(torch.randn(1, WIDTH)))


def test_what_cannot_be_checked() -> None:
    model = wrap(make_toy("shared"))
    with pytest.raises(ArgumentTypeError, match="Wrap the encoder first"):
        check_backbone(nn.Linear(3, 3), torch.randn(6, 3))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="two rows or more"):
        check_backbone(model, torch.randn(1, WIDTH))


class Mixes(nn.Module):
    """Mixes the positions of a row by a table that all rows share, `(length, length)`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, table: Tensor, attention_mask: Tensor) -> Tensor:
        return torch.tanh(self.linear(table @ (hidden * attention_mask.unsqueeze(-1))))


class MixingStem(nn.Module):
    def forward(self, inputs: Tensor, attention_mask: Tensor) -> tuple[Tensor, dict[str, Any]]:
        positions = torch.arange(inputs.shape[1])
        table = 1.0 / (1 + (positions[:, None] - positions).abs())
        return inputs, {"table": ponder.Shared(table), "attention_mask": attention_mask}


def mixing_model(padding: ponder.Padding) -> ponder.PonderWrapper:
    torch.manual_seed(0)
    return ponder.PonderWrapper(
        Mixes(),
        6,
        stem=MixingStem(),
        readout=lambda hidden: hidden[:, 0],
        head=nn.Linear(WIDTH, 3),
        padding=padding,
    )


@pytest.mark.parametrize("longest", [0, 3])
def test_a_length_that_is_not_declared_is_found_whichever_row_is_longest(longest: int) -> None:
    """Trap: rows that leave in the order of the batch, so that only a lucky example has the longest leave early."""
    lengths = torch.tensor([3, 4, 2, 1]).index_put((torch.tensor(longest),), torch.tensor(5))
    mask = (torch.arange(5) < lengths[:, None]).long()
    inputs = torch.randn(4, 5, WIDTH)
    whole = ponder.Padding(context={"table": ponder.parts.padding.Along((0, 1))})
    check_backbone(mixing_model(whole), inputs, attention_mask=mask)
    with pytest.raises(ContractError, match=r"(?s)rows may leave in any order.*RuntimeError (with|when)"):
        check_backbone(mixing_model(ponder.Padding()), inputs, attention_mask=mask)


def test_names_that_parameters_have_besides_hide_nothing() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)  # lists its weights in an attribute
            self.regularised = [self.gru.weight_hh_l0]

        def forward(self, hidden: Tensor) -> Tensor:
            after: Tensor = self.gru(hidden)[0]
            return after

    model = ponder.PonderWrapper(Recurrent(), 3, head=nn.Linear(WIDTH, 3), readout=lambda hidden: hidden.mean(1))
    check_backbone(model, torch.randn(4, 5, WIDTH))


class NumberedStep(nn.Module):
    """Trap: the number of the step, taken from one row of a batch whose rows are at several."""

    def __init__(self, of_each: bool) -> None:
        super().__init__()
        self.linear, self.table, self.of_each = nn.Linear(WIDTH, WIDTH), nn.Embedding(6, WIDTH), of_each

    def forward(self, hidden: Tensor, index: Tensor) -> Tensor:
        return torch.tanh(self.linear(hidden) + self.table(index if self.of_each else index[0]))


def test_a_step_that_takes_all_rows_of_a_stream_to_be_at_one_step() -> None:
    def model(of_each: bool) -> ponder.PonderWrapper:
        torch.manual_seed(0)
        steps = ponder.Steps([NumberedStep(of_each)], [0] * 5, index=True)
        return ponder.PonderWrapper(steps, head=nn.Linear(WIDTH, 3))

    check_backbone(model(of_each=True), torch.randn(4, WIDTH))
    with pytest.raises(ContractError, match=r"a row of a stream.*outputs of row 2.*index of each"):
        check_backbone(model(of_each=False), torch.randn(4, WIDTH))


@pytest.mark.parametrize(
    ("slots", "told"), [(3, r"hidden\[1\].*Padding\(hidden="), (5, "must say which have a length")]
)
def test_slots_beside_the_tokens_that_are_taken_for_a_sequence(slots: int, told: str) -> None:
    inputs, mask = torch.randn(4, 5, WIDTH), (torch.arange(5) < torch.tensor([[5], [4], [2], [3]])).long()
    along = ponder.parts.padding.Along()
    check_backbone(model_with_slots(slots, ponder.Padding(hidden=(along, None))), inputs, attention_mask=mask)
    check_backbone(model_with_slots(slots, None), inputs, attention_mask=mask)
    with pytest.raises(ContractError, match=told):
        check_backbone(model_with_slots(slots, ponder.Padding()), inputs, attention_mask=mask)


def test_outputs_that_have_a_length() -> None:
    mask = (torch.arange(5) < torch.tensor([[5], [4], [2], [3]])).long()
    for task, pooled in (("token_classification", True), (None, False)):
        padding = ponder.Padding(pooled=pooled, context={"table": ponder.parts.padding.Along((0, 1))})
        model = ponder.PonderWrapper(
            Mixes(),
            4,
            stem=MixingStem(),
            readout=lambda hidden: hidden,
            head=nn.Linear(WIDTH, 3),
            padding=padding,
            task=task,
        )
        check_backbone(model, torch.randn(4, 5, WIDTH), attention_mask=mask)


def stages(policy: policies.ExitPolicy | None = None) -> ponder.PonderWrapper:
    """Steps that change the width, with a head for each."""
    torch.manual_seed(0)
    steps = [nn.Sequential(nn.Linear(small, large), nn.Tanh()) for small, large in ((8, 16), (16, 32))]
    heads = ponder.PerStep([nn.Linear(16, 3), nn.Linear(32, 3)])
    return ponder.PonderWrapper(steps, head=heads, policy=policy, task="classification")


class ReadsFeatures(policies.ExitPolicy):
    needs = frozenset({"features"})

    def decide(self, step, state):
        return step.features[:, 0] > 0, state


def test_stages_of_several_widths() -> None:
    check_backbone(stages(), torch.randn(4, 8))
    with pytest.raises(ArgumentError, match=r"features of the readout.*\(4, 16\) and \(4, 32\).*PerStep"):
        check_backbone(stages(ReadsFeatures()), torch.randn(4, 8))
