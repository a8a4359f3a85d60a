"""Reading of command-line models: ONNX files, artifact folders, Hugging Face folders."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tersor.artifact import Artifact, load, manifest
from tersor.artifact.manifest import Manifest
from tersor.built import Built
from tersor.errors import InvalidModel, Unsupported
from tersor.ir.types import parse_type
from tersor.pipeline import registry

if TYPE_CHECKING:
    from tersor.frontends import Imported
    from tersor.ir import Graph


@dataclass(frozen=True)
class Runnable:
    """A model and how to run it; for machine code, ``graph`` has only its inputs."""

    graph: Graph
    runtime: str
    model: Path | Built
    choice: dict[str, object]

    @property
    def is_code(self) -> bool:
        return self.runtime in registry.CODE


def is_artifact(path: Path) -> bool:
    return (path / manifest.NAME).is_file()


def read_saved(path: Path) -> Manifest | None:
    """An artifact's manifest; None if the path is not an artifact.

    Raises:
        InvalidModel: the artifact is damaged.
    """
    return manifest.read_manifest(path) if is_artifact(path) else None


def read_graph(path: Path, allow_hf_cache: bool = False, trust: bool = False) -> Graph:
    """The IR of a model.

    Raises:
        TersorError: what is wrong with it; names the path.
    """
    return read_imported(path, allow_hf_cache, trust).graph


def read_imported(path: Path, allow_hf_cache: bool = False, trust: bool = False) -> Imported:
    """A model with the importer's remarks; raises as :func:`read_graph`."""
    from tersor.frontends import load_model

    file = path
    if (written := read_saved(path)) is not None:
        if written.runtime in registry.CODE:
            raise Unsupported(
                f"{path} is machine code, which has no graph: give the model that it was built from"
            )
        load(path)  # Checks its files.
        file = path / written.model
    with naming(path):
        return load_model(file, allow_hf_cache=allow_hf_cache, trust=trust)


def read_runnable(path: Path, allow_hf_cache: bool = False, trust: bool = False) -> Runnable:
    """A model that can be run: artifacts in their own runtime and settings (machine code if trusted),
    others in ONNX Runtime.

    Raises:
        TersorError: what is wrong with it; names the path.
    """
    if is_artifact(path):
        artifact = load(path, trust=trust)
        code = artifact.runtime in registry.CODE
        graph = _inputs(artifact, path) if code else read_graph(path, allow_hf_cache)
        return Runnable(graph, artifact.runtime, artifact.model, artifact.choice)
    graph = read_graph(path, allow_hf_cache)
    runtime = registry.REFERENCE
    if path.is_file():
        return Runnable(graph, runtime, path, {})
    backend = registry.backend(runtime)
    choice = backend.Choice().replace(portable=True)
    return Runnable(graph, runtime, backend.build(graph, choice), choice.to_json())


def _inputs(artifact: Artifact, path: Path) -> Graph:
    """A graph of only the inputs listed in the manifest."""
    from tersor.ops import TABLE

    graph = TABLE.graph("inputs")
    try:
        for name, type in artifact.manifest["interface"]["inputs"]:
            graph.add_input(name, parse_type(type))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise InvalidModel(f"{path}: the manifest does not list the inputs") from None
    return graph


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """A context in which errors about the model name its path."""
    try:
        yield
    except (InvalidModel, Unsupported) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
