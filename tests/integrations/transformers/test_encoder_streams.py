"""Encoders in a stream: texts of all lengths share batches, and come out as alone and as in a padded batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ponder import policies
from ponder.inference.streaming import StreamEngine
from ponder.integrations.transformers import CapturedAdapter, PonderForSequenceClassification
from ponder.integrations.transformers.families import FAMILIES as ALL_FAMILIES
from ponder.integrations.transformers.families import tiny_encoder
from ponder.policies import Bernoulli, Patience
from tests.integrations.transformers.encoders import CASES, FAMILIES, make_batch, make_model, segments
from tests.ponder.capturable import ByTurns
from tests.ponder.test_loop import Appointed

ROWS = 14
BY_NAME = {family.name: family for family in ALL_FAMILIES}
POLICIES = [None, Bernoulli(3), Patience(1), policies.LastStep()]
ALL_POLICIES = [("albert-3-uneven-groups-inner-2", "eager"), ("bert", "sdpa"), ("mpnet", "eager")]
STREAMED = [  # the others take turns
    (*case, policy)
    for place, case in enumerate(CASES)
    for turn, policy in enumerate(POLICIES)
    if case in ALL_POLICIES or (place + place // 8) % 4 == turn
]
pytestmark = pytest.mark.usefixtures("quick_captures")


def texts_of(model: Any) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """A padded batch, and its rows as examples: every other one without its padding and without a mask."""
    batch = make_batch(model.encoder, rows=ROWS, seed=4)
    context = {} if model.encoder.config.model_type == "mpnet" else {"token_type_ids": segments(batch)}
    examples = []
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        named = {"attention_mask": batch["attention_mask"][row], **{k: v[row] for k, v in context.items()}}
        if row % 2:
            examples.append((batch["input_ids"][row], named))
        else:
            short = {k: v[:length] for k, v in named.items() if k != "attention_mask"}
            examples.append((batch["input_ids"][row, :length], short))
    return {**batch, **context}, examples


@torch.no_grad()
@pytest.mark.parametrize(("name", "attention", "policy"), STREAMED, ids=str)
def test_texts_of_all_lengths_share_a_stream(name: str, attention: str, policy: Any) -> None:
    model = make_model(name, attention)
    batch, examples = texts_of(model)
    out = model(**batch, policy=policy)
    with StreamEngine(model.ponder, policy, max_batch=3) as engine:
        answers = dict(engine.run(examples))
    assert [answers[row].exit_step for row in range(ROWS)] == out.exit_step.tolist()
    for row in range(ROWS):
        torch.testing.assert_close(answers[row].output, out.logits[row], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_text_in_a_stream_is_the_text_alone(name: str) -> None:
    model = make_model(name)
    batch, examples = texts_of(model)
    with StreamEngine(model.ponder, max_batch=4, max_tokens=16) as engine:
        answers = dict(engine.run(examples))
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = {k: v[row : row + 1, :length] for k, v in batch.items() if k != "attention_mask"}
        out = model(**alone, row_ids=torch.tensor([row]))
        assert answers[row].exit_step == out.exit_step[0]
        torch.testing.assert_close(answers[row].output, out.logits[0], atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_long_texts_that_leave_take_their_padding_with_them(name: str, attention: str) -> None:
    if name == "mpnet" and attention == "sdpa":
        pytest.skip("MPNet has its own attention")
    model = make_model(name, attention)
    batch = make_batch(model.encoder, rows=ROWS, seed=4)
    lengths, widths = batch["attention_mask"].sum(1), []
    for module in set(model.ponder.steps.fns):
        module.register_forward_pre_hook(
            lambda _, args, named: widths.append((args[0].shape[:2], named["attention_mask"].shape[-1])),
            with_kwargs=True,
        )
    out = model(**batch, policy=Appointed(), row_ids=8 - lengths)  # the longest leave first
    for step, ((rows, width), masked_width) in enumerate(widths, start=1):
        running = out.exit_step >= step
        assert (rows, width) == (running.sum(), lengths[running].max())
        assert masked_width == width
    assert len({width for (_, width), _ in widths}) > 1, "nothing got narrower"


@torch.no_grad()
def test_half_precision_streams() -> None:
    model = make_model("albert").bfloat16()
    _, examples = texts_of(model)
    with StreamEngine(model.ponder, max_batch=4) as engine:
        answers = dict(engine.run(examples))
    assert len(answers) == ROWS
    assert all(answer.output.dtype == torch.bfloat16 for answer in answers.values())


CAPTURED = ["roberta", "distilbert", "modernbert", "deberta-v2 (with a convolution)", "xlm", "gpt2", "bart", "umt5"]


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "policy"), [("roberta", Bernoulli(3)), *zip(CAPTURED, [None, Bernoulli(3)] * 4, strict=True)], ids=str
)
def test_texts_of_all_lengths_share_the_stream_of_a_captured_encoder(name: str, policy: Any) -> None:
    torch.manual_seed(3)
    model = PonderForSequenceClassification.from_encoder(tiny_encoder(BY_NAME[name]), num_labels=3)
    for weight in [*model.ponder.head.parameters(), *model.ponder.lambda_head.parameters()]:
        weight.normal_(std=0.3)
    torch.nn.init.constant_(model.ponder.lambda_head.layers[-1].bias, -1.0)
    model.eval()
    assert isinstance(model._adapter, CapturedAdapter)
    ids = torch.randint(3, 60, (ROWS, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.arange(ROWS) % 9 + 1
    mask = (torch.arange(9) < lengths[:, None]).long()
    ids[mask == 0] = int(model.encoder.config.pad_token_id or 0)
    out = model(ids, attention_mask=mask, policy=policy)
    assert len(set(out.exit_step.tolist())) > 1
    examples = [(ids[row, :length], {}) for row, length in enumerate(lengths.tolist())]
    examples[3] = (ids[3], {"attention_mask": mask[3]})  # one that comes with its padding
    for max_tokens in (None, 18):
        with StreamEngine(model.ponder, policy, max_batch=4, max_tokens=max_tokens) as engine:
            answers = dict(engine.run(examples))
        assert [answers[row].exit_step for row in range(ROWS)] == out.exit_step.tolist()
        for row in range(ROWS):
            torch.testing.assert_close(answers[row].output, out.logits[row], atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_an_encoder_whose_rows_feel_the_padding_of_others_keeps_lengths_apart() -> None:
    """MobileBERT's embeddings look at the next token: the last of a text is another where padding follows it."""
    model = PonderForSequenceClassification.from_encoder(tiny_encoder(BY_NAME["mobilebert"]), "vanilla").eval()
    examples = [(torch.arange(5, 6 + row % 3), {}) for row in range(12)]
    with StreamEngine(model.ponder, ByTurns(), max_batch=3) as engine:
        answers = dict(engine.run(examples))
    for row, (ids, _) in enumerate(examples):
        alone = model(ids[None], policy=ByTurns(), row_ids=torch.tensor([row])).logits[0]
        torch.testing.assert_close(answers[row].output, alone, atol=1e-4, rtol=1e-3)
