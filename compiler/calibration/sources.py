"""Calibration inputs as a compilation goes over them: checked, the same each time, one batch in memory.

    given                                        gone over again
    list of batches                              from memory, where its owner has it
    .npz file, folder of .npz files              from these files
    texts (.txt, .jsonl)                         tokens, from a temporary file
    DataLoader, generator, any other iterable    from a temporary file: many can be read once only, or shuffle
    ONNX Runtime's CalibrationDataReader         the same

A temporary file has no name, and goes with the object. Where there is little, it stays in memory.
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
        """The next batch; None or nothing in it after the last."""


Given = str | Path | Iterable[Any] | DataReader
"""What users give: a path, batches, or what gives such one by one. A batch is a mapping of arrays (numpy's,
torch's, nested lists of numbers) by the names of the model's inputs, or arrays alone, one for each input in
order."""


def open_calibration(
    given: Given | None,
    graph: Graph,
    *,
    batch: int | None = None,
    model: Any = None,
    files: Mapping[str, bytes] | None = None,
) -> Feeds:
    """Batches for ``graph``, each with all of its inputs, in the order in which they come; none for None.

    All of them are gone over here once.

    Args:
        batch: samples that run at once, of what a file stacks, and texts; by default 8, and of a folder of
            .npz files all of each.
        model: of which the graph is; by its path the tokenizer is arrays_by_name.
        files: of the model's folder, by their names: the tokenizer and its settings.

    Raises:
        InvalidOption: no batches; one that is empty, contains NaN, or whose names, dtypes or shapes are not
            what the inputs take; a file that cannot be read; says which, and what would do.
    """
    if given is None:
        if batch is not None:
            raise InvalidOption("batch is for calibration, and none is given")
        return ()
    if batch is not None and batch < 1:
        raise InvalidOption(f"batch is {batch}; it has to be 1 or more")
    if isinstance(given, str | Path):
        return _of_path(Path(given), graph, batch, model, files or {})
    if isinstance(given, Mapping):
        raise InvalidOption("calibration is one batch: give a list of batches")
    if batch is not None:
        raise InvalidOption(
            "batch is for calibration files: batches that are given stay as they are"
        )
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
    """Batches of files, which are read each time."""

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
        # Pickled: numpy's own format has no names for the element types that ml_dtypes adds. Nobody else
        # can write to the file.
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115
        self._places: list[int] = []
        for batch in batches:
            self._places.append(self._file.tell())
            try:
                pickle.dump(batch, self._file, pickle.HIGHEST_PROTOCOL)
            except OSError as error:
                raise InvalidOption(
                    f"calibration does not fit into the temporary folder {gettempdir()}: "
                    f"{error.strerror}; set TMPDIR to another"
                ) from None
        if not self._places:
            raise InvalidOption("calibration holds no batches")

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
        arrays_by_name = _converted(batch, graph, where)
        _check_numbers(arrays_by_name, graph, where)
        yield arrays_by_name
        count += 1
    if not count:
        raise InvalidOption("calibration holds no batches")


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
    """What an input gets; numbers of Python take on its element type."""
    if hasattr(data, "detach"):  # A torch tensor may be on a device, and require gradients.
        data = data.detach().cpu()
    try:
        array = np.asarray(data)
    except (TypeError, ValueError) as error:  # Rows of different lengths; a dtype of torch alone.
        raise InvalidOption(f"{where}: {value.name!r} is no array: {error}") from None
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
    """That there is something in a batch, and no NaN: statistics of it would be NaN too."""
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
