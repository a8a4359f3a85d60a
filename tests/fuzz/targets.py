"""What is fuzzed: functions from bytes that return, or raise what is a finding.

A file that somebody gives us has two outcomes: a result, or a :class:`TersorError` with one line. Any
other exception is a finding, and so is a result that does not hold what it promises: a graph must
verify, print, read back as itself, pass the optimization and come out as a model again.
"""

from __future__ import annotations

import os
import tempfile
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

from tersor import artifact
from tersor.artifact.manifest import NAME
from tersor.backends.ort.lower import lower
from tersor.calibration.arrays import read_arrays
from tersor.driver.recipe import Recipe
from tersor.errors import InvalidGraph, PassFailed, TersorError
from tersor.frontends.onnx import export_model, import_model
from tersor.ir import Graph, parse, print_graph, verify, weights_of
from tersor.ops import TABLE
from tersor.pipeline import Pipeline
from tersor.pipeline.registry import optimization

# A file next to the fuzzed model that its external data may name.
NEIGHBOUR = "weights.bin"
EMPTY = "model-e3b0c44298fc1c14.onnx"  # the manifest's model, of no bytes


def onnx_model(data: bytes) -> None:
    """An ONNX file: import, and for what imports, optimization and export."""
    try:
        graph = import_model(data) if b"location" not in data else _import_file(data)
    except TersorError as error:
        _one_line(error)
        return
    _whole(graph)
    # Optimizing takes ten times as long as importing, which is what most inputs are for.
    if zlib.crc32(data) % 4 == 0:
        _optimized(graph)


def ir_text(data: bytes) -> None:
    """The text form of a graph, which has no weights with it."""
    try:
        graph = parse(data.decode("utf-8", "replace"), TABLE)
        verify(graph)  # types are taken as they are written
    except TersorError:
        return
    _whole(graph)


def arrays(data: bytes) -> None:
    """A file of arrays, as calibration takes it."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = Path(folder, "arrays.npz")
        path.write_bytes(data)
        try:
            read_arrays(path)
        except TersorError as error:
            _one_line(error)


def manifest(data: bytes) -> None:
    """The manifest of a saved artifact, next to an empty model."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        Path(folder, NAME).write_bytes(data)
        Path(folder, EMPTY).write_bytes(b"")
        try:
            artifact.load(folder)
        except TersorError as error:
            _one_line(error)


def recipe(data: bytes) -> None:
    """A recipe file."""
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        path = Path(folder, "recipe.toml")
        path.write_bytes(data)
        try:
            Recipe.of(path).build()
        except TersorError as error:
            _one_line(error)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "onnx": onnx_model,
    "text": ir_text,
    "npz": arrays,
    "manifest": manifest,
    "recipe": recipe,
}


class Finding(AssertionError):
    """Something was let in that does not hold what it promises."""


def run(target: str, data: bytes) -> str:
    """Gives ``data`` to a target; the finding's key (what was raised, and where in our code), or an
    empty string where there is none."""
    try:
        TARGETS[target](data)
    except Exception as error:
        return key_of(error)
    return ""


def key_of(error: BaseException) -> str:
    """Findings of one key are one bug, most of the time."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/tersor/" in f.filename or _is_ours(f.filename)]
    where = ours[-1] if ours else frames[-1]
    return f"{type(error).__name__}-{Path(where.filename).stem}-{where.name}"


def _is_ours(filename: str) -> bool:
    root = Path(__file__).resolve().parents[2]
    return any(filename.startswith(f"{root}/{p}/") for p in ("compiler", "passes", "backends"))


def _import_file(data: bytes) -> Graph:
    with tempfile.TemporaryDirectory(dir=_memory()) as folder:
        Path(folder, NEIGHBOUR).write_bytes(bytes(range(64)))
        os.symlink("/etc/hostname", Path(folder, "link"))
        path = Path(folder, "model")
        path.write_bytes(data)
        return import_model(path)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


def _one_line(error: TersorError) -> None:
    text = str(error)
    if not text.strip() or any(not (c.isprintable() or c == "\t") for c in text):
        raise Finding(f"a message that is not one printable line: {text!r}") from error


def _whole(graph: Graph) -> None:
    """The graph is valid, and its text parses back into the same graph."""
    verify(graph)
    text = print_graph(graph)
    again = print_graph(parse(text, TABLE, weights_of(graph)))
    if again != text:
        raise Finding("the printed text parses into a different graph")


def _optimized(graph: Graph) -> None:
    """Optimization keeps it valid, and the exported model can be imported again."""
    try:
        # Verifying once, not after each of fifty passes, leaves time to fuzz.
        after = Pipeline(optimization(), level="none").run(graph)
        _whole(after)
        data = export_model(lower(after)).SerializeToString()
    except (InvalidGraph, PassFailed):
        raise
    except TersorError:
        return
    import_model(data)
