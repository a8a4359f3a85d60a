"""The identity of an artifact's input model: hashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tersor.artifact import manifest as manifests
from tersor.built import Built
from tersor.frontends import Imported, load_model
from tersor.pipeline import registry


def input_identity(model: Any) -> dict[str, Any]:
    """The identity that the manifest of a compilation of ``model`` contains.

    Raises:
        InvalidModel, Unsupported, InvalidOption: as :func:`compile`.
    """
    if isinstance(model, (str, Path)) and not Path(model).is_dir():
        return manifests.identity(Path(model))
    return identity_of(load_model(model))


def identity_of(imported: Imported) -> dict[str, Any]:
    """Hashes of the given ONNX file, or of the imported graph if the input was not ONNX."""
    if imported.original is not None:
        return manifests.identity(imported.original)
    return manifests.identity(as_imported(imported), made_from="graph")


def as_imported(imported: Imported) -> Built:
    """The imported graph as an ONNX model."""
    reference = registry.reference()
    return reference.build(imported.graph, reference.Choice().replace(portable=True))
