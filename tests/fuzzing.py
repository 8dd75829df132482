"""Damage of files, drawn from a seed: every kind that a disk, an editor, or someone who means harm could do to them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    7,
    10**12,
    10**400,
    -0.5,
    1e308,
    float("nan"),
    float("-inf"),
    "",
    "x" * 10_000,
    "kernels-community/flash-attn",
    "../../etc/passwd",
    [],
    [[]],
    {},
    {"name": "last-step"},
    [1, "a", None],
    b"deep",  # stands for something nested 300 deep
)


def damage(folder: Path, draw: random.Random) -> str:
    """Damage one file of a folder, and tell how."""
    read = (path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))  # no card, no code
    path = draw.choice(sorted(read))
    kinds = [cut, flip, insert] if path.suffix == ".safetensors" else [cut, flip, change, change, change, change]
    if path.suffix == ".safetensors":
        kinds += [header, header]
    kind = draw.choice(kinds)
    return f"{path.name}: {kind.__name__} {kind(path, draw)}"


def cut(path: Path, draw: random.Random) -> str:
    """Leave the first bytes only."""
    content = path.read_bytes()
    keep = draw.randrange(len(content))
    path.write_bytes(content[:keep])
    return f"to {keep}"


def flip(path: Path, draw: random.Random) -> str:
    """Change a few bytes."""
    content = bytearray(path.read_bytes())
    places = [
        draw.randrange(min(len(content), draw.choice([16, 2000, len(content)]))) for _ in range(draw.choice([1, 4]))
    ]
    for place in places:
        content[place] = draw.randrange(256)
    path.write_bytes(content)
    return f"at {places}"


def insert(path: Path, draw: random.Random) -> str:
    """Put bytes where none were."""
    content = path.read_bytes()
    place = draw.randrange(len(content))
    path.write_bytes(content[:place] + bytes(draw.randrange(256) for _ in range(8)) + content[place:])
    return f"at {place}"


def change(path: Path, draw: random.Random) -> str:
    """Give fields of a JSON file other values, or take them out."""
    data = json.loads(path.read_text())
    told = []
    for _ in range(draw.choice([1, 1, 2])):
        told.append(_change(data, draw))
    path.write_text(json.dumps(data).replace('"deep"', deep(draw)))
    return ", ".join(told)


def header(path: Path, draw: random.Random) -> str:
    """Change what a safetensors file says of one of its tensors."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    data = json.loads(content[8 : 8 + size])
    told = _change(data, draw)
    text = json.dumps(data).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return told


def deep(draw: random.Random) -> str:
    """Something nested 300 deep, as JSON."""
    kind = draw.choice(["list", "after", "all"])
    if kind == "list":
        return "[" * 300 + "]" * 300
    before, after = {
        "after": ('{"name": "after", "step": 1, "policy": ', "}"),
        "all": ('{"name": "all", "policies": [{"name": "last-step"}, ', "]}"),
    }[kind]
    return before * 300 + '{"name": "last-step"}' + after * 300


def _change(data: Any, draw: random.Random) -> str:
    """Walk down to some field, and change it."""
    path = []
    while True:
        keys = list(data) if isinstance(data, dict) else list(range(len(data)))
        key = draw.choice(keys)
        path.append(str(key))
        if isinstance(data[key], dict | list) and data[key] and draw.random() < 0.8:
            data = data[key]
            continue
        value = draw.choice(VALUES)
        if isinstance(data, dict) and draw.random() < 0.1:
            del data[key]
            return f"{'.'.join(path)} removed"
        data[key] = value.decode() if isinstance(value, bytes) else value
        return f"{'.'.join(path)} = {str(value)[:40]}"
