"""`fit_exits`: heads learn full depth's answers, and what is promised is counted on inputs that chose nothing."""

from __future__ import annotations

import copy
import json
import math
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, TrainingArguments

import ponder
from ponder import objectives
from ponder.calibration.bounds import p_values
from ponder.cli.doctor import unseen
from ponder.errors import ArgumentError, ArgumentTypeError, NonFiniteError
from ponder.integrations.transformers import ExitReport, FinetunedClassifier, PonderTrainer, fit_exits
from ponder.integrations.transformers import exits as exits_module
from ponder.integrations.transformers.exits import _train_one, distinct, split_rows
from ponder.policies import FixedStep, LastStep

pytestmark = pytest.mark.usefixtures("quick_captures")


def model(depth: float = 0.3) -> FinetunedClassifier:
    """A classifier whose answer is that of random layers, the more so the larger `depth` is; at 0, of the words."""
    made = copy.deepcopy(_captured(depth))
    torch.manual_seed(0)
    return made


@cache
def _captured(depth: float) -> FinetunedClassifier:
    """Made and captured once for all tests, which takes as long as a small fit."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=4,
        max_position_embeddings=16,
        num_labels=3,
    )
    plain = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        plain.bert.embeddings.word_embeddings.weight.normal_(std=1.0)
        plain.classifier.weight.mul_(200.0)
        for layer in plain.bert.encoder.layer:
            for part in (layer.attention.self.value, layer.attention.output.dense, layer.intermediate.dense):
                part.weight.normal_(std=depth)
            layer.output.dense.weight.normal_(std=depth)
    return FinetunedClassifier.from_finetuned(plain)


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randint(5, 40, (6,), generator=generator).tolist() for _ in range(count)]
    return [{"input_ids": [2, *ids, 3], "attention_mask": [1] * 8} for ids in made]


def fitted(count: int = 800, **options: Any) -> tuple[FinetunedClassifier, ExitReport]:
    """A model of its own with exits that are fitted to `rows`, once for all tests that ask for the same."""
    made, report = _fitted(count, tuple(options.items()))
    return copy.deepcopy(made), report


@cache
def _fitted(count: int, options: tuple[tuple[str, Any], ...]) -> tuple[FinetunedClassifier, ExitReport]:
    made = model()
    return made, fit_exits(made, rows(count), **dict(options))


def test_labels_do_not_train_the_classifier(tmp_path: Path) -> None:
    """`ponder.fit` trained all of it in silence, and the trainer said that its batch was empty."""
    made, kept = model(), model().classifier.state_dict()
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 1])}
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    for train in (
        lambda: ponder.fit(made, [batch], epochs=1, progress=False),
        lambda: PonderTrainer(made, arguments, train_dataset=rows(4)),
        lambda: made.train()(**batch),
        lambda: ponder.fit(made.ponder, [batch], epochs=1, progress=False),
    ):
        with pytest.raises(ArgumentError, match=r"model: .* as its BertForSeq.*fit_exits\(model, encodings\)"):
            train()
    made.classifier.requires_grad_(False)
    made.ponder.objective = objectives.DeepSupervision()
    before = {name: weight.clone() for name, weight in made.heads.state_dict().items()}
    ponder.fit(made, [batch], epochs=1, progress=False)
    assert any(not torch.equal(weight, before[name]) for name, weight in made.heads.state_dict().items())
    assert all(torch.equal(weight, kept[name]) for name, weight in made.classifier.state_dict().items())
    assert made.eval()(**batch).loss is not None  # to look at it is no training


def test_heads_learn_to_agree_and_the_classifier_stays_as_it_is() -> None:
    plain, (made, report) = model(), fitted(disagreement=0.1)
    before, fresh = plain.classifier.state_dict(), rows(300, seed=1)
    first = plain.record(fresh).agreement()[:, 0].double().mean()
    after = made.record(fresh).agreement()[:, 0].double().mean()
    assert after > first + 0.05
    assert all(torch.equal(value, before[name]) for name, value in made.classifier.state_dict().items())
    assert report.met
    assert report.speed_up > 1.2
    assert made.policy.statement.startswith("disagreement")  # type: ignore[attr-defined]  # the certificate is saved


def test_the_promise_holds_on_fresh_rows_and_is_counted_from_the_trajectory() -> None:
    made, report = fitted(disagreement=0.1)
    fresh = rows(1000, seed=9)
    found = made.predict(fresh)
    full = made.predict(fresh, policy=LastStep())
    assert (found.outputs.argmax(1) != full.outputs.argmax(1)).double().mean() <= 0.1
    assert report.level == 0.1
    errors = torch.zeros(report.certified_on, 1)
    errors[: round(report.disagreement * report.certified_on)] = 1
    assert p_values(errors, 0.1, "exact_binomial") <= 0.05


def test_a_speed_up_is_reached_and_its_cost_promised() -> None:
    made = model()
    report = fit_exits(made, rows(600), speed_up=2.0)
    assert report.speed_up > 1.8  # 2 on the rows that chose
    assert report.met
    errors = torch.zeros(report.certified_on, 1)
    errors[: round(report.disagreement * report.certified_on)] = 1
    assert p_values(errors, report.level, "exact_binomial") <= 0.05
    assert p_values(errors, report.level - 1e-4, "exact_binomial") > 0.05  # the lowest that holds


def test_repeated_rows_are_counted_once() -> None:
    made = rows(100)
    report = fit_exits(model(), made * 7)
    assert (report.rows, report.duplicates) == (700, 600)
    assert report.fitted + report.chosen_on + report.certified_on == 100
    assert len(distinct([*made, *made[:5]])) == 100
    typed = [{**made[0], "token_type_ids": [0] * 8}, {**made[0], "token_type_ids": [1] * 8}]
    assert len(distinct(typed)) == 2


def test_a_text_that_repeats_often_and_is_answered_otherwise_is_told() -> None:
    (made, report), given = fitted(disagreement=0.1), rows(800)
    assert report.met
    assert "inputs like these" in report.statement
    assert "distinct" not in report.statement
    assert report.disagreement_as_given == pytest.approx(report.disagreement)
    certifying = [given[place] for place in split_rows(given, 0).certify.tolist()]
    exits, full = (made.predict(certifying, policy=policy).outputs.argmax(-1) for policy in (None, LastStep()))
    wrong = int((exits != full).nonzero()[0])
    with pytest.warns(UserWarning, match="counts as often as it was given"):
        again = fit_exits(model(), [*given, *[certifying[wrong]] * 900], disagreement=0.1)
    assert (again.duplicates, again.disagreement) == (900, report.disagreement)
    assert "on all but 10% of distinct inputs like these" in again.statement
    assert again.disagreement_as_given > 0.5


def test_too_few_rows_for_the_level_are_told_and_nothing_exits() -> None:
    made = model()
    report = fit_exits(made, rows(200), epochs=5)
    assert not report.met
    assert math.isnan(report.level)
    assert "at least 299 are needed" in report.statement
    assert report.best_level == pytest.approx(1 - 0.05 ** (1 / report.certified_on))
    assert made.predict(rows(5)).exit_step.tolist() == [4] * 5
    assert report.to_dict()["level"] is None


def test_rows_leave_early_where_early_steps_know_the_answer_and_late_where_they_do_not() -> None:
    known, unknown = (fit_exits(model(depth), rows(400), disagreement=0.05, epochs=10) for depth in (0.1, 3.0))
    assert known.met
    assert known.mean_exit_step < 1.5
    assert unknown.mean_exit_step > 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"disagreement": 0.0}, "disagreement"),
        ({"confidence": 1.0}, "confidence"),
        ({"speed_up": 1.0}, "speed_up"),
        ({"speed_up": 5.0}, "speed_up"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        fit_exits(model(), rows(60), **options)


def test_a_handful_of_rows_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"at least 50 distinct inputs .* got 10 of 30"):
        fit_exits(model(), rows(10) * 3)


def test_heads_learn_all_classes_of_rows_that_are_sorted_by_class() -> None:
    # Trap: the tenth that ends training early was the first one, of classes that the head was never taught.
    classes = torch.arange(10).repeat_interleave(20)
    features = 100.0 * torch.nn.functional.one_hot(classes, 10).float()
    head = torch.nn.Linear(10, 10)
    torch.nn.init.zeros_(head.weight)
    _train_one(head, features, (features / 20).log_softmax(-1), None, 10, torch.Generator().manual_seed(0))
    assert torch.equal(head(features).argmax(-1), classes)


def test_the_same_seed_gives_the_same_exits() -> None:
    (one, report), other = fitted(300, disagreement=0.2), model()
    assert report.to_dict() == fit_exits(other, rows(300), disagreement=0.2).to_dict()
    for a, b in zip(one.heads.parameters(), other.heads.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(next(one.heads.parameters()), torch.ones(()))
    assert one.predict(rows(5), policy=FixedStep(1)).exit_step.tolist() == [1] * 5


def test_which_side_a_row_is_on_is_a_matter_of_the_row_alone() -> None:
    many, few = rows(900), rows(900)[100:300]
    whole, part = split_rows(many, 3), split_rows(few, 3)
    sides = {place: name for name in ("learn", "choose", "certify") for place in getattr(whole, name).tolist()}
    assert sorted(sides) == list(range(900))
    for name in ("learn", "choose", "certify"):
        assert all(sides[place + 100] == name for place in getattr(part, name).tolist())
    shares = [len(side) / 900 for side in (whole.learn, whole.choose, whole.certify)]
    assert shares == pytest.approx([0.4, 0.2, 0.4], abs=0.05)
    assert whole.learn.tolist() != split_rows(many, 4).learn.tolist()


def test_features_in_a_file_give_the_same_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    mapped = []
    from_file = torch.from_file

    def watched(path: str, *rest: Any, **named: Any) -> torch.Tensor:
        mapped.append(path)
        return from_file(path, *rest, **named)

    monkeypatch.setattr(torch, "from_file", watched)
    (one, report), other = fitted(300, disagreement=0.2), model()
    assert report.to_dict() == fit_exits(other, rows(300), disagreement=0.2, memory=0.0).to_dict()
    assert len(mapped) == 1
    assert not os.path.exists(mapped[0])
    for a, b in zip(one.heads.parameters(), other.heads.parameters(), strict=True):
        assert torch.equal(a, b)


def test_labels_tell_the_accuracy_and_change_nothing_else() -> None:
    given = rows(300)
    plain = model()
    answers = plain.predict(given).outputs.argmax(1).tolist()
    labelled = [
        {**row, "labels": label if place % 2 else 0}
        for place, (row, label) in enumerate(zip(given, answers, strict=True))
    ]
    report, (_, without) = fit_exits(plain, labelled, disagreement=0.2), fitted(300, disagreement=0.2)
    assert report.disagreement == without.disagreement
    assert math.isnan(without.plain_accuracy)
    assert without.to_dict()["plain_accuracy"] is None
    places = split_rows(given, 0).certify.tolist()
    right = [labelled[place]["labels"] == answers[place] for place in places]
    assert report.plain_accuracy == pytest.approx(sum(right) / len(right))
    assert abs(report.exit_accuracy - report.plain_accuracy) <= report.disagreement


@pytest.mark.parametrize("recipe", ["exits", "exits-deep"])
@pytest.mark.parametrize("every", [3, 1000])  # of the inputs has a label
def test_inputs_without_a_label_count_for_no_accuracy(recipe: Any, every: int) -> None:
    """They were an error once everything had been trained, and a batch of them made the weights of `exits-deep` NaN."""
    made, given = FinetunedClassifier.from_finetuned(model().classifier, recipe), rows(100)
    for place, row in enumerate(given):
        row["labels"] = place % 2 if place % every == 1 else -100
    report = fit_exits(made, given, disagreement=0.3, epochs=1, encoder_epochs=1, batch_size=8)
    assert all(bool(weight.isfinite().all()) for weight in made.parameters())
    places = split_rows(given, 0).certify.tolist()
    certifying = [given[place] for place in places if given[place]["labels"] >= 0]
    if not certifying:
        assert math.isnan(report.plain_accuracy)
        assert math.isnan(report.exit_accuracy)
        return
    labels = torch.tensor([row["labels"] for row in certifying])
    exits = made.predict(certifying).outputs.argmax(-1)
    assert report.exit_accuracy == pytest.approx(float((exits == labels).double().mean()))
    if recipe == "exits":
        plain = made.predict(certifying, policy=LastStep()).outputs.argmax(-1)
        assert report.plain_accuracy == pytest.approx(float((plain == labels).double().mean()))


def test_the_encoder_learns_too_from_a_frozen_copy_and_full_depth_may_move() -> None:
    frozen = model(depth=1.0)
    plain = frozen.classifier
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    given = rows(600)
    own = fit_exits(frozen, given, speed_up=2.0)
    deep = FinetunedClassifier.from_finetuned(plain, recipe="exits-deep")
    report = fit_exits(deep, given, speed_up=2.0, encoder_lr=5e-3, encoder_epochs=6)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    assert not all(torch.equal(value, before[name]) for name, value in deep.classifier.state_dict().items())
    assert own.moved == 0
    assert 0 < report.moved < 0.5
    assert report.disagreement < own.disagreement
    fresh = rows(300, seed=5)
    expected = frozen.predict(fresh, policy=LastStep()).outputs.argmax(1)
    found = deep.predict(fresh).outputs.argmax(1)
    assert (found != expected).double().mean() <= report.level


def test_curves_are_counted_from_the_certifying_rows() -> None:
    _, report = fitted(disagreement=0.1)
    curve = next(curve for curve in report.curves if curve.policy == report.kind)
    place = curve.values.index(report.threshold)
    assert curve.disagreement[place] == pytest.approx(report.disagreement)
    assert curve.mean_exit_step[place] == pytest.approx(report.mean_exit_step)
    assert curve.exits[place] == pytest.approx(report.exit_shares)
    assert curve.promise[place] <= 0.1
    assert list(curve.promise) == sorted(curve.promise)
    assert all(low <= high for low, high in zip(curve.disagreement, curve.promise, strict=True))


def test_columns_beside_the_inputs_do_not_hide_repeated_ones() -> None:
    base = rows(30)
    repeated = [{**base[place % 30], "idx": place, "text": f"row {place}"} for place in range(90)]
    assert len(distinct(repeated)) == 30
    mine, theirs = (split_rows(distinct(given), 0) for given in (base, repeated))
    assert mine.certify.tolist() == theirs.certify.tolist()


def test_a_column_that_the_model_reads_and_rows_cannot_carry_is_refused() -> None:
    """Dropped in silence, it made another model of which the exits were certified."""
    made = model()
    with pytest.raises(ArgumentError, match="position_ids, which the encoder reads too"):
        made.record([{**row, "position_ids": list(range(8))} for row in rows(3)])
    assert len(made.predict([{**row, "idx": 3} for row in rows(3)])) == 3


@pytest.mark.parametrize("bad", [{"input_ids": [99], "attention_mask": [1]}, {"input_ids": [2] * 60}])
def test_a_bad_encoding_is_named_by_its_place_in_what_was_passed(bad: dict[str, Any]) -> None:
    given = rows(80)
    given = [given[0], *given]  # one that repeats an earlier one is left out before the model runs
    given.insert(70, bad)
    with pytest.raises(ArgumentError, match=r"encodings\[70\]: expected an example"):
        fit_exits(model(), given, epochs=1)


def test_fitting_again_forgets_what_was_fitted() -> None:
    """Or else another seed would certify on inputs from which the heads have learned already."""
    once, again = model(), model()
    fit_exits(again, rows(300, seed=4), epochs=3, disagreement=0.2, seed=1)
    reports = [fit_exits(made, rows(300), epochs=3, disagreement=0.2) for made in (once, again)]
    assert reports[0].to_dict() == reports[1].to_dict()
    for own, other in zip(once.heads.parameters(), again.heads.parameters(), strict=True):
        assert torch.equal(own, other)


def test_fitting_again_forgets_the_columns_of_the_texts_of_before() -> None:
    made = model()
    made.columns = ("premise", "hypothesis")
    fit_exits(made, rows(100), epochs=1, disagreement=0.3)
    assert made.columns == ()


def broken(word: int | None = None, bias: float = 0.0) -> BertForSequenceClassification:
    """The plain classifier, with NaN for one word, or a class that it never gives."""
    plain = copy.deepcopy(model().classifier)
    with torch.no_grad():
        if word is not None:
            plain.bert.embeddings.word_embeddings.weight[word] = float("nan")
        plain.classifier.bias[2] += bias
    return plain


SHORT: dict[str, Any] = {"disagreement": 0.3, "epochs": 4, "encoder_epochs": 1}


def learned(made: FinetunedClassifier) -> list[bool]:
    return [bool(weight.isfinite().all() and weight.any()) for weight in made.heads.parameters()]


@pytest.mark.parametrize("recipe", ["exits", "exits-deep"])
def test_an_input_without_an_answer_teaches_nothing_and_is_told(recipe: Any) -> None:
    # Trap: one of them made every loss NaN: no head learned, or all weights became NaN, in silence.
    given, plain = [row for row in rows(300) if 14 not in row["input_ids"]], broken(word=14)
    bad = next(row for row in rows(200, seed=8) if 14 in row["input_ids"] and len(split_rows([row], 0).learn))
    made = FinetunedClassifier.from_finetuned(plain, recipe)
    with pytest.warns(UserWarning, match=rf"1 of \d+ inputs .*NaN.*encodings\[{len(given)}\]"):
        report = fit_exits(made, [*given, bad], **SHORT)
    assert report.fitted == len(split_rows(given, 0).learn)
    assert all(learned(made))
    assert made.predict(given[:20]).outputs.isfinite().all()


def test_a_class_that_is_never_given_teaches_the_others() -> None:
    # Trap: 0 times minus infinity, which is NaN, in the loss of every row.
    found = []
    for bias in (-1e4, -math.inf):
        made = FinetunedClassifier.from_finetuned(broken(bias=bias))
        found.append(fit_exits(made, rows(300), **SHORT).to_dict())
        assert all(learned(made))
        assert made.predict(rows(20)).outputs.softmax(-1).isfinite().all()
    assert found[0] == found[1]


def test_a_model_that_answers_nothing_is_refused() -> None:
    made = FinetunedClassifier.from_finetuned(broken(word=2))  # which stands in every input
    with pytest.raises(ArgumentError, match=r"encodings: expected .* got .*NaN"):
        fit_exits(made, rows(100), **SHORT)


def test_a_loss_of_a_head_that_is_not_finite_moves_no_weight() -> None:
    head = torch.nn.Linear(4, 3)
    before = copy.deepcopy(head.state_dict())
    with pytest.raises(NonFiniteError, match="finite loss"):
        _train_one(head, torch.full((8, 4), math.nan), torch.zeros(8, 3), None, 2, torch.Generator().manual_seed(0))
    assert all(torch.equal(value, before[name]) for name, value in head.state_dict().items())


def test_a_loss_of_an_encoder_that_is_not_finite_moves_no_weight() -> None:
    made = FinetunedClassifier.from_finetuned(broken(bias=-math.inf), "exits-deep")
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(NonFiniteError, match="finite loss"):  # the cross-entropy with a class that is never given
        fit_exits(made, [{**row, "labels": 2} for row in rows(100)], **SHORT)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert made.policy == LastStep()


def test_an_encoder_that_learned_starts_again_from_the_plain_model() -> None:
    plain = model().classifier
    once, again = (FinetunedClassifier.from_finetuned(plain, recipe="exits-deep") for _ in range(2))
    options = {"epochs": 1, "encoder_epochs": 1, "disagreement": 0.3}
    fit_exits(again, rows(100, seed=4), seed=1, **options)
    for made in (once, again):
        torch.manual_seed(1)  # of the dropout
        fit_exits(made, rows(100), **options)
    for own, other in zip(once.classifier.parameters(), again.classifier.parameters(), strict=True):
        assert torch.equal(own, other)


def test_a_fit_that_is_broken_off_leaves_no_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    made, report = fitted(300, disagreement=0.2)
    assert report.met
    monkeypatch.setattr("ponder.integrations.transformers.exits._train", lambda *_: exec("raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        fit_exits(made, rows(300), epochs=1, disagreement=0.3)
    assert made.policy == LastStep()
    assert made.seed == 0, "what the heads learned from is known"


def test_a_certificate_is_not_saved_beside_other_weights(tmp_path: Path) -> None:
    made, _ = fitted(300, disagreement=0.2)
    made.save_pretrained(tmp_path / "made")
    again = FinetunedClassifier.from_pretrained(tmp_path / "made")
    again.save_pretrained(tmp_path / "again")
    for each in (made, again):
        with torch.no_grad():
            each.classifier.classifier.bias.add_(0.5)
        with pytest.raises(ArgumentError, match="model: expected the weights for which its policy was certified"):
            each.save_pretrained(tmp_path / "stale")
        with pytest.raises(ArgumentError, match="model: expected the weights for which its policy was certified"):
            each.export_source()
        with pytest.warns(UserWarning, match="A part of this policy is certified"):
            each.policy = each.policy.after(2)  # the certificate in it is of before
        with pytest.raises(ArgumentError, match="for which its policy was certified"):
            each.save_pretrained(tmp_path / "stale")
    made.policy = made.policy.policy.policy  # type: ignore[attr-defined]
    made.save_pretrained(tmp_path / "stale")
    fit_exits(again, rows(300), epochs=1, disagreement=0.3)
    again.save_pretrained(tmp_path / "anew")


def test_however_an_input_is_encoded_it_is_on_one_side() -> None:
    plain = rows(200)
    for more in (
        [{**row, "token_type_ids": [0] * 8} for row in plain],
        [{"input_ids": torch.tensor(row["input_ids"], dtype=torch.int32)} for row in plain],
        [{name: [*ids, 0, 0, 0] for name, ids in row.items()} for row in plain],
        [{"input_ids": [0, 0, *row["input_ids"]], "attention_mask": [0, 0, *row["attention_mask"]]} for row in plain],
    ):
        for one, other in zip(*(vars(split_rows(each, 3)).values() for each in (plain, more)), strict=True):
            assert torch.equal(one, other)
        assert len(distinct([*plain, *more])) == len(plain)
    pairs = [{**row, "token_type_ids": [0] * 4 + [1] * 4} for row in plain]
    assert len(distinct([*plain, *pairs])) == 2 * len(plain)


def test_a_folder_of_before_is_split_as_it_was(tmp_path: Path) -> None:
    made, given = model(), [{**row, "token_type_ids": [0] * 8} for row in rows(300)]
    fit_exits(made, given, epochs=1, disagreement=0.3)
    made.learned = None  # as then
    made.save_pretrained(tmp_path)
    told = json.loads((tmp_path / "exits.json").read_text())
    assert told.pop("split") == 2
    (tmp_path / "exits.json").write_text(json.dumps(told))
    old = FinetunedClassifier.from_pretrained(tmp_path)
    assert old.split == 1
    kept, known = unseen(old, given)
    split = split_rows(given, 0, 1)
    assert (len(kept), known) == (300 - len(split.learn), len(split.learn))
    assert split.learn.tolist() != split_rows(given, 0).learn.tolist()


def test_a_fit_that_is_broken_off_is_known_to_have_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap: its heads had learned, and every row passed for one that they had not seen.
    def interrupted(*parts: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    made, given = model(), rows(300)
    monkeypatch.setattr(exits_module, "control_agreement", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_exits(made, given, epochs=1)
    assert all(learned(made))
    assert made.policy == LastStep()
    assert unseen(made, given)[1] == len(split_rows(given, 0).learn)


def test_only_what_the_heads_learned_from_is_left_out_of_other_files(tmp_path: Path) -> None:
    # Trap: of a new file 40% were left out, those that would have been learned from, had they been there.
    made, given = model(), rows(300)
    others = [{"input_ids": [*row["input_ids"], 7]} for row in rows(300)]
    fit_exits(made, given, epochs=1, disagreement=0.3)
    made.save_pretrained(tmp_path)
    learn = set(split_rows(given, 0).learn.tolist())
    for each in (made, FinetunedClassifier.from_pretrained(tmp_path), copy.deepcopy(made)):
        assert unseen(each, [*others, *given]) == (
            [*others, *[row for place, row in enumerate(given) if place not in learn]],
            len(learn),
        )
    fit_exits(made, others, epochs=1, disagreement=0.3)
    assert unseen(made, given) == (given, 0)
    made.learned = None  # as of folders that an earlier version wrote
    assert unseen(made, given)[1] == len(learn)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"input_ids": [[2, 5, 3]] * 900}, "got a dict"),
        (["a text"] * 900, "got a str in it"),
        (torch.ones(900, 4, dtype=torch.long), "got a Tensor in it"),
        ([{"ids": [2, 3]}] * 900, "got a dict in it"),
        ([{"input_ids": torch.ones(1, 5, dtype=torch.long)}] * 900, r"ids of shape \(1, 5\)"),
    ],
)
def test_a_batch_in_the_place_of_encodings_is_refused(given: Any, told: str) -> None:
    with pytest.raises(ArgumentError if "shape" in told else ArgumentTypeError, match=f"^encodings: .*{told}"):
        fit_exits(model(), given)
    with pytest.raises(ArgumentTypeError, match=r"^model: "):
        fit_exits(given, model())
    with pytest.raises(ArgumentTypeError, match=r"^seed: "):
        fit_exits(model(), rows(60), seed="a")  # type: ignore[arg-type]


def test_an_encoder_that_learned_and_was_saved_is_fitted_by_its_own_seed(tmp_path: Path) -> None:
    made = FinetunedClassifier.from_finetuned(model().classifier, recipe="exits-deep")
    fit_exits(made, rows(100), epochs=1, encoder_epochs=1, disagreement=0.3, seed=5)
    made.save_pretrained(tmp_path)
    again = FinetunedClassifier.from_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="seed: expected 5: it tells from which inputs the encoder"):
        fit_exits(again, rows(100), epochs=1, seed=6)
    assert (
        fit_exits(again, rows(100), epochs=1, disagreement=0.3, seed=5).fitted
        == fit_exits(made, rows(100), epochs=1, encoder_epochs=1, disagreement=0.3, seed=5).fitted
    )
    fit_exits(made, rows(100), epochs=1, encoder_epochs=1, disagreement=0.3, seed=6)
    # Trap: read as a plain classifier it forgot by which inputs its encoder had learned, and certified on them.
    with pytest.warns(UserWarning, match="holds exits that were fitted"):
        plain = FinetunedClassifier.from_finetuned(tmp_path)
    with pytest.raises(ArgumentError, match="seed: expected 5: it tells from which inputs the encoder"):
        fit_exits(plain, rows(100), epochs=1, seed=6)
    with pytest.raises(ArgumentError, match="model: expected the classifier as it was fine-tuned"):
        FinetunedClassifier.from_finetuned(tmp_path, recipe="exits-deep")
    made.classifier.save_pretrained(tmp_path)  # other weights, of which nothing is known
    with pytest.warns(UserWarning, match="holds exits that were fitted"):
        assert FinetunedClassifier.from_finetuned(tmp_path).learned_by is None


def test_labels_that_some_inputs_lack_are_refused_wherever_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap: where they ended with what is recorded at once, the other inputs counted as of class 0."""
    monkeypatch.setattr(exits_module, "_CHUNK", 50)
    given = [{**row, "labels": 1} if place < 50 else row for place, row in enumerate(rows(100))]
    with pytest.raises(ArgumentError, match="encodings: expected labels with all encodings, or with none"):
        fit_exits(model(), given, disagreement=0.3)


def test_rows_of_which_some_tell_no_mask_keep_the_padding_of_the_others() -> None:
    told, untold = {"input_ids": [2, 7, 3, 0], "attention_mask": [1, 1, 1, 0]}, {"input_ids": [2, 7]}
    batch = model().collate([told, untold])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert "token_type_ids" not in batch
    batch = model().collate([{**told, "token_type_ids": [0, 1, 1, 0]}, untold])
    assert batch["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 0]]
