"""Calibration inputs as re-iterable batches: checked, the same on each iteration, one batch in memory.

    given                                        read again
    list of batches                              from the caller's memory
    .npz file, folder of .npz files              from these files
    texts (.txt, .jsonl)                         tokens, from a temporary file
    DataLoader, generator, any other iterable    from a temporary file: many can be read only once, or shuffle
    ONNX Runtime's CalibrationDataReader         from a temporary file

Temporary files have no name and are deleted with the object. Small ones stay in memory.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tersor.calibration.arrays import Arrays
from tersor.calibration.samples import SampleFile, SampleFolder
from tersor.calibration.text import SUFFIXES, text_batches
from tersor.errors import InvalidOption
from tersor.ir import DType, Graph, TensorType, Value
from tersor.pipeline.rewriting import Feed, Feeds
from tersor.statistics.thinning import sample_axes

IN_MEMORY = 1 << 24  # Bytes of a temporary file that stay in memory.


@runtime_checkable
class DataReader(Protocol):
    """ONNX Runtime's ``CalibrationDataReader``."""

    def get_next(self) -> Mapping[str, Any] | None:
        """The next batch; None or an empty one after the last."""


Given = str | Path | Iterable[Any] | DataReader
"""What users may give: a path, batches, or an iterable or reader of batches. A batch is a mapping of arrays
(numpy's, torch's, nested lists of numbers) by input name, or a sequence of arrays, one per input in order."""


def open_calibration(
    given: Given | None,
    graph: Graph,
    *,
    batch: int | None = None,
    model: Any = None,
    files: Mapping[str, bytes] | None = None,
) -> Feeds:
    """Batches for ``graph``, each with all of its inputs, in the given order; empty for None. All of them are
    read once here, to check them.

    Args:
        batch: batch size for files of stacked samples and for texts, by default 8; each file of a folder
            of .npz files is one batch by default.
        model: the model that was imported; its path locates the tokenizer.
        files: files of the model's folder, by name: the tokenizer and its settings.

    Raises:
        InvalidOption: there are no batches; a batch is empty, contains NaN, or does not match the inputs'
            names, dtypes or shapes; a file cannot be read. Says which, and what is expected.
    """
    if given is None:
        if batch is not None:
            raise InvalidOption("batch is for calibration, and none is given")
        return ()
    if batch is not None and batch < 1:
        raise InvalidOption(f"batch is {batch}; give 1 or more")
    if isinstance(given, str | Path):
        return _of_path(Path(given), graph, batch, model, files or {})
    if isinstance(given, Mapping):
        raise InvalidOption("calibration is one batch: give a list of batches")
    if batch is not None:
        raise InvalidOption("batch is for calibration files: batches in memory are used unchanged")
    if isinstance(given, list | tuple):
        return Listed(given, graph)
    if isinstance(given, DataReader):
        given = _read(given)
    if not isinstance(given, Iterable):
        raise InvalidOption(
            f"calibration is of type {type(given).__name__}, not batches of arrays by name"
        )
    return Spooled(_checked(given, graph))


def _of_path(
    path: Path, graph: Graph, batch: int | None, model: Any, files: Mapping[str, bytes]
) -> Feeds:
    if path.suffix in SUFFIXES and not path.is_dir():
        return Spooled(text_batches(path, graph, batch, model, files))
    if path.is_dir():
        return Reread(SampleFolder(path, graph, batch), graph, path)
    return Reread(SampleFile(path, graph, batch), graph, path)


def _read(reader: DataReader) -> Iterator[Mapping[str, Any]]:
    rewind = getattr(reader, "rewind", None)
    if callable(rewind):
        rewind()
    while batch := reader.get_next():
        yield batch


class Listed:
    """Batches that are in memory."""

    def __init__(self, batches: Sequence[Any], graph: Graph) -> None:
        self._batches, self._graph = batches, graph
        for _ in _checked(batches, graph):
            pass

    def __iter__(self) -> Iterator[Feed]:
        for i, batch in enumerate(self._batches):
            yield _converted(batch, self._graph, f"calibration batch {i}")

    def __len__(self) -> int:
        return len(self._batches)


class Reread:
    """Batches that are read from files on each iteration."""

    def __init__(self, batches: Iterable[Arrays], graph: Graph, path: Path) -> None:
        self._batches, self._length = batches, 0
        for batch in batches:
            _check_numbers(batch, graph, f"{path}, batch {self._length}")
            self._length += 1

    def __iter__(self) -> Iterator[Feed]:
        return iter(self._batches)

    def __len__(self) -> int:
        return self._length


class Spooled:
    """Batches that are read once, and kept in a temporary file."""

    def __init__(self, batches: Iterable[Feed]) -> None:
        # Pickled, since numpy's own format does not support the element types of ml_dtypes. Safe, since no
        # other process can write to the file.
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._places: list[int] = []
        for batch in batches:
            self._places.append(self._file.tell())
            try:
                pickle.dump(batch, self._file, pickle.HIGHEST_PROTOCOL)
            except OSError as error:
                raise InvalidOption(
                    f"calibration does not fit into the temporary folder {gettempdir()}: "
                    f"{error.strerror}; set TMPDIR to another folder"
                ) from None
        if not self._places:
            raise InvalidOption("calibration has no batches")

    def __iter__(self) -> Iterator[Feed]:
        for place in self._places:
            self._file.seek(place)
            batch: Feed = pickle.load(self._file)
            yield batch

    def __len__(self) -> int:
        return len(self._places)


# -- one batch -------------------------------------------------------------------------------------


def _checked(batches: Iterable[Any], graph: Graph) -> Iterator[Feed]:
    count = 0
    for batch in batches:
        where = f"calibration batch {count}"
        feed = _converted(batch, graph, where)
        _check_numbers(feed, graph, where)
        yield feed
        count += 1
    if not count:
        raise InvalidOption("calibration has no batches")


def _converted(batch: Any, graph: Graph, where: str) -> Feed:
    """The arrays of a batch by name."""
    inputs = {v.name: v for v in graph.inputs}
    arrays = batch if isinstance(batch, list | tuple) else [batch]
    if not isinstance(batch, Mapping) and all(hasattr(a, "shape") for a in arrays):
        if len(arrays) != len(inputs):
            raise InvalidOption(
                f"{where} is {len(arrays)} arrays without names; the model takes {', '.join(inputs)}"
            )
        batch = dict(zip(inputs, arrays, strict=True))
    if not isinstance(batch, Mapping):
        raise InvalidOption(f"{where} is a {type(batch).__name__}, not arrays by name")
    if set(batch) != set(inputs):
        raise InvalidOption(
            f"{where} has {', '.join(map(str, batch)) or 'nothing'}; "
            f"the model takes {', '.join(inputs)}"
        )
    return {name: _array(data, inputs[name], where) for name, data in batch.items()}


def _array(data: Any, value: Value, where: str) -> np.ndarray:
    """The array for an input; Python numbers get the input's element type."""
    if hasattr(data, "detach"):  # A torch tensor may be on a device, or require gradients.
        data = data.detach().cpu()
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:  # Rows of different lengths; a dtype of torch alone.
        raise InvalidOption(f"{where}: {value.name!r} is not an array: {error}") from None
    if not isinstance(value.type, TensorType):
        return array
    if isinstance(data, (list, tuple, int, float)) and array.dtype.kind in "biuf":
        array = array.astype(value.type.dtype.numpy)
    try:
        type = TensorType(DType.of(array), array.shape)
    except TypeError:
        raise InvalidOption(f"{where}: {value.name!r} is {array.dtype}") from None
    if not value.type.accepts(type):
        raise InvalidOption(f"{where}: {value.name!r} is {type}, the model takes {value.type}")
    return array


def _check_numbers(batch: Feed, graph: Graph, where: str) -> None:
    """Checks that a batch is not empty and contains no NaN, which would make statistics NaN."""
    axes = sample_axes(graph)
    for name, array in batch.items():
        if name in axes and not array.shape[axes[name]]:
            raise InvalidOption(f"{where} is empty: {name!r} is of shape {list(array.shape)}")
        if _is_float(array) and np.isnan(array).any():
            raise InvalidOption(f"{where}: {name!r} contains NaN")


def _is_float(array: np.ndarray) -> bool:
    try:
        return DType.of(array).is_float
    except TypeError:
        return False
