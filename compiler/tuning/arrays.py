"""Named arrays in a file, for passing between processes.

``np.savez`` uses names as keyword arguments and as file names: an input called ``file`` breaks it, and
``np.load`` confuses ``x`` with ``x.npy``.  Here names are data: the first array is a JSON text of names and
element types, and the others follow in that order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tersor.ir import DType

OUTPUTS = "outputs.npz"  # In a worker's folder.


def feed_path(folder: Path, number: int) -> Path:
    """The file of a feed that workers read."""
    return folder / f"feed-{number}.npz"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays``, of any element type of the IR, to ``path`` (.npz)."""
    entries, stored = [], []
    for name, given in arrays.items():
        array = np.asarray(given)
        dtype = DType.of(array)
        entry: dict[str, object] = {"name": name, "dtype": dtype.value}
        if dtype is DType.STRING:
            entry["strings"] = [str(text) for text in array.reshape(-1)]
            array = np.empty(array.shape, np.bool_)  # Only its shape is read.
        elif dtype.numpy.isbuiltin != 1:  # numpy forgets the names of what ml_dtypes adds.
            array = np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.itemsize}")
        else:
            array = array.astype(dtype.numpy, copy=False)
        entries.append(entry)
        stored.append(array)
    np.savez(path, np.frombuffer(json.dumps(entries).encode(), np.uint8), *stored)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads a file of :func:`write_arrays`."""
    arrays: dict[str, np.ndarray] = {}
    with np.load(path) as stored:
        for i, entry in enumerate(json.loads(stored["arr_0"].tobytes()), 1):
            array, dtype = stored[f"arr_{i}"], DType(entry["dtype"])
            if dtype is DType.STRING:
                array = np.array(entry["strings"], object).reshape(array.shape)
            arrays[entry["name"]] = array if array.dtype == dtype.numpy else array.view(dtype.numpy)
    return arrays
