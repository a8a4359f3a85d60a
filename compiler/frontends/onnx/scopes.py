"""The module that a node came from, as exporters write it down."""

from __future__ import annotations

import ast

from onnx import NodeProto

# We write it under the key that viewers read; torch's exporter writes the same key as
# ": Model/encoder: Encoder/encoder.layer.0: Layer/linear: aten.linear.default".
NAMESPACE = "namespace"
TORCH_SCOPES = "pkg.torch.onnx.name_scopes"  # "['', 'encoder', 'encoder.layer.0', 'linear']"


def module_path(proto: NodeProto) -> str:
    """The path of a node's module, like ``encoder.layer.0.attention.self.query``; empty if unknown.

    Read from metadata, or else from node names like ``/encoder/layer.0/attention/self/query/MatMul``,
    which torch's older exporter gives.
    """
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    if TORCH_SCOPES in metadata and (scopes := _list(metadata[TORCH_SCOPES])):
        return _known(scopes[-2]) if len(scopes) > 1 else ""
    if namespace := metadata.get(NAMESPACE):
        if ": " not in namespace:
            return str(namespace)
        parts = [part.split(":")[0].strip() for part in namespace.split("/")]
        return _known(parts[-2]) if len(parts) > 1 else ""
    if not proto.name.startswith("/"):
        return ""
    return ".".join(part for part in proto.name.split("/")[1:-1] if part)


def _known(path: str) -> str:
    """What torch writes in place of a path that it does not know is none."""
    return "" if path.startswith("_empty_nn_module_stack") else path


def _list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(item) for item in value] if isinstance(value, list) else []
