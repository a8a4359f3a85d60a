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

BATCH = 8  # Samples of a file that run at once, where the model leaves the number open.
IN_MEMORY = 1 << 24  # Bytes of one file; of larger ones only a batch is in memory.
Axes = dict[str, int | None]  # Along which samples are stacked; None: the array is no stack.


class SampleFile:
    """Batches of one .npz file of stacked samples. What is large is unpacked into a temporary folder, which
    goes with this object.

    Raises:
        InvalidOption: what is wrong with the file, or does not fit the model.
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
            # Opened for each batch: pages of a file count as memory as long as it is mapped.
            yield self._stack.cut(self._arrays(), start)

    def _arrays(self) -> Arrays:
        return {
            name: open_memmap(content, mode="r") if isinstance(content, Path) else content
            for name, content in self._contents.items()
        }


class SampleFolder:
    """Batches of a folder of .npz files in the order of their names: each file one, or, of a given ``batch``,
    cut into such.

    Raises:
        InvalidOption: there are none; and, when they are read, what is wrong with one.
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
    """How arrays hold samples.

    Attributes:
        axes: of each array, where its samples are.
        starts: the first sample of each batch.
    """

    axes: Axes
    starts: range

    def cut(self, arrays: Mapping[str, np.ndarray], start: int) -> Arrays:
        """The batch that begins with sample ``start``."""
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
    """Samples in batches of ``batch`` (the last may be smaller), or of as many as the model takes.

    Raises:
        InvalidOption: the arrays are not what the model takes, hold different numbers of samples, none,
            or no whole batches.
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
    """That so many samples are whole batches of what the model takes at once (``fixed``; None: any number).

    Raises:
        InvalidOption: they are not.
    """
    if fixed is not None and (total % fixed or batch not in (None, fixed)):
        wrong = f"{total} {what}" if total % fixed else f"batches of {batch}"
        raise InvalidOption(
            f"{where}: {wrong} are no whole batches of {fixed}, which is what the model takes at once"
        )


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
    for value in graph.inputs:
        for dim in (dims(value) or ())[:1]:
            if symbols(dim) == {str(dim)}:
                return str(dim)
    return None


def _own_axis(value: Value, array: np.ndarray, batch: str | None) -> int | None:
    """By the type of the input alone: the axis of the batch; of a fixed shape, that in which the array is
    longer."""
    shape = dims(value)
    if shape is None:
        return 0 if array.ndim else None
    if len(shape) != array.ndim:
        return None  # Which is an error that is listed elsewhere.
    for axis, dim in enumerate(shape):
        if not isinstance(dim, int) and str(dim) == batch:
            return axis
    if not all(isinstance(dim, int) for dim in shape):
        return None
    longer = [axis for axis, dim in enumerate(shape) if array.shape[axis] != dim]
    return longer[0] if len(longer) == 1 else None


def _like_axis(value: Value, array: np.ndarray, count: int) -> int | None:
    """The first open axis that holds ``count`` of something."""
    for axis, dim in enumerate(dims(value) or ()):
        if not isinstance(dim, int) and axis < array.ndim and array.shape[axis] == count:
            return axis
    return None


def fixed_batch(graph: Graph, axes: Axes) -> int | None:
    """How many samples the model takes at once, where its inputs say so; None where it is open, or they
    do not agree."""
    found = set()
    for value in graph.inputs:
        axis, shape = axes[value.name], dims(value)
        if axis is not None and shape is not None and isinstance(shape[axis], int):
            found.add(shape[axis])
    only = found.pop() if len(found) == 1 else None
    return only if isinstance(only, int) else None
