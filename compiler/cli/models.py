"""Models as commands take them: an ONNX file, a compiled artifact's folder, a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tersor import registry
from tersor.artifact import load, manifest
from tersor.built import Built
from tersor.errors import InvalidModel, Unsupported

if TYPE_CHECKING:
    from tersor.ir import Graph


@dataclass(frozen=True)
class Runnable:
    """A model and how it is run; ``graph`` tells its interface."""

    graph: Graph
    runtime: str
    model: Path | Built
    choice: dict[str, Any]


def is_artifact(path: Path) -> bool:
    return (path / manifest.NAME).is_file()


def read_graph(path: Path, allow_hf_cache: bool = False, trust: bool = False) -> Graph:
    """The IR of a model.

    Raises:
        TersorError: what is wrong with it; names the path.
    """
    from tersor.frontends import load_model

    file = path
    if is_artifact(path):
        load(path)  # which checks it
        file = path / manifest.read_manifest(path).model
    with naming(path):
        return load_model(file, allow_hf_cache=allow_hf_cache, trust=trust).graph


def read_runnable(path: Path, allow_hf_cache: bool = False) -> Runnable:
    """A model that can be run: artifacts by their own runtime and settings, others by ONNX Runtime.

    Raises:
        TersorError: what is wrong with it; names the path.
    """
    graph = read_graph(path, allow_hf_cache)
    if is_artifact(path):
        artifact = load(path)
        return Runnable(graph, artifact.runtime, artifact.model, artifact.choice)
    runtime = registry.RUNTIMES[0]
    if path.is_file():
        return Runnable(graph, runtime, path, {})
    backend = registry.backend(runtime)
    choice = backend.Choice().but(portable=True)
    return Runnable(graph, runtime, backend.build(graph, choice), choice.to_json())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Within it, errors about the model name its path."""
    try:
        yield
    except (InvalidModel, Unsupported) as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
