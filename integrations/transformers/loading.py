"""Weights from files: from safetensors only, all of them there, and each of the shape that the model has.

What a configuration says is looked at before anything is built from it: sizes of 10¹² would fill the memory, and some
kinds of attention are programs that Transformers fetches from its hub of kernels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from ponder._utils.files import locked
from ponder.errors import CheckpointError
from ponder.integrations.transformers.encoders import encoder_of
from ponder.integrations.transformers.saving import read_config

__all__ = ["check_attention", "check_reached", "load_encoder", "load_whole"]

Source = str | PathLike[str]
_ATTENTION = (None, "eager", "sdpa", "flex_attention")  # what PyTorch computes itself
_MOST_LAYERS = 1000
_ROOM = 10**8  # weights that a file may lack before anything is allocated for them


def load_encoder(
    source: Source,
    dtype: torch.dtype | str = torch.float32,
    attn_implementation: str | None = None,
    device_map: Any = None,
) -> PreTrainedModel:
    """A bare encoder, from a folder or the hub (of an encoder-decoder, its encoder); never remote code."""
    asked = {"attn_implementation": attn_implementation, "device_map": device_map}
    chosen = {name: value for name, value in asked.items() if value is not None}
    model: PreTrainedModel = load_whole(
        AutoModel.from_pretrained,
        str(source),
        "encoder",
        "Pass a folder that holds both, or, with a network, a hub name such as 'albert-base-v2' "
        "(a saved model of this package is read by its from_pretrained).",
        _plain_config,
        lambda config: AutoModel.from_config(config, trust_remote_code=False),
        exact=False,
        trust_remote_code=False,
        dtype=dtype,
        **chosen,
    )[0]
    return encoder_of(model)


def load_whole(
    load: Callable[..., Any],
    source: Source | None,
    what: str,
    remedy: str,
    make_config: Callable[..., Any],
    build: Callable[[Any], nn.Module],
    *,
    exact: bool = True,
    **arguments: Any,
) -> tuple[Any, dict[str, Any]]:
    """Call `load`, a `from_pretrained` of Transformers, and refuse what it would fill up with random weights.

    Args:
        load: Called with `source` and `arguments`.
        source: A folder, or a name on the hub.
        what: What is loaded, for messages.
        remedy: What to do, a full sentence.
        make_config: A function from the fields of `config.json` to a configuration.
        build: A function from a configuration to a model, whose shapes are compared with those in the file.
        exact: Whether weights without a place in the model are a fault; a plain encoder's file may hold heads.
        arguments: Arguments of `load`; with `ignore_mismatched_sizes`, other shapes are the caller's wish.

    Returns:
        The model, and Transformers' loading information.

    Raises:
        CheckpointError: Nothing is there, it is damaged, it lacks weights, or it was saved in two halves. Only a pooler
            may be missing: checkpoints of masked language models have none, and fine-tuning trains it.
    """
    allowed = bool(arguments.get("ignore_mismatched_sizes", False))
    always = {"use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    folder = None if source is None or not Path(source).is_dir() else Path(source) / arguments.get("subfolder", "")
    try:
        if folder is None:
            if source is not None:
                check_reached(str(source), _of_the_hub(arguments))
                check_attention(PretrainedConfig.get_config_dict(source, **_of_the_hub(arguments))[0])
            model, info = load(source, **{**arguments, **always})
        else:
            with locked(folder, shared=True):
                before = _stamps(folder)
                own = _examined(folder, arguments, make_config, build, compare=not allowed)
                model, info = load(source, **{**arguments, **own, **always})
                if _stamps(folder) != before:  # only where there are no locks
                    raise CheckpointError(f"{folder}: another process saves there at the moment. Load it again.")
    except (ImportError, torch.OutOfMemoryError):  # of the machine, and not of the files
        raise
    except CheckpointError as error:
        if str(source) in str(error) and remedy in str(error):
            raise
        raise _refusal(what, source, str(error), remedy) from error
    except Exception as error:  # whatever Transformers stumbles over in a file
        raise _refusal(what, source, f"{type(error).__name__}: {error}", remedy) from error
    unknown = sorted(info["unexpected_keys"]) if exact and not allowed else []
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key.split("."))
    other = [] if allowed else sorted(key for key, *_ in info["mismatched_keys"])
    for fault, keys in (("it lacks", missing), ("of another shape are", other), ("it has no place for", unknown)):
        if keys:
            raise _refusal(what, source, f"{fault} {len(keys)} weights, {', '.join(keys[:3])} …", remedy)
    return model, info


def check_reached(source: str, asked: Mapping[str, Any] | None = None) -> None:
    """Refuse at once a folder that is not there, or a name of a hub that cannot be reached.

    Transformers would take the first for the second, and ask the hub for half a minute before it says so.

    Args:
        source: What is no folder.
        asked: Arguments of `from_pretrained` about the hub: `revision`, `subfolder`, `local_files_only` and the like.

    Raises:
        CheckpointError: `source` is a file, no possible name, or no hub is in reach. The message is half a sentence.
    """
    if Path(source).exists():
        raise CheckpointError("it is a file")
    if re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", source) is None:
        raise CheckpointError("there is no such folder")
    asked = asked or {}
    file = "/".join(filter(None, (asked.get("subfolder"), "config.json")))
    at = {name: asked[name] for name in ("cache_dir", "revision") if asked.get(name) is not None}
    if asked.get("local_files_only") or try_to_load_from_cache(source, file, **at) is not None:
        return
    try:
        get_hf_file_metadata(hf_hub_url(source, file, revision=at.get("revision")), token=asked.get("token"))
    except HfHubHTTPError:  # an answer: Transformers says what it means
        return
    except Exception as error:  # of the network, whichever library it goes through
        why = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".")
        raise CheckpointError(f"there is no such folder here, and no hub of models can be reached; {why}") from error


def check_attention(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose attention, or that of a part of it, is a program from elsewhere.

    Transformers fetches what is named ``"owner/kernel"`` from its hub of kernels, and does so for Flash Attention where
    that is not installed. Whoever wants these passes `attn_implementation` to the call that loads the model.
    """
    for key, value in _fields(config):
        if "attn_implementation" in key or "experts_implementation" in key:
            for name in value.values() if isinstance(value, Mapping) else [value]:
                if name not in _ATTENTION:
                    raise CheckpointError(
                        f"{key}: expected one of {', '.join(map(repr, _ATTENTION))} in a saved configuration; got "
                        f"{name!r}, which may be a program from elsewhere. Remove it; attn_implementation=… may be "
                        "passed when the model is loaded."
                    )


def _examined(
    folder: Path,
    arguments: Mapping[str, Any],
    make_config: Callable[..., Any],
    build: Callable[[Any], nn.Module],
    *,
    compare: bool,
) -> dict[str, Any]:
    """Look at the files of a folder before anything is built; gives arguments for Transformers."""
    fields, place = read_config(folder)
    check_attention(fields)
    shapes = _shapes(folder, arguments.get("variant"))
    _check_counts(fields, max((max(shape, default=0) for shape in shapes.values()), default=0))
    own = {}
    if place.name != "config.json":
        if "config" in arguments:
            raise CheckpointError(
                f"{folder}: a save was broken off here. Load it by PonderForSequenceClassification.from_pretrained, "
                "without a configuration of your own."
            )
        own = {"config": make_config(**fields)}
    if compare and shapes and "config" not in arguments:
        with torch.device("meta"):
            model = build(make_config(**fields))
        _check_shapes({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}, shapes)
    return own


def _shapes(folder: Path, variant: str | None) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors in the safetensors files of a folder."""
    shapes = {}
    for path in sorted(folder.glob("model*.safetensors" if variant is None else f"model*{variant}*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            shapes.update({name: tuple(file.get_slice(name).get_shape()) for name in file.keys()})  # noqa: SIM118
    return shapes


def _check_counts(fields: Mapping[str, Any], widest: int) -> None:
    """Refuse a number of layers or labels that would take forever to build, whatever is in the file."""
    for key, value in _fields(fields):
        if not isinstance(value, int):
            continue
        if key.startswith("num_") and ("layer" in key or "group" in key) and (isinstance(value, bool) or value < 1):
            raise CheckpointError(f"{key}: expected a whole number ≥ 1; got {value}.")
        most = _MOST_LAYERS if "layer" in key or "group" in key else max(_MOST_LAYERS, widest)
        if value > most and ("layer" in key or "group" in key or key.startswith(("num_", "n_"))):
            raise CheckpointError(
                f"{key}: expected a whole number ≤ {most}, by the shapes of the weights; got {value}."
            )


def _check_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse weights of another shape, or too many that are not there, before memory is taken for them."""
    lacking = 0
    for key, shape in expected.items():
        names = [name for name in found if name == key or name.endswith(f".{key}")]
        if names and all(found[name] != shape for name in names):
            raise CheckpointError(f"of another shape are {key}, which has {found[names[0]]} for {shape}")
        lacking += 0 if names else torch.Size(shape).numel()
    if lacking > _ROOM:
        raise CheckpointError(f"it lacks {lacking} numbers that the configuration promises")


def _fields(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of a nested configuration with its name."""
    waiting = [(key, value)]
    while waiting:
        key, value = waiting.pop()
        yield key, value
        if isinstance(value, Mapping):
            waiting.extend((str(name), item) for name, item in value.items())
        elif isinstance(value, list | tuple):
            waiting.extend((key, item) for item in value)


def _plain_config(model_type: str, **fields: Any) -> PretrainedConfig:
    """The configuration of an encoder, and not of a model of this package, which Auto classes know too."""
    if model_type == "ponder":
        raise CheckpointError("it holds a model that exits early, and no plain encoder")
    config: PretrainedConfig = AutoConfig.for_model(model_type, **fields)
    return config


def _of_the_hub(arguments: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
    return {name: arguments[name] for name in names if name in arguments}


def _stamps(folder: Path) -> list[tuple[str, int, int]]:
    """What changes when another process saves into a folder."""
    names = ("config.json", ".config.json", "model.safetensors", "model.safetensors.index.json")
    stats = [(name, (folder / name).stat()) for name in names if (folder / name).exists()]
    return [(name, stat.st_mtime_ns, stat.st_ino) for name, stat in stats]


def _refusal(what: str, source: Source | None, fault: str, remedy: str) -> CheckpointError:
    where = "folder" if source is not None and Path(source).exists() else "hub name or folder"
    first = fault.strip().splitlines()[0].rstrip(".")  # Transformers goes on for a paragraph
    return CheckpointError(
        f"{what}: expected a {where} with config.json and model.safetensors; got {str(source)!r} ({first}). {remedy}"
    )
