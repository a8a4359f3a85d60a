"""Module paths of nodes, from what exporters record."""

from __future__ import annotations

import ast
from functools import lru_cache

from onnx import NodeProto

# The key that viewers read, under which Tersor writes the path; torch's exporter writes it in the form
# ": Model/encoder: Encoder/encoder.layer.0: Layer/linear: aten.linear.default".
NAMESPACE = "namespace"
TORCH_SCOPES = "pkg.torch.onnx.name_scopes"  # "['', 'encoder', 'encoder.layer.0', 'linear']"


def module_path(proto: NodeProto) -> str:
    """The path of a node's module, such as ``encoder.layer.0.attention.self.query``; empty if unknown.

    From the node's metadata, or else from a name such as ``/encoder/layer.0/attention/self/query/MatMul``, as
    torch's older exporter gives.
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
    """``path``, or an empty string for torch's placeholder for an unknown path."""
    return "" if path.startswith("_empty_nn_module_stack") else path


@lru_cache(maxsize=64)  # A node's path is read more than once.
def _list(text: str) -> tuple[str, ...]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    return tuple(str(item) for item in value) if isinstance(value, list) else ()
