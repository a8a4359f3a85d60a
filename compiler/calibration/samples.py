"""Samples in .npz files: one file of stacked samples, or a folder of files, each a batch.

x  f32[64, 3, 32, 32]    64 samples along axis 0: the model takes x f32[batch, 3, 32, 32]
h  f32[2, 64, 128]       along axis 1: the model takes h f32[2, batch, 128]
sr i64[]                 the same in every batch: the model has no batch there
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.lib.format import open_memmap

from tersor.analysis.match import dims
from tersor.calibration.arrays import Arrays, check_arrays, read_arrays, unpack, unpacked_size
from tersor.errors import InvalidOption
from tersor.ir import Graph, Value
from tersor.ir.dims import symbols

BATCH = 8  # Batch size for a file, if the model's is dynamic.
IN_MEMORY = 1 << 24  # Bytes of one file; of larger files only a batch is in memory.
Axes = dict[
    str, int | None
]  # Axis along which samples are stacked; None: the same for all samples.


class SampleFile:
    """Batches of one .npz file of stacked samples. A large file is unpacked into a temporary folder, which is
    deleted with this object.

    Raises:
        InvalidOption: what is wrong with the file, or does not match the model.
    """

    def __init__(self, path: Path, graph: Graph, batch: int | None = None) -> None:
        self._contents: Mapping[str, np.ndarray | Path]
        if unpacked_size(path) <= IN_MEMORY:
            self._contents = read_arrays(path)
        else:
            self._folder = TemporaryDirectory(prefix="tersor-")
            self._contents = unpack(path, Path(self._folder.name))
        self._stack = stacked(self._arrays(), path, graph, batch)

    def __iter__(self) -> Iterator[Arrays]:
        for start in self._stack.starts:
            # Mapped for each batch, since pages of a mapped file count as memory.
            yield self._stack.cut(self._arrays(), start)

    def _arrays(self) -> Arrays:
        return {
            name: open_memmap(content, mode="r") if isinstance(content, Path) else content
            for name, content in self._contents.items()
        }


class SampleFolder:
    """Batches of a folder of .npz files in the order of their names: one per file, or, with ``batch``, each
    file split into batches of that size.

    Raises:
        InvalidOption: there are no files; during iteration, what is wrong with one.
    """

    def __init__(self, path: Path, graph: Graph, batch: int | None = None) -> None:
        self._files = sorted(path.glob("*.npz"))
        self._graph, self._batch = graph, batch
        if not self._files:
            raise InvalidOption(f"{path}: the folder holds no .npz files")

    def __iter__(self) -> Iterator[Arrays]:
        for file in self._files:
            if self._batch is not None:
                yield from SampleFile(file, self._graph, self._batch)
                continue
            arrays = read_arrays(file)
            check_arrays(arrays, self._graph, file)
            yield arrays


@dataclass(frozen=True)
class Stack:
    """The layout of samples in arrays.

    Attributes:
        axes: the sample axis of each array.
        starts: the first sample of each batch.
    """

    axes: Axes
    starts: range

    def cut(self, arrays: Mapping[str, np.ndarray], start: int) -> Arrays:
        """The batch that starts at sample ``start``."""
        batch = {}
        for name, array in arrays.items():
            axis = self.axes[name]
            samples = slice(start, start + self.starts.step)
            at = ... if axis is None else (*[slice(None)] * axis, samples)
            batch[name] = np.array(array[at])
        return batch


def stacked(
    arrays: Mapping[str, np.ndarray], where: Path, graph: Graph, batch: int | None = None
) -> Stack:
    """Splits samples into batches of ``batch`` (the last may be smaller), or of the model's fixed batch size.

    Raises:
        InvalidOption: the arrays do not match the model, have different numbers of samples, none, or not a
            multiple of a fixed batch size.
    """
    axes = _sample_axes(arrays, graph)
    check_arrays(arrays, graph, where, axes)
    fixed = fixed_batch(graph, axes)
    counts = {name: arrays[name].shape[axis] for name, axis in axes.items() if axis is not None}
    for name, count in counts.items():
        if not count:
            raise InvalidOption(f"{where}: array {name!r} holds no samples along axis {axes[name]}")
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{n} {count} (axis {axes[n]})" for n, count in counts.items())
        raise InvalidOption(f"{where}: arrays hold different numbers of samples: {listed}")
    if not counts:
        return Stack(axes, range(1))
    total = next(iter(counts.values()))
    check_whole(total, "samples", fixed, batch, where)
    return Stack(axes, range(0, total, fixed or batch or BATCH))


def check_whole(total: int, what: str, fixed: int | None, batch: int | None, where: Path) -> None:
    """Checks that samples are a multiple of the model's batch size (``fixed``; None: dynamic).

    Raises:
        InvalidOption: they are not.
    """
    if fixed is not None and (total % fixed or batch not in (None, fixed)):
        wrong = f"{total} {what}" if total % fixed else f"batches of {batch}"
        raise InvalidOption(
            f"{where}: {wrong} are no whole batches of {fixed}, which is what the model takes at once"
        )


def _sample_axes(arrays: Mapping[str, np.ndarray], graph: Graph) -> Axes:
    """The sample axis of each array."""
    batch = _batch_name(graph)
    values = {v.name: v for v in graph.inputs if v.name in arrays}
    axes = {name: _own_axis(value, arrays[name], batch) for name, value in values.items()}
    counts = {arrays[name].shape[axis] for name, axis in axes.items() if axis is not None}
    for name, value in values.items():
        # A dynamic dim of another name may be the batch too.
        if axes[name] is None and len(counts) == 1:
            axes[name] = _like_axis(value, arrays[name], next(iter(counts)))
    return axes


def _batch_name(graph: Graph) -> str | None:
    """The first dynamic dim that comes first in an input."""
    for value in graph.inputs:
        for dim in (dims(value) or ())[:1]:
            if symbols(dim) == {str(dim)}:
                return str(dim)
    return None


def _own_axis(value: Value, array: np.ndarray, batch: str | None) -> int | None:
    """By the input's type: the batch axis, or for a fixed shape the only longer axis of the array."""
    shape = dims(value)
    if shape is None:
        return 0 if array.ndim else None
    if len(shape) != array.ndim:
        return None  # An error that check_arrays reports.
    for axis, dim in enumerate(shape):
        if not isinstance(dim, int) and str(dim) == batch:
            return axis
    if not all(isinstance(dim, int) for dim in shape):
        return None
    longer = [axis for axis, dim in enumerate(shape) if array.shape[axis] != dim]
    return longer[0] if len(longer) == 1 else None


def _like_axis(value: Value, array: np.ndarray, count: int) -> int | None:
    """The first dynamic axis of size ``count``."""
    for axis, dim in enumerate(dims(value) or ()):
        if not isinstance(dim, int) and axis < array.ndim and array.shape[axis] == count:
            return axis
    return None


def fixed_batch(graph: Graph, axes: Axes) -> int | None:
    """The model's fixed batch size; None if it is dynamic, or inputs disagree."""
    sizes = set()
    for value in graph.inputs:
        axis, shape = axes[value.name], dims(value)
        if axis is not None and shape is not None and isinstance(shape[axis], int):
            sizes.add(shape[axis])
    only = sizes.pop() if len(sizes) == 1 else None
    return only if isinstance(only, int) else None
