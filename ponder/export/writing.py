"""`onnx`: a model as a folder of graphs that stop early, with its policy as JSON; `quantized`: one in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ponder._utils.certificates import without_certificates
from ponder._utils.columns import EXPORT_REPORT, fitted_columns
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
from ponder._utils.modes import evaluating
from ponder._utils.validation import check_int
from ponder.engine.model import EarlyExitModel
from ponder.errors import ArgumentError, ArgumentTypeError, CheckpointError, PonderError
from ponder.export.examples import check_texts
from ponder.export.graphs import libraries
from ponder.export.manifest import FILE as MANIFEST
from ponder.export.manifest import Manifest
from ponder.export.policies import ModelSpec, read_policy
from ponder.export.quantizing import quantize
from ponder.export.ranges import ranges_of
from ponder.export.sessions import Graph
from ponder.export.smoothing import Channels
from ponder.export.source import source_of
from ponder.export.tokenizing import TOKENIZER, copy_tokenizer
from ponder.export.tracing import Tracer

__all__ = ["copied", "onnx", "quantized"]


def onnx(
    model: Any,
    folder: str | Path,
    int8: bool | Literal["all"] = False,
    *,
    example: Any = None,
    tokenizer: Any = None,
    max_length: int | None = None,
    calibration: Any = None,
) -> Path:
    """Write a model as ONNX graphs, for `ponder.export.OnnxModel`.

    Stem, steps (one graph where weights are shared), readout, heads and Lambda head are graphs of their own, so that
    rows leave the batch between steps. Where all steps share their weights, and a row has one answer, `model.onnx` is
    one graph besides, which answers one row and stops by itself; a policy of your own that cannot be traced leaves it
    out, with a warning. Each graph is run and compared with PyTorch before anything is promised.

    Args:
        model: A `ponder.PonderWrapper`, or a model of `ponder.integrations.transformers`. It is exported in evaluation
            mode, with its policy; its modules have their modes again afterwards.
        folder: Made where it does not exist; files of an earlier export there are replaced.
        int8: Quantise the matrix products of the steps to 8 bits, but for those that narrow (the second of a
            feed-forward block), which some encoders do not bear; ``"all"`` quantises these too. Outputs move, so choose
            the threshold again: `ponder.export.certify`.
        example: Inputs of a call, or a pair (inputs, context), batch first, from which shapes and types are read; not
            for models of Transformers, which bring their own.
        tokenizer: The tokenizer, so that texts can be answered: a `tokenizer.json`, a folder with one, or a fast
            tokenizer of Transformers; that of the encoder's folder where None. Folders of Transformers are read by
            it, so that texts become the tokens that they become there.
        max_length: The number of tokens that texts are cut to. Where None, what model and tokenizer take; 512 where a
            model of Transformers and its tokenizer have no limit.
        calibration: With `int8`, some hundred examples (texts or arrays, as for `OnnxModel.predict`) like those to
            come, by which the ranges of activations are fixed: no answer depends on the rows beside it then. Where
            None, each call looks for its own.

    Returns:
        The folder.

    Raises:
        ArgumentError: A policy or a task that cannot be expressed without PyTorch (the message says which can), a
            folder that cannot be written or has a tokenizer of something else, calibration examples that cannot be
            read, or an option that has no effect.
        PonderError: onnx or onnxscript is not installed (the extra ``onnx``), or a part cannot be traced.

    Example:
        >>> folder = ponder.export.onnx(model, "exported", example=torch.randn(2, 8))
        >>> sorted(path.name for path in folder.iterdir())
        ['export.json', 'head.onnx', 'model.onnx', 'readout.onnx', 'step_1.onnx']
    """
    if int8 is not False:
        _check_int8(int8)
    if calibration is not None and int8 is False:
        raise ArgumentError(
            "calibration",
            expected="None for an export in fp32, whose activations need no ranges",
            got="examples",
            remedy="Pass int8=True with them, or leave them out.",
        )
    if max_length is not None:
        check_int("max_length", max_length)
    libraries()  # before anything is written
    source = source_of(model, example)
    _check(source.model, int8=bool(int8))
    with _exported(folder) as made:
        of_texts = copy_tokenizer(source, tokenizer, max_length, made)
        _check_tokenizer(made, Path(folder))
        with evaluating(source.model), torch.no_grad():
            manifest = replace(Tracer(source, made, bool(int8)).write(), **of_texts)
        check_texts(manifest)
        read_policy(manifest.policy).check(ModelSpec.of(manifest))
        _write(manifest, made)
        if int8:
            _quantize(manifest, made, int8, None if calibration is None else ranges_of(made, calibration))
    return Path(folder)


def quantized(
    export: str | Path, folder: str | Path, int8: Literal[True, "all"] = True, *, calibration: Any = None
) -> Path:
    """Write an export again with its steps in 8 bits: as `onnx` does with `int8`, but nothing is traced anew.

    Args:
        export: A folder that `onnx` wrote, in fp32; it stays as it is, to be compared with.
        folder: Made where it does not exist.
        int8: Which matrix products of the steps are quantised, as for `onnx`.
        calibration: Some hundred examples by which the ranges of activations are fixed, as for `onnx`.

    Returns:
        The new folder.

    Raises:
        ArgumentTypeError: `export` is a model, say, and no folder.
        ArgumentError: The export is not in fp32, or is the same folder; or calibration examples that cannot be read.
        CheckpointError: `export` is the folder of no export, or of a broken one.

    Example:
        >>> fp32 = ponder.export.onnx(model, "exported", example=torch.randn(2, 8))
        >>> int8 = ponder.export.quantized(fp32, "exported-int8")
        >>> ponder.export.OnnxModel(int8).manifest.int8
        True
    """
    if int8 is not True and int8 != "all":
        raise ArgumentError("int8", expected="True or 'all'", got=repr(int8), remedy="The export itself is in fp32.")
    given: object = export
    if not isinstance(given, str | Path):
        remedy = "Export the model first, with ponder.export.onnx, or give that int8=True."
        raise ArgumentTypeError("export", expected="the folder of an export", got=type(given).__name__, remedy=remedy)
    source, manifest = Path(export), Manifest.read(Path(export))
    if manifest.int8 or any(spec.dtype == "float64" for spec in manifest.hidden):
        kind = "8 bits" if manifest.int8 else "float64"
        raise ArgumentError("export", expected="one in fp32", got=f"{source}, in {kind}", remedy="Export it in fp32.")
    if Path(folder).resolve() == source.resolve():
        raise ArgumentError("folder", expected="another than that of the export", got=str(folder), remedy="Name a new.")
    channels = None if calibration is None else ranges_of(source, calibration)
    manifest = replace(manifest, single=None, columns=fitted_columns(source))
    with _exported(folder) as made:
        for name in manifest.files():
            (made / name).write_bytes(_bytes_of(source / name))
        _quantize(manifest, made, int8, channels)
    return Path(folder)


def copied(export: Path, folder: Path) -> Path:
    """Write an export again as it is, whole or not at all; files of an earlier one there are replaced."""
    with _exported(folder) as made:
        for name in (*Manifest.read(export).files(), MANIFEST):
            (made / name).write_bytes(_bytes_of(export / name))
    return folder


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}).") from error


def _check_int8(int8: object) -> None:
    if int8 is not True and int8 != "all":
        raise ArgumentError("int8", expected="True, False or 'all'", got=repr(int8), remedy="Pass int8=True, say.")


@contextmanager
def _exported(folder: str | Path) -> Iterator[Path]:
    """Where an export is made: its files come into `folder` when all are there, and those of an earlier one go."""
    new, target = not Path(folder).exists(), make_folder(folder)
    try:
        with locked(target), part_folder(target / "export") as made:
            remove_leftovers(target)
            yield made
            _put(made, target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        if new and not any(target.iterdir()):
            target.rmdir()


def _put(made: Path, target: Path) -> None:
    """Move a whole export; without its description, which goes first and comes last, a folder is none."""
    _check_tokenizer(made, target)
    old: list[str] = []
    with suppress(CheckpointError):
        old = Manifest.read(target).files()
    for name in (MANIFEST, EXPORT_REPORT, *old):  # the report is about what lay there
        (target / name).unlink(missing_ok=True)
    for name in (*Manifest.read(made).files(), MANIFEST):
        put_in_place(made / name, target / name)


def _check_tokenizer(made: Path, target: Path) -> None:
    """Refuse to write over a tokenizer that is of no export: a later one without texts would take it away."""
    own, other, named = made / TOKENIZER, target / TOKENIZER, None
    with suppress(CheckpointError):
        named = read_json(target / MANIFEST).get("tokenizer")
    if named is None and own.exists() and other.exists() and own.read_bytes() != other.read_bytes():
        raise ArgumentError(
            "folder",
            expected="one without a tokenizer of something else, which the export's would replace",
            got=f"{target}, with the {TOKENIZER} of a saved model, say",
            remedy="Name another, such as a new folder in this one.",
        )


def _check(model: EarlyExitModel, *, int8: bool) -> None:
    """Refuse what cannot be answered without PyTorch."""
    read_policy(model.policy.to_dict())
    dtypes = (torch.float32,) if int8 else (torch.float32, torch.float64)  # nothing else is quantised
    for name, parameter in model.named_parameters():
        if parameter.dtype not in dtypes or parameter.device.type != "cpu":
            raise ArgumentError(
                "model",
                expected="weights in float32 on the CPU, where exports are written and checked",
                got=f"{name} in {parameter.dtype} on {parameter.device}",
                remedy="Export a copy: copy.deepcopy(model).cpu().float().",
            )


def _quantize(
    manifest: Manifest, folder: Path, int8: Literal[True, "all"], channels: Sequence[Channels] | None
) -> None:
    """Quantise the graphs of the steps where they lie."""
    each: Sequence[Channels | None] = [None] * len(manifest.steps) if channels is None else channels
    made = 0
    for name, own in zip(manifest.steps, each, strict=True):
        trial = _Trial(manifest)
        runs = trial.outputs(folder / name) is not None
        made += quantize(folder / name, everything=int8 == "all", channels=own)
        if runs and trial.outputs(folder / name) is None:
            raise PonderError(f"{name} does not run in 8 bits: export with int8=False, and please report this model.")
    if not made:
        raise PonderError(
            "no step has a matrix product that was quantised: int8='all' takes those that narrow too, int8=False none."
        )
    bare = without_certificates(manifest.policy)  # a promise is about the model that was certified
    _write(replace(manifest, int8=True, policy=bare, weights=None), folder)


class _Trial:
    """Two rows of ones, on which a graph of a step shows that it runs."""

    def __init__(self, manifest: Manifest) -> None:
        specs = (*manifest.hidden, *manifest.context)
        self._arrays = {spec.name: np.ones([size or 2 for size in spec.shape], dtype=spec.dtype) for spec in specs}
        self._arrays["index"] = np.ones(2, dtype=np.int64)
        for name, array in self._arrays.items():
            if name.removeprefix("context.") == manifest.mask:
                array.fill(manifest.real)

    def outputs(self, path: Path) -> dict[str, Any] | None:
        """What the graph gives, by name; None where it fails, or gives NaN."""
        try:
            found = Graph(path, threads=1)(self._arrays)
        except Exception:  # onnxruntime's own errors have no common base
            return None
        finite = all(np.isfinite(array).all() for array in found.values() if array.dtype.kind == "f")
        return found if finite else None


def _write(manifest: Manifest, folder: Path) -> None:
    sizes = {name: (folder / name).stat().st_size for name in manifest.files()}
    digests = {name: digest_of(folder / name) for name in sizes}
    replace(manifest, sizes=sizes, digests=digests).write(folder)
