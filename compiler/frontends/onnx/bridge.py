"""onnx-graphsurgeon's graphs to IR and back, for those who edit models with it."""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from tersor.errors import InvalidModel
from tersor.frontends.onnx.exporter import export_model
from tersor.frontends.onnx.importer import import_model
from tersor.ir import Graph


def import_graphsurgeon(graph: gs.Graph) -> Graph:
    """The IR of a graph of graphsurgeon, which stays as it is.

    Raises:
        InvalidModel, Unsupported: as for :func:`import_model`; also a graph that graphsurgeon itself
            cannot write.
    """
    try:
        model: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidModel(
            f"graph {graph.name!r}: graphsurgeon cannot write it: {reason}"
        ) from None
    return import_model(model)


def export_graphsurgeon(graph: Graph, *, opset: int | None = None) -> gs.Graph:
    """``graph`` as graphsurgeon has it: standard and foreign ops with dense constants. Scopes of nodes
    are lost, graphsurgeon has no place for them.

    Raises:
        Unsupported: as for :func:`export_model`.
    """
    return gs.import_onnx(export_model(graph, opset=opset))
