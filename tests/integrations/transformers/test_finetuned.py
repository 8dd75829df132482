"""A fine-tuned classifier keeps its own answers, whatever its head is made of, and its exits are saved beside it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    LongformerConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    SqueezeBertConfig,
    SqueezeBertForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)
from transformers.modeling_outputs import SequenceClassifierOutput

import ponder
from ponder import policies
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import FinetunedClassifier, PonderForSequenceClassification, finetuned
from ponder.integrations.transformers.tokenizing import load_tokenizer, max_positions, tokenize
from ponder.policies import Confidence, FixedStep, LastStep
from tests.ponder.checks import refused
from tests.word_tokenizer import save_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
CONFIGS = {
    "bert": lambda **more: BertConfig(**SIZES, **more),
    "roberta": lambda **more: RobertaConfig(**SIZES, **more),
    "albert": lambda **more: AlbertConfig(**SIZES, embedding_size=8, **more),
    "mpnet": lambda **more: MPNetConfig(**SIZES, **more),
    "distilbert": lambda **more: DistilBertConfig(
        vocab_size=60, dim=16, hidden_dim=24, n_heads=2, n_layers=4, max_position_embeddings=40, num_labels=3, **more
    ),
    "modernbert": lambda **more: ModernBertConfig(
        **SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2, **more
    ),
}

pytestmark = pytest.mark.usefixtures("quick_captures")


def classifier(name: str = "bert", **more: Any) -> PreTrainedModel:
    torch.manual_seed(3)
    config: PretrainedConfig = CONFIGS[name](**more)
    return AutoModelForSequenceClassification.from_config(config).eval()


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (6, 9), generator=generator)
    mask = (torch.arange(9) < torch.tensor([9, 9, 7, 5, 4, 3])[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("name", CONFIGS)
def test_full_depth_is_the_plain_classifier_bit_for_bit(name: str) -> None:
    plain = classifier(name)
    with torch.no_grad():
        expected = plain(**batch()).logits
        model = PonderForSequenceClassification.from_finetuned(plain)
        out = model(**batch())
    assert torch.equal(out.outputs, expected)
    assert out.exit_step.tolist() == [model.num_steps] * 6
    assert torch.equal(plain(**batch()).logits, expected)  # the user's own model is as it was


@pytest.mark.parametrize("name", CONFIGS)
def test_early_heads_start_as_the_own_head_on_an_earlier_state(name: str) -> None:
    plain = classifier(name)
    model = FinetunedClassifier.from_finetuned(plain)
    with torch.no_grad():
        found = model(**batch(), policy=FixedStep(2)).outputs
        shorter = classifier(name)
        shorter.load_state_dict(plain.state_dict())
        if name == "albert":
            shorter.config.num_hidden_layers = 2
            shorter.albert.encoder.config.num_hidden_layers = 2
        else:
            layers = next(m for m in shorter.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 4)
            del layers[2:]
        expected = shorter(**batch()).logits
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_with_the_plain_classifier_in_the_same_folder(name: str, tmp_path: Path) -> None:
    plain = classifier(name)
    model = FinetunedClassifier.from_finetuned(plain)
    torch.manual_seed(0)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    model.policy = Confidence(0.7)
    with torch.no_grad():
        before = model(**batch())
        model.save_pretrained(tmp_path)
        again = FinetunedClassifier.from_pretrained(tmp_path)
        after = again(**batch())
        kept = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()(**batch()).logits
        assert torch.equal(kept, plain(**batch()).logits)
    assert again.policy == Confidence(0.7)
    assert torch.equal(before.outputs, after.outputs)
    assert torch.equal(before.exit_step, after.exit_step)
    assert before.exit_step.min() < model.num_steps


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_what_was_certified_in_another_precision_is_read_in_it(dtype: torch.dtype, tmp_path: Path) -> None:
    """Read in float32, it was another model than the certified one, and the certificate was kept."""
    plain = classifier().to(dtype)
    model = FinetunedClassifier.from_finetuned(plain)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weight in model.heads.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator).to(dtype))
    promise = ("a promise", "disagreement", 0.1, 0.95, "exact_binomial", 300, "threshold", 0.4, 0.01)
    model.policy = policies.Certified(Confidence(0.4), *promise, path=((0.4, 0.02, 0.01),), num_steps=4)
    model.save_pretrained(tmp_path)
    again = FinetunedClassifier.from_pretrained(tmp_path)
    with torch.no_grad():
        one, other = model(**batch()), again(**batch())
    assert other.outputs.dtype == dtype
    assert torch.equal(one.outputs, other.outputs)
    assert torch.equal(one.exit_step, other.exit_step)
    again.save_pretrained(tmp_path / "again")  # the weights are those of the certificate


def test_predict_runs_rows_of_several_lengths() -> None:
    plain = classifier()
    model = FinetunedClassifier.from_finetuned(plain)
    rows = [{"input_ids": list(range(5, 5 + length))} for length in (3, 9, 5, 7)]
    found = model.predict(rows)
    with torch.no_grad():
        for row, output in zip(rows, found.outputs, strict=True):
            torch.testing.assert_close(plain(torch.tensor([row["input_ids"]])).logits[0], output)


def test_early_heads_answer_alike_wherever_the_padding_is() -> None:
    """Trap: of a row that is padded on the left, the first position is padding."""
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Qwen2Config(vocab_size=60, num_hidden_layers=4, num_labels=3, pad_token_id=0, **sizes)
    model = FinetunedClassifier.from_finetuned(AutoModelForSequenceClassification.from_config(config).eval())
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    right = batch()
    right["input_ids"] = right["input_ids"] * right["attention_mask"]
    shifts = (right["attention_mask"].sum(1, keepdim=True) + torch.arange(9)) % 9  # padding comes to the front
    left = {name: value.gather(1, shifts) for name, value in right.items()}
    assert left["attention_mask"][-1].tolist() == [0] * 6 + [1] * 3
    with torch.no_grad():
        torch.testing.assert_close(model.unroll(**left).outputs, model.unroll(**right).outputs)


def longformer() -> PreTrainedModel:
    torch.manual_seed(3)
    return AutoModelForSequenceClassification.from_config(LongformerConfig(**SIZES, attention_window=8)).eval()


@torch.no_grad()
def test_early_heads_leave_out_the_padding_that_a_model_adds_within() -> None:
    """Trap: Longformer has more states than its mask has numbers, unless a batch is as wide as a few windows."""
    model = FinetunedClassifier.from_finetuned(longformer())
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter)
    ids = torch.randint(5, 60, (1, 10), generator=torch.Generator().manual_seed(1))
    expected = model(ids, policy=FixedStep(2)).outputs  # without a mask
    for width in (10, 11, 16, 17, 24):
        padded = torch.nn.functional.pad(ids, (0, width - 10), value=1)
        found = model(padded, attention_mask=(torch.arange(width) < 10).long()[None], policy=FixedStep(2)).outputs
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_model_that_is_being_trained_is_captured_as_one_that_is_not() -> None:
    """Dropout took two runs of the stem for another way of padding."""
    assert FinetunedClassifier.from_finetuned(longformer().train()).num_steps == 4


def certified(plain: PreTrainedModel, folder: Path) -> tuple[FinetunedClassifier, dict[str, Any]]:
    """A model that was saved with a certificate, and was read so, and what its folder says of its exits."""
    model = FinetunedClassifier.from_finetuned(plain)
    trajectory = model.unroll(**batch())
    trajectory = dataclasses.replace(trajectory, labels=trajectory.outputs[:, -1].argmax(-1))
    model.policy = ponder.control_risk(trajectory, policies.Confidence, level=0.9, risk="disagreement").policy
    model.save_pretrained(folder)
    assert FinetunedClassifier.from_pretrained(folder).policy == model.policy
    return model, json.loads((folder / "exits.json").read_text())


@pytest.mark.parametrize("name", ["longformer", "bert"])
def test_a_promise_of_when_early_heads_read_padding_is_taken_off(name: str, tmp_path: Path) -> None:
    model, settings = certified(longformer() if name == "longformer" else classifier(), tmp_path)
    del settings["reads_mask"]  # as it was saved by an older version
    (tmp_path / "exits.json").write_text(json.dumps(settings))
    if name == "bert":
        assert FinetunedClassifier.from_pretrained(tmp_path).policy == model.policy
        return
    with pytest.warns(UserWarning, match="nothing is promised of them. Fit the exits again"):
        read = FinetunedClassifier.from_pretrained(tmp_path)
    assert read.policy == model.policy.policy
    read.save_pretrained(tmp_path / "again")
    assert FinetunedClassifier.from_pretrained(tmp_path / "again").policy == read.policy


def test_more_states_than_tokens_that_are_no_padding_on_the_right_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = longformer()
    pad = plain.longformer._pad_to_window_size

    def turned(**given: Any) -> Any:  # the padding comes to the front
        more, ids, mask, *others = pad(**given)
        return (more, ids.roll(more, 1), mask.roll(more, 1), *others)

    monkeypatch.setattr(plain.longformer, "_pad_to_window_size", turned)
    with refused("model", "16 states for 9 tokens"):
        FinetunedClassifier.from_finetuned(plain)


def test_a_bare_encoder_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"expected a sequence classifier .* got BertModel"):
        FinetunedClassifier.from_finetuned(AutoModel.from_config(CONFIGS["bert"]()))


@pytest.mark.parametrize("more", [{"problem_type": "regression"}, {"problem_type": "multi_label_classification"}])
def test_answers_that_are_not_one_class_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match="one of two or more classes"):
        FinetunedClassifier.from_finetuned(classifier(**more))


def test_what_cannot_be_captured_is_refused_with_the_reason() -> None:
    plain = classifier()
    one = plain.bert.encoder.layer
    del one[1:]
    with pytest.raises(ArgumentError, match="a list of layers"):
        FinetunedClassifier.from_finetuned(plain)


def test_states_with_the_length_behind_the_width_are_refused() -> None:
    groups = dict.fromkeys(["q_groups", "k_groups", "v_groups", "post_attention_groups"], 1)
    more = {**groups, "intermediate_groups": 1, "output_groups": 1, "embedding_size": 16}
    plain = SqueezeBertForSequenceClassification(SqueezeBertConfig(**SIZES, **more)).eval()
    with pytest.raises(ArgumentError, match="hidden state \\(batch, length, width\\)"):
        FinetunedClassifier.from_finetuned(plain)


def test_an_unknown_recipe_is_refused() -> None:
    with pytest.raises(ArgumentError, match="exits-deep"):
        FinetunedClassifier.from_finetuned(classifier(), recipe="exit")  # type: ignore[arg-type]


def test_a_folder_of_an_encoder_is_refused(tmp_path: Path) -> None:
    AutoModel.from_config(CONFIGS["bert"]()).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks .*classifier\.weight"):
        FinetunedClassifier.from_finetuned(tmp_path)


def test_a_classifier_without_its_pooler_is_refused(tmp_path: Path) -> None:
    plain = classifier()
    state = {name: value for name, value in plain.state_dict().items() if "pooler" not in name}
    plain.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(CheckpointError, match="pooler"):
        FinetunedClassifier.from_finetuned(tmp_path)


def test_a_plain_folder_has_no_exits(tmp_path: Path) -> None:
    classifier().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"exits\.json"):
        FinetunedClassifier.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "ponder"}))
    with pytest.raises(CheckpointError, match=r"exits of its own\. Read it with PonderForSequenceClassification"):
        FinetunedClassifier.from_pretrained(tmp_path)


def test_a_model_that_changed_after_its_exits_were_fitted_is_refused(tmp_path: Path) -> None:
    plain = classifier()
    FinetunedClassifier.from_finetuned(plain).save_pretrained(tmp_path)
    with torch.no_grad():
        next(plain.parameters()).add_(1.0)
    plain.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not those that were saved together"):
        FinetunedClassifier.from_pretrained(tmp_path)


def test_two_saves_at_a_time_are_never_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second saver between the two halves of the first would leave its weights under the other's heads."""
    fcntl = pytest.importorskip("fcntl", reason="there are no such locks on this system")
    tried: list[bool] = []
    write = finetuned.write_tensors

    def watched(path: Path, *given: Any) -> None:
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tried.append(True)
        os.close(handle)
        write(path, *given)

    monkeypatch.setattr(finetuned, "write_tensors", watched)
    FinetunedClassifier.from_finetuned(classifier()).save_pretrained(tmp_path)
    assert tried == [True], "no other writer may come between the classifier and its heads"

    load = finetuned.load_finetuned

    def loading(place: Path, *given: Any) -> Any:
        handle = os.open(place, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(handle)
        return load(place, *given)

    monkeypatch.setattr(finetuned, "load_finetuned", loading)
    FinetunedClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"format": "other"}, {"policy": {"name": "nobody"}}])
def test_a_foreign_or_damaged_description_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    model = FinetunedClassifier.from_finetuned(classifier())
    assert model.policy == LastStep()
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "exits.json").read_text())
    (tmp_path / "exits.json").write_text(json.dumps({**settings, **change}))
    with pytest.raises(CheckpointError, match=r"exits\.json"):
        FinetunedClassifier.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_arguments_that_nothing_reads_are_refused(name: str) -> None:
    model = FinetunedClassifier.from_finetuned(classifier(name))
    given = batch()
    ids, mask = given["input_ids"], given["attention_mask"]
    with pytest.raises(ArgumentError, match="Did you mean 'attention_mask'"):
        model(input_ids=ids, atention_mask=mask)
    for more in ({"attn_mask": mask}, {"idx": mask[:, 0]}, {"output_of_all": True}):
        with pytest.raises(ArgumentError, match=f"{next(iter(more))}: expected an argument of the call"):
            model(input_ids=ids, **more)
    with ponder.StreamEngine(model.ponder) as engine:
        future = engine.submit((ids[0], {"attn_mask": mask[0]}))
        with pytest.raises(ArgumentError, match="attn_mask"):
            future.result(timeout=60)


def test_exits_that_were_fitted_are_not_left_out_in_silence(tmp_path: Path) -> None:
    FinetunedClassifier.from_finetuned(classifier()).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="holds exits that were fitted"):
        FinetunedClassifier.from_finetuned(tmp_path)


def test_what_takes_a_wrapper_says_where_it_is() -> None:
    model: Any = FinetunedClassifier.from_finetuned(classifier())
    for call in (
        ponder.StreamEngine,
        lambda given: ponder.save(given, "nowhere"),
        lambda given: ponder.predict(given, []),
    ):
        with pytest.raises(TypeError, match=r"Pass its wrapper, model\.ponder"):
            call(model)


def test_a_certificate_is_not_moved_to_another_policy(tmp_path: Path) -> None:
    _, settings = certified(classifier(), tmp_path)
    settings["policy"]["policy"] = {"name": "confidence", "threshold": 0.01}
    (tmp_path / "exits.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="changed since"):
        FinetunedClassifier.from_pretrained(tmp_path)


class MeanBertForSequenceClassification(BertForSequenceClassification):
    """A class of one's own over the weights of one of Transformers: it reads the mean, and no pooler."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **_: Any) -> Any:
        hidden = self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(hidden.mean(1)))


class LastTwoForSequenceClassification(BertForSequenceClassification):
    """It reads the last two layers."""

    def forward(self, input_ids: Any = None, attention_mask: Any = None, token_type_ids: Any = None, **_: Any) -> Any:
        states = self.bert(input_ids, attention_mask, token_type_ids, output_hidden_states=True).hidden_states
        return SequenceClassifierOutput(logits=self.classifier((states[-1] + states[-2])[:, 0]))


def bert(kind: type[Any] = BertForSequenceClassification) -> Any:
    torch.manual_seed(0)
    return kind(BertConfig(**SIZES)).eval()


def test_what_could_not_be_read_again_is_not_saved(tmp_path: Path) -> None:
    """Another class was read in its place, under the same certificate; or the folder could not be read at all."""
    cut, exchanged, other = bert(), bert(), bert()
    cut.bert.encoder.layer = cut.bert.encoder.layer[:2]
    exchanged.classifier = torch.nn.Sequential(torch.nn.Linear(SIZES["hidden_size"], 2))
    other.bert.encoder.layer[1].intermediate.intermediate_act_fn = torch.nn.ReLU()
    for place, plain in enumerate((bert(MeanBertForSequenceClassification), cut, exchanged, other)):
        model = FinetunedClassifier.from_finetuned(plain)
        with pytest.raises(ArgumentError, match="its configuration makes again"):
            model.save_pretrained(tmp_path / str(place))
        assert not (tmp_path / str(place) / "exits.json").exists()


def test_a_classifier_with_a_hook_is_not_read_as_the_one_that_was_saved(tmp_path: Path) -> None:
    plain = bert()
    plain.classifier.weight.data.mul_(20.0)
    plain.bert.embeddings.register_forward_hook(lambda module, args, output: -3 * output)
    FinetunedClassifier.from_finetuned(plain).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not answer as the one that was saved"):
        FinetunedClassifier.from_pretrained(tmp_path)
    told = json.loads((tmp_path / "exits.json").read_text())
    del told["answers"], told["tolerance"]  # as earlier versions wrote it
    (tmp_path / "exits.json").write_text(json.dumps(told))
    assert FinetunedClassifier.from_pretrained(tmp_path).num_steps == 4


def test_a_head_on_several_layers_is_refused_whether_the_model_was_called_before_or_not() -> None:
    for calls in (0, 2):
        plain = bert(LastTwoForSequenceClassification)
        for _ in range(calls):
            plain(torch.ones(2, 4, dtype=torch.long))
        with pytest.raises(ArgumentError, match=r"^module: expected") as refusal:
            FinetunedClassifier.from_finetuned(plain)
        assert "random" not in str(refusal.value)


def test_a_model_with_exits_is_sent_to_its_own_reader(tmp_path: Path) -> None:
    made = PonderForSequenceClassification.from_encoder(bert().bert, "palbert", num_labels=2)
    made.save_pretrained(tmp_path)
    for model in (made, tmp_path):
        with pytest.raises(ArgumentError, match="which has exits"):
            FinetunedClassifier.from_finetuned(model)


def test_a_recipe_saved_over_exits_is_read_as_what_it_is(tmp_path: Path) -> None:
    FinetunedClassifier.from_finetuned(bert()).save_pretrained(tmp_path)
    assert finetuned.has_exits(tmp_path)
    PonderForSequenceClassification.from_encoder(bert().bert, "palbert", num_labels=3).save_pretrained(tmp_path)
    assert not finetuned.has_exits(tmp_path)
    with pytest.raises(CheckpointError, match="expected exits beside a plain classifier"):
        FinetunedClassifier.from_pretrained(tmp_path)


def test_a_recipe_saved_over_exits_leaves_none_of_their_promises(tmp_path: Path) -> None:
    FinetunedClassifier.from_finetuned(bert()).save_pretrained(tmp_path)
    for name in ("exits-report.json", "report.html", "README.md"):
        (tmp_path / name).write_text("# Exits for a model\n")
    PonderForSequenceClassification.from_encoder(bert().bert, "palbert", num_labels=3).save_pretrained(tmp_path)
    assert "palbert" in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "exits-report.json").exists()
    assert not (tmp_path / "report.html").exists()


def test_names_of_labels_may_be_given_either_way() -> None:
    names = {"bad": 0, "fair": 1, "good": 2}
    made = PonderForSequenceClassification.from_encoder(bert().bert, "palbert", label2id=names)
    assert (made.config.num_labels, made.config.id2label) == (3, {0: "bad", 1: "fair", 2: "good"})


def test_a_model_whose_positions_are_minus_one_has_no_limit(tmp_path: Path) -> None:
    """XLNet says so of its relative positions."""
    config = XLNetConfig(vocab_size=60, d_model=16, n_layer=2, n_head=2, d_inner=24)
    longest = max_positions(XLNetForSequenceClassification(config))
    assert config.max_position_embeddings == -1
    assert longest == 10**10
    save_tokenizer(tmp_path)
    made = tokenize(load_tokenizer(str(tmp_path)), [("w1 w2",), ("w1 " * 600,)], longest)
    assert [len(row["input_ids"]) for row in made.rows] == [4, 512]
    assert made.cut == [False, True]


@pytest.mark.parametrize("family", ["bert", "xlnet"])
def test_arguments_that_it_cannot_honour_are_refused_whatever_the_family(family: str) -> None:
    """Trap: some families ignored them in silence, others failed within, as each reads them elsewhere."""
    sizes = {"vocab_size": 40, "d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24}
    plain = bert() if family == "bert" else XLNetForSequenceClassification(XLNetConfig(**sizes)).eval()
    model: Any = FinetunedClassifier.from_finetuned(plain)
    ids = torch.randint(5, 20, (3, 7), generator=torch.Generator().manual_seed(0))
    for call in (model, model.unroll):
        for name, value in (("output_hidden_states", True), ("output_attentions", True), ("return_dict", False)):
            with pytest.raises(ArgumentError, match=f"{name}: expected None: a model that exits early"):
                call(ids, **{name: value})
        call(ids, output_attentions=False, output_hidden_states=None, return_dict=True, inputs_embeds=None)


@pytest.mark.parametrize("name", ["bert", "modernbert", "distilbert"])
@pytest.mark.parametrize("states", ["hidden_states", "attentions"])
def test_states_that_the_configuration_asks_for_stay_those_of_the_plain_model(name: str, states: str) -> None:
    """Trap: Transformers hooks the layers at the first call that gives states, and knew that of a copy alone."""
    plain = classifier(name, attn_implementation="eager", **{f"output_{states}": True})
    model = FinetunedClassifier.from_finetuned(plain)
    with torch.no_grad():
        found = model(**batch()).outputs
        model.unroll(**batch())
        assert not any(part._forward_hooks for part in plain.modules())
        own = plain(**batch())
    assert torch.equal(found, own.logits)
    assert len(own[states]) == 4 + (states == "hidden_states")


def test_reports_of_other_exits_do_not_stay_beside_them(tmp_path: Path) -> None:
    """Trap: the README of `ponder exits` went on promising the level of before."""
    model = FinetunedClassifier.from_finetuned(classifier())
    model.save_pretrained(tmp_path)
    reports = [tmp_path / name for name in ("exits-report.json", "report.html", "README.md")]
    for report in reports:
        report.write_text("# Exits for a model\n")
    model.save_pretrained(tmp_path)
    assert all(report.exists() for report in reports), "the same exits"
    reports[0].write_text(json.dumps({"columns": ["premise", "hypothesis"]}))
    model = FinetunedClassifier.from_pretrained(tmp_path)
    model.policy = policies.Confidence(0.7)
    model.save_pretrained(tmp_path)
    assert not any(report.exists() for report in reports)
    for folder in (tmp_path, tmp_path / "elsewhere"):  # what it was fitted to stays
        model.save_pretrained(folder)
        assert FinetunedClassifier.from_pretrained(folder).columns == ("premise", "hypothesis")
    (tmp_path / "README.md").write_text("# My own\n")
    model.policy = policies.Confidence(0.8)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My own\n"


def test_the_card_of_a_recipe_does_not_stay_beside_exits(tmp_path: Path) -> None:
    PonderForSequenceClassification.from_encoder(bert().bert, "palbert", num_labels=3).save_pretrained(tmp_path)
    FinetunedClassifier.from_finetuned(bert()).save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()
    assert not (tmp_path / "ponder_classes.py").exists()
    assert FinetunedClassifier.from_pretrained(tmp_path).num_steps == 4
