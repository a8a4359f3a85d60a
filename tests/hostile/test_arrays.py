"""Calibration files that do not contain plain arrays."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tersor.calibration.arrays import read_arrays
from tersor.errors import InvalidOption


def with_header(header: str, data: bytes = b"", name: str = "x.npy") -> Callable[[Path], None]:
    """An .npz of one array with this header."""

    def write(path: Path) -> None:
        text = header.encode() + b"\n"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(
                name, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data
            )

    return write


def shaped(shape: str, dtype: str = "<f4") -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"


def bomb(path: Path) -> None:
    """Four gigabytes of zeros in four megabytes, by their headers: nothing is packed here."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(1000))
    data = path.read_bytes()
    path.write_bytes(
        data.replace((1000).to_bytes(4, "little"), (4_000_000_000).to_bytes(4, "little"))
    )


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([os.getcwd], object))


def a_pickle(path: Path) -> None:
    path.write_bytes(b"\x80\x04N.")


def truncated(path: Path) -> None:
    np.savez(path, x=np.ones(1000))
    path.write_bytes(path.read_bytes()[:4000])


def damaged(path: Path) -> None:
    np.savez(path, x=np.ones(1000))
    data = bytearray(path.read_bytes())
    data[2000] ^= 255
    path.write_bytes(data)


def encrypted(path: Path) -> None:
    with_header(shaped("(1,)"), bytes(4))(path)
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    path.write_bytes(data)


PICKLED = "contains pickled objects, which are not loaded because they can run code; save plain arrays by np.savez"
DAMAGED = "not an .npz file, or damaged; save it by np.savez"
ROWS: dict[str, tuple[Callable[[Path], None], str]] = {
    "objects": (pickled, PICKLED),
    "objects by their header": (with_header(shaped("(1,)", "|O"), b"cos\nsystem\n(S'true'\ntR."), PICKLED),
    "a pickle": (a_pickle, DAMAGED),
    "truncated": (truncated, DAMAGED),
    "damaged": (damaged, DAMAGED),
    "encrypted": (encrypted, DAMAGED),
    "a bomb": (bomb, "{size} bytes that unpack to 4000000000; save it by np.savez, which does not compress"),
    "a dim of 2^62": (with_header(shaped("(4611686018427387904,)")), DAMAGED),
    "a dim past 64 bits": (with_header(shaped("(1" + "0" * 30 + ",)")), DAMAGED),
    "a negative dim": (with_header(shaped("(-1,)")), DAMAGED),
    "missing gigabytes": (with_header(shaped("(1073741824,)")), DAMAGED),
    "an unknown dtype": (with_header(shaped("(1,)", "<q9")), DAMAGED),
    "code for a header": (with_header("__import__('os').system('true')"), DAMAGED),
    "a header that nests": (with_header("(" * 5000), DAMAGED),
    "nothing": (lambda p: zipfile.ZipFile(p, "w").close(), "the file has no arrays"),
}  # fmt: skip


@pytest.mark.parametrize("case", ROWS)
def test_it_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    write, message = ROWS[case]
    path = tmp_path / "data.npz"
    write(path)
    with pytest.raises(InvalidOption) as caught:
        read_arrays(path)
    assert str(caught.value) == f"{path}: {message.format(size=path.stat().st_size)}"
    assert str(caught.value).isprintable()


def test_arrays_that_compress_well_are_accepted(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "data.npz", x=np.zeros(1_000_000))
    assert read_arrays(tmp_path / "data.npz")["x"].shape == (1_000_000,)
