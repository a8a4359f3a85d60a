"""A model's file, and the file of its weights next to it, if it has one.

Whatever is named by another file (weights by the model) has its hash in its name and is there before it is
named; the file that names it is replaced last, in one step. What only the replaced one named goes after that.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from tersor.built import Built, Split, main_file
from tersor.errors import InvalidModel, InvalidOption
from tersor.files.storage import Staging, Stored, locked

GRAPH = ".graph"  # How the file of a graph of the IR ends.
_WEIGHTS = re.compile(rb"weights-[0-9a-f]{16}\.bin")
_MODELS = {".onnx", ".ort", ".pb", GRAPH}
_CHANGED = "a file that its weights are read from changed meanwhile; run it again"


def save_file(path: Path, model: Built) -> None:
    """The model alone, with the file of its weights next to it, if it has one.

    Raises:
        OSError: as the system says.
        InvalidOption: ``path`` is something else than a file.
    """
    if path.exists() and not path.is_file():
        raise InvalidOption(f"cannot write {path}: it is no regular file; choose another path")
    folder = path.parent
    with Staging(folder, path.name) as staging:
        staging.write("model", [main_file(model)])
        kept = set()
        if isinstance(model, Split):
            write_weights(staging, model)
            kept.add(model.weights.name)
        with locked(folder):
            left = _weights_of(path) - kept
            for name in kept:
                staging.move(name, folder / name)
            staging.move("model", path)
            for name in left - _named_by_models(folder, left):
                (folder / name).unlink(missing_ok=True)


def write_weights(staging: Staging, model: Split) -> Stored:
    """The weights of a model, into a folder that they will be moved from.

    Raises:
        InvalidModel: they are mapped from a file that changed meanwhile.
    """
    weights = model.weights
    written = staging.write(weights.name, weights.chunks())
    if written.sha256 != weights.sha256:
        raise InvalidModel(f"the weights are others than a moment ago: {_CHANGED}")
    return written


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against writing ``path``, as errors of ours.

    Raises:
        InvalidOption: the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise InvalidOption(f"cannot write {path}: {error.strerror or error}") from None
    except ValueError as error:  # a null byte in the path
        raise InvalidOption(f"cannot write {str(path)!r}: {error}") from None


def _weights_of(path: Path) -> set[str]:
    """Names of weights files of our making that the model at ``path`` refers to."""
    if not any(path.parent.glob("weights-*.bin")):
        return set()
    return {name.decode() for name in _found(path, _WEIGHTS)}


def _named_by_models(folder: Path, names: Iterable[str]) -> set[str]:
    """Those of ``names`` that a model in ``folder`` refers to."""
    wanted = {name.encode() for name in names}
    others = (p for p in folder.iterdir() if p.suffix in _MODELS) if wanted else ()
    return {name.decode() for path in others for name in _found(path, _WEIGHTS) & wanted}


def _found(path: Path, pattern: re.Pattern[bytes]) -> set[bytes]:
    """What of ``pattern`` stands in a file."""
    if not path.is_file() or path.stat().st_size == 0:
        return set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return set(pattern.findall(text))
