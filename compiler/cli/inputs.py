"""What commands take: paths, ``key=value`` pairs, shapes, arrays. All of it is checked before work."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tersor.errors import InvalidOption, suggest

if TYPE_CHECKING:
    from tersor.ir import Graph

MAX_UNPACKED = (
    1 << 29
)  # Bytes; arrays that are larger must not have been packed by more than the next.
MAX_RATIO = 100
Arrays = dict[str, np.ndarray]
_NPY = b"\x93NUMPY"


def check_output(path: Path, model: Path) -> None:
    """That ``path`` can be written, and that this does not write over the input.

    Raises:
        InvalidOption: why it cannot.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        state = "is not a folder" if folder.exists() else "does not exist; make it first"
        raise InvalidOption(f"cannot write {path}: {folder} {state}")
    written = path if path.is_dir() else folder
    if not os.access(written, os.W_OK | os.X_OK):
        raise InvalidOption(f"cannot write {path}: no permission to write in {written}")
    if path.exists() and model.exists() and path.samefile(model):
        raise InvalidOption(f"cannot write {path}: it is the input; choose another path")
    if path.suffix == ".onnx":
        if path.is_dir():
            raise InvalidOption(f"cannot write {path}: it is a folder; choose another path")
    elif path.exists() and not (path / "manifest.json").exists():
        raise InvalidOption(
            f"cannot write {path}: it exists and is not an artifact; choose another path, "
            "or one that ends in .onnx"
        )


def vocabulary(path: Path, out: Path, calibration: Path | None) -> list[str]:
    """Texts of a file, one a line, for a model and a tokenizer that are made for them.

    Raises:
        InvalidOption: it cannot be read, or the rest of the command does not go with new ids.
    """
    if out.suffix == ".onnx":
        raise InvalidOption(
            f"--vocabulary counts ids anew: {out} would be without the tokenizer that does so, too; "
            "choose a path that does not end in .onnx"
        )
    if calibration is not None:
        raise InvalidOption(
            f"--vocabulary counts ids anew, and {calibration} has the old ones; in Python, "
            "tersor.trim_vocabulary gives the tokenizer for new inputs"
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidOption(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidOption(f"cannot read {path}: it is not UTF-8") from None
    return [line for line in text.splitlines() if line.strip()]


def pairs(texts: Iterable[str], option: str) -> dict[str, str]:
    """``key=value`` texts as a mapping.

    Raises:
        InvalidOption: one without ``=``, or a key given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise InvalidOption(f"{option} {text!r}: write key=value")
        if key.strip() in found:
            raise InvalidOption(f"{option} {text!r}: {key.strip()} is given twice")
        found[key.strip()] = value.strip()
    return found


def sizes(texts: Sequence[str], option: str = "--size") -> list[dict[str, int]] | None:
    """``batch=8,sequence=128`` texts, one a case; None for none at all.

    Raises:
        InvalidOption: not a list of name=integer.
    """
    found = []
    for text in texts:
        given = pairs(text.split(","), option)
        if not all(re.fullmatch(r"\d{1,9}", v) for v in given.values()):
            raise InvalidOption(
                f"{option} {text!r}: write name=integer, as in batch=8,sequence=128"
            )
        found.append({k: int(v) for k, v in given.items()})
    return found or None


def shapes(texts: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """``name=8x128`` texts.

    Raises:
        InvalidOption: not of that form.
    """
    found = {}
    for name, text in pairs(texts, "--shape").items():
        if not re.fullmatch(r"[1-9]\d{0,8}(x[1-9]\d{0,8})*", text):
            raise InvalidOption(f"--shape {name}={text}: write the dims as in {name}=8x128")
        found[name] = tuple(map(int, text.split("x")))
    return found


def read_arrays(path: Path) -> Arrays:
    """The arrays of an .npz file by name.

    Raises:
        InvalidOption: not such a file; or it holds pickled objects, which could run code.
    """
    if not path.is_file():
        state = "not a regular file" if path.exists() else "no such file; check the path"
        raise InvalidOption(f"{path}: {state}")
    try:
        with path.open("rb") as file:
            if file.read(len(_NPY)) == _NPY:
                raise InvalidOption(
                    f"{path}: a single array; save it as np.savez(path, input_name=array)"
                )
        if not zipfile.is_zipfile(path):  # numpy would take it for a pickle.
            raise zipfile.BadZipFile
        _check_unpacked(path)
        with np.load(path, allow_pickle=False) as held:
            found = {name: held[name] for name in held.files}
    except Exception as error:  # zipfile, zlib, struct, tokenize, numpy: each has its own.
        if isinstance(error, InvalidOption):
            raise
        if "allow_pickle" in str(error):
            raise InvalidOption(
                f"{path}: holds pickled objects, which are not loaded because they can run code; "
                "save plain arrays by np.savez"
            ) from None
        if isinstance(error, MemoryError):
            raise InvalidOption(f"{path}: its arrays do not fit into memory") from None
        raise InvalidOption(f"{path}: not an .npz file, or damaged; save it by np.savez") from None
    if not found:
        raise InvalidOption(f"{path}: holds no arrays")
    return found


def _check_unpacked(path: Path) -> None:
    """Raises:
    InvalidOption: little data that says it becomes very much.
    """
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > MAX_UNPACKED and size > MAX_RATIO * path.stat().st_size:
        raise InvalidOption(
            f"{path}: {path.stat().st_size} bytes that unpack to {size}; save it by np.savez, which does "
            "not compress"
        )


def check_arrays(
    arrays: Mapping[str, np.ndarray],
    graph: Graph,
    where: Path,
    stacked: Mapping[str, int | None] | None = None,
) -> None:
    """That ``arrays`` are what the graph takes; ``stacked``: the axes along which they hold all batches
    together.

    Raises:
        InvalidOption: a name, dtype or rank that does not fit; says which and what would.
    """
    from tersor.ir import DType, TensorType

    names = [v.name for v in graph.inputs]
    for name in arrays:
        if name not in names:
            raise InvalidOption(
                f"{where}: the model has no input {name!r}{suggest(name, names)}; "
                f"it takes {', '.join(names)}"
            )
    for value in graph.inputs:
        if value.name not in arrays:
            raise InvalidOption(f"{where}: no array for input {value.name!r}")
        array, type = arrays[value.name], value.type
        if not isinstance(type, TensorType):
            raise InvalidOption(f"{where}: input {value.name!r} is {type}, not a tensor")
        try:
            dtype = DType.of(array)
        except TypeError:
            raise InvalidOption(f"{where}: array {value.name!r} is {array.dtype}") from None
        wanted, axis = type, (stacked or {}).get(value.name)
        if axis is not None and type.dims is not None:
            own = list(type.dims)
            own[axis] = array.shape[axis]
            wanted = type.with_dims(tuple(own))
        if not wanted.accepts(TensorType(dtype, array.shape)):
            raise InvalidOption(
                f"{where}: array {value.name!r} is {TensorType(dtype, array.shape)}, "
                f"the model takes {type}"
            )
