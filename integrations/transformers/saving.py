"""Saves of Transformers' two files, `config.json` and `model.safetensors`, as one: old or new, and never mixed.

Transformers fixes both names, so neither file can name the other as `ponder.save` does. Instead, the configuration
holds the digests of the weights it was saved with. A save first lays the new configuration beside the old one, under a
hidden name, then swaps the weights, then gives the configuration its own name. Whoever is killed in between leaves a
folder in which exactly one of the two configurations belongs to the weights, and that one is read.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ponder._utils.files import (
    digest_of,
    locked,
    make_folder,
    part_folder,
    put_in_place,
    read_json,
    remove_leftovers,
    unwritable,
)
from ponder.errors import CheckpointError

__all__ = ["DIGESTS", "read_config", "save_whole"]

DIGESTS = "weights_digest"
"""The field of `config.json` with the digest of each file of weights, by name."""

_CONFIG, _NEXT = "config.json", ".config.json"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?")


def save_whole(
    write: Callable[[Path], object],
    folder: str | os.PathLike[str],
    beside: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Have `write` make the files in a folder of their own, and swap them into `folder`.

    Then `beside` writes what belongs to them, before another save can come between.

    A model in several files of weights (`max_shard_size`) has more than one moment at which it can be killed: what is
    mixed then is not repaired, but refused when it is loaded.

    Raises:
        ArgumentError: The folder cannot be written.
    """
    folder = make_folder(folder)
    try:
        with locked(folder), part_folder(folder / "save") as part:
            _finish(folder)
            remove_leftovers(folder)
            made = part / (folder.resolve().name or "model")  # Transformers names a repository on the hub after it
            write(made)
            names = sorted(path.name for path in made.iterdir() if path.name != _CONFIG)
            weights = [name for name in names if _WEIGHTS.fullmatch(name)]
            config = {**read_json(made / _CONFIG), DIGESTS: {name: digest_of(made / name) for name in weights}}
            (made / _CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            cards = [name for name in names if name.endswith(".md")]  # a killed save leaves no card of another model
            put_in_place(made / _CONFIG, folder / _NEXT)
            for name in cards:
                (folder / name).unlink(missing_ok=True)
            for name in names:
                if name not in cards:
                    put_in_place(made / name, folder / name)
            for path in folder.iterdir():
                if _WEIGHTS.fullmatch(path.name) and path.name not in weights:
                    path.unlink()
            os.replace(folder / _NEXT, folder / _CONFIG)
            for name in cards:
                put_in_place(made / name, folder / name)
            beside(folder)
    except SafetensorError as error:  # a full disk, in the words of that library
        raise unwritable(folder, OSError(str(error))) from error
    except OSError as error:
        raise unwritable(folder, error) from error


def read_config(folder: Path) -> tuple[dict[str, Any], Path]:
    """The configuration that belongs to the weights in a folder, and where it lies.

    Raises:
        CheckpointError: There is none, or it was saved with other weights.
    """
    config = read_json(folder / _CONFIG) if (folder / _CONFIG).exists() or not (folder / _NEXT).exists() else None
    if config is not None and _belongs(config, folder):
        return config, folder / _CONFIG
    if (folder / _NEXT).exists() and _belongs(later := read_json(folder / _NEXT), folder):
        return later, folder / _NEXT
    raise CheckpointError(
        f"{folder}: expected config.json and model.safetensors of one save; got weights that are damaged, or those of "
        f"another save than the configuration's. Save again; if you changed the weights on purpose, remove "
        f"{DIGESTS!r} from config.json."
    )


def _belongs(config: dict[str, Any], folder: Path) -> bool:
    """Whether the weights are those that a configuration was saved with; one that does not say is believed."""
    digests = config.get(DIGESTS)
    if digests is None:
        return True
    if not isinstance(digests, dict) or not all(_WEIGHTS.fullmatch(name) for name in digests):
        return False
    there = {path.name for path in folder.iterdir() if _WEIGHTS.fullmatch(path.name)}
    return there == digests.keys() and all(digest_of(folder / name) == digest for name, digest in digests.items())


def _finish(folder: Path) -> None:
    """Bring a save to its end whose process was killed after it had swapped the weights."""
    if (folder / _NEXT).exists():
        try:
            _, found = read_config(folder)
            os.replace(found, folder / _CONFIG)
        except CheckpointError:
            pass  # what is saved now replaces it
        (folder / _NEXT).unlink(missing_ok=True)
