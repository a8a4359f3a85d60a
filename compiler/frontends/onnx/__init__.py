"""ONNX files and protobufs into the IR and back, by way of onnx-graphsurgeon."""

from tersor.frontends.onnx.bridge import export_graphsurgeon, import_graphsurgeon
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.frontends.onnx.load import file_size, model_bytes

__all__ = [
    "export_graphsurgeon",
    "export_model",
    "file_size",
    "import_graphsurgeon",
    "import_model",
    "model_bytes",
]
