"""Graphs on disk: the text form, and next to it one file of weights, which are memory-mapped when loaded.

    model.graph                     // tersor graph 1 <SHA-256 of what follows>
                                    // {"weights": "weights-….bin", "offsets": [0, 1536], "constants": {…}, …}
                                    graph main(%x: f32[batch, 4]) -> (y = %h) { …
    weights-0123456789abcdef.bin    arrays, each at the next multiple of 64 bytes, as they lie in memory

Constants that the text has by their digest are described in the second line: the form of each with all
its fields, arrays by their place in the file. Arrays that share memory (a table, and its transpose for a
tied head) are one there, and share it again when they are loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tersor.built import Built, Split, Weights
from tersor.errors import InvalidGraph, InvalidModel, InvalidOption, one_line
from tersor.files.model import GRAPH, save_file, writing
from tersor.files.storage import locked, open_plain
from tersor.ir.encodings import FORMS, Dense, Encoding
from tersor.ir.encodings.encoding import fields_of, in_order_of_bytes, place_of
from tersor.ir.graph import Graph, OpTable
from tersor.ir.text import parse, print_graph, weights_of
from tersor.ir.types import DType, TensorType, parse_type
from tersor.ir.verify import verify

ALIGNMENT = 64  # Bytes: a line of the cache, and the widest vector.
FORMAT = b"1"
_MARK = b"// tersor graph "
_DIGEST = re.compile(r"#([0-9a-f]{16})")
_WEIGHTS = re.compile(r"weights-[0-9a-f]{16}\.bin\Z")


def save(graph: Graph, path: str | Path) -> Path:
    """Writes ``graph`` to ``path``, which ends in ``.graph``, and its large constants next to it into
    ``weights-<hash>.bin``, in the encodings that they have; all or nothing, as artifacts are saved.

    Weights are streamed: nothing holds all of them in memory. Equal graphs give equal bytes.

    Raises:
        InvalidOption: the path cannot be written, or ends otherwise.
        InvalidModel: weights are mapped from a file that changed meanwhile.
    """
    path = Path(path)
    if path.suffix != GRAPH:
        raise InvalidOption(f"cannot write {path}: the file of a graph ends in {GRAPH}")
    files = _as_files(graph)
    with writing(path):
        save_file(path, files)
    return path


def load(path: str | Path, table: OpTable | None = None) -> Graph:
    """The graph that :func:`save` wrote to ``path``; its constants are mapped and not read, but once to see
    that they are those that were saved.

    Args:
        table: checks ops and their types; without one they stay as they are written.

    Raises:
        InvalidModel: no such file, none of a graph, one of another version, or one that is damaged.
    """
    path = Path(path)
    try:
        # So that no other process replaces it between the text and the weights.
        with locked(path.resolve().parent, shared=True):
            header, text = _read(path.resolve())
            constants = _constants(header, path.resolve().parent)
        graph = parse(text, table, constants)
        verify(graph)
        graph.metadata = {str(k): str(v) for k, v in header["metadata"].items()}
        graph.domains = {str(k): int(v) for k, v in header["domains"].items()}
    except OSError as error:
        raise InvalidModel(f"{path}: {error.strerror} ({error.filename})") from None
    except (InvalidModel, InvalidGraph) as error:
        raise InvalidModel(f"{path}: {error}") from None
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise InvalidModel(f"{path}: not a graph that can be: {one_line(error, 200)}") from None
    return graph


# -- saving ----------------------------------------------------------------------------------------


@dataclass
class _Arrays:
    """The arrays of one file; arrays that share memory are stored once."""

    arrays: list[np.ndarray] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)

    def describe(self, array: np.ndarray) -> dict[str, object]:
        """Plain data that stands for ``array``."""
        if DType.of(array) is DType.STRING:
            return {"strings": array.reshape(-1).tolist(), "shape": list(array.shape)}
        array = in_order_of_bytes(array)
        order = Dense(array).memory_order
        lying = array.transpose(order)
        if not lying.flags.c_contiguous:  # With gaps or reversed: stored as a contiguous copy.
            order, lying = tuple(range(array.ndim)), array
        key = place_of(lying) if lying.flags.c_contiguous else (id(lying),)
        if key not in self._numbers:
            self._numbers[key] = len(self.arrays)
            self.arrays.append(lying)  # A reference, so that its memory is not reused.
        type = TensorType(DType.of(lying), lying.shape)
        return {"array": self._numbers[key], "type": str(type), "order": order}


def _as_files(graph: Graph) -> Built:
    text, arrays = print_graph(graph), _Arrays()
    wanted = set(_DIGEST.findall(text))
    weights_by_digest = {d: e for d, e in weights_of(graph).items() if d in wanted}
    constants = {d: _describe(e, arrays) for d, e in sorted(weights_by_digest.items())}
    weights = Weights(tuple(arrays.arrays), alignment=ALIGNMENT)
    header = {
        "weights": weights.name if weights.size else None,
        "offsets": weights.offsets,
        "constants": constants,
        "metadata": graph.metadata,
        "domains": graph.domains,
    }
    body = f"// {json.dumps(header, default=int)}\n{text}".encode()
    data = b"%s%s %s\n%s" % (_MARK, FORMAT, hashlib.sha256(body).hexdigest().encode(), body)
    return Split(data, weights) if weights.size else data


def _describe(part: Any, arrays: _Arrays) -> Any:
    """An encoding, or a field of one, as plain data."""
    if isinstance(part, Encoding):
        return {"form": part.form, **{name: _describe(p, arrays) for name, p in fields_of(part)}}
    if isinstance(part, np.ndarray):
        return arrays.describe(part)
    return {"dtype": part.value} if isinstance(part, DType) else part


# -- loading ---------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The header of a file, and the text after it.

    Raises:
        InvalidModel: it is not a saved graph, of another format, or damaged.
    """
    with open_plain(path) as file:
        mark, rest = file.readline(200), file.read()
    if not mark.startswith(_MARK):
        raise InvalidModel("not a graph that tersor saved")
    number, _, digest = mark.removeprefix(_MARK).strip().partition(b" ")
    if number != FORMAT:
        shown = number.decode(errors="replace")
        raise InvalidModel(f"in format {shown}, this version of tersor reads {FORMAT.decode()}")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        raise InvalidModel("damaged, changed or cut short; save it again")
    line, _, text = rest.decode().partition("\n")
    header = json.loads(line.removeprefix("// "))
    if not isinstance(header, dict):
        raise InvalidModel("its header is not a JSON object")
    return header, text


def _constants(header: Mapping[str, Any], folder: Path) -> dict[str, Encoding]:
    """Encodings by digest, over the memory-mapped file."""
    stored = (
        _mapped(folder, header["weights"])
        if header["weights"] is not None
        else np.empty(0, np.uint8)
    )
    offsets = header["offsets"]
    return {digest: _part(e, stored, offsets) for digest, e in header["constants"].items()}


def _mapped(folder: Path, name: str) -> np.ndarray:
    if not _WEIGHTS.match(name):
        raise InvalidModel(f"{name!r} is not the name of a weights file")
    with open_plain(folder / name) as file:
        stored = np.memmap(file, np.uint8, "r")
    if name != Weights((stored,)).name:
        raise InvalidModel(f"its weights, {name}, are damaged or cut short; save it again")
    return stored


def _part(data: Any, stored: np.ndarray, offsets: Sequence[int]) -> Any:
    """The inverse of :func:`_describe`, with arrays over ``stored``."""
    if isinstance(data, list):
        return tuple(data)
    if not isinstance(data, dict):
        return data
    if "form" in data:
        parts = {k: _part(v, stored, offsets) for k, v in data.items() if k != "form"}
        return FORMS[data["form"]](**parts)
    if "dtype" in data:
        return DType(data["dtype"])
    if "strings" in data:
        return np.array(data["strings"], object).reshape(data["shape"])
    type = parse_type(data["type"])
    if not isinstance(type, TensorType):
        raise ValueError(f"an array cannot be {type}")
    start = offsets[data["array"]]
    if not 0 <= start <= stored.size:  # numpy would read memory before the file.
        raise ValueError(f"an array begins at byte {start} of {stored.size}")
    stored_order: np.ndarray = np.ndarray(type.shape, type.dtype.numpy, stored[start:].data)
    return stored_order.transpose(np.argsort(data["order"]))
