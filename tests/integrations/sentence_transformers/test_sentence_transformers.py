"""Sentence Transformers itself, on tiny random encoders and on MiniLM: rows exit, and nothing else is another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, BertForSequenceClassification, BertForTokenClassification

pytest.importorskip("sentence_transformers", reason="the extra sentence-transformers is not installed")

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import AdaptiveLayerLoss, CosineSimilarityLoss
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from benchmarks import backbones
from ponder import policies
from ponder.errors import ArgumentError, ArgumentTypeError
from ponder.integrations.sentence_transformers import PonderTransformer, predict, with_exits
from ponder.integrations.transformers import (
    FinetunedClassifier,
    PonderForSequenceClassification,
    PonderForTokenClassification,
    PonderModel,
)
from ponder.integrations.transformers.families import FAMILIES, tiny_encoder
from ponder.policies import FixedStep, LastStep
from tests.integrations.transformers.encoders import make_encoder, make_model, make_tokenizer, rows_computed

TEXTS = ["a b c", "d e f g h i", "b", "c c d a", "i h g f e d c b a"]
PAIRS = [("a b", "c"), ("d e f g", "h i"), ("b", "b"), ("a", "i h g f e d c")]
BY_NAME = {family.name: family for family in FAMILIES}


def plain(folder: Path, encoder: Any = None, mode: str = "mean", **options: Any) -> SentenceTransformer:
    """A `SentenceTransformer` of a tiny encoder, built as its users build one: from a folder."""
    (make_encoder("bert") if encoder is None else encoder).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    first = Transformer(str(folder))
    modules = [first, Pooling(first.get_embedding_dimension(), pooling_mode=mode), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu", **options)


class ById(policies.ExitPolicy):
    """A row leaves at the step of its id, which its tokens give."""

    def decide(self, step: Any, state: Any) -> Any:
        return step.index >= state["exit"], state

    def init(self, batch: Any) -> Any:
        return {"exit": 1 + batch.row_ids % batch.num_steps}


@pytest.mark.parametrize(
    ("family", "mode"),
    [  # who pools does not know whose tokens it pools
        *(("bert", mode) for mode in ("mean", "cls", "max", "lasttoken")),
        ("roberta", "mean"),
        ("modernbert", "cls"),
        ("distilbert", "lasttoken"),
    ],
)
def test_at_full_depth_it_is_the_model_it_was(family: str, mode: str, tmp_path: Path) -> None:
    model = plain(tmp_path, tiny_encoder(BY_NAME[family]), mode)
    expected = model.encode(TEXTS)
    exiting = with_exits(model)
    assert isinstance(exiting[0], PonderTransformer)
    assert np.array_equal(exiting.encode(TEXTS), expected)
    assert exiting.get_embedding_dimension() == model.get_embedding_dimension()
    assert exiting.max_seq_length == model.max_seq_length


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_policy_is_honoured_and_pooling_comes_after_the_exit(batch_size: int, tmp_path: Path) -> None:
    exiting = with_exits(plain(tmp_path))
    short = make_encoder("bert")
    short.encoder.layer = short.encoder.layer[:2]
    short.config.num_hidden_layers = 2
    expected = plain(tmp_path / "short", short).encode(TEXTS)
    found = exiting.encode(TEXTS, policy=FixedStep(2), batch_size=batch_size)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with rows_computed(list(exiting[0].model.encoder.encoder.layer)) as calls:
        rows = exiting.encode(TEXTS, policy=ById(), batch_size=batch_size, output_value=None)
    exits = [int(row["exit_step"]) for row in rows]
    assert sum(calls) == sum(exits), "nothing is computed that no row needs"
    assert len(set(exits)) > 2
    for text, row, step in zip(TEXTS, rows, exits, strict=True):
        alone = exiting.encode(text, policy=FixedStep(step), convert_to_tensor=True)
        torch.testing.assert_close(row["sentence_embedding"], alone, atol=1e-5, rtol=1e-4)


def test_an_argument_that_nobody_reads_is_refused_and_settings_are_kept(tmp_path: Path) -> None:
    model = plain(tmp_path, prompts={"query": "a b "}, similarity_fn_name="dot", truncate_dim=8)
    model[0].query_expansion = {"strategy": "fixed", "length": 12, "token": "a", "attend": True}
    expected = model.encode_query(TEXTS)
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode_query(TEXTS), expected)
    assert (exiting.similarity_fn_name, exiting.truncate_dim) == ("dot", 8)
    with pytest.raises(ValueError, match="polcy"):
        exiting.encode(TEXTS, polcy=LastStep())


@pytest.mark.parametrize("readout", ["tokens", "mean"])
def test_saved_and_loaded_by_the_library_itself(readout: Any, tmp_path: Path) -> None:
    exiting = PonderModel.from_encoder(make_encoder("bert"), "palbert", readout=readout, policy=FixedStep(3)).eval()
    module = PonderTransformer.of(exiting, make_tokenizer())
    dense = Dense(16, 4, activation_function=nn.Tanh())
    pooling = [Pooling(16)] if readout == "tokens" else []
    model = SentenceTransformer(modules=[module, *pooling, dense, Normalize()], device="cpu")
    assert [int(row["exit_step"]) for row in model.encode(TEXTS, output_value=None)] == [3] * 5
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert isinstance(again[0], PonderTransformer)
    assert type(again[0].model) is PonderModel
    assert again[0].model.policy == FixedStep(3)
    for policy in (None, LastStep(), policies.Quantile(0.4)):
        assert np.array_equal(model.encode(TEXTS, policy=policy), again.encode(TEXTS, policy=policy))
    assert not list(tmp_path.rglob("*.bin"))
    assert AutoModel.from_pretrained(tmp_path).config.readout == readout


def test_every_exit_is_trained_by_the_librarys_own_loss(tmp_path: Path) -> None:
    model = with_exits(plain(tmp_path)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    loss = AdaptiveLayerLoss(model, CosineSimilarityLoss(model), n_layers_per_step=-1)
    features = [model.preprocess(texts) for texts in (TEXTS[:3], TEXTS[2:])]
    value = loss(features, torch.tensor([0.1, 0.9, 0.5]))
    value.backward()
    layers = model[0].model.encoder.encoder.layer
    assert all(bool(layer.output.dense.weight.grad.any()) for layer in layers)
    with torch.no_grad():
        alone = CosineSimilarityLoss(model)(features, torch.tensor([0.1, 0.9, 0.5]))
    assert value.detach() > alone > 0, "the loss of the last step, and those of the others"
    model.eval()
    with torch.no_grad():  # as the trainer of the library does with an eval_dataset
        evaluated = loss(features, torch.tensor([0.1, 0.9, 0.5]))
        asked = model.preprocess(TEXTS[:2])
    torch.testing.assert_close(evaluated, value.detach())
    assert "all_layer_embeddings" not in model(asked)
    model[0].model.config.output_hidden_states = True  # a policy that is named is honoured all the same
    assert model[0](asked, policy=FixedStep(2))["exit_step"].tolist() == [2, 2]


def test_an_answer_may_come_to_rest(tmp_path: Path) -> None:
    """`Converged` on features needs no training: a row leaves when a step no longer moves it, padding apart."""
    exiting = with_exits(plain(tmp_path))
    rest = policies.Converged(tolerance=0.9, on="features")
    together = [int(row["exit_step"]) for row in exiting.encode(TEXTS, policy=rest, output_value=None)]
    alone = [int(exiting.encode(text, policy=rest, output_value=None)["exit_step"]) for text in TEXTS]
    assert together == alone
    assert min(together) < 5


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_cross_encoder_exits_per_pair(num_labels: int, tmp_path: Path) -> None:
    classifier = make_model("bert", num_labels=num_labels)
    tokenizer = make_tokenizer()
    model = CrossEncoder(modules=[PonderTransformer.of(classifier, tokenizer)], device="cpu")
    assert model.num_labels == num_labels
    given = tokenizer([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, return_tensors="pt")
    for policy in (None, FixedStep(2), LastStep()):
        with torch.no_grad():
            out = classifier(given["input_ids"], given["attention_mask"], given.get("token_type_ids"), policy=policy)
        expected = out.logits.sigmoid().squeeze(1) if num_labels == 1 else out.logits
        np.testing.assert_allclose(model.predict(PAIRS, policy=policy, batch_size=4), expected, atol=1e-5)
        scores, exit_step = predict(model, PAIRS, policy=policy, batch_size=4)
        torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(exit_step, out.exit_step)
    if num_labels > 1:
        scores, _ = predict(model, PAIRS, apply_softmax=True)
        np.testing.assert_allclose(scores, model.predict(PAIRS, apply_softmax=True), atol=1e-6)
        torch.testing.assert_close(scores.sum(1), torch.ones(4))
    assert [len(part) for part in predict(model, [])] == [0, 0]
    one_score, one_step = predict(model, PAIRS[0])
    np.testing.assert_allclose(one_score, model.predict(PAIRS[0]), atol=1e-6)
    assert one_step.dim() == 0
    model.save_pretrained(str(tmp_path))
    again = CrossEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    assert type(again[0].model) is PonderForSequenceClassification
    assert np.allclose(again.predict(PAIRS), model.predict(PAIRS), rtol=1e-5, atol=0)  # but for rounding


def test_a_fine_tuned_cross_encoder_keeps_its_scores_and_exits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    classifier = BertForSequenceClassification(make_encoder("bert").config).eval()
    classifier.bert.load_state_dict(make_encoder("bert").state_dict())
    nn.init.normal_(classifier.classifier.weight)
    classifier.save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    plain_scores = CrossEncoder(str(tmp_path / "plain"), device="cpu").predict(PAIRS, batch_size=4)
    finetuned = FinetunedClassifier.from_finetuned(tmp_path / "plain")
    model = CrossEncoder(modules=[PonderTransformer.of(finetuned, make_tokenizer())], device="cpu")
    assert model.num_labels == 2
    assert np.array_equal(model.predict(PAIRS, batch_size=4), plain_scores), "bit for bit at full depth"
    assert model[0].get_embedding_dimension() == Transformer(str(tmp_path / "plain")).get_embedding_dimension()
    given = make_tokenizer()([a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, return_tensors="pt")
    with torch.no_grad():
        first = finetuned.unroll(**given).outputs[:, 0].softmax(-1).amax(-1)
        finetuned.policy = policies.Confidence(round(float(first.mean()), 3))  # some leave at once
        out = finetuned(**given)
    scores, exit_step = predict(model, PAIRS, batch_size=4)
    torch.testing.assert_close(scores, out.outputs, atol=1e-5, rtol=1e-4)
    assert torch.equal(exit_step, out.exit_step)
    assert len(set(exit_step.tolist())) > 1
    model.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert type(again[0].model) is FinetunedClassifier
    assert np.allclose(again.predict(PAIRS), model.predict(PAIRS), rtol=1e-5, atol=0)  # but for rounding
    assert again[0].model.policy == finetuned.policy
    for options, named in (
        ({"model_kwargs": {"dtype": torch.bfloat16}}, "dtype=torch.bfloat16"),
        ({"model_kwargs": {"attn_implementation": "eager"}}, "attn_implementation='eager'"),
        ({"backend": "onnx"}, "backend='onnx'"),
    ):  # trap: they were left out in silence
        with pytest.raises(ArgumentError, match=f"model_kwargs: expected nothing for a FinetunedClassifier.*{named}"):
            CrossEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True, **options)
    read = BertForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert torch.equal(read.classifier.weight, classifier.classifier.weight), "and Transformers reads it as before"


def test_minilm_with_its_own_tokenizer(tmp_path: Path) -> None:
    folder = backbones.resolve("minilm")
    first = Transformer(folder, processor_kwargs={"model_max_length": 64})
    model = SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension()), Normalize()], device="cpu")
    texts = ["A man is eating food.", "A man eats something, and then another thing.", "The girl carries a baby."]
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode(texts), model.encode(texts))
    assert exiting.max_seq_length == 64
    long = exiting.encode(["word " * 500], policy=FixedStep(1), output_value=None)[0]
    assert len(long["input_ids"]) == 64
    similar = exiting.similarity(*(exiting.encode(texts, policy=FixedStep(step)) for step in (5, 6)))
    assert torch.equal(similar.argmax(1), torch.arange(3)), "a text at step 5 is nearest to itself at step 6"


def test_what_it_is_not_for_is_refused(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    cross = CrossEncoder(modules=[PonderTransformer.of(make_model("bert", num_labels=1), tokenizer)], device="cpu")
    with pytest.raises(ArgumentTypeError, match=r"model: expected a SentenceTransformer; got CrossEncoder"):
        with_exits(cross)
    exiting = with_exits(plain(tmp_path))
    with pytest.raises(ArgumentError, match="whose first module is a Transformer; got PonderTransformer"):
        with_exits(exiting)
    with pytest.raises(ArgumentTypeError, match=r"model: expected a CrossEncoder .* got SentenceTransformer"):
        predict(exiting, PAIRS)
    tagger = PonderForTokenClassification.from_encoder(make_encoder("bert"), "vanilla", num_labels=3)
    with pytest.raises(ArgumentTypeError, match=r"model: expected PonderModel or .*; got PonderForTokenClassification"):
        PonderTransformer.of(tagger, tokenizer)
    finetuned = FinetunedClassifier(BertForTokenClassification(make_encoder("bert").config))
    with pytest.raises(ArgumentTypeError, match="got FinetunedClassifier, with an answer for each token"):
        PonderTransformer.of(finetuned, tokenizer)
    with pytest.raises(ArgumentError, match="labels: expected None, of a model that gives all tokens"):
        exiting[0].model(**tokenizer(["a b"], return_tensors="pt"), labels=torch.zeros(1, 2, 16))
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token == "[PAD]"


def test_sampled_exits_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    model = with_exits(plain(tmp_path), "pondernet")
    texts = [" ".join("abcdefghi"[(7 * n + k * n) % 9] for k in range(1 + n % 7)) for n in range(40)]
    told = [
        [int(one["exit_step"]) for one in model.encode(texts, output_value=None, batch_size=size)]
        for size in (40, 7, 1)
    ]
    assert told[0] == told[1] == told[2]
    assert len(set(told[0])) > 1


@pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
def test_what_was_set_on_the_tokenizer_stays(side: str, tmp_path: Path) -> None:
    """Trap: a processor that is written and read again knows only what its files know."""
    model = plain(tmp_path)
    model.max_seq_length = 5
    setattr(model[0].tokenizer, side, "left")
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode(TEXTS), model.encode(TEXTS))
    assert exiting[0].tokenizer is not model[0].tokenizer
    cross = CrossEncoder(modules=[PonderTransformer.of(make_model("bert"), model[0].tokenizer)], device="cpu")
    assert getattr(cross[0].tokenizer, side) == "left"


class Scaled(nn.Module):
    """A module that `encode` is asked for a factor of."""

    def forward(self, features: Any, factor: float = 1.0) -> Any:
        return {**features, "sentence_embedding": factor * features["sentence_embedding"]}


def test_what_modules_are_told_by_encode_is_handed_on(tmp_path: Path) -> None:
    model = plain(tmp_path)
    model = SentenceTransformer(modules=[model[0], model[1], Scaled()], device="cpu")
    model.module_kwargs = {"2": ["factor"]}  # as `modules.json` names them
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode(TEXTS, factor=3.0), model.encode(TEXTS, factor=3.0))
    assert not np.array_equal(exiting.encode(TEXTS, factor=3.0), exiting.encode(TEXTS))


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    class Doubled(SentenceTransformer):
        """A model whose embeddings are doubled."""

        def forward(self, input: Any, **options: Any) -> Any:
            return {**(made := super().forward(input, **options)), "sentence_embedding": 2 * made["sentence_embedding"]}

    class Named(SentenceTransformer):
        """A model with nothing but a name of its own."""

    model = plain(tmp_path)
    with pytest.raises(ArgumentError, match="a Doubled with forward of its own, which would be lost"):
        with_exits(Doubled(modules=list(model), device="cpu"))
    named = Named(modules=list(model), device="cpu")
    assert np.array_equal(with_exits(named).encode(TEXTS), model.encode(TEXTS))
    named.register_forward_hook(lambda module, given, out: out)
    with pytest.raises(ArgumentError, match="hooks of its own"):
        with_exits(named)


def test_a_first_module_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    class Own(Transformer):
        """A module whose states are doubled."""

        def forward(self, features: Any, **options: Any) -> Any:
            return {**(made := super().forward(features, **options)), "token_embeddings": 2 * made["token_embeddings"]}

    model = plain(tmp_path)
    with pytest.raises(ArgumentError, match="forward of its own"):
        with_exits(SentenceTransformer(modules=[Own(str(tmp_path)), model[1]], device="cpu"))
    model[0].tokenize = lambda *args, **options: None
    with pytest.raises(ArgumentError, match="tokenize of its own"):
        with_exits(model)
    del model[0].tokenize
    model[0].register_forward_hook(lambda module, given, out: out)
    with pytest.raises(ArgumentError, match="hooks of its own"):
        with_exits(model)
