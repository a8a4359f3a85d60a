"""Arrays by name in a file, on their way from one process to another.

``np.savez`` takes its names for arguments and for names of files: an input called ``file`` breaks it, and
``x`` beside ``x.npy`` are one to ``np.load``.  Here they are data: the first array is a JSON text of names
and element types, and the others follow by their places.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tersor.ir import DType

OUTPUTS = "outputs.npz"  # In the folder that a worker knows.


def feed_path(folder: Path, number: int) -> Path:
    """Where inputs lie for workers."""
    return folder / f"feed-{number}.npz"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes ``arrays``, of any element type of the IR, to ``path`` (.npz)."""
    told, held = [], []
    for name, given in arrays.items():
        array = np.asarray(given)
        dtype = DType.of(array)
        entry: dict[str, object] = {"name": name, "dtype": dtype.value}
        if dtype is DType.STRING:
            entry["strings"] = [str(text) for text in array.reshape(-1)]
            array = np.empty(array.shape, np.bool_)  # Its shape is all that is read of it.
        elif dtype.numpy.isbuiltin != 1:  # numpy forgets the names of what ml_dtypes adds.
            array = np.ascontiguousarray(array).reshape(array.shape).view(f"u{array.itemsize}")
        else:
            array = array.astype(dtype.numpy, copy=False)
        told.append(entry)
        held.append(array)
    np.savez(path, np.frombuffer(json.dumps(told).encode(), np.uint8), *held)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """What :func:`write_arrays` wrote to ``path``."""
    found: dict[str, np.ndarray] = {}
    with np.load(path) as held:
        for i, entry in enumerate(json.loads(held["arr_0"].tobytes()), 1):
            array, dtype = held[f"arr_{i}"], DType(entry["dtype"])
            if dtype is DType.STRING:
                array = np.array(entry["strings"], object).reshape(array.shape)
            found[entry["name"]] = array if array.dtype == dtype.numpy else array.view(dtype.numpy)
    return found
