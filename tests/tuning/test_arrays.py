"""Arrays that go from one process to another under any name, and come back as they were."""

from pathlib import Path

import ml_dtypes
import numpy as np

from tersor.tuning.arrays import read_arrays, write_arrays

F = np.float32
GIVEN = {
    "file": np.array([1], F),  # An argument of np.savez.
    "allow_pickle": np.array(2, np.int64),
    "x": np.zeros((2, 0), F),
    "x.npy": np.ones((2, 1), F),  # To np.load the same name as the one before.
    "arr_0": np.array([True]),
    "../a/b ü": np.array([[1.5]], np.float64),
    "": np.array([3], np.uint8),
    "half": np.array([1.5, np.nan], ml_dtypes.bfloat16),
    "code": np.array([[0.5]], ml_dtypes.float8_e4m3fn),
    "swapped": np.array([1, 2], ">i4"),
    "texts": np.array([["a", ""], ["ü", "b\0"]], object),
}


def test_any_name_and_type_comes_back(tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", GIVEN)
    got = read_arrays(tmp_path / "a.npz")
    assert list(got) == list(GIVEN)
    for name, array in GIVEN.items():
        assert got[name].dtype == array.dtype.newbyteorder("="), name
        assert got[name].shape == array.shape, name
        if array.dtype == object:
            assert (got[name] == array).all()
        else:
            assert got[name].tobytes() == array.astype(got[name].dtype).tobytes(), name
