"""ONNX to the IR and back."""

from tersor.frontends.onnx.bridge import export_graphsurgeon, import_graphsurgeon
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.frontends.onnx.load import model_bytes, read_model
from tersor.frontends.onnx.split import export_built, external_files, read_built

__all__ = [
    "export_built",
    "export_graphsurgeon",
    "export_model",
    "external_files",
    "import_graphsurgeon",
    "import_model",
    "model_bytes",
    "read_built",
    "read_model",
]
