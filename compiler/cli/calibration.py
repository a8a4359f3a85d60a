"""Calibration inputs of commands: an .npz file of stacked samples, or a folder of files, each a batch.

x  f32[64, 3, 32, 32]    64 samples along axis 0: the model takes x f32[batch, 3, 32, 32]
h  f32[2, 64, 128]       along axis 1: the model takes h f32[2, batch, 128]
sr i64[]                 the same in every batch: the model has no batch there
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.cli.inputs import Arrays, check_arrays, read_arrays
from tersor.cli.models import naming
from tersor.errors import InvalidOption

if TYPE_CHECKING:
    from tersor.ir import Graph, Value

BATCH = 8  # Samples of a file that run at once, where the model leaves the number open.
Axes = dict[str, int | None]  # Along which samples are stacked; None: the array is no stack.


def read_calibration(
    path: Path,
    model: Path,
    batch: int | None = None,
    allow_hf_cache: bool = False,
    trust: bool = False,
) -> list[Arrays]:
    """The batches for a model.

    Names, dtypes and shapes are checked here for ONNX files; what else is a model has to be traced
    first, and ``compile`` checks the names after that.

    Args:
        path: an .npz file of samples, or a folder of .npz files, in the order of their names.
        batch: samples that run at once; None: BATCH of a file, and of a folder's files all of each.

    Raises:
        InvalidOption, InvalidModel: what is wrong with a file or the model.
    """
    files = _files(path)
    graph = None
    if model.is_file():
        from tersor.frontends import load_model

        with naming(model):
            graph = load_model(model, allow_hf_cache=allow_hf_cache, trust=trust).graph
    found: list[Arrays] = []
    for file in files:
        arrays = read_arrays(file)
        if path.is_dir() and batch is None:
            if graph is not None:
                check_arrays(arrays, graph, file)
            found.append(arrays)
        else:
            found += batches(arrays, file, graph, batch)
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.npz"))
    if not files:
        raise InvalidOption(f"{path}: the folder holds no .npz files")
    return files


def batches(
    arrays: Mapping[str, np.ndarray], where: Path, graph: Graph | None, batch: int | None = None
) -> list[Arrays]:
    """Stacked samples in batches of ``batch`` (the last may be smaller), or of as many as the model takes.

    Raises:
        InvalidOption: the arrays are not what the model takes, hold different numbers of samples, none,
            or no whole batches.
    """
    if graph is None:
        axes: Axes = {name: 0 if array.ndim else None for name, array in arrays.items()}
        fixed = None
    else:
        axes = _sample_axes(arrays, graph)
        check_arrays(arrays, graph, where, axes)
        fixed = _fixed(graph, axes)
    counts = {name: arrays[name].shape[axis] for name, axis in axes.items() if axis is not None}
    for name, count in counts.items():
        if not count:
            raise InvalidOption(f"{where}: array {name!r} holds no samples along axis {axes[name]}")
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{n} {count} (axis {axes[n]})" for n, count in counts.items())
        raise InvalidOption(f"{where}: arrays hold different numbers of samples: {told}")
    if not counts:
        return [dict(arrays)]
    total = next(iter(counts.values()))
    if fixed is not None and (total % fixed or batch not in (None, fixed)):
        wrong = f"{total} samples" if total % fixed else f"batches of {batch}"
        raise InvalidOption(
            f"{where}: {wrong} are no whole batches of {fixed}, which is what the model takes at once"
        )
    step = fixed or batch or BATCH
    return [_cut(arrays, axes, start, start + step) for start in range(0, total, step)]


def _cut(arrays: Mapping[str, np.ndarray], axes: Axes, start: int, stop: int) -> Arrays:
    found = {}
    for name, array in arrays.items():
        axis = axes[name]
        at = None if axis is None else (*[slice(None)] * axis, slice(start, stop))
        found[name] = array if at is None else array[at]
    return found


def _sample_axes(arrays: Mapping[str, np.ndarray], graph: Graph) -> Axes:
    """Where each array that the model takes has its samples."""
    batch = _batch_name(graph)
    values = {v.name: v for v in graph.inputs if v.name in arrays}
    axes = {name: _own_axis(value, arrays[name], batch) for name, value in values.items()}
    counts = {arrays[name].shape[axis] for name, axis in axes.items() if axis is not None}
    for name, value in values.items():
        # An open dim of another name may be the batch all the same.
        if axes[name] is None and len(counts) == 1:
            axes[name] = _like_axis(value, arrays[name], next(iter(counts)))
    return axes


def _batch_name(graph: Graph) -> str | None:
    """The first dim that is the first of an input and open."""
    from tersor.analysis.match import dims
    from tersor.ir.dims import symbols

    for value in graph.inputs:
        for dim in (dims(value) or ())[:1]:
            if symbols(dim) == {str(dim)}:
                return str(dim)
    return None


def _own_axis(value: Value, array: np.ndarray, batch: str | None) -> int | None:
    """By the type of the input alone: the axis of the batch; of a fixed shape, that in which the array is
    longer."""
    from tersor.analysis.match import dims

    shape = dims(value)
    if shape is None:
        return 0 if array.ndim else None
    if len(shape) != array.ndim:
        return None  # Which is an error that is told elsewhere.
    for axis, dim in enumerate(shape):
        if not isinstance(dim, int) and str(dim) == batch:
            return axis
    if not all(isinstance(dim, int) for dim in shape):
        return None
    longer = [axis for axis, dim in enumerate(shape) if array.shape[axis] != dim]
    return longer[0] if len(longer) == 1 else None


def _like_axis(value: Value, array: np.ndarray, count: int) -> int | None:
    """The first open axis that holds ``count`` of something."""
    from tersor.analysis.match import dims

    for axis, dim in enumerate(dims(value) or ()):
        if not isinstance(dim, int) and axis < array.ndim and array.shape[axis] == count:
            return axis
    return None


def _fixed(graph: Graph, axes: Axes) -> int | None:
    """How many samples the model takes at once, where its inputs say so; None where it is open, or they
    do not agree."""
    from tersor.analysis.match import dims

    found = set()
    for value in graph.inputs:
        axis, shape = axes[value.name], dims(value)
        if axis is not None and shape is not None and isinstance(shape[axis], int):
            found.add(shape[axis])
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, int) else None
