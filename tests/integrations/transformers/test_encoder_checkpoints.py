"""Folders that must not be trusted, or that do not hold what they should: errors that say so, and nothing run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ponder import policies
from ponder.errors import ArgumentError, CheckpointError
from ponder.integrations.transformers import PonderConfig, PonderForSequenceClassification, saving
from tests.integrations.transformers.encoders import make_batch, make_encoder, make_model

WEIGHTS = "model.safetensors"
FILES = ["README.md", "config.json", WEIGHTS, "ponder_classes.py"]
Load = Callable[..., Any]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.sprung,)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plain encoder, and a whole model."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in ("encoder", "model")}
    make_encoder("bert").save_pretrained(folders["encoder"])
    make_model("bert").save_pretrained(folders["model"])
    return folders


@pytest.fixture(params=["encoder", "model"])
def folder_and_load(request: pytest.FixtureRequest, saved: dict[str, Path], tmp_path: Path) -> tuple[Path, Load]:
    """A copy of either folder, to be damaged, and what reads it."""
    folder = tmp_path / "damaged"
    shutil.copytree(saved[request.param], folder)
    load = {
        "encoder": PonderForSequenceClassification.from_encoder,
        "model": PonderForSequenceClassification.from_pretrained,
    }[request.param]
    load(folder)  # it is whole before it is damaged
    return folder, load


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def refused(folder: Path, load: Load, *words: str, **arguments: Any) -> None:
    """A `CheckpointError` that names the folder, says what is expected, and has `words`."""
    with pytest.raises(CheckpointError) as caught:
        load(folder, **arguments)
    message = str(caught.value)
    for word in (str(folder), "expected", WEIGHTS, *words):
        assert word in message, message


class TestPickles:
    @pytest.fixture
    def trap(self, tmp_path: Path) -> Path:
        """Where a file appears as soon as a trapped pickle is read."""
        sprung = tmp_path / "sprung"
        pickle.loads(pickle.dumps(Trap(sprung)))
        assert sprung.exists(), "the trap works"
        sprung.unlink()
        return sprung

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"])
    def test_a_folder_with_nothing_but_a_pickle_is_refused(
        self, name: str, folder_and_load: tuple[Path, Load], trap: Path
    ) -> None:
        folder, load = folder_and_load
        (folder / WEIGHTS).unlink()
        torch.save({"encoder.weight": Trap(trap)}, folder / "pytorch_model.bin")
        if name.endswith("json"):
            (folder / "pytorch_model.bin").rename(folder / "part.bin")
            (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {"encoder.weight": "part.bin"}}))
        elif name != "pytorch_model.bin":
            (folder / "pytorch_model.bin").rename(folder / name)
        refused(folder, load)
        assert not trap.exists(), "it was unpickled"

    def test_not_even_on_request(self, saved: dict[str, Path], tmp_path: Path, trap: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        weights = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        for asked in (False, None):
            refused(folder, PonderForSequenceClassification.from_pretrained, use_safetensors=asked)
        torch.save({"encoder.weight": Trap(trap)}, folder / "pytorch_model.bin")
        refused(folder, PonderForSequenceClassification.from_pretrained, use_safetensors=False)
        assert not trap.exists()

    def test_a_pickle_beside_the_weights_is_not_looked_at(self, folder_and_load: tuple[Path, Load], trap: Path) -> None:
        folder, load = folder_and_load
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
            torch.save({"encoder.weight": Trap(trap)}, folder / name)
        load(folder)
        assert not trap.exists()


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 5, 200, -7])
    def test_truncated_weights(self, keep: int, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(content[:keep])
        refused(folder, load)

    def test_a_file_that_is_no_safetensors(self, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        (folder / WEIGHTS).write_bytes(b"<html>404: not found</html>" * 100)
        refused(folder, load)

    def test_no_weights(self, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        (folder / WEIGHTS).unlink()
        refused(folder, load)

    def test_weights_of_something_else(self, folder_and_load: tuple[Path, Load]) -> None:
        """Trap: weights that the file lacks are drawn at random, and the answers are noise."""
        folder, load = folder_and_load
        edit(folder, weights_digest=None)
        save_file({"tower.weight": torch.zeros(2)}, folder / WEIGHTS, metadata={"format": "pt"})
        refused(folder, load, "it lacks ", "embeddings.LayerNorm")

    def test_one_layer_is_missing(self, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        edit(folder, weights_digest=None)
        weights = load_file(folder / WEIGHTS)
        kept = {key: tensor for key, tensor in weights.items() if "layer.3.attention.self.query" not in key}
        assert len(kept) == len(weights) - 2
        save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
        refused(folder, load, "layer.3.attention.self.query")

    def test_weights_of_another_shape(self, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        edit(folder, weights_digest=None)
        weights = load_file(folder / WEIGHTS)
        name = next(key for key in weights if key.endswith("layer.2.output.dense.weight"))
        weights[name] = weights[name][:, :-3].contiguous()
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        refused(folder, load, "layer.2.output.dense.weight")

    def test_a_plain_encoder_may_lack_its_pooler(self, saved: dict[str, Path], tmp_path: Path) -> None:
        """Checkpoints of masked language models have none: it is learnt in fine-tuning."""
        folder = tmp_path / "no-pooler"
        shutil.copytree(saved["encoder"], folder)
        weights = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.startswith("pooler.")}
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        model = PonderForSequenceClassification.from_encoder(folder)
        assert torch.equal(
            model.encoder.embeddings.word_embeddings.weight, weights["embeddings.word_embeddings.weight"]
        )

    @pytest.mark.parametrize("content", ["", "{", "<html>"])
    def test_a_configuration_that_is_none(self, content: str, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        (folder / "config.json").write_text(content)
        refused(folder, load)

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        for load in (PonderForSequenceClassification.from_encoder, PonderForSequenceClassification.from_pretrained):
            refused(tmp_path, load)


class TestOneForTheOther:
    def test_a_plain_encoder_is_no_saved_model(self, saved: dict[str, Path]) -> None:
        with pytest.raises(CheckpointError, match="from_encoder"):
            PonderForSequenceClassification.from_pretrained(saved["encoder"])

    def test_a_saved_model_is_no_plain_encoder(self, saved: dict[str, Path]) -> None:
        refused(saved["model"], PonderForSequenceClassification.from_encoder, "from_pretrained")

    def test_a_configuration_with_a_recipe_of_someone_elses(self, saved: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        recipe = json.loads((folder / "config.json").read_text())["recipe"]
        for changed in ({**recipe, "prior": {"name": "oracle"}}, {"name": "palbert"}):
            edit(folder, recipe=changed)
            refused(folder, PonderForSequenceClassification.from_pretrained)

    @pytest.mark.parametrize(
        ("policy", "recipe", "default"),
        [
            ({"name": "oracle", "eyes": 3}, {}, policies.Quantile(0.5)),
            ({"name": "after", "policy": {"name": "oracle"}, "step": 2}, {}, policies.Quantile(0.5)),
            ({"name": "oracle"}, {"name": "of-someone-else"}, policies.LastStep()),
            ({"name": "oracle"}, {"name": "palbert", "lambda_head": None}, policies.LastStep()),
        ],
    )
    def test_a_policy_that_is_not_registered_here_is_named_and_the_default_taken(
        self, policy: dict[str, Any], recipe: dict[str, Any], default: Any, tmp_path: Path
    ) -> None:
        make_model("bert", recipe="vanilla" if "lambda_head" in recipe else "palbert").save_pretrained(tmp_path)
        edit(
            tmp_path,
            recipe={**json.loads((tmp_path / "config.json").read_text())["recipe"], **recipe, "policy": policy},
        )
        with pytest.warns(UserWarning, match=r"policy: no policy 'oracle' is registered here, and .* takes its place"):
            model = PonderForSequenceClassification.from_pretrained(tmp_path)
        assert model.policy == model.recipe.policy == default
        model.save_pretrained(tmp_path / "again")
        assert PonderForSequenceClassification.from_pretrained(tmp_path / "again").policy == default

    def test_a_configuration_without_an_encoder(self) -> None:
        with pytest.raises(CheckpointError, match="from_encoder"):
            PonderConfig().encoder_config()


class TestRemoteCode:
    @pytest.fixture
    def planted(self, folder_and_load: tuple[Path, Load]) -> tuple[Path, Load, Path]:
        """A folder whose configuration names code that lies beside it, which leaves a mark when it is run."""
        folder, load = folder_and_load
        mark = folder / "it-ran"
        code = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
        code += "from transformers import BertConfig as Config, BertModel as Model\n"
        (folder / "evil.py").write_text(code)
        return folder, load, mark

    AUTO_MAP = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}  # noqa: RUF012

    def test_a_known_family_is_read_with_our_own_classes(self, planted: tuple[Path, Load, Path]) -> None:
        folder, load, mark = planted
        edit(folder, auto_map=self.AUTO_MAP)
        model = load(folder).eval()
        assert type(model.encoder).__module__.startswith("transformers.")
        assert model(**make_batch(model.encoder)).logits.shape == (6, 2)
        assert not mark.exists()

    def test_an_unknown_family_is_refused(self, planted: tuple[Path, Load, Path]) -> None:
        folder, load, mark = planted
        config = json.loads((folder / "config.json").read_text())
        edit(
            folder,
            auto_map=self.AUTO_MAP,
            model_type="evil",
            encoder={**config.get("encoder", {}), "model_type": "evil"},
        )
        with pytest.raises(CheckpointError, match=str(folder)):
            load(folder)
        assert not mark.exists()

    def test_the_encoder_in_a_models_configuration(self, saved: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        (folder / "evil.py").write_text("raise AssertionError('remote code ran')\n")
        encoder = json.loads((folder / "config.json").read_text())["encoder"]
        auto_map = {name: f"{folder}--{code}" for name, code in self.AUTO_MAP.items()}
        edit(folder, encoder={**encoder, "auto_map": auto_map})
        assert PonderForSequenceClassification.from_pretrained(folder).encoder.config.model_type == "bert"
        edit(folder, encoder={**encoder, "auto_map": auto_map, "model_type": "evil"})
        refused(folder, PonderForSequenceClassification.from_pretrained)


class TestKernels:
    """Attention that is a program from elsewhere: Transformers' hub of kernels is never asked for a configuration."""

    @pytest.fixture(autouse=True)
    def _no_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def never(*args: Any, **kwargs: Any) -> None:
            raise AssertionError("a kernel was loaded")

        from transformers import modeling_utils

        monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", never)

    @pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation"])
    @pytest.mark.parametrize(
        "name", ["kernels-community/flash-attn", "someone/evil:fn", "flash_attention_2", {"": "someone/evil"}, 3]
    )
    def test_a_configuration_that_asks_for_one(self, field: str, name: Any, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        edit(folder, **{field: name})
        refused(folder, load, "program from elsewhere")

    @pytest.mark.parametrize("name", ["kernels-community/flash-attn", "flash_attention_2"])
    def test_the_encoder_in_a_models_configuration(self, name: str, saved: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        encoder = json.loads((folder / "config.json").read_text())["encoder"]
        edit(folder, encoder={**encoder, "attn_implementation": name})
        refused(folder, PonderForSequenceClassification.from_pretrained, "program from elsewhere")
        with pytest.raises(CheckpointError, match="program from elsewhere"):
            PonderConfig(encoder={**encoder, "attn_implementation": name})

    def test_what_pytorch_computes_itself_is_no_program_from_elsewhere(self, folder_and_load) -> None:
        folder, load = folder_and_load
        edit(folder, attn_implementation="eager")
        load(folder)


class TestOneSave:
    """`config.json` and `model.safetensors` are those of one save, or are refused."""

    @pytest.fixture
    def two(self, tmp_path: Path) -> tuple[Path, Path]:
        """Two saves of models that differ in policy and weights."""
        folders = tmp_path / "old", tmp_path / "new"
        for seed, folder in enumerate(folders):
            model = make_model("bert", seed=seed)
            model.policy = policies.Quantile(0.25 + seed / 2)
            model.save_pretrained(folder)
        return folders

    @pytest.mark.parametrize("file", ["config.json", WEIGHTS])
    def test_a_mixed_folder_is_refused(self, file: str, two: tuple[Path, Path]) -> None:
        # Trap: the policy of one save with the weights of another, without a word.
        old, new = two
        shutil.copy(old / file, new / file)
        refused(new, PonderForSequenceClassification.from_pretrained, "another save")

    def test_a_save_that_was_broken_off_between_the_files_is_finished(self, two: tuple[Path, Path]) -> None:
        old, new = two
        shutil.copy(new / "config.json", old / ".config.json")
        load = PonderForSequenceClassification.from_pretrained
        assert load(old).policy == policies.Quantile(0.25)  # the weights are those of before
        shutil.copy(new / WEIGHTS, old / WEIGHTS)
        assert load(old).policy == policies.Quantile(0.75)
        model = make_model("bert", seed=3)
        model.save_pretrained(old)
        assert load(old).policy == model.policy
        assert sorted(path.name for path in old.iterdir()) == FILES

    def test_a_failure_leaves_the_save_before(self, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        old, _ = two
        before = {path.name: path.read_bytes() for path in old.iterdir()}

        def stop(*args: Any) -> None:
            raise OSError(28, "No space left on device")

        for name in ("digest_of", "put_in_place"):
            with monkeypatch.context() as patched:
                patched.setattr(saving, name, stop)
                with pytest.raises(ArgumentError, match="No space left on device"):
                    make_model("bert", seed=5).save_pretrained(old)
            assert {path.name: path.read_bytes() for path in old.iterdir()} == before

    def test_shards_replace_one_file_and_the_other_way_round(self, two: tuple[Path, Path]) -> None:
        old, _ = two
        model = make_model("bert", seed=3)
        model.save_pretrained(old, max_shard_size="10KB")
        assert not (old / WEIGHTS).exists()
        assert len(list(old.glob("model-*-of-*.safetensors"))) > 1
        loaded = PonderForSequenceClassification.from_pretrained(old)
        assert torch.equal(loaded.ponder.head.state_dict()["1.weight"], model.ponder.head.state_dict()["1.weight"])
        model.save_pretrained(old)
        assert sorted(path.name for path in old.iterdir()) == FILES

    @pytest.mark.parametrize("umask", [0o022, 0o077])
    def test_files_follow_the_umask_and_others_stay(self, umask: int, tmp_path: Path) -> None:
        (tmp_path / "tokenizer.json").write_text("{}")
        before = os.umask(umask)
        try:
            make_model("bert").save_pretrained(tmp_path)
        finally:
            os.umask(before)
        assert {path.name for path in tmp_path.iterdir()} == {*FILES, "tokenizer.json"}
        for name in ("config.json", WEIGHTS):
            assert (tmp_path / name).stat().st_mode & 0o777 == 0o666 & ~umask

    def test_other_processes_than_the_main_one_write_nothing(self, tmp_path: Path) -> None:
        make_model("bert").save_pretrained(tmp_path / "model", is_main_process=False)
        assert not (tmp_path / "model" / "config.json").exists()

    def test_weights_changed_on_purpose_load_without_the_digest(self, two: tuple[Path, Path]) -> None:
        old, new = two
        shutil.copy(new / WEIGHTS, old / WEIGHTS)
        edit(old, weights_digest=None)
        assert PonderForSequenceClassification.from_pretrained(old).policy == policies.Quantile(0.25)

    def test_the_digest_is_of_the_files_and_not_of_the_configuration(self, two: tuple[Path, Path]) -> None:
        old, _ = two
        assert "weights_digest" in json.loads((old / "config.json").read_text())
        model = PonderForSequenceClassification.from_pretrained(old)
        assert "weights_digest" not in model.config.to_dict()


class TestSizes:
    """Numbers in a configuration that would take all memory, or for ever."""

    @pytest.mark.parametrize("size", [10**12, 10**5, 0, -1])
    @pytest.mark.parametrize("field", ["hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"])
    def test_of_an_encoder(self, field: str, size: int, folder_and_load: tuple[Path, Load]) -> None:
        folder, load = folder_and_load
        config = json.loads((folder / "config.json").read_text())
        if "encoder" in config:
            edit(folder, encoder={**config["encoder"], field: size})
        else:
            edit(folder, **{field: size})
        refused(folder, load)

    @pytest.mark.parametrize("field", ["layers", "history"])
    def test_of_a_lambda_head(self, field: str, saved: dict[str, Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        recipe = json.loads((folder / "config.json").read_text())["recipe"]
        edit(folder, recipe={**recipe, "lambda_head": {**recipe["lambda_head"], field: 10**12}})
        refused(folder, PonderForSequenceClassification.from_pretrained)

    def test_a_smaller_number_of_layers_drops_weights(self, saved: dict[str, Path], tmp_path: Path) -> None:
        # Trap: layers that the configuration does not name are left out without a word.
        folder = tmp_path / "model"
        shutil.copytree(saved["model"], folder)
        encoder = json.loads((folder / "config.json").read_text())["encoder"]
        edit(folder, encoder={**encoder, "num_hidden_layers": 3})
        refused(folder, PonderForSequenceClassification.from_pretrained, "it has no place for")
