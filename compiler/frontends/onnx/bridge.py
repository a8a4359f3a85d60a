"""Graphs of onnx-graphsurgeon to IR and back, for users who edit models with it."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from tersor.errors import InvalidModel, first_line
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.ir import Graph


def import_graphsurgeon(graph: gs.Graph) -> Graph:
    """The IR of a graphsurgeon graph, which is not changed.

    Raises:
        InvalidModel: graphsurgeon cannot export it, or as for :func:`import_model`.
        Unsupported: as for :func:`import_model`.
    """
    try:
        model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        raise InvalidModel(
            f"graph {graph.name!r}: graphsurgeon cannot export it: {first_line(error)}"
        ) from None
    return import_model(model)


def export_graphsurgeon(graph: Graph, *, opset: int | None = None) -> gs.Graph:
    """A graphsurgeon graph of ``graph``, whose ops are standard or opaque and whose constants are dense.
    Scopes of nodes are lost, because graphsurgeon does not store metadata.

    Raises:
        Unsupported: as for :func:`export_model`.
    """
    return gs.import_onnx(export_model(graph, opset=opset))
